"""One replica on a Ray cluster: the application of one server, started and ended with Ray's process.

Ray's proxies speak HTTP and choose the replica; all else is as in a server of its own. The module knows Ray
by what it calls here, and imports it only to ask for the replica's name.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.errors import VitrailError
from vitrail.serve.log import AccessLog
from vitrail.serve.nodes import Setup, check_node
from vitrail.serve.site import Site

__all__ = ["TOLD", "Hosted", "Replica"]

TOLD = "vitrail says: "
"""Begins the sentence for the user in an error that Ray carries, as text, to the command."""
REQUEST_ID = b"x-request-id"


class Hosted:
    """The ASGI application of a replica. Until its lifespan begins it is the setup alone, to be pickled."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._site: Site | None = None
        self._door: ASGIApp | None = None
        self._log: AccessLog | None = None
        self._fault = "it has not been started"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the replica's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._door is not None:
            await self._door(scope, receive, _with_one_id(scope, send))

    async def check(self) -> None:
        """Raise a RuntimeError with the reasons unless every model answers as recorded."""
        if self._site is None:
            raise RuntimeError(TOLD + self._fault)
        found = await self._site.check()
        if found:
            raise RuntimeError(TOLD + "; ".join(f"{name}: {', '.join(why)}" for name, why in found.items()))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except VitrailError as error:
            # Told by the first health check: of that Ray passes the reason on, of a failed start it does not.
            self._fault = str(error)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._site is not None:
            await self._site.close()
        if self._log is not None:
            self._log.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        setup = self._setup
        check_node(setup)
        site = Site.of(setup.models, setup.settings, setup.keys, replica=_name())
        from vitrail.serve.app import application  # FastAPI takes half a second, which the models use to load

        log = AccessLog(site.metrics) if setup.settings.access_log else None
        door = application(site, log)
        try:
            await site.start()
        except BaseException:
            await site.close()
            raise
        self._site, self._door, self._log = site, door, log


class Replica:
    """What Ray asks beside requests; `serve.ingress` adds `app`."""

    app: Hosted

    async def check_health(self) -> None:
        """Raise a RuntimeError unless ready: Ray replaces a replica that is not, three times in a row."""
        await self.app.check()


def _name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_tag)


def _with_one_id(scope: Scope, send: Send) -> Send:
    """Without our header for the request's id where Ray's proxy adds one: to requests that it gave an id."""
    if all(name != REQUEST_ID for name, _ in scope["headers"]):
        return send

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [pair for pair in message["headers"] if pair[0] != REQUEST_ID]
        await send(message)

    return answer
