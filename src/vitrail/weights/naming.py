"""Translates a file's tensor names into ours: strips wrappers and recognises the dialect by its keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vitrail.weights.dialects import Dialect, detect, translate
from vitrail.weights.names import plain, spellings

__all__ = ["NotWhole", "in_our_names", "is_head"]


class NotWhole(ValueError):
    """A file in a known dialect lacks part of a tensor; the message does not name the file."""


def in_our_names(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of the model's class, before its `adapt_weights`.

    Unknown names stay as they are.

    Raises:
        NotWhole: a tensor that is stored in parts lacks one of them.
    """
    dialects: tuple[Dialect, ...] = getattr(model, "DIALECTS", ())
    own = model.state_dict().keys()
    given = plain(state_dict)
    for spelling in spellings(given):
        dialect = detect(spelling, dialects)
        if dialect is not None:
            try:
                return translate(spelling, dialect)
            except ValueError as error:
                raise NotWhole(f"looks like {dialect.name} and is not whole: {error}") from None
        if own & spelling.keys():
            return spelling
    return given


def is_head(model: nn.Module, key: str) -> bool:
    """Whether a tensor belongs to the classifier, which `replace_head` skips."""
    prefixes: tuple[str, ...] = getattr(model, "head_prefix", ())
    return any(key.startswith(prefix) for prefix in prefixes)
