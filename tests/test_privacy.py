"""Nothing leaves the machine, nothing is written outside Vitrail's own folders (docs/privacy.md). About 12 s.

Hooks in Python do not see native code, so the kernel is asked. A seccomp filter ends any process that opens
an internet socket, and the home folder is compared before and after; where `strace` is installed and may
trace, every connection and every file that is made anywhere is listed as well.
"""

from __future__ import annotations

import ast
import ctypes
import os
import platform
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import selections
from artifacts import make_artifact, make_onnx_artifact, make_photos

import vitrail
from vitrail import privacy
from vitrail.document import to_json_bytes

pytestmark = pytest.mark.slow

SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""machine: (audit architecture, number of the system call `socket`)."""

COMMANDS: dict[str, list[str]] = {
    "predict with OpenVINO": ["predict", "{openvino}", "{photo}"],
    "predict with ONNX Runtime": ["predict", "{onnx}", "{photo}", "--json", "{out}/found.json"],
    "verify": ["verify", "{openvino}"],
    "verify --measure": ["verify", "{onnx}", "--measure"],
    "data": ["data", "{labelled}", "--sheet", "{out}/sheet.png"],
    "models": ["models", "vit_*"],
    "profiles": ["profiles"],
    "doctor": ["doctor"],
    "select --from": ["select", "--from", "{selection}", "--max-latency", "50ms"],
    "train --help": ["train", "--help"],
}
ENDS_WELL = (0, 3)
"""3: an answer that does not hold, as measuring on a busy machine may give."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    openvino, onnx = make_artifact(folder / "a"), make_onnx_artifact(folder / "b")
    for label in ("cat", "dog"):
        make_photos(folder / "labelled" / label, seed=len(label) + ord(label[0]))
    (folder / "selection.json").write_bytes(to_json_bytes(selections.selection()))
    return {
        "openvino": str(openvino.path),
        "onnx": str(onnx.path),
        "photo": str(openvino.photos[0]),
        "labelled": str(folder / "labelled"),
        "selection": str(folder / "selection.json"),
    }


class Sandbox:
    """Folders of one command's own, and an environment that names no other place."""

    def __init__(self, folder: Path) -> None:
        self.home, self.cache, self.out, self.temporary, self.work = (
            folder / name for name in ("home", "cache", "out", "temporary", "work")
        )
        for place in (self.home, self.cache, self.out, self.temporary, self.work):
            place.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(vitrail.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "VITRAIL_CACHE": str(self.cache),
        }

    def run(
        self, command: list[str], before: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.work,
            preexec_fn=before,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def strays(self) -> list[Path]:
        """All that lies where nothing may lie afterwards."""
        return [path for place in (self.home, self.temporary, self.work) for path in place.rglob("*")]


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    return Sandbox(tmp_path)


def command_line(name: str, places: dict[str, str], sandbox: Sandbox) -> list[str]:
    filled = [part.format(**places, out=sandbox.out) for part in COMMANDS[name]]
    return [sys.executable, "-m", "vitrail", *filled]


# --- no socket, and no file in the home folder ------------------------------------------------------


def end_at_an_internet_socket() -> None:
    """Install the filter in a child before it becomes the command; its children and threads inherit it."""
    architecture, number = SOCKET[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    steps = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 5, architecture),
        (load, 0, 0, 0),  # .nr
        (equal, 0, 3, number),
        (load, 0, 0, 16),  # .args[0], the address family
        (equal, 2, 0, 2),  # AF_INET
        (equal, 1, 0, 10),  # AF_INET6
        (give, 0, 0, 0x7FFF0000),  # allow
        (give, 0, 0, 0x80000000),  # end the process
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    prog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(prog), 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def seccomp_works() -> bool:
    if platform.machine() not in SOCKET or not sys.platform.startswith("linux"):
        return False
    program = "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], preexec_fn=end_at_an_internet_socket, capture_output=True
        )
    except subprocess.SubprocessError:
        return False
    return done.returncode == -signal.SIGSYS


# --- every file and every connection, as strace sees them --------------------------------------------

