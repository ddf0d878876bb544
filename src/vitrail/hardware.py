"""Facts of this machine: CPU, usable cores, memory, GPU. Read from the system, never measured.

On Linux from /proc and /sys (`root` lets a test bring its own); elsewhere what cannot be known is None.
Nothing here imports an engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vitrail import gpu

__all__ = ["engines", "facts", "fingerprint", "free_memory_mib", "one_line", "usable_cores", "version_of"]

ROOT = Path("/")

# CPU features that decide which kernels an engine picks; x86 names, then ARM names (as Linux spells them).
FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("neon", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme"),
)

# ARM's /proc/cpuinfo has numbers instead of names: (implementer, part) as in ARM's MIDR register.
ARM_CORES = {
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd40"): "Neoverse V1",
    ("0x41", "0xd49"): "Neoverse N2",
    ("0x41", "0xd4f"): "Neoverse V2",
    ("0xc0", "0xac3"): "Ampere-1",
}

# For each cgroup version: its controller, the memory.* files with limit and use in bytes, and the entries of
# memory.stat that count file pages.
CGROUP_MEMORY = (
    ("", "max", "current", ("active_file", "inactive_file")),
    ("memory", "limit_in_bytes", "usage_in_bytes", ("total_active_file", "total_inactive_file")),
)

# PCI vendors whose render nodes can run a model; a virtual machine's display adapter cannot.
GPU_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


class EngineInfo(Protocol):
    """The fields of a row of the runtimes table that this module reads."""

    @property
    def label(self) -> str: ...
    @property
    def distribution(self) -> str: ...
    @property
    def carried_by(self) -> tuple[str, ...]: ...
    @property
    def install(self) -> str: ...
    @property
    def reference(self) -> bool: ...


def facts(
    root: Path = ROOT, table: Mapping[str, EngineInfo] | None = None, *, device: str = "cpu"
) -> dict[str, Any]:
    """All facts, as plain JSON data: `cpu`, `memory` (MiB), `gpus`, `virtualised`, `os`, `python`, `engines`.

    Args:
        root: the folder that holds proc/ and sys/.
        table: the runtimes whose installed versions are wanted (`vitrail.runtimes.RUNTIMES`).
        device: where models are to run; of a GPU there is `card` too (`gpu.Card`).

    Raises:
        MissingExtraError: what reads the GPU is not installed.
        InputError: there is no such GPU.
    """
    info = _cpuinfo(root)
    card = {} if device == "cpu" else {"card": gpu.card(device).facts()}
    return card | {
        "cpu": _cpu(root, info),
        "memory": {"total_mib": _total_memory(root), "limit_mib": _memory_limit(root)},
        "gpus": _gpus(root),
        "virtualised": "hypervisor" in _words(info, "flags") if "flags" in info else None,
        "os": {"system": platform.system(), "kernel": platform.release()},
        "python": platform.python_version(),
        "engines": engines(table or {}),
    }


def engines(table: Mapping[str, EngineInfo]) -> dict[str, dict[str, Any]]:
    """{name: label, version (None: not installed), install, reference}, from package metadata alone."""
    return {
        name: {
            "label": engine.label,
            "version": version_of(engine),
            "install": engine.install,
            "reference": engine.reference,
        }
        for name, engine in table.items()
    }


def version_of(engine: EngineInfo) -> str | None:
    """Version of the engine's library by its package metadata; None if it is not installed."""
    from importlib import metadata

    for distribution in (engine.distribution, *engine.carried_by):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def fingerprint(known: Mapping[str, Any]) -> str:
    """12 hex digits derived from the facts that decide how fast this machine is.

    Leaves out kernel, Python and engines (the engine is a separate part of every key), free memory and all
    measured figures; total memory is rounded to whole GiB, because kernels reserve varying amounts.
    """
    total = known["memory"]["total_mib"]
    matter = {
        "cpu": known["cpu"],
        "memory_gib": None if total is None else round(total / 1024),
        "memory_limit_mib": known["memory"]["limit_mib"],
        "gpus": known["gpus"],
        "virtualised": known["virtualised"],
        "system": known["os"]["system"],
    }
    if "card" in known:
        matter["card"] = known["card"]
    return hashlib.sha256(json.dumps(matter, sort_keys=True).encode()).hexdigest()[:12]


