"""The names that configs choose among, and their checks. Imports nothing, so that configs are light."""

from __future__ import annotations

from vitrail.errors import InputError

__all__ = ["ACTIVATIONS", "KERNELS", "check_choice", "check_heads", "check_kernel"]

KERNELS = ("auto", "naive", "fused", "flash", "efficient", "math", "blocked")
"""Attention kernels (`attention.py`)."""

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")
"""Activations of an MLP (`layers.py`)."""


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, if it is one of `choices`; `what` is its name in the InputError otherwise."""
    if value not in choices:
        raise InputError(f"There is no {what} {value!r}: choose one of {', '.join(choices)}.")
    return value


def check_kernel(kernel: str) -> str:
    """`kernel`, if it is one of `KERNELS`; otherwise an InputError."""
    return check_choice("attention kernel", kernel, KERNELS)


def check_heads(width: int, heads: int) -> None:
    """Raise InputError unless the features divide into heads."""
    if width % heads:
        raise InputError(f"{width} features do not divide into {heads} heads: change one of them.")
