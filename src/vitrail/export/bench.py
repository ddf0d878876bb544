"""The workbench: export -> subject -> measurement, parity, bundle; each made once, kept, and found again.

Everything heavy runs in children of measure/sandbox.py; this process never imports torch.
"""

from __future__ import annotations

import dataclasses
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from vitrail import hardware, runtimes, stats, store, tasks
from vitrail.artifact import Bundle, Evidence
from vitrail.data import SPLITS, Dataset, Split
from vitrail.export import clicked, passes, work
from vitrail.export.calibration import Calibration
from vitrail.export.exports import Exports, labels_key
from vitrail.export.requests import ReferenceRequest
from vitrail.export.workshop import Workshop
from vitrail.images.photos import PhotoSet
from vitrail.measure import sandbox
from vitrail.measure.launch import COMPILE_TIMEOUT_S, LOAD_TIMEOUT_S, ExportSubject
from vitrail.tasks.agreement import CHANGED, MIN_DECIDED_PHOTOS
from vitrail.version import __version__
from vitrail.vocabulary import (
    Environment,
    Export,
    Made,
    Measurement,
    Parity,
    Quality,
    Variant,
    Workload,
)
from vitrail.weights.find import Located, WeightsFinder

METHOD_VERSION = "2"
"""Part of every measurement's key: raise it when docs/measurement.md changes what a figure means."""

REFERENCE_SECONDS = 20.0
REFERENCE_LEAST_SECONDS = 10.0
"""What making the reference may take however little of the budget is left."""
REFERENCE_MANY_SECONDS = 90.0
"""With enough photos to measure what a lower precision loses, the reference gets the time to see them."""
PARITY_IMAGES = 96
"""Crops that parity looks at when there are few photos; each photo gives at most the task's `most_views`."""
PARITY_MIB = 256.0
"""What the outputs that parity compares may take: of dense ones, fewer photos are compared."""
MAX_REFERENCE_PHOTOS, LEAST_REFERENCE_PHOTOS = 11, 2
"""Photos that ship with an artifact, so that it can be verified without torch."""
REFERENCE_MIB = 16.0
"""What their outputs may take, so that an artifact stays small; the least number ships anyway."""
PART_MIB = 256.0
"""Outputs of labelled images that are held at a time."""
SPEED_TOLERANCE = 0.10
"""Recorded figures are used again only while the reference workload takes as long as then, within this."""


