"""Refuses weights and outputs with NaN or infinity, naming the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.words import some_of

__all__ = ["check_outputs", "check_weights", "is_finite"]


def is_finite(tensor: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether all numbers are finite, also after conversion to `dtype`; True for tensors without values."""
    if tensor.is_meta or tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:  # float8 has no arithmetic
        tensor = tensor.float()
    # One pass without a boolean tensor: minimum and maximum are NaN if any number is.
    low, high = torch.aminmax(tensor.detach())
    if tensor.dtype is torch.float64:
        low, high = low.to(dtype), high.to(dtype)
    return bool(low.isfinite() and high.isfinite())


def check_weights(
    fitted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, dtype: torch.dtype = torch.float32
) -> None:
    """Refuse weights that are not finite.

    Args:
        fitted: the tensors a model uses, in the model's names; an unused mask may be infinite.
        given: the file's tensors, whose names are used in the message where possible.
        source: the file, for the message.
        dtype: the model's; larger numbers of a float64 file become infinite in it.

    Raises:
        InputError: naming the tensors.
    """
    bad = [name for name, value in fitted.items() if not is_finite(value, dtype)]
    if not bad:
        return
    theirs = [n for n, v in given.items() if not n.endswith("mask") and not is_finite(v, dtype)]
    raise InputError(
        f"{source} holds numbers that are not finite (NaN or infinity) in {some_of(theirs or bad)}: fetch "
        "the file again, or give weights of an earlier step of the training."
    )


def check_outputs(outputs: Tensor, source: str, what: str) -> None:
    """Refuse outputs of finite weights that are not finite.

    Raises:
        InputError: the model's outputs, called `what` (e.g. "scores"), are not finite.
    """
    if not is_finite(outputs, outputs.dtype):
        raise InputError(
            f"The weights of {source} give {what} that are not finite (NaN or infinity), though all of their "
            "own numbers are: they are damaged or of another architecture; give others."
        )
