"""The search on recorded or invented launches, in simulated time (about 5 s)."""

from __future__ import annotations

import functools
import random
import time
from dataclasses import replace
from typing import ClassVar

import pytest
from replay import Clock, Recording, ReplayBench

from vitrail import catalog, judge
from vitrail import runtimes as engines
from vitrail.export.variants import Form, variants
from vitrail.measure.sandbox import ChildTimeout
from vitrail.report.terminal import summary
from vitrail.runtimes import RUNTIMES
from vitrail.selection import select
from vitrail.selection.prune import accuracy_ceiling, floor_ms, ruled_out
from vitrail.selection.search import Search
from vitrail.vocabulary import Memory, Requirements, RunnerFacts, SearchSettings, Workload

pytestmark = pytest.mark.slow

WORKLOAD = Workload(threads=2)
PEAKS = {"openvino": {"fp32": 250.0, "bf16": 750.0}, "onnxruntime": {"fp32": 200.0}}
MODELS = ("tf_efficientnet_lite*", "mobilenetv3_*", "resnet50.*", "vit_tiny*", "swin_tiny*", "convnext_nano*")
FACTS = RunnerFacts(runtime="x", version="1", precision="fp32", threads=2, graphs=())


def test_reading_the_images_takes_nothing_from_the_budget(monkeypatch):
    class FoundError(Exception):
        pass

    def slow(sources, workload, layout):
        time.sleep(0.5)
        return workload, None, ()

    def found(sources, context):
        raise FoundError(context.left_s())

    monkeypatch.setattr(select, "labelled_images", slow)
    monkeypatch.setattr(select, "find", found)
    with pytest.raises(FoundError) as left:
        select.select(settings=SearchSettings(budget_s=10.0))
    assert 9.7 < left.value.args[0] <= 10.0


def grid_of(seed=0, models=MODELS, efficiency=(1.5, 6.0)):
    """Invented recordings: each variant runs at some multiple of its floor, with some noise."""
    rng = random.Random(seed)
    settings = SearchSettings(models=models, runtimes=("openvino", "onnxruntime"))
    found = {}
    for variant in variants(catalog.find(models), WORKLOAD, settings):
        model = floor_ms(variant, WORKLOAD, PEAKS) * rng.uniform(*efficiency) + 0.3
        found[variant.name] = recording(model, rng, peak=100 + variant.candidate.parameters * 4 / 2**20)
    return found


def recording(model_ms, rng=None, *, peak=150.0, failure=None):
    rng = rng or random.Random(0)
    launches = tuple(
        {
            "model": [model_ms * rng.uniform(0.98, 1.03) for _ in range(40)],
            "request": [(model_ms + 5) * rng.uniform(0.98, 1.03) for _ in range(40)],
        }
        for _ in range(4)
    )
    return Recording(
        export_s=10.0,
        reference_s=4.0,
        parity_s=1.0,
        launch_s=(0.8,) * 4,
        samples=launches,
        memory=Memory(peak=peak, steady=peak, above_baseline=peak - 80),
        facts=FACTS,
        failure=failure,
    )


SHIPPING = ("openvino", "onnxruntime")


def run(grid, *, missing=(), budget_s=1e6, exhaustive=False, bench=None, runtimes=SHIPPING, **limits):
    settings = SearchSettings(models=MODELS, runtimes=runtimes, budget_s=budget_s, exhaustive=exhaustive)
    requirements = Requirements(**limits)
    clock = bench._clock if bench else Clock()
    bench = bench or ReplayBench(grid, WORKLOAD, clock, missing=missing)
    search = Search(
        requirements=requirements,
        settings=settings,
        bench=bench,
        peaks=PEAKS,
        variants=[v for v in variants(catalog.find(MODELS), WORKLOAD, settings) if v.name in grid],
        clock=clock,
    )
    selection = judge.judge(search.run(), requirements, WORKLOAD, hardware={}, notes=search.notes())
    return selection, search, bench


LIMITS = [
    {"max_latency_ms": 20.0},
    {"max_latency_ms": 60.0, "min_accuracy": 77.0},
    {"objective": "latency", "min_accuracy": 76.0},
    {"objective": "throughput", "min_accuracy": 80.0},
    {"objective": "memory", "min_accuracy": 75.0},
    {"min_throughput": 60.0},
]


