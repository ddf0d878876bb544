"""A batch as several requests of fewer images, as many at a time as there are threads for them.

One request of the whole batch gives all threads a share of each operation: after each they wait for each
other, and the activations of B images leave the caches before the next operation reads them. Requests of
single images do neither, and compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vitrail.errors import InputError
from vitrail.vocabulary import Graph, TensorSpec

__all__ = ["IMAGES", "Parts", "parts_of"]

IMAGES = "images_per_request"
"""The setting: its value is the number of images of one request."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How a batch is divided."""

    images: int
    """Of one request."""
    requests: int
    streams: int
    """Requests that run at the same time, at least one thread for each."""

    @property
    def lanes(self) -> int:
        """Single images that callers may run at the same time; 1: the batch is run as a whole."""
        return self.streams if self.images == 1 else 1

    def part(self, graph: Graph) -> Graph:
        """The graph of one request, of that of the whole batch."""
        return _scaled(graph, lambda batch: batch // self.requests) if self.requests > 1 else graph

    def whole(self, graph: Graph) -> Graph:
        """The graph of the whole batch, of that of one request."""
        return _scaled(graph, lambda images: images * self.requests) if self.requests > 1 else graph

    @property
    def details(self) -> tuple[tuple[str, str], ...]:
        """For `RunnerFacts.details`; () where the batch is one request."""
        if self.requests == 1:
            return ()
        return (("requests", f"{self.requests} of {self.images} images, {self.streams} at a time"),)


def parts_of(graph: Graph, threads: int, settings: Mapping[str, str]) -> Parts:
    """What the setting asks for; without it the batch is one request.

    Args:
        graph: with numbers for all sizes, or a batch that stays open, which is one request; where the setting
            is given, all tensors start with the batch, a number.

    Raises:
        InputError: the value is no number of images that divides the batch.
    """
    first = graph.inputs[0].shape
    batch = first[0] if first and isinstance(first[0], int) else 1
    if IMAGES not in settings:
        return Parts(images=batch, requests=1, streams=1)
    asked = settings[IMAGES]
    images = int(asked) if asked.isascii() and asked.isdigit() else 0
    if not 1 <= images <= batch or batch % images:
        raise InputError(f"{IMAGES} is {asked!r} for a batch of {batch}: give a number that divides {batch}.")
    requests = batch // images
    return Parts(images=images, requests=requests, streams=min(threads, requests))


def _scaled(graph: Graph, size: Callable[[int], int]) -> Graph:
    def scaled(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=(size(int(spec.shape[0])), *spec.shape[1:]))

    return replace(graph, inputs=tuple(map(scaled, graph.inputs)), outputs=tuple(map(scaled, graph.outputs)))
