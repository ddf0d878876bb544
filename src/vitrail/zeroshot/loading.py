"""A name and the place of its weights -> a CLIP ready to use: model, tokenizer and preprocessing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from vitrail import store
from vitrail.catalog.clip import Published, of_hub, of_model, preprocess_of, published
from vitrail.errors import InputError
from vitrail.models import clip, factory
from vitrail.models.clip import CLIP, CLIPConfig
from vitrail.models.registry import MODELS
from vitrail.text.tokenizer import CLIP_TOKENIZER, Tokenizer, load_tokenizer
from vitrail.vocabulary import Preprocess, Weights
from vitrail.weights.find import check_file
from vitrail.zeroshot import hub

__all__ = ["Loaded", "load"]

HUB = "hub:"
UNSTATED = "unknown"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A CLIP or SigLIP with everything that belongs to its weights."""

    name: str
    model: CLIP
    """In evaluation mode, without gradients."""
    tokenizer: Tokenizer
    preprocess: Preprocess
    weights: Weights
    """With sha256 and, if from the hub, the commit."""
    published: Published | None
    """The table row that describes the weights: found by their repository, or named by a tag."""


def load(
    name: str, *, weights: str | None = None, tag: str | None = None, tokenizer: Path | None = None
) -> Loaded:
    """Find the weights (downloading them if they are only on the hub), and load everything.

    Args:
        name: open_clip's name of the architecture, one of `vitrail.models.clip.VARIANTS`.
        weights: a file; `hub:REPO_ID`; None: the published ones.
        tag: which published weights; together with `weights`, which ones they were derived from, and so how
            images are preprocessed.
        tokenizer: `tokenizer.json` of a SigLIP; None: fetched from the hub where one is needed.

    Raises:
        InputError: an unknown name or tag; weights that cannot be found or read, or do not fit; preprocessing
            that cannot be determined; or a tokenizer that cannot be found.
    """
    config = _config(name)
    if weights is not None and weights.startswith(HUB):
        weights = HUB + hub.repository(weights.removeprefix(HUB))
    row = published(name, tag) if tag is not None or weights is None else None
    if row is None and weights is not None and weights.startswith(HUB):
        row = of_hub(name, weights.removeprefix(HUB))
    preprocess = preprocess_of(name, config.image_size[0], row)
    source = weights if weights is not None or row is None else HUB + row.hub
    assert source is not None
    # Small things that can fail come first: the weights may be gigabytes.
    if not source.startswith(HUB):
        check_file(source, _other_ways(name))
    reader = load_tokenizer(config.text, file=_tokenizer_file(config, tokenizer))
    path, facts = _found(name, source, row)
    model = factory.build(name)
    assert isinstance(model, CLIP)
    try:
        factory.load_weights(model, path)
    except InputError as error:
        # Its message names only the class or a tensor; what the user can change is the file or the model.
        raise InputError(_named(str(error), path, name)) from None
    return Loaded(
        name=name,
        model=model.requires_grad_(False),
        tokenizer=reader,
        preprocess=preprocess,
        weights=facts,
        published=row,
    )


def _config(name: str) -> CLIPConfig:
    if name in clip.VARIANTS:
        return clip.VARIANTS[name]
    if name in MODELS:
        raise InputError(
            f"{name} has no text tower to read class names: choose a CLIP or SigLIP, such as ViT-B-32."
        )
    by_fold = {known.casefold(): known for known in clip.VARIANTS}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=3)
    hint = (
        f"did you mean {' or '.join(by_fold[n] for n in near)}?"
        if near
        else f"choose {', '.join(clip.VARIANTS)}."
    )
    raise InputError(f"Vitrail has no CLIP or SigLIP named {name!r}: {hint}")


def _found(name: str, source: str, row: Published | None) -> tuple[Path, Weights]:
    tag = "" if row is None else row.tag
    if not source.startswith(HUB):
        path = Path(source)
        digest = store.sha256_file(path)
        return path, Weights(source="file", reference=source, tag=tag, sha256=digest, license=UNSTATED)
    repository = source.removeprefix(HUB)
    # A tag given for another repository says what its weights were derived from, not what their license is.
    license = row.license if row is not None and row.hub == repository else UNSTATED
    asked = Weights(source="hub", reference=repository, tag=tag, license=license)
    return hub.fetch(name, asked, hub.weights_files(repository))


def _tokenizer_file(config: CLIPConfig, given: Path | None) -> Path | None:
    reference = config.text.tokenizer
    if given is not None or reference == CLIP_TOKENIZER:
        return given
    asked = Weights(source="hub", reference=reference)
    try:
        path, _ = hub.fetch("tokenizer.json", asked, hub.TOKENIZER_FILES)
    except InputError as error:
        raise InputError(
            f"The vocabulary of {reference} is not part of Vitrail and could not be fetched: give its "
            f"tokenizer.json, from https://huggingface.co/{reference}, with --tokenizer FILE."
        ) from error
    return path


def _named(problem: str, path: Path, name: str) -> str:
    if str(path) not in problem:
        return f"{path} does not fit {name}: {problem}"
    return problem.replace(f"{path} does not fit CLIP:", f"{path} does not fit {name}:", 1)


def _other_ways(name: str) -> str:
    known = of_model(name)
    hint = f", such as {HUB}{known[0].hub}" if known else ""
    return f"check the path, or name a repository with {HUB}REPO_ID{hint}"
