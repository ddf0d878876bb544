"""A linear probe: one regularised linear classifier on frozen features, and k-NN as a check of them.

Shapes: n images, K classes, D features. Source of the protocol: Kornblith et al., Do Better ImageNet Models
Transfer Better?, 2019, section 3 (logistic regression on frozen features, strength by cross-validation).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from vitrail.errors import InputError

__all__ = ["STRENGTHS", "FittedHead", "fit", "knn_accuracy"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation strengths to try, per standardised feature."""
FOLDS = 3
NEIGHBOURS = 5
MOST_STEPS = 1000
TOLERANCE, CHOICE_TOLERANCE = 1e-4, 1e-3
"""For the fit that ships, and for those that only choose the strength."""
TEMPERATURES = np.geomspace(0.25, 8.0, 61)


@dataclass(frozen=True)
class FittedHead:
    """A fitted head: scores = features @ weight.T + bias, calibrated on images its fit had not seen."""

    weight: np.ndarray
    """float32 (K, D); standardisation and temperature are folded in."""
    bias: np.ndarray
    """float32 (K)"""
    strength: float
    temperature: float
    """What the scores were divided by (Guo et al. 2017, section 4.2); above 1: they were overconfident."""
    cross_validated: float
    """Accuracy in % on the folds that each fit had not seen, at the chosen strength."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float32 (n, D) -> float32 (n, K)."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)


def fit(features: np.ndarray, labels: np.ndarray, classes: int) -> FittedHead:
    """Fit a head, its strength chosen by cross-validation over `STRENGTHS`.

    Args:
        features: float32 (n, D), of distinct images.
        labels: (n) class indices in [0, classes).
        classes: K; every one of them must be among the labels.

    Raises:
        InputError: a class has no image, or features are not finite.
    """
    if not np.isfinite(features).all():
        raise InputError("The model's features are not finite on these images: choose another model.")
    missing = set(range(classes)) - set(labels.tolist())
    if missing:
        raise InputError(f"{len(missing)} classes have no training image: add images for them.")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A constant feature says nothing; dividing by its zero spread would make it count.
    spread = np.where(spread > 1e-8 * max(float(spread.max()), 1e-30), spread, np.inf)
    standard = ((features - mean) / spread).astype(np.float64)
    rotated, back = _rotated(standard)
    strength, held_out = _cross_validated(rotated, labels, classes)
    coefficients, bias = _fitted(_final(strength), rotated, labels)
    weight_KD, bias_K = _both_classes(coefficients @ back, bias)
    temperature = _temperature(held_out, labels)
    weight_KD, bias_K = weight_KD / spread / temperature, bias_K / temperature
    bias_K = bias_K - weight_KD @ mean
    right = held_out.argmax(axis=1) == labels
    return FittedHead(
        weight=weight_KD.astype(np.float32),
        bias=bias_K.astype(np.float32),
        strength=strength,
        temperature=temperature,
        cross_validated=100.0 * float(right.mean()),
    )


def knn_accuracy(
    features: np.ndarray, labels: np.ndarray, new_features: np.ndarray, new_labels: np.ndarray
) -> float:
    """Accuracy in % of the nearest neighbours by cosine: without a fit, it checks the features themselves."""
    neighbours = min(NEIGHBOURS, len(labels))
    model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(features, labels)
    return 100.0 * float((model.predict(new_features) == new_labels).mean())


def _rotated(standard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, r) coordinates and the (r, D) way back, r = min(n, D).

    With fewer images than features the images span r of D directions, and an L2 penalty keeps the weights in
    that span; turning to it leaves the same problem with fewer unknowns.
    """
    images, features = standard.shape
    if images >= features:
        return standard, np.eye(features)
    left, singular, back = np.linalg.svd(standard, full_matrices=False)
    return left * singular, back


def _final(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=MOST_STEPS, tol=TOLERANCE)


def _fitted(
    model: LogisticRegression, features: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        # Stopped early, a weakly regularised fit is just regularised a little more.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return model.coef_, model.intercept_


def _both_classes(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For two classes scikit-learn keeps one row, the second's lead; half of it each is equivalent."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def _cross_validated(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[float, np.ndarray]:
    """(best strength, its scores (n, K) of images that the fit had not seen).

    With only one image of a class nothing can be held out: a middling strength is used, and its own scores.
    """
    folds = min(FOLDS, int(np.bincount(labels, minlength=classes).min()))
    if folds < 2:
        strength = STRENGTHS[len(STRENGTHS) // 2]
        weight, bias = _both_classes(*_fitted(_final(strength), features, labels))
        return strength, features @ weight.T + bias
    scores_SnK = np.zeros((len(STRENGTHS), len(labels), classes))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    for train, held in splitter.split(features, labels):
        # From strong to weak regularisation, each fit starts where the last one ended.
        model = LogisticRegression(max_iter=MOST_STEPS, tol=CHOICE_TOLERANCE, warm_start=True)
        for scores_nK, strength in zip(scores_SnK, STRENGTHS, strict=True):
            model.set_params(C=strength)
            weight, bias = _both_classes(*_fitted(model, features[train], labels[train]))
            scores_nK[held] = features[held] @ weight.T + bias
    losses = [_log_loss(scores_nK, labels) for scores_nK in scores_SnK]
    best = int(np.argmin(losses))
    return STRENGTHS[best], scores_SnK[best]


def _log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def _temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    losses = [_log_loss(scores / t, labels) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])