OPENED = re.compile(r"\b(?:openat|open|creat)\((?P<rest>.*)\) = (?P<fd>\d+)(?:<(?P<path>[^>]*)>)?")
MADE = re.compile(r"\b(?:mkdir|mknod|symlink|link|rename)(?:at2?)?\(.*\) = 0")
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|\bcreat\(")
ELSEWHERE = ("/dev/", "/proc/", "pipe:", "socket:", "anon_inode:", "memfd:")


def may_trace() -> bool:
    tracer = shutil.which("strace")
    return tracer is not None and subprocess.run([tracer, "-qq", "-o", os.devnull, "true"]).returncode == 0


FILTERS, TRACES = seccomp_works(), may_trace()


@pytest.mark.skipif(
    not (FILTERS or TRACES),
    reason="no seccomp filter can be installed, and strace is not installed or may not trace",
)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_opens_an_internet_socket_or_makes_a_file_elsewhere(places, sandbox, name):
    """Once, under both where both are there: the filter holds in what strace starts."""
    log = sandbox.out / "trace"
    calls = "trace=socket,connect,sendto,sendmsg,open,openat,creat,/^mk,/link,/rename"
    tracer = ["strace", "-f", "-y", "-qq", "-s", "4096", "--seccomp-bpf", "-e", calls, "-o", str(log)]
    command = command_line(name, places, sandbox)
    done = sandbox.run(
        [*tracer, *command] if TRACES else command, end_at_an_internet_socket if FILTERS else None
    )
    assert done.returncode in ENDS_WELL, done.stderr
    assert sandbox.strays() == []
    if TRACES:
        lines = log.read_text(errors="replace").splitlines()
        assert len(lines) > 100  # it did trace
        assert [line for line in lines if "AF_INET" in line] == []
        assert outside(lines, sandbox) == []


@pytest.mark.skipif(not TRACES, reason="strace is not installed or may not trace (apt install strace)")
@pytest.mark.parametrize("filtered", [False, True] if FILTERS else [False])
def test_a_socket_is_traced_and_under_the_filter_the_end_of_what_opens_it(sandbox, filtered):
    log = sandbox.out / "trace"
    program = "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
    tracer = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=socket", "-o", str(log)]
    sandbox.run([*tracer, sys.executable, "-c", program], end_at_an_internet_socket if filtered else None)
    assert ("SIGSYS" if filtered else "AF_INET6") in log.read_text(errors="replace")


def outside(lines: list[str], sandbox: Sandbox) -> list[str]:
    """The lines that write, or make something, in a place that is neither Vitrail's nor temporary."""
    allowed = tuple(f"{place}/" for place in (sandbox.cache, sandbox.out, sandbox.temporary))
    found = []
    for line in lines:
        opened = OPENED.search(line)
        if opened and WRITES.search(line):
            if not (opened["path"] or "").startswith((*allowed, *ELSEWHERE)):
                found.append(line)
        elif MADE.search(line):
            named = re.findall(r'"([^"]*)"', line)
            if not named[-1].startswith(allowed):
                found.append(line)
    return found


# --- how ----------------------------------------------------------------------------------------------


def test_importing_an_engine_leaves_the_process_as_it_was(monkeypatch):
    seen = {}
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    reporter = object()
    monkeypatch.setitem(sys.modules, privacy.REPORTER, reporter)

    def look(name: str) -> object:
        seen.update({v: os.environ[v] for v in privacy.SWITCHES}, reporter=sys.modules[privacy.REPORTER])
        raise ImportError(name)

    monkeypatch.setattr(privacy.importlib, "import_module", look)
    with pytest.raises(ImportError):
        privacy.import_engine("engine")
    assert seen == {
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "reporter": None,
    }
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert "HF_HUB_DISABLE_TELEMETRY" not in os.environ
    assert sys.modules[privacy.REPORTER] is reporter


def test_torch_writes_its_caches_where_vitrail_does_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    found = privacy.switches(tmp_path)
    assert found["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "torchinductor")
    assert "TRITON_CACHE_DIR" not in found


def test_tests_and_benchmarks_import_no_engine_that_reports():
    """import-linter says it of src/; these folders must not phone either."""
    root = Path(__file__).parents[1]
    for folder in ("benchmarks", "fuzz", "examples", "scripts"):
        for path in (root / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
            names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            engines = [n for n in names if n.partition(".")[0] in ("openvino", "onnxruntime")]
            assert engines == [], f"{path}: import it with vitrail.privacy.import_engine"


def test_docs_name_every_switch():
    text = Path(__file__).parents[1].joinpath("docs", "privacy.md").read_text(encoding="utf-8")
    for name in (*privacy.SWITCHES, *privacy.CACHES, privacy.REPORTER):
        assert f"`{name}`" in text, name
