"""Where a number that is not finite came from: searched for once training has to stop because of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.words import some_of

__all__ = ["origin"]


def origin(model: nn.Module, again: Callable[[], Any]) -> str:
    """Name the first weights, else the first module, else the gradients that are not finite.

    Args:
        model: without wrappers; its gradients are those of the bad step.
        again: runs the step's forward and backward pass once more on that same module.
    """
    weights = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if weights:
        return f"weights that are not finite: {some_of(weights)}"
    gradients = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    culprits: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not culprits and not output.isfinite().all():
                culprits.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        # Errors after the module is found no longer matter.
        with suppress(RuntimeError, TypeError, ValueError), torch.enable_grad():
            again()
    finally:
        for hook in hooks:
            hook.remove()
    if culprits:
        return f"first in the output of {culprits[0]}"
    return f"gradients that are not finite: {some_of(gradients)}" if gradients else "in the loss itself"
