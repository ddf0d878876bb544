"""The work on shards: read, decode, prepare, run, finish; a row or a failure for each input.

Batches of the engine end with their shard, so that a shard's numbers depend on nothing but the shard, while
the next one's images are already decoded.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.batch.files import Files
from vitrail.batch.records import Failure, Finished, Input, OwnColumn, Shard
from vitrail.errors import ClaimError, InputError
from vitrail.images.decode import ImageError
from vitrail.predict import CUT, Cut, Predictor
from vitrail.runtimes import Arrays as Tensors
from vitrail.runtimes import Lanes, Runner
from vitrail.tasks import Arrays
from vitrail.vocabulary import RunnerFacts

__all__ = ["Stages", "Work"]


class Stages:
    """Seconds by stage, added up from any thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count what a stage took."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """What all took so far."""
        with self._lock:
            return dict(self._seconds)


@dataclass(eq=False, slots=True)
class _Item:
    """An input under way."""

    given: Input
    sha256: str = ""


class _TimedRunner:
    """A runner whose time is counted."""

    def __init__(self, runner: Runner, stages: Stages) -> None:
        self._runner, self._stages = runner, stages
        self.lanes = runner.lanes if isinstance(runner, Lanes) else 1

    @property
    def facts(self) -> RunnerFacts:
        return self._runner.facts

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        begin = time.perf_counter()
        outputs = self._runner.run(inputs)
        self._stages.add("model", time.perf_counter() - begin)
        return outputs

    def run_lane(self, lane: int, inputs: Tensors) -> dict[str, np.ndarray]:
        assert isinstance(self._runner, Lanes)
        begin = time.perf_counter()
        outputs = self._runner.run_lane(lane, inputs)
        self._stages.add("model", (time.perf_counter() - begin) / self.lanes)
        return outputs

    def close(self) -> None:
        self._runner.close()


class Work:
    """A loaded model and where the images are.

    Args:
        predictor: runs the model; its runner is replaced by one whose time is counted.
        files: reads the images.
        options: the task's, for its rows.
        own: columns of the manifest.
        digest: the artifact's.
    """

    def __init__(
        self,
        predictor: Predictor,
        files: Files,
        *,
        options: Mapping[str, Any],
        own: tuple[OwnColumn, ...],
        digest: str,
    ) -> None:
        self.stages = Stages()
        self._predictor = predictor
        predictor.runner = _TimedRunner(predictor.runner, self.stages)
        self._files, self._options, self._own, self._digest = files, dict(options), own, digest

    def run(
        self, shards: Iterable[Shard], tick: Callable[[int, int], None] = lambda done, failed: None
    ) -> Generator[Finished]:
        """Each shard when all its inputs are done, in order.

        Args:
            shards: read one ahead of the work on them.
            tick: called after each batch with the inputs done and how many of them failed.
        """
        under_way: deque[_Item] = deque()
        open_shards: deque[Shard] = deque()

        def items() -> Iterator[_Item | Cut]:
            for shard in shards:
                open_shards.append(shard)
                for given in shard.inputs:
                    under_way.append(_Item(given))
                    yield under_way[-1]
                yield CUT

        finished = Finished(shard="", results=[], errors=[], failed_at=[])
        with closing(self._predictor.outputs(items(), prepare=self._prepared)) as batches:
            for slots, outputs in batches:
                done = [under_way.popleft() for _ in slots]
                failed = len(finished.errors)
                self._add_rows(finished, done, slots, outputs)
                tick(len(done), len(finished.errors) - failed)
                if len(finished.results) + len(finished.errors) == len(open_shards[0].inputs):
                    yield replace(finished, shard=open_shards.popleft().id)
                    finished = Finished(shard="", results=[], errors=[], failed_at=[])

    def _prepared(self, item: _Item) -> Arrays:
        """In a thread: the input's file, its digest, its tensors."""
        begin = time.perf_counter()
        data = self._files.read(item.given.name, self._predictor.limits)
        item.sha256 = hashlib.sha256(data).hexdigest()
        middle = time.perf_counter()
        self.stages.add("read", middle - begin)
        try:
            return self._predictor.prepare([data], name=self._files.said(item.given.name))
        finally:
            self.stages.add("decode", time.perf_counter() - middle)

    def _add_rows(
        self, to: Finished, items: list[_Item], slots: list[InputError | None], outputs: Arrays | None
    ) -> None:
        begin = time.perf_counter()
        answers = iter(() if outputs is None else self._answers(outputs))
        for item, slot in zip(items, slots, strict=True):
            outcome = next(answers) if slot is None else _failure(slot)
            if isinstance(outcome, Failure):
                to.failed_at.append(len(to.results) + len(to.errors))
                to.errors.append(self._row(item, {"reason": outcome.reason, "error": outcome.message}))
            else:
                to.results.append(self._row(item, {"sha256": item.sha256, **outcome}))
        self.stages.add("finish", time.perf_counter() - begin)

    def _answers(self, outputs: Arrays) -> list[dict[str, Any] | Failure]:
        """A row for each image; where the numbers of one are not finite, a failure for that one alone."""
        task = self._predictor.task
        try:
            return [*task.rows(outputs, **self._options)]
        except ClaimError as error:
            count = len(next(iter(outputs.values())))
            if count == 1:
                return [Failure(reason="no answer", message=str(error))]
            singles = ({name: values[k : k + 1] for name, values in outputs.items()} for k in range(count))
            return [answer for one in singles for answer in self._answers(one)]

    def _row(self, item: _Item, values: dict[str, Any]) -> dict[str, Any]:
        own = {column.name: cell for column, cell in zip(self._own, item.given.cells, strict=True)}
        return {"path": item.given.name, **values, **own, "artifact": self._digest}


def _failure(error: InputError) -> Failure:
    """HEIC without its library is the one error that is no `ImageError`."""
    reason = error.reason if isinstance(error, ImageError) else "unsupported"
    return Failure(reason=reason, message=str(error))
