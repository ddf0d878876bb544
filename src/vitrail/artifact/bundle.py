"""The artifact's folder: written whole or not at all, and every file checked before any is used."""

from __future__ import annotations

import io
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from vitrail import store, tasks
from vitrail.artifact.manifest import FORMAT, MANIFEST_FILE, SCHEMA_VERSION, decode, encode
from vitrail.artifact.older import upgraded_measurement
from vitrail.artifact.records import Evidence, FileEntry, Manifest, Reference
from vitrail.errors import InputError
from vitrail.store import atomic_folder, sha256_file, writing
from vitrail.tasks import Bounds, Task
from vitrail.version import __version__
from vitrail.vocabulary import Export, Measurement, Selection, Variant

MODEL_FOLDER = "model"
MEASUREMENT_FILE = "evidence/measurement.json"
SPLITS_FILE = "evidence/splits.json"
TEXT_TOWER_FOLDER = "text-tower"
TEXT_TOWER_FACTS = "text-tower/origin.json"
PHOTO_FOLDER = "reference/photos"
FP32_OUTPUTS, OWN_OUTPUTS = "reference/fp32", "reference/own"
"""Folders of the outputs, one `.npy` each."""
MAX_MANIFEST_BYTES = 64 << 20
"""A manifest takes tens of kilobytes; a file larger than this is not read."""

