"""Is the predicted peak memory right? Every point is predicted, then measured in a process of its own.

    python benchmarks/memory.py [--only TEXT] [--work FILE [--again]] [--save [HARDWARE]]

`POINTS` were fixed before any rule of the prediction was tuned (the table was committed before
`vitrail.profiling.memory` existed) and are not chosen by what they show. `FRESH` are other models, first
measured after the last rule was settled. With `--work` finished points are kept in FILE, and the same
command goes on where it was. Progress goes to stderr, a summary to stdout; the last stdout line is one JSON
document. Exit code 1 if fewer than 95 % of the points are within 10 %. How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1
TOLERANCE, SHARE = 0.10, 0.95
MEMORY_MIB = 10_240.0
"""At which a measuring process is ended."""
FIELDS = ("model", "implementation", "image_size", "batch_size", "precision", "attention", "training")

VIT_S, VIT_B = "vit_small_patch16_224", "vit_base_patch16_224"
SWIN_T, SWIN_B = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
SWINV2_T, CLIP = "swinv2_tiny_window8_256", "ViT-B-32"

# (model, implementation, image size, batch size, precision, attention, training)
POINTS: tuple[tuple[str, str, int, int, str, str, bool], ...] = (
    (VIT_S, "vitrail", 224, 1, "fp32", "fused", False),
    (VIT_S, "vitrail", 224, 32, "fp32", "fused", False),
    (VIT_S, "vitrail", 512, 8, "fp32", "naive", False),
    (VIT_S, "vitrail", 1024, 1, "fp32", "naive", False),
    (VIT_S, "vitrail", 1024, 4, "bf16", "auto", False),
    (VIT_B, "vitrail", 224, 1, "fp32", "auto", False),
    (VIT_B, "vitrail", 224, 8, "fp32", "auto", False),
    (VIT_B, "vitrail", 224, 8, "fp32", "naive", False),
    (VIT_B, "vitrail", 224, 32, "bf16", "auto", False),
    (VIT_B, "vitrail", 384, 8, "bf16", "fused", False),
    (VIT_B, "vitrail", 512, 2, "bf16", "naive", False),
    (VIT_B, "vitrail", 512, 4, "fp32", "naive", False),
    (VIT_B, "vitrail", 512, 4, "fp32", "fused", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "naive", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "fused", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "auto", False),
    (VIT_B, "vitrail", 1024, 1, "bf16", "fused", False),
    (VIT_B, "timm", 224, 16, "fp32", "naive", False),
    (VIT_B, "timm", 512, 4, "fp32", "fused", False),
    (SWIN_T, "vitrail", 224, 1, "fp32", "auto", False),
    (SWIN_T, "vitrail", 224, 32, "fp32", "auto", False),
    (SWIN_T, "vitrail", 224, 8, "bf16", "auto", False),
    (SWIN_T, "vitrail", 512, 8, "fp32", "auto", False),
    (SWIN_T, "vitrail", 1024, 1, "fp32", "auto", False),
    (SWIN_T, "vitrail", 1024, 4, "bf16", "auto", False),
    (SWIN_B, "vitrail", 224, 8, "fp32", "naive", False),
    (SWIN_B, "vitrail", 1024, 1, "fp32", "fused", False),
    (SWIN_B, "vitrail", 1024, 1, "fp32", "naive", False),
    (SWIN_B, "vitrail", 1024, 2, "bf16", "auto", False),
    (SWIN_T, "timm", 224, 16, "fp32", "fused", False),
    (SWIN_T, "timm", 448, 4, "fp32", "naive", False),
    (SWINV2_T, "vitrail", 256, 1, "fp32", "auto", False),
    (SWINV2_T, "vitrail", 256, 16, "fp32", "auto", False),
    (SWINV2_T, "vitrail", 512, 4, "bf16", "auto", False),
    (SWINV2_T, "vitrail", 1024, 1, "fp32", "auto", False),
    (CLIP, "vitrail", 224, 1, "fp32", "auto", False),
    (CLIP, "vitrail", 224, 32, "fp32", "auto", False),
    (CLIP, "vitrail", 448, 8, "bf16", "auto", False),
    ("convnext_tiny", "timm", 224, 1, "fp32", "auto", False),
    ("convnext_tiny", "timm", 224, 16, "fp32", "auto", False),
    ("convnext_tiny", "timm", 512, 4, "fp32", "auto", False),
    ("convnext_tiny", "timm", 1024, 1, "bf16", "auto", False),
    ("efficientnet_b0", "timm", 224, 32, "fp32", "auto", False),
    ("efficientnet_b0", "timm", 1024, 1, "fp32", "auto", False),
    ("resnet50", "timm", 224, 32, "fp32", "auto", False),
    ("resnet50", "timm", 1024, 2, "fp32", "auto", False),
    ("resnet50", "timm", 512, 4, "bf16", "auto", False),
    ("mobilenetv3_large_100", "timm", 224, 32, "fp32", "auto", False),
    ("mobilenetv3_large_100", "timm", 1024, 4, "fp32", "auto", False),
    (VIT_S, "vitrail", 224, 8, "fp32", "auto", True),
    (VIT_S, "vitrail", 224, 32, "bf16", "auto", True),
    (VIT_S, "vitrail", 512, 2, "fp32", "naive", True),
    (VIT_S, "vitrail", 512, 2, "fp32", "fused", True),
    (VIT_B, "vitrail", 224, 4, "fp32", "auto", True),
    (VIT_B, "vitrail", 224, 8, "bf16", "auto", True),
    (SWIN_T, "vitrail", 224, 8, "fp32", "auto", True),
    (SWIN_T, "vitrail", 224, 16, "bf16", "auto", True),
    (SWIN_T, "vitrail", 512, 2, "fp32", "auto", True),
    (SWINV2_T, "vitrail", 256, 4, "fp32", "auto", True),
    (CLIP, "vitrail", 224, 16, "fp32", "auto", True),
    ("convnext_tiny", "timm", 224, 8, "fp32", "auto", True),
    ("resnet50", "timm", 224, 8, "fp32", "auto", True),
    ("resnet50", "timm", 224, 16, "bf16", "auto", True),
    ("efficientnet_b0", "timm", 224, 8, "fp32", "auto", True),
)

FRESH: tuple[tuple[str, str, int, int, str, str, bool], ...] = (
    ("vit_tiny_patch16_224", "vitrail", 384, 16, "fp32", "auto", False),
    ("vit_base_patch32_224", "timm", 448, 8, "bf16", "auto", False),
    ("deit3_small_patch16_224", "vitrail", 224, 16, "fp32", "naive", False),
    ("swin_small_patch4_window7_224", "vitrail", 448, 2, "fp32", "auto", False),
    ("swinv2_tiny_window8_256", "timm", 256, 8, "fp32", "auto", False),
    ("regnety_016", "timm", 288, 8, "fp32", "auto", False),
    ("mobilevit_s", "timm", 512, 4, "fp32", "auto", False),
    ("convnextv2_nano", "timm", 384, 8, "bf16", "auto", False),
    ("resnet18", "timm", 448, 8, "fp32", "auto", False),
    ("vit_tiny_patch16_224", "vitrail", 224, 16, "fp32", "auto", True),
    ("deit3_small_patch16_224", "timm", 224, 8, "bf16", "auto", True),
    ("regnety_016", "timm", 224, 8, "fp32", "auto", True),
)


def one(point: tuple, measured: dict[str, float] | None) -> dict[str, Any]:
    """A point's figures: what is predicted, what is measured (unless it is known), how far off that is."""
    from vitrail.profiling.memory import MemorySetup, measure, predict

    setup = MemorySetup(**dict(zip(FIELDS, point, strict=True)))
    predicted = predict(setup)["predicted_mib"]
    measured = measured or measure(setup, memory_mib=MEMORY_MIB)["measured_mib"]
    loaded = measured["baseline"] + measured["load"]
    above = measured["total"] - measured["baseline"]
    return {
        **dict(zip(FIELDS, point, strict=True)),
        "predicted_mib": predicted,
        "measured_mib": measured,
        "off_total": predicted["total"] / measured["total"] - 1,
        "off_above_baseline": (predicted["total"] - predicted["baseline"]) / above - 1,
        "off_further_calls": predicted["total"] / (loaded + max(measured["run"], measured["repeated"])) - 1,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares within the tolerance and the worst, for the total, above the baseline, and for further calls."""
    found: dict[str, Any] = {"points": len(rows)}
    for key in ("off_total", "off_above_baseline", "off_further_calls"):
        worst = max(rows, key=lambda row: abs(row[key]))
        found[key] = {
            "share_within": sum(abs(row[key]) <= TOLERANCE for row in rows) / len(rows),
            "median": sorted(row[key] for row in rows)[len(rows) // 2],
            "worst": worst[key],
            "worst_point": name(worst),
        }
    return found


def name(row: dict[str, Any]) -> str:
    """A point in words."""
    mode = "training" if row["training"] else "inference"
    return " ".join(str(row[field]) for field in FIELDS[:-1]) + f" {mode}"


def line(row: dict[str, Any]) -> str:
    predicted, measured = row["predicted_mib"]["total"], row["measured_mib"]["total"]
    return (
        f"{name(row):74} {predicted:7.0f} {measured:7.0f} {row['off_total']:+7.1%} "
        f"{row['off_above_baseline']:+7.1%} {row['off_further_calls']:+7.1%}"
    )


def run(points: tuple, kept: dict[str, Any], work: Path | None, again: bool) -> list[dict[str, Any]]:
    rows = []
    for point in points:
        key = " ".join(map(str, point))
        if key not in kept or again:
            kept[key] = one(point, kept[key]["measured_mib"] if key in kept else None)
            if work is not None:
                work.write_text(json.dumps(kept, indent=1))
        rows.append(kept[key])
        print(line(kept[key]), file=sys.stderr, flush=True)
    return rows


def save(document: dict[str, Any], hardware: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    target = RESULTS / f"memory-{slug}-{document['created'][:10]}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only points whose text has it")
    parser.add_argument("--work", type=Path, metavar="FILE", help="keep finished points here")
    parser.add_argument("--again", action="store_true", help="predict again what was measured before")
    parser.add_argument("--save", nargs="?", const="this machine", metavar="HARDWARE")
    args = parser.parse_args()
    from vitrail import hardware

    kept = json.loads(args.work.read_text()) if args.work is not None and args.work.is_file() else {}
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "memory",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": hardware.one_line(hardware.facts()),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    print(f"{'predicted, measured MiB; off':>90} by total, above baseline, further calls", file=sys.stderr)
    for part, points in (("points", POINTS), ("fresh", FRESH)):
        chosen = tuple(point for point in points if args.only in " ".join(map(str, point)))
        rows[part] = run(chosen, kept, args.work, args.again)
        if rows[part]:
            document[part] = summary(rows[part])
    for part, found in rows.items():
        for key in ("off_total", "off_above_baseline", "off_further_calls") if found else ():
            figures = document[part][key]
            print(
                f"{part}: {key} within {TOLERANCE:.0%} on {figures['share_within']:.0%} of "
                f"{len(found)}, worst {figures['worst']:+.1%} ({figures['worst_point']})"
            )
    if args.save is not None:
        print(f"saved {save({**document, 'rows': rows}, args.save)}", file=sys.stderr)
    print(json.dumps(document))
    judged = document.get("points") or document.get("fresh")
    return 0 if judged and judged["off_total"]["share_within"] >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
