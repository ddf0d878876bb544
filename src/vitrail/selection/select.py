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

from vitrail import artifact, catalog, data, hardware, judge, remeasure, runtimes, store, verify
from vitrail.errors import ClaimError, InputError, MissingExtraError
from vitrail.images.photos import MAX_PHOTOS, PhotoSet, digest_of, evenly_spaced, photo_folder, sample_photos
from vitrail.measure import accuracy, sandbox
from vitrail.measure import peaks as engine_peaks
from vitrail.models.weights import WeightsFinder
from vitrail.requirements import check
from vitrail.runtimes import RUNTIMES
from vitrail.selection import prune
from vitrail.selection.bench import METHOD_VERSION, Bench
from vitrail.selection.own import OwnWeights, own_candidate
from vitrail.selection.probing import Probed, probe
from vitrail.selection.prune import Peaks, missing_runtimes, variants
from vitrail.selection.search import Progress, Search
from vitrail.vocabulary import Accuracy, Candidate, Requirements, SearchSettings, Selection, Workload
from vitrail.zeroshot.candidates import Found, Names, OwnCLIP, matching, of_names
from vitrail.zeroshot.hub import Finder
from vitrail.zeroshot.prompts import key
from vitrail.zeroshot.published import Published

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
    out: str | Path | None = None,
    overwrite: bool = False,
    keep_text_tower: bool = False,
    watcher: Watcher | None = None,
) -> Selection:
    """Choose the model, runtime and precision that hold the requirements on this machine.

    Args:
        requirements: limits and objective; None: no limits, best accuracy.
        workload: under what load; None: batch 1, all usable cores, p95 of whole requests.
        settings: where to search and for how long; None: the whole catalogue for five minutes.
        own: the user's own weights; they are the only candidate unless `settings.models` names others.
        names: class names for zero-shot candidates (CLIP, SigLIP); with `workload.data` they compete with
            probes, without it they are the only candidates.
        out: folder for the winner's artifact; nothing is written when nothing fits.
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
    catalog.check_requirement(requirements.license, also=(own.license,) if own else ())
    if names is not None and workload is not None and workload.data is None:
        _refuse_unmeasured(requirements)
    _need_workbench()
    if out is not None:
        store.check_target(out, overwrite=overwrite)
    begin = time.monotonic()
    machine = hardware.facts(table=RUNTIMES)
    workload = _resolved(workload or Workload(), machine)
    candidates, rows = _asked_candidates(own, names, settings, with_data=workload.data is not None)
    dataset = None if workload.data is None else data.load(workload.data)
    _check_classes(requirements, dataset)
    photos = _photos(workload, dataset)
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
        names = names if dataset is None else _in_order_of(names, dataset)
        clip = own if isinstance(own, OwnCLIP) else None
        hub = Finder(offline=settings.offline, max_download_mib=allowance)
        zero_shot = _named(names, rows, clip, hub, bench, required=not candidates)
        candidates = (*candidates, *zero_shot.candidates)
    if dataset is not None:
        watcher.note(described(dataset))
        backbones = tuple(c for c in candidates if c not in zero_shot.candidates)
        probed = probe(backbones, dataset, bench, requirements, workload, settings, watcher.note)
        measured = tuple(measured_first(c, bench, settings) for c in zero_shot.candidates)
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
            *(probed.notes if probed else ()),
            *zero_shot.notes,
            *search.notes(),
            *missing_runtimes(settings),
            photos.evidence,
            *_doubts(dataset),
        ),
        method={"version": METHOD_VERSION, "peaks_gflops": peaks, "photos": photos.name},
    )
    if dataset is not None:
        selection = tested(selection, search, requirements)
    watcher.judged(selection)
    if out is not None and selection.winner is not None:
        tower = zero_shot.towers.get(selection.winner.variant.candidate.name) if keep_text_tower else None
        watcher.note(ship(selection, search, Path(out), overwrite=overwrite, text_tower=tower))
    return selection


def tested(selection: Selection, search: Search, requirements: Requirements) -> Selection:
    """The selection with the winner's answers on the test split, beside what validation let expect.

    No choice has looked at these images, and none does now: what they say is written down, and where they
    contradict a limit that validation held, a note says so.

    Raises:
        ChildFailure: the winner's export, which ran before, fails now.
    """
    winner = selection.winner
    seen = winner.observation.classification if winner is not None else None
    if winner is None or seen is None:
        return selection
    export = search.bench.export(winner.variant, timeout_s=300.0)
    found = search.bench.classify(winner.variant, export, "test")
    right = round(seen.accuracy * seen.images / 100)
    low, high = accuracy.expected_share(right, seen.images, found.images)
    doubts = []
    if requirements.min_accuracy is not None and found.interval[0] < requirements.min_accuracy:
        doubts.append(
            f"{found.images} test images do not show at 95 % that the accuracy reaches "
            f"{requirements.min_accuracy:g} %: {found.accuracy:.1f} % "
            f"[{found.interval[0]:.1f}, {found.interval[1]:.1f}]"
        )
    recalls = {recall.label: recall for recall in found.recalls}
    for label, least in requirements.min_recall:
        recall = recalls[label]
        lower, upper = accuracy.share_interval(round(recall.value * recall.images / 100), recall.images)
        if 100 * lower < least:
            doubts.append(
                f"{recall.images} test images do not show at 95 % that the recall of {label} reaches "
                f"{least:g} %: {recall.value:.1f} % [{100 * lower:.1f}, {100 * upper:.1f}]"
            )
    if not low <= found.accuracy / 100 <= high:
        doubts.append(
            f"the test accuracy of {found.accuracy:.1f} % lies outside the "
            f"{100 * low:.1f} to {100 * high:.1f} % that the validation images let expect"
        )
    return replace(
        selection,
        test=found,
        expected_test=(100 * low, 100 * high),
        notes=(*doubts, *selection.notes),
    )


def described(dataset: data.Dataset) -> str:
    """One line on the labelled images."""
    counts = {split: len(dataset.of(split)) for split in data.SPLITS}
    said = ", ".join(f"{count} {split}" for split, count in counts.items())
    return f"{dataset.name}: {len(dataset.classes)} classes, {said}"


def _doubts(dataset: data.Dataset | None) -> tuple[str, ...]:
    """What is wrong with the labelled images, counted."""
    if dataset is None:
        return ()
    found = (
        (
            len(dataset.broken),
            f"images cannot be read, the first: {dataset.broken[0].path}" if dataset.broken else "",
        ),
        (dataset.duplicates, "files are copies of other images and count once"),
        (len(dataset.conflicts), "images are there under different labels and are left out"),
    )
    return tuple(f"{count} {text} (`vitrail data` lists them)" for count, text in found if count)


def _check_classes(requirements: Requirements, dataset: data.Dataset | None) -> None:
    for label, _ in requirements.min_recall:
        if dataset is None:
            raise InputError("--min-recall is about your own classes: give labelled images with --data DIR.")
        if label not in dataset.classes:
            raise InputError(
                f"--min-recall: {label!r} is no class of the data: use {' or '.join(dataset.classes)}."
            )


def _photos(workload: Workload, dataset: data.Dataset | None) -> PhotoSet:
    """What timing and parity use: the folder that was named, else the validation images, else the samples."""
    if workload.images is not None:
        return photo_folder(workload.images)
    if dataset is None:
        return sample_photos()
    paths = evenly_spaced([example.path for example in dataset.of("validation")], MAX_PHOTOS)
    return PhotoSet(
        name=dataset.name,
        paths=tuple(paths),
        digest=digest_of(paths),
        evidence=f"timing and parity on {len(paths)} of its validation images",
    )


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


def _asked_candidates(
    own: OwnWeights | OwnCLIP | None, names: Names | None, settings: SearchSettings, *, with_data: bool
) -> tuple[tuple[Candidate, ...], tuple[Published, ...]]:
    """Candidates of the catalogue and of the user, and published CLIPs, as the globs of `models` say.

    Own weights are alone unless globs name others. Without labelled images only class names can make a head
    for other classes than ImageNet's, so the catalogue then takes no part.
    """
    if names is None:
        assert not isinstance(own, OwnCLIP)
        return _candidates(own, settings), ()
    alone = own is not None and not settings.models
    rows = () if alone else matching(settings.models)
    if alone or not with_data:
        if not rows and own is None:
            raise InputError(
                f"No CLIP matches {' '.join(settings.models)}: name one as open_clip does, ViT-B-32."
            )
        return (), rows
    if not rows:
        return catalog.find(settings.models), rows
    # A glob may be about CLIPs alone, so the catalogue need not know it.
    asked = [c for c in catalog.candidates() if any(catalog.matches(c, glob) for glob in settings.models)]
    return (tuple(asked) if settings.models else catalog.candidates()), rows


def _refuse_unmeasured(requirements: Requirements) -> None:
    if requirements.min_accuracy is not None:
        raise InputError(
            "Zero-shot accuracy on your classes is not known before it is measured: give labelled images "
            "with --data DIR, or leave --min-accuracy out."
        )


def _in_order_of(names: Names, dataset: data.Dataset) -> Names:
    """The names as the labelled images spell and order them.

    Raises:
        InputError: the two are not the same classes.
    """
    own, theirs = {key(name) for name in names.classes}, {key(name) for name in dataset.classes}
    if own != theirs:
        raise InputError(
            f"--classes and the labelled images name different classes ({', '.join(sorted(own ^ theirs))}): "
            "give the folders' names."
        )
    return replace(names, classes=dataset.classes)


def _named(
    names: Names,
    rows: Sequence[Published],
    own: OwnCLIP | None,
    finder: Finder,
    bench: Bench,
    *,
    required: bool,
) -> Found:
    """Zero-shot candidates; without any the others go on alone, if there are others."""
    try:
        return of_names(names, rows, own, finder, threads=bench.threads)
    except InputError as error:
        if required or own is not None:
            raise
        return Found((), (str(error).rstrip("."),))


def measured_first(candidate: Candidate, bench: Bench, settings: SearchSettings) -> Candidate:
    """A zero-shot candidate with its accuracy on the validation images in place of ImageNet's.

    Raises:
        InputError: it cannot be exported or run.
    """
    form = variants([candidate], bench.workload, settings)[0]
    try:
        seen = bench.classify(form, bench.export(form, timeout_s=300.0), "validation")
    except sandbox.ChildFailure as error:
        raise InputError(f"{candidate.name}: {error}") from None
    found = Accuracy(
        value=seen.accuracy,
        provenance="measured",
        source="zero-shot on the validation split",
        images=seen.images,
        interval=seen.interval,
    )
    size = form.image_size
    return replace(candidate, accuracy=found, preprocess=replace(candidate.preprocess, image_size=size))


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


__all__ = ["Names", "OwnCLIP", "OwnWeights", "Watcher", "measured_peaks", "select", "ship"]
