"""The child's side of `embed.py`: holds the model in memory, takes images and texts, writes vectors to files.

Images are decoded at full size, not at a lower scale as in `predict`: the vectors are then those of timm's or
open_clip's evaluation transform, and can be compared with vectors made elsewhere.

Shapes: B images, T texts, L tokens, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vitrail import models
from vitrail.catalog.table import NORMALISATIONS
from vitrail.errors import InputError, MissingExtraError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare
from vitrail.models import timm as timm_models
from vitrail.models.clip import CLIP
from vitrail.models.registry import MODELS
from vitrail.text.tokenizer import Tokenizer, load_tokenizer
from vitrail.vocabulary import Implementation, Preprocess
from vitrail.weights import checkpoints

__all__ = ["EmbedSession", "Request", "start"]

BATCH = 16


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to load."""

    model: str
    """Our name, or timm's (its tag determines the preprocess)."""
    weights: str
    preprocess: Preprocess | None = None
    """None: the architecture's own."""
    changes: dict[str, Any] = {}
    """Fields of the preprocess to replace (`mean`, `std`, `crop_mode`)."""
    tokenizer: str | None = None
    threads: int = 1


def start(payload: dict[str, Any]) -> EmbedSession | dict[str, str]:
    """Load what the payload (a `Request`) names; a user's mistake is returned as `{"refused": sentence}`."""
    request = msgspec.convert(payload, Request)
    torch.set_num_threads(request.threads)
    try:
        return _loaded(request)
    except InputError as error:
        return {"refused": str(error)}


@dataclass
class EmbedSession:
    """A model that embeds images and, if it is a CLIP with a tokenizer, texts."""

    model: nn.Module
    preprocess: Preprocess
    implementation: Implementation
    tokenizer: Tokenizer | None = None
    tokenizer_missing: str = "it reads only images"
    """Why texts are refused if there is no tokenizer."""

    def facts(self) -> dict[str, Any]:
        """What the origin's record needs: preprocess, implementation, D, and whether it reads texts."""
        size = self.preprocess.image_size
        noise = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
        return {
            "preprocess": asdict(self.preprocess),
            "implementation": self.implementation,
            "dimension": self._images(noise).shape[1],
            "reads_text": isinstance(self.model, CLIP),
        }

    def images(self, paths: list[str], target: str) -> dict[str, str]:
        """Save the vectors of the usable images as float32 (B, D); return why the others have none."""

        def prepared(path: str) -> np.ndarray | InputError:
            try:
                return prepare(decode(path), self.preprocess)
            except InputError as error:
                return error

        # Pillow and NumPy release the interpreter's lock.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            outcomes: list[Any] = []
            for begin in range(0, len(paths), BATCH):
                outcomes += _filled(list(pool.map(prepared, paths[begin : begin + BATCH])), self._images)
        return _answer(outcomes, paths, target)

    def texts(self, texts: list[str], target: str) -> dict[str, str]:
        """As `images`, for texts; `{"refused": sentence}` if the model cannot read any."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return {"refused": f"This model cannot embed texts: {self.tokenizer_missing}."}

        def tokens(text: str) -> np.ndarray | InputError:
            try:
                return tokenizer([text])[0]
            except InputError as error:
                return error

        outcomes: list[Any] = []
        for begin in range(0, len(texts), BATCH):
            outcomes += _filled([tokens(text) for text in texts[begin : begin + BATCH]], self._texts)
        return _answer(outcomes, texts, target)

    def _images(self, images_BCHW: np.ndarray) -> np.ndarray:
        """float32 (B, 3, S, S) -> float32 (B, D) of length 1."""
        with torch.inference_mode():
            batch_BCHW = torch.from_numpy(images_BCHW)
            if isinstance(self.model, CLIP):
                return self.model.encode_image(batch_BCHW).float().numpy()
            return F.normalize(self.model(batch_BCHW).float(), dim=-1).numpy()

    def _texts(self, tokens_TL: np.ndarray) -> np.ndarray:
        """int64 (T, L) -> float32 (T, D) of length 1."""
        assert isinstance(self.model, CLIP)
        with torch.inference_mode():
            return self.model.encode_text(torch.from_numpy(tokens_TL)).float().numpy()


def _filled(inputs: list[Any], run: Callable[[np.ndarray], np.ndarray]) -> list[Any]:
    """Each input replaced by the model's vector; errors stay where they are."""
    good = [item for item in inputs if not isinstance(item, InputError)]
    vectors = iter(run(np.stack(good)) if good else ())
    return [item if isinstance(item, InputError) else next(vectors) for item in inputs]


