"""Truth about parity: are corrupted exports refused, and from which size on?

A corruption is real: weights of the exported ONNX file are changed, the file is converted to IR and run by
the engine that would ship it, or the input is prepared wrongly. Its size is how far it moves the logits of
*other* views than those that parity looks at, so refusing is not true by construction:

    size = max over held-out views of ||corrupted - clean|| / ||clean||, in multiples of the parity bound

Shapes: P photos, C views of a photo, K classes, S image size.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image, ImageOps
from truth_kinds import KINDS, Place, Weights
from truth_timing import Part, Say, wilson

from vitrail import runtimes
from vitrail.export.bench import Bench
from vitrail.images.decode import decode
from vitrail.images.preprocess import crops
from vitrail.measure.launch import ExportSubject
from vitrail.privacy import import_engine
from vitrail.tasks.agreement import BOUNDS
from vitrail.tasks.classify import IMAGES, SCORES, compare
from vitrail.vocabulary import Preprocess, Target

ov = import_engine("openvino")
Views = np.ndarray
"""float32 (P, C, 3, S, S)"""

CURVE = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Sizes of the detection curve, in multiples of the bound on the relative error."""
REFUSED_FROM = 3.0
WINDOW = 1.1
"""A corruption is of the asked size from `size` to `WINDOW * size`."""
TRIES = 14
PLACES = 8
"""Layers or channels tried before a kind is said not to reach a size."""
HELD_OUT_VIEWS = 3


# --- running it -----------------------------------------------------------------------------------


class Engine:
    """Runs corrupted copies of one export on parity's own views and on held-out ones."""

    def __init__(self, bench: Bench, subject: ExportSubject) -> None:
        self.precision = subject.variant.precision
        self.reference = bench.reference_outputs(subject.variant)[SCORES]
        self.preprocess = subject.task.preprocess
        self._subject = subject
        self._model = onnx.load(Path(subject.export.folder).parent / "model.onnx")
        tensors = {each.name: each for each in self._model.graph.initializer}
        arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
        self.weights = {name: array for name, array in arrays.items() if array.dtype == np.float32}
        self._tensors = tensors
        # The order in which the bench compares them; rows of the reference are photos in this order.
        photos = [decode(photo) for photo in bench._parity_photos[: len(self.reference)]]
        self._parity_photos, self._parity_views = photos, self.reference.shape[1]
        self._held_out_photos = [_held_out(photo) for photo in photos]
        self._views: dict[tuple[Preprocess, bool], Views] = {}
        runner = self._load({})
        self._clean_held_out = self._run(runner, self.views(self.preprocess, held_out=True))
        self.clean = compare(
            self.reference, self._run(runner, self.views(self.preprocess, held_out=False)), self.precision
        )
        self._clean_runner = runner

    def views(self, preprocess: Preprocess, *, held_out: bool) -> Views:
        """Parity's views of its photos, or held-out views: of the mirrored photos' inner parts."""
        key = (preprocess, held_out)
        if key not in self._views:
            photos = self._held_out_photos if held_out else self._parity_photos
            count = HELD_OUT_VIEWS if held_out else self._parity_views
            made = np.stack([crops(photo, preprocess, count) for photo in photos])
            # Wrong means and stds are tried in many amounts: only what comes back often is kept.
            if (preprocess.mean, preprocess.std) != (self.preprocess.mean, self.preprocess.std):
                return made
            self._views[key] = made
        return self._views[key]

    def trial(self, place: Place, amount: float) -> tuple[float, Callable[[], np.ndarray]]:
        """Size of the corruption on held-out views, and a way to its scores (P, C, K) on parity's views."""
        runner = self._clean_runner if place.weights is None else self._load(place.weights(amount))
        scores = self._run(runner, self._inputs(place, amount, held_out=True))
        moved = np.linalg.norm(scores - self._clean_held_out, axis=-1)
        size = float((moved / np.linalg.norm(self._clean_held_out, axis=-1)).max())
        if not math.isfinite(size):
            size = math.inf
        return size, lambda: self._run(runner, self._inputs(place, amount, held_out=False))

    def _inputs(self, place: Place, amount: float, *, held_out: bool) -> Views:
        clean = self.views(self.preprocess, held_out=held_out)
        if place.inputs is None:
            return clean
        preprocess, how = place.inputs(amount, self.preprocess)
        if how == "bgr":
            return (1 - amount) * clean + amount * clean[:, :, ::-1]
        other = self.views(preprocess, held_out=held_out)
        return (1 - amount) * clean + amount * other if how == "mix" else other

    def _load(self, changed: Weights) -> runtimes.Runner:
        """The export with some weights changed, by way of ONNX and IR like any export."""
        for name, values in changed.items():
            self._tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
        # A folder of its own each time: engines keep the file mapped while they live.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            onnx.save(self._model, file)
            for name in changed:
                self._tensors[name].CopyFrom(numpy_helper.from_array(self.weights[name], name))
            runtimes.implementation("openvino").build(file, Path(folder))
            return self._open(file.with_suffix(".xml"), self.precision)

    def _open(self, file: Path, precision: str) -> runtimes.Runner:
        return runtimes.load(
            file.parent,
            self._subject.task.graph(file.name),
            Target(runtime="openvino", precision=precision),
            sizes={"B": len(self.reference)},
            threads=self._subject.threads,
        )

    def mistakes(self) -> dict[str, dict[str, Any]]:
        """Mistakes of a toolchain that have no amount: what parity says of them under these bounds."""
        source = Path(self._subject.export.folder) / self._subject.export.graphs[0].entry
        told = {}
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "model.xml"
            ov.save_model(ov.Core().read_model(source), small, compress_to_fp16=True)
            files = {"weights stored as fp16": (small, self.precision), "run in bf16": (source, "bf16")}
            for name, (file, precision) in files.items():
                try:
                    runner = self._open(file, precision)
                except runtimes.EngineMismatch as error:
                    told[name] = {"answer": "refused while loading", "reason": str(error)}
                    continue
                views = self.views(self.preprocess, held_out=False)
                result = compare(self.reference, self._run(runner, views), self.precision)
                told[name] = {"answer": result.answer, "reason": result.reason}
        return told

    def _run(self, runner: runtimes.Runner, views: Views) -> np.ndarray:
        columns = [
            runner.run({IMAGES: np.ascontiguousarray(views[:, k], dtype=np.float32)})[SCORES]
            for k in range(views.shape[1])
        ]
        return np.stack(columns, axis=1)


