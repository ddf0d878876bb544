"""Embedders by a model's name: a tower is exported once, by PyTorch in a child, and runs without it.

open_embedder("tf_efficientnet_lite0")                     the catalogue's weights and preprocess
open_embedder("ViT-B-32", weights="clip.safetensors")      images and texts
reopen(index.table.origin)                                 the embedder that made an index
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from vitrail import catalog, runtimes, store, tasks
from vitrail.embeddings import Embedder, Origin
from vitrail.embeddings.embedder import images_through, of_length_one
from vitrail.embeddings.towers import MANIFEST, Content, Tower
from vitrail.errors import InputError, MissingExtraError
from vitrail.hardware import usable_cores
from vitrail.limits import whole
from vitrail.measure import sandbox
from vitrail.models.registry import TWO_TOWERS
from vitrail.predict import Predictor
from vitrail.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from vitrail.vocabulary import Candidate, Preprocess, Target, Weights
from vitrail.weights.find import WeightsFinder, check_file
from vitrail.zeroshot.hub import bare

__all__ = ["ModelEmbedder", "open_embedder", "reopen"]

MIB = 1024 * 1024
MEMORY_SHARE = 0.8
"""Share of this machine's memory above which the exporting child is ended."""
EXPORT_TIMEOUT_S = 1800.0
TOWER_VERSION = 1
"""Part of the key of kept towers: raise it when the same weights give other graphs."""
ENGINE = Target(runtime="onnxruntime", precision="fp32")
BATCH = 4
"""Images or texts per call of the engine: most of what larger batches bring on a CPU."""


