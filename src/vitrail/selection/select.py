"""`vitrail.select`: requirements in, Selection out, and with `out` an artifact that was verified."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from vitrail import artifact, catalog, hardware, judge, remeasure, store, tasks, verify
from vitrail.data import Dataset
from vitrail.errors import ClaimError, InputError, MissingExtraError
from vitrail.export import passes
from vitrail.export.bench import METHOD_VERSION, Bench
from vitrail.export.calibration import Calibration, calibration
from vitrail.export.variants import engines, forms, missing_runtimes, variants
from vitrail.export.workshop import Workshop
from vitrail.images.photos import PhotoSet
from vitrail.measure import quiet
from vitrail.measure.peaks import kept_peaks, known_peaks
from vitrail.measure.sandbox import ChildFailure
from vitrail.report import notebook
from vitrail.requirements import check
from vitrail.runtimes import RUNTIMES, elsewhere
from vitrail.selection import prune
from vitrail.selection.labelled import calibrated, check_classes, described, doubts, photos_of, tested
from vitrail.selection.optimise import Optimisation, Optimise, least_accuracy, rows
from vitrail.selection.prune import Peaks
from vitrail.selection.search import Search, SearchProgress
from vitrail.sources.gather import arranged, check_task, find, gather, labelled_images
from vitrail.sources.source import Context, Source
from vitrail.vocabulary import (
    LEAST_OF,
    LedgerEntry,
    Requirements,
    SearchSettings,
    Selection,
    Variant,
    Workload,
)
from vitrail.weights.find import WeightsFinder
from vitrail.words import counted

DOWNLOAD_MIB = 2048.0
"""What a selection may download where nothing was said: nobody expects ten gigabytes."""

SHIP_SHARE, SHIP_MOST_S = 0.15, 8.0
"""What shipping takes of the budget: writing, verifying, one more launch."""
LEAST_FREE_MIB = 512.0
"""Free space without which no search begins: an export of a small model and its artifact."""

WORKBENCH = ("torch", "timm", "onnx", "onnxscript", "huggingface_hub", "safetensors")


@dataclass(frozen=True)
class Watcher:
    """Who is told while a selection runs; each call comes between measurements, never during one."""

    progress: Callable[[SearchProgress], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    doing: Callable[[str, float], None] = lambda _, __: None
    """Called when something begins that may last over a second: what it is, and the seconds left;
    infinite where the budget does not run."""
    judged: Callable[[Selection], None] = lambda _: None
    """Called with the result before anything ships, so that a failure to write does not lose it."""


def select(
    requirements: Requirements | None = None,
    workload: Workload | None = None,
    settings: SearchSettings | None = None,
    *,
    sources: Sequence[Source] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    keep_text_tower: bool = False,
    ship_provisional: bool = False,
    watcher: Watcher | None = None,
    optimise: Optimise | None = None,
) -> Selection:
    """Choose the model, runtime and precision that meet the requirements on this machine.

    Args:
        requirements: limits and objective; None: no limits, best accuracy.
        workload: under what load; None: batch 1, all usable cores, p95 of whole requests.
        settings: where to search and for how long; None: the whole catalogue for five minutes.
        sources: where candidates come from beside the catalogue: `OwnWeights`, `OwnONNX`, `ClassNames`,
            `TrainedRuns`.
            They are alone unless `settings.models` names others; class names compete with the catalogue's
            models where there are labelled images (`workload.data`) to fit probes on.
        out: folder for the winner's artifact; nothing is written when nothing meets the requirements.
        overwrite: replace an earlier artifact at `out`.
        keep_text_tower: ship the CLIP of a zero-shot winner too, so that `relabel` can change the classes.
        ship_provisional: without a winner, ship the provisional best if it holds parity.
        watcher: told about each variant as it is measured.
        optimise: the one candidate in every form, each beside eager PyTorch (`vitrail optimize`).

    Raises:
        MissingExtraError: the workbench is not installed.
        InputError: bad requirements, unknown models, an engine of another platform, unreadable photos, or
            `out` cannot be written.
    """
    requirements, settings = requirements or Requirements(), settings or SearchSettings()
    watcher = watcher or Watcher()
    check(requirements, workload or Workload(), settings, runtimes=RUNTIMES)
    check_task(sources, settings.task)
    for source in sources:
        source.check_settings(settings)
    _refuse_others(settings, requirements, workload)
    stated = (license for source in sources for license in source.licenses())
    catalog.check_requirement(requirements.license, also=tuple(stated))
    _refuse_elsewhere(settings)
    need_workbench()
    check_places(out, overwrite=overwrite)
    begin = time.monotonic()
    machine = hardware.facts(table=RUNTIMES, device=(workload or Workload()).device)
    workload = resolved(workload or Workload())
    # Before anything is measured.
    engines(settings, workload.device)
    passes.check(settings.passes or ())
    with Workshop() as workshop:
        road = _Road(
            requirements,
            workload,
            settings,
            machine,
            watcher,
            workshop,
            begin,
            out,
            ship_provisional,
            optimise,
        )
        if not road.peaks_kept():  # a new machine: there will be exports, whose libraries load meanwhile
            workshop.start()
        selection, search, towers = road.search(sources)
        watcher.judged(selection)
        if search.interrupted and selection.winner is None:
            raise KeyboardInterrupt
        entry = shipping(selection, provisional=ship_provisional)
        if out is not None and entry is not None:
            road.doing(f"writing and verifying {out}")
            tower = towers.get(entry.variant.candidate.name) if keep_text_tower else None
            watcher.note(ship(selection, entry, search, Path(out), overwrite=overwrite, text_tower=tower))
    notebook.show_in_notebooks()
    return selection


def _refuse_others(settings: SearchSettings, requirements: Requirements, workload: Workload | None) -> None:
    """What is about another task: vectors have no classes, only classes are recalled, only masks overlap."""
    task = settings.task
    given = {
        "data": workload is not None and workload.data is not None,
        "max-drop": settings.max_drop is not None,
        **{asked.option.removeprefix("--"): True for asked in requirements.least},
    }
    for name, wanted in given.items():
        if wanted and not any(task in tasks_of for tasks_of in LEAST_OF.values()):
            raise InputError(f"--{name} is about classes, and --task {task} has none: leave it out.")
    tasks.check_stages(requirements, task)
    for asked in requirements.least:
        if task not in (of := LEAST_OF.get(asked.requirement, (task,))):
            raise InputError(f"{asked.option} is for --task {of[0]}, not for {task}: leave it out.")
        if task == "promptable" and asked.label:
            raise InputError(
                f"{asked.option} {asked.label}=… is about a class, and clicks have none: give a number alone."
            )


def _refuse_elsewhere(settings: SearchSettings) -> None:
    """What does not run here cannot be measured here."""
    for name in settings.runtimes:
        if there := elsewhere(name):
            raise InputError(
                f"{RUNTIMES[name].label} runs on {there}: build it here with `vitrail export MODEL "
                f"--runtimes {name} --out DIR`, and measure it there with `vitrail verify DIR --measure`."
            )


@dataclass
class _Road:
    """One selection under way: what all its parts share."""

    requirements: Requirements
    workload: Workload
    settings: SearchSettings
    machine: dict[str, object]
    watcher: Watcher
    workshop: Workshop
    begin: float
    out: str | Path | None
    ship_provisional: bool
    optimise: Optimise | None
    reading_s: float = 0.0
    """What reading the person's images took, before the budget began."""

    @property
    def left_s(self) -> float:
        """What is left of the budget; peaks and probing belong to it too."""
        return max(self.settings.budget_s + self.reading_s - (time.monotonic() - self.begin), 0.0)

    @property
    def _on(self) -> tuple[int, str]:
        """Threads and device."""
        assert self.workload.threads is not None
        return self.workload.threads, self.workload.device

    def doing(self, text: str) -> None:
        self.watcher.doing(text, self.left_s)

    def peaks_kept(self) -> bool:
        """Whether this machine's engine peaks are known."""
        return not self.settings.fresh and kept_peaks(self.machine, *self._on) is not None

    def search(self, given: Sequence[Source]) -> tuple[Selection, Search, Mapping[str, artifact.TextTower]]:
        """Everything up to the judged selection; with it the search, and text towers of zero-shot rows."""
        requirements, settings = self.requirements, self.settings
        self.watcher.note(hardware.one_line(self.machine))
        self.watcher.doing("reading photos", math.inf)
        workload, dataset, data_notes = labelled_images(given, self.workload, settings)
        for source in given:
            source.check(requirements, settings, dataset)
        check_classes(requirements, dataset)
        photos = photos_of(workload, dataset)
        # How long that takes is up to the person's images, and no shorter search would need less of it.
        self.reading_s = time.monotonic() - self.begin
        found_by, photos = self._calibration(workload, photos, dataset)
        bench = self._bench(workload, photos, dataset, None if isinstance(found_by, str) else found_by)
        if dataset is not None:
            self.watcher.note(described(dataset))
        context = self._context(bench)
        parts = find(arranged(given, settings, dataset), context)
        if self.optimise is not None:
            self.optimise.check(context, [each for part in parts for each in part.found.candidates])
        peaks = self._peaks()
        found = gather(parts, context)
        everything = variants(
            found.candidates,
            workload,
            settings,
            int8=bench.calibration is not None,
            forms=forms(settings, workload, quality=dataset is not None),
        )
        if self.optimise is not None:
            requirements = least_accuracy(requirements, settings, found.candidates)
            everything = rows(everything, settings, workload.device)
        reserve = min(SHIP_SHARE * settings.budget_s, SHIP_MOST_S) if self.out is not None else 0.0
        kept = f" ({reserve:.0f} s of the budget kept for shipping)" if reserve else ""
        self.watcher.note(
            _introduced(len(found.candidates), everything, requirements, workload, peaks, len(photos.paths))
            + kept
        )
        search = (Search if self.optimise is None else Optimisation)(
            requirements=requirements,
            settings=replace(settings, budget_s=max(self.left_s - reserve, 0.0)),
            bench=bench,
            peaks=peaks,
            variants=everything,
            excluded=found.excluded,
            report=lambda step: self.watcher.progress(replace(step, left_s=step.left_s + reserve)),
            note=self.watcher.note,
            doing=lambda text, left_s: self.watcher.doing(text, left_s + reserve),
            wait_until_quiet=self._wait_until_quiet,
            prove_provisional=self.ship_provisional,
        )
        before_s = time.monotonic() - self.begin
        observations = search.run()
        first_s = search.first_winner_s
        selection = judge.judge(
            observations,
            requirements,
            workload,
            hardware=self.machine,
            seconds=round(time.monotonic() - self.begin, 1),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notes=(
                *data_notes,
                *found.notes,
                *search.notes(),
                *([found_by] if isinstance(found_by, str) and not settings.precisions else []),
                *missing_runtimes(settings, workload.device),
                photos.evidence,
                *doubts(dataset),
            ),
            method={
                "version": METHOD_VERSION,
                "peaks_gflops": peaks,
                "photos": photos.name,
                "first_winner_s": None if first_s is None else round(before_s + first_s, 1),
            },
        )
        speed_ups = search.speed_ups()
        selection = replace(selection, trainings=found.trainings, settings=settings, speed_ups=speed_ups)
        if dataset is not None:
            self.doing("answering the test images")
            selection = tested(calibrated(selection), search, requirements)
        return selection, search, found.towers

    def _context(self, bench: Bench) -> Context:
        return Context(
            requirements=self.requirements,
            settings=self.settings,
            bench=bench,
            download_mib=self._allowance,
            left_s=lambda: self.left_s,
            note=self.watcher.note,
            doing=self.doing,
        )

    def _calibration(
        self, workload: Workload, photos: PhotoSet, dataset: Dataset | None
    ) -> tuple[Calibration | str, PhotoSet]:
        """What int8 is calibrated on, or why nothing becomes int8; and the photos that judge."""
        settings = self.settings
        asked = "int8" in settings.precisions
        # `optimize` asks it of every form (`least_accuracy`).
        drop = settings.max_drop if self.optimise is None else None
        if settings.precisions and not asked:
            for name, value in (("calibration", settings.calibration), ("max-drop", drop)):
                if value is not None:
                    raise InputError(f"--{name} is about int8, which --precisions leaves out: name it there.")
            return "int8 was not asked for", photos
        found, left = calibration(settings.calibration, workload.images, dataset, photos)
        if isinstance(found, str) and (asked or drop is not None):
            raise InputError(f"{found}.")
        return found, left

    def _bench(
        self,
        workload: Workload,
        photos: PhotoSet,
        dataset: Dataset | None,
        calibrated_on: Calibration | None,
    ) -> Bench:
        finder = WeightsFinder(offline=self.settings.offline, max_download_mib=self._allowance)
        return Bench(
            workload=workload,
            photos=photos,
            finder=finder,
            machine=self.machine,
            fresh=self.settings.fresh,
            dataset=dataset,
            workshop=self.workshop,
            calibration=calibrated_on,
            max_drop=self.settings.max_drop,
        )

    @property
    def _allowance(self) -> float:
        asked = self.settings.max_download_mib
        return DOWNLOAD_MIB if asked is None else asked

    def _peaks(self) -> Peaks:
        """The engines' peaks; where they are measured now, nothing else runs beside them."""
        if not self.peaks_kept():
            self.doing("loading PyTorch and measuring what the engines can do")
            with contextlib.suppress(ChildFailure):  # exporting will say it again, and why
                self.workshop.load()
        return known_peaks(self.machine, *self._on, fresh=self.settings.fresh)

    def _wait_until_quiet(self, seconds: float) -> quiet.BusyReading:
        def tell(reading: quiet.BusyReading) -> None:
            self.watcher.note(f"{reading}: waiting up to {seconds:.0f} s, then timing all the same")

        return quiet.wait(seconds, tell)