@functools.cache
def exhaustive(seed, **limits):
    """What is dear to simulate and several tests compare with."""
    return run(grid_of(seed), exhaustive=True, **limits)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_an_exhaustive_search_finds(seed, limits):
    grid = grid_of(seed)
    found, _, bench = run(grid, **limits)
    full, _, everything = exhaustive(seed, **limits)
    objective = limits.get("objective", "accuracy")
    own, best = (judge.ranking.figure(each.winner.observation, objective, WORKLOAD) for each in (found, full))
    assert own == pytest.approx(best, rel=0.03)
    if objective == "accuracy":
        assert own == best
    assert len(bench.exports) <= len(everything.exports)


def test_it_stops_where_nothing_left_can_win():
    grid = grid_of()
    found, _, bench = run(grid, max_latency_ms=1000.0)
    assert found.winner.variant.candidate.name == "convnext_nano.in12k_ft_in1k"
    assert len(bench.exports) == 1
    pruned = [e for e in found.ledger if e.variant.candidate.name.startswith("resnet50")]
    assert all("cannot beat the best: at most 8" in e.reasons[0] for e in pruned)


def test_weights_not_at_hand_never_win_but_are_named():
    grid = grid_of()
    limits = {"objective": "latency", "min_accuracy": 76.0}
    best, _, _ = run(grid, **limits)
    missing = best.winner.variant.candidate.name
    found, search, _ = run(grid, missing=[missing], **limits)
    assert found.winner is not None
    assert found.winner.variant.candidate.name != missing
    wish = [e for e in found.ledger if e.would_win]
    assert [e.variant.candidate.name for e in wish] == [missing]
    assert "would win if its weights were at hand" in wish[0].reasons
    assert wish[0].observation.measurement.random_weights
    assert "weights not at hand for 1 model: not recorded" in search.notes()
    # One launch decides no limit, so under one nobody is said to win.
    limited, _, _ = run(grid, missing=[missing], max_latency_ms=30.0, **limits)
    assert not any(e.would_win for e in limited.ledger)


def sized(grid, *, missing):
    """The recordings with exports that take the longer the larger the model, and what was exported when."""
    large = {
        variant.name: Recording(
            **{**vars(grid[variant.name]), "export_s": 6.0 + variant.candidate.parameters / 5e5}
        )
        for variant in variants(catalog.find(MODELS), WORKLOAD, SearchSettings(models=MODELS))
        if variant.name in grid
    }
    return ReplayBench(large, WORKLOAD, Clock(), missing=missing)


@pytest.mark.parametrize("budget_s", [40.0, 60.0, 90.0])
def test_wishes_wait_for_what_is_at_hand_and_keep_to_the_budget(budget_s):
    """Without a hub, a few small models are at hand; the large ones are worth what is left, and no more."""
    grid = grid_of()
    names = {variant.candidate.name for variant in variants(catalog.find(MODELS), WORKLOAD, SearchSettings())}
    missing = [name for name in names if "lite" not in name]
    bench = sized(grid, missing=missing)
    found, _, _ = run(grid, bench=bench, budget_s=budget_s, max_latency_ms=100.0)
    assert bench._clock.now <= budget_s
    wished = [entry.variant for entry in found.ledger if entry.observation.random_weights]
    if wished:  # then nothing at hand that could have won was left out for want of time
        at_hand = [e for e in found.ledger if e.variant.candidate.name not in missing]
        assert not any(e.observation.pruned is None and e.status == "not measured" for e in at_hand)


def test_an_export_that_the_budget_cuts_off_is_no_failure_and_ends_with_it():
    from vitrail.measure.sandbox import ChildTimeout

    class Cut(ReplayBench):
        def export(self, variant, timeout_s):
            recording = self._recordings[variant.name]
            if recording.export_s > timeout_s:
                self._clock.now += timeout_s
                raise ChildTimeout(f"exporting timed out after {timeout_s:.0f} s")
            return super().export(variant, timeout_s)

    slow = {name: Recording(**{**vars(each), "export_s": 100.0}) for name, each in grid_of().items()}
    bench = Cut(slow, WORKLOAD, Clock())
    found, _, _ = run(slow, bench=bench, budget_s=60.0, max_latency_ms=100.0)
    assert bench._clock.now == 60.0
    assert found.selected is None
    assert not any(entry.observation.failure for entry in found.ledger)
    assert any("exporting timed out" in note and "raise --budget" in note for note in found.notes)


