"""From images to results: the one pipeline that measuring, predicting, probing and embedding share.

A request is decode -> prepare -> run -> finish, one after another. Many images are decoded and prepared by
threads while the engine runs; where it takes single images side by side, each thread runs its image too.
What the tensors mean is the task's. n images at hand, B the loaded batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, overload

import numpy as np

from vitrail import runtimes, tasks
from vitrail.artifact import Artifact, open_artifact
from vitrail.closing import Closing
from vitrail.errors import InputError
from vitrail.hardware import usable_cores
from vitrail.images.decode import decode, frame_of
from vitrail.images.limits import LIMITS, Limits
from vitrail.images.preprocess import resized_short_side
from vitrail.prompting import EmbeddingCache, Prompter, image_digest
from vitrail.runtimes.chain import Chain, load_graphs
from vitrail.tasks import Arrays, ImageInput, Task
from vitrail.tasks.classify import Prediction, Ranked
from vitrail.tasks.promptable import Clicked, Encoded, Promptable
from vitrail.tasks.segment import Segment, Segmentation
from vitrail.vocabulary import Graph

__all__ = [
    "CUT",
    "Clicked",
    "Cut",
    "EmbeddingCache",
    "Encoded",
    "ImageInput",
    "Prediction",
    "Predictor",
    "Ranked",
    "Segmentation",
    "from_artifact",
    "load",
]

MOST_WORKERS = 8
"""Each may hold one decoded image, which takes up to `Limits.memory_bytes`."""
AHEAD = 2
"""Batches that are prepared ahead of the engine."""


class Cut:
    """Among images: the batch ends here, full or not, while what follows is already prepared."""


CUT = Cut()


class Predictor(Closing):
    """A loaded export with its task. Not thread-safe: one request at a time.

    Args:
        runner: the loaded graph.
        task: what goes in and comes out.
        limits: what one image may ask for.
        workers: threads that decode and prepare; None: one for each usable core, at most 8; 0: none, images
            are prepared in turn with the model.
        scaled: whether a JPEG may be decoded at a lower scale, which is faster and all but equal.
    """

    def __init__(
        self,
        runner: runtimes.Runner,
        task: Task,
        *,
        limits: Limits = LIMITS,
        workers: int | None = None,
        scaled: bool = True,
    ) -> None:
        self.runner = runner
        self.task = task
        self.limits = limits
        self.workers = min(usable_cores(), MOST_WORKERS) if workers is None else workers
        self.lanes = runner.lanes if isinstance(runner, runtimes.Lanes) else 1
        """Single images that may run at the same time, with `run_beside`; 1: none."""
        self._free: SimpleQueue[int] = SimpleQueue()
        for lane in range(self.lanes):
            self._free.put(lane)
        self.batch_size = int(runner.facts.graphs[0].inputs[0].shape[0])
        _check_graphs(runner.facts.graphs, task)
        self._prompter = (
            Prompter(runner, task) if isinstance(runner, Chain) and isinstance(task, Promptable) else None
        )
        # The photo is resized to this side anyway, so a JPEG may be decoded at a lower scale.
        short_side = resized_short_side(task.preprocess)
        self._short_side = short_side if scaled else None

    def predict(self, images: ImageInput | Iterable[ImageInput], **options: Any) -> list[Any]:
        """One result for each image, of any number; one image alone may come without a list.

        `options` are the task's: `top=5` for classification.

        Raises:
            InputError: an image cannot be used (the first such), or an option is out of range.
        """
        results = []
        for outcome in self.predict_each(images, **options):
            if isinstance(outcome, InputError):
                raise outcome
            results.append(outcome)
        return results

    def predict_each(self, images: ImageInput | Iterable[ImageInput], **options: Any) -> Iterator[Any]:
        """As `predict`, as they come, but with an image's InputError in its place."""
        for slots, outputs in self.outputs(images):
            results = iter(self.task.finish(outputs, **options) if outputs is not None else ())
            yield from (next(results) if slot is None else slot for slot in slots)

    @overload
    def segment(self, images: ImageInput | Iterable[ImageInput]) -> list[Segmentation]: ...

    @overload
    def segment(
        self,
        images: ImageInput,
        *,
        points: Sequence[tuple[float, float]] = ...,
        labels: Sequence[int] | None = ...,
        box: Sequence[float] | None = ...,
    ) -> Clicked: ...

    def segment(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
    ) -> list[Segmentation] | Clicked:
        """Masks: of each photo, of an artifact of the task `segment`; of what a prompt means in one photo, of
        a `promptable` one, which keeps the embeddings of the last photos.

        Args:
            images: photos, or the one photo.
            points, labels, box: the prompt, as `prompt` takes it.

        Raises:
            InputError: the artifact is for another task, an image cannot be used (the first such), or the
                prompt is missing or not one that the artifact takes.
        """
        if isinstance(self.task, Promptable):
            return self.prompt(self._kept(images), points=points, labels=labels, box=box)
        if not isinstance(self.task, Segment):
            raise InputError(f"This artifact makes no masks: its task is {self.task.name}, use predict().")
        if len(points) or labels is not None or box is not None:
            raise InputError(
                "This artifact says what each pixel is, and takes no points or boxes: leave them out, or use "
                "an artifact of the task promptable."
            )
        results = []
        for image in _as_images(images):
            inputs, size = self.sized(image)
            (found,) = self.task.finish(self.run(inputs))
            results.append(replace(found, size=size))
        return results

    @property
    def prompter(self) -> Prompter:
        """What answers prompts, with the embeddings that it keeps.

        Raises:
            InputError: the artifact is for another task.
        """
        if self._prompter is None:
            raise InputError(f"This artifact takes no prompts: its task is {self.task.name}, not promptable.")
        return self._prompter

    def encode(self, image: ImageInput, *, name: str | None = None) -> Encoded:
        """The first stage: what is to be kept of one photo for any number of prompts.

        `name` is what errors call bytes.

        Raises:
            InputError: the image cannot be used, or the artifact is for another task.
        """
        prompter = self.prompter
        return prompter.encode(decode(image, short_side=self._short_side, limits=self.limits, name=name))

    def prompt(
        self,
        encoded: Encoded,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
    ) -> Clicked:
        """The second stage: the masks of what is meant, all of them and the best.

        Args:
            encoded: of `encode`, with this artifact.
            points: (x, y) in pixels of the photo, from (0, 0) at the upper left corner of the first.
            labels: of each point 1, it lies inside the object, or 0, outside; None: all lie inside.
            box: (left, top, right, bottom) in the same pixels, around the object.

        Raises:
            InputError: no prompt; a point, or a corner of the box, outside of the photo; an empty or reversed
                box; other labels, or another number of them; or the artifact is for another task.
        """
        return self.prompter.prompt(encoded, points=points, labels=labels, box=box)

    def everything(self, image: ImageInput, **options: Any) -> list[Clicked]:
        """Masks of all that a grid of points finds in a photo, best first; options as `Prompter.everything`.

        Raises:
            InputError: the image cannot be used, the artifact is for another task, or an option is out of
                range.
        """
        return self.prompter.everything(self._kept(image), **options)

    def _kept(self, image: Any) -> Encoded:
        """The photo's embeddings, from the cache if they are in it."""
        prompter, given = self.prompter, list(_as_images(image))
        if len(given) != 1:
            raise InputError(
                f"A prompt is about one photo, and {len(given)} were given: give them one by one."
            )
        return prompter.cache.get_or(image_digest(given[0], self.limits), lambda: self.encode(given[0]))

    def outputs(
        self, images: Any, *, prepare: Callable[[Any], Arrays] | None = None
    ) -> Generator[tuple[list[InputError | None], Arrays | None]]:
        """Batch after batch: an error or None for each image, and the outputs of those without one.

        Outputs are None where no image of a batch could be used. Up to `AHEAD` batches of files are read
        ahead; what `images` itself raises comes after the results of all that it gave before.

        Args:
            images: one image, or any number; with `prepare` whatever that takes. `CUT` ends a batch.
            prepare: called in the threads, makes the inputs of one row or raises InputError; None: the
                predictor's own.
        """
        failure: Exception | None = None
        given = _as_images(images) if prepare is None else images
        with closing(self._prepared(iter(given), prepare)) as prepared:
            while failure is None:
                slots: list[InputError | None] = []
                parts: list[Arrays] = []
                try:
                    for outcome in prepared:
                        if isinstance(outcome, Cut):
                            if slots:
                                break
                            continue
                        if isinstance(outcome, InputError):
                            slots.append(outcome)
                        else:
                            slots.append(None)
                            parts.append(outcome)
                        if len(slots) == self.batch_size:
                            break
                except Exception as error:
                    failure = error
                if not slots:
                    break
                rows = _joined(parts) if parts else None
                yield slots, rows if rows is None or self.in_turn else self.run(rows)
        if failure is not None:
            raise failure

    @property
    def in_turn(self) -> bool:
        """Whether the threads that prepare many images also run them: no core then waits for another."""
        return 1 < self.lanes <= self.workers

    def all_outputs(self, images: Iterable[ImageInput]) -> Arrays:
        """Named outputs of n rows for n images, at least one.

        Raises:
            InputError: an image cannot be used (the first such).
        """
        parts = []
        for slots, outputs in self.outputs(images):
            for slot in slots:
                if slot is not None:
                    raise slot
            assert outputs is not None
            parts.append(outputs)
        return _joined(parts)

    def request(self, images: Sequence[ImageInput], **options: Any) -> list[Any]:
        """One production request, all of it: decode, prepare, run, finish.

        Of a task that takes prompts it is that of a person who opens each photo and clicks into its middle:
        the mask at the photo's size is the end of it.

        Raises:
            InputError: an image cannot be used, or an option is out of range.
        """
        if self._prompter is not None:
            return [self._prompter.first(self.encode(image)) for image in images]
        return self.task.finish(self.run(self.prepare(images)), **options)

    def prepare(
        self, images: Sequence[ImageInput], *, scaled: bool = True, name: str | None = None
    ) -> Arrays:
        """Decode and prepare n images -> named inputs of n rows.

        `scaled=False` decodes JPEG in full where production may decode at a lower scale; the stored
        outputs of an artifact belong to fully decoded photos. `name` is what errors call bytes.
        """
        short_side = self._short_side if scaled else None
        return self.task.prepare(
            [decode(image, short_side=short_side, limits=self.limits, name=name) for image in images]
        )

    def sized(self, image: ImageInput, *, scaled: bool = True) -> tuple[Arrays, tuple[int, int]]:
        """As `prepare` for one image: named inputs of one row, and the photo's (height, width)."""
        photo = decode(image, short_side=self._short_side if scaled else None, limits=self.limits)
        width, height = frame_of(photo).size
        return self.task.prepare([photo]), (height, width)

    def run(self, inputs: Arrays) -> Arrays:
        """Named outputs of n rows for inputs of n rows, any n: cut into batches, the last padded.

        Of a task with stages, inputs may have several prompts for each image: outputs then have a row each.
        """
        if not len(next(iter(inputs.values()))):
            outputs = self.runner.facts.graphs[-1].outputs
            return {spec.name: np.empty((0, *map(int, spec.shape[1:])), spec.dtype) for spec in outputs}
        if isinstance(self.runner, Chain):
            return self.runner.run(inputs)
        if len(next(iter(inputs.values()))) == self.batch_size:
            return self.runner.run(inputs)
        found = [
            {name: values[:real] for name, values in self.runner.run(batch).items()}
            for batch, real in tasks.batches(inputs, self.batch_size)
        ]
        return _joined(found)

    def run_beside(self, inputs: Arrays) -> Arrays:
        """As `run`, for one image, on one thread, while other threads run theirs; needs several `lanes`."""
        lane = self._free.get()
        try:
            assert isinstance(self.runner, runtimes.Lanes)
            return self.runner.run_lane(lane, inputs)
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Free the engine."""
        self.runner.close()

    def _prepared(
        self, images: Iterator[Any], prepare: Callable[[Any], Arrays] | None = None
    ) -> Generator[Arrays | InputError | Cut]:
        """Inputs of one row for each image, in order, or its outputs if all is done `in_turn`.

        Files are prepared ahead by threads. Everything else is decoded before the next one is asked for:
        its memory may be used again.
        """

        def prepared(image: Any) -> Arrays | InputError:
            try:
                return self.prepare([image]) if prepare is None else prepare(image)
            except InputError as error:
                return error

        def one(image: Any) -> Arrays | InputError:
            row = prepared(image)
            return self.run_beside(row) if self.in_turn and not isinstance(row, InputError) else row

        failure: Exception | None = None
        waiting: deque[Future[Arrays | InputError | Cut]] = deque()
        with ThreadPoolExecutor(max_workers=max(self.workers, 1)) as pool:
            try:
                while failure is None:
                    try:
                        image = next(images)
                    except StopIteration:
                        break
                    except Exception as error:  # first what was given before it
                        failure = error
                        break
                    if isinstance(image, Cut):
                        waiting.append(Future())
                        waiting[-1].set_result(image)
                    elif self.workers and (prepare is not None or isinstance(image, (str, Path, bytes))):
                        waiting.append(pool.submit(one, image))
                    else:
                        row = prepared(image)
                        if self.in_turn and not isinstance(row, InputError):
                            waiting.append(pool.submit(self.run_beside, row))
                        else:
                            waiting.append(Future())
                            waiting[-1].set_result(row)
                    if len(waiting) > (AHEAD * self.batch_size + self.workers if self.workers else 0):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:  # somebody stopped asking
                    future.cancel()
        if failure is not None:
            raise failure


def _joined(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_graphs(graphs: Sequence[Graph], task: Task) -> None:
    """Raise an InputError unless these are the task's, of any batch and files."""
    known = task.graphs("")
    wanted = [_as_loaded(*pair) for pair in zip(known, graphs, strict=False)]
    said = [(graph.inputs, graph.outputs) for graph in wanted]
    if len(known) != len(graphs) or said != [(graph.inputs, graph.outputs) for graph in graphs]:
        raise InputError(
            f"The model is {_said(graphs)} and its task {_said(wanted)}: give it the labels and the image "
            "size that it was made for."
        )


