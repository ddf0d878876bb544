"""A training run's folder: the request, checkpoints, metrics, the best weights.

    run.json                      the request (request.py)
    checkpoints/step-N-DIGEST     everything needed to resume; the newest two
    metrics.csv, tensorboard/     a row every few steps and one every epoch
    best-DIGEST.safetensors       weights of the best epoch, with a record of them

Everything written appears whole or not at all, and what it replaces is removed afterwards: a run that dies at
any moment, even from a full disk, leaves its last good checkpoint and weights, and the best weights of every
epoch that a kept checkpoint may go back to. Only process 0 writes; if it cannot, all processes stop.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor

from vitrail import store
from vitrail.errors import InputError
from vitrail.learn.metrics import Metrics
from vitrail.learn.progress import Progress
from vitrail.learn.recipe import Leg
from vitrail.learn.request import RUN_FILE, Record, RunRequest, continued

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from vitrail.learn.order import Steps

__all__ = ["BestWeights", "CheckpointFile", "ReportedByProcessZero", "Run", "RunWatcher", "said_once"]

CHECKPOINTS_KEPT = 2
LOG_EVERY = 10
DIGEST_LENGTH = 16
"""Characters of a checkpoint's digest in its name."""


class ReportedByProcessZero(InputError):
    """Process 0 reports what stopped this process."""


