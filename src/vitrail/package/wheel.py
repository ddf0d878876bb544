"""Vitrail's own wheel, for images that install it without a package index."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from vitrail.errors import InputError
from vitrail.version import __version__

__all__ = ["FOLDER", "add_wheel", "check_wheel"]

FOLDER = "wheels"
_NAME = re.compile(r"vitrail-([0-9][A-Za-z0-9.+!]*)-[^-]+-[^-]+-[^-]+\.whl")
_MISSING = f"""Put Vitrail's wheel here before you build the image: vitrail-{__version__}-py3-none-any.whl,
which `make dist` of the source builds, or give it to `vitrail package` with --wheel. Without one the image
installs vitrail=={__version__} from the package index.
"""


def check_wheel(path: Path) -> Path:
    """The path, if it is a wheel of Vitrail.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}: give the wheel that `make dist` builds.")
    if _NAME.fullmatch(path.name) is None or not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a wheel of Vitrail: give a file such as vitrail-{__version__}-py3-none-any.whl, "
            "which `make dist` builds."
        )
    return path


def add_wheel(folder: Path, wheel: Path | None) -> tuple[str, str | None]:
    """Make `folder/wheels`; return the version that it is for, and a note if the wheel is still to come."""
    place = folder / FOLDER
    place.mkdir()
    if wheel is not None:
        shutil.copyfile(wheel, place / wheel.name)
        found = _NAME.fullmatch(wheel.name)
        assert found is not None, wheel
        return found.group(1), None
    (place / "README.txt").write_text(_MISSING, encoding="utf-8")
    return __version__, (
        f"without --wheel, put the wheel of vitrail {__version__} into {FOLDER}/ before you build the image, "
        "or it comes from the package index"
    )