def test_what_cannot_win_prunes_nothing_that_could():
    """A model timed with random weights says nothing about others: no reason compares with it."""
    grid = grid_of()
    names = sorted({name.partition("@")[0] for name in grid})
    missing = [name for name in names if "lite" not in name]
    found, _, _ = run(grid, missing=missing, max_latency_ms=1000.0)
    assert any(e.observation.measurement and e.observation.measurement.random_weights for e in found.ledger)
    for entry in found.ledger:
        for name in missing:
            assert not any(f"{name}@" in reason for reason in entry.reasons), entry.reasons
    unseen = [
        e for e in found.ledger if e.variant.candidate.name in missing and not e.observation.measurement
    ]
    assert any(entry.reasons == ("its weights are not at hand",) for entry in unseen)


def test_no_budget_is_advised_for_what_lacks_its_weights():
    found, _, _ = run(
        grid_of(), missing=sorted({name.partition("@")[0] for name in grid_of()}), max_latency_ms=60.0
    )
    lacking = [entry for entry in found.ledger if not entry.observation.weights_at_hand]
    assert lacking
    assert not any("--budget" in reason for entry in lacking for reason in entry.reasons)
    first, second = summary(found).splitlines()[:2]
    assert first == "NOTHING    is selected: of no model the weights are at hand"
    assert "models: not recorded" in second


def test_a_failed_export_is_a_reason_and_not_the_end():
    grid = grid_of()
    best, _, _ = run(grid, max_latency_ms=30.0)
    broken = {
        name: recording(1.0, failure="exporting crashed (SIGSEGV)")
        for name in grid
        if name.startswith(best.winner.variant.candidate.name)
    }
    found, _, _ = run({**grid, **broken}, max_latency_ms=30.0)
    assert found.winner is not None
    assert found.winner.variant.name not in broken
    lost = [e for e in found.ledger if e.variant.name in broken]
    assert all(e.status == "rejected" for e in lost)
    assert any(e.reasons == ("exporting crashed (SIGSEGV)",) for e in lost)


def test_nothing_fits_gives_the_nearest():
    found, _, _ = run(grid_of(), max_latency_ms=5.5, min_accuracy=76.0)
    assert found.selected is None
    assert found.nearest


def test_a_spent_budget_leaves_the_rest_unmeasured_and_says_so():
    found, search, _ = run(grid_of(), budget_s=25.0, max_latency_ms=15.0)
    unmeasured = [e for e in found.ledger if e.observation.measurement is None and not e.observation.pruned]
    assert unmeasured
    assert all(e.status in ("not measured", "rejected") for e in unmeasured)
    assert all(len(e.reasons) == 1 for e in unmeasured)
    assert any("within the budget" in note for note in search.notes())


def test_with_nothing_in_hand_a_late_try_is_made():
    """A first export that may come too late for its finals loses nothing, and gives a provisional best."""
    found, search, bench = run(grid_of(), budget_s=12.0, max_latency_ms=1000.0)
    assert len(bench.exports) == 1
    assert found.selected is None
    assert found.provisional is not None
    assert any("looked best in its first launch" in note for note in search.notes())


def test_a_contender_that_fails_its_finals_makes_room_for_the_next():
    grid = grid_of(models=("tf_efficientnet_lite0*", "tf_efficientnet_lite2*"))
    name = "tf_efficientnet_lite2.pypi@260 openvino fp32"
    fast, slow = recording(5.0), recording(40.0)
    for other in grid:
        if "lite2" in other:
            grid[other] = recording(60.0)
    # Fast in the launch that is screened, slow in every later one.
    grid[name] = Recording(
        **{**vars(fast), "samples": (slow.samples[0], fast.samples[0], slow.samples[1], slow.samples[2])}
    )
    found, _, _ = run(grid, max_latency_ms=20.0)
    assert found.winner is not None
    assert "lite0" in found.winner.variant.name
    lost = next(e for e in found.ledger if e.variant.name == name)
    assert lost.status in ("rejected", "undecided", "not measured")


