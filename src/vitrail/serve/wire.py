"""What the HTTP process and a model's process say to each other, over a socket pair.

A frame is two little-endian uint32 (bytes of the head, bytes of the payload), the head in MessagePack, the
payload as it is. n images or rows of one request share a frame: their bytes follow each other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, TypeAlias

import msgspec

__all__ = [
    "MOST_BYTES",
    "Answer",
    "Batch",
    "Beat",
    "Cancel",
    "Config",
    "Failed",
    "Images",
    "Kept",
    "Prompt",
    "Ready",
    "Refused",
    "Request",
    "Said",
    "Tensor",
    "Tensors",
    "Tried",
    "Try",
    "pack",
    "receive",
    "receive_from",
]

_SIZES = struct.Struct("<II")
MOST_BYTES = 1 << 30
"""No frame is larger: the limits on a request's body lie far below."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's process is started with."""

    artifact: str
    threads: int | None
    max_batch: int
    promise_ms: float | None
    """None: the artifact's."""
    megapixels: int | None
    file_bytes: int
    keep_photos: int = 1
    """Photos whose embeddings are kept, of a model that takes prompts."""


class Images(msgspec.Struct, tag="images", frozen=True, kw_only=True):
    """Answer for encoded images; the payload holds their bytes."""

    id: int
    sizes: list[int]
    """Bytes of each image."""
    options: dict[str, Any]
    """The task's: `top` for classification; `points`, `labels` and `box` of a prompt, or nothing."""
    form: str = "json"
    """What the answer is: one of `results.FORMS`."""
    deadline: float
    """On the monotonic clock, which both processes share, in s."""


class Prompt(msgspec.Struct, tag="prompt", frozen=True, kw_only=True):
    """Answer a prompt about a photo that has been sent before."""

    id: int
    image: str
    """The sha256 of its file."""
    options: dict[str, Any]
    """As of `Images`."""
    form: str
    deadline: float


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: its bytes in the payload, or a JSON array of numbers."""

    name: str
    dtype: str
    """NumPy's name."""
    shape: list[int]
    size: int
    """Bytes in the payload."""
    json: bool = False


class Tensors(msgspec.Struct, tag="tensors", frozen=True, kw_only=True):
    """Run the model on its own inputs; the payload holds the tensors, one after another."""

    id: int
    inputs: list[Tensor]
    deadline: float


class Try(msgspec.Struct, tag="try", frozen=True, kw_only=True):
    """Run a recorded photo through the queue, and compare its outputs with the recorded ones."""

    id: int
    photo: int
    deadline: float


class Cancel(msgspec.Struct, tag="cancel", frozen=True, kw_only=True):
    """Nobody waits for a request any more: do not begin what is left of it."""

    id: int


Request: TypeAlias = Images | Prompt | Tensors | Try | Cancel


class Ready(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """The model is loaded, and its artifact's digests hold."""

    task: str
    digest: str
    """sha256 of the manifest, which holds the digest of every other file."""
    about: dict[str, Any]
    """For people and programs: name, figures, workload (`describe`)."""
    inputs: list[Tensor]
    outputs: list[Tensor]
    """Shapes begin with the number of images, here -1."""
    promise_ms: float | None
    """The latency that the artifact was selected for, at this percentile of its workload."""
    photos: int
    """Recorded photos to try."""
    row_pixels: int
    """Pixels of one row of the first input."""


class Refused(msgspec.Struct, tag="refused", frozen=True, kw_only=True):
    """The model cannot be loaded; trying again would not help."""

    message: str


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the engine."""

    images: int
    size: int
    """Images that the engine was compiled for."""
    seconds: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a model that takes prompts keeps of photos."""

    photos: int
    bytes: int
    prompt_ms: float
    """The 95th percentile of the latency of a prompt in the engine; 0: not known."""


class Beat(msgspec.Struct, tag="beat", frozen=True, kw_only=True):
    """A sign of life, several times a second."""

    running_s: float
    """How long the batch in the engine has been there; 0: none."""
    decoding_s: float
    """What the slowest image in a decoder has taken of a core so far; waiting counts a tenth."""
    resident_bytes: int
    batches: list[Batch]
    """Since the last beat."""
    sizes: dict[int, float]
    """Compiled batch sizes, with the 95th percentile of their latency in ms where it is known (else 0)."""
    most: int
    """The largest batch that keeps the promise."""
    beside: int
    """Single images that run at the same time when there is work for all threads; 0: batches are better."""
    beside_ms: float
    """The 95th percentile of the latency of one of them; 0: not known."""
    kept: Kept | None = None
    """None: the model takes no prompts."""


class Answer(msgspec.Struct, tag="answer", frozen=True, kw_only=True):
    """A request's results. The payload: a JSON array of one result per image, one PNG, or output tensors."""

    id: int
    outputs: list[Tensor]
    """Of `Tensors`; the results of images are JSON alone."""
    errors: list[tuple[str, str]]
    """Code and sentence for each image without a result."""
    prepare_s: float
    """Decoding and preprocessing, the longest of its images."""
    wait_s: float
    """From arriving in this process to the engine, without preparing, the longest of its images."""
    run_s: float
    """In the engine, the longest of its images."""
    finish_s: float = 0.0
    """Making masks of the outputs; 0: of no task's that makes none."""


class Failed(msgspec.Struct, tag="failed", frozen=True, kw_only=True):
    """A request without results: `code` is one of `refusals.CODES`."""

    id: int
    code: str
    message: str


class Tried(msgspec.Struct, tag="tried", frozen=True, kw_only=True):
    """How a recorded photo compares; no failures: as recorded."""

    id: int
    failures: list[str]


Said: TypeAlias = Ready | Refused | Beat | Answer | Failed | Tried

_encode = msgspec.msgpack.Encoder().encode
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def pack(head: Request | Said, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """A frame as pieces to write one after another."""
    data = _encode(head)
    return [_SIZES.pack(len(data), sum(map(len, parts))) + data, *parts]


def receive(connection: socket.socket) -> tuple[Request, bytes] | None:
    """The next request in the model's process; None: the HTTP process is gone."""
    sizes = _exactly(connection, _SIZES.size)
    if sizes is None:
        return None
    head_bytes, payload_bytes = _SIZES.unpack(sizes)
    head, payload = _exactly(connection, head_bytes), _exactly(connection, payload_bytes)
    return None if head is None or payload is None else (_requests.decode(head), payload)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    left = count
    while left:
        try:
            part = connection.recv(left, socket.MSG_WAITALL)  # all at once, unless a signal comes
        except ConnectionError:
            return None
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def receive_from(reader: asyncio.StreamReader) -> tuple[Said, bytes] | None:
    """The next message in the HTTP process; None: the model's process is gone, or speaks no longer."""
    try:
        head_bytes, payload_bytes = _SIZES.unpack(await reader.readexactly(_SIZES.size))
        if head_bytes + payload_bytes > MOST_BYTES:
            return None
        head = _said.decode(await reader.readexactly(head_bytes))
        return head, await reader.readexactly(payload_bytes)
    except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
        return None
