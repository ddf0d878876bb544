"""`/v2`: the Open Inference Protocol, in which the model's own tensors go in and out.

Source: kserve.github.io, Open Inference Protocol, HTTP/REST; Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from vitrail.errors import InputError
from vitrail.serve import shapes, wire
from vitrail.serve.asking import ask, patience_of
from vitrail.serve.door import visit
from vitrail.serve.forms import PROMPTABLE
from vitrail.serve.model import Answered, Model
from vitrail.serve.refusals import Refusal
from vitrail.serve.schemas import INFER, parameters, responses
from vitrail.serve.site import Site
from vitrail.version import __version__

__all__ = ["router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
DATATYPES = {
    "FP32": ("float32", 4, "f"),
    "UINT8": ("uint8", 1, "B"),
    "INT64": ("int64", 8, "q"),
}
"""The protocol's name -> NumPy's, bytes, and the letter of Python's arrays: of the models' tensors."""
NAMES = {numpy: name for name, (numpy, _, _) in DATATYPES.items()}
HEADER = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data"]
MOST_TENSORS = 64


class _Input(msgspec.Struct, kw_only=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] = {}


class _Infer(msgspec.Struct, kw_only=True):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_decode = msgspec.json.Decoder(_Infer).decode


@router.get("", **responses("Server", v2=True))
async def server(request: Request) -> Response:
    """What this server is, and which extensions it has."""
    return _json(request, {"name": "vitrail", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live", **responses("Live", v2=True))
async def live(request: Request) -> Response:
    """Whether the HTTP process answers; it says nothing of the models."""
    return _json(request, {"live": True})


@router.get("/health/ready", **responses("IsReady", v2=True))
async def ready(request: Request) -> Response:
    """Whether every model answers a recorded photo as recorded, asked through its queue just now."""
    site: Site = request.app.state.site
    visit(request.scope).endpoint = "ready"
    if site.leaving:
        raise Refusal("draining", "The server is shutting down.")
    for model in site.models.values():
        await _require(model)
    return _json(request, {"ready": True})


@router.get("/models/{name}", **responses("Model", v2=True))
@router.get("/models/{name}/versions/{version}", **responses("Model", v2=True))
async def metadata(request: Request, name: str, version: str | None = None) -> Response:
    """A model's inputs and outputs; -1 stands for the number of images."""
    model = _model(request, name, version)
    facts = model.facts
    about = {
        "name": model.name,
        "versions": [model.version],
        "platform": f"vitrail_{str(facts.about['runtime']).split()[0]}",
        "inputs": [_spec(tensor) for tensor in facts.inputs],
        "outputs": [_spec(tensor) for tensor in facts.outputs],
    }
    return _json(request, about)