def test_a_second_run_repeats_nothing_that_was_finished():
    grid = grid_of()
    found, _, bench = run(grid, max_latency_ms=30.0)
    before, exports = bench._clock.now, list(bench.exports)
    again, _, _ = run(grid, bench=bench, max_latency_ms=30.0)
    assert again.selected == found.selected
    assert bench.exports == exports
    assert bench._clock.now == before


def test_floors_prune_only_beyond_twice_the_limit():
    settings = SearchSettings(models=("swin_tiny*",), runtimes=("openvino",), precisions=("fp32",))
    (variant,) = variants(catalog.find(settings.models), WORKLOAD, settings)
    floor = floor_ms(variant, WORKLOAD, PEAKS)
    assert floor == pytest.approx(2 * variant.candidate.macs / 250e9 * 1e3)
    barely, clearly = floor / 2 * 1.01, floor / 2 * 0.99
    assert ruled_out(variant, Requirements(max_latency_ms=barely), WORKLOAD, PEAKS, 15) is None
    reason = ruled_out(variant, Requirements(max_latency_ms=clearly), WORKLOAD, PEAKS, 15)
    assert reason is not None
    assert reason.startswith("latency:")
    assert ruled_out(variant, Requirements(max_latency_ms=clearly), WORKLOAD, {}, 15) is None


def test_a_figure_belongs_to_its_resolution():
    settings = SearchSettings(models=("resnet50.a1*",), runtimes=("openvino",), precisions=("fp32",))
    (variant,) = variants(catalog.find(settings.models), Workload(image_size=160), settings)
    reason = ruled_out(variant, Requirements(min_accuracy=10.0), WORKLOAD, PEAKS, 15)
    assert "resolution" in reason
    assert accuracy_ceiling(variant, 15) is None


def test_lower_precision_cannot_tie_with_fp32_of_the_same_model():
    grid = grid_of(models=("resnet50.a1*",))
    found, _, _ = run(grid, max_latency_ms=500.0)
    assert found.winner is not None
    lossy = [e for e in found.ledger if e.variant.precision == "bf16"]
    assert all("cannot beat the best" in e.reasons[0] for e in lossy)


# --- stopping at any time -------------------------------------------------------------------------


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("budget_s", [60.0, 120.0, 600.0])
def test_a_first_winner_is_confirmed_early_and_only_ever_replaced_by_a_better_one(budget_s, limits):
    grid = grid_of(seed=1)
    found, search, _ = run(grid, budget_s=budget_s, **limits)
    full, _, _ = exhaustive(1, **limits)
    # Before the first contender an export and one launch are needed (about 18 s), and another candidate may
    # have to be tried first; what leads after a third of the budget has its finals before the next export.
    assert search.first_winner_s is not None
    assert search.first_winner_s <= max(budget_s / 3, 30.0) + 20.0
    assert found.winner is not None
    if budget_s == 600.0:
        objective = limits.get("objective", "accuracy")
        own, best = (judge.ranking.figure(e.winner.observation, objective, WORKLOAD) for e in (found, full))
        assert own == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_interrupted_the_best_that_was_confirmed_stands(after):
    """Ctrl-C may come at any step; what was confirmed until then is selected, and nothing else."""
    grid = grid_of(seed=1)
    limits = {"objective": "latency", "min_accuracy": 76.0}

    class Interrupting(ReplayBench):
        steps = 0

        def record(self, variant, measurement):
            super().record(variant, measurement)
            self.steps += 1
            if self.steps > after:
                raise KeyboardInterrupt

    bench = Interrupting(grid, WORKLOAD, Clock())
    found, search, _ = run(grid, bench=bench, **limits)
    confirmed = [trial.variant.name for trial in search.trials.values() if trial.confirmed and trial.outcome]
    if found.selected is None:
        assert search.first_winner_s is None
        assert search.interrupted
    else:
        assert found.selected in confirmed
    assert search.interrupted == any("interrupted" in note for note in found.notes)


def test_the_budget_alone_does_not_make_a_slow_reference_a_failure():
    """A reference that the budget cuts off leaves its model undecided, and the note says what to raise."""
    from vitrail.measure.sandbox import ChildTimeout

    class Slow(ReplayBench):
        def parity(self, subject, left_s):
            self._clock.now += max(left_s, 0.0)
            raise ChildTimeout(f"the fp32 reference timed out after {left_s:.0f} s")

    grid = grid_of()
    found, _, _ = run(grid, bench=Slow(grid, WORKLOAD, Clock()), budget_s=60.0, max_latency_ms=1000.0)
    assert found.selected is None
    assert not any(entry.observation.failure for entry in found.ledger)
    assert any("the fp32 reference timed out" in note and "raise --budget" in note for note in found.notes)


