"""Facts of machines that are folders: /proc, /sys and cgroup files made by the test. Runs in about 1 s."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from vitrail import hardware
from vitrail.runtimes import RUNTIMES

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse4_2 avx2 fma f16c avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 hypervisor

processor\t: 1
model name\t: second
"""
GRAVITON = (
    "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
)


@pytest.fixture
def machine(tmp_path):
    """Make a root folder from {path: text}."""

    def make(files):
        for path, text in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path

    return make


def topology(siblings):
    """{cpu: list of hyperthreads of its core} as /sys has it."""
    folder = "sys/devices/system/cpu"
    files = {f"{folder}/cpu{cpu}/topology/thread_siblings_list": f"{s}\n" for cpu, s in siblings.items()}
    return {**files, f"{folder}/online": f"0-{max(siblings)}\n"}


def affinity(cpus):
    return {"proc/self/status": f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\n"}


def test_an_x86_server(machine):
    cache = "sys/devices/system/cpu/cpu0/cache"
    root = machine(
        {
            "proc/cpuinfo": XEON,
            "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
            f"{cache}/index0/level": "1",
            f"{cache}/index0/type": "Data",
            f"{cache}/index0/size": "48K",
            f"{cache}/index0/shared_cpu_list": "0,4",
            **topology({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}),
            **affinity("0-3"),
        }
    )
    known = hardware.facts(root, RUNTIMES)
    cpu = known["cpu"]
    assert cpu["model"] == "Intel(R) Xeon(R) Platinum 8481C"
    assert cpu["vendor"] == "GenuineIntel"
    assert (cpu["logical_cores"], cpu["physical_cores"], cpu["usable_cores"]) == (4, 2, 2)
    assert set(cpu["flags"]) == {
        *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")
    }
    assert cpu["caches"] == [{"level": 1, "type": "Data", "kib": 48, "shared_by": 2}]
    assert known["memory"] == {"total_mib": 16000.0, "limit_mib": None}
    assert known["virtualised"] is True
    assert known["gpus"] == []
    assert hardware.one_line(known) == (
        "2 cores, AVX-512 VNNI BF16 AMX · 16 GiB · no GPU · OpenVINO, ONNX Runtime"
    )


def test_an_arm_server(machine):
    known = hardware.facts(
        machine({"proc/cpuinfo": GRAVITON, **topology({0: "0", 1: "1"}), **affinity("0-1")})
    )
    assert known["cpu"]["model"] == "Neoverse V1"
    assert known["cpu"]["flags"] == ["asimd", "asimddp", "sve", "i8mm", "bf16"]
    assert known["virtualised"] is None
    assert hardware.one_line(known) == "2 cores, SVE I8MM BF16 · memory unknown · no GPU"


def test_a_machine_that_tells_nothing_has_unknown_facts_and_still_one_core(machine):
    known = hardware.facts(machine({}))
    cpu = known["cpu"]
    assert cpu["usable_cores"] == 1
    for fact in ("model", "vendor", "logical_cores", "physical_cores", "flags", "caches", "quota"):
        assert cpu[fact] is None, fact
    assert known["memory"] == {"total_mib": None, "limit_mib": None}
    assert hardware.one_line(known) == "1 core · memory unknown · no GPU"
    assert len(hardware.fingerprint(known)) == 12


# --- affinity and cgroups -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (affinity("0-3,6"), 3),  # cores 0-1, 2-3 and one thread of 6-7
        (affinity("5"), 1),
        ({**affinity("0-7"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({**affinity("0-7"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({**affinity("0-7"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({**affinity("0-7"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "900000 100000"}, 4),
    ],
)
def test_usable_cores_are_whole_cores_of_the_affinity_within_the_quota(machine, files, cores):
    pairs = {cpu: f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}" for cpu in range(8)}
    assert hardware.usable_cores(machine({**topology(pairs), **files})) == cores


def test_the_tightest_level_of_a_v2_cgroup_counts(machine):
    root = machine(
        {
            "proc/meminfo": "MemTotal: 8388608 kB\n",
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/user.slice/memory.max": "1073741824",
            "sys/fs/cgroup/user.slice/app.scope/cpu.max": "400000 100000",
            "sys/fs/cgroup/user.slice/app.scope/memory.max": "max",
        }
    )
    known = hardware.facts(root)
    assert known["cpu"]["quota"] == 1.5
    assert known["memory"] == {"total_mib": 8192.0, "limit_mib": 1024.0}
    assert "1.0 GiB" in hardware.one_line(known)


def test_a_v1_cgroup_seen_from_inside_a_container(machine):
    # The path names the host's folders, which are missing here: the mount's own files are the container's.
    root = machine(
        {
            "proc/meminfo": "MemTotal: 8388608 kB\n",
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912",
        }
    )
    known = hardware.facts(root)
    assert known["cpu"]["quota"] == 3.0
    assert known["memory"]["limit_mib"] == 512.0


def test_a_v1_cgroup_without_limits(machine):
    root = machine(
        {
            "proc/meminfo": "MemTotal: 8388608 kB\n",
            "proc/self/cgroup": "2:memory:/\n1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        }
    )
    known = hardware.facts(root)
    assert known["cpu"]["quota"] is None
    assert known["memory"]["limit_mib"] is None


MIB = 2**20


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 6000),
        # The tightest of two levels, of whose use 300 MiB are pages of files.
        (
            {
                "proc/self/cgroup": "0::/user.slice/app.scope\n",
                "sys/fs/cgroup/user.slice/memory.max": f"{2000 * MIB}\n",
                "sys/fs/cgroup/user.slice/memory.current": f"{1500 * MIB}\n",
                "sys/fs/cgroup/user.slice/memory.stat": (
                    f"anon {1200 * MIB}\nfile {310 * MIB}\n"
                    f"inactive_file {200 * MIB}\nactive_file {100 * MIB}\nslab 5\n"
                ),
                "sys/fs/cgroup/user.slice/app.scope/memory.max": f"{1000 * MIB}",
                "sys/fs/cgroup/user.slice/app.scope/memory.current": f"{100 * MIB}",
            },
            800,
        ),
        (
            {
                "proc/self/cgroup": "0::/app.scope\n",
                "sys/fs/cgroup/app.scope/memory.max": "max\n",
                "sys/fs/cgroup/app.scope/memory.current": f"{1500 * MIB}\n",
            },
            6000,
        ),
        # A cgroup with more than the machine has left.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{7000 * MIB}\n",
                "sys/fs/cgroup/memory.current": f"{500 * MIB}\n",
            },
            6000,
        ),
        # Over the limit for a moment.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{700 * MIB}\n",
                "sys/fs/cgroup/memory.current": f"{701 * MIB}\n",
            },
            0,
        ),
        # v1, from inside a container.
        (
            {
                "proc/self/cgroup": "5:memory:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{400 * MIB}\n",
                "sys/fs/cgroup/memory/memory.stat": (
                    f"inactive_file 1\ntotal_inactive_file {80 * MIB}\ntotal_active_file {8 * MIB}\n"
                ),
            },
            200,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{400 * MIB}\n",
            },
            6000,
        ),
    ],
)
def test_free_memory_is_what_the_machine_has_and_the_cgroup_leaves(machine, files, free):
    meminfo = "MemTotal:  8388608 kB\nMemFree:  100 kB\nMemAvailable:  6144000 kB\n"
    assert hardware.free_memory_mib(machine({"proc/meminfo": meminfo, **files})) == free


def test_free_memory_of_this_machine_is_some_of_it():
    total = hardware.facts()["memory"]["total_mib"]
    assert 0 < hardware.free_memory_mib() < total


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity can only be set on Linux")
def test_affinity_of_this_very_process_is_respected():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from vitrail.hardware import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


# --- GPU ----------------------------------------------------------------------------------------


def test_gpus_are_named_and_display_adapters_are_not(machine):
    drm = "sys/class/drm"
    root = machine(
        {
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA L4\nIRQ: 1\n",
            f"{drm}/renderD128/device/vendor": "0x10de\n",
            f"{drm}/renderD129/device/vendor": "0x8086\n",
            f"{drm}/renderD130/device/vendor": "0x1af4\n",  # virtio
            f"{drm}/card0/device/vendor": "0x1002\n",  # no render node
        }
    )
    assert hardware.facts(root)["gpus"] == ["NVIDIA L4", "Intel GPU (renderD129)"]


# --- fingerprint and engines --------------------------------------------------------------------


def test_the_fingerprint_holds_what_decides_speed_and_nothing_else():
    known = hardware.facts(table=RUNTIMES)
    before = hardware.fingerprint(known)
    assert before == hardware.fingerprint(hardware.facts())
    assert before == hardware.fingerprint(json.loads(json.dumps(known)))

    def changed(path, value):
        other = copy.deepcopy(known)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return hardware.fingerprint(other)

    for path, value in [
        (("cpu", "model"), "another"),
        (("cpu", "usable_cores"), 99),
        (("cpu", "flags"), ["avx2"]),
        (("memory", "total_mib"), 1e6),
        (("memory", "limit_mib"), 100.0),
        (("gpus",), ["NVIDIA L4"]),
    ]:
        assert changed(path, value) != before, path
    for path, value in [
        (("os", "kernel"), "another"),
        (("python",), "3.99"),
        (("engines",), {}),
        (("peaks_gflops",), {"openvino": 1.0}),
    ]:
        assert changed(path, value) == before, path


def test_kernels_that_reserve_a_little_more_memory_are_the_same_machine(machine):
    root = machine({"proc/meminfo": "MemTotal: 16384000 kB\n"})
    before = hardware.fingerprint(hardware.facts(root))
    machine({"proc/meminfo": "MemTotal: 16380000 kB\n"})
    assert hardware.fingerprint(hardware.facts(root)) == before


def test_engines_have_the_versions_they_report_themselves():
    import onnxruntime

    @dataclass(frozen=True)
    class Row:
        label: str
        distribution: str
        carried_by: tuple[str, ...] = ()
        install: str = "pip install it"
        reference: bool = False

    carried = Row("ONNX Runtime", "no-such-distribution", carried_by=("onnxruntime",))
    assert hardware.version_of(carried) == onnxruntime.__version__
    table = {"ort": Row("ONNX Runtime", "onnxruntime"), "none": Row("Nothing", "no-such-distribution")}
    found = hardware.engines(table)
    assert found["ort"]["version"] == onnxruntime.__version__
    assert found["none"] == {
        "label": "Nothing",
        "version": None,
        "install": "pip install it",
        "reference": False,
    }
    known = {**hardware.facts(), "engines": found}
    assert hardware.one_line(known).endswith(" · ONNX Runtime")


def test_asking_for_facts_imports_no_engine():
    program = (
        "import sys; from vitrail import hardware; from vitrail.runtimes import RUNTIMES;"
        "hardware.facts(table=RUNTIMES);"
        "print(sorted({'openvino', 'onnxruntime', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
