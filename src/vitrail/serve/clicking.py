"""A model that takes prompts: photos are encoded on one thread, and kept; prompts are answered on another.

A click takes milliseconds where a photo takes hundreds, so none waits for a photo of somebody else's: both
graphs may run at the same time, and share the cores. Photos are encoded one by one, in their order, and so
are prompts answered; a photo that is still kept is not decoded again.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from PIL import Image

from vitrail import predict
from vitrail.artifact import Artifact
from vitrail.errors import ClaimError, InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import resized_short_side
from vitrail.prompting import EmbeddingCache
from vitrail.runtimes.chain import Chain
from vitrail.serve import batching, wire
from vitrail.serve.engines import KEPT, engine_threads
from vitrail.serve.results import Seen
from vitrail.serve.service import Job, Progress, Service
from vitrail.tasks import Arrays
from vitrail.tasks.promptable import Encoded

__all__ = ["Clicking"]

SEND_AGAIN = "This photo is not kept here, or no longer: send the photo again, with the prompt."
TWO_GRAPHS = (
    "This model has two graphs, whose tensors are not taken: send a photo and prompts to /v1/segment."
)


@dataclass(eq=False, kw_only=True)
class _Job(Job):
    digest: str = ""
    photo: Image.Image | None = None
    encoded: Encoded | None = None
    tensors: Arrays | None = None
    """Of a recorded photo, whose outputs are compared as they are."""


class Clicking(Service):
    """See `Service`.

    Raises:
        VitrailError: the engine cannot run the artifact here.
    """

    def __init__(self, artifact: Artifact, config: wire.Config, send: Callable[..., None]) -> None:
        super().__init__(artifact, config, send, masks=True)
        threads = engine_threads(artifact, config.threads)
        self._predictor = predict.from_artifact(
            artifact, batch_size=1, threads=threads, limits=self._limits, many=True
        )
        runner = self._predictor.runner
        assert isinstance(runner, Chain), "a task with stages has a graph for each"
        self._chain, self._prompter = runner, self._predictor.prompter
        self._encode, self._prompt = self._task.stages
        self._short_side = resized_short_side(self._task.preprocess)
        self._cache = EmbeddingCache(config.keep_photos)
        self._photos_left: SimpleQueue[_Job] = SimpleQueue()
        self._prompts_left: SimpleQueue[_Job] = SimpleQueue()
        self._latencies: dict[str, deque[float]] = {name: deque(maxlen=KEPT) for name in self._task.stages}
        """Of each stage, in ms."""
        self.ready = self._ready(runner.facts, self._task.graph(""))

    def leave(self) -> None:
        """The process ends in peace: there is nothing to save."""

    def _threads(self) -> Mapping[str, Callable[[], None]]:
        return {"encode": self._encode_all, "prompt": self._prompt_all}

    def _figures(self) -> dict[str, Any]:
        return {
            "sizes": {1: self._p95(self._encode)},
            "most": 1,
            "beside": 0,
            "beside_ms": 0.0,
            "kept": wire.Kept(
                photos=len(self._cache), bytes=self._cache.bytes, prompt_ms=self._p95(self._prompt)
            ),
        }

    def _p95(self, stage: str) -> float:
        latencies = list(self._latencies[stage])  # another thread adds to it
        return batching.p95(latencies) if latencies else 0.0

    # --- preparing --------------------------------------------------------------------------------

    def _begin(self, request: Progress, payload: bytes) -> None:
        message, job = request.message, _Job(request=request)
        if isinstance(message, wire.Tensors):
            self._fail(request, "bad_request", TWO_GRAPHS)
        elif isinstance(message, wire.Prompt):
            job.encoded = self._cache.get(message.image)
            if job.encoded is None:
                self._fail(request, "unknown_image", SEND_AGAIN)
                return
            job.digest = message.image
            self._prompts_left.put(job)
        elif isinstance(message, wire.Try):
            data = self._photos[message.photo % len(self._photos)]
            self._pool.submit(self._or_die, self._record, job, data)
        else:
            self._pool.submit(self._or_die, self._decode, job, payload)

    def _decode(self, job: _Job, data: bytes) -> None:
        def made() -> Image.Image | Encoded:
            job.digest = hashlib.sha256(data).hexdigest()
            kept = self._cache.get(job.digest)
            return kept or decode(data, short_side=self._short_side, limits=self._limits)

        found = self._prepared(job, made)
        if isinstance(found, Encoded):
            job.encoded = found
            self._encoded(job)
        elif found is not None:
            job.photo = found
            self._photos_left.put(job)

    def _record(self, job: _Job, data: bytes) -> None:
        # Recorded outputs belong to photos that were decoded in full.
        job.tensors = self._prepared(job, lambda: self._predictor.prepare([data], scaled=False))
        if job.tensors is not None:
            self._photos_left.put(job)

    # --- running ----------------------------------------------------------------------------------

    def _encode_all(self) -> None:
        while True:
            job = self._photos_left.get()
            if self._dropped(job.request):
                self._settle(job, None)
                continue
            with self._timed(job, self._encode):
                if job.tensors is not None:
                    job.tensors = {**job.tensors, **self._chain.run_stage(self._encode, job.tensors)}
                else:
                    assert job.photo is not None
                    # Somebody may have sent the same photo while this one waited.
                    job.encoded = self._cache.get(job.digest) or self._prompter.encode(job.photo)
                    self._cache.put(job.digest, job.encoded)
                    job.photo = None
            self._batches.append(wire.Batch(images=1, size=1, seconds=job.request.run_s))
            self._encoded(job)

    def _encoded(self, job: _Job) -> None:
        """A prompt goes on; a photo without one is done."""
        message = job.request.message
        if isinstance(message, wire.Images) and not message.options:
            self._settle(job, self._seen(job, None))
        else:
            self._prompts_left.put(job)

    def _prompt_all(self) -> None:
        while True:
            job = self._prompts_left.get()
            if self._dropped(job.request):
                self._settle(job, None)
                continue
            with self._timed(job, self._prompt):
                result = self._answered_prompt(job)
            self._settle(job, result)

    def _answered_prompt(self, job: _Job) -> Any:
        if job.tensors is not None:
            return self._chain.run_stage(self._prompt, job.tensors)
        message = job.request.message
        assert isinstance(message, (wire.Images, wire.Prompt))
        assert job.encoded is not None
        try:
            return self._seen(job, self._prompter.prompt(job.encoded, **message.options))
        except InputError as error:
            job.request.failure = ("bad_request", str(error))
        except ClaimError as error:
            print(f"vitrail: {error}", file=sys.stderr, flush=True)
            return error
        return None

    def _seen(self, job: _Job, clicked: predict.Clicked | None) -> Seen:
        assert job.encoded is not None
        return Seen(image=job.digest, size=job.encoded.size, clicked=clicked)

    def _timed(self, job: _Job, stage: str) -> _Timed:
        return _Timed(job.request, job.prepare_s, self._running, self._latencies[stage])

    # --- answering --------------------------------------------------------------------------------

    def _outcomes(self, request: Progress, results: list[Any]) -> list[Any]:
        return results


class _Timed:
    """While it is entered, an engine runs for a request on this thread."""

    def __init__(
        self, request: Progress, prepare_s: float, running: dict[int, float], latencies: deque[float]
    ) -> None:
        self._request, self._prepare_s = request, prepare_s
        self._running, self._latencies = running, latencies

    def __enter__(self) -> None:
        self._begin = self._running[threading.get_ident()] = time.monotonic()
        request = self._request
        request.wait_s = self._begin - request.arrived - self._prepare_s - request.run_s

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._begin
        del self._running[threading.get_ident()]
        self._request.run_s += seconds
        self._latencies.append(seconds * 1e3)
