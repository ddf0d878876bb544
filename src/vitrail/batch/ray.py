"""The same shards as tasks of a Ray cluster. Only the driver writes OUT: tasks return the bytes of files.

Ray starts a task again whose worker or node died; a shard whose task fails more often than that is given out
again by the driver, a few times. A driver that was killed is started again like any other job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vitrail import cluster
from vitrail.artifact import open_artifact
from vitrail.batch.encoded import Encoded, Tables, encoded
from vitrail.batch.files import Files
from vitrail.batch.records import OwnColumn, Shard
from vitrail.batch.settings import Settings, open_predictor
from vitrail.batch.shard import Work
from vitrail.errors import InputError, VitrailError
from vitrail.images.limits import Limits
from vitrail.version import __version__
from vitrail.words import counted

__all__ = ["Answer", "Setup", "run"]

RETRIES = 3
"""How often Ray starts a task again whose worker died, and how often the driver then gives it out again."""
LOOK_AGAIN_S = 10.0
"""How often a driver that waits looks whether a node is left that can do the work."""
AHEAD = 2
"""Tasks for each one that the cluster can run at once."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every task needs to know; it is sent once."""

    vitrail: str
    artifact: str
    """An absolute path, the same on all nodes."""
    digest: str
    settings: Settings
    limits: Limits
    files: Files
    options: dict[str, Any]
    own: tuple[OwnColumn, ...]
    tables: Tables


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A task's shard, and the seconds of its stages and of all of it."""

    shard: Encoded
    stages: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a node cannot do the work; an exception would need its class on both sides, and to be pickled."""

    error: str


def run(address: str, setup: Setup, shards: Iterable[Shard]) -> Generator[Answer]:
    """Each shard when it is done, in any order; tasks under way are cancelled when the caller stops.

    Args:
        address: of the cluster, or `auto`.
        setup: what the tasks need.
        shards: taken as the cluster has room.

    Raises:
        InputError: there is no cluster, or none of its nodes has the cores, or one cannot do the work (it
            lacks the artifact, the images or this version of Vitrail), or a shard ended its worker again and
            again.
    """
    ray = cluster.check_installed()
    with cluster.connected(ray, address):
        task = ray.remote(num_cpus=setup.settings.threads, max_retries=RETRIES)(_do)
        yield from _Driver(ray, task, ray.put(setup), setup.settings.threads).run(iter(shards))


class _Driver:
    """Gives out shards and takes back answers."""

    def __init__(self, ray: Any, task: Any, setup: Any, threads: int) -> None:
        self.ray, self.task, self.setup, self.threads = ray, task, setup, threads
        self.under_way: dict[Any, tuple[Shard, int]] = {}

    def run(self, shards: Iterator[Shard]) -> Iterator[Answer]:
        try:
            while True:
                self._fill(shards)
                if not self.under_way:
                    return
                self._check_cores()
                done, _ = self.ray.wait(list(self.under_way), num_returns=1, timeout=LOOK_AGAIN_S)
                for reference in done:
                    yield from self._taken(reference)
        finally:
            for reference in self.under_way:
                self.ray.cancel(reference, force=True)

    def _fill(self, shards: Iterator[Shard]) -> None:
        cores = self.ray.cluster_resources().get("CPU", 0)
        room = AHEAD * max(int(cores // self.threads), 1)
        while len(self.under_way) < room:
            shard = next(shards, None)
            if shard is None:
                return
            self._start(shard, 0)

    def _check_cores(self) -> None:
        """Ray lets a task wait for ever that no node has the cores for. Before there is any core, as where
        nodes are only started for work, it is right to wait."""
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        most = max((int(node["Resources"].get("CPU", 0)) for node in nodes), default=0)
        if 0 < most < self.threads:
            raise InputError(
                f"Each task has {self.threads} threads, and no node of the cluster has more than "
                f"{counted(most, 'core')}: add a node that has, or use another --out with --threads {most}."
            )

    def _start(self, shard: Shard, failures: int) -> None:
        self.under_way[self.task.remote(self.setup, shard)] = (shard, failures)

    def _taken(self, reference: Any) -> Iterator[Answer]:
        shard, failures = self.under_way.pop(reference)
        try:
            answer: Answer | Refused = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise  # a bug of ours, with its traceback
        except self.ray.exceptions.RayError as error:
            if failures == RETRIES:
                raise InputError(
                    f"Shard {shard.id} ended its workers again and again ({cluster.first_line(error)}): "
                    "give them more memory."
                ) from None
            self._start(shard, failures + 1)
            return
        if isinstance(answer, Refused):
            raise InputError(answer.error)
        yield answer


# --- on a worker --------------------------------------------------------------------------------


def _do(setup: Setup, shard: Shard) -> Answer | Refused:
    """One shard, with the model that this process has loaded for the ones before."""
    try:
        work = _opened(setup)
        begin = time.perf_counter()
        before = work.stages.read()
        (finished,) = work.run([shard])
        stages = {name: value - before.get(name, 0.0) for name, value in work.stages.read().items()}
        done = encoded(finished, setup.tables)
    except VitrailError as error:
        return Refused(error=str(error))
    return Answer(shard=done, stages=stages, seconds=time.perf_counter() - begin)


_WORK: dict[str, Work] = {}
"""By the artifact's digest: Ray gives a process to one job alone, so there is one."""


def _opened(setup: Setup) -> Work:
    """Loaded once in a process."""
    if setup.digest not in _WORK:
        _WORK[setup.digest] = _open(setup)
    return _WORK[setup.digest]


def _open(setup: Setup) -> Work:
    node = os.uname().nodename
    if setup.vitrail != __version__:
        raise InputError(
            f"Vitrail is {__version__} on {node} and {setup.vitrail} where the job began: install the same."
        )
    if not setup.files.remote and not os.path.isdir(setup.files.root):
        raise InputError(f"{setup.files.root} does not exist on {node}: mount it there, or give a URL.")
    if not os.path.isdir(setup.artifact):
        raise InputError(f"{setup.artifact} does not exist on {node}: copy the artifact there.")
    artifact = open_artifact(setup.artifact)
    if artifact.digest != setup.digest:
        raise InputError(f"{setup.artifact} is another artifact on {node}: copy the job's there.")
    predictor = open_predictor(artifact, setup.settings, setup.limits)
    return Work(predictor, setup.files, options=setup.options, own=setup.own, digest=setup.digest)