def _held_out(photo: Image.Image) -> Image.Image:
    """Another picture of the same subject: the inner 80 % of the mirrored photo."""
    width, height = photo.size
    inner = photo.crop((width // 10, height // 10, width - width // 10, height - height // 10))
    return ImageOps.mirror(inner)


# --- how much is refused --------------------------------------------------------------------------


def corruption(
    bench: Bench, subjects: dict[str, ExportSubject], *, seeds: int, sizes: Sequence[float], say: Say
) -> Part:
    """Corruptions of every kind, scaled to sizes around the parity bound: which are refused?

    The target is about fp32; for the other precisions of `subjects` the detection curve is published, with
    fewer seeds (their bounds are wide, and what lies within them must be found by other means).
    """
    summary, records = _curve(bench, subjects["fp32"], seeds, sizes, say)
    strong = [record for record in records if record["asked"] == REFUSED_FROM]
    refused = sum(record["refused"] for record in strong)
    summary = {
        "target": "corruptions that move fp32 logits by 3 times the parity bound are refused in 50 of 50",
        "met": refused == seeds and summary["clean_export"]["answer"] == "pass",
        "refused": refused,
        **summary,
        "others": {},
    }
    for precision, subject in subjects.items():
        if precision != "fp32":
            count = max(seeds * 2 // 5 // len(KINDS), 1) * len(KINDS)
            other, more = _curve(bench, subject, count, [s for s in sizes if s <= REFUSED_FROM], say)
            summary["others"][precision] = other
            records += more
    return summary, records


def _curve(
    bench: Bench, subject: ExportSubject, seeds: int, sizes: Sequence[float], say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    engine, records = Engine(bench, subject), []
    bound = BOUNDS[engine.precision].relative_error
    for seed in range(seeds):
        kind = list(KINDS)[seed % len(KINDS)]
        head = {"precision": engine.precision, "seed": seed, "kind": kind}
        records += [{**head, **row} for row in _rows(engine, kind, seed, sizes, bound)]
        if (seed + 1) % 5 == 0 or seed + 1 == seeds:
            strong = [r for r in records if r["asked"] == REFUSED_FROM]
            say(f"{engine.precision} {seed + 1}/{seeds}, refused at 3x: {sum(r['refused'] for r in strong)}")
    clean = engine.clean
    summary = {
        "precision": engine.precision,
        "bound": bound,
        "seeds": seeds,
        "clean_export": {
            "answer": clean.answer,
            "relative_error": clean.relative_error,
            "cosine": clean.cosine,
            "decided": clean.decided,
        },
        "mistakes": engine.mistakes() if engine.precision == "fp32" else {},
        "curve": {f"{size:g}": _share([r for r in records if r["asked"] == size]) for size in sizes},
        "by_kind": {kind: _by_size([r for r in records if r["kind"] == kind], sizes) for kind in KINDS},
        "unreachable": sum(record["size"] is None for record in records),
    }
    return summary, records


def _rows(engine: Engine, kind: str, seed: int, sizes: Sequence[float], bound: float) -> list[dict[str, Any]]:
    """One row for each size: the corruption scaled to it, and what parity said."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(PLACES):
        place = KINDS[kind](engine.weights, rng)
        rows = [_row(engine, place, size, bound) for size in sizes]
        if all(row["size"] is not None for row in rows):
            break
    return rows


def _row(engine: Engine, place: Place, asked: float, bound: float) -> dict[str, Any]:
    row: dict[str, Any] = {"asked": asked, "place": place.name, "size": None, "refused": False}
    found = _scaled(engine, place, asked * bound)
    if found is None:
        return row
    amount, size, scores = found
    result = compare(engine.reference, scores(), engine.precision)
    return row | {
        "amount": amount,
        "size": size / bound,
        "refused": result.answer == "fail",
        "answer": result.answer,
        "reason": result.reason,
        "cosine": result.cosine,
        "relative_error": result.relative_error / bound,
        "decided": result.decided,
        "agreeing": result.agreeing,
    }


def _scaled(
    engine: Engine, place: Place, target: float
) -> tuple[float, float, Callable[[], np.ndarray]] | None:
    """(amount, size, scores) with the size in [target, WINDOW * target], or the smallest above it found.

    Sizes grow about linearly, so the next amount is scaled; between a too small and a too large amount
    it stays between them.
    """
    low, high, best = 0.0, math.inf, None
    amount = place.most * 1e-3
    for _ in range(TRIES):
        size, scores = engine.trial(place, amount)
        if size >= target:
            high = min(high, amount)
            if best is None or size < best[1]:
                best = (amount, size, scores)
            if size <= WINDOW * target:
                break
        else:
            low = max(low, amount)
            if amount >= place.most:
                break
        amount = amount * target * (1 + WINDOW) / 2 / size if 0 < size < math.inf else amount * 10
        if not low < amount < high:
            amount = (
                math.sqrt(low * high) if low > 0 and high < math.inf else (low + min(high, place.most)) / 2
            )
        amount = min(amount, place.most)
    return best


def _share(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    reached = [row for row in rows if row["size"] is not None]
    refused = sum(row["refused"] for row in reached)
    if not reached:
        return {"refused": 0, "of": 0}
    return {
        "refused": refused,
        "of": len(reached),
        "share": refused / len(reached),
        "share_interval": wilson(refused, len(reached)),
        "size_median": float(np.median([row["size"] for row in reached])),
        "size_largest": max(row["size"] for row in reached),
    }


def _by_size(rows: Sequence[dict[str, Any]], sizes: Sequence[float]) -> dict[str, str]:
    told = {}
    for size in sizes:
        reached = [row for row in rows if row["asked"] == size and row["size"] is not None]
        told[f"{size:g}"] = f"{sum(row['refused'] for row in reached)}/{len(reached)}"
    return told
