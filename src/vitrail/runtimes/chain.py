"""Several graphs of one export, run one after another: each takes what was given and what the others made.

Nothing here knows what a tensor means. Stages may differ in their rows: where one image has several prompts,
what was made of the image is repeated for each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitrail import runtimes
from vitrail.runtimes import Arrays, Runner
from vitrail.tasks import batches
from vitrail.vocabulary import Graph, RunnerFacts, Target

__all__ = ["Chain", "OnDemand", "load_graphs"]

MOST_ROWS = 16
"""Of a batch that stays open: prompts that are answered at a time."""
MOST_SIZES = 4
"""Forms of one graph that are kept loaded where the engine cannot leave sizes open."""
FIRST = 2
"""The size that is loaded at once: of a click and what closes it, or of a box."""


class Chain:
    """Loaded graphs as one runner; not thread-safe.

    Args:
        stages: by the graphs' names, in the order in which they run.
    """

    def __init__(self, stages: Mapping[str, Runner]) -> None:
        self.stages = dict(stages)
        facts = [runner.facts for runner in self.stages.values()]
        self.facts = replace(
            facts[0],
            graphs=tuple(graph for each in facts for graph in each.graphs),
            details=tuple(
                (f"{name}: {key}", value)
                for name, each in zip(self.stages, facts, strict=True)
                for key, value in each.details
            ),
        )

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs of n rows, or some of k · n -> the last stage's outputs; any n and k."""
        known, found = dict(inputs), dict[str, np.ndarray]()
        for name in self.stages:
            found = self.run_stage(name, known)
            known |= found
        return found

    def run_stage(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """One stage's outputs; of `inputs` it takes what it needs.

        Raises:
            ValueError: rows that do not go together.
        """
        runner = self.stages[name]
        (graph,) = runner.facts.graphs
        given = _level({spec.name: inputs[spec.name] for spec in graph.inputs})
        size, rows = graph.inputs[0].shape[0], len(given[graph.inputs[0].name])
        # An open batch is as large as what comes, up to what memory allows.
        step = min(rows, MOST_ROWS) if isinstance(size, str) else size
        parts = [
            {key: values[:real] for key, values in runner.run(part).items()}
            for part, real in batches(given, step)
        ]
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def close(self) -> None:
        """Free all engines."""
        for runner in self.stages.values():
            runner.close()


class OnDemand:
    """One graph whose engine cannot leave sizes open: it is loaded again for sizes that are new.

    Args:
        graph: with letters for the sizes that each call chooses.
        load: loads it with numbers for these.
    """

    def __init__(self, graph: Graph, load: Callable[[Mapping[str, int]], Runner], first: int) -> None:
        self._graph, self._load = graph, load
        self._open = runtimes.letters(graph)
        self._kept: OrderedDict[tuple[int, ...], Runner] = OrderedDict()
        loaded = self._loaded(tuple(first for _ in self._open))
        self.facts: RunnerFacts = replace(loaded.facts, graphs=(graph,))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs of any sizes that the graph's letters may have -> named outputs."""
        sizes = {
            side: count
            for spec in self._graph.inputs
            for side, count in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(side, str)
        }
        return self._loaded(tuple(sizes[letter] for letter in self._open)).run(inputs)

    def close(self) -> None:
        """Free all that is loaded."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _loaded(self, sizes: tuple[int, ...]) -> Runner:
        if sizes not in self._kept:
            while len(self._kept) >= MOST_SIZES:
                self._kept.popitem(last=False)[1].close()
            self._kept[sizes] = self._load(dict(zip(self._open, sizes, strict=True)))
        self._kept.move_to_end(sizes)
        return self._kept[sizes]


def load_graphs(
    folder: Path,
    graphs: Sequence[Graph],
    target: Target,
    *,
    sizes: Mapping[str, int],
    threads: int,
    settings: Mapping[str, str] | None = None,
) -> Runner:
    """All graphs of an export: the runner of the one, or a `Chain`; errors as `runtimes.load`.

    The first graph gets `sizes`. What follows it runs once for each prompt, of any size: its letters stay
    open, or are loaded for on demand.
    """
    first, *others = graphs
    head = runtimes.load(folder, first, target, sizes=sizes, threads=threads, settings=settings)
    if not others:
        return head
    stages: dict[str, Runner] = {first.name: head}
    try:
        for graph in others:
            stages[graph.name] = _open(folder, graph, target, threads, settings)
    except BaseException:
        for runner in stages.values():
            runner.close()
        raise
    return Chain(stages)


def _open(
    folder: Path, graph: Graph, target: Target, threads: int, settings: Mapping[str, str] | None
) -> Runner:
    def load(sizes: Mapping[str, int]) -> Runner:
        opened = tuple(letter for letter in runtimes.letters(graph) if letter not in sizes)
        return runtimes.load(
            folder, graph, target, sizes=sizes, threads=threads, settings=settings, opened=opened
        )

    if runtimes.RUNTIMES[target.runtime].open_sizes:
        return load({})
    # One at a time: a form for each number of prompts would be one too many.
    fixed = runtimes.sized(graph, {"B": 1}, opened=[x for x in runtimes.letters(graph) if x != "B"])
    return OnDemand(fixed, lambda sizes: load({"B": 1, **sizes}), first=FIRST)


def _level(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All with the rows of the longest: a row of the others stands for as many of its rows, in order."""
    most = max(len(values) for values in given.values())
    for name, values in given.items():
        if most % len(values):
            raise ValueError(f"{name} has {len(values)} rows beside {most}")
    return {
        name: values if len(values) == most else np.repeat(values, most // len(values), axis=0)
        for name, values in given.items()
    }
