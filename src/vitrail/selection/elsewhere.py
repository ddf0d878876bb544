"""One target's files of one model, for a machine that is not this one: `vitrail export`.

Nothing is timed, and nothing is claimed that was not seen. Where the engine runs here too, it has answered
the reference photos within its precision's bounds; where it does not, the artifact has the fp32 reference's
outputs alone, and the machine that it is for says whether they hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail import artifact, gpu, hardware, runtimes, verify
from vitrail.artifact import NOT_RUN, NOT_TIMED, Artifact, Evidence
from vitrail.errors import ClaimError, InputError, MissingExtraError
from vitrail.export.bench import Bench
from vitrail.export.calibration import Calibration, calibration
from vitrail.export.variants import implementations
from vitrail.export.workshop import Workshop
from vitrail.images.photos import PhotoSet
from vitrail.measure.sandbox import ChildFailure
from vitrail.requirements import check
from vitrail.runtimes import RUNTIMES
from vitrail.selection.labelled import photos_of
from vitrail.selection.select import DOWNLOAD_MIB, Watcher, check_places, need_workbench, resolved
from vitrail.sources.gather import check_task
from vitrail.sources.source import Context, Source
from vitrail.vocabulary import (
    Candidate,
    Parity,
    Precision,
    Requirements,
    SearchSettings,
    Variant,
    Workload,
)
from vitrail.weights.find import WeightsFinder

__all__ = ["Exported", "export_one"]

NOTHING_ASKED = Requirements(license=("any",))
"""Who exports one model has chosen it, its license too."""
MAKING_S = 3600.0
"""What exporting and building may take: nobody set a budget, and the largest models take minutes."""
REFERENCE_S = 600.0
"""What loading the fp32 reference, and its answers, may take."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    artifact: Artifact
    why_not_run: str
    """Why its engine does not run here; "": it ran on the reference photos."""
    parity: Parity | None
    """None: it was not run."""
    mib: float
    """Of the engine's files."""
    made_s: float
    """What making them took."""
    notes: tuple[str, ...] = ()
    """What the person should know, one clause each."""


