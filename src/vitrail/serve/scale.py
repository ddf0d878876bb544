"""What a server on a cluster needs beyond its settings: how many replicas, how large, when one more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.errors import InputError
from vitrail.limits import RANGES
from vitrail.serve.settings import Settings

if TYPE_CHECKING:
    from vitrail.artifact import Artifact

__all__ = ["check", "replicas_of", "target_requests", "threads_of"]

CALM = 8
"""The share of `max_queue` that replicas are added for, as a divisor: Ray sees averages of half a minute, and
the queue has to take what comes above them."""
EVERYWHERE = ("0.0.0.0", "::")


def replicas_of(text: str | None) -> tuple[int, int]:
    """`N` or `MIN-MAX` -> the least and the most replicas; one where nothing is said.

    Raises:
        InputError: it is neither, or out of range.
    """
    least, most = RANGES["replicas"]
    low, dash, high = (text or "1").partition("-")
    numbers = [int(part) for part in (low, high if dash else low) if part.isascii() and part.isdigit()]
    if len(numbers) != 2 or not least <= numbers[0] <= numbers[1] <= most:
        raise InputError(
            f"replicas is {str(text)[:40]!r}: give a number, or a range such as 2-8, from {least} to {most}."
        )
    return numbers[0], numbers[1]


def check(settings: Settings) -> None:
    """Whether the settings can be kept on a cluster.

    Raises:
        InputError: one of them cannot; the message says why.
    """
    replicas_of(settings.replicas)
    if settings.ray is None:
        if settings.replicas is not None:
            raise InputError("--replicas needs a cluster: add --ray, or leave it out.")
        return
    if settings.allow_activate is not None:
        raise InputError(
            "--allow-activate would exchange the model of one replica only: leave it out with --ray, and "
            "start again with the other artifact."
        )
    if settings.drain_grace_ms:
        raise InputError(
            "--drain-grace is for load balancers that ask for readiness: leave it out with --ray, as Ray "
            "stops sending to a replica before that ends."
        )
    if settings.port == 0:
        raise InputError("--port 0 would be another port on each node: give one from 1 with --ray.")
    if not settings.loopback and settings.host not in EVERYWHERE:
        raise InputError(
            f"{settings.host} is an address of one node: give 127.0.0.1 or 0.0.0.0 with --ray, since each "
            "node listens."
        )


def threads_of(artifacts: Sequence[Artifact], settings: Settings) -> int:
    """Threads of each engine of a replica: as asked for, or the most that an artifact was measured with.

    An artifact that was measured with all cores of its machine counts as one: how many that were here is
    another node's number.
    """
    measured = (artifact.manifest.evidence.workload.threads or 1 for artifact in artifacts)
    return settings.threads or max(measured)


def target_requests(settings: Settings) -> int:
    """Requests under way for each replica, on average, above which another is added.

    With a promised latency the queue refuses what it cannot answer in time, so that more than one may never
    be under way: then one is the target.
    """
    return 1 if settings.max_latency_ms is not None else max(1, settings.max_queue // CALM)
