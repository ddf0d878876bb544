"""The search on a part of what was recorded, and of what is simulated: what it finds and gives up."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from selection import SETS, _objective_regret, _regret, false_prunes, search
from selection_grid import graph_of, read_grid
from selection_simulated import invented

pytestmark = pytest.mark.slow

RECORDED = (
    Path(__file__).parents[1] / "benchmarks" / "results" / "forms-grid-intel-amx-2cores-2026-11-28.jsonl"
)
ASKED = ("40 ms", "fastest from 75 %", "most images/s from 80 %")


@functools.cache
def part(name, seed, models=4):
    """Some models of a grid, with all their variants."""
    grid = read_grid(RECORDED) if name == "recorded" else invented(seed)
    names = sorted({variant.candidate.name for variant in grid.variants})
    chosen = set(random.Random(seed).sample(names, models))
    kept = tuple(variant for variant in grid.variants if variant.candidate.name in chosen)
    return replace(grid, variants=kept)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(("name", "seed"), [("recorded", 0), ("simulated", 1)])
def test_what_is_given_up_unmeasured_could_not_have_won(name, seed, asked):
    grid, one = part(name, seed), next(each for each in SETS if each["name"] == asked)
    seconds, selection, _, looked = search(grid, one)
    full_seconds, full, _, everything = search(grid, one, exhaustive=True)
    measured = [sum(t.measurement is not None for t in s.trials.values()) for s in (looked, everything)]
    assert false_prunes(grid, one, selection, full) == []
    assert _regret(selection, full, "accuracy") == 0.0
    assert _objective_regret(selection, full) <= 2.0
    assert measured[0] <= measured[1]
    assert seconds <= full_seconds


def test_a_simulated_grid_is_as_large_as_the_catalog_makes_it():
    grid = invented(0)
    assert len(grid.variants) >= 300
    assert len({graph_of(variant) for variant in grid.variants}) >= 4
    assert {variant.precision for variant in grid.variants} == {"fp32", "bf16", "int8"}
    assert invented(0).recordings == grid.recordings
