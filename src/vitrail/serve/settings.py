"""How a server is set up: options of the command line, over a TOML file, over these defaults."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vitrail.errors import InputError
from vitrail.limits import RANGES
from vitrail.names import model_name
from vitrail.requirements import read_toml
from vitrail.units import duration_ms, nearest

__all__ = ["Served", "Settings", "check", "from_toml", "served", "shadow_of"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model: the name in its addresses, and the artifact's folder."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a server can be told."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Path | None = None
    """File with hashed keys (keys.py)."""
    max_queue: int = 64
    """Images accepted and not yet answered, for each model."""
    max_queue_megapixels: int = 400
    """Their pixels, as their headers declare them, in millions."""
    max_latency_ms: float | None = None
    """What a request may take at the 95th percentile; None: what the artifact was selected for."""
    max_batch: int = 8
    deadline_ms: float = 10_000.0
    """A request is given up so long after it has arrived."""
    max_images: int = 16
    """Of one request."""
    max_body_mib: int = 64
    """Of one request."""
    max_uploads_mib: int = 256
    """Of all requests that are being received or worked on."""
    max_megapixels: int | None = None
    """Of one image; None: as everywhere (images/limits.py)."""
    upload_timeout_ms: float = 30_000.0
    """Headers and body of a request must arrive within this."""
    max_connections: int = 512
    keep_photos: int = 32
    """Of a model that takes prompts: photos whose embeddings are kept for more of them."""
    threads: int | None = None
    """Of each engine; None: the artifact's, within the usable cores."""
    stuck_ms: float = 5_000.0
    """A model's process that shows no progress for so long is ended and started again."""
    drain_grace_ms: float = 0.0
    """On SIGTERM requests are still taken for so long after readiness turned red."""
    shadow: str | None = None
    shadow_share: float = 0.1
    allow_activate: Path | None = None
    """Folder whose artifacts may take a model's place over HTTP; None: none may."""
    access_log: bool = True
    ray: str | None = None
    """Address of the Ray cluster that serves, or `auto`; None: this process does."""
    replicas: str | None = None
    """There: `N`, or `MIN-MAX` (scale.py)."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


_WHOLE = (
    "port",
    "max_queue",
    "max_queue_megapixels",
    "max_batch",
    "max_images",
    "max_body_mib",
    "max_uploads_mib",
    "max_megapixels",
    "max_connections",
    "keep_photos",
    "threads",
)
_RANGES: dict[str, tuple[float, float]] = {
    **{name: RANGES[name] for name in _WHOLE},
    "shadow_share": (0.0, 1.0),
    "max_latency_ms": (0.1, 3_600_000),
    "deadline_ms": (10, 3_600_000),
    "upload_timeout_ms": (100, 3_600_000),
    "stuck_ms": (1_000, 3_600_000),
    "drain_grace_ms": (0, 3_600_000),
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("host", "shadow", "api_keys", "allow_activate", "ray"), (str,)),
    "replicas": (int, str),
    "access_log": (bool,),
    "shadow_share": (int, float),
}
"""Of a TOML file's values; the others are whole numbers, or texts with a unit of time."""
_PATHS = ("api_keys", "allow_activate")
EITHER = "50ms or 5s"
"""What a time without a unit may have meant: latencies are of milliseconds, deadlines of seconds."""