def shipping(selection: Selection, *, provisional: bool) -> LedgerEntry | None:
    """What is written: the winner, or where `provisional` was asked for, what leads and holds parity."""
    if selection.winner is not None or not provisional or selection.leader is None:
        return selection.winner
    parity = selection.leader.observation.parity
    return selection.leader if parity is not None and parity.answer == "pass" else None


def ship(
    selection: Selection,
    entry: LedgerEntry,
    search: Search,
    out: Path,
    *,
    overwrite: bool,
    text_tower: artifact.TextTower | None = None,
) -> str:
    """Write the entry's artifact, verify it from its own files, and measure it once more.

    Returns one line that compares the latency of the shipped folder with what was claimed. A difference is
    said, not refused: one launch on a shared machine may be slow.

    Raises:
        InputError: the folder cannot be written.
        ClaimError: what was written does not hold its claims.
    """
    measurement = entry.observation.measurement
    assert measurement is not None, "what ships was measured"
    export = search.bench.export(entry.variant, timeout_s=300.0)
    bundle = search.bench.bundle(entry.variant, export, measurement, artifact.evidence_of(selection))
    bundle = replace(bundle, text_tower=text_tower)
    written = artifact.write(out, bundle, overwrite=overwrite)
    outcome = verify.verify(out)
    if not outcome.holds:
        raise ClaimError(
            f"{out} was written but does not verify: run `vitrail verify {out}` and report what it says."
        )
    # One launch of the model alone: no limit is decided, and nobody is waited for, so that it stays short.
    workload = replace(selection.workload, latency_scope="model", concurrency=1)
    again = remeasure.measure_artifact(written, Requirements(), workload, launches=1, patience_s=0.0)
    now, then = (seen.latency.get("model") for seen in (again, entry.observation))
    assert now is not None
    assert then is not None
    return (
        f"shipped folder launched again: model p50 {now.p50:.3g} ms, {then.p50:.3g} ms when it was selected"
    )


