"""CLIP's files on the Hugging Face hub, fetched the way `weights.find` fetches those of classifiers."""

from __future__ import annotations

import re
from pathlib import Path

from vitrail.errors import InputError
from vitrail.vocabulary import Candidate, Preprocess, Weights
from vitrail.weights.find import HUB_FILES, WeightsFinder

__all__ = ["TOKENIZER_FILES", "Finder", "bare", "fetch", "repository", "weights_files"]

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json",)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def repository(reference: str) -> str:
    """A repository's id, without a trailing slash.

    Raises:
        InputError: not OWNER/NAME.
    """
    name = reference.rstrip("/")
    if not REPOSITORY.fullmatch(name):
        raise InputError(
            f"{reference!r} is not a repository on the hub: write --weights hub:OWNER/NAME, such as "
            "hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K."
        )
    return name


def weights_files(reference: str) -> tuple[str, ...]:
    """The files that may hold both towers, best first.

    transformers repositories use the general names. In timm's, the files with those names hold only the image
    tower, and may already be in the cache for the classifier that timm makes of it.
    """
    return OPEN_CLIP_FILES if reference.startswith("timm/") else OPEN_CLIP_FILES + HUB_FILES


def fetch(name: str, weights: Weights, files: tuple[str, ...]) -> tuple[Path, Weights]:
    """The first of the files that the repository has, from the cache or downloaded, at the locked commit.

    Args:
        name: what the file belongs to, for messages.
        weights: of source "hub".
        files: names to try.

    Returns:
        The path, and the weights with the commit as `revision`.

    Raises:
        WeightsUnavailable: unreachable, refused, or none of the files is there.
    """
    located = Finder(files).locate(bare(name, name, weights))
    return located.path, located.weights


def bare(name: str, architecture: str, weights: Weights) -> Candidate:
    """As much of a candidate as is needed to find its weights."""
    return Candidate(
        name=name,
        architecture=architecture,
        family="clip",
        weights=weights,
        preprocess=Preprocess(image_size=1),
        accuracy=None,
        parameters=0,
        macs=0,
    )


class Finder(WeightsFinder):
    """A `WeightsFinder` for files other than a classifier's; None: those that hold both towers of a CLIP."""

    OTHERWISE = "choose another repository, or pass a file with --weights FILE"

    def __init__(
        self,
        files: tuple[str, ...] | None = None,
        *,
        offline: bool = False,
        max_download_mib: float | None = None,
    ) -> None:
        super().__init__(offline=offline, max_download_mib=max_download_mib)
        self._files = files

    def _names(self, weights: Weights) -> tuple[str, ...]:
        return weights_files(weights.reference) if self._files is None else self._files
