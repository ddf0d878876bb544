"""An engine without files, as a remote endpoint would be: the network is elsewhere, here in artifacts.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import toy_runtime
from toy_runtime import ToyRunner

from vitrail.vocabulary import Graph, RunnerFacts, Target


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ToyRunner:
    """Nothing is read: the folder is empty."""
    assert graph.entry == ""
    assert not list(path.iterdir())
    facts = RunnerFacts(
        runtime="endpoint",
        version=np.__version__,
        precision=target.precision,
        threads=threads,
        graphs=(graph,),
    )
    return ToyRunner(facts)


probe = toy_runtime.probe
