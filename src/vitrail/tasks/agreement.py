"""How far two sets of outputs differ, and how far each precision may (docs/measurement.md, Parity)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrail.tasks import Bounds as Wanted
from vitrail.tasks import Check
from vitrail.vocabulary import Answer, Parity

MIN_DECIDED_PHOTOS = 8
"""Below this many photos on which an answer is clear, agreement says nothing."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one precision must hold: least cosine, most relative error, least agreement on decided photos."""

    cosine: float
    relative_error: float
    agreement: float


BOUNDS: dict[str, Bounds] = {
    "fp32": Bounds(cosine=0.999_999, relative_error=2e-4, agreement=1.0),
    # One crop of a plain texture (no class leads) may stray this far in bf16. Decided photos do so rarely:
    # none of fewer than a hundred may, and where there are 600 their loss is measured.
    "bf16": Bounds(cosine=0.97, relative_error=0.25, agreement=0.99),
    "fp16": Bounds(cosine=0.999, relative_error=0.05, agreement=1.0),
    "int8": Bounds(cosine=0.97, relative_error=0.25, agreement=0.97),
}


def relative_errors(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """||scores - reference|| of each row (..., K), relative to its reference's norm or, if larger, the usual.

    The usual norm is the median of all the reference's rows. A head of a few classes gives scores near zero
    to an image it is unsure of, and a difference that changes nothing is then large beside them.
    """
    difference = np.linalg.norm(scores.astype(np.float64) - reference, axis=-1)
    norms = np.linalg.norm(reference.astype(np.float64), axis=-1)
    return np.asarray(difference / np.maximum(norms, _usual(norms)))


def cosines(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Cosine of each row (..., K); 1 - cosine shrinks with rows whose norms are below the usual."""
    a, b = reference.astype(np.float64), scores.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1)
    product = norms * np.linalg.norm(b, axis=-1)
    return np.asarray(1 - (product - (a * b).sum(-1)) / np.maximum(product, _usual(norms) ** 2))


def _usual(norms: np.ndarray) -> float:
    return max(float(np.median(norms)), 1e-12)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def refused(photos: int, reason: str) -> Parity:
    return Parity(
        answer="fail",
        cosine=0.0,
        relative_error=float("1e9"),
        photos=photos,
        decided=0,
        agreeing=0,
        loss=None,
        loss_bound=None,
        reason=reason,
    )


def judged(
    bounds: Bounds, cosine: float, error: float, decided: int, agreeing: int, what: str
) -> tuple[Answer, str]:
    """The answer by the bounds, and the first that is missed; `what` says what agrees."""
    if cosine < bounds.cosine:
        return "fail", f"cosine {cosine:.5f} is below {bounds.cosine}"
    if error > bounds.relative_error:
        return "fail", f"relative error {error:.2g} is above {bounds.relative_error}"
    if decided and agreeing / decided < bounds.agreement:
        return "fail", f"{what} agrees on {agreeing} of {decided} decided photos"
    return "pass", ""


def bounded(name: str, observed: float, limit: float, holds: bool, word: str) -> Check:
    """A check of one figure against one limit; `word` is `at least` or `at most`."""
    reason = f"{observed:.6g}, {word} {limit:.6g} asked"
    return Check(name=name, observed=observed, limit=limit, holds=holds, reason=reason)


def numeric(reference: np.ndarray, outputs: np.ndarray, bounds: Wanted) -> list[Check]:
    """Least cosine and largest relative error over the rows (..., K)."""
    cosine = float(cosines(reference, outputs).min())
    error = float(relative_errors(reference, outputs).max())
    return [
        bounded("cosine to fp32", cosine, bounds.cosine, cosine >= bounds.cosine, "at least"),
        bounded(
            "relative error to fp32", error, bounds.relative_error, error <= bounds.relative_error, "at most"
        ),
    ]
