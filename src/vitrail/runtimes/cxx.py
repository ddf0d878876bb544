"""The C++ compiler that torch's compilers call, found without importing torch."""

from __future__ import annotations

import os
import shutil
import sys

from vitrail.errors import InputError

INSTALL = "apt install g++"


def found() -> str | None:
    """Path of the compiler that torch would take: `CXX`, else g++ (clang++ on macOS); None: there is none."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def require(label: str) -> None:
    """Check that there is one before an engine needs it.

    Raises:
        InputError: there is none.
    """
    if found() is None:
        raise InputError(
            f"{label} is not available here: it needs a C++ compiler. Install one "
            f"(Debian and Ubuntu: `{INSTALL}`), or give its path in CXX."
        )
