"""An export as something to launch: a fresh process for each launch, answering with timed blocks.

This joins sandbox.py (the process), session.py (what happens inside it) and latency.py (the schedule).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from vitrail.images.photos import PhotoSet
from vitrail.measure.latency import UNTIMED_CALLS
from vitrail.measure.sandbox import Child
from vitrail.tasks import Arrays, Task, pack, read_arrays
from vitrail.vocabulary import Block, Export, Memory, Rewriting, RunnerFacts, Stage, Variant, Workload

MIB = 1024 * 1024
LOAD_TIMEOUT_S = 120.0
COMPILE_TIMEOUT_S = 600.0
"""What loading may take with an engine that compiles then."""
CALL_TIMEOUT_S = 60.0
EACH_PHOTO_S = 60.0
"""What encoding a photo may take before clicks are answered."""
EACH_CALL_S = 2.0
"""What each call of many may take beyond that."""
WARM_UP_S = 0.3
WARM_UP_CALLS = 3
MEMORY_SHARE = 0.8
"""Share of this machine's memory at which the watchdog ends a measuring process."""


@dataclass
class Seen:
    """What the launches of one export reported besides their timed blocks."""

    facts: RunnerFacts | None = None
    memory: Memory | None = None
    """From the launch with the highest peak."""
    load_s: float = 0.0
    """From the latest launch."""
    warm_up_calls: int = 0


@dataclass(frozen=True)
class ExportSubject:
    """A variant's export under a workload, ready to be launched."""

    variant: Variant
    export: Export
    workload: Workload
    task: Task
    photos: PhotoSet
    threads: int
    load_timeout_s: float = LOAD_TIMEOUT_S
    seen: Seen = field(default_factory=Seen)

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def rewriting(self) -> Rewriting | None:
        """What was done to the export's graph."""
        return self.export.rewriting

    def launch(self, number: int) -> Launch:
        """Start a process, load the export and warm it up.

        Raises:
            ChildFailure: the export cannot be loaded or crashes, hangs or outgrows the memory limit.
        """
        return Launch(self, number)


class Launch:
    """One fresh process with the export loaded; close it when done."""

    def __init__(self, subject: ExportSubject, number: int) -> None:
        self.number = number
        self._seen, self._clients = subject.seen, subject.workload.concurrency
        payload = {
            "folder": str(Path(subject.export.folder).absolute()),
            "graphs": msgspec.to_builtins(subject.export.graphs),
            "target": msgspec.to_builtins(subject.variant.on(subject.workload.device)),
            "batch_size": subject.workload.batch_size,
            "clients": subject.workload.concurrency,
            "threads": subject.threads,
            "task": pack(subject.task),
            "photos": list(subject.photos.paths),
            "settings": dict(subject.variant.settings),
            "seed": number,
        }
        limit = psutil.virtual_memory().total / MIB * MEMORY_SHARE
        self._child = Child("vitrail.measure.session:start", payload, memory_mib=limit, name="measuring")
        try:
            self._child.result(subject.load_timeout_s)
            several = subject.workload.concurrency - 1
            timeout_s = LOAD_TIMEOUT_S + EACH_CALL_S * (1 + UNTIMED_CALLS) * WARM_UP_CALLS * several
            warm = self._child.call("warm_up", timeout_s, seconds=WARM_UP_S, calls=WARM_UP_CALLS)
            # Only now: a compiled module may have been compiled again in the meantime.
            facts = self._child.call("facts", CALL_TIMEOUT_S)
            seen = subject.seen
            seen.facts, seen.load_s = msgspec.convert(facts["facts"], RunnerFacts), float(facts["load_s"])
            seen.warm_up_calls = int(warm["calls"])
        except BaseException:
            self._child.close()
            raise

    def block(self, scope: Stage, calls: int) -> Block:
        """Time `calls` calls of all clients; one may take up to a minute before it counts as a hang."""
        untimed = UNTIMED_CALLS * (self._clients - 1)
        timeout_s = CALL_TIMEOUT_S + EACH_CALL_S * (calls + untimed)
        answer = self._child.call("block", timeout_s, scope=scope, calls=calls)
        self._note_memory()
        return Block(
            launch=self.number,
            scope=scope,
            samples_ms=tuple(answer["samples_ms"]),
            speed_before_ms=answer["speed_before_ms"],
            speed_after_ms=answer["speed_after_ms"],
            steal_s=answer["steal_s"],
            involuntary_switches=answer["involuntary_switches"],
            clients=answer["clients"],
            held_back=tuple(answer["held_back"]),
            others=answer["others"],
        )

    def outputs(self, photos: tuple[str, ...], crops_per_photo: int) -> Arrays:
        """Outputs of the photos' crops as named float32 arrays (photos, crops, ...)."""
        timeout = CALL_TIMEOUT_S + 5.0 * len(photos) * crops_per_photo
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "outputs.npz"
            self._child.call(
                "outputs", timeout, photos=list(photos), crops_per_photo=crops_per_photo, target=str(target)
            )
            return read_arrays(target)

    def clicked(self, photos: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Arrays:
        """Outputs of one click each as named float32 arrays (clicks, ...), of photos with their clicks (x, y)
        in turn; of a task that takes prompts."""
        count = sum(len(clicks) for _, clicks in photos)
        timeout = CALL_TIMEOUT_S + EACH_PHOTO_S * len(photos) + EACH_CALL_S * count
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "outputs.npz"
            asked = [[path, [list(click) for click in clicks]] for path, clicks in photos]
            self._child.call("clicked", timeout, photos=asked, target=str(target))
            return read_arrays(target)

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _note_memory(self) -> None:
        memory = msgspec.convert(self._child.call("memory", CALL_TIMEOUT_S), Memory)
        if self._seen.memory is None or memory.peak > self._seen.memory.peak:
            self._seen.memory = memory
