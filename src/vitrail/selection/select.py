"""`vitrail.select`: requirements in, Selection out, and with `out` an artifact that was verified."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vitrail import artifact, catalog, hardware, judge, remeasure, runtimes, store, verify
from vitrail.errors import ClaimError, InputError, MissingExtraError
from vitrail.images.photos import photo_folder, sample_photos
from vitrail.measure import peaks as engine_peaks
from vitrail.models.weights import WeightsFinder
from vitrail.requirements import check
from vitrail.runtimes import RUNTIMES
from vitrail.selection import prune
from vitrail.selection.bench import METHOD_VERSION, Bench
from vitrail.selection.own import OwnWeights, own_candidate
from vitrail.selection.prune import Peaks, missing_runtimes, variants
from vitrail.selection.search import Progress, Search
from vitrail.vocabulary import Candidate, Requirements, SearchSettings, Selection, Workload

DOWNLOAD_MIB = 2048.0
"""What a selection may download where nothing was said: nobody expects ten gigabytes."""

WORKBENCH = ("torch", "timm", "onnx", "onnxscript", "huggingface_hub", "safetensors")


@dataclass(frozen=True)
class Watcher:
    """Who is told while a selection runs; each call comes between measurements, never during one."""

    progress: Callable[[Progress], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    judged: Callable[[Selection], None] = lambda _: None
    """Called with the result before anything ships, so that a failure to write does not lose it."""


def select(
    requirements: Requirements | None = None,
    workload: Workload | None = None,
    settings: SearchSettings | None = None,
    *,
    own: OwnWeights | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Selection:
    """Choose the model, runtime and precision that hold the requirements on this machine.

    Args:
        requirements: limits and objective; None: no limits, best accuracy.
        workload: under what load; None: batch 1, all usable cores, p95 of whole requests.
        settings: where to search and for how long; None: the whole catalogue for five minutes.
        own: the user's own weights; they are the only candidate unless `settings.models` names others.
        out: folder for the winner's artifact; nothing is written when nothing fits.
        overwrite: replace an earlier artifact at `out`.
        watcher: told about each variant as it is measured.

    Raises:
        MissingExtraError: the workbench is not installed.
        InputError: bad requirements, unknown models, unreadable photos, or `out` cannot be written.
    """
    requirements, settings = requirements or Requirements(), settings or SearchSettings()
    watcher = watcher or Watcher()
    check(requirements, workload or Workload(), settings, runtimes=RUNTIMES)
    catalog.check_requirement(requirements.license, also=(own.license,) if own else ())
    _need_workbench()
    if out is not None:
        store.check_target(out, overwrite=overwrite)
    begin = time.monotonic()
    machine = hardware.facts(table=RUNTIMES)
    workload = _resolved(workload or Workload(), machine)
    candidates = _candidates(own, settings)
    photos = sample_photos() if workload.images is None else photo_folder(workload.images)
    allowance = DOWNLOAD_MIB if settings.max_download_mib is None else settings.max_download_mib
    finder = WeightsFinder(offline=settings.offline, max_download_mib=allowance)
    bench = Bench(workload=workload, photos=photos, finder=finder, machine=machine, fresh=settings.fresh)
    peaks = measured_peaks(machine, workload, fresh=settings.fresh)
    everything = variants(candidates, workload, settings)
    _introduce(watcher, machine, candidates, everything, requirements, workload, peaks, len(photos.paths))
    # What was spent on photos and peaks belongs to the budget too.
    left = dataclasses.replace(settings, budget_s=settings.budget_s - (time.monotonic() - begin))
    search = Search(
        requirements=requirements,
        settings=left,
        bench=bench,
        peaks=peaks,
        variants=everything,
        report=watcher.progress,
        note=watcher.note,
    )
    observations = search.run()
    selection = judge.judge(
        observations,
        requirements,
        workload,
        hardware=machine,
        seconds=round(time.monotonic() - begin, 1),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        notes=(*search.notes(), *missing_runtimes(settings), photos.evidence),
        method={"version": METHOD_VERSION, "peaks_gflops": peaks, "photos": photos.name},
    )
    watcher.judged(selection)
    if out is not None and selection.winner is not None:
        watcher.note(ship(selection, search, Path(out), overwrite=overwrite))
    return selection


def ship(selection: Selection, search: Search, out: Path, *, overwrite: bool) -> str:
    """Write the winner's artifact, verify it from its own files, and measure it once more.

    Returns one line that compares the latency of the shipped folder with what was claimed. A difference is
    said, not refused: one launch on a shared machine may be slow.

    Raises:
        InputError: the folder cannot be written.
        ClaimError: what was written does not hold its claims.
    """
    winner = selection.winner
    assert winner is not None, "nothing to ship"
    measurement = winner.observation.measurement
    assert measurement is not None, "a winner was measured"
    export = search.bench.export(winner.variant, timeout_s=300.0)
    bundle = search.bench.bundle(winner.variant, export, measurement, artifact.evidence_of(selection))
    written = artifact.write(out, bundle, overwrite=overwrite)
    outcome = verify.verify(out)
    if not outcome.holds:
        raise ClaimError(
            f"{out} was written but does not verify: run `vitrail verify {out}` and report what it says."
        )
    again = remeasure.measure_artifact(written, selection.requirements, selection.workload, launches=1)
    now, then = again.model, winner.observation.model
    assert now is not None
    assert then is not None
    return (
        f"shipped folder launched again: model p50 {now.p50:.3g} ms, {then.p50:.3g} ms when it was selected"
    )


def measured_peaks(machine: dict[str, object], workload: Workload, *, fresh: bool = False) -> Peaks:
    """Engine peaks of this machine, probed once per engine version and kept; `fresh` probes again."""
    assert workload.threads is not None
    key: dict[str, object] = {
        "peaks": hardware.fingerprint(machine),
        "engines": runtimes.installed(),
        "threads": workload.threads,
    }
    records = store.RecordStore(store.cache_dir() / "peaks")
    kept = None if fresh else records.get(key)
    if kept is None:
        kept = {"gflops": engine_peaks.peaks(workload.threads)}
        records.put(key, kept)
    found = kept["gflops"]
    assert isinstance(found, dict)
    return found


def _need_workbench() -> None:
    for module in WORKBENCH:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{module}, which exports models,", 'pip install "vitrail[workbench]"')


def _resolved(workload: Workload, machine: dict[str, object]) -> Workload:
    cores = hardware.usable_cores()
    threads, most = workload.threads or cores, max(cores, os.cpu_count() or cores)
    if threads > most:
        raise InputError(f"--threads {threads} is more than this machine's {most} processors: give fewer.")
    return dataclasses.replace(workload, threads=threads)


def _candidates(own: OwnWeights | None, settings: SearchSettings) -> tuple[Candidate, ...]:
    if own is None:
        return catalog.find(settings.models)
    others = catalog.find(settings.models) if settings.models else ()
    return (own_candidate(own), *others)


def _introduce(
    watcher: Watcher,
    machine: dict[str, object],
    candidates: Sequence[Candidate],
    everything: Sequence[prune.Variant],
    requirements: Requirements,
    workload: Workload,
    peaks: Peaks,
    photos: int,
) -> None:
    left = [v for v in everything if prune.ruled_out(v, requirements, workload, peaks, photos) is None]
    models = {v.candidate.name for v in left}
    families = {v.candidate.family for v in left}
    watcher.note(hardware.one_line(machine))
    watcher.note(
        f"{len(candidates)} models → {len(models)} in {len(families)} families are not ruled out by facts "
        f"→ {len(left)} variants"
    )


__all__ = ["OwnWeights", "Watcher", "measured_peaks", "select", "ship"]
