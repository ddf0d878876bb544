"""The application: routes, the middleware around them, and their description (OpenAPI)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vitrail.serve import pages, v1, v2
from vitrail.serve.door import GONE, Door, refusal_parts, visit
from vitrail.serve.log import AccessLog
from vitrail.serve.refusals import CODES, FAILED, Refusal
from vitrail.serve.schemas import SCHEMAS
from vitrail.serve.site import Site
from vitrail.version import __version__

__all__ = ["application"]

DESCRIPTION = "Vision models with their evidence. Errors name a code; docs/serving.md lists them."
_SAID = {
    "not_found": "There is nothing at this address.",
    "method_not_allowed": "This address takes another method.",
}
_BY_STATUS = {status: code for code, status in reversed(CODES.items())}


def application(site: Site, log: AccessLog | None = None) -> Door:
    """An ASGI application that answers for the site's models."""
    app = FastAPI(
        title="Vitrail",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # Newer FastAPI reports to whatever OTEL_EXPORTER_OTLP_ENDPOINT names, unasked.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.site = site
    app.include_router(v1.router)
    app.include_router(v2.router)
    app.include_router(pages.router)
    app.add_api_route("/metrics", _metrics, methods=["GET"], tags=["server"], response_class=Response)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _by_status)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    plain = app.openapi

    def described() -> dict[str, Any]:
        found = plain()
        found.setdefault("components", {}).setdefault("schemas", {}).update(SCHEMAS)
        return found

    app.openapi = described  # type: ignore[method-assign]
    return Door(app, v1.DIRECT, site, log)


async def _metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    visit(request.scope).endpoint = "metrics"
    return Response(
        request.app.state.site.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    status, headers, data = refusal_parts(error, request.scope)
    return Response(data, status, headers)


async def _by_status(request: Request, error: Exception) -> Response:
    """What the router itself refuses: no such address, another method."""
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(error.status_code, "bad_request")
    return await _refused(
        request, Refusal(code, _SAID.get(code, "The request is not what this address takes."))
    )


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)  # nobody reads it; the log does


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, Refusal("failed", FAILED))
