"""What a model is for: what goes in and out, how outputs are compared, how good they are. One file per task.

Nothing else knows what a tensor means. Adding a task is one new file and one line in `TASKS`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from vitrail.errors import InputError
from vitrail.vocabulary import TASKS, Graph, Parity, Preprocess, Quality, Requirements, Stage

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "TASKS",
    "Answered",
    "Arrays",
    "Bounds",
    "Column",
    "Comparison",
    "ImageInput",
    "Task",
    "batches",
    "check_stages",
    "fitting",
    "known",
    "pack",
    "parts",
    "read",
    "read_arrays",
    "unpack",
    "write_arrays",
]

T = TypeVar("T")

Arrays: TypeAlias = "dict[str, np.ndarray]"
"""Tensors by their names; the first axis of each counts images."""

ImageInput: TypeAlias = "str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray"
"""What one image may be: a path, encoded bytes, a PIL image, or an array as images/decode.py takes it."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison of outputs with recorded ones."""

    name: str
    observed: float | None
    limit: float
    holds: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What outputs must hold against the fp32 eager reference, by the precision's meaning."""

    cosine: float
    """Smallest cosine similarity of one photo's outputs."""
    relative_error: float
    """Largest ||outputs - reference|| / ||reference|| of one photo."""
    agreement: float
    """Smallest share of decided photos that keep what the reference says."""
    mask_iou: float | None = None
    """Of masks: the least IoU with the reference's at which a photo keeps them."""


Answered: TypeAlias = "tuple[Mapping[str, np.ndarray], Sequence[Any]]"
"""Outputs (n, ...) of n labelled images, with what is true of each (`Dataset.truth`)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table of results."""

    name: str
    kind: Literal["text", "float32", "float64"]
    length: int | None = None
    """Of the list that each row holds; None: each holds one value."""


class Task(Protocol):
    """A task with all that it needs to know of one model."""

    name: str
    metric: ClassVar[str]
    """The figure in % that an accuracy and its limit are about, and the first one of `score`."""
    metric_name: ClassVar[str]
    """The same in full, e.g. `top-1 accuracy`."""
    request: ClassVar[str]
    """The steps of a whole request, in words."""
    kept: ClassVar[str]
    """What an export keeps of the fp32 reference on photos that agree, in words."""
    most_views: ClassVar[int]
    """Views of one photo that parity may look at."""
    shell: ClassVar[str]
    """Commands that use the artifact in `{folder}` on one `{photo}` or many `{photos}`; `{index}` is a file
    that they write. The first is the next step after a selection."""
    python: ClassVar[str]
    """Code that uses `model`, the loaded artifact."""
    table_options: ClassVar[Mapping[str, Any]]
    """What `columns` and `rows` may be asked, e.g. `top`, and what it is unless it is asked."""
    sorted_by: ClassVar[str | None]
    """The text column by which images can be sorted into folders; None: there is none."""
    stages: ClassVar[tuple[Stage, ...]]
    """The steps of a request that are timed, and may be limited, by themselves: names of
    `vocabulary.STAGES`, in order; (): a request is one step."""

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the first input."""

    def graph(self, entry: str) -> Graph:
        """Names and shapes of what goes in and comes out, with `B` for the number of images."""

    def graphs(self, entry: str) -> tuple[Graph, ...]:
        """What is loaded: the graph, or that of each stage, whose entry is then `{stage}/{entry}`."""

    def prepare(self, images: Sequence[Image.Image]) -> Arrays:
        """Decoded images -> named inputs."""

    def finish(self, outputs: Mapping[str, np.ndarray], **options: Any) -> list[Any]:
        """Named outputs -> one result for each image. Raises ClaimError for outputs that are not finite."""

    def columns(self, **options: Any) -> tuple[Column, ...]:
        """What a table holds of each image. Raises InputError for an option that is out of range."""

    def rows(self, outputs: Mapping[str, np.ndarray], **options: Any) -> list[dict[str, Any]]:
        """Named outputs -> the values of `columns` for each image, by name. Raises as `finish`."""

    def groups(self) -> tuple[str, ...]:
        """All that the column `sorted_by` may hold."""

    def views(self, image: Image.Image, count: int) -> Arrays:
        """`count` different crops of one image as named inputs, the first as `prepare` makes it."""

    def bounds(self, precision: str) -> Bounds:
        """What outputs in a precision, or of what passes changed (`agreement.CHANGED`), must hold."""

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """Judge outputs (photos, crops, ...) against the reference's; `worst` is the photo's number."""

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """The same of one crop a photo (photos, ...), against the bounds of an artifact."""

    def lost(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        truths: Sequence[Any] | None,
    ) -> float:
        """What outputs (n, ...) lose against a reference's, in points; `truths`: of labelled images."""

    def score(
        self, answered: Iterable[Answered], classes: Sequence[str], *, split: str, data: str
    ) -> Quality | None:
        """How good outputs of labelled images are, part by part; None: labels say nothing about this task."""

    def facts(self) -> dict[str, Any]:
        """What an artifact says of it, as JSON; large parts are files, named here."""

    def files(self) -> dict[str, bytes]:
        """The files that `facts` names."""

    @classmethod
    def of_export(
        cls, preprocess: Preprocess, facts: Mapping[str, Any], file: Callable[[str], bytes]
    ) -> Task:
        """The task of an export just made: `facts` are what the exporter wrote beside it."""

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Task:
        """The task that `facts` and its files describe. Raises InputError for a value out of range."""