def export_one(
    source: Source,
    workload: Workload,
    settings: SearchSettings,
    *,
    out: str | Path,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Exported:
    """Build the one target that `settings` names, of the source's one candidate, and write its artifact.

    Args:
        workload: batch size, image size, photos, and threads of the engine; its device follows the engine.
        settings: one name in `runtimes`, at most one in `precisions` (without it, the engine's first).
        out: folder of the artifact.

    Raises:
        InputError: the target is not one, or cannot be built of this model; weights are not at hand; or `out`
            cannot be written.
        MissingExtraError: what exports or builds is not installed.
        ClaimError: the engine runs here, and answers otherwise than its precision allows; nothing is written.
    """
    watcher = watcher or Watcher()
    check(workload, settings, runtimes=RUNTIMES)
    check_task([source], settings.task)
    source.check_settings(settings)
    engine, precision, device = _target(settings)
    need_workbench()
    check_places(out, overwrite=overwrite)
    workload = replace(workload, device=device)
    with Workshop() as workshop:
        workshop.start()
        bench = _bench(workload, settings, workshop, watcher)
        candidate = _candidate(source, settings, bench, watcher)
        variant = _variant(candidate, workload, settings, engine, precision)
        watcher.doing(f"exporting {variant.name}", math.inf)
        try:
            return _written(variant, bench, workload, Path(out), overwrite, watcher)
        except ChildFailure as error:
            raise InputError(f"{variant.name} cannot be exported: {str(error).rstrip('.')}.") from error


def _target(settings: SearchSettings) -> tuple[str, Precision, str]:
    """The one engine, its precision and its device."""
    if len(settings.runtimes) != 1:
        ship = ", ".join(name for name, row in RUNTIMES.items() if not row.reference)
        raise InputError(f"One engine's files are exported: give --runtimes one name of {ship}.")
    (name,) = settings.runtimes
    engine = RUNTIMES[name]
    if engine.reference:
        raise InputError(f"{engine.label} is a reference and never ships: name another engine.")
    device = engine.devices[0]
    offered = engine.on(device)
    if len(settings.precisions) > 1:
        raise InputError(f"One precision is exported: give --precisions one name of {', '.join(offered)}.")
    precision = settings.precisions[0] if settings.precisions else offered[0]
    if precision not in offered:
        raise InputError(f"{engine.label} has no {precision}: choose {' or '.join(offered)}.")
    if engine.builds and (missing := runtimes.missing(name)) is not None:
        raise MissingExtraError(*missing)
    return name, precision, device


def _bench(workload: Workload, settings: SearchSettings, workshop: Workshop, watcher: Watcher) -> Bench:
    watcher.doing("reading photos", math.inf)
    calibrated, photos = _calibration(workload, settings, photos_of(workload, None))
    (engine,) = settings.runtimes
    device = "cpu" if _why_not_run(engine, workload.device) else workload.device
    allowance = DOWNLOAD_MIB if settings.max_download_mib is None else settings.max_download_mib
    return Bench(
        workload=resolved(workload),
        photos=photos,
        finder=WeightsFinder(offline=settings.offline, max_download_mib=allowance),
        machine=hardware.facts(table=RUNTIMES, device=device),
        workshop=workshop,
        calibration=calibrated,
    )


def _calibration(
    workload: Workload, settings: SearchSettings, photos: PhotoSet
) -> tuple[Calibration | None, PhotoSet]:
    """What int8 is calibrated on, and the photos that are left to judge it."""
    if "int8" not in settings.precisions:
        if settings.calibration is not None:
            raise InputError("--calibration is about int8: add --precisions int8, or leave it out.")
        return None, photos
    found, left = calibration(
        settings.calibration, workload.images, None, photos, options="--images or --calibration"
    )
    if isinstance(found, str):
        raise InputError(f"{found}.")
    return found, left


def _candidate(source: Source, settings: SearchSettings, bench: Bench, watcher: Watcher) -> Candidate:
    """The source's one, whose weights are at hand."""
    source.check(NOTHING_ASKED, settings, None)
    context = Context(
        requirements=NOTHING_ASKED,
        settings=settings,
        bench=bench,
        download_mib=DOWNLOAD_MIB if settings.max_download_mib is None else settings.max_download_mib,
        note=watcher.note,
        doing=lambda text: watcher.doing(text, math.inf),
    )
    found = source.find(context)
    for note in found.notes:
        watcher.note(note)
    (candidate,) = found.candidates
    if candidate.name in found.excluded:
        raise InputError(f"{candidate.name} cannot be exported: {found.excluded[candidate.name]}.")
    if bench.weights(candidate) is None:
        raise InputError(str(bench.unavailable(candidate)))
    return candidate


def _variant(
    candidate: Candidate, workload: Workload, settings: SearchSettings, engine: str, precision: Precision
) -> Variant:
    (implementation, *_) = implementations(candidate, settings.implementations) or ("",)
    if not implementation:
        raise InputError(f"{candidate.name} has none of these implementations: leave --implementations out.")
    if implementation == "onnx" and RUNTIMES[engine].of_module:
        label = RUNTIMES[engine].label
        raise InputError(
            f"{label} takes modules, and {candidate.name} is an ONNX file: name another runtime."
        )
    return Variant(
        candidate=candidate,
        image_size=workload.image_size or candidate.preprocess.image_size,
        implementation=implementation,
        runtime=engine,
        precision=precision,
    )


def _why_not_run(engine: str, device: str) -> str:
    """Why the engine does not run on this machine; "": it does."""
    label = RUNTIMES[engine].label
    if there := runtimes.elsewhere(engine):
        return f"{label} runs on {there}"
    if runtimes.version(engine) is None:
        return f"{label} is not installed"
    if runtimes.kind_of(device) == "cuda":
        try:
            gpu.card(device)
        except InputError:
            return f"{label} runs on NVIDIA GPUs, and none answers here"
    return ""


def _written(
    variant: Variant, bench: Bench, workload: Workload, out: Path, overwrite: bool, watcher: Watcher
) -> Exported:
    export = bench.export(variant, MAKING_S)
    why_not_run = _why_not_run(variant.runtime, workload.device)
    subject = bench.subject(variant, export)
    watcher.doing("computing the fp32 reference's outputs", math.inf)
    bench.reference_outputs(variant, REFERENCE_S)
    evidence = Evidence(requirements=NOTHING_ASKED, workload=workload, run=False, flags=(NOT_RUN,))
    if not why_not_run:
        watcher.doing("comparing it with the fp32 reference", math.inf)
        parity = bench.parity(subject, REFERENCE_S)
        _refuse_failed(variant, parity)
        evidence = replace(
            evidence,
            run=True,
            parity=parity,
            facts=subject.seen.facts,
            environment=bench.environment(variant),
            hardware=dict(bench.machine),
            flags=(
                NOT_TIMED,
                *([] if parity.answer == "pass" else [f"parity {parity.answer}: {parity.reason}"]),
            ),
        )
    watcher.doing(f"writing {out}", math.inf)
    written = artifact.write(out, bench.bundle(variant, export, None, evidence), overwrite=overwrite)
    if not why_not_run and not verify.verify(out).holds:
        raise ClaimError(
            f"{out} was written but does not verify: run `vitrail verify {out}` and report what it says."
        )
    made = bench.made(subject)
    return Exported(
        artifact=written,
        why_not_run=why_not_run,
        parity=evidence.parity,
        mib=made.mib,
        made_s=made.seconds,
        notes=evidence.flags,
    )


def _refuse_failed(variant: Variant, parity: Parity) -> None:
    """Nothing ships that misses its precision's bounds; too few photos to judge agreement is said instead."""
    if parity.answer != "fail":
        return
    worst = f", most on {parity.worst}" if parity.worst else ""
    raise ClaimError(
        f"{variant.name} differs from the fp32 reference by more than {variant.precision} may "
        f"({parity.reason}{worst}): nothing was written; choose another precision or engine."
    )