def one_line(known: Mapping[str, Any]) -> str:
    """`2 cores, AVX-512 VNNI BF16 · 24 GiB · no GPU · OpenVINO, ONNX Runtime`."""
    cpu = known["cpu"]
    usable, physical = cpu["usable_cores"], cpu["physical_cores"]
    of = f" of {physical}" if physical is not None and usable < physical else ""
    vectors = _vectors(cpu["flags"])
    cores = f"{usable}{of} core{'' if usable == 1 and not of else 's'}" + (f", {vectors}" if vectors else "")
    sizes = [size for size in known["memory"].values() if size is not None]
    gib = min(sizes) / 1024 if sizes else None
    memory = "memory unknown" if gib is None else f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB"
    shown = [e["label"] for e in known["engines"].values() if e["version"] and not e["reference"]]
    parts = [cores, memory, ", ".join(known["gpus"]) or "no GPU", ", ".join(shown)]
    return " · ".join(part for part in parts if part)


def usable_cores(root: Path = ROOT) -> int:
    """Cores this process may keep busy: at least 1.

    Physical cores among the CPUs of its affinity (two hyperthreads share the one matrix unit), and no more
    than the whole CPUs of its cgroup quota: one thread over the quota makes the kernel stop all of them.
    """
    allowed = _allowed_cpus(root)
    siblings = {_siblings(root, cpu) or str(cpu) for cpu in allowed}
    quota = _cpu_quota(root)
    return max(1, len(siblings) if quota is None else min(len(siblings), int(quota)))


def free_memory_mib(root: Path = ROOT) -> float:
    """MiB this process can still allocate: the least of the machine's free memory and each cgroup's.

    File pages count as free in both, because the kernel drops them when memory is needed.
    """
    if root == ROOT:
        import psutil

        free = float(psutil.virtual_memory().available) / 2**20
    else:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
        free = int(found[1]) / 1024 if found else math.inf
    return min([free, *_left_by_cgroups(root)])


# --- CPU ----------------------------------------------------------------------------------------


def _cpu(root: Path, info: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": _cpu_model(root, info),
        "vendor": info.get("vendor_id"),
        "architecture": platform.machine(),
        "logical_cores": _logical_cores(root),
        "physical_cores": _physical_cores(root),
        "usable_cores": usable_cores(root),
        "quota": _cpu_quota(root),
        "flags": _flags(root, info),
        "caches": _caches(root),
    }


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo; empty if there is none."""
    block = (_read(root / "proc/cpuinfo") or "").strip().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _words(info: Mapping[str, str], key: str) -> list[str]:
    return info.get(key, "").split()


def _flags(root: Path, info: Mapping[str, str]) -> list[str] | None:
    if "flags" in info or "Features" in info:
        present = {*_words(info, "flags"), *_words(info, "Features")}
        return [flag for flag in FLAGS if flag in present]
    if root == ROOT and platform.system() == "Darwin" and platform.machine() == "arm64":
        features = {"asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16", "sme": "FEAT_SME"}
        found = [
            flag for flag, key in features.items() if _output("sysctl", "-n", f"hw.optional.arm.{key}") == "1"
        ]
        return ["neon", *found]
    return None


def _cpu_model(root: Path, info: Mapping[str, str]) -> str | None:
    if "model name" in info:
        return info["model name"]
    if "CPU part" in info:
        key = (info.get("CPU implementer", ""), info["CPU part"])
        return ARM_CORES.get(key, f"ARM implementer {key[0]} part {key[1]}")
    if root != ROOT:
        return None
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or None


def _logical_cores(root: Path) -> int | None:
    listed = _read(root / "sys/devices/system/cpu/online")
    return len(_cpu_list(listed)) if listed else os.cpu_count() if root == ROOT else None


def _physical_cores(root: Path) -> int | None:
    listed = _read(root / "sys/devices/system/cpu/online")
    siblings = {_siblings(root, cpu) for cpu in _cpu_list(listed or "")}
    if siblings and None not in siblings:
        return len(siblings)
    if root != ROOT:
        return None
    import psutil

    return psutil.cpu_count(logical=False)


def _siblings(root: Path, cpu: int) -> str | None:
    """The hyperthreads that share this CPU's core, as text: the same for all of a core."""
    return _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")


def _allowed_cpus(root: Path) -> Iterable[int]:
    """CPUs in this process's affinity, which reflects the cgroup's cpuset too."""
    if root != ROOT:
        status = _read(root / "proc/self/status") or ""
        listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
        return _cpu_list(listed[1] if listed else "0")
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(_physical_cores(root) or os.cpu_count() or 1)