PROVISIONAL = "provisional: shipped on request before it was known to meet all requirements"


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """The whole CLIP that a zero-shot classifier was made from, so that its classes can be changed later."""

    weights: Path
    """The file with both towers."""
    model: str
    """open_clip's name."""
    tag: str
    """Which published weights; "": unknown."""
    license: str
    templates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything that goes into an artifact."""

    variant: Variant
    task: Task
    export: Export
    evidence: Evidence
    photos: tuple[Path, ...]
    """P small photos (PNG or JPEG), copied unchanged."""
    fp32_outputs: dict[str, np.ndarray]
    """float32 (P, ...) by name: the fp32 eager reference's outputs for the photos, decoded in full."""
    own_outputs: dict[str, np.ndarray]
    """float32 (P, ...) by name: the outputs of `export` for the same inputs; {} if it was not run."""
    bounds: Bounds
    measurement: Measurement | None = None
    splits: dict[str, dict[str, str]] | None = None
    """{split: {sha256 of an image: its class}} of the user's labelled images; None: there are none."""
    text_tower: TextTower | None = None
    """None: the artifact's classes cannot be changed."""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files all match its manifest."""

    path: Path
    manifest: Manifest
    task: Task

    @property
    def model_folder(self) -> Path:
        """The export's folder, for `runtimes.load(model_folder, graph, ...)`."""
        return self.path / self.manifest.folder

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the digests of all other files: what the artifact is."""
        return str(msgspec.json.decode(_read_manifest(self.path / MANIFEST_FILE))["digest"])

    @property
    def photos(self) -> tuple[Path, ...]:
        """The reference photos."""
        return tuple(self.path / name for name in self.manifest.reference.photos)

    def fp32_outputs(self) -> dict[str, np.ndarray]:
        """float32 (P, ...) by name: the fp32 eager reference's outputs for the reference photos."""
        return self._outputs(self.manifest.reference.fp32_outputs)

    def own_outputs(self) -> dict[str, np.ndarray]:
        """float32 (P, ...) by name: this export's outputs for the reference photos when it was written.

        {} if it was built where its engine does not run.
        """
        return self._outputs(self.manifest.reference.own_outputs)

    def measurement(self) -> Measurement | None:
        """The raw measurement behind the evidence; None if it is not stored.

        Raises:
            InputError: it cannot be read.
        """
        if self.manifest.measurement is None:
            return None
        place = self.path / self.manifest.measurement
        try:
            document = msgspec.json.decode(place.read_bytes())
            if self.manifest.schema_version < 4:
                document = upgraded_measurement(document)
            return msgspec.convert(document, Measurement)
        except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError) as error:
            raise InputError(f"{place} is not valid ({error}): write the artifact again.") from None

    def fitted_images(self) -> frozenset[str]:
        """Digests of the labelled images that its head was fitted to; none if it had none."""
        if SPLITS_FILE not in self.manifest.files:
            return frozenset()
        splits = msgspec.json.decode((self.path / SPLITS_FILE).read_bytes())
        return frozenset(splits.get("train", ()))

    def text_tower(self) -> TextTower | None:
        """What new classes can be made with; None: it is not stored.

        Raises:
            InputError: its description cannot be read.
        """
        if TEXT_TOWER_FACTS not in self.manifest.files:
            return None
        try:
            facts = msgspec.json.decode((self.path / TEXT_TOWER_FACTS).read_bytes(), type=dict[str, Any])
            if facts["weights"] not in self.manifest.files:
                raise KeyError("weights outside the artifact")
            found = msgspec.convert(
                {**facts, "weights": str(self.path / facts["weights"])}, TextTower, dec_hook=_path
            )
        except (KeyError, TypeError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise InputError(
                f"{self.path / TEXT_TOWER_FACTS} is not valid ({error}): write the artifact again."
            ) from None
        return found

    def _outputs(self, names: dict[str, str]) -> dict[str, np.ndarray]:
        shapes = {spec.name: spec.shape for spec in self.manifest.graphs[-1].outputs}
        photos = len(self.manifest.reference.photos)
        found = {}
        for output, name in names.items():
            expected = (photos, *(int(side) for side in shapes[output][1:]))
            values = _float32((self.path / name).read_bytes(), expected)
            if values is None or not np.isfinite(values).all():
                raise InputError(
                    f"{self.path / name} is not float32 {expected} of finite numbers: "
                    "write the artifact again."
                )
            found[output] = values
        return found


def _float32(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The float32 array of this shape in a `.npy` file (version 1); None: the file holds something else."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        found = np.lib.format.read_array_header_1_0(file)
    except Exception:  # NumPy reads the header as Python text, which may fail in any way
        return None
    if found != (shape, False, np.dtype(np.float32)) or len(data) - file.tell() != 4 * math.prod(shape):
        return None
    return np.frombuffer(data, np.float32, offset=file.tell()).reshape(shape).copy()


def _path(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value


def evidence_of(selection: Selection) -> Evidence:
    """The winner's evidence; without a winner the provisional best's, marked as provisional.

    Raises:
        ValueError: the selection has neither.
    """
    entry = selection.winner or selection.leader
    if entry is None:
        raise ValueError("a selection in which nothing leads has no evidence")
    seen = entry.observation
    measured = seen.measurement
    return Evidence(
        requirements=selection.requirements,
        workload=measured.workload if measured else selection.workload,
        accuracy=seen.accuracy,
        latency=dict(seen.latency),
        throughput=seen.throughput,
        memory=seen.memory,
        parity=seen.parity,
        quality=seen.quality,
        test=selection.test,
        expected_test=selection.expected_test,
        training=next((t for t in selection.trainings if t.candidate == entry.variant.candidate.name), None),
        verdicts=entry.verdicts,
        facts=measured.facts if measured else seen.facts,
        environment=measured.environment if measured else seen.environment,
        hardware=dict(selection.hardware),
        flags=seen.flags if selection.winner else (*seen.flags, PROVISIONAL),
    )


# --- writing --------------------------------------------------------------------------------------


def write(target: Path | str, bundle: Bundle, *, overwrite: bool = False) -> Artifact:
    """Write the artifact to a temporary folder, read it back as a user would, then rename it into place.

    `overwrite` replaces an earlier artifact and nothing else.

    Raises:
        InputError: the target exists or cannot be written, or a file to copy cannot be read.
        ValueError: the bundle contradicts itself, or must not ship (random weights, a reference).
    """
    _check(bundle)
    check_target(target, overwrite=overwrite)
    target = Path(target)
    with atomic_folder(target, overwrite=overwrite) as folder:
        _fill(folder, bundle)
        opened = open_artifact(folder)
    return replace(opened, path=target)


def check_target(target: Path | str, *, overwrite: bool = False) -> None:
    """Raise now what would stop `write` later, before any work is done.

    Raises:
        InputError: the target is empty or exists (with `overwrite`: and is not an artifact), or cannot be
            written.
    """
    store.check_name(target)
    target = Path(target)
    if overwrite and target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).is_file():
        raise InputError(f"{target} is not an artifact and is not overwritten: choose another folder.")
    store.check_target(target, overwrite=overwrite)


def _check(bundle: Bundle) -> None:
    variant = bundle.variant
    if bundle.task.preprocess.image_size != variant.image_size:
        raise ValueError("preprocess and variant differ in image size")
    if bundle.task.preprocess != variant.preprocess:
        raise ValueError("preprocess is not the candidate's")
    if bundle.export.random_weights or bundle.variant.reference:
        raise ValueError("random weights and reference variants are never shipped")
    for graph in bundle.export.graphs:
        if graph.entry not in bundle.export.files:
            raise ValueError(f"entry {graph.entry!r} is not among the export's files")
    if not bundle.photos:
        raise ValueError("an artifact without reference photos cannot be verified")
    shapes = {spec.name: spec.shape[1:] for spec in bundle.export.graphs[-1].outputs}
    for name, outputs in (("fp32", bundle.fp32_outputs), ("own", bundle.own_outputs)):
        expected = {output: (len(bundle.photos), *sides) for output, sides in shapes.items()}
        if name == "own" and not bundle.evidence.run:
            expected = {}
        found = {output: values.shape for output, values in outputs.items()}
        if found != expected or not all(np.isfinite(values).all() for values in outputs.values()):
            raise ValueError(f"{name} outputs {found} are not finite {expected}")


def _fill(folder: Path, bundle: Bundle) -> None:
    for name in bundle.export.files:
        _copy(Path(bundle.export.folder) / name, folder / MODEL_FOLDER / _inside(name))
    photos = tuple(f"{PHOTO_FOLDER}/{i:02d}{photo.suffix.lower()}" for i, photo in enumerate(bundle.photos))
    for source, name in zip(bundle.photos, photos, strict=True):
        _copy(source, folder / name)
    for name, data in bundle.task.files().items():
        (folder / _inside(name)).write_bytes(data)
    for place, outputs in ((FP32_OUTPUTS, bundle.fp32_outputs), (OWN_OUTPUTS, bundle.own_outputs)):
        for name, file in _output_files(place, outputs).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            values = np.ascontiguousarray(outputs[name], dtype=np.float32)
            np.save(folder / file, values, allow_pickle=False)
    for name, record in ((MEASUREMENT_FILE, bundle.measurement), (SPLITS_FILE, bundle.splits)):
        if record is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(msgspec.json.encode(record))
    if bundle.text_tower is not None:
        tower = bundle.text_tower
        name = f"{TEXT_TOWER_FOLDER}/weights{tower.weights.suffix}"
        _copy(tower.weights, folder / name)
        facts = {"weights": name, "model": tower.model, "tag": tower.tag, "license": tower.license}
        (folder / TEXT_TOWER_FACTS).write_bytes(msgspec.json.encode({**facts, "templates": tower.templates}))
    manifest = _manifest(bundle, photos, _entries(folder))
    (folder / MANIFEST_FILE).write_bytes(encode(manifest))


def _manifest(bundle: Bundle, photos: tuple[str, ...], files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        vitrail=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=bundle.variant.name,
        variant=bundle.variant,
        task=bundle.task.facts(),
        folder=MODEL_FOLDER,
        graphs=bundle.export.graphs,
        toolchain=bundle.export.toolchain,
        evidence=bundle.evidence,
        measurement=MEASUREMENT_FILE if bundle.measurement is not None else None,
        reference=Reference(
            photos=photos,
            fp32_outputs=_output_files(FP32_OUTPUTS, bundle.fp32_outputs),
            own_outputs=_output_files(OWN_OUTPUTS, bundle.own_outputs),
            bounds=bundle.bounds,
        ),
        files=files,
    )


def _output_files(place: str, outputs: Iterable[str]) -> dict[str, str]:
    return {name: f"{place}/{name}.npy" for name in outputs}


def _copy(source: Path, target: Path) -> None:
    # Reading and writing fail separately: only writing is a problem of the target.
    if not source.is_file() or not os.access(source, os.R_OK):
        raise InputError(f"{source} cannot be read: check that it exists and is readable.")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _inside(name: str) -> str:
    if not _is_contained(name):
        raise ValueError(f"export file {name!r} is outside its folder")
    return name


def _entries(folder: Path) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_file(path), size=path.stat().st_size)
        for path in paths
    }


