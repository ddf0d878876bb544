"""A request's way to a model and back, for all kinds of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from vitrail.serve import wire
from vitrail.serve.door import visit
from vitrail.serve.model import Answered, Model
from vitrail.serve.refusals import Refusal

__all__ = ["ask", "deadline_of"]

DEADLINE_HEADER = "x-deadline-ms"


def deadline_of(request: Request, most_ms: float) -> float:
    """When to give the request up, on the monotonic clock; the client may ask for less time than is usual.

    Raises:
        Refusal: it asks for something that is no time.
    """
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is None:
        return time.monotonic() + most_ms / 1e3
    if not asked.isascii() or not asked.isdigit() or not 1 <= len(asked) <= 9 or int(asked) < 1:
        raise Refusal("bad_request", "X-Deadline-Ms is no whole number of milliseconds from 1.")
    return time.monotonic() + min(float(asked), most_ms) / 1e3


async def ask(
    request: Request,
    model: Model,
    images: int,
    pixels: int,
    make: Callable[[int], wire.Images | wire.Tensors],
    parts: Sequence[Any],
    deadline: float,
) -> Answered:
    """The model's answer.

    Raises:
        Refusal: as `Model.ask`.
        ClientDisconnect: nobody waits for it any more; what is left of it is not done.
    """
    here = visit(request.scope)
    here.model, here.images = model.name, images
    gone = asyncio.ensure_future(_gone(request))
    try:
        return await model.ask(images, pixels, make, parts, deadline=deadline, gone=gone)
    except Refusal as refusal:
        if refusal.code == "deadline" and gone.done():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