@router.get("/models/{name}/ready", **responses("IsReady", v2=True))
@router.get("/models/{name}/versions/{version}/ready", **responses("IsReady", v2=True))
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether one model answers as recorded."""
    model = _model(request, name, version)
    await _require(model)
    return _json(request, {"name": model.name, "ready": True})


@router.post(
    "/models/{name}/infer",
    openapi_extra={**INFER, "parameters": parameters()},
    **responses("Inferred", v2=True),
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    openapi_extra={**INFER, "parameters": parameters()},
    **responses("Inferred", v2=True),
)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Run the model on its own inputs; rows of all requests share batches."""
    site: Site = request.app.state.site
    model = _model(request, name, version)
    visit(request.scope).endpoint = "infer"
    patience_s = patience_of(request, site.settings.deadline_ms)
    if model.facts.task == PROMPTABLE:
        raise Refusal(
            "bad_request", f"{model.name} has two graphs: send a photo and prompts to /v1/segment instead."
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal("unsupported_media", "A compressed body is not accepted: send it as it is.")
    model.queue.check(1, 0)
    async with site.uploads.body(request) as upload:
        asked, data = _asked(upload.whole(), request.headers.get(HEADER))
        tensors, parts, rows = _tensors(asked, data, model.facts.inputs, site.settings.max_images)
        outputs = _outputs(asked, model)
        answered = await ask(
            request,
            model,
            rows,
            rows * model.facts.row_pixels,
            lambda id, deadline: wire.Tensors(id=id, inputs=tensors, deadline=deadline),
            parts,
            _sooner(patience_s, asked.parameters.get("timeout")),
            upload,
        )
    return _answer(model.name, asked.id, outputs, answered)


# --- asking ---------------------------------------------------------------------------------------


def _model(request: Request, name: str, version: str | None) -> Model:
    site: Site = request.app.state.site
    here = visit(request.scope)
    here.endpoint = "model"
    model = site.model(name)
    here.model = model.name
    if version is not None and version != model.version:
        raise Refusal("not_found", f"{model.name} has no such version, only {model.version}.")
    return model


async def _require(model: Model) -> None:
    reasons = await model.check()
    if reasons:
        raise Refusal("not_ready", f"{model.name} is not ready: {'; '.join(reasons)}.")


def _asked(body: bytes, header: str | None) -> tuple[_Infer, memoryview]:
    """The request's JSON, and the binary data after it."""
    length = len(body)
    if header is not None:
        if not header.isascii() or not header.isdigit() or len(header) > 12 or int(header) > length:
            raise Refusal("bad_request", "Inference-Header-Content-Length is not the length of the JSON.")
        length = int(header)
    view = memoryview(body)
    try:
        asked = _decode(view[:length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(
            "bad_request", f"The request is not as the protocol says ({str(error)[:200]})."
        ) from None
    if not 0 < len(asked.inputs) <= MOST_TENSORS or len(asked.outputs) > MOST_TENSORS:
        raise Refusal("bad_request", "The request has no inputs, or too many.")
    return asked, view[length:]


def _tensors(
    asked: _Infer, data: memoryview, wanted: Sequence[wire.Tensor], most: int
) -> tuple[list[wire.Tensor], list[Any], int]:
    """What the model's process is told, the bytes, and the number of rows."""
    tensors: list[wire.Tensor] = []
    parts: list[Any] = []
    rows = _rows(asked.inputs, wanted)
    if rows > most:
        raise Refusal("too_large", f"A request may have at most {most} images.")
    place = 0
    for given in asked.inputs:
        dtype, item_bytes, _ = DATATYPES[given.datatype]
        size = given.parameters.get("binary_data_size")
        text = bytes(given.data)
        if size is None and text:
            part: Any = text
        elif isinstance(size, int) and size == math.prod(given.shape) * item_bytes and not text:
            part = data[place : place + size]
            place += size
        else:
            raise Refusal("bad_request", f"{given.name[:50]} has no data, or not as much as its shape says.")
        parts.append(part)
        tensors.append(
            wire.Tensor(name=given.name, dtype=dtype, shape=given.shape, size=len(part), json=bool(text))
        )
    if place != len(data):
        raise Refusal("bad_request", "The binary data is longer or shorter than the inputs say.")
    return tensors, parts, rows


def _rows(inputs: Sequence[_Input], wanted: Sequence[wire.Tensor]) -> int:
    """How many rows the inputs have, if they are the model's."""
    for given in inputs:
        if given.datatype not in DATATYPES:
            raise Refusal("bad_request", f"{given.name[:50]} is not {' or '.join(DATATYPES)}.")
    try:
        return shapes.rows(
            [
                wire.Tensor(name=each.name, dtype=DATATYPES[each.datatype][0], shape=each.shape, size=0)
                for each in inputs
            ],
            wanted,
        )
    except InputError as error:
        raise Refusal("bad_request", str(error)) from None


def _outputs(asked: _Infer, model: Model) -> dict[str, bool]:
    """Which outputs are wanted, and whether as binary data."""
    names = [tensor.name for tensor in model.facts.outputs]
    binary = asked.parameters.get("binary_data_output") is True
    if not asked.outputs:
        return dict.fromkeys(names, binary)
    wanted: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in names:
            raise Refusal("bad_request", f"{model.name} has no such output, only {', '.join(names)}.")
        if "classification" in output.parameters:
            raise Refusal("bad_request", "Labels come from /v1/classify: leave classification out.")
        wanted[output.name] = output.parameters.get("binary_data", binary) is True
    return wanted


def _sooner(patience_s: float, timeout_us: object) -> float:
    """The patience, or the request's own in microseconds (Triton's `timeout`) if that is less."""
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us <= 0:
        return patience_s
    return min(patience_s * 1e6, timeout_us) / 1e6  # the smaller first: a timeout may have 4,000 digits


# --- answering ------------------------------------------------------------------------------------


def _answer(name: str, id: str, wanted: dict[str, bool], answered: Answered) -> Response:
    facts, answer, payload = answered
    outputs: list[dict[str, Any]] = []
    data: list[bytes] = []
    place = 0
    for tensor in answer.outputs:
        part = payload[place : place + tensor.size]
        place += tensor.size
        if tensor.name not in wanted:
            continue
        datatype = NAMES[tensor.dtype]
        said: dict[str, Any] = {"name": tensor.name, "datatype": datatype, "shape": tensor.shape}
        if wanted[tensor.name]:
            said["parameters"] = {"binary_data_size": len(part)}
            data.append(part)
        else:
            values = array(DATATYPES[datatype][2])
            values.frombytes(part)
            said["data"] = values.tolist()
        outputs.append(said)
    head = {"model_name": name, "model_version": facts.digest[:12], "outputs": outputs}
    if id:
        head["id"] = id
    text = msgspec.json.encode(head)
    if not data:
        return Response(text, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(b"".join((text, *data)), media_type="application/octet-stream", headers=headers)


def _spec(tensor: wire.Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": NAMES[tensor.dtype], "shape": tensor.shape}


def _json(request: Request, value: dict[str, Any]) -> Response:
    here = visit(request.scope)
    here.endpoint = "server" if here.endpoint == "other" else here.endpoint
    return Response(msgspec.json.encode(value), media_type="application/json")
