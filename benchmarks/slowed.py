"""A launch whose every call takes a known share longer; truth.py injects it as a slowdown to be found.

Runs inside the measuring child, in place of `vitrail.measure.session:start` (`truth_timing.Side` puts it
there). The rest of each call is waited out in a loop, like work that the engine would do: the core stays
busy, and the share is of that very call's own duration, so noise is scaled as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vitrail import runtimes
from vitrail.measure import session
from vitrail.predict import Predictor


def start(payload: dict[str, Any]) -> session.ExportSession:
    """A session like any other whose calls, in both scopes, take `payload["slowdown"]` (a share) longer."""
    share = float(payload.pop("slowdown"))
    load = runtimes.load

    class SlowedRunner:
        def __init__(self, runner: runtimes.Runner) -> None:
            self.inner, self.facts = runner, runner.facts

        def run(self, inputs):
            return _longer(share, lambda: self.inner.run(inputs))

        def close(self) -> None:
            self.inner.close()

    class SlowedPredictor(Predictor):
        def __init__(self, runner, task) -> None:
            # A request is lengthened as a whole, so the model inside it is the unchanged one.
            super().__init__(runner.inner, task)

        def request(self, sources, **options):
            return _longer(share, lambda: super(SlowedPredictor, self).request(sources, **options))

    runtimes.load = lambda *args, **options: SlowedRunner(load(*args, **options))
    session.Predictor = SlowedPredictor
    return session.start(payload)


def _longer(share: float, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = call()
    end = begin + (time.perf_counter() - begin) * (1 + share)
    while time.perf_counter() < end:
        pass
    return result
