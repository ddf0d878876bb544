"""Section `int8`: ViT-B/16 and Swin-B in lower precisions, beside eager fp32, peers and peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optimize_figures as figures
import optimize_forms as forms
import optimize_peers as peers
from optimize_race import Form, Task, race

from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch
from vitrail.measure import peaks
from vitrail.runtimes import RUNTIMES

MODELS = ("vit_base_patch16_224", "swin_base_patch4_window7_224")
EAGER, BASE = "eager fp32", "openvino fp32"
PEER_PRECISION = {"nncf.quantize on OpenVINO's IR": "int8", "optimum-intel": "int8"}


def task(
    name: str, batch: int, kitchen: forms.Kitchen, seconds: float, packages: Path | None
) -> tuple[Task, list[dict[str, str]]]:
    """What is timed for one model, and the peers that take no part with their reasons."""
    which = forms.model(name, kitchen.work)
    found = [Form(name="timm, eager", group=EAGER, kind="eager")]
    for variant, form in kitchen.ours(which, batch, ("fp32", "bf16", "int8")):
        group = f"{variant.runtime} {variant.precision}"
        found.append(msgspec.structs.replace(form, group=group))
    plain = kitchen.peers(which, batch)
    assert kitchen.exports.calibration is not None
    photos = [decode(path) for path in kitchen.exports.calibration.photos]
    images = prepare_batch(photos, which.candidate.preprocess)
    made = [peers.nncf_ir(which, Path(plain[-1].path), images, kitchen.work)]
    if packages is not None:
        made.append(peers.optimum(which, images, kitchen.work, packages))
    absent = [each for each in made if isinstance(each, dict)]
    found += [each for each in made if isinstance(each, Form)]
    return (
        Task(
            architecture=name,
            weights=which.weights,
            inputs=str(forms.inputs(which.candidate.preprocess, batch, kitchen.work)),
            threads=kitchen.threads,
            forms=found,
            seconds=seconds,
        ),
        absent,
    )


def measure(
    name: str, batch: int, kitchen: forms.Kitchen, seconds: float, packages: Path | None
) -> dict[str, Any]:
    """One model at one batch size: each group's quickest form, ratios and shares of the peaks."""
    made, absent = task(name, batch, kitchen, seconds, packages)
    logs = kitchen.work / "logs"
    found = race(made, logs / f"int8-{name}-b{batch}.txt")
    others = None
    if packages is not None:
        alone = msgspec.structs.replace(
            made, forms=[made.forms[0], peers.ZENTORCH], peers=[str(packages / "zentorch")]
        )
        others = _beside_eager(race(alone, logs / f"zentorch-{name}-b{batch}.txt"))
    operations = 2.0 * forms.model(name, kitchen.work).macs * batch
    gflops = machine_peaks(kitchen.threads)
    rows = {}
    for group, chosen in found["chosen"].items():
        blocks = found["blocks_ms"][chosen]
        median = float(np.median(blocks))
        achieved = operations / median / 1e6
        engine, _, precision = group.partition(" ")
        engine, precision = (
            (engine, precision) if engine in RUNTIMES else ("openvino", PEER_PRECISION.get(group))
        )
        peak = gflops.get(engine, {}).get(precision) if group != EAGER else None
        rows[group] = {
            "form": chosen,
            "median_ms": median,
            "gops": achieved,
            "share_of_peak": achieved / peak if peak else None,
            **{
                f"over_{other.replace(' ', '_')}": figures.ratio(
                    found["blocks_ms"][found["chosen"][other]], blocks
                )
                for other in (EAGER, BASE)
                if other in found["chosen"]
            },
        }
    return {**found, "groups": rows, "absent": absent, "zentorch": others, "peaks_gflops": gflops}


def _beside_eager(found: dict[str, Any]) -> dict[str, Any]:
    """zentorch against eager in the same process, or why not."""
    blocks, (eager, other) = found["blocks_ms"], found["forms"]
    if "refused" in other:
        return dict(other)
    return {**other, "over_eager_fp32": figures.ratio(blocks[eager["name"]], blocks[other["name"]])}


def machine_peaks(threads: int) -> dict[str, dict[str, float]]:
    """Matrix products of each engine and precision in GFLOP/s, measured once a process."""
    if threads not in _PEAKS:
        _PEAKS[threads] = peaks.peaks(threads, "cpu")
    return _PEAKS[threads]


_PEAKS: dict[int, dict[str, dict[str, float]]] = {}


def line(row: dict[str, Any]) -> str:
    """For the terminal: a line for each group."""
    lines = [f"{row['model']} batch {row['batch']}"]
    for group, seen in row["groups"].items():
        eager, share = seen.get("over_eager_fp32"), seen["share_of_peak"]
        times = f"{eager['ratio']:6.2f} × eager" if eager else ""
        of_peak = f"{100 * share:5.1f} % of peak" if share else ""
        lines.append(f"  {group:<32} {seen['median_ms']:8.1f} ms {times} {seen['gops']:8.0f} GOP/s {of_peak}")
    if beside := row["zentorch"]:
        said = beside.get("refused") or f"{beside['over_eager_fp32']['ratio']:.2f} × eager"
        lines.append(f"  {beside['name']:<32} {said}")
    lines += [f"  {each['name']:<32} takes no part: {each['refused']}" for each in row["absent"]]
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """int8 operations per second of Swin-B over ViT-B's, by batch size."""
    found = []
    for batch in sorted({row["batch"] for row in rows}):
        gops = {row["model"]: row["groups"]["openvino int8"]["gops"] for row in rows if row["batch"] == batch}
        if set(MODELS) <= set(gops):
            found.append({"batch": batch, "swin_over_vit_int8_operations": gops[MODELS[1]] / gops[MODELS[0]]})
    return found
