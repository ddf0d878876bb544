"""The corruptions that truth_corruption.py tries, each with an amount that can be scaled.

A kind is given the clean weights and a random generator, picks a place, and says what an amount does there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitrail.vocabulary import Preprocess

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where a corruption acts: a function of its amount (0 is none) to changed weights or changed inputs."""

    name: str
    weights: Callable[[float], Weights] | None = None
    inputs: Callable[[float, Preprocess], tuple[Preprocess, str]] | None = None
    most: float = 1.0
    """The largest amount that means something."""


def weight_channel_scaled(model: Weights, rng: np.random.Generator) -> Place:
    """One output channel of one convolution is larger, up to 20 times."""
    name, channel = _channel(model, rng, rank=4)

    def change(amount: float) -> Weights:
        changed = model[name].copy()
        changed[channel] *= 1 + amount
        return {name: changed}

    return Place(f"{name}[{channel}]", change, most=20.0)


def bias_shifted(model: Weights, rng: np.random.Generator) -> Place:
    """One channel's bias is off, by up to 20 standard deviations of its layer's biases."""
    name, channel = _channel(model, rng, rank=1)

    def change(amount: float) -> Weights:
        changed = model[name].copy()
        changed[channel] += amount * model[name].std()
        return {name: changed}

    return Place(f"{name}[{channel}]", change, most=20.0)


def channels_swapped(model: Weights, rng: np.random.Generator) -> Place:
    """Two output channels of one convolution are mixed; amount 1 swaps them."""
    name, one = _channel(model, rng, rank=4)
    other = (one + int(rng.integers(1, len(model[name])))) % len(model[name])

    def change(amount: float) -> Weights:
        changed, own = model[name].copy(), model[name]
        changed[one] = (1 - amount) * own[one] + amount * own[other]
        changed[other] = (1 - amount) * own[other] + amount * own[one]
        return {name: changed}

    return Place(f"{name}[{one},{other}]", change)


def weights_rounded(model: Weights, rng: np.random.Generator) -> Place:
    """One layer's weights are rounded to steps of `amount` times the largest of them."""
    name, _ = _channel(model, rng, rank=4)

    def change(amount: float) -> Weights:
        step = amount * np.abs(model[name]).max()
        return {name: (np.round(model[name] / step) * step).astype(np.float32)}

    return Place(name, change)


def kernel_transposed(model: Weights, rng: np.random.Generator) -> Place:
    """Height and width of one convolution's kernels are mixed; amount 1 exchanges them."""
    wide = sorted(name for name, values in model.items() if values.ndim == 4 and values.shape[-1] > 1)
    name = wide[int(rng.integers(len(wide)))]

    def change(amount: float) -> Weights:
        own = model[name]
        return {name: np.ascontiguousarray((1 - amount) * own + amount * own.transpose(0, 1, 3, 2))}

    return Place(name, change)


def class_row_noise(model: Weights, rng: np.random.Generator) -> Place:
    """One class's row of the classifier gets noise of up to 50 times its own size."""
    name, row = _channel(model, rng, rank=2)
    noise = rng.standard_normal(model[name].shape[1]).astype(np.float32) * model[name].std()

    def change(amount: float) -> Weights:
        changed = model[name].copy()
        changed[row] += np.float32(amount) * noise
        return {name: changed}

    return Place(f"{name}[{row}]", change, most=50.0)


def mean_wrong(model: Weights, rng: np.random.Generator) -> Place:
    """One colour's mean is off, by up to the whole range."""
    channel = int(rng.integers(3))

    def change(amount: float, clean: Preprocess) -> tuple[Preprocess, str]:
        mean = tuple(m + amount * (c == channel) for c, m in enumerate(clean.mean))
        return dataclasses.replace(clean, mean=mean), ""

    return Place(f"mean[{channel}]", inputs=change)


def std_wrong(model: Weights, rng: np.random.Generator) -> Place:
    """One colour's std is too large, up to twice."""
    channel = int(rng.integers(3))

    def change(amount: float, clean: Preprocess) -> tuple[Preprocess, str]:
        std = tuple(s * (1 + amount * (c == channel)) for c, s in enumerate(clean.std))
        return dataclasses.replace(clean, std=std), ""

    return Place(f"std[{channel}]", inputs=change)


def colours_mixed(model: Weights, rng: np.random.Generator) -> Place:
    """RGB is mixed with BGR; amount 1 is BGR."""
    return Place("input", inputs=lambda amount, clean: (clean, "bgr"))


def resize_wrong(model: Weights, rng: np.random.Generator) -> Place:
    """The input is mixed with one resized with the other filter; amount 1 is the other filter."""

    def change(amount: float, clean: Preprocess) -> tuple[Preprocess, str]:
        other = "bilinear" if clean.interpolation == "bicubic" else "bicubic"
        return dataclasses.replace(clean, interpolation=other), "mix"

    return Place("input", inputs=change)


KINDS: dict[str, Callable[[Weights, np.random.Generator], Place]] = {
    "weight channel scaled": weight_channel_scaled,
    "bias shifted": bias_shifted,
    "channels swapped": channels_swapped,
    "weights rounded": weights_rounded,
    "kernel transposed": kernel_transposed,
    "class row noise": class_row_noise,
    "mean wrong": mean_wrong,
    "std wrong": std_wrong,
    "colours mixed": colours_mixed,
    "resize wrong": resize_wrong,
}


def _channel(model: Weights, rng: np.random.Generator, *, rank: int) -> tuple[str, int]:
    """A random tensor of this rank that has channels, and one of them."""
    names = sorted(name for name, values in model.items() if values.ndim == rank and values.size > 8)
    name = names[int(rng.integers(len(names)))]
    return name, int(rng.integers(len(model[name])))