def known(name: str) -> type[Task]:
    """The class of a task. Raises InputError for a name that is not in the table."""
    if name not in TASKS:
        raise InputError(f"Unknown task {name!r}: choose one of {', '.join(TASKS)}.")
    module, kind = TASKS[name].split(":")
    found: type[Task] = getattr(importlib.import_module(module), kind)
    return found


def check_stages(requirements: Requirements, task: str) -> None:
    """Refuse a limit of a stage that models for this task do not have.

    Raises:
        InputError: naming the limit.
    """
    for stage, limit in requirements.max_stage_latency_ms:
        if stage not in known(task).stages:
            raise InputError(
                f"--max-latency {stage}={limit:g}ms: --task {task} has no stage {stage}: limit the whole "
                f"request, as in --max-latency {limit:g}ms."
            )


def read(facts: object, file: Callable[[str], bytes], where: str) -> Task:
    """The task that an artifact's `facts` describe; `file` gives the content of one of its files.

    Raises:
        InputError: an unknown task, or values that are missing, out of range or in contradiction.
    """
    if not isinstance(facts, Mapping) or not isinstance(facts.get("name"), str):
        raise InputError(f"{where} does not say task.name: write the artifact again.")
    try:
        return known(facts["name"]).read(facts, file)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} is not valid (task: {error}): write the artifact again.") from None


def pack(task: Task) -> dict[str, Any]:
    """The task as JSON, for another process."""
    return {
        "facts": task.facts(),
        "files": {name: data.decode("utf-8", "surrogatepass") for name, data in task.files().items()},
    }


def unpack(packed: Mapping[str, Any]) -> Task:
    """What `pack` packed."""
    files: dict[str, str] = packed["files"]
    return read(packed["facts"], lambda name: files[name].encode("utf-8", "surrogatepass"), "the task")


def write_arrays(path: str | Path, arrays: Arrays) -> None:
    """Save named arrays as `.npz`."""
    import numpy as np

    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: str | Path) -> Arrays:
    """The named arrays of an `.npz` file. Raises ValueError, EOFError or BadZipFile if it is cut off."""
    import numpy as np

    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def fitting(task: Task, mib: float, *, inputs: bool = False) -> int:
    """Of how many images the outputs, and with `inputs` these too, take at most so many MiB."""
    graph = task.graph("")
    specs = (*graph.outputs, *(graph.inputs if inputs else ()))
    each = sum(4 * math.prod(int(side) for side in spec.shape[1:]) for spec in specs)
    return int(mib * 2**20 // each)


def parts(items: Sequence[T], task: Task, mib: float) -> Iterator[Sequence[T]]:
    """Items cut so that the outputs of each part take at most so many MiB; at least one in each."""
    size = max(fitting(task, mib), 1)
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def batches(inputs: Arrays, size: int) -> Iterator[tuple[Arrays, int]]:
    """Inputs of n images cut into batches of `size`, the last padded, each with its number of real images.

    Repeating a real image keeps the padding inside the range of values that the engine was checked with.
    """
    import numpy as np

    count = len(next(iter(inputs.values())))
    for begin in range(0, count, size):
        part = {name: values[begin : begin + size] for name, values in inputs.items()}
        real = min(size, count - begin)
        if real < size:
            part = {
                name: np.concatenate([values, np.repeat(values[-1:], size - real, axis=0)])
                for name, values in part.items()
            }
        yield {name: np.ascontiguousarray(values) for name, values in part.items()}, real
