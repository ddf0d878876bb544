"""Libraries that report on their users, imported with that switched off (docs/privacy.md).

ONNX Runtime and OpenVINO begin to report while they are imported: they write an identifier into the home
folder and look up a host, before any call of their own could forbid it. So nothing of Vitrail imports them
by an `import` line; all go through `import_engine`, which leaves the process's environment as it was.
A process that is Vitrail's own (a command, a child of the search) is switched as a whole by `quiet_process`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["SWITCHES", "import_engine", "quiet_process", "switches"]

SWITCHES = {
    # Read once, while onnxruntime is imported; its disable_telemetry_events() comes too late.
    "ORT_DISABLE_TELEMETRY": "1",
    # What the hub's client says of this machine beside the file it asks for.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # What a Ray cluster says of its use, where this process starts one.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables that switch reporting off, for processes of Vitrail's own."""

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
"""Folders that torch makes elsewhere (/tmp, the home folder), by their name inside Vitrail's cache folder."""

REPORTER = "openvino_telemetry"
"""OpenVINO reports through this package, and through a stub of its own where it is not installed."""

_ABSENT: Any = object()


def switches(cache: Path | None) -> dict[str, str]:
    """The environment of a process of Vitrail's own; `cache` is Vitrail's folder, None: torch stays out.

    A folder that the person chose for torch's caches stays.
    """
    folders = {} if cache is None else {name: str(cache / folder) for name, folder in CACHES.items()}
    return {**SWITCHES, **{name: value for name, value in folders.items() if name not in os.environ}}


def quiet_process(cache: Path | None = None) -> None:
    """Switch this whole process, which must be Vitrail's own, and with it the children it starts."""
    os.environ.update(switches(cache))
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]


def import_engine(name: str) -> ModuleType:
    """Import an engine's module without letting it report; an engine imported before stays as it is.

    Raises:
        ImportError: it is not installed.
    """
    with _quiet_import():
        return importlib.import_module(name)


@contextmanager
def _quiet_import() -> Iterator[None]:
    environment = {name: os.environ.get(name) for name in SWITCHES}
    reporter = sys.modules.get(REPORTER, _ABSENT)
    os.environ.update(SWITCHES)
    # None makes its import fail as if it were not installed.
    sys.modules[REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for variable, value in environment.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
        if reporter is _ABSENT:
            del sys.modules[REPORTER]
        else:
            sys.modules[REPORTER] = reporter
