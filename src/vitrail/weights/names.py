"""Names of a state dict's tensors without what training wrapped around the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

__all__ = ["plain", "spellings"]

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Modules that torch.compile, FSDP and activation checkpointing put between others, anywhere in a name."""

OUTER = frozenset({"module", "model", "net", "network"})
"""What DataParallel, DDP, Lightning and averaging put before all names."""

COUNTER = "n_averaged"
"""torch.optim.swa_utils.AveragedModel counts its updates beside `module.`"""


def plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the wrappers' parts of their names; names that would meet stay as they are."""
    state = {
        name: value
        for name, value in state_dict.items()
        if name != COUNTER or value.ndim or len(state_dict) == 1
    }
    kept = {name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in state}
    if len(set(kept.values())) == len(kept) and all(kept.values()):
        state = {kept[name]: value for name, value in state.items()}
    while _first(state) in OUTER:
        state = _without_first(state)
    return state


def spellings(state_dict: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The names as they stand, then without each beginning that all of them share."""
    state = dict(state_dict)
    yield state
    while _first(state) is not None:
        state = _without_first(state)
        yield state


def _first(state: Mapping[str, Tensor]) -> str | None:
    """What stands before the first dot of all names; None: not the same in all, or a name without a dot."""
    firsts = {name.partition(".")[0] if "." in name else None for name in state}
    return firsts.pop() if len(firsts) == 1 else None


def _without_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition(".")[2]: value for name, value in state.items()}
