"""How far two sets of outputs differ, and how far each precision may (docs/measurement.md, Parity)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import TypeAlias

import numpy as np

from vitrail import stats
from vitrail.tasks import Bounds, Comparison
from vitrail.vocabulary import Answer, Parity

ONE_SIDED = NormalDist().inv_cdf(0.95)

MIN_DECIDED_PHOTOS = 8
"""Below this many photos on which an answer is clear, agreement says nothing."""


MOST_CROPS = 8
"""Views of one photo that parity looks at, where outputs are small."""

Agreement: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Reference and outputs (P photos, C crops, ...) -> (P,) which photos are decided, and (P,) which agree."""

ELSEWHERE: dict[str, tuple[float, float]] = {
    "bf16": (0.5, 300.0),
    "fp16": (0.5, 300.0),
    "tf32": (0.5, 300.0),
    "int8": (1.0, 99.0),
}
"""(changed, kept) decided photos of other models in this precision: what is assumed of one that is new, as if
it had been seen on so many photos before. docs/measurement.md says where the numbers come from."""
COST_POINTS = 30.0
"""What a decided photo loses whose answer changes, assumed as if it had been seen once."""

CHANGED = "changed"
"""In the place of a precision: a variant that passes made to answer otherwise."""

BOUNDS: dict[str, Bounds] = {
    "fp32": Bounds(cosine=0.999_999, relative_error=2e-4, agreement=1.0),
    # One crop of a plain texture (no class leads) may stray this far in bf16. Decided photos do so rarely.
    "bf16": Bounds(cosine=0.97, relative_error=0.25, agreement=0.99),
    "tf32": Bounds(cosine=0.999, relative_error=0.05, agreement=1.0),
    "fp16": Bounds(cosine=0.999, relative_error=0.05, agreement=1.0),
    "int8": Bounds(cosine=0.97, relative_error=0.25, agreement=0.97),
    # What changes answers on purpose is judged by its accuracy; only what is broken is refused here.
    CHANGED: Bounds(cosine=0.7, relative_error=1.0, agreement=0.8),
}


