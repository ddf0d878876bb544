"""Section `panel`: our best exact form against the best of three peers, for many models in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import optimize_figures as figures
import optimize_forms as forms
from optimize_race import Task, race

MODELS = (
    "tf_efficientnet_lite0",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "efficientvit_b1",
    "edgenext_small",
    "fastvit_t8",
    "regnety_016",
    "mobilevit_s",
    "resnet18",
    "vit_tiny_patch16_224",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "tf_efficientnetv2_s",
    "vit_base_patch16_224",
    "swin_base_patch4_window7_224",
)
PEERS = ("torch.compile", "onnxruntime", "openvino")
AIM, LEAST = 1.1, 1.0


def task(name: str, batch: int, kitchen: forms.Kitchen, seconds: float) -> Task:
    """What is timed for one model, its files made if they are missing."""
    which = forms.model(name, kitchen.work)
    found = [form for _, form in kitchen.ours(which, batch, ("fp32",))] + kitchen.peers(which, batch)
    return Task(
        architecture=name,
        weights=which.weights,
        inputs=str(forms.inputs(which.candidate.preprocess, batch, kitchen.work)),
        threads=kitchen.threads,
        forms=found,
        seconds=seconds,
    )


def measure(name: str, batch: int, kitchen: forms.Kitchen, seconds: float) -> dict[str, Any]:
    """One model at one batch size: what was chosen, its times, and ratios of peers over ours."""
    log = kitchen.work / "logs" / f"panel-{name}-b{batch}.txt"
    found = race(task(name, batch, kitchen, seconds), log)
    chosen, blocks = found["chosen"], found["blocks_ms"]
    ours = blocks[chosen["vitrail"]]
    peers = [peer for peer in PEERS if peer in chosen]
    # The best peer too is chosen on other rounds than those that time it.
    screened = {row["name"]: row.get("screened_ms") for row in found["forms"]}
    choosing = {peer: found["choosing_ms"].get(chosen[peer], screened[chosen[peer]]) for peer in peers}
    ratios = {peer: figures.ratio(blocks[chosen[peer]], ours) for peer in peers}
    best = min(peers, key=lambda peer: choosing[peer])
    lowest = min(peers, key=lambda peer: ratios[peer]["ratio"])
    return {**found, "ratios": ratios, "best_peer": best, "best": ratios[best], "lowest": ratios[lowest]}


def line(row: dict[str, Any]) -> str:
    """For the terminal."""
    best = row["best"]
    interval = f"[{best['low']:.3f}, {best['high']:.3f}]"
    return (
        f"{row['model']:<30} batch {row['batch']}: {best['ratio']:.3f} {interval} "
        f"of {row['best_peer']}'s speed with {row['chosen']['vitrail']}"
    )


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By batch size: geometric mean and lowest of the ratios against the best peer."""
    found = []
    for batch in sorted({row["batch"] for row in rows}):
        those = [row for row in rows if row["batch"] == batch]
        ratios = {row["model"]: row["best"]["ratio"] for row in those}
        lowest = min(ratios, key=lambda name: ratios[name])
        mean = figures.geometric_mean(list(ratios.values()))
        found.append(
            {
                "batch": batch,
                "models": len(those),
                "geometric_mean": mean,
                "geometric_mean_of_lowest": figures.geometric_mean([row["lowest"]["ratio"] for row in those]),
                "lowest": ratios[lowest],
                "lowest_model": lowest,
                "surely_slower": [row["model"] for row in those if row["best"]["high"] < LEAST],
                "met": mean >= AIM and ratios[lowest] >= LEAST,
            }
        )
    return found


def prepare(name: str, batch: int, kitchen: forms.Kitchen) -> None:
    """Make every file that is missing, and let torch.compile fill its cache once."""
    made = task(name, batch, kitchen, 0.0)
    filled = kitchen.work / "inductor" / f"{name}-b{batch}.filled"
    if not filled.is_file():
        compiled = [form for form in made.forms if form.kind == "compile"]
        log = kitchen.work / "logs" / f"prepare-{name}-b{batch}.txt"
        race(msgspec.structs.replace(made, forms=compiled, rounds=0), log)
        filled.touch()