def with_references(grid):
    """The grid, with recordings of each candidate in every reference."""
    return grid | {
        replace(variant, runtime=name, precision=precision).name: recording(30.0)
        for variant in variants(catalog.find(MODELS), WORKLOAD, SearchSettings(runtimes=("openvino",)))
        for name, engine in RUNTIMES.items()
        if engine.reference
        for precision in engine.on("cpu")
    }


@pytest.mark.parametrize(
    ("runtimes", "expected"),
    [
        ((), ["pytorch bf16", "pytorch fp32"]),
        (SHIPPING, []),
        ((*SHIPPING, "pytorch-amp"), ["pytorch-amp bf16"]),
        ((*SHIPPING, "pytorch-compiled"), ["pytorch-compiled bf16", "pytorch-compiled fp32"]),
        ((*SHIPPING, "pytorch-aot"), ["pytorch-aot bf16", "pytorch-aot fp32"]),
    ],
)
def test_references_that_compile_are_measured_where_they_are_named(runtimes, expected):
    found, _, _ = run(with_references(grid_of()), runtimes=runtimes, max_latency_ms=1000.0)
    measured = [entry.variant for entry in found.ledger if entry.status == "reference"]
    assert sorted(f"{variant.runtime} {variant.precision}" for variant in measured) == expected
    assert {variant.candidate.name for variant in measured} <= {found.winner.variant.candidate.name}


def test_a_named_reference_that_the_budget_does_not_reach_is_noted():
    grid = with_references(grid_of())
    named = (*SHIPPING, "pytorch", "pytorch-compiled")
    found, _, _ = run(grid, runtimes=named, budget_s=70.0, max_latency_ms=1000.0)
    assert found.selected is not None
    notes = [note for note in found.notes if "pytorch-compiled" in note]
    assert len(notes) == 2
    assert all("too little of the budget was left: raise --budget" in note for note in notes)
    assert any(entry.variant.runtime == "pytorch" for entry in found.ledger)


def test_a_reference_that_hangs_is_a_failure_and_others_go_on():
    from vitrail.measure.sandbox import ChildTimeout

    class Hanging(ReplayBench):
        def parity(self, subject, left_s):
            if subject.variant.candidate.name.startswith("convnext"):
                raise ChildTimeout("the fp32 reference timed out after 60 s")
            return super().parity(subject, left_s)

    grid = grid_of()
    found, _, _ = run(grid, bench=Hanging(grid, WORKLOAD, Clock()), max_latency_ms=1000.0)
    assert found.winner is not None
    failed = [e for e in found.ledger if e.observation.failure]
    assert {e.variant.candidate.architecture for e in failed} == {"convnext_nano"}


def test_what_was_timed_on_a_busy_machine_says_so():
    from vitrail.measure.quiet import BusyReading

    grid = grid_of()
    settings = SearchSettings(models=MODELS, runtimes=("openvino",), budget_s=400.0)
    clock = Clock()
    waited = []

    def wait(seconds):
        waited.append(seconds)
        clock.now += seconds
        return BusyReading(busy=1.2, processors=2)

    search = Search(
        requirements=Requirements(max_latency_ms=1000.0),
        settings=settings,
        bench=ReplayBench(grid, WORKLOAD, clock),
        peaks=PEAKS,
        variants=[v for v in variants(catalog.find(MODELS), WORKLOAD, settings) if v.name in grid],
        clock=clock,
        wait_until_quiet=wait,
    )
    found = judge.judge(search.run(), search.requirements, WORKLOAD, hardware={})
    measurement = found.winner.observation.measurement
    assert "noise: other processes take 1.2 of 2 processors before it was timed" in measurement.flags
    assert waited[0] == 10.0
    assert sum(waited) == pytest.approx(10.0)  # patience is spent once, not before each launch