def relative_errors(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """||scores - reference|| of each row (..., K), relative to its reference's norm or, if larger, the usual.

    The usual norm is the median of all the reference's rows. A head of a few classes gives scores near zero
    to an image it is unsure of, and a difference that changes nothing is then large beside them.
    """
    return together(of_row(reference, scores))[1]


def cosines(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Cosine of each row (..., K); 1 - cosine shrinks with rows whose norms are below the usual."""
    return together(of_row(reference, scores))[0]


def of_row(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(..., 4) of rows (..., K): both norms, their product, the norm of the difference; for `together`."""
    a, b = reference.astype(np.float64), scores.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    return np.stack([*norms, (a * b).sum(-1), np.linalg.norm(b - a, axis=-1)], axis=-1)


def together(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and relative errors of all rows, from what `of_row` says of each (..., 4)."""
    norms, others, inner, difference = np.moveaxis(rows, -1, 0)
    usual, product = usual_norm(norms), norms * others
    cosine = 1 - (product - inner) / np.maximum(product, usual**2)
    return np.asarray(cosine), np.asarray(difference / np.maximum(norms, usual))


def usual_norm(norms: np.ndarray) -> float:
    """What differences are relative to where a row's own norm is smaller: the median of the reference's."""
    return max(float(np.median(norms)), 1e-12)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def compare(
    reference: np.ndarray,
    outputs: np.ndarray,
    precision: str,
    agreement: Agreement,
    *,
    what: str,
    too_few: Callable[[int, int], str],
    losses: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Parity:
    """Judge float32 outputs (P photos, C crops, ...) against the reference's of the same shape.

    Args:
        agreement: counts the photos that decide, and those that agree on `what`.
        too_few: (decided, photos) -> the reason where fewer than `MIN_DECIDED_PHOTOS` decide.
        losses: what the outputs lose on each photo, in points (P,); None: nothing is known of that.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != outputs.shape:
        raise ValueError(f"reference {reference.shape} and outputs {outputs.shape} differ in shape")
    photos = len(reference)
    if not np.isfinite(outputs).all():
        return refused(photos, "outputs are not finite")
    errors = relative_errors(reference, outputs)
    cosine, error = float(cosines(reference, outputs).min()), float(errors.max())
    clear, kept = agreement(reference, outputs)
    decided, agreeing = int(clear.sum()), int(kept.sum())
    answer, reason = judged(BOUNDS[precision], cosine, error, decided, agreeing, what)
    if answer == "pass" and decided < MIN_DECIDED_PHOTOS:
        answer, reason = "not assessed", too_few(decided, photos)
    lost = None if losses is None else losses(reference, outputs)
    return Parity(
        answer=answer,
        cosine=cosine,
        relative_error=error,
        photos=photos,
        decided=decided,
        agreeing=agreeing,
        loss=None if lost is None else float(lost.mean()),
        loss_bound=None if lost is None else loss_bound(lost, clear, kept, precision),
        reason=reason,
        worst=str(int(errors.max(axis=1).argmax())),
    )


def refused(photos: int, reason: str) -> Parity:
    """The parity of outputs that cannot be compared at all."""
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
    if not agree_enough(decided, agreeing, bounds.agreement):
        return "fail", f"{what} agrees on {agreeing} of {decided} decided photos"
    return "pass", ""


def agree_enough(decided: int, agreeing: int, least: float) -> bool:
    """Whether these photos leave it possible that at least this share of all photos agrees (95 %).

    Of few photos one alone says little: 1 of 30 that changes may be 0.2 % of all, or 15 %. What it may cost
    is counted in `loss_bound`.
    """
    return stats.share_at_least(decided - agreeing, decided) <= 1 - least


def loss_bound(lost: np.ndarray, decided: np.ndarray, agreeing: np.ndarray, precision: str) -> float | None:
    """Upper bound (one-sided 95 %) of the mean loss in points; None: too few photos decide.

    From 600 photos on nothing is assumed (`stats.mean_upper_bound`). Before, the share of decided photos that
    change is bounded as if `ELSEWHERE` had been seen too, each at the mean loss of those that did change and
    of `COST_POINTS`; the others' losses are near-ties, small and many, and bounded as such.

    Args:
        lost: (P,) of each photo, in points.
        decided, agreeing: (P,) as `Agreement` gives them.
    """
    if len(lost) >= stats.PHOTOS_FOR_LOSS_BOUND:
        return stats.mean_upper_bound(lost)
    changed, count = decided & ~agreeing, int(decided.sum())
    if count < MIN_DECIDED_PHOTOS or precision not in ELSEWHERE:
        return None
    share = stats.share_at_most(int(changed.sum()), count, ELSEWHERE[precision])
    cost = (COST_POINTS + float(lost[changed].sum())) / (1 + int(changed.sum()))
    others = np.where(changed, 0.0, lost)
    near_ties = float(others.mean()) + ONE_SIDED * float(others.std()) / len(lost) ** 0.5
    return share * cost * count / len(lost) + near_ties


def bounded(name: str, observed: float, limit: float, holds: bool, word: str) -> Comparison:
    """A check of one figure against one limit; `word` is `at least` or `at most`."""
    reason = f"{observed:.6g}, {word} {limit:.6g} asked"
    return Comparison(name=name, observed=observed, limit=limit, holds=holds, reason=reason)


def checks(
    reference: np.ndarray, outputs: np.ndarray, bounds: Bounds, agreement: Agreement, *, what: str, said: str
) -> list[Comparison]:
    """Least cosine, largest relative error and agreement of outputs (P photos, ...).

    `what` names the last check, and `said` its reason, with `{agreeing}` and `{decided}` in it.
    """
    clear, same = agreement(reference[:, None], outputs[:, None])
    decided, agreeing = int(clear.sum()), int(same.sum())
    kept = Comparison(
        name=what,
        # Without a decided photo nothing contradicts the claim; the other two checks still bind.
        holds=agree_enough(decided, agreeing, bounds.agreement),
        observed=agreeing / decided if decided else None,
        limit=bounds.agreement,
        reason=said.format(agreeing=agreeing, decided=decided),
    )
    return [*numeric(reference, outputs, bounds), kept]


def numeric(reference: np.ndarray, outputs: np.ndarray, bounds: Bounds) -> list[Comparison]:
    """Least cosine and largest relative error over the rows (..., K)."""
    cosine = float(cosines(reference, outputs).min())
    return numbers(cosine, float(relative_errors(reference, outputs).max()), bounds)


def numbers(cosine: float, error: float, bounds: Bounds) -> list[Comparison]:
    """The checks of the least cosine and the largest relative error."""
    return [
        bounded("cosine to fp32", cosine, bounds.cosine, cosine >= bounds.cosine, "at least"),
        bounded(
            "relative error to fp32", error, bounds.relative_error, error <= bounds.relative_error, "at most"
        ),
    ]