def check_places(out: str | Path | None, *, overwrite: bool) -> None:
    """Say before any work what would stop the exports or the artifact from being written."""
    if out is not None:
        artifact.check_target(out, overwrite=overwrite)
    for place in (store.cache_dir(), *(() if out is None else (Path(out),))):
        store.check_room(place, LEAST_FREE_MIB)


def need_workbench() -> None:
    """Raise a MissingExtraError without the libraries that export models."""
    for module in WORKBENCH:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{module}, which exports models,", 'pip install "vitrail[workbench]"')


def resolved(workload: Workload) -> Workload:
    """The workload with a number of threads. Raises InputError for more than there are processors."""
    cores = hardware.usable_cores()
    threads, most = workload.threads or cores, max(cores, os.cpu_count() or cores)
    if threads > most:
        raise InputError(f"--threads {threads} is more than this machine's {most} processors: give fewer.")
    return dataclasses.replace(workload, threads=threads)


def _introduced(
    candidates: int,
    everything: Sequence[Variant],
    requirements: Requirements,
    workload: Workload,
    peaks: Peaks,
    photos: int,
) -> str:
    left = [v for v in everything if prune.ruled_out(v, requirements, workload, peaks, photos) is None]
    models = {v.candidate.name for v in left}
    families = {v.candidate.family for v in left}
    return (
        f"{counted(candidates, 'model')} → {len(models)} "
        f"in {counted(len(families), 'family', 'families')} are not ruled out by facts "
        f"→ {counted(len(left), 'variant')}"
    )


__all__ = ["Watcher", "select", "ship", "shipping"]
