"""The photo on which the winner differs most from the fp32 reference, small enough to stand in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.report import phrases
from vitrail.vocabulary import Selection

SIDE = 160
"""Pixels of the longer side."""


@dataclass(frozen=True, kw_only=True)
class WorstPhoto:
    """What the page shows of it."""

    name: str
    relative_error: float
    cosine: float
    also: str
    """What else its task says of the comparison."""
    source: str
    """A data URI; "": the photo is no longer there, or cannot be read."""


def worst_photo(selection: Selection) -> WorstPhoto | None:
    """Of what wins or leads; None in fp32, where only rounding differs, and where nothing was compared."""
    entry = selection.winner or selection.leader
    parity = None if entry is None else entry.observation.parity
    if entry is None or parity is None or not parity.worst:
        return None
    if entry.variant.precision in ("fp32", "") and entry.variant.exact:
        return None
    return WorstPhoto(
        name=Path(parity.worst).name,
        relative_error=parity.relative_error,
        cosine=parity.cosine,
        also=phrases.parity_figures(parity),
        # A document from elsewhere names files of elsewhere: what was measured here is shown.
        source=_small(parity.worst) if entry.observation.measurement is not None else "",
    )


def _small(path: str) -> str:
    try:
        image = decode(path, short_side=SIDE)
    except InputError:
        return ""
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
