"""A second artifact on a share of the traffic: nobody gets its answers, they are compared.

It is asked after the live model has answered, so it delays no request of its own; where its queue is full,
requests are skipped instead of waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from vitrail.errors import InputError
from vitrail.serve import wire
from vitrail.serve.agreeing import AGREEMENT, agree
from vitrail.serve.batching import median, p95
from vitrail.serve.metrics import Metrics
from vitrail.serve.model import Answered, Model
from vitrail.serve.refusals import Refusal
from vitrail.serve.settings import Served, Settings
from vitrail.serve.uploads import Upload

__all__ = ["Shadow"]

MOST_IMAGES = 16
"""In its queue."""
KEPT = 1000
"""Of the latest latencies."""


class Shadow:
    """The candidate's process, and how it compares."""

    def __init__(self, live: Model, path: Path, settings: Settings, metrics: Metrics) -> None:
        own = replace(settings, max_queue=max(MOST_IMAGES, settings.max_images), max_latency_ms=None)
        self.model = Model(Served(name=live.name, path=path), own, metrics, f"{live.name} (shadow)")
        self._live, self._metrics, self._share = live, metrics, settings.shadow_share
        self._due = 0.0
        self._compared, self._agreement, self._skipped, self._failed = 0, 0.0, 0, 0
        self._seconds: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Wait until it is ready.

        Raises:
            InputError: it cannot be served, or is for another task.
        """
        await self.model.start()
        if self.model.facts.task != self._live.facts.task:
            raise InputError(
                f"{self.model.path} is for {self.model.facts.task}, not for {self._live.facts.task}: "
                "shadow a model with one for the same task."
            )

    async def close(self) -> None:
        """End its process."""
        for task in self._tasks:
            task.cancel()
        await self.model.close()

    def offer(
        self, images: Sequence[bytes], options: dict[str, Any], answered: Answered, upload: Upload
    ) -> None:
        """A request that the live model has answered; its share of them is asked again."""
        self._due += self._share
        if self._due < 1.0:
            return
        self._due -= 1.0
        upload.keep()  # at once: the request that it came with is about to end
        task = asyncio.create_task(self._compare(images, options, answered, upload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: upload.let_go())

    def said(self) -> dict[str, Any]:
        """For `/v1/models`."""
        live, shadow = [a for a, _ in self._seconds], [b for _, b in self._seconds]
        found: dict[str, Any] = {
            "ready": not self.model.reasons,
            "share": self._share,
            "images": self._compared,
            "skipped": self._skipped,
            "failed": self._failed,
            "agreement": {
                "what": AGREEMENT[self._live.facts.task],
                "mean": self._agreement / self._compared if self._compared else None,
            },
            "latency_ms": {"live": _figures(live), "shadow": _figures(shadow)},
        }
        facts = self.model.live.facts
        return found if facts is None else {"version": facts.digest[:12], **facts.about, **found}

    async def _compare(
        self, images: Sequence[bytes], options: dict[str, Any], ours: Answered, upload: Upload
    ) -> None:
        deadline = time.monotonic() + self.model.settings.deadline_ms / 1e3
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            theirs = await self.model.ask(
                len(images),
                0,
                lambda id: wire.Images(id=id, sizes=[*map(len, images)], options=options, deadline=deadline),
                images,
                deadline=deadline,
                gone=never,
                upload=upload,
            )
        except Refusal as refusal:
            skipped = refusal.code in ("queue_full", "too_large")
            self._skipped += len(images) * skipped
            self._failed += len(images) * (not skipped)
            self._metrics.shadowed(self._live.name, "skipped" if skipped else "failed", len(images))
            return
        # On a thread: masks take longer than anybody's request should wait for.
        agreements = await asyncio.to_thread(_agreements, self._live.facts.task, ours.payload, theirs.payload)
        known = [each for each in agreements if each is not None]
        self._compared += len(known)
        self._failed += len(agreements) - len(known)
        self._agreement += sum(known)
        seconds = _seconds(ours.answer), _seconds(theirs.answer)
        self._seconds.append(seconds)
        self._metrics.shadowed(self._live.name, "compared", len(known))
        self._metrics.shadowed(self._live.name, "failed", len(agreements) - len(known))
        self._metrics.agreed(self._live.name, sum(known), *seconds)


def _agreements(task: str, ours: bytes, theirs: bytes) -> list[float | None]:
    pairs = zip(msgspec.json.decode(ours), msgspec.json.decode(theirs), strict=True)
    return [agree(task, mine, other) for mine, other in pairs]


def _seconds(answer: wire.Answer) -> float:
    return answer.wait_s + answer.prepare_s + answer.run_s + answer.finish_s


def _figures(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"p50": round(1e3 * median(seconds), 3), "p95": round(1e3 * p95(seconds), 3)}