def _cpu_list(text: str) -> list[int]:
    """`0-2,5` -> [0, 1, 2, 5]."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def _caches(root: Path) -> list[dict[str, Any]] | None:
    """Caches of the first CPU: level, type, KiB and the number of CPUs that share it."""
    caches = []
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        if level is None or kind is None or size is None or not re.fullmatch(r"\d+K", size):
            continue
        shared = len(_cpu_list(_read(folder / "shared_cpu_list") or "")) or None
        caches.append({"level": int(level), "type": kind, "kib": int(size[:-1]), "shared_by": shared})
    return caches or None


def _vectors(flags: Iterable[str] | None) -> str:
    """The vector units worth mentioning: `AVX-512 VNNI BF16`, `AVX2`, `SVE I8MM BF16`."""
    has = set(flags or ())
    if "avx512f" in has:
        words = {"AVX-512": "avx512f", "VNNI": "avx512_vnni", "BF16": "avx512_bf16", "AMX": "amx_tile"}
    elif "avx2" in has:
        words = {"AVX2": "avx2", "VNNI": "avx_vnni"}
    elif "sve" in has:
        words = {"SVE": "sve", "I8MM": "i8mm", "BF16": "bf16"}
    else:
        words = {"NEON": "asimd" if "asimd" in has else "neon", "I8MM": "i8mm", "BF16": "bf16"}
    return " ".join(word for word, flag in words.items() if flag in has)


# --- memory and cgroups -------------------------------------------------------------------------


def _total_memory(root: Path) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    if found:
        return int(found[1]) / 1024
    if root != ROOT:
        return None
    import psutil

    return float(psutil.virtual_memory().total) / 2**20


def _memory_limit(root: Path) -> float | None:
    """The tightest cgroup limit in MiB; None without one, which v1 writes as a huge number."""
    texts = [*_cgroup_files(root, "", "memory.max"), *_cgroup_files(root, "memory", "memory.limit_in_bytes")]
    limits = [int(text) / 2**20 for text in texts if text.isdigit()]
    total = _total_memory(root)
    limits = [limit for limit in limits if total is None or limit < total]
    return min(limits, default=None)


def _left_by_cgroups(root: Path) -> list[float]:
    """MiB left in each cgroup that has a limit; v1 without a limit leaves a huge number."""
    left = []
    for controller, limit_file, use_file, pages in CGROUP_MEMORY:
        for folder in _cgroup_folders(root, controller):
            limit, used = (_read(folder / f"memory.{name}") or "" for name in (limit_file, use_file))
            if limit.isdigit() and used.isdigit():
                stat = dict(re.findall(r"^(\w+) (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE))
                given_back = sum(int(stat.get(name, 0)) for name in pages)
                left.append(max(0, int(limit) - int(used) + given_back) / 2**20)
    return left


def _cpu_quota(root: Path) -> float | None:
    """The tightest cgroup CPU quota in CPUs, None without one."""
    pairs = [text.split() for text in _cgroup_files(root, "", "cpu.max")]
    quotas = _cgroup_files(root, "cpu", "cpu.cfs_quota_us")
    periods = _cgroup_files(root, "cpu", "cpu.cfs_period_us")
    pairs += [[quota, period] for quota, period in zip(quotas, periods, strict=False)]
    found = [int(p[0]) / int(p[1]) for p in pairs if len(p) == 2 and p[0].isdigit() and int(p[1]) > 0]
    return min(found, default=None)


def _cgroup_files(root: Path, controller: str, name: str) -> list[str]:
    """One control file's contents, from this process's cgroup up to the top; `controller` is empty for v2."""
    folders = _cgroup_folders(root, controller)
    return [text for folder in folders if (text := _read(folder / name)) is not None]


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders of control files, from this process's cgroup up to the top; `controller` is empty for v2.

    Every level limits those below it. In a container the path may name folders that only the host sees:
    they are missing here, and the top is the container's own.
    """
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mounts = [mount / controllers, mount / controller] if controller else [mount, mount / "unified"]
        base = next((m for m in mounts if m.is_dir()), mount)
        parts = [part for part in path.split("/") if part and part != ".."]
        return [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


# --- GPU ----------------------------------------------------------------------------------------


def _gpus(root: Path) -> list[str]:
    """Names of GPUs that could run a model."""
    models = [
        match[1].strip()
        for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
        if (match := re.search(r"^Model:(.*)$", _read(path) or "", re.MULTILINE))
    ]
    if not models and root == ROOT and shutil.which("nvidia-smi"):
        models = (_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()
    for node in sorted((root / "sys/class/drm").glob("renderD*")):
        vendor = GPU_VENDORS.get(_read(node / "device/vendor") or "")
        if vendor and not (vendor == "NVIDIA" and models):
            models.append(f"{vendor} GPU ({node.name})")
    if root == ROOT and platform.system() == "Darwin" and platform.machine() == "arm64":
        models.append("Apple GPU (Metal)")
    return models


# --- reading ------------------------------------------------------------------------------------


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _output(*command: str) -> str | None:
    """Standard output of a short system command; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
