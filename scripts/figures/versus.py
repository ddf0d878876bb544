"""How ViT-B and Swin-B grow with the image, drawn from a committed result of benchmarks/swin_vs_vit.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.canvas import BLUE, FAINT, INK, MUTED, ORANGE, RED, Canvas

__all__ = ["RESULTS", "growth", "latest", "table"]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TICKS = (1, 2, 5)


@dataclass(frozen=True)
class Series:
    """One line: (image side in pixels, value) of each point, and those that were predicted, not measured."""

    words: str
    colour: str
    points: list[tuple[int, float]]
    predicted: list[tuple[int, float]]


def latest() -> dict[str, Any] | None:
    """The newest committed full result, or None if there is none."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("swin-vs-vit-*.json")]
    whole: list[dict[str, Any]] = [document for document in documents if not document["quick"]]
    return max(whole, key=lambda document: str(document["created"]), default=None)


def growth(document: dict[str, Any]) -> Canvas:
    """Two panels, time of one image and memory above the loaded model, both scales logarithmic."""
    cpu = document["hardware"]["cpu"]
    canvas = Canvas(900, 440, "Time and memory of ViT-B and Swin-B from 224 to 1536 pixels")
    panels = (
        ("time of one image, seconds", "median_ms", 1e-3),
        ("memory above the loaded model, MiB", "run_mib", 1.0),
    )
    for column, (words, field, unit) in enumerate(panels):
        lines = _lines(document, field, unit)
        _panel(canvas, 70 + column * 440, 60, words, lines)
    for number, line in enumerate(_lines(document, "run_mib", 1.0)):
        x = 70 + number * 270
        canvas.path([(x, 402), (x + 24, 402)], stroke=line.colour, thick=2.5)
        canvas.text(x + 32, 406, line.words, size=12)
    canvas.text(
        70,
        428,
        f"PyTorch eager, fp32, batch 1; {cpu['model'] or cpu['architecture']}, {cpu['usable_cores']} cores, "
        f"{document['created'][:10]}. Hollow: predicted.",
        size=11,
        colour=MUTED,
    )
    return canvas


def table(document: dict[str, Any]) -> str:
    """The plot's image and the comparison in numbers, as Markdown."""
    models = list(document["models"])
    cpu = document["hardware"]["cpu"]
    rows = [
        ("parameters, M", [f"{document['models'][m]['parameters'] / 1e6:.1f}" for m in models]),
        ("GMACs at 224 px", [f"{document['models'][m]['macs_224'] / 1e9:.1f}" for m in models]),
        ("top-1 as published, %", [_published(document["models"][m]["published"]) for m in models]),
    ]
    groups: dict[str, dict[str, float]] = {}
    for each in document["throughput"]:
        words = f"images/s at 224 px, batch {each['batch']}, {each['runtime']} {each['precision']}"
        groups.setdefault(words, {})[each["model"]] = each["images_per_s"]
    rows += [(words, [f"{found[m]:.1f}" for m in models]) for words, found in groups.items()]
    for side in (1024, 1536):
        for words, field, unit in (("time", "median_ms", "ms"), ("memory above the model", "run_mib", "MiB")):
            at = {r["model"]: r for r in document["growth"] if r["size"] == side and r["attention"] == "auto"}
            values = [f"{at[m][field]:.0f}" if field in at.get(m, {}) else "–" for m in models]
            rows.append((f"{words} at {side} px, fp32, {unit}", values))
    written = [r for r in document["growth"] if r["attention"] == "naive" and r["size"] == 1024]
    if written and "run_mib" in written[0]:
        rows.append(("the same, attention written out, 1024 px, MiB", [f"{written[0]['run_mib']:.0f}", "–"]))
    lines = [f"| | {' | '.join(f'`{m}`' for m in models)} |", "|---|---:|---:|"]
    lines += [f"| {words} | {' | '.join(values)} |" for words, values in rows]
    said = (
        f"\n{cpu['model'] or cpu['architecture']}, {cpu['usable_cores']} cores, {document['created'][:10]}; "
    )
    said += "random weights, our code, batch 1 unless said otherwise.\n"
    image = "![Time and memory of ViT-B and Swin-B from 224 to 1536 pixels](../figures/swin-vs-vit.svg)\n\n"
    return image + "\n".join(lines) + "\n" + said


def _published(known: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{p['top1']:.1f} ({p['weights'].split('.')[1]}, {p['image_size']} px)" for p in known)


def _lines(document: dict[str, Any], field: str, unit: float) -> list[Series]:
    vit, swin = document["models"]
    kinds = ((vit, "naive", "ViT-B, attention written out", RED), (vit, "auto", "ViT-B", BLUE),
             (swin, "auto", "Swin-B", ORANGE))  # fmt: skip
    found = []
    for model, attention, words, colour in kinds:
        rows = [r for r in document["growth"] if r["model"] == model and r["attention"] == attention]
        ahead = document["predicted_naive"] if attention == "naive" else []
        found.append(
            Series(
                words,
                colour,
                sorted((r["size"], r[field] * unit) for r in rows if field in r),
                sorted((r["size"], r[field] * unit) for r in ahead if field in r),
            )
        )
    return found


def _panel(canvas: Canvas, x: float, y: float, words: str, lines: Sequence[Series]) -> None:
    width, height = 370.0, 280.0
    values = [value for line in lines for _, value in (*line.points, *line.predicted)]
    sides = sorted({side for line in lines for side, _ in (*line.points, *line.predicted)})
    across = _scale(sides[0] * 0.93, sides[-1] * 1.07, x, x + width)
    up = _scale(min(values) / 1.3, max(values) * 1.3, y + height, y)
    canvas.text(x, y - 24, words, size=14, bold=True)
    for side in sides:
        canvas.path([(across(side), y), (across(side), y + height)], stroke=FAINT, thick=0.7)
        canvas.text(across(side), y + height + 17, str(side), size=10, anchor="middle", colour=MUTED)
    canvas.text(
        x + width / 2, y + height + 36, "side of the image, pixels", size=12, anchor="middle", colour=MUTED
    )
    for tick in _ticks(min(values) / 1.3, max(values) * 1.3):
        canvas.path([(x, up(tick)), (x + width, up(tick))], stroke=FAINT, thick=0.7)
        canvas.text(x - 8, up(tick) + 4, f"{tick:g}", size=11, anchor="end", colour=MUTED)
    canvas.rect(x, y, width, height, stroke=INK, thick=1)
    for line in lines:
        places = [(across(side), up(value)) for side, value in line.points]
        ahead = [(across(side), up(value)) for side, value in line.predicted]
        if len(places) > 1:
            canvas.path(places, stroke=line.colour, thick=2.2)
        if places and ahead:
            canvas.path([places[-1], *ahead], stroke=line.colour, thick=1.6, dash="5 4")
        for place in places:
            canvas.circle(*place, 3.4, fill=line.colour)
        for place in ahead:
            canvas.circle(*place, 3.4, fill="#ffffff", stroke=line.colour, thick=1.6)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """[low, high] to [start, end] by the logarithm."""
    return lambda value: start + math.log(value / low) / math.log(high / low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**n for n in exponents for step in TICKS]
    return [tick for tick in found if low <= tick <= high]
