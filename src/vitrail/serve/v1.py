"""`/v1`: images in, results out."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from vitrail.errors import InputError
from vitrail.images.declared import declared_pixels
from vitrail.images.limits import LIMITS, Limits
from vitrail.limits import RANGES
from vitrail.serve import prompts, wire
from vitrail.serve.asking import ask, patience_of
from vitrail.serve.door import Direct, visit
from vitrail.serve.forms import CUTOUT, FORMS, JSON, PROMPTABLE, SEGMENT
from vitrail.serve.model import Answered, Model
from vitrail.serve.refusals import Refusal
from vitrail.serve.schemas import ACTIVATE, BODY, PICTURE, PROMPTED, parameters, responses
from vitrail.serve.site import Site
from vitrail.serve.uploads import images_of

__all__ = ["DIRECT", "router"]

router = APIRouter(prefix="/v1", tags=["images"])
TOP = 5
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@router.post(
    "/classify", openapi_extra={**BODY, "parameters": parameters("model", "top")}, **responses("Classified")
)
async def classify(request: Request) -> Response:
    """The most probable labels of each image, in the order of the images."""
    return await _images(request, "classify", {"top": _top(request)})


@router.post("/embed", openapi_extra={**BODY, "parameters": parameters("model")}, **responses("Embedded"))
async def embed(request: Request) -> Response:
    """One vector for each image, in the order of the images."""
    return await _images(request, "embed", {})


@router.post(
    "/segment",
    openapi_extra={**PROMPTED, "parameters": parameters("model", "as", "points", "box")},
    **responses("Segmented", "Prompted", also=PICTURE),
)
async def segment(request: Request) -> Response:
    """The masks of each photo, or of what points and a box mean in one, as COCO's run lengths or as a PNG."""
    site: Site = request.app.state.site
    visit(request.scope).endpoint = SEGMENT
    model = site.model(request.query_params.get("model"), SEGMENT, PROMPTABLE)
    if model.facts.task == PROMPTABLE:
        return await _prompted(request, model)
    return await _images(request, SEGMENT, {}, form=_form(request))


DIRECT: Direct = {
    ("POST", "/v1/classify"): classify,
    ("POST", "/v1/embed"): embed,
    ("POST", "/v1/segment"): segment,
}


@router.post(
    "/models/{name}/activate",
    openapi_extra=ACTIVATE,
    **responses("Activated"),
)
async def activate(request: Request, name: str) -> Response:
    """Let another artifact answer under this name, once it is verified and has answered as recorded."""
    site: Site = request.app.state.site
    visit(request.scope).endpoint = "activate"
    folder = site.settings.allow_activate
    if folder is None:
        raise Refusal("forbidden", "Models are not exchanged here: start the server with --allow-activate.")
    model = site.model(name)
    async with site.uploads.body(request) as upload:
        path = folder / _artifact(upload.whole(), request.headers.get("content-type", ""))
    before = model.version
    try:
        await model.activate(path)
    except InputError as error:
        raise Refusal("unusable_artifact", str(error).replace(f"{folder}/", "")) from None
    said = {"name": model.name, "version": model.version, "previous": before}
    return Response(msgspec.json.encode(said), media_type="application/json")


