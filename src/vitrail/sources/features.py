"""Frozen features of labelled images through the fastest export that holds parity, each image once.

Kept on disk by weights x preprocess x engine, a row for each image's digest. Shapes: n images, D features.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from vitrail import store, tasks
from vitrail.data import Example
from vitrail.export.bench import Bench, image_libraries
from vitrail.measure import features, sandbox
from vitrail.tasks import agreement
from vitrail.vocabulary import SearchSettings, Variant

TRIAL_IMAGES = 24
BATCH = 8
"""Images per call: features are taken in bulk, whatever the workload's batch is."""
EXPORT_TIMEOUT_S = 300.0
MEMORY_MIB = 12_288.0
IMAGE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Extractor:
    """The form of a candidate that gives its features, and its ms for one image (engine alone)."""

    variant: Variant
    ms: float


class Features:
    """Takes and keeps features for one selection; everything heavy runs in children."""

    def __init__(self, bench: Bench, settings: SearchSettings) -> None:
        self._bench = bench
        self._fresh = settings.fresh
        self._folder = store.cache_dir() / "features"
        self._engines = store.RecordStore(self._folder)

    def engine(self, forms: Sequence[Variant], examples: Sequence[Example]) -> Extractor:
        """The fastest of a candidate's variants whose features agree with fp32 eager ones on some images.

        Raises:
            ChildFailure: the candidate cannot be exported, or no form of it holds parity.
        """
        some, forms = examples[:TRIAL_IMAGES], [_embedding(form) for form in forms]
        key = {"engines": [self.key(Extractor(form, 0.0)) for form in forms], "images": _digest_of(some)}
        kept = None if self._fresh else self._engines.get(key)
        if kept is not None:
            form = next(f for f in forms if (f.runtime, f.precision) == (kept["runtime"], kept["precision"]))
            return Extractor(form, float(str(kept["ms"])))
        reference, _ = self._extract(_eager(forms[0]), some)
        found, refused = [], []
        for form in forms:
            try:
                rows, ms = self._extract(form, some)
            except sandbox.ChildFailure as error:
                refused.append(f"{form.runtime} {form.precision}: {error}")
                continue
            reason = disagreement(reference, rows, form.precision)
            if reason is None:
                found.append(Extractor(form, ms))
            else:
                refused.append(f"{form.runtime} {form.precision}: {reason}")
        if not found:
            raise sandbox.ChildFailure(f"no engine gives its features ({'; '.join(refused)})")
        best = min(found, key=lambda each: each.ms)
        self._engines.put(
            key, {"runtime": best.variant.runtime, "precision": best.variant.precision, "ms": best.ms}
        )
        return best

    def rows(self, engine: Extractor, examples: Sequence[Example]) -> np.ndarray:
        """float32 (n, D) features of the examples; only images that were never seen are run.

        Raises:
            ChildFailure: the export failed, or an image cannot be decoded.
        """
        digest = store.digest_of(self.key(engine))[:24]
        file = self._folder / f"{digest}.npz"
        known = _read(file)
        new = [example for example in examples if example.digest not in known]
        if new:
            rows, _ = self._extract(engine.variant, new)
            known.update(zip((example.digest for example in new), rows, strict=True))
            _write(file, known)
        return np.stack([known[example.digest] for example in examples])

    def key(self, engine: Extractor) -> dict[str, object]:
        """All that a feature depends on, the image aside."""
        variant = engine.variant
        located = self._bench.weights(variant.candidate)
        assert located is not None
        return {
            "weights": located.weights.sha256,
            "architecture": variant.candidate.architecture,
            "implementation": variant.implementation,
            "preprocess": msgspec.to_builtins(variant.preprocess),
            "engine": self._bench.environment(variant).engine,
            "precision": variant.precision,
            "images": image_libraries(),
        }

    def _extract(self, variant: Variant, examples: Sequence[Example]) -> tuple[np.ndarray, float]:
        export = self._bench.export(variant, EXPORT_TIMEOUT_S)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "features.npy"
            request = features.FeaturesRequest(
                folder=str(Path(export.folder).absolute()),
                graph=export.graphs[0],
                target=variant.on(self._bench.workload.device),
                batch_size=BATCH,
                threads=self._bench.threads,
                task=tasks.pack(self._bench.task(variant)),
                images=[example.path for example in examples],
                out=str(target),
            )
            answer = sandbox.call(
                "vitrail.measure.features:extract",
                msgspec.to_builtins(request),
                timeout_s=EXPORT_TIMEOUT_S + IMAGE_TIMEOUT_S * len(examples),
                memory_mib=MEMORY_MIB,
                name="taking features",
            )
            return np.load(target, allow_pickle=False), float(answer["ms"])


def disagreement(reference: np.ndarray, rows: np.ndarray, precision: str) -> str | None:
    """Why features (n, D) are not the reference's, by the bounds of parity; None: they are."""
    if not np.isfinite(rows).all():
        return "features are not finite"
    cosine = float(agreement.cosines(reference, rows).min())
    error = float(agreement.relative_errors(reference, rows).max())
    # Of features nothing is decided: there are no classes yet.
    _, reason = agreement.judged(agreement.BOUNDS[precision], cosine, error, 0, 0, "")
    return reason or None


def _embedding(form: Variant) -> Variant:
    """The form without its classifier."""
    return replace(form, candidate=replace(form.candidate, task="embed"))


def _eager(form: Variant) -> Variant:
    return replace(form, runtime="pytorch", precision="fp32", reference=True)


def _digest_of(examples: Sequence[Example]) -> str:
    return hashlib.sha256("".join(example.digest for example in examples).encode()).hexdigest()


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as kept:
            return dict(zip(kept["digests"].tolist(), kept["rows"], strict=True))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # none, or cut off by a crash
        return {}


def _write(file: Path, known: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with store.writing(file), open(partial, "wb") as target:
        np.savez(target, digests=np.array(list(known)), rows=np.stack(list(known.values())))
    partial.replace(file)
