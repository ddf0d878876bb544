"""The text files of a package, from the templates beside this file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

__all__ = ["copy_file", "write_page"]

_HERE = Path(__file__).parent


def write_page(path: Path, template: str, facts: dict[str, Any]) -> None:
    """Fill `templates/{template}` with facts."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    path.write_text(environment.get_template(template).render(facts), encoding="utf-8")


def copy_file(name: str, path: Path) -> None:
    """Copy a program that ships as it is."""
    shutil.copyfile(_HERE / "files" / name, path)
