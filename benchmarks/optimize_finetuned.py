"""Section `finetuned`: what int8 loses of models made for their own classes, on test images, paired.

Everything goes through the command line, as a user's would: `vitrail select` with int8 (`--max-drop` asks for
the aim) and with fp32, and both artifacts answer the same test images.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optimize_figures as figures

import vitrail
from vitrail.data import read

AIM_POINTS = 0.3
PRECISIONS = ("fp32", "int8")
SELECT_S = 1800
SHOWN = 200
"""Letters of what a selection without a winner said first."""


def measure(
    name: str, data: str, asked: Sequence[str], work: Path, budget: str, runtime: str
) -> dict[str, Any]:
    """One data set: both artifacts, made if they are missing, on its test images.

    Args:
        asked: what tells `vitrail select` the model, e.g. `("--trained", "fashion/vit")`.
        budget: of each selection.
    """
    folders = {each: work / "finetuned" / f"{name}-{runtime}-{each}" for each in PRECISIONS}
    for precision, folder in folders.items():
        if not folder.is_dir():
            control = ["--max-drop", str(AIM_POINTS)] if precision == "int8" else []
            engine = ["--runtimes", runtime, "--precisions", precision, "--budget", budget]
            select(data, [*asked, *engine, *control], folder)
    test = read.load(data)
    examples = test.of("test")
    right, chosen = {}, {}
    for precision, folder in folders.items():
        with vitrail.load(folder) as model:
            answers = model.predict([example.path for example in examples], top=1)
            chosen[precision] = folder.name
        right[precision] = np.array(
            [answer.label == test.classes[each.label] for answer, each in zip(answers, examples, strict=True)]
        )
    lost = figures.paired_loss(right["fp32"], right["int8"])
    return {"data": name, "runtime": runtime, "aim": AIM_POINTS, **lost, "met": lost["lost"] <= AIM_POINTS}


def select(data: str, asked: Sequence[str], out: Path) -> None:
    """Run one selection.

    Raises:
        RuntimeError: it chose nothing; what it said last.
    """
    command = [sys.executable, "-m", "vitrail", "select", "--data", data, *asked]
    out.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, "--max-latency", "1s", "--offline", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=SELECT_S,
    )
    out.with_suffix(".txt").write_text(f"{done.stdout}\n{done.stderr}")
    if done.returncode:
        said = " ".join((done.stdout or done.stderr).split())[:SHOWN]
        raise RuntimeError(said or f"vitrail select ended with {done.returncode}")


def line(row: dict[str, Any]) -> str:
    """For the terminal."""
    low, high = row["interval"]
    return (
        f"{row['data']:<10} {row['runtime']:<12} {row['before']:.2f} % in fp32, {row['after']:.2f} % in "
        f"int8: {row['lost']:+.2f} points lost [{low:+.2f}, {high:+.2f}] on {row['images']} test images"
    )
