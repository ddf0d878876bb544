"""An artifact as what other servers, or an app, take: a folder for each target, written whole or not at all.

Adding a target is one new file with `write(folder, order)` and one line in `TARGETS` (docs/packaging.md).
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vitrail import store
from vitrail.artifact import open_artifact
from vitrail.errors import InputError
from vitrail.limits import whole
from vitrail.package.order import Order, name_of
from vitrail.package.wheel import check_wheel
from vitrail.store import atomic_folder
from vitrail.version import __version__

__all__ = ["TARGETS", "Packed", "package"]

TARGETS = {
    "docker": "vitrail.package.docker",
    "triton": "vitrail.package.triton",
    "openvino-model-server": "vitrail.package.model_server",
    "phone": "vitrail.package.phone",
}
"""Target -> the module that writes its folder."""

FACTS_FILE = "vitrail-package.json"
"""In every package: what it is and of which artifact. A folder without it is never overwritten."""
PACKAGED = ("classify", "embed")
"""Tasks whose answers a package's server gives."""
FORMAT = "vitrail-package"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A package that was written."""

    path: Path
    target: str
    name: str
    """By which clients ask for the model."""
    artifact: str
    """`Variant.name`."""
    notes: tuple[str, ...]
    """What the person should know before they rely on it, one sentence each."""


def package(
    artifact: Path | str,
    target: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    name: str | None = None,
    wheel: Path | str | None = None,
    max_batch: int | None = None,
) -> Packed:
    """Verify an artifact's files and write the folder `out` with which `target` serves it.

    Args:
        artifact: the folder that select wrote.
        target: one of `TARGETS`.
        out: the new folder.
        overwrite: replace an earlier package, and nothing else.
        name: what clients call the model; None: as the artifact's folder.
        wheel: Vitrail's own wheel, for images that are built without a package index.
        max_batch: images that Triton may put into one batch; None: as measured.

    Raises:
        InputError: an unknown target, an artifact that is damaged or that the target cannot serve, or `out`
            exists or cannot be written; nothing is left behind.
    """
    if target not in TARGETS:
        from vitrail.units import nearest

        raise InputError(f"Unknown target {target!r}: use {_listed(TARGETS)}.{nearest(target, TARGETS)}")
    if max_batch is not None:
        if target != "triton":
            raise InputError(f"max batch is Triton's: leave it out for {target}.")
        whole("batch_size", max_batch, "max batch")
    store.check_name(out)
    place = Path(out)
    _check_out(place, Path(artifact), overwrite=overwrite)
    opened = open_artifact(artifact)
    if opened.task.name not in PACKAGED:
        raise InputError(
            f"{opened.path} is for {opened.task.name}, which no package serves yet: copy the folder itself, "
            "and use it there."
        )
    order = Order(
        artifact=opened,
        name=name_of(opened.path, name),
        wheel=None if wheel is None else check_wheel(Path(wheel)),
        max_batch=max_batch,
    )
    module = importlib.import_module(TARGETS[target])
    with atomic_folder(place, overwrite=overwrite) as folder:
        notes: tuple[str, ...] = module.write(folder, order)
        facts = {
            "format": FORMAT,
            "schema_version": 1,
            "vitrail": __version__,
            "target": target,
            "name": order.name,
            "artifact": opened.manifest.name,
            "artifact_sha256": store.sha256_file(opened.path / "manifest.json"),
            "notes": notes,
        }
        (folder / FACTS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
        _let_others_read(folder)
    return Packed(path=place, target=target, name=order.name, artifact=opened.manifest.name, notes=notes)


def _check_out(out: Path, artifact: Path, *, overwrite: bool) -> None:
    """Raise what would stop the writing later, before any file is read."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(artifact)):
        raise InputError(f"{out} is inside the artifact, which would no longer verify: choose another place.")
    if overwrite and out.is_dir() and any(out.iterdir()) and not _is_package(out):
        raise InputError(f"{out} is not a package and is not overwritten: choose another folder.")
    store.check_target(out, overwrite=overwrite)


def _let_others_read(folder: Path) -> None:
    """A container reads what it is given as another user than the one who wrote it."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _is_package(folder: Path) -> bool:
    try:
        facts = msgspec.json.decode((folder / FACTS_FILE).read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(facts, dict) and facts.get("format") == FORMAT


def _listed(names: dict[str, str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