def _as_loaded(known: Graph, loaded: Graph) -> Graph:
    """The task's graph with the batch of the loaded one; other sizes that are open stay so."""
    batch = loaded.inputs[0].shape[0]
    sizes = {"B": batch} if isinstance(batch, int) else {}
    return runtimes.sized(known, sizes, opened=runtimes.letters(known))


def _said(graphs: Iterable[Graph]) -> str:
    def one(graph: Graph) -> str:
        sides = (", ".join(f"{spec.name} {spec.shape}" for spec in s) for s in (graph.inputs, graph.outputs))
        return " -> ".join(sides)

    return ", then ".join(map(one, graphs))


def _as_images(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    single = isinstance(images, (str, Path, bytes, bytearray, memoryview)) or hasattr(images, "getbands")
    if isinstance(images, np.ndarray):
        single = images.ndim < 4  # (n, H, W, C) is n images
    return [images] if single else images  # type: ignore[list-item,return-value]


def load(
    path: Path | str,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    limits: Limits = LIMITS,
    many: bool = False,
) -> Predictor:
    """Open an artifact, verify all its files, and load it for predicting.

    Args:
        path: the artifact's folder.
        threads: inference threads; None: as the artifact's workload says (all usable cores if it does not).
        batch_size: B the engine is compiled for; None: as the artifact's workload says.
        limits: what one image may ask for.
        many: whether many images will be given at once: the engine's waiting threads then leave the cores to
            those that decode (ONNX Runtime: 1.3 times the images/s of a folder, single requests as fast).

    Raises:
        InputError: the artifact is damaged, or the arguments are out of range (limits.py).
        MissingExtraError: its engine is not installed.
        EngineMismatch: the engine cannot do here what the artifact says, e.g. bf16 on a CPU without it.
    """
    artifact = open_artifact(path)
    return from_artifact(artifact, threads=threads, batch_size=batch_size, limits=limits, many=many)


def from_artifact(
    artifact: Artifact,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    limits: Limits = LIMITS,
    many: bool = False,
    scaled: bool = True,
    workers: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Predictor:
    """Load an opened artifact; `scaled` and `workers` as in `Predictor`, the others and errors as `load`.

    `settings`: of the engine, over those of the artifact; they change the speed alone.
    """
    manifest = artifact.manifest
    workload = manifest.evidence.workload
    threads = threads if threads is not None else workload.threads
    batch_size = batch_size if batch_size is not None else workload.batch_size
    engine = runtimes.RUNTIMES.get(manifest.variant.runtime)
    if engine is not None and engine.reference:
        raise InputError(f"{artifact.path} names {engine.label}, which is never shipped: do not use it.")
    sharing = engine.sharing if engine is not None and many else ()
    runner = load_graphs(
        artifact.model_folder,
        manifest.graphs,
        manifest.variant.on(workload.device),
        sizes={"B": batch_size},
        threads=threads if threads is not None else usable_cores(),
        settings={**dict(sharing), **dict(manifest.variant.settings), **(settings or {})},
    )
    return Predictor(runner, artifact.task, limits=limits, workers=workers, scaled=scaled)