def _artifact(body: bytes, content_type: str) -> str:
    """The name of a folder, from `{"artifact": "NAME"}`."""
    if content_type.partition(";")[0].strip() != "application/json":  # which pages of other sites cannot send
        raise Refusal("unsupported_media", 'Send application/json, as in {"artifact": "winner-2"}.')
    try:
        name = msgspec.json.decode(body, type=dict[str, str])["artifact"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        raise Refusal("bad_request", 'Name the artifact, as in {"artifact": "winner-2"}.') from None
    if not _FOLDER.fullmatch(name):
        raise Refusal("bad_request", "The artifact is a folder's name, without a path.")
    return name


@router.get("/models", **responses("Models"))
async def models(request: Request) -> Response:
    """What is served: figures, evidence, batch sizes, queue, readiness."""
    here: Site = request.app.state.site
    visit(request.scope).endpoint = "models"
    found = [_model(model) for model in here.models.values()]
    said = {"models": found, **({"replica": here.replica} if here.replica else {})}
    return Response(msgspec.json.encode(said), media_type="application/json")


async def _images(
    request: Request, task: str, options: dict[str, Any], *, form: str | None = None
) -> Response:
    """What a task says of each image; `form`: of the answer, None for a task that knows JSON alone."""
    site: Site = request.app.state.site
    here = visit(request.scope)
    here.endpoint = task
    _check_parameters(request, task, {"model", *options} if form is None else {"model", "as"})
    model = site.model(request.query_params.get("model"), task)
    form = form or JSON
    classes = model.facts.about.get("classes")
    if form == CUTOUT and classes != 1:
        raise Refusal(
            "bad_request", f"{model.name} cuts nothing out, it tells {classes} classes apart: use as=png."
        )
    patience_s = patience_of(request, site.settings.deadline_ms)
    model.queue.check(1, 0)  # before anything is received for nothing
    async with site.uploads.body(request) as upload:
        images = images_of(upload.whole(), request.headers.get("content-type", ""), site.settings.max_images)
        if form != JSON and len(images) > 1:
            raise Refusal("bad_request", f"A PNG shows one photo, and {len(images)} were sent: send one.")
        limits = _limits(site)
        answered = await ask(
            request,
            model,
            len(images),
            sum(declared_pixels(image, limits) for image in images),
            lambda id, deadline: wire.Images(
                id=id, sizes=[*map(len, images)], options=options, form=form, deadline=deadline
            ),
            images,
            patience_s,
            upload,
        )
        if model.shadow is not None and form == JSON and len(answered.answer.errors) < len(images):
            model.shadow.offer(images, options, answered, upload)
    return _answer(request, model, answered, form, len(images))


async def _prompted(request: Request, model: Model) -> Response:
    """What a prompt means in a photo, or in one that was sent before; a photo without a prompt is kept."""
    site: Site = request.app.state.site
    _check_parameters(request, SEGMENT, {"model", "as", *prompts.NAMES})
    form, prompt = _form(request), prompts.in_query(request.query_params)
    patience_s = patience_of(request, site.settings.deadline_ms)
    content_type = request.headers.get("content-type", "")
    again = content_type.partition(";")[0].strip().lower() == prompts.JSON_TYPE
    if again and prompt:
        raise Refusal("bad_request", "The prompt is in the address and in JSON: give it in one of them.")
    if form != JSON and not again and not prompt:
        raise Refusal(
            "bad_request", "There is no mask without a prompt: give points or a box, or leave as out."
        )
    queue = model.prompts if again else model.queue
    queue.check(1, 0)
    async with site.uploads.body(request) as upload:
        if again:
            if form == CUTOUT:
                raise Refusal(
                    "bad_request", "The photo is not kept, only what it was encoded to: send it too."
                )
            image, prompt = prompts.in_json(upload.whole())
            answered = await ask(
                request,
                model,
                1,
                0,
                lambda id, deadline: wire.Prompt(
                    id=id, image=image, options=prompt, form=form, deadline=deadline
                ),
                (),
                patience_s,
                upload,
                queue=queue,
            )
        else:
            images = images_of(upload.whole(), content_type, site.settings.max_images)
            if len(images) > 1:
                raise Refusal(
                    "bad_request", f"A prompt is about one photo, and {len(images)} were sent: send one."
                )
            answered = await ask(
                request,
                model,
                1,
                declared_pixels(images[0], _limits(site)),
                lambda id, deadline: wire.Images(
                    id=id, sizes=[len(images[0])], options=prompt, form=form, deadline=deadline
                ),
                images,
                patience_s,
                upload,
            )
            if model.shadow is not None and prompt and form == JSON and not answered.answer.errors:
                model.shadow.offer(images, prompt, answered, upload)
    return _answer(request, model, answered, form, 1)


def _check_parameters(request: Request, task: str, takes: set[str]) -> None:
    unknown = set(request.query_params) - takes
    if unknown:
        *some, last = sorted(takes)
        known = f"{', '.join(some)} and {last}" if some else last
        raise Refusal("bad_request", f"{min(unknown)!r} is no parameter of {task}, which takes {known}.")


def _answer(request: Request, model: Model, answered: Answered, form: str, images: int) -> Response:
    facts, answer, payload = answered
    if len(answer.errors) == images:
        raise Refusal(*answer.errors[0])
    if form != JSON:
        return Response(payload, media_type="image/png")
    head = {
        "model": model.name,
        "version": facts.digest[:12],
        "request_id": visit(request.scope).id,
        "timing_ms": _timing(answer),
    }
    data = msgspec.json.encode(head)[:-1] + b',"results":' + payload + b"}"
    return Response(data, media_type="application/json")


def _timing(answer: wire.Answer) -> dict[str, float]:
    stages = {"wait": answer.wait_s, "prepare": answer.prepare_s, "run": answer.run_s}
    if answer.finish_s:
        stages["finish"] = answer.finish_s
    return {name: round(seconds * 1e3, 3) for name, seconds in stages.items()}


def _limits(site: Site) -> Limits:
    most = site.settings.max_megapixels
    return LIMITS if most is None else Limits.of_megapixels(most)


def _top(request: Request) -> int:
    text = request.query_params.get("top", str(TOP))
    least, most = RANGES["top"]
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise Refusal("bad_request", f"top is no whole number from {least} to {most}.")
    return int(text)


def _form(request: Request) -> str:
    form = request.query_params.get("as", JSON)
    if form not in FORMS:
        raise Refusal("bad_request", f"as is {form[:20]!r}: give {', '.join(FORMS[:-1])} or {FORMS[-1]}.")
    return form


def _model(model: Model) -> dict[str, Any]:
    live = model.live
    found: dict[str, Any] = {"name": model.name, "ready": not model.reasons, "reasons": model.reasons}
    if live.facts is not None:
        found |= {"version": model.version, "digest": live.facts.digest, **live.facts.about}
        found["promise_ms"] = live.facts.promise_ms
    if live.beat is not None:
        beat = live.beat
        found["batching"] = {"largest": beat.most, "p95_ms": beat.sizes}
        if beat.beside:
            found["side_by_side"] = {"images": beat.beside, "p95_ms": beat.beside_ms}
        if beat.kept is not None:
            found["kept"] = {**msgspec.structs.asdict(beat.kept), "most": model.settings.keep_photos}
    found["queue"] = {"images": model.queue.images, "most": model.queue.most_images}
    found["restarts"] = model.restarts
    if model.shadow is not None:
        found["shadow"] = model.shadow.said()
    return found
