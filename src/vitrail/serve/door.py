"""What every request passes: its id, who may come in, its log line, its errors as JSON (ASGI middleware)."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serve.log import AccessLog, report
from vitrail.serve.refusals import FAILED, Refusal
from vitrail.serve.site import Site

__all__ = ["GONE", "HEALTH", "Direct", "Door", "Visit", "refusal_parts", "visit"]

Direct: TypeAlias = "Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]]"
"""Method and path -> what answers."""

OPEN = (
    "/",
    "/page.css",
    "/page.js",
    "/masks.js",
    "/clicks.js",
    "/docs",
    "/docs.js",
    "/openapi.json",
    "/v2/health/live",
    "/v2/health/ready",
)
"""Without a key: pages that say nothing of the models, and what load balancers ask."""
HEALTH = ("/v2/health/live", "/v2/health/ready")
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
GONE = 499
"""In the log, as nginx has it: the client went away."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass(eq=False)
class Visit:
    """One request's facts, for its log line and the metrics."""

    id: str
    began: float
    received: float | None = None
    """When its last byte had come; None: nobody has read that far."""
    endpoint: str = "other"
    model: str = ""
    images: int = 0
    key: str = ""
    code: str = ""
    status: int = 0
    bytes: int = 0


def visit(scope: Any) -> Visit:
    """The facts of a request."""
    found: Visit = scope["vitrail"]
    return found


class Door:
    """Around the whole application.

    Args:
        app: what answers.
        direct: routes of `app` that are asked so often that its own way to them, a quarter of a millisecond
            of the processor, is worth leaving out.
        site: what is served.
        log: gets a line for each request.
    """

    def __init__(self, app: ASGIApp, direct: Direct, site: Site, log: AccessLog | None) -> None:
        self._app, self._direct, self._site, self._log = app, direct, site, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        here = scope["vitrail"] = Visit(id=_request_id(headers), began=time.monotonic())
        extra = [(b"x-request-id", here.id.encode()), *HEADERS]
        if self._site.leaving:
            extra.append((b"connection", b"close"))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                here.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            elif message["type"] == "http.response.body":
                here.bytes += len(message.get("body", b""))
            await send(message)

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                here.received = time.monotonic()
            return message

        try:
            self._admit(scope, headers, here)
            handler = self._direct.get((scope["method"], scope["path"]))
            if handler is None:
                await self._app(scope, hear, answer)
            else:
                scope["app"] = self._app
                response = await handler(Request(scope, hear))
                await response(scope, hear, answer)
        except Refusal as refusal:
            await _refuse(refusal, scope, answer)
        except ClientDisconnect:
            here.status = GONE
        except asyncio.CancelledError:
            if not self._site.closed or here.status:  # some servers end a request so whose client has left
                here.status = here.status or GONE
                raise
            await _refuse(Refusal("draining", "The server is shutting down."), scope, answer)
        except Exception:
            report(here.id)
            if not here.status:  # else the application has told of it
                await _refuse(Refusal("failed", FAILED), scope, answer)
        finally:
            self._remember(scope, here)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes], here: Visit) -> None:
        """Raise a Refusal for whoever may not come in."""
        site, path = self._site, scope["path"]
        if path in HEALTH:
            return
        if site.closed:
            raise Refusal("draining", "The server is shutting down: send this to another.")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise Refusal("forbidden", "Requests of other sites' pages are not answered.")
        if site.keys is None:
            # A page of another site could reach this machine's own address under a name of its choice.
            if site.settings.loopback and _without_port(host) not in (*LOCAL, site.settings.host):
                raise Refusal("wrong_host", "This server answers to localhost alone.")
            return
        if path in OPEN:
            return
        owner = site.keys.owner(_presented(headers))
        if owner is None:
            raise Refusal("unauthorised", "Send a valid API key, as in Authorization: Bearer KEY.")
        here.key = owner

    def _remember(self, scope: Scope, here: Visit) -> None:
        now = time.monotonic()
        seconds = now - here.began
        self._site.metrics.answered(
            here.model, here.endpoint, here.status, now - (here.received or here.began)
        )
        if here.code:
            self._site.metrics.rejected(here.code)
        if self._log is not None:
            client = scope.get("client")
            self._log.add(
                {
                    "time": time.time(),
                    "id": here.id,
                    "client": client[0] if client else "",
                    "key": here.key,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": here.status,
                    "code": here.code,
                    "ms": round(seconds * 1e3, 3),
                    "model": here.model,
                    "images": here.images,
                    "bytes": here.bytes,
                }
            )


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)


def _presented(headers: dict[bytes, bytes]) -> str:
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")


def _without_port(host: str) -> str:
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def refusal_parts(refusal: Refusal, scope: Scope) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a refusal; v2's `error` is a sentence, as its protocol says."""
    here = visit(scope)
    here.code = refusal.code
    body: dict[str, Any]
    if scope["path"].startswith("/v2"):
        body = {"error": refusal.message, "code": refusal.code, "request_id": here.id}
    else:
        body = {"error": {"code": refusal.code, "message": refusal.message, "request_id": here.id}}
    headers = {"content-type": "application/json"}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return refusal.status, headers, msgspec.json.encode(body)


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    status, headers, data = refusal_parts(refusal, scope)
    headers["content-length"] = str(len(data))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})