def searched_in_noise(readings, **limits):
    """A search whose machine is as busy as the readings say, one for each wait; the last stays."""
    from vitrail.measure.quiet import BusyReading

    grid = grid_of()
    settings = SearchSettings(
        models=("resnet50.*",), runtimes=("openvino",), precisions=("fp32",), budget_s=400.0
    )
    clock = Clock()
    bench = ReplayBench(grid, WORKLOAD, clock)
    said = []

    def wait(seconds):
        return BusyReading(busy=readings.pop(0) if len(readings) > 1 else readings[0], processors=2)

    search = Search(
        requirements=Requirements(**limits),
        settings=settings,
        bench=bench,
        peaks=PEAKS,
        variants=variants(catalog.find(("resnet50.*",)), WORKLOAD, settings)[:1],
        doing=lambda text, left: said.append(text),
        clock=clock,
        wait_until_quiet=wait,
    )
    found = judge.judge(search.run(), search.requirements, WORKLOAD, hardware={}, notes=search.notes())
    return found, search, bench, [text for text in said if text.startswith("timing")]


def test_what_fails_on_a_busy_machine_is_timed_once_more():
    _, search, bench, timed = searched_in_noise([1.5, 0.0], max_latency_ms=40.0)
    (trial,) = search.trials.values()
    assert trial.outcome.answer == "fail"
    assert len(timed) == 2
    assert trial.measurement.flags == ()
    assert not any("other processes" in note for note in search.notes())
    # A failure of a quiet machine is taken up again; nothing is timed anew.
    (name,) = bench.records
    assert not any(flag.startswith("noise") for flag in bench.records[name].flags)


def test_a_failure_that_stays_noisy_says_so_and_is_not_taken_up_again():
    found, search, bench, timed = searched_in_noise([1.5], max_latency_ms=40.0)
    assert len(timed) == 2
    assert any("missed its limits while other processes" in note for note in found.notes)
    (trial,) = search.trials.values()
    begin = len(bench.records)
    again = Search(
        requirements=search.requirements,
        settings=search.settings,
        bench=bench,
        peaks=PEAKS,
        variants=search.variants,
        clock=bench._clock,
    )
    again.run()
    (second,) = again.trials.values()
    assert len(bench.records) == begin
    assert second.measurement.flags == ()  # timed anew, on a machine that nobody watches
    assert trial.measurement.flags != ()


def test_what_passes_on_a_busy_machine_is_not_timed_again_by_screening():
    _, _, _, timed = searched_in_noise([1.5], max_latency_ms=1000.0)
    assert len(timed) == 1


def test_a_graph_with_nothing_to_rewrite_is_asked_for_once():
    """All engines and precisions of one model and the same passes share the answer."""
    settings = SearchSettings(models=("resnet50.*",), runtimes=SHIPPING)
    everything = variants(
        catalog.find(settings.models), WORKLOAD, settings, forms=(Form(), Form(passes=("uint8",)))
    )
    grid = {
        variant.name: replace(recording(20.0), nothing="nothing to do" if variant.passes else None)
        for variant in everything
    }

    class Asked(ReplayBench):
        asked: ClassVar[list[str]] = []

        def export(self, variant, timeout_s):
            self.asked.append(variant.name)
            return super().export(variant, timeout_s)

    bench = Asked(grid, WORKLOAD, Clock())
    search = Search(
        requirements=Requirements(objective="latency"),
        settings=replace(settings, exhaustive=True, budget_s=1e6),
        bench=bench,
        peaks=PEAKS,
        variants=everything,
        clock=bench._clock,
    )
    found = judge.judge(search.run(), search.requirements, WORKLOAD, hardware={})
    models = {variant.candidate.name for variant in everything}
    assert sum("uint8" in name for name in bench.asked) == len(models)
    rewritten = [entry for entry in found.ledger if entry.variant.passes]
    assert len(rewritten) == len(everything) / 2
    assert all(entry.reasons == ("nothing to do",) for entry in rewritten)


# --- engines that take long to build --------------------------------------------------------------


class Lowering(ReplayBench):
    """Building for ExecuTorch takes its time, beyond the export that the engines share."""

    seconds = 40.0

    def __init__(self, *args):
        super().__init__(*args)
        self.begun = []
        self.built = set()

    def exported(self, variant):
        ready = super().exported(variant)
        return ready and (variant.runtime != "executorch" or variant.name in self.built)

    def export(self, variant, timeout_s):
        begin = self._clock.now
        export = super().export(variant, timeout_s)
        if variant.runtime != "executorch" or variant.name in self.built:
            return export
        self.begun.append(variant.name)
        left_s = timeout_s - (self._clock.now - begin)
        self._clock.now += min(self.seconds, left_s)
        if self.seconds > left_s:
            raise ChildTimeout(f"building timed out after {timeout_s:.0f} s")
        self.built.add(variant.name)
        return replace(export, built_s=self.seconds)


