"""Embedders that run a model in PyTorch, in a child process: this process never imports torch.

open_embedder("tf_efficientnet_lite0")                     the catalogue's weights and preprocess
open_embedder("ViT-B-32", weights="clip.safetensors")      images and texts
reopen(index.table.origin)                                 the embedder that made an index
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from vitrail import catalog, store
from vitrail.embeddings import Embedder, Origin
from vitrail.errors import InputError
from vitrail.hardware import usable_cores
from vitrail.limits import whole
from vitrail.measure.sandbox import Child
from vitrail.vocabulary import Candidate, Preprocess, Weights
from vitrail.weights.find import WeightsFinder, check_file
from vitrail.zeroshot.hub import bare

__all__ = ["ModelEmbedder", "open_embedder", "reopen"]

MIB = 1024 * 1024
MEMORY_SHARE = 0.8
"""Share of this machine's memory above which the child is killed."""
LOAD_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 60.0
EACH_TIMEOUT_S = 30.0
"""Added for each image or text of a call: the largest models take seconds."""


class ModelEmbedder(Embedder):
    """Embeds with a model in a child process; close it after use.

    Args:
        model: the name that `embed_session.Request` takes.
        weights: their record.
        file: the local file that holds them.
        preprocess, changes, tokenizer: as `embed_session.Request`.
        threads: number of threads for the model; None: all usable cores.

    Raises:
        InputError: an unknown name, or weights or a tokenizer that do not fit.
        ChildFailure: the child crashed or exceeded the memory limit.
    """

    def __init__(
        self,
        model: str,
        weights: Weights,
        file: Path,
        *,
        preprocess: Preprocess | None = None,
        changes: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        threads: int | None = None,
    ) -> None:
        payload = {
            "model": model,
            "weights": str(file),
            "preprocess": msgspec.to_builtins(preprocess),
            "changes": dict(changes or {}),
            "tokenizer": tokenizer,
            "threads": usable_cores() if threads is None else whole("threads", threads),
        }
        self._folder = tempfile.TemporaryDirectory(prefix="vitrail-embed-")
        limit = psutil.virtual_memory().total / MIB * MEMORY_SHARE
        self._child = Child(
            "vitrail.zeroshot.embed_session:start", payload, memory_mib=limit, name=f"embedding with {model}"
        )
        try:
            _refused(self._child.result(LOAD_TIMEOUT_S))
            facts = self._child.call("facts", LOAD_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self._origin = Origin(
            model=model,
            architecture=model.split(".")[0],
            implementation=facts["implementation"],
            weights=weights,
            preprocess=msgspec.convert(facts["preprocess"], Preprocess),
            dimension=int(facts["dimension"]),
            reads_text=bool(facts["reads_text"]),
            tokenizer=None if tokenizer is None else str(Path(tokenizer).absolute()),
            tokenizer_sha256=None if tokenizer is None else store.sha256_file(Path(tokenizer)),
        )

    @property
    def origin(self) -> Origin:
        """Record of what it runs."""
        return self._origin

    def images_each(self, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """For each image a vector (D,), or the reason why there is none."""
        return self._each("images", paths=[str(path) for path in paths])

    def texts_each(self, texts: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """For each text a vector (D,), or the reason why there is none.

        Raises:
            InputError: the model does not read texts, or its tokenizer is missing.
        """
        return self._each("texts", texts=list(texts))

    def _each(self, method: str, **inputs: list[str]) -> Iterator[np.ndarray | InputError]:
        (count,) = map(len, inputs.values())
        target = Path(self._folder.name) / "vectors.npy"
        timeout = CALL_TIMEOUT_S + EACH_TIMEOUT_S * count
        errors = self._child.call(method, timeout, target=str(target), **inputs)
        _refused(errors)
        rows = iter(np.load(target, allow_pickle=False))
        return iter([InputError(errors[str(i)]) if str(i) in errors else next(rows) for i in range(count)])

    def close(self) -> None:
        """Stop the child process."""
        self._child.close()
        self._folder.cleanup()

    def __enter__(self) -> ModelEmbedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_embedder(
    model: str,
    *,
    weights: str | Weights | None = None,
    changes: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    finder: WeightsFinder | None = None,
    threads: int | None = None,
) -> ModelEmbedder:
    """An embedder by name.

    Args:
        model: a catalogue name (with or without its tag), timm's name, or for a CLIP open_clip's.
        weights: a file, or where to find them; None: the catalogue's, from the first entry of that name whose
            weights are at hand.
        changes: fields of the preprocess that differ from the model's own.
        tokenizer: tokenizer.json of a SigLIP.
        finder: what finds the weights, for `offline` or other files on the hub; None: the default.
        threads: None: all usable cores.

    Raises:
        InputError: as `ModelEmbedder`, or weights that cannot be found.
    """
    known = [c for c in catalog.candidates() if model in (c.name, c.architecture)]
    finder = finder or WeightsFinder()
    if weights is not None:
        weights = _own(weights) if isinstance(weights, str) else weights
        candidate = _unlisted(known[0].name if known else model, weights)
        preprocess = known[0].preprocess if known else None
    elif known:
        candidate = next((c for c in known if finder.at_hand(c)), known[0])
        preprocess = candidate.preprocess
    else:
        near = catalog.nearest(model)
        hint = f", or use a model from the catalogue, e.g. {' or '.join(near)}" if near else ""
        raise InputError(f"{model} is not in the catalogue: give its weights with --weights FILE{hint}.")
    _check_file(tokenizer, "--tokenizer")
    located = finder.locate(candidate)
    return ModelEmbedder(
        model if weights is not None else candidate.name,
        located.weights,
        located.path,
        preprocess=preprocess,
        changes=changes,
        tokenizer=tokenizer,
        threads=threads,
    )


def reopen(
    origin: Origin,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    finder: WeightsFinder | None = None,
) -> ModelEmbedder:
    """The embedder that a record describes, with exactly the same weights.

    Args:
        origin: the record.
        weights: the weights file, if it has moved.
        tokenizer: the tokenizer's file, if it has moved.
        finder: as `open_embedder`.

    Raises:
        InputError: weights or tokenizer are missing, or are not those in the record.
    """
    asked = origin.weights if weights is None else _own(weights)
    if asked.source == "file":
        where = "check --weights" if weights is not None else "give its new place with --weights FILE"
        check_file(asked.reference, f"{where} (the index was made with {origin.model})")
    finder = finder or WeightsFinder()
    located = finder.locate(_unlisted(origin.model, replace(asked, sha256=None)))
    if located.weights.sha256 != origin.weights.sha256:
        raise InputError(
            f"{located.path} does not hold the weights that the index was made with (sha256 "
            f"{str(located.weights.sha256)[:12]}…, not {str(origin.weights.sha256)[:12]}…): "
            "give the right file with --weights FILE, or make the index again."
        )
    file = tokenizer or origin.tokenizer
    _check_file(file, "--tokenizer")
    if file is not None and store.sha256_file(Path(file)) != origin.tokenizer_sha256:
        raise InputError(f"{file} is not the tokenizer that the index was made with: give the right one.")
    return ModelEmbedder(
        origin.model, located.weights, located.path, preprocess=origin.preprocess, tokenizer=file
    )


def _own(weights: str) -> Weights:
    path = Path(weights)
    return Weights(source="file", reference=str(path.absolute()), tag=path.stem, license="own")


def _check_file(path: str | None, option: str) -> None:
    if path is not None and not Path(path).is_file():
        raise InputError(f"There is no file at {path}: check {option}.")


def _unlisted(name: str, weights: Weights) -> Candidate:
    return bare(name, name.split(".")[0], weights)


def _refused(answer: Any) -> None:
    if isinstance(answer, dict) and "refused" in answer:
        raise InputError(answer["refused"])
