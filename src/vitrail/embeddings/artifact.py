"""An embedder that runs an artifact, without torch: what `vitrail select --task embed` ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitrail.artifact import open_artifact
from vitrail.embeddings.embedder import Embedder, Origin, images_through
from vitrail.errors import InputError
from vitrail.predict import Predictor, from_artifact
from vitrail.tasks.embed import Embed
from vitrail.vocabulary import Weights

__all__ = ["ArtifactEmbedder"]


class ArtifactEmbedder(Embedder):
    """Embeds images with an artifact; close it when done.

    Images are decoded at full size, as by every embedder here, so that an fp32 artifact gives the same
    vectors as the model's own code.

    Args:
        path: the artifact's folder.
        threads: for the engine; None: the artifact's.
        batch_size: images per call of the engine; None: the artifact's.

    Raises:
        InputError: the artifact is damaged, or made for another task.
        MissingExtraError, EngineMismatch: it cannot run here as its manifest says.
    """

    def __init__(
        self, path: Path | str, *, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        artifact = open_artifact(path)
        task, variant = artifact.task, artifact.manifest.variant
        if not isinstance(task, Embed):
            raise InputError(
                f"{path} was not made to embed: its task is {task.name}. Make an embedder with "
                "vitrail select --task embed."
            )
        self._predictor: Predictor = from_artifact(
            artifact, threads=threads, batch_size=batch_size, many=True, scaled=False
        )
        weights: Weights = variant.candidate.weights
        self._origin: Origin = Origin(
            model=variant.candidate.name,
            architecture=variant.candidate.architecture,
            implementation=variant.implementation,
            weights=weights,
            preprocess=task.preprocess,
            dimension=task.width,
            reads_text=False,
            artifact=str(Path(path).absolute()),
            precision=variant.precision,
        )

    @property
    def origin(self) -> Origin:
        """The model it runs."""
        return self._origin

    def images_each(self, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """A vector (D,) of length 1 for each image, or the error in its place."""
        return images_through(self._predictor, paths)

    def texts_each(self, texts: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """Raises InputError: it embeds images only."""
        raise InputError(f"{self._origin.artifact} embeds images only: for texts, embed with a CLIP.")

    def close(self) -> None:
        """Free the engine."""
        self._predictor.close()

    def __enter__(self) -> ArtifactEmbedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