@contextmanager
def said_once(fabric: Fabric) -> Iterator[None]:
    """Around work that every process does, and fails at, in the same way: only process 0 reports why."""
    try:
        yield
    except InputError as error:
        if fabric.is_global_zero:
            raise
        raise ReportedByProcessZero(str(error)) from None


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint straight to its path; Fabric's own first builds it in memory and then in /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Like Fabric's; the caller renames the file once it is whole."""
        torch.save(checkpoint, path)


@dataclass(frozen=True)
class BestWeights:
    """The best weights so far."""

    file: str
    sha256: str
    progress: Progress
    finished: bool
    extended: tuple[Leg, ...] = ()


@dataclass
class RunWatcher:
    """Callbacks while a run is going on; in process 0."""

    begin: Callable[[int, int], None] = lambda step, total: None
    step: Callable[[int, float, float], None] = lambda step, loss, images_per_s: None
    epoch: Callable[[dict[str, float]], None] = lambda figures: None
    note: Callable[[str], None] = lambda line: None
    end: Callable[[], None] = lambda: None


@dataclass
class Run:
    """One run.

    Args:
        folder: made when training starts, if it does not exist.
        request: compared with the folder's own request; afterwards including its extensions.
        record: records what the best weights are; called whenever they or the run's state change.
        fabric: the run's; its process 0 writes.
        every: steps between checkpoints, in addition to the one at the end of each epoch.
        before: what `record` last wrote, if the folder has it.
        extend: continue the finished run for more epochs.

    Raises:
        InputError: the folder's run has other settings, or the folder is not a run's (`request.continued`).
    """

    folder: Path
    request: RunRequest
    record: Callable[[BestWeights], None]
    fabric: Fabric
    every: int | None = None
    watcher: RunWatcher = field(default_factory=RunWatcher)
    before: Record | None = None
    extend: bool = False

    def __post_init__(self) -> None:
        self._checkpoints = self.folder / "checkpoints"
        self._metrics: Metrics | None = None
        self._board: SummaryWriter | None = None
        self._last_log = (0, time.perf_counter())
        self._batch = int(self.request.recipe["batch_size"])
        if self.folder.exists() and not (self.folder / RUN_FILE).is_file() and not self._is_new():
            raise InputError(f"{self.folder} is not a training run: give --out a new folder.")
        self.request = continued(self.request, self.folder, self.before, extend=self.extend)
        # Which best weights a checkpoint refers to; for one from before, any that exist.
        there = {file.name for file in self._best_files()}
        self._best_of = {file.name: set(there) for file in self._newest_first()}

    def _is_new(self) -> bool:
        """Whether the folder holds only what a run leaves that was killed as it started."""
        return self.folder.is_dir() and all(
            file.name.startswith(store.TEMPORARY) for file in self.folder.iterdir()
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def restore(self, state: dict[str, Any]) -> bool:
        """Load the newest checkpoint into `state`; False: there is none.

        Raises:
            InputError: it is damaged.
        """
        checkpoints = self._newest_first()
        if not checkpoints:
            if self.request.extended:
                raise InputError(
                    f"{self._checkpoints} has no checkpoint, so the run cannot be extended: --weights starts "
                    "a new one with its best weights."
                )
            return False
        newest, *older = checkpoints
        damaged = store.sha256_file(newest)[:DIGEST_LENGTH] != newest.stem.split("-")[2]
        if not damaged:
            try:
                self.fabric.load(newest, state, weights_only=True)
            except Exception as error:  # torch raises all kinds of errors on a file of another version
                damaged = True
                self.watcher.note(f"{newest.name}: {error}")
        if damaged:
            raise InputError(f"The checkpoint {newest} is damaged: {self._without_it(older)}.")
        return True

    def has(self, file: str) -> bool:
        """Whether these best weights exist: a finished run keeps only those of its last checkpoint."""
        return bool(file) and (self.folder / file).is_file()

    def _without_it(self, older: list[Path]) -> str:
        if older:
            return f"delete it to resume from step {_step(older[0])}"
        if self.request.extended:
            return "the run cannot be extended, but --weights starts a new one with its best weights"
        return "delete it to start over"

    def checkpoint_is_due(self, progress: Progress, steps: Steps) -> bool:
        """At the end of each epoch, and every `every` steps if that was given."""
        return progress.step % steps.per_epoch == 0 or bool(self.every and progress.step % self.every == 0)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state; every process calls it.

        Raises:
            InputError: it cannot be written; earlier checkpoints are kept.
        """
        step = state["progress"]["step"]
        partial = self._checkpoints / f"{store.TEMPORARY}step-{step:08d}.partial"
        failed: Exception | None = None
        try:
            self.fabric.save(partial, state)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            failed = error
        with self._alone() as writes:
            if writes:
                self._keep(partial, state, failed)

    def _keep(self, partial: Path, state: dict[str, Any], failed: Exception | None) -> None:
        step, best = state["progress"]["step"], state["progress"]["best_file"]
        try:
            if failed is not None:
                raise failed
            store.fsync_path(partial)
            digest = store.sha256_file(partial)[:DIGEST_LENGTH]
            kept = self._checkpoints / f"step-{step:08d}-{digest}.ckpt"
            partial.replace(kept)
            store.fsync_path(self._checkpoints)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            saved = self._newest_first()
            last = f"the checkpoint of step {_step(saved[0])} is kept" if saved else "there is none yet"
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"The checkpoint of step {step} cannot be written to {self._checkpoints} ({reason}); {last}: "
                "free some space and run the same command again."
            ) from None
        assert self._board is not None
        self._board.flush()
        self._best_of[kept.name] = {best}
        for old in self._newest_first()[CHECKPOINTS_KEPT:]:
            old.unlink(missing_ok=True)
            self._best_of.pop(old.name, None)
        self._keep_best(set().union(*self._best_of.values()))

    def _newest_first(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*-*.ckpt"), reverse=True)

    def _keep_best(self, named: set[str]) -> None:
        for file in self._best_files():
            if file.name not in named:
                file.unlink(missing_ok=True)

    def _best_files(self) -> list[Path]:
        return list(self.folder.glob("best-*.safetensors"))

    # --- metrics and weights ----------------------------------------------------------------------

    def begin(self, progress: Progress, steps: Steps) -> None:
        """Make the folder, or open the metrics at this step: rows of later steps are removed."""
        with self._alone() as writes:
            if not writes:
                return
            from torch.utils.tensorboard import SummaryWriter

            with store.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                store.atomic_write(
                    self.folder / RUN_FILE, json.dumps(self.request.plain(), indent=2).encode() + b"\n"
                )
                self._checkpoints.mkdir(exist_ok=True)
                for place in (self.folder, self._checkpoints):  # leftovers of killed writes
                    for file in place.glob(f"{store.TEMPORARY}*"):
                        file.unlink(missing_ok=True)
                self._metrics = Metrics(self.folder / "metrics.csv", progress.step)
                self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=progress.step + 1)
            self._last_log = (progress.step, time.perf_counter())
            self.watcher.begin(progress.step, steps.total)

    def after_step(self, progress: Progress, *, loss: float, rate: float, gradient_norm: float) -> None:
        """Log every `LOG_EVERY` steps."""
        if progress.step % LOG_EVERY:
            return
        with self._alone() as writes:
            if not writes:
                return
            step, moment = self._last_log
            self._last_log = (progress.step, time.perf_counter())
            speed = (progress.step - step) * self._batch / (self._last_log[1] - moment)
            self._log(
                progress.step,
                {
                    "train_loss": loss,
                    "learning_rate": rate,
                    "gradient_norm": gradient_norm,
                    "images_per_s": speed,
                },
            )
            self.watcher.step(progress.step, loss, speed)

    def after_epoch(
        self,
        progress: Progress,
        weights: Callable[[], Mapping[str, Tensor]],
        figures: dict[str, float],
        *,
        better: bool,
    ) -> None:
        """Log an epoch's figures and keep its weights if they are the best so far.

        Args:
            progress: with this epoch in its history.
            weights: returns the evaluated weights; called by every process or by none.
            figures: of the epoch.
            better: whether they are the best so far.
        """
        tensors = weights() if better else {}
        with self._alone() as writes:
            if not writes:
                return
            self._log(progress.step, figures)
            self.watcher.epoch(figures)
            if better:
                content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
                digest = hashlib.sha256(content).hexdigest()
                name = f"best-{digest[:DIGEST_LENGTH]}.safetensors"
                store.atomic_write(self.folder / name, content)
                progress.best_file, progress.best_sha256 = name, digest
            self._record(progress, finished=False)

    def finish(self, progress: Progress) -> None:
        """Record that the run finished."""
        with self._alone() as writes:
            if not writes:
                return
            self._record(progress, finished=True)
            self._keep_best({progress.best_file})
            if self._board is not None:
                self._board.close()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Around work that only process 0 does. If it fails, all processes stop and process 0 reports why;
        otherwise the others would wait for it forever."""
        failed: InputError | None = None
        try:
            yield self.fabric.is_global_zero
        except InputError as error:
            failed = error
        if self.fabric.world_size > 1:
            flag = torch.tensor(float(failed is not None), device=self.fabric.device)
            if float(self.fabric.all_reduce(flag, reduce_op="sum")) and failed is None:  # type: ignore[arg-type]
                raise ReportedByProcessZero("Process 0 could not continue.")
        if failed is not None:
            raise failed

    def _record(self, progress: Progress, *, finished: bool) -> None:
        self.record(
            BestWeights(progress.best_file, progress.best_sha256, progress, finished, self.request.extended)
        )

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        assert self._metrics is not None
        assert self._board is not None
        with store.writing(self.folder):
            self._metrics.append(step, figures)
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.split("-")[1])
