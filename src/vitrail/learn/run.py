"""A training run's folder: what was asked, checkpoints, metrics, the best weights.

    run.json                      what was asked; a run goes on only if it is asked the same again
    checkpoints/step-N-DIGEST     all that going on needs; the newest two
    metrics.csv, tensorboard/     a row every few steps and one every epoch
    best-DIGEST.safetensors       weights of the best epoch, with a record of them beside

Whatever is written appears whole or not at all, and what it replaces goes afterwards: a run that dies at any
moment, for want of disk too, leaves its last good checkpoint and weights. Process 0 alone writes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import nn

from vitrail import store
from vitrail.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

    from vitrail.learn.order import Steps
    from vitrail.learn.train import Progress

__all__ = ["Asked", "Kept", "Run", "Watcher"]

CHECKPOINTS_KEPT = 2
LOG_EVERY = 10
DIGEST_LENGTH = 16
"""Characters of a checkpoint's digest in its name."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run was asked to do; going on needs the same."""

    model: str
    image_size: int
    start: str
    """`random`, or the digest of the weights it begins with."""
    data: str
    """Digest of the images, labels and splits."""
    recipe: Mapping[str, Any]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What is not as it was in `other`, each as `key: now, was`."""
        return _differences(self.plain(), other)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        values = {**vars(self), "recipe": {**self.recipe}}
        values["recipe"].pop("source", None)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


@dataclass(frozen=True)
class Kept:
    """The best weights so far."""

    file: str
    sha256: str
    progress: Progress
    finished: bool


@dataclass
class Watcher:
    """Who is told while a run goes on; in process 0."""

    begin: Callable[[int, int], None] = lambda step, total: None
    step: Callable[[int, float, float], None] = lambda step, loss, images_per_s: None
    epoch: Callable[[dict[str, float]], None] = lambda figures: None
    note: Callable[[str], None] = lambda line: None
    end: Callable[[], None] = lambda: None


@dataclass
class Run:
    """One run.

    Args:
        folder: made if it is not there.
        asked: compared with what the folder's run was asked.
        record: writes down what the best weights are; called whenever they or the run's state change.
        every: steps between checkpoints, besides the one at the end of each epoch.
        writes: whether this is process 0.

    Raises:
        InputError: the folder's run was asked something else, or the folder is no run's.
    """

    folder: Path
    asked: Asked
    record: Callable[[Kept], None]
    every: int | None = None
    writes: bool = True
    watcher: Watcher = field(default_factory=Watcher)

    def __post_init__(self) -> None:
        self._checkpoints = self.folder / "checkpoints"
        self._metrics: _Metrics | None = None
        self._board: SummaryWriter | None = None
        self._last_log = (0, time.perf_counter())
        self._batch = int(self.asked.recipe["batch_size"])
        place = self.folder / "run.json"
        if place.is_file():
            self._compare(place)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is no training run: give --out a new folder.")
        elif self.writes:
            with store.writing(self.folder):
                self._checkpoints.mkdir(parents=True, exist_ok=True)
            store.atomic_write(place, json.dumps(self.asked.plain(), indent=2).encode() + b"\n")

    def _compare(self, place: Path) -> None:
        try:
            before = json.loads(place.read_text("utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{place} is damaged: give --out a new folder.") from None
        changed = self.asked.differences(before)
        if changed:
            raise InputError(
                f"The run in {self.folder} was asked something else: {'; '.join(changed)}. Ask the "
                "same again to go on with it, or give --out a new folder."
            )

    # --- checkpoints ------------------------------------------------------------------------------

    def restore(self, fabric: Fabric, state: dict[str, Any]) -> bool:
        """Load the newest checkpoint into `state`; False: there is none.

        Raises:
            InputError: it is damaged.
        """
        found = self._newest_first()
        if not found:
            return False
        newest, *older = found
        damaged = store.sha256_file(newest)[:DIGEST_LENGTH] != newest.stem.split("-")[2]
        if not damaged:
            try:
                fabric.load(newest, state, weights_only=True)
            except Exception as error:  # torch raises anything on a file of another version
                damaged = True
                self.watcher.note(f"{newest.name}: {error}")
        if damaged:
            then = f"it goes on from step {_step(older[0])}" if older else "it begins anew"
            raise InputError(f"The checkpoint {newest} is damaged: delete it, and {then}.")
        return True

    def checkpoint_is_due(self, progress: Progress, steps: Steps) -> bool:
        """At the end of each epoch, and every so many steps if that was asked."""
        return progress.step % steps.per_epoch == 0 or bool(self.every and progress.step % self.every == 0)

    def checkpoint(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write the state; every process calls it.

        Raises:
            InputError: it cannot be written; the checkpoints before it stay.
        """
        step = state["progress"]["step"]
        partial = self._checkpoints / f".step-{step:08d}.partial"
        try:
            fabric.save(partial, state)
            if self.writes:
                _to_disk(partial)
                digest = store.sha256_file(partial)[:DIGEST_LENGTH]
                partial.replace(self._checkpoints / f"step-{step:08d}-{digest}.ckpt")
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            kept = self._newest_first()
            last = f"the checkpoint of step {_step(kept[0])} is kept" if kept else "there is none yet"
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"The checkpoint of step {step} cannot be written to {self._checkpoints} ({reason}); {last}: "
                "free some space and run the same command again."
            ) from None
        if self.writes:
            for old in self._newest_first()[CHECKPOINTS_KEPT:]:
                old.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*-*.ckpt"), reverse=True)

    # --- metrics and weights ----------------------------------------------------------------------

    def begin(self, progress: Progress, steps: Steps) -> None:
        """Open the metrics at this step; rows of steps that will be done again go."""
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        with store.writing(self.folder):
            self._metrics = _Metrics(self.folder / "metrics.csv", progress.step)
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=progress.step + 1)
        self._last_log = (progress.step, time.perf_counter())
        self.watcher.begin(progress.step, steps.total)

    def after_step(self, progress: Progress, *, loss: float, rate: float, gradient_norm: float) -> None:
        """Log every `LOG_EVERY` steps."""
        if not self.writes or progress.step % LOG_EVERY:
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
        fabric: Fabric,
        progress: Progress,
        evaluated: nn.Module,
        figures: dict[str, float],
        *,
        better: bool,
    ) -> None:
        """Log an epoch's figures and keep its weights if they are the best so far."""
        if not self.writes:
            return
        self._log(progress.step, figures)
        self.watcher.epoch(figures)
        if better:
            tensors = {
                name: value.detach().cpu().contiguous() for name, value in evaluated.state_dict().items()
            }
            content = save(tensors)
            name = f"best-{_digest(content)[:DIGEST_LENGTH]}.safetensors"
            store.atomic_write(self.folder / name, content)
            progress.best_file, progress.best_sha256 = name, _digest(content)
        self._record(progress, finished=False)

    def finish(self, progress: Progress) -> None:
        """Write down that the run came to its end."""
        if not self.writes:
            return
        self._record(progress, finished=True)
        if self._board is not None:
            self._board.close()

    def _record(self, progress: Progress, *, finished: bool) -> None:
        self.record(Kept(progress.best_file, progress.best_sha256, progress, finished))
        for file in self.folder.glob("best-*.safetensors"):
            if file.name != progress.best_file:
                file.unlink(missing_ok=True)

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        assert self._metrics is not None
        assert self._board is not None
        with store.writing(self.folder):
            self._metrics.append(step, figures)
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)


class _Metrics:
    """metrics.csv: one row per entry, a column for each figure ever seen."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._columns, rows = ["step"], []
        if path.is_file():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if int(row["step"]) <= step]
                self._columns = list(reader.fieldnames or self._columns)
        self._write(rows)

    def append(self, step: int, figures: Mapping[str, float]) -> None:
        if not set(figures) <= set(self._columns):
            with open(self._path, newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns += [name for name in figures if name not in self._columns]
            self._write(rows)
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step, **figures})

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        store.atomic_write(self._path, text.getvalue().encode())


def _differences(now: Any, before: Any, key: str = "") -> list[str]:
    if isinstance(now, dict) and isinstance(before, dict):
        found = []
        for name in dict.fromkeys((*now, *before)):
            found += _differences(now.get(name), before.get(name), f"{key}.{name}".strip("."))
        return found
    return [] if now == before else [f"{key} is {_short(now)} and was {_short(before)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= DIGEST_LENGTH * 2 else text[:DIGEST_LENGTH] + "…"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.split("-")[1])


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
