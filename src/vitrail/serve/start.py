"""The start: the port first, then the models' processes, and while they load the HTTP server's libraries."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.serve.keys import Keys
from vitrail.serve.listen import bind
from vitrail.serve.settings import Served, Settings
from vitrail.serve.site import Site

__all__ = ["start"]


def start(models: Sequence[Served], settings: Settings, keys: Keys | None) -> int:
    """Serve until told to end.

    Raises:
        InputError: the port cannot be used, or a model cannot be served.
    """
    with bind(settings.host, settings.port) as listener:
        site = Site.of(models, settings, keys)
        from vitrail.serve.server import run  # FastAPI takes half a second, which the models use to load

        return run(site, listener)
