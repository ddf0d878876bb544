"""Install lines that work where they are printed: with this Python's pip, from where Vitrail itself came.

What is installed from a source folder, a wheel or a repository is in no package index under our name, or
not in this version: `pip install "vitrail[search]"` would fail, or fetch something else.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["extras_of", "here"]

NAME = "vitrail"
_LINE = re.compile(r'^pip install (?:"vitrail\[([\w,-]+)\]"|vitrail)$')


def here(line: str) -> str:
    """`pip install vitrail` or `pip install "vitrail[extra]"` as it works here; others with the right pip."""
    if not line.startswith("pip install "):
        return line
    found = _LINE.match(line)
    what = line.removeprefix("pip install ") if found is None else _requirement(found.group(1), _origin())
    return f"{_pip()} install {what}"


def extras_of(line: str) -> tuple[str, ...]:
    """The extras of Vitrail that such a line asks for."""
    found = _LINE.match(line)
    return tuple(found.group(1).split(",")) if found and found.group(1) else ()


def _pip() -> str:
    """`pip` if the shell's is that of this Python."""
    where = shutil.which("pip")
    if where is not None and Path(where).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def _requirement(extra: str | None, origin: dict[str, Any]) -> str:
    """What pip is asked for, quoted for a shell.

    Args:
        extra: names with commas between, if any.
        origin: direct_url.json of the installation (PEP 610); empty: it came from an index.
    """
    extras, url = f"[{extra}]" if extra else "", str(origin.get("url", ""))
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None
    if path is not None and path.is_dir():
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"{editable}{_quoted(f'{path}{extras}')}"
    if path is not None and path.is_file():
        return _quoted(f"{NAME}{extras} @ {url}")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return _quoted(f"{NAME}{extras} @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    return _quoted(f"{NAME}{extras}") if extras else NAME


def _quoted(text: str) -> str:
    """In double quotes where that is enough, as people write it."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _origin() -> dict[str, Any]:
    try:
        text = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its source
        source = Path(__file__).resolve().parents[2]
        there = (source / "pyproject.toml").is_file()
        return {"url": source.as_uri(), "dir_info": {"editable": True}} if there else {}
    try:
        origin = json.loads(text or "{}")
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}