class ModelEmbedder(Embedder):
    """Embeds with a model's towers in ONNX Runtime; close it after use.

    Args:
        model: our name, or timm's (its tag determines the preprocess).
        weights: their record, with `sha256`.
        file: the local file that holds them.
        content: what will be embedded first: that tower is exported now, the other when it is needed.
        preprocess: None: the architecture's own.
        changes: fields of the preprocess to replace (`mean`, `std`, `crop_mode`).
        tokenizer: tokenizer.json of a SigLIP.
        threads: number of threads for the model; None: all usable cores.

    Raises:
        InputError: an unknown name, or weights or a tokenizer that do not fit.
        ChildFailure: exporting crashed, or exceeded the memory limit.
        MissingExtraError: the workbench, which exports, is not installed.
    """

    def __init__(
        self,
        model: str,
        weights: Weights,
        file: Path,
        *,
        content: Content = "image",
        preprocess: Preprocess | None = None,
        changes: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._model, self._weights, self._file, self._preprocess = model, weights, file, preprocess
        self._threads = usable_cores() if threads is None else whole("threads", threads)
        reads_text = model.split(".")[0] in TWO_TOWERS
        if not reads_text and content == "text":
            raise InputError("This model cannot embed texts: it reads only images.")
        if not reads_text and tokenizer is not None:
            raise InputError(f"{model} does not read texts: remove --tokenizer.")
        _, tower = self._exported(content)
        self._tokenizer, self._no_texts = _tokenizer(tower.tokenizer, tokenizer)
        prepared = {**asdict(preprocess or tower.preprocess), **dict(changes or {})}
        self._origin = Origin(
            model=model,
            architecture=model.split(".")[0],
            implementation=tower.implementation,
            weights=weights,
            preprocess=msgspec.convert(prepared, Preprocess),
            dimension=int(tower.graph.outputs[0].shape[1]),
            reads_text=reads_text,
            tokenizer=None if tokenizer is None else str(Path(tokenizer).absolute()),
            tokenizer_sha256=None if tokenizer is None else store.sha256_file(Path(tokenizer)),
        )

    @property
    def origin(self) -> Origin:
        """Record of what it runs."""
        return self._origin

    def images_each(self, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """For each image a vector (D,), or the reason why there is none."""
        return images_through(self._predictor, [str(path) for path in paths])

    def texts_each(self, texts: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """For each text a vector (D,), or the reason why there is none.

        Raises:
            InputError: the model does not read texts, or its tokenizer is missing.
        """
        if self._tokenizer is None:
            raise InputError(f"This model cannot embed texts: {self._no_texts}.")
        read = [_tokens(self._tokenizer, text) for text in texts]
        good = [row for row in read if not isinstance(row, InputError)]
        vectors = iter(self._text_vectors(np.stack(good)) if good else ())
        return iter(
            [
                row if isinstance(row, InputError) else of_length_one(next(vectors), text)
                for text, row in zip(texts, read, strict=True)
            ]
        )

    def close(self) -> None:
        """Free the engine."""
        for name in ("_predictor", "_text_runner"):
            loaded = self.__dict__.pop(name, None)
            if loaded is not None:
                loaded.close()

    def __enter__(self) -> ModelEmbedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _predictor(self) -> Predictor:
        facts = {"width": self._origin.dimension}
        task = tasks.known("embed").of_export(self._origin.preprocess, facts, lambda _: b"")
        # Images are decoded at full size: the vectors are those of timm's or open_clip's evaluation
        # transform, and can be compared with vectors made elsewhere.
        return Predictor(self._loaded("image"), task, scaled=False)

    @cached_property
    def _text_runner(self) -> runtimes.Runner:
        return self._loaded("text")

    def _text_vectors(self, tokens_TL: np.ndarray) -> np.ndarray:
        """int64 (T, L) -> float32 (T, D)."""
        batches = tasks.batches({"tokens": tokens_TL}, BATCH)
        return np.concatenate([self._text_runner.run(batch)["vectors"][:real] for batch, real in batches])

    def _loaded(self, content: Content) -> runtimes.Runner:
        folder, tower = self._exported(content)
        return runtimes.load(
            folder,
            tower.graph,
            ENGINE,
            sizes={"B": BATCH},
            threads=self._threads,
            settings=dict(runtimes.RUNTIMES[ENGINE.runtime].sharing),
        )

    def _exported(self, content: Content) -> tuple[Path, Tower]:
        """The folder of a tower and what is in it, exported now unless it is kept from before."""
        size = None if self._preprocess is None else self._preprocess.image_size
        # Made by name, a tower has its own size; what reopens it knows that size from its vectors.
        for folder in dict.fromkeys((self._folder(content, size), self._folder(content, None))):
            tower = _kept(folder)
            if tower is not None and size in (None, tower.preprocess.image_size):
                return folder, tower
        folder = self._folder(content, size)
        request = {
            "model": self._model,
            "content": content,
            "weights": str(self._file),
            "preprocess": msgspec.to_builtins(self._preprocess),
            "folder": str(folder),
            "threads": self._threads,
        }
        _export(request, folder)
        tower = _kept(folder)
        assert tower is not None, "it was written just now"
        return folder, tower

    def _folder(self, content: Content, size: int | None) -> Path:
        digest = store.digest_of(
            {
                "tower": TOWER_VERSION,
                "content": content,
                # A tag says the size where nothing else does.
                "model": self._model if size is None else self._model.split(".")[0],
                "weights": self._weights.sha256,
                "image_size": size,
            }
        )
        return store.cache_dir() / "towers" / digest[:24]


def _kept(folder: Path) -> Tower | None:
    """The tower of an earlier run; None: there is none, or one that was damaged since."""
    try:
        tower = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Tower)
        whole = all((folder / name).stat().st_size == size for name, size in tower.sizes.items())
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None
    return tower if whole else None


def _export(request: dict[str, Any], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with store.swept(folder.parent):
        answer = sandbox.call(
            "vitrail.export.towers:export",
            request,
            timeout_s=EXPORT_TIMEOUT_S,
            memory_mib=psutil.virtual_memory().total / MIB * MEMORY_SHARE,
            name=f"exporting {request['model']}",
        )
    if "refused" in answer:
        raise InputError(answer["refused"])


def _tokenizer(config: TokenizerConfig | None, file: str | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or why there is none: images can be embedded without one."""
    if config is None:
        return None, "it reads only images"
    try:
        return load_tokenizer(config, file=None if file is None else Path(file)), ""
    except InputError as error:
        if file is not None:
            raise
        reason = str(error).rstrip(".")
        return None, reason if isinstance(error, MissingExtraError) else f"{reason} with --tokenizer"


def _tokens(tokenizer: Tokenizer, text: str) -> np.ndarray | InputError:
    try:
        return tokenizer([text])[0]
    except InputError as error:
        return error


def open_embedder(
    model: str,
    *,
    content: Content = "image",
    weights: str | Weights | None = None,
    changes: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    finder: WeightsFinder | None = None,
    threads: int | None = None,
) -> ModelEmbedder:
    """An embedder by name.

    Args:
        model: a catalogue name (with or without its tag), timm's name, or for a CLIP open_clip's.
        content: as `ModelEmbedder`.
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
        content=content,
        preprocess=preprocess,
        changes=changes,
        tokenizer=tokenizer,
        threads=threads,
    )


def reopen(
    origin: Origin,
    *,
    content: Content = "image",
    weights: str | None = None,
    tokenizer: str | None = None,
    finder: WeightsFinder | None = None,
) -> ModelEmbedder:
    """The embedder that a record describes, with exactly the same weights.

    Args:
        origin: the record.
        content: as `ModelEmbedder`.
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
        origin.model,
        located.weights,
        located.path,
        content=content,
        preprocess=origin.preprocess,
        tokenizer=file,
    )


def _own(weights: str) -> Weights:
    path = Path(weights)
    return Weights(source="file", reference=str(path.absolute()), tag=path.stem, license="own")


def _check_file(path: str | None, option: str) -> None:
    if path is not None and not Path(path).is_file():
        raise InputError(f"There is no file at {path}: check {option}.")


def _unlisted(name: str, weights: Weights) -> Candidate:
    return bare(name, name.split(".")[0], weights)
