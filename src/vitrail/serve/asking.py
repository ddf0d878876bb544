"""A request's way to a model and back, for all kinds of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from vitrail.serve import wire
from vitrail.serve.admission import Queue
from vitrail.serve.door import visit
from vitrail.serve.model import Answered, Model
from vitrail.serve.refusals import Refusal
from vitrail.serve.uploads import Upload

__all__ = ["ask", "patience_of"]

DEADLINE_HEADER = "x-deadline-ms"


def patience_of(request: Request, most_ms: float) -> float:
    """Seconds after which to give the request up; the client may ask for less than is usual.

    Raises:
        Refusal: it asks for something that is no time.
    """
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is None:
        return most_ms / 1e3
    if not asked.isascii() or not asked.isdigit() or not 1 <= len(asked) <= 9 or int(asked) < 1:
        raise Refusal("bad_request", "X-Deadline-Ms is no whole number of milliseconds from 1.")
    return min(float(asked), most_ms) / 1e3


async def ask(
    request: Request,
    model: Model,
    images: int,
    pixels: int,
    make: Callable[[int, float], wire.Images | wire.Prompt | wire.Tensors],
    parts: Sequence[Any],
    patience_s: float,
    upload: Upload,
    *,
    queue: Queue | None = None,
) -> Answered:
    """The model's answer. `make` gets the request's number and deadline; patience begins with its last byte.

    `queue`: where it counts; None: among the model's images.

    Raises:
        Refusal: as `Model.ask`.
        ClientDisconnect: nobody waits for it any more; what is left of it is not done.
    """
    here = visit(request.scope)
    here.model, here.images = model.name, images
    deadline = (here.received or time.monotonic()) + patience_s
    gone = asyncio.ensure_future(_left(request))
    try:
        return await model.ask(
            images,
            pixels,
            lambda number: make(number, deadline),
            parts,
            deadline=deadline,
            gone=gone,
            upload=upload,
            queue=queue,
        )
    except Refusal as refusal:
        if refusal.code == "deadline" and gone.done():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