def from_toml(path: str | Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Artifacts and settings of a TOML file; paths in it are relative to the file.

    Keys are the command's options with `-` or `_`, times with their unit, and `artifacts`, a list.

    Raises:
        InputError: the file cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    path = Path(path)
    known = {field.name.removesuffix("_ms"): field.name for field in fields(Settings)}
    artifacts: tuple[str, ...] = ()
    found: dict[str, Any] = {}
    for key, value in read_toml(path, "settings").items():
        name = key.replace("-", "_")
        if name == "artifacts":
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise InputError(f'artifacts in {path} is not a list of texts: write ["winner"].')
            artifacts = tuple(_relative(each, path.parent) for each in value)
            continue
        if name not in known:
            written = [each.replace("_", "-") for each in (*known, "artifacts")]
            raise InputError(f"{path} has the unknown key {key!r}.{nearest(name.replace('_', '-'), written)}")
        field = known[name]
        found[field] = _value(field, value, f"{key} in {path}")
        if field in _PATHS:
            found[field] = path.parent / found[field]
        elif field == "shadow":
            found[field] = _relative(found[field], path.parent)
    return artifacts, found


def _value(field: str, value: Any, said: str) -> Any:
    if field.endswith("_ms"):
        return duration_ms(value, said, EITHER)
    wanted = _KINDS.get(field, (int,))
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted != (bool,)):
        raise InputError(f"{said} is {value!r}, which is of the wrong kind: see vitrail serve --help.")
    if field == "replicas":
        return str(value)
    return Path(str(value)) if field in _PATHS else value


def _relative(text: str, folder: Path) -> str:
    name, place = _named(text)
    return f"{folder / place}" if name is None else f"{name}={folder / place}"


def _named(text: str) -> tuple[str | None, str]:
    """`NAME=ARTIFACT` -> both; None: there is no name, and an equals sign is the path's own."""
    name, separator, place = text.partition("=")
    return (name, place) if separator and "/" not in name else (None, text)


def check(settings: Settings) -> Settings:
    """The settings, if each is in its range and they do not contradict each other.

    Raises:
        InputError: they are not, or the address can be reached by others and there are no keys.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            said = name.removesuffix("_ms").replace("_", " ")
            unit = " ms" if name.endswith("_ms") else ""
            raise InputError(f"{said} is {value:g}{unit}: give {least:g} to {most:g}{unit}.")
    if not settings.loopback and settings.api_keys is None:
        raise InputError(
            f"{settings.host} can be reached from other machines, so API keys are needed: make one with "
            "`vitrail serve --new-key NAME`, and give the file that holds its line with --api-keys."
        )
    if settings.max_images > settings.max_queue:
        settings = replace(settings, max_images=settings.max_queue)
    if settings.max_uploads_mib < settings.max_body_mib:
        raise InputError(
            f"max uploads mib is {settings.max_uploads_mib}, and one body may have {settings.max_body_mib}: "
            "raise it, or lower max body mib."
        )
    largest = settings.max_megapixels or 50
    if settings.max_queue_megapixels < largest:
        raise InputError(
            f"max queue megapixels is {settings.max_queue_megapixels}, and one image may have {largest}: "
            "raise it, or lower max megapixels."
        )
    return settings


def served(texts: tuple[str, ...] | list[str]) -> tuple[Served, ...]:
    """`ARTIFACT` or `NAME=ARTIFACT` each; without a name it is the folder's.

    Raises:
        InputError: none is given, a name cannot stand in an address, or two are the same.
    """
    if not texts:
        raise InputError("There is nothing to serve: name the folder of an artifact.")
    found: dict[str, Served] = {}
    for text in texts:
        one = _served(text)
        if one.name in found:
            raise InputError(
                f"{found[one.name].path} and {one.path} would both be called {one.name}: "
                f"name one of them, as in other={one.path}."
            )
        found[one.name] = one
    return tuple(found.values())


def _served(text: str) -> Served:
    name, place = _named(text)
    path = Path(place)
    name = path.resolve().name if name is None else name
    return Served(name=model_name(name, f"as in model={path}"), path=path)


def shadow_of(text: str, names: Collection[str]) -> tuple[str, Path]:
    """`CANDIDATE` or `NAME=CANDIDATE`: whose shadow, and the artifact's folder.

    Raises:
        InputError: no model has this name, or there are several and none is named.
    """
    name, place = _named(text)
    if name is not None:
        if name not in names:
            raise InputError(f"--shadow names {name}, which is not served: use {' or '.join(names)}.")
        return name, Path(place)
    if len(names) != 1:
        raise InputError(f"--shadow must say whose: write NAME={text} with {' or '.join(names)}.")
    return next(iter(names)), Path(text)
