"""A batch job: list, find what is missing, do it, commit it. Killed at any moment, the same call goes on.

What a job is stands in `job.json`: the source and everything that changes results. A call that asks for
something else is refused, with the difference named.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

import msgspec

from vitrail import cluster
from vitrail.artifact import Artifact, open_artifact
from vitrail.batch import plan, ray, settings, sorting, write
from vitrail.batch.commit import Folder, locked
from vitrail.batch.encoded import Encoded, Tables, encoded, with_retried
from vitrail.batch.formats import FORMATS
from vitrail.batch.records import Committed, Finished, Listed, Shard, Summary
from vitrail.batch.request import (
    Request,
    Silent,
    Watcher,
    check_same,
    check_sorting,
    fingerprint,
    full_options,
    made_with,
    moved,
)
from vitrail.batch.shard import Stages, Work
from vitrail.batch.sources import Source, open_source
from vitrail.batch.summary import Timed, document
from vitrail.errors import InputError
from vitrail.images.decode import ImageError
from vitrail.limits import whole
from vitrail.predict import Predictor
from vitrail.version import __version__

__all__ = ["run"]

WRITES_AHEAD = 2
"""Shards that may wait for the disk."""


def run(request: Request, watcher: Watcher | None = None) -> Summary:
    """Do what is missing of a job, and say how it stands.

    Raises:
        InputError: wrong use, a damaged artifact or source, an OUT of another job, a full disk; what was
            committed stays.
        MissingExtraError: pyarrow or fsspec is needed.
        EngineMismatch: the engine cannot do here what the artifact says.
    """
    if request.format not in FORMATS:
        raise InputError(f"Unknown format {request.format!r}: choose one of {', '.join(FORMATS)}.")
    whole("shard_size", request.shard_size)
    write.check_installed(request.format)
    if request.ray is not None:
        cluster.check_installed()
    artifact = open_artifact(request.artifact)
    options = full_options(artifact.task, request.options, request.artifact)
    answers = artifact.task.columns(**options)
    written = (request.out, *([request.sort_into] if request.sort_into is not None else []))
    source = open_source(
        request.source,
        root=request.root,
        format=request.format,
        taken=write.column_names(answers),
        leave_out=written,
    )
    check_sorting(request, artifact.task, source)
    with locked(request.out, request.format) as folder:
        return _Job(request, artifact, options, source, folder, watcher or Silent()).run()


class _Job:
    """One run of a job whose folder is locked."""

    def __init__(
        self,
        request: Request,
        artifact: Artifact,
        options: dict[str, Any],
        source: Source,
        folder: Folder,
        watcher: Watcher,
    ) -> None:
        self.request, self.artifact, self.options = request, artifact, options
        self.source, self.folder, self.watcher = source, folder, watcher
        self.digest = artifact.digest
        self.results = 0
        self.errors: Counter[str] = Counter()
        self.redone = 0
        self.retried: dict[str, Committed] = {}
        self.notes: list[str] = []
        self.tried: list[dict[str, Any]] = []

    def run(self) -> Summary:
        begin = time.perf_counter()
        job = self.folder.job()
        same = fingerprint(self.request, self.source, self.options, self.digest)
        if job is not None:
            check_same(job, same, self.request, self.folder.path)
            plan.files(self.folder.path, job["lists"])
            self.notes += moved(job, self.artifact)
        self.folder.remove_leftovers()
        listed = self._list(begun=job is not None)
        listing_s = time.perf_counter() - begin
        missing = self._missing()
        begin = time.perf_counter()
        chosen = self._settings(job, missing)
        with ExitStack() as stack:
            here = None
            if missing and self.request.ray is None:  # what cannot be loaded begins no job
                self.watcher.say(f"loading {self.request.artifact}")
                here = stack.enter_context(
                    settings.open_predictor(self.artifact, chosen, self.request.limits)
                )
            lists = plan.files(self.folder.path)
            if job is None:
                job = {
                    "fingerprint": same,
                    "root": self.source.files.root,
                    "settings": chosen.kept(),
                    **made_with(self.artifact),
                }
            if job.get("lists") != lists:  # before any of its inputs is done
                self.folder.begin({**job, "lists": lists})
            loading_s = time.perf_counter() - begin
            timed = self._do(missing, chosen, here)
        summary = self._summary(listed, chosen, timed, listing_s, loading_s)
        if self.request.sort_into is not None:
            self._sort(self.request.sort_into)
        self.folder.end(document(summary))
        return summary

    # --- what is to be done -----------------------------------------------------------------------

    def _list(self, *, begun: bool) -> Listed:
        self.watcher.say(f"listing {self.source.name}")
        if not begun:
            self.folder.clear()
        listed = plan.extend(
            self.folder.path, self.source, self.request.shard_size, progress=self.watcher.listing
        )
        if not listed.new and not listed.known:
            raise InputError(
                f"{self.request.source} lists no images: add a row for each."
                if self.source.ordered
                else f"{self.request.source} holds no images: put image files in it."
            )
        return listed

    def _missing(self) -> set[str]:
        """Ids of the shards to do; what is committed of the others is counted."""
        self.watcher.say("checking what is done")
        missing = set()
        for shard in plan.shards(self.folder.path):
            found = self.folder.committed(shard.id)
            if found is not None and not (found.errors and self.request.retry_errors):
                self._count(found)
                continue
            missing.add(shard.id)
            if found is not None:
                self.retried[shard.id] = found
                self.results += found.results
            elif self.folder.was_committed(shard.id):
                self.redone += 1
                self.folder.withdraw(shard.id)
        return missing

    def _todo(self, missing: set[str]) -> Iterator[Shard]:
        """The shards to do; of those with rows that stay, the inputs that are tried again."""
        for shard in plan.shards(self.folder.path):
            before = self.retried.get(shard.id)
            if before is not None:
                yield Shard(shard.id, tuple(shard.inputs[k] for k in before.failed_at))
            elif shard.id in missing:
                yield shard

    def _count(self, committed: Committed) -> None:
        before = self.retried.get(committed.shard)
        self.results += committed.results - (0 if before is None else before.results)
        self.errors.update(committed.errors)

    def _settings(self, job: dict[str, Any] | None, missing: set[str]) -> settings.Settings:
        """The engine's are those that the job began with; the workers may be others."""
        asked = self.request
        if job is not None:
            kept = msgspec.convert(job["settings"], settings.Settings)
            return kept if asked.workers is None else replace(kept, workers=asked.workers)
        if asked.ray is not None:
            return settings.single(self.artifact, threads=asked.threads, workers=asked.workers)
        base = settings.usual(
            self.artifact, threads=asked.threads, workers=asked.workers, remote=self.source.files.remote
        )
        if plan.count(self.folder.path)[1] < settings.MEASURED_FROM:
            return base
        self.watcher.say("measuring which settings are fastest here")
        choices = settings.candidates(self.artifact, base, fixed_workers=asked.workers is not None)
        best, self.tried = settings.measured(self.artifact, choices, self._sample(missing), asked.limits)
        return best

    def _sample(self, missing: set[str]) -> list[bytes]:
        """The first images that can be read."""
        found: list[bytes] = []
        for shard in self._todo(missing):
            for given in shard.inputs[: 4 * settings.SAMPLE]:
                with suppress(ImageError):
                    found.append(self.source.files.read(given.name, self.request.limits))
                if len(found) == settings.SAMPLE:
                    return found
            break
        return found

    # --- doing it ---------------------------------------------------------------------------------

    def _do(self, missing: set[str], chosen: settings.Settings, here: Predictor | None) -> Timed:
        shards, inputs = plan.count(self.folder.path)
        before = self.results + self.errors.total()
        in_turn = not chosen.workers or (here is not None and here.in_turn)
        timed = Timed(shards=shards, inputs=inputs, before=before, workers=chosen.workers, in_turn=in_turn)
        if missing:
            tables = write.layouts(
                self.artifact.task.columns(**self.options),
                self.source.columns,
                self.request.format,
                {"vitrail": __version__, "artifact": self.digest},
            )
            if here is not None:
                self._do_here(self._todo(missing), here, tables, timed)
            else:
                self._do_on_ray(self._todo(missing), chosen, tables, timed)
            timed.stop()
        return timed

    def _do_here(self, todo: Iterator[Shard], predictor: Predictor, tables: Tables, timed: Timed) -> None:
        """Encode and write in another thread while the next shard is done."""
        pending: deque[Future[Committed]] = deque()

        def settle(most: int) -> None:
            while len(pending) > most:
                self._count(pending.popleft().result())

        own = self.source.columns
        work = Work(predictor, self.source.files, options=self.options, own=own, digest=self.digest)
        timed.start(work.stages)
        self.watcher.begin(timed.inputs, timed.before, timed.held_back)
        with ThreadPoolExecutor(1) as disk, closing(work.run(todo, self.watcher.tick)) as found:
            for finished in found:
                settle(WRITES_AHEAD - 1)
                pending.append(disk.submit(self._write, finished, tables, work.stages))
            settle(0)

    def _write(self, finished: Finished, tables: Tables, stages: Stages) -> Committed:
        begin = time.perf_counter()
        committed = self._commit(encoded(finished, tables), tables)
        stages.add("write", time.perf_counter() - begin)
        return committed

    def _commit(self, done: Encoded, tables: Tables) -> Committed:
        before = self.retried.get(done.shard)
        if before is None:
            return self.folder.commit(done)
        kept = self.folder.results_of(before)
        return self.folder.replace(with_retried(before, kept, done, tables))

    def _do_on_ray(
        self, todo: Iterator[Shard], chosen: settings.Settings, tables: Tables, timed: Timed
    ) -> None:
        """Write what the cluster's tasks answer; times are those of all tasks together."""
        assert self.request.ray is not None
        setup = ray.Setup(
            vitrail=__version__,
            artifact=os.path.abspath(self.request.artifact),
            digest=self.digest,
            settings=chosen,
            limits=self.request.limits,
            files=self.source.files,
            options=self.options,
            own=self.source.columns,
            tables=tables,
        )
        stages = Stages()
        timed.start(stages)
        self.watcher.begin(timed.inputs, timed.before, timed.held_back)
        with closing(ray.run(self.request.ray, setup, todo)) as answers:
            for answer in answers:
                timed.add(answer.stages, answer.seconds)
                begin = time.perf_counter()
                self._count(self._commit(answer.shard, tables))
                stages.add("write", time.perf_counter() - begin)
                failed = len(answer.shard.failed_at)
                self.watcher.tick(answer.shard.rows + failed, failed)

    def _sort(self, directory: str) -> None:
        self.watcher.say(f"sorting into {directory}")
        task = self.artifact.task
        assert task.sorted_by is not None
        sorting.sort_into(
            directory,
            self.folder,
            plan.shards(self.folder.path),
            task.sorted_by,
            task.groups(),
            self.source.files.root,
        )

    def _summary(
        self, listed: Listed, chosen: settings.Settings, timed: Timed, listing_s: float, loading_s: float
    ) -> Summary:
        assert self.results + self.errors.total() == timed.inputs, "an input has no row, or two"
        held = timed.held_back()
        return Summary(
            out=str(self.folder.path),
            artifact=self.request.artifact,
            digest=self.digest,
            inputs=timed.inputs,
            results=self.results,
            errors=dict(sorted(self.errors.items())),
            done_now=timed.inputs - timed.before,
            shards=timed.shards,
            shards_redone=self.redone,
            retried=sum(before.failed for before in self.retried.values()),
            listed=listed,
            seconds=round(timed.seconds, 3),
            listing_seconds=round(listing_s, 3),
            loading_seconds=round(loading_s, 3),
            stages={name: round(value, 3) for name, value in timed.stages().items()},
            busy=timed.busy(),
            held_back_by=None if held is None else held[0],
            settings=chosen.kept(),
            tried=tuple(self.tried),
            notes=tuple(self.notes),
        )
