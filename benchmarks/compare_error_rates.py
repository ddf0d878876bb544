"""How often `vitrail compare` calls a figure moved that did not, and finds one that did, in simulation.

    python benchmarks/compare_error_rates.py --runs 200

Two selections of one variant each are taken by the real schedule on a simulated machine and compared, live
(with their calls) and as documents (figures alone). The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulated import Machine, SimulatedSubject

from vitrail import vocabulary as v
from vitrail.comparison import compare
from vitrail.document import from_document, to_json_bytes
from vitrail.judge import judge, observe
from vitrail.measure.latency import Plan, finals, screen

TOLERANCE = 0.05
SERIES: dict[str, dict[str, float]] = {
    "independent": {},
    "launches differ 1.5 %": {"launch_sigma": 0.015},
    "launches differ 3 %": {"launch_sigma": 0.03},
    "launches differ 5 %": {"launch_sigma": 0.05},
    "AR(0.9)": {"rho": 0.9},
    "outliers 4 %": {"outliers": 0.04},
    "episodes 10 %": {"episodes": 0.1},
}
"""Settings of `SimulatedSubject`."""
SHIFTS = (1.0, 1.02, 1.1, 1.2)

CANDIDATE = v.Candidate(
    name="net.a",
    architecture="net",
    family="net",
    weights=v.Weights(source="hub", reference="net", license="mit"),
    preprocess=v.Preprocess(image_size=224),
    accuracy=v.Accuracy(value=80.0, provenance="published"),
    parameters=1,
    macs=1,
)
VARIANT = v.Variant(candidate=CANDIDATE, image_size=224, runtime="openvino", precision="fp32")


def selection(
    median_ms: float, seed: int, *, launches: int = 3, slowness: float = 1.0, **series: float
) -> v.Selection:
    """A selection of one variant; `slowness` is the machine's, its reference workload included."""
    machine = Machine(seed=seed, disturbed=())
    machine.slowness = lambda: slowness  # type: ignore[method-assign]
    subject = SimulatedSubject(machine, VARIANT.name, median_ms, request_extra_ms=0, **series)  # type: ignore[arg-type]
    plan = Plan(limit_ms=10 * median_ms, launches=launches)
    seen = screen(subject, plan, clock=machine.clock)
    outcome = finals(
        [subject], plan, rng=random.Random(seed), clock=machine.clock, prior={VARIANT.name: seen.blocks}
    )[VARIANT.name]
    measurement = v.Measurement(
        variant=VARIANT.name,
        workload=v.Workload(threads=2),
        environment=v.Environment(hardware="h", engine="openvino 1", vitrail="1", photos="p"),
        facts=v.RunnerFacts(runtime="openvino", version="1", precision="fp32", threads=2, graphs=()),
        blocks=outcome.blocks,
        memory=v.Memory(peak=300.0),
        parity=None,
        load_s=1.0,
        warm_up_calls=3,
        flags=outcome.flags,
    )
    asked = v.Requirements(max_latency_ms=10 * median_ms)
    seen_by_judge = observe(VARIANT, measurement, latency_answer=outcome.latency_answer)
    return judge([seen_by_judge], asked, measurement.workload, hardware={}, shipping=False)


def recorded(selection: v.Selection) -> v.Selection:
    """The selection as its document holds it: without calls."""
    return from_document(to_json_bytes(selection), "document").selection


def share(runs: int, shift: float, live: bool, **series: float) -> tuple[float, float]:
    """(a timed figure moved, the gate at 5 % fails), in % of runs; in truth B takes `shift` times as long."""
    moved = failed = 0
    for run in range(runs):
        sides = [selection(20.0 * by, 2 * run + i, **series) for i, by in enumerate((1.0, shift))]
        found = compare(*(sides if live else map(recorded, sides)))
        moved += any(change.state in ("worse", "better") for change in found.pairs[0].changes)
        failed += bool(found.regressions(TOLERANCE))
    return 100 * moved / runs, 100 * failed / runs


def main() -> None:
    """Print a Markdown table, and the figures as one JSON document in the last line."""
    parser = argparse.ArgumentParser(description="error rates of vitrail compare, in simulation")
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    rates = {}
    print("| series | " + " | ".join(f"moved × {by:g} | gate × {by:g}" for by in SHIFTS) + " |")
    print("|---|" + "---|---|" * len(SHIFTS))
    for name, series in SERIES.items():
        rates[name] = {
            f"{by:g}": {kind: share(runs, by, kind == "live", **series) for kind in ("document", "live")}
            for by in SHIFTS
        }
        cells = [
            " / ".join(f"{seen[kind][which]:.0f}" for kind in ("document", "live"))
            for seen in rates[name].values()
            for which in (0, 1)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(json.dumps({"runs": runs, "tolerance": TOLERANCE, "moved_and_gate_percent": rates}))


if __name__ == "__main__":
    main()