class Bench(Exports):
    """Makes launches of variants for one selection, and what is compared with them.

    Args:
        workload: with threads resolved to a number.
        photos: for timing and parity.
        finder: where weights come from.
        machine: facts of this machine.
        fresh: ignore recorded measurements.
        dataset: the user's labelled images, on whose validation split accuracy is measured.
        workshop: the process that exports; closed by whoever made it, or by `close`.
        calibration, max_drop: of int8, as `Exports` takes them.
    """

    def __init__(
        self,
        *,
        workload: Workload,
        photos: PhotoSet,
        finder: WeightsFinder,
        machine: Mapping[str, object],
        fresh: bool = False,
        dataset: Dataset | None = None,
        workshop: Workshop | None = None,
        calibration: Calibration | None = None,
        max_drop: float | None = None,
    ) -> None:
        assert workload.threads is not None
        self.machine = machine
        self._fingerprint = hardware.fingerprint(machine)
        super().__init__(
            finder,
            workload.threads,
            workshop,
            batch_size=workload.batch_size,
            machine=self._fingerprint,
            calibration=calibration,
            photos=photos.paths,
            max_drop=max_drop,
            dataset=dataset,
        )
        self.workload = workload
        self.photos = photos
        # The slow reference may not get through all photos: a shuffled order keeps what it sees mixed.
        order = np.random.default_rng(0).permutation(len(photos.paths))
        self._parity_photos = tuple(photos.paths[i] for i in order)
        many = len(photos.paths) >= stats.PHOTOS_FOR_LOSS_BOUND
        self._reference_s = REFERENCE_MANY_SECONDS if many else REFERENCE_SECONDS
        self.dataset = dataset
        self._fresh = fresh
        self._records = store.RecordStore(self._cache / "measurements")
        self._speed_ms: float | None = None

    def subject(self, variant: Variant, export: Export) -> ExportSubject:
        """The variant as something to launch."""
        engine = runtimes.RUNTIMES[variant.runtime]
        return ExportSubject(
            variant=variant,
            export=export,
            workload=self.workload,
            task=self.task(variant),
            photos=self.photos,
            threads=self.threads,
            load_timeout_s=COMPILE_TIMEOUT_S if engine.compiles or engine.plans else LOAD_TIMEOUT_S,
        )

    def made(self, subject: ExportSubject) -> Made:
        """The size of the files that a launch loads, and what making them took."""
        variant, export = subject.variant, subject.export
        engine = runtimes.RUNTIMES[variant.runtime]
        files = [Path(export.folder) / name for name in export.files]
        if engine.reference and not engine.builds:  # it reads the weights themselves
            located = self.weights(variant.candidate)
            mib = located.path.stat().st_size / 2**20 if located else 4 * variant.candidate.parameters / 2**20
            return Made(mib=mib, seconds=subject.seen.load_s if engine.compiles else 0.0)
        return Made(mib=sum(file.stat().st_size for file in files) / 2**20, seconds=export.made_s)

    # --- measurements -----------------------------------------------------------------------------

    def recorded(self, variant: Variant) -> Measurement | None:
        """The variant's measurement from an earlier run, if the machine is as fast as it was then."""
        if self._fresh:
            return None
        record = self._records.get(self._key(variant))
        if record is None:
            return None
        try:
            measurement = msgspec.convert(record, Measurement)
        except msgspec.ValidationError:
            return None
        return measurement if self._same_speed(measurement) else None

    def record(self, variant: Variant, measurement: Measurement) -> None:
        """Keep a measurement as it stands."""
        self._records.put(self._key(variant), msgspec.to_builtins(measurement))

    def environment(self, variant: Variant) -> Environment:
        """Where a figure of this variant is taken."""
        return Environment(
            hardware=self._fingerprint,
            engine=f"{variant.runtime} {runtimes.version(variant.runtime)}",
            vitrail=f"{__version__} method {METHOD_VERSION}",
            photos=self.photos.digest,
        )

    def _key(self, variant: Variant) -> dict[str, object]:
        return {
            "weights": self.weights_key(variant.candidate),
            "variant": variant.name,
            "preprocess": msgspec.to_builtins(variant.preprocess),
            "settings": [list(pair) for pair in variant.settings],
            "workload": workload_key(self.workload),
            "environment": msgspec.to_builtins(self.environment(variant)),
            "toolchain": work.toolchain(),
            "images": image_libraries(),
            "export": work.EXPORT_VERSION,
            "data": self.dataset.digest if self.dataset else None,
            **({"task": variant.candidate.task} if variant.candidate.task != "classify" else {}),
            **({"rewritten": found} if (found := self.rewrite_key(variant)) else {}),
            **self.built_key(variant),
            **({} if variant.exact else {"passes": passes.VERSION}),
        }

    def _same_speed(self, measurement: Measurement) -> bool:
        then = [s for b in measurement.blocks for s in (b.speed_before_ms, b.speed_after_ms)]
        if not then:
            return False
        now = self.speed_ms()
        return abs(now / stats.percentile(then, 50) - 1) <= SPEED_TOLERANCE

    def speed_ms(self) -> float:
        """Duration of the reference workload now, measured once per selection."""
        if self._speed_ms is None:
            answer = sandbox.call(
                "vitrail.measure.session:machine_speed", {}, timeout_s=60, memory_mib=2048, name="speed check"
            )
            self._speed_ms = float(answer["speed_ms"])
        return self._speed_ms

    # --- labelled images --------------------------------------------------------------------------

    def quality(self, variant: Variant, export: Export, split: Split) -> Quality:
        """How good the export's own outputs are on a split of the labelled images, in a launch of its own.

        Raises:
            ChildFailure: the export cannot be launched, or fails.
        """
        assert self.dataset is not None, "there are no labelled images"
        dataset, subject = self.dataset, self.subject(variant, export)
        launch = subject.launch(0)

        def answered() -> Iterator[tasks.Answered]:
            for part in tasks.parts(dataset.of(split), subject.task, PART_MIB):
                outputs = launch.outputs(tuple(example.path for example in part), 1)
                rows = {name: values[:, 0] for name, values in outputs.items()}
                yield rows, [dataset.truth(example) for example in part]

        asked = answered()
        if subject.task.stages:
            asked = clicked.answered(launch, dataset, split, subject.task, PART_MIB)
        try:
            found = subject.task.score(asked, dataset.classes, split=split, data=dataset.digest)
        finally:
            launch.close()
        assert found is not None, "labels say nothing about this task"
        return found

    # --- parity -----------------------------------------------------------------------------------

    def parity(self, subject: ExportSubject, left_s: float) -> Parity:
        """Compare an export, in a launch of its own, with the fp32 reference on the photos' crops.

        The reference sees as many photos as `left_s` allows, and never fewer than parity needs. The export is
        loaded meanwhile: nothing is timed here.

        Raises:
            ChildFailure: the reference or the export failed.
        """
        variant = subject.variant
        with ThreadPoolExecutor(max_workers=1) as pool, ExitStack() as open_launch:
            making = pool.submit(self.reference_outputs, variant, left_s)
            try:
                launch = subject.launch(0)
                open_launch.callback(launch.close)
                reference = making.result()
            except BaseException:
                self.workshop.close()  # nobody waits for the reference any more
                raise
            count, crops = next(iter(reference.values())).shape[:2]
            photos = self._parity_photos[:count]
            outputs = launch.outputs(photos, crops)
        found = subject.task.compare(reference, outputs, _held_to(variant))
        return dataclasses.replace(found, worst=photos[int(found.worst)] if found.worst else "")

    def reference_outputs(self, variant: Variant, left_s: float = REFERENCE_SECONDS) -> tasks.Arrays:
        """The fp32 reference's outputs (photos, crops, ...), made once for all variants of a candidate."""
        variant = variant.plain  # the model that passes have not touched
        located = self.weights(variant.candidate)
        assert located is not None, "random weights have no parity"
        task = self.task(variant)
        crops = max(1, min(task.most_views, PARITY_IMAGES // len(self.photos.paths)))
        fit = max(tasks.fitting(task, PARITY_MIB / crops), 2 * MIN_DECIDED_PHOTOS)
        compared = self._parity_photos[:fit]
        key = {
            "weights": self.weights_key(variant.candidate),
            "architecture": variant.candidate.architecture,
            "implementation": variant.implementation,
            "preprocess": msgspec.to_builtins(variant.preprocess),
            "labels": labels_key(variant.candidate.labels),
            "photos": list(compared),
            "digest": self.photos.digest,
            "crops": crops,
            "toolchain": work.toolchain(),
            "images": image_libraries(),
            "method": METHOD_VERSION,
        }
        if variant.candidate.task != "classify":
            key["task"] = variant.candidate.task
        digest = store.digest_of(key)[:24]
        target = self._cache / "references" / f"{digest}.npz"
        if not target.is_file():
            self._make_reference(variant, located, compared, crops, target, left_s)
        try:
            return tasks.read_arrays(target)
        except (ValueError, EOFError, zipfile.BadZipFile):  # cut off by a crash of the machine
            self._make_reference(variant, located, compared, crops, target, left_s)
            return tasks.read_arrays(target)

    def _make_reference(
        self,
        variant: Variant,
        located: Located,
        photos: tuple[str, ...],
        crops: int,
        target: Path,
        left_s: float,
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            partial = Path(folder) / "outputs.npz"
            request = ReferenceRequest(
                architecture=variant.candidate.architecture,
                implementation=variant.implementation,
                task=tasks.pack(self.task(variant)),
                labels=variant.candidate.labels,
                weights=self.weights_file(located),
                photos=list(photos),
                crops_per_photo=crops,
                seconds=min(self._reference_s, max(left_s / 2, 1.0)),
                minimum=min(len(photos), 2 * MIN_DECIDED_PHOTOS),
                target=str(partial),
                threads=self.threads,
                own=self.own_file(variant),
            )
            self.workshop.run(
                "reference_outputs",
                request,
                timeout_s=max(left_s, REFERENCE_LEAST_SECONDS),
                name="the fp32 reference",
            )
            partial.replace(target)

    # --- shipping ---------------------------------------------------------------------------------

    def bundle(
        self, variant: Variant, export: Export, measurement: Measurement | None, evidence: Evidence
    ) -> Bundle:
        """What ships: its files, evidence, and reference photos with both sets of outputs.

        What its evidence says was not run has no outputs of its own.
        """
        located = self.weights(variant.candidate)
        assert located is not None, "random weights are never shipped"
        found = self.reference_outputs(variant)
        subject = self.subject(variant, export)
        fit = max(tasks.fitting(subject.task, REFERENCE_MIB), LEAST_REFERENCE_PHOTOS)
        shipped = min(fit, MAX_REFERENCE_PHOTOS)
        reference = {name: values[:shipped, 0] for name, values in found.items()}
        photos = self._parity_photos[: len(next(iter(reference.values())))]
        own = self._own_outputs(subject, photos) if evidence.run else {}
        candidate = dataclasses.replace(variant.candidate, weights=located.weights)
        return Bundle(
            variant=dataclasses.replace(variant, candidate=candidate),
            task=subject.task,
            export=export,
            evidence=evidence,
            photos=tuple(Path(photo) for photo in photos),
            fp32_outputs=reference,
            own_outputs=own,
            bounds=subject.task.bounds(_held_to(variant)),
            measurement=measurement,
            splits=None if self.dataset is None else splits_of(self.dataset),
        )

    @staticmethod
    def _own_outputs(subject: ExportSubject, photos: tuple[str, ...]) -> dict[str, np.ndarray]:
        launch = subject.launch(0)
        try:
            return {name: values[:, 0] for name, values in launch.outputs(photos, 1).items()}
        finally:
            launch.close()


def workload_key(workload: Workload) -> dict[str, object]:
    """What of a workload tells its measurements apart from others; photos have digests of their own."""
    key: dict[str, object] = msgspec.to_builtins(dataclasses.replace(workload, images=None, data=None))
    if workload.concurrency == 1:  # what was measured before there could be more keeps its key
        del key["concurrency"]
    return key


def _held_to(variant: Variant) -> str:
    """Whose bounds a variant's outputs must hold."""
    return variant.precision if variant.exact else CHANGED


def image_libraries() -> dict[str, str]:
    """Versions of what decodes and resizes: part of a request's latency and of a reference's pixels."""
    return {name: metadata.version(name) for name in ("pillow", "numpy")}


def splits_of(dataset: Dataset) -> dict[str, dict[str, str]]:
    """{split: {sha256 of an image: its class}}: which images were fitted, chosen on and tested on."""
    return {
        split: {example.digest: dataset.answer(example) for example in dataset.of(split)} for split in SPLITS
    }
