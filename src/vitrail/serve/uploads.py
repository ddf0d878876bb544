"""A request's body and the images in it, within limits; nothing is parsed before all of it has arrived."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vitrail.serve.refusals import Refusal

__all__ = ["Upload", "Uploads", "images_of"]

RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Types of a body that is one image: curl's for --data-binary is among them."""
MULTIPART = "multipart/form-data"
PART_HEADERS, PART_HEADER_BYTES = 8, 4096
TYPE_LETTERS = 1024
"""Of a Content-Type; some versions of its parser take time by its length squared."""
SPARE_LINES, PADDING = 8, 64
"""Lines of a form that begin as its boundary does and are none, and spaces after one, that are looked at."""
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")


class Upload:
    """A request's body. Its bytes count until everybody who was given it has let go of it."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._parts: list[bytes] = []
        self._users = 1
        self.bytes = 0

    def add(self, part: bytes) -> None:
        """More of it has come."""
        self._parts.append(part)
        self.bytes += len(part)
        self._uploads.bytes += len(part)

    def whole(self) -> bytes:
        """All of it."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def keep(self) -> None:
        """Somebody else needs it too; each call has its `let_go`."""
        self._users += 1

    def let_go(self) -> None:
        """It is not needed here any more."""
        self._users -= 1
        if not self._users:
            self._uploads.bytes -= self.bytes


class Uploads:
    """Reads bodies; all that are received and still needed share one budget of memory."""

    def __init__(self, *, body_bytes: int, all_bytes: int, timeout_s: float) -> None:
        self.body_bytes, self.all_bytes, self.timeout_s = body_bytes, all_bytes, timeout_s
        self.bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[Upload]:
        """The whole body, which the block may give to others that need it for longer.

        Raises:
            Refusal: it is too large, too slow, or too much has been received and is not yet answered.
            ClientDisconnect: the client went away.
        """
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self.body_bytes:
            raise self._too_large()
        upload = Upload(self)
        try:
            try:
                with anyio.fail_after(self.timeout_s):  # without a task for it
                    await self._read(request, upload)
            except TimeoutError:
                text = f"The body did not arrive within {self.timeout_s:g} s."
                raise Refusal("upload_timeout", text) from None
            yield upload
        finally:
            upload.let_go()

    async def _read(self, request: Request, upload: Upload) -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            upload.add(message.get("body", b""))
            if upload.bytes > self.body_bytes:
                raise self._too_large()
            if self.bytes > self.all_bytes:
                raise Refusal(
                    "uploads_full", "Too much has been received and is not yet answered: try again later."
                )
            if not message.get("more_body", False):
                return

    def _too_large(self) -> Refusal:
        return Refusal(
            "too_large", f"The body is larger than {self.body_bytes >> 20} MiB: send less at once."
        )


def images_of(body: bytes, content_type: str, most: int) -> list[bytes]:
    """The images of a body: all of it, or each file of a multipart form.

    Raises:
        Refusal: another type, a form that is damaged or has other fields, no image, or more than `most`.
    """
    kind, boundary = _content_type(content_type)
    if kind == MULTIPART:
        images = _files(body, boundary, most)
    elif kind.startswith("image/") or kind in RAW:
        images = [body] if body else []
    else:
        raise Refusal(
            "unsupported_media",
            f"{kind} is not accepted: send an image, or a multipart/form-data form of images.",
        )
    if not images:
        raise Refusal(
            "bad_request", "There is no image in the request: send one as the body, or as a form's file."
        )
    return images


def _content_type(text: str) -> tuple[str, bytes]:
    if len(text) > TYPE_LETTERS:
        raise Refusal("bad_request", f"The Content-Type has more than {TYPE_LETTERS} letters.")
    kind, options = parse_options_header(text)
    return kind.decode("latin-1"), options.get(b"boundary", b"")


def _files(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    if not _BOUNDARY.fullmatch(boundary):
        raise Refusal("bad_request", "The form's boundary is missing or malformed.")
    _check_lines(body, b"\r\n--" + boundary, most)
    form = _Form(most)
    parser = MultipartParser(
        boundary,
        form.callbacks(),  # type: ignore[arg-type]
        max_header_count=PART_HEADERS,
        max_header_size=PART_HEADER_BYTES,
    )
    try:
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refusal("bad_request", "The form is damaged: its parts do not follow RFC 7578.") from None
    if not form.ended:
        raise Refusal("bad_request", "The form is cut: its last boundary is missing.")
    return form.files


def _check_lines(body: bytes, line: bytes, most: int) -> None:
    """Refuse a form over which the parser would go byte by byte.

    It finds the end of a long part at once, but takes each false boundary, and each space after a true one,
    by itself.
    """
    place = 0
    for _ in range(most + SPARE_LINES):
        place = body.find(line, place)
        if place < 0:
            return
        place += len(line)
        after = body[place : place + PADDING]
        if len(after) == PADDING and not after.strip(b" \t"):
            raise Refusal("bad_request", "The form is damaged: its parts do not follow RFC 7578.")
    raise Refusal("too_large", f"A request may have at most {most} images.")


class _Form:
    """Collects the files of a form."""

    def __init__(self, most: int) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._most = most
        self._name, self._value = b"", b""
        self._is_file = False
        self._parts: list[bytes] = []

    def callbacks(self) -> dict[str, Callable[..., Any]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._add,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _begin(self) -> None:
        self._parts, self._is_file = [], False
        self._name, self._value = b"", b""
        if len(self.files) >= self._most:
            raise Refusal("too_large", f"A request may have at most {self._most} images.")

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._is_file = b"filename" in self._value.lower()
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._parts.append(data[start:end])

    def _end(self) -> None:
        if not self._is_file:
            raise Refusal("bad_request", "The form has a field that is no file: send images alone.")
        self.files.append(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))

    def _all(self) -> None:
        self.ended = True