@pytest.fixture
def lowered(monkeypatch):
    """Runs a search among OpenVINO, where the grid has it, and ExecuTorch, which is the fastest."""
    real = engines.version
    monkeypatch.setattr(engines, "version", lambda name: "1.5.1" if name == "executorch" else real(name))

    def searched(budget_s, *, seconds=40.0, names=("openvino", "executorch"), **limits):
        grid = grid_of()
        asked = SearchSettings(models=MODELS, runtimes=("executorch",), precisions=("fp32",))
        for variant in variants(catalog.find(MODELS), WORKLOAD, asked):
            grid[variant.name] = recording(1.0)
        grid = {name: each for name, each in grid.items() if any(runtime in name for runtime in names)}
        bench = Lowering(grid, WORKLOAD, Clock())
        bench.seconds = seconds
        found, search, _ = run(grid, bench=bench, budget_s=budget_s, runtimes=names, **limits)
        return found, search, bench

    return searched


def reasons_of(found, runtime):
    return [entry.observation.pruned or "" for entry in found.ledger if entry.variant.runtime == runtime]


def test_a_short_budget_is_not_spent_on_one_lowering(lowered):
    found, search, bench = lowered(70.0, objective="latency", min_accuracy=70.0)
    assert found.winner.variant.runtime == "openvino"
    assert bench.begun == []
    assert "too little of the budget was left: raise --budget" in reasons_of(found, "executorch")
    assert search.clock() <= search.deadline
    found, _, bench = lowered(1000.0, objective="latency", min_accuracy=70.0)
    assert found.winner.variant.runtime == "executorch"
    assert bench.begun


def test_what_is_lowered_waits_for_a_first_winner(lowered):
    _, search, bench = lowered(1000.0, max_latency_ms=1000.0)
    alone, first, _ = lowered(1000.0, max_latency_ms=1000.0, names=("openvino",))
    assert search.first_winner_s == first.first_winner_s
    assert bench.begun
    assert alone.winner is not None


def test_what_a_lowering_took_is_expected_of_the_next(lowered):
    """The first takes longer than the engine's row says, so there is no time for a second one."""
    found, _, bench = lowered(260.0, seconds=150.0, names=("executorch",), exhaustive=True)
    assert len(bench.begun) == 1
    assert found.winner.variant.name == bench.begun[0]
    assert "too little of the budget was left: raise --budget" in reasons_of(found, "executorch")


def test_a_lowering_that_cannot_come_in_time_is_not_begun(lowered):
    found, _, bench = lowered(30.0, names=("executorch",), max_latency_ms=1000.0)
    assert found.winner is None
    assert bench.begun == []
    assert set(reasons_of(found, "executorch")) == {"too little of the budget was left: raise --budget"}


def test_int8_that_cannot_be_held_to_a_drop_says_so_before_anything_is_built(monkeypatch):
    real = engines.version
    monkeypatch.setattr(engines, "version", lambda name: "1.5.1" if name == "executorch" else real(name))
    named = ("openvino", "executorch")
    settings = SearchSettings(models=MODELS, runtimes=named, precisions=("int8",), max_drop=1.0)
    found = variants(catalog.find(MODELS), WORKLOAD, settings, int8=True)
    grid = {variant.name: recording(5.0) for variant in found}
    bench = Lowering(grid, WORKLOAD, Clock())
    search = Search(
        requirements=Requirements(max_latency_ms=100.0),
        settings=settings,
        bench=bench,
        peaks=PEAKS,
        variants=found,
        clock=bench._clock,
    )
    judged = judge.judge(search.run(), search.requirements, WORKLOAD, hardware={})
    said = "ExecuTorch keeps no layers of int8 in higher precision: leave --max-drop out"
    assert set(reasons_of(judged, "executorch")) == {said}
    assert said not in reasons_of(judged, "openvino")
    assert bench.begun == []
