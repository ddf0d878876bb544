"""Class names folded into a classifier's weights, in a separate process: sandbox.py runs `fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vitrail.errors import InputError


class FoldRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A CLIP with its weights, the class names and templates, and the file to write."""

    model: str
    weights: str
    tag: str | None
    tokenizer: str | None
    classes: list[str]
    templates: list[str]
    target: str
    """The safetensors file: image tower (`image.`) and head (`head.`)."""
    threads: int


def fold(payload: dict[str, Any]) -> dict[str, Any]:
    """Write the classifier, and return its preprocessing and cost.

    A user's mistake is returned as `{"refused": sentence}`.
    """
    try:
        return _fold(msgspec.convert(payload, FoldRequest))
    except InputError as error:
        return {"refused": str(error)}


def _fold(request: FoldRequest) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    from vitrail.profiling import cost
    from vitrail.zeroshot import head, loading

    torch.set_num_threads(request.threads)
    tokenizer = None if request.tokenizer is None else Path(request.tokenizer)
    loaded = loading.load(request.model, weights=request.weights, tag=request.tag, tokenizer=tokenizer)
    made = head.text_head(loaded.model, loaded.tokenizer, request.classes, request.templates)
    model = head.classifier(loaded.model, made.weight_KE, made.bias_K)
    counted = cost.count(model, loaded.preprocess.image_size)
    partial = Path(request.target).with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(request.target)
    return {
        "preprocess": msgspec.to_builtins(loaded.preprocess),
        "parameters": counted.parameters,
        "macs": counted.macs,
        "activations": counted.activations,
    }
