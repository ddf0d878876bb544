"""`vitrail.select`: requirements in, Selection out, and with `out` an artifact that was verified."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from vitrail import artifact, catalog, hardware, judge, remeasure, runtimes, store, verify
from vitrail.errors import ClaimError, InputError, MissingExtraError
from vitrail.measure import peaks as engine_peaks
from vitrail.models.weights import WeightsFinder
from vitrail.requirements import check
from vitrail.runtimes import RUNTIMES
from vitrail.selection import prune
from vitrail.selection.bench import METHOD_VERSION, Bench
from vitrail.selection.labelled import check_classes, described, doubts, photos_of, tested
from vitrail.selection.named import in_order_of, measured_first, named, refuse_unmeasured
from vitrail.selection.own import OwnWeights
from vitrail.selection.probing import Probed, probe
from vitrail.selection.prune import Peaks, missing_runtimes, variants
from vitrail.selection.search import Progress, Search
from vitrail.selection.trained import beside, data_of, measured_runs, notes_of, read_runs
from vitrail.vocabulary import Candidate, Requirements, SearchSettings, Selection, Workload
from vitrail.words import counted
from vitrail.zeroshot.candidates import Found, Names, OwnCLIP
from vitrail.zeroshot.hub import Finder

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
    own: OwnWeights | OwnCLIP | None = None,
    names: Names | None = None,
    trained: Sequence[str | Path] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    keep_text_tower: bool = False,
    watcher: Watcher | None = None,
) -> Selection:
    """Choose the model, runtime and precision that meet the requirements on this machine.

    Args:
        requirements: limits and objective; None: no limits, best accuracy.
        workload: under what load; None: batch 1, all usable cores, p95 of whole requests.
        settings: where to search and for how long; None: the whole catalogue for five minutes.
        own: the user's own weights; they are the only candidate unless `settings.models` names others.
        names: class names for zero-shot candidates (CLIP, SigLIP); with `workload.data` they compete with
            probes, without it they are the only candidates.
        trained: folders of training runs; they are the only candidates unless `settings.models`, `own` or
            `names` bring others. Without `workload.data` the data they were trained on is used.
        out: folder for the winner's artifact; nothing is written when nothing meets all.
        overwrite: replace an earlier artifact at `out`.
        keep_text_tower: ship the CLIP of a zero-shot winner too, so that `relabel` can change the classes.
        watcher: told about each variant as it is measured.

    Raises:
        MissingExtraError: the workbench is not installed.
        InputError: bad requirements, unknown models, unreadable photos, or `out` cannot be written.
    """
    requirements, settings = requirements or Requirements(), settings or SearchSettings()
    watcher = watcher or Watcher()
    check(requirements, workload or Workload(), settings, runtimes=RUNTIMES)
    runs = read_runs(trained, settings)
    own_licenses = (*((own.license,) if own else ()), *(record.license for record in runs.records))
    catalog.check_requirement(requirements.license, also=own_licenses)
    if names is not None and not trained and workload is not None and workload.data is None:
        refuse_unmeasured(requirements)
    _need_workbench()
    if out is not None:
        store.check_target(out, overwrite=overwrite)
    begin = time.monotonic()
    machine = hardware.facts(table=RUNTIMES)
    workload = _resolved(workload or Workload(), machine)
    workload, dataset, run_notes = data_of(runs, workload, settings.layout)
    candidates, rows = beside(runs, own, names, settings, with_data=dataset is not None)
    check_classes(requirements, dataset)
    photos = photos_of(workload, dataset)
    allowance = DOWNLOAD_MIB if settings.max_download_mib is None else settings.max_download_mib
    finder = WeightsFinder(offline=settings.offline, max_download_mib=allowance)
    bench = Bench(
        workload=workload,
        photos=photos,
        finder=finder,
        machine=machine,
        fresh=settings.fresh,
        dataset=dataset,
    )
    peaks = measured_peaks(machine, workload, fresh=settings.fresh)
    probed: Probed | None = None
    zero_shot = Found((), ())
    if names is not None:
        names = names if dataset is None else in_order_of(names, dataset)
        clip = own if isinstance(own, OwnCLIP) else None
        hub = Finder(offline=settings.offline, max_download_mib=allowance)
        zero_shot = named(names, rows, clip, hub, bench, required=not (candidates or trained))
        candidates = (*candidates, *zero_shot.candidates)
    if dataset is not None:
        watcher.note(described(dataset))
        backbones = tuple(c for c in candidates if c not in zero_shot.candidates)
        probed = (
            probe(backbones, dataset, bench, requirements, workload, settings, watcher.note)
            if backbones
            else Probed((), {}, ())
        )
        measured = [measured_first(c, bench, settings) for c in zero_shot.candidates]
        measured += measured_runs(runs, bench, settings)
        probed = replace(probed, candidates=(*probed.candidates, *measured))
        if not probed.candidates:
            raise InputError(f"No model could be probed: {_first_reason(probed)}")
        # What could not be probed stays in the ledger, without the accuracy on other classes.
        rest = (replace(c, accuracy=None) for c in backbones if c.name in probed.excluded)
        candidates = (*probed.candidates, *rest)
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
        excluded=probed.excluded if probed else {},
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
        notes=(
            *run_notes,
            *notes_of(runs, dataset),
            *(probed.notes if probed else ()),
            *zero_shot.notes,
            *search.notes(),
            *missing_runtimes(settings),
            photos.evidence,
            *doubts(dataset),
        ),
        method={"version": METHOD_VERSION, "peaks_gflops": peaks, "photos": photos.name},
    )
    selection = replace(selection, trainings=runs.trainings, settings=settings)
    if dataset is not None:
        selection = tested(selection, search, requirements)
    watcher.judged(selection)
    if out is not None and selection.winner is not None:
        tower = zero_shot.towers.get(selection.winner.variant.candidate.name) if keep_text_tower else None
        watcher.note(ship(selection, search, Path(out), overwrite=overwrite, text_tower=tower))
    return selection


def _first_reason(probed: Probed) -> str:
    name, reason = next(iter(probed.excluded.items()))
    more = f" (and {len(probed.excluded) - 1} more)" if len(probed.excluded) > 1 else ""
    return f"{name}: {reason}{more}"


def ship(
    selection: Selection,
    search: Search,
    out: Path,
    *,
    overwrite: bool,
    text_tower: artifact.TextTower | None = None,
) -> str:
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
    bundle = replace(bundle, text_tower=text_tower)
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
        f"{counted(len(candidates), 'model')} → {len(models)} "
        f"in {counted(len(families), 'family', 'families')} are not ruled out by facts "
        f"→ {counted(len(left), 'variant')}"
    )


__all__ = ["Names", "OwnCLIP", "OwnWeights", "Watcher", "measured_peaks", "select", "ship"]
