"""Whether the libraries of the extra `serve` are here; none is imported for that."""

from __future__ import annotations

from importlib.util import find_spec

from vitrail.errors import MissingExtraError

__all__ = ["check_installed"]

EXTRA = 'pip install "vitrail[serve]"'
LIBRARIES = {
    "fastapi": "FastAPI",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "uvloop": "uvloop",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def check_installed() -> None:
    """Raise MissingExtraError for a library that is not installed."""
    for module, library in LIBRARIES.items():
        if find_spec(module) is None:
            raise MissingExtraError(library, EXTRA)