# --- reading --------------------------------------------------------------------------------------


def open_artifact(path: Path | str) -> Artifact:
    """Open an artifact after checking all of it: the manifest, the list of files, every digest.

    Raises:
        InputError: no folder, no manifest, a newer schema, a changed manifest, values that are missing, out
            of range or contradictory, or a file that is missing, changed, added, or a link or special file
            (which could lie outside the folder).
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: name the folder of an artifact.")
    manifest_path = path / MANIFEST_FILE
    try:
        manifest = decode(_read_manifest(manifest_path), str(manifest_path))
        _check_names(manifest, path)
        _check_tree(manifest, path)
        for name, entry in manifest.files.items():
            _check_file(path / name, entry)
        artifact = Artifact(path=path, manifest=manifest, task=_task(manifest, path))
        artifact.fp32_outputs()
        artifact.own_outputs()
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be read ({error.strerror}): check its permissions."
        ) from error
    return artifact


def _task(manifest: Manifest, path: Path) -> Task:
    """The task that the manifest describes; it must agree with the rest of the manifest."""

    def file(name: str) -> bytes:
        if name not in manifest.files:
            raise InputError(
                f"{path / MANIFEST_FILE} uses {name!r} without listing it: write the artifact again."
            )
        return (path / name).read_bytes()

    where = path / MANIFEST_FILE
    task = tasks.read(manifest.task, file, str(where))
    if task.preprocess != manifest.variant.preprocess:
        raise InputError(
            f"{where} is not valid (preprocess is the candidate's at the variant's image size): "
            "write the artifact again."
        )
    first = manifest.graphs[0]
    # Of several graphs each has a folder of its name; an engine's own files may lie in folders too.
    if task.graphs(first.entry.removeprefix(f"{first.name}/")) != manifest.graphs:
        raise InputError(f"{where} is not valid (the graph is the task's): write the artifact again.")
    return task


def _read_manifest(path: Path) -> bytes:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {MANIFEST_FILE}: name a folder vitrail wrote.") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file: put the original file back.")
    if status.st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"{path} is too large for a manifest: name a folder vitrail wrote.")
    return path.read_bytes()


def _is_contained(name: str) -> bool:
    parts = name.split("/")
    plain = "\\" not in name and "\0" not in name and all(part not in ("", ".", "..") for part in parts)
    return plain and not PurePosixPath(name).is_absolute() and not Path(name).drive


def _check_names(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        if not _is_contained(name) or name == MANIFEST_FILE:
            raise InputError(f"{path / MANIFEST_FILE} lists {name!r}, outside the artifact: do not use it.")
    reference = manifest.reference
    used = [f"{manifest.folder}/{graph.entry}" for graph in manifest.graphs]
    used += [*reference.photos, *reference.fp32_outputs.values(), *reference.own_outputs.values()]
    used += [manifest.measurement] if manifest.measurement is not None else []
    for name in used:
        if name not in manifest.files:
            raise InputError(
                f"{path / MANIFEST_FILE} uses {name!r} without listing it: write the artifact again."
            )


def _check_tree(manifest: Manifest, path: Path) -> None:
    listed = set(manifest.files)
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    for name, entry in _walk(path, ""):
        if entry.is_symlink():
            raise InputError(f"{path / name} is a link: replace it with the file itself or remove it.")
        if entry.is_dir(follow_symlinks=False):
            expected = name in folders
        elif entry.is_file(follow_symlinks=False):
            expected = name in listed or name == MANIFEST_FILE
        else:
            raise InputError(f"{path / name} is not a regular file: remove it.")
        if not expected:
            raise InputError(f"{path / name} was added to the artifact: remove it.")


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{prefix}{entry.name}"
        yield name, entry
        # The caller refuses links before this line is reached.
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{name}/")


def _check_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it or write the artifact again.")
    if path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
        raise InputError(f"{path} was changed: restore it or write the artifact again.")