def _answer(outcomes: list[Any], names: list[str], target: str) -> dict[str, str]:
    """Save the vectors in order; return the reason for each position that has none."""
    rows, errors = [], {}
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, InputError):
            errors[str(i)] = str(outcome)
        elif not abs(float(np.linalg.norm(outcome)) - 1) < 1e-3:  # zero, or not finite
            errors[str(i)] = (
                f"The model returns no usable vector for {names[i]}: check that its weights are intact."
            )
        else:
            rows.append(outcome)
    with open(target, "wb") as file:
        np.save(file, np.stack(rows) if rows else np.empty((0, 0), np.float32), allow_pickle=False)
    return errors


# --- loading --------------------------------------------------------------------------------------


def _loaded(request: Request) -> EmbedSession:
    architecture = request.model.split(".")[0]
    if MODELS.get(architecture, "").endswith(":CLIP"):
        return _clip(request, architecture)
    if request.tokenizer is not None:
        raise InputError(f"{request.model} does not read texts: remove --tokenizer.")
    preprocess = request.preprocess
    if preprocess is None:
        timm_models.check_known(architecture)
        preprocess = msgspec.convert(timm_models.published_preprocess(request.model), Preprocess)
    preprocess = _changed(preprocess, request.changes)
    ours = architecture in MODELS
    build = _ours if ours else _of_timm
    module = build(architecture, preprocess.image_size, request.weights)
    return EmbedSession(module, preprocess, "vitrail" if ours else "timm")


def _clip(request: Request, name: str) -> EmbedSession:
    model = models.build(name)
    assert isinstance(model, CLIP)
    models.load_weights(model, request.weights)
    tokenizer, missing = None, ""
    try:
        tokenizer = load_tokenizer(
            model.config.text, file=None if request.tokenizer is None else Path(request.tokenizer)
        )
    except InputError as error:
        if request.tokenizer is not None:
            raise
        # Images can be embedded without one; the reason is kept for whoever asks for texts.
        missing = str(error).rstrip(".")
        if not isinstance(error, MissingExtraError):
            missing += " with --tokenizer"
    preprocess = _changed(request.preprocess or _clip_preprocess(model), request.changes)
    return EmbedSession(model.requires_grad_(False), preprocess, "vitrail", tokenizer, missing)


def _clip_preprocess(model: CLIP) -> Preprocess:
    """As the models were evaluated: a centre crop for CLIP, squashed to a square for SigLIP.

    Some open_clip weights were trained with another mean, which the request's `changes` give.
    Source: open_clip's preprocess_cfg of its pretrained tags.
    """
    siglip = model.config.bias is not None
    mean, std = NORMALISATIONS["half" if siglip else "clip"]
    return Preprocess(
        image_size=model.config.image_size[0],
        crop=1.0,
        crop_mode="squash" if siglip else "center",
        interpolation="bicubic",
        mean=mean,
        std=std,
    )


def _changed(preprocess: Preprocess, changes: dict[str, Any]) -> Preprocess:
    return msgspec.convert({**asdict(preprocess), **changes}, Preprocess)


def _ours(architecture: str, image_size: int, weights: str) -> nn.Module:
    model = models.build(architecture, image_size=image_size, num_classes=0)
    models.load_weights(model, weights, replace_head=True)
    return model.requires_grad_(False)


def _of_timm(architecture: str, image_size: int, weights: str) -> nn.Module:
    """timm's model without its classifier; the file may have one, with any number of classes."""
    classes = timm_models.classes_in(architecture, checkpoints.read_state_dict(Path(weights)))
    try:
        model: Any = timm_models.build(
            architecture, image_size=image_size, classes=classes, weights=Path(weights)
        )
    except InputError as error:
        raise InputError(str(error).replace("(--arch)", "(--model)")) from None
    if classes:
        model.reset_classifier(0)
    module: nn.Module = model.eval().requires_grad_(False)
    return module
