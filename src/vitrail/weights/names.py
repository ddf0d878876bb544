"""Removes from tensor names what training wrappers added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

__all__ = ["plain", "spellings"]

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Modules that torch.compile, FSDP and activation checkpointing insert anywhere in a name."""

OUTER = frozenset({"module", "model", "net", "network"})
"""Prefixes that DataParallel, DDP, Lightning and weight averaging add to all names."""

COUNTER = "n_averaged"
"""torch.optim.swa_utils.AveragedModel stores its number of updates next to `module.`"""


def plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the wrappers' parts of their names; names that would collide are kept."""
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
    """The names as they are, then with each shared first part removed in turn."""
    state = dict(state_dict)
    yield state
    while _first(state) is not None:
        state = _without_first(state)
        yield state


def _first(state: Mapping[str, Tensor]) -> str | None:
    """The part before the first dot, if all names share it; None otherwise."""
    firsts = {name.partition(".")[0] if "." in name else None for name in state}
    return firsts.pop() if len(firsts) == 1 else None


def _without_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition(".")[2]: value for name, value in state.items()}
