"""The page at `/`, and the API's description for people: files of this package, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response

from vitrail.serve.door import visit

__all__ = ["router"]

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = {
    "/": "page.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/masks.js": "masks.js",
    "/clicks.js": "clicks.js",
    "/docs": "docs.html",
    "/docs.js": "docs.js",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


async def _page(request: Request) -> Response:
    """One file."""
    visit(request.scope).endpoint = "page"
    name = FILES[request.scope["path"]]
    return Response(
        (FOLDER / name).read_bytes(),
        media_type=TYPES[Path(name).suffix],
        headers={"content-security-policy": POLICY},
    )


for _path in FILES:
    router.add_api_route(_path, _page, methods=["GET"], response_class=Response)
