"""Weights -> exports -> what engines build of them: each made once, kept, and found again.

PyTorch is in the workshop's process alone; this one never imports it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from vitrail import runtimes, store, tasks
from vitrail.data import Dataset
from vitrail.errors import VitrailError
from vitrail.export import passes, work
from vitrail.export.calibration import LEAST_PHOTOS, Calibration
from vitrail.export.requests import (
    REWRITTEN_FILE,
    BuildRequest,
    ExportRequest,
    Form,
    OwnGraph,
    OwnRequest,
    QuantiseRequest,
    RewriteRequest,
)
from vitrail.export.workshop import Workshop
from vitrail.images.photos import digest_of, evenly_spaced
from vitrail.measure.sandbox import ChildFailure
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Candidate, Export, Rewriting, Variant
from vitrail.weights.find import Located, WeightsFinder, WeightsUnavailable

__all__ = ["Exports", "NothingToRewrite", "labels_key"]

MOST_JUDGED = 500
"""Labelled images on which accuracy control measures a drop, again for every number of layers it tries."""
MOST_MEASURED = 8
"""Photos on which the ranges of a graph's numbers are measured before it becomes fp16."""
HELD_MIB = 1024.0
"""What inputs and outputs of photos that calibrate or judge int8 may take: of large ones there are fewer."""
BUILD_LEAST_S = 5.0
"""What an engine may take to build its files of an export that took all of the time."""


class NothingToRewrite(VitrailError):
    """Passes have nothing to do in this graph: the variant would be the same as one without them."""


class Exports:
    """The weights and exports of candidates.

    Args:
        finder: where weights come from.
        threads: of the process that exports.
        workshop: that process; closed by whoever made it, or by `close`.
        batch_size: of what engines build of the module.
        machine: fingerprint of this machine, for the same.
        calibration: the photos that int8 is calibrated on; None: nothing becomes int8.
        photos: where none calibrate, a few of these say how large a typed graph's numbers become.
        max_drop: what int8 may lose, in points; None: whatever it is.
        dataset: labelled images, on whose validation split that loss is measured; None: on the photos that
            calibrate, against fp32's own answers.
    """

    def __init__(
        self,
        finder: WeightsFinder,
        threads: int,
        workshop: Workshop | None = None,
        *,
        batch_size: int = 1,
        machine: str = "",
        calibration: Calibration | None = None,
        photos: Sequence[str] = (),
        max_drop: float | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.calibration = calibration
        self.dataset = dataset
        seen = calibration.photos if calibration is not None else photos
        self._ranges_of = evenly_spaced([str(photo) for photo in seen], MOST_MEASURED)
        self._max_drop = max_drop
        self.workshop = workshop or Workshop()
        self.threads = threads
        self._batch_size, self._machine = batch_size, machine
        self._finder = finder
        self._cache = store.cache_dir()
        self._located: dict[str, Located | WeightsUnavailable] = {}
        self._own: dict[str, tuple[OwnRequest, OwnGraph]] = {}

    def close(self) -> None:
        """End the process that exports."""
        self.workshop.close()

    def weights(self, candidate: Candidate) -> Located | None:
        """The candidate's weights, downloaded if the settings allow; None: not at hand."""
        if candidate.name not in self._located:
            try:
                self._located[candidate.name] = self._finder.locate(candidate)
            except WeightsUnavailable as error:
                self._located[candidate.name] = error
        found = self._located[candidate.name]
        return found if isinstance(found, Located) else None

    def unavailable(self, candidate: Candidate) -> WeightsUnavailable:
        """Why `weights` gave None."""
        found = self._located[candidate.name]
        assert isinstance(found, WeightsUnavailable)
        return found

    def reads_own(self, name: str, request: OwnRequest, graph: OwnGraph) -> None:
        """Take a person's own ONNX file as the candidate of this name, from now on."""
        self._own[name] = request, graph

    def own_file(self, variant: Variant) -> OwnRequest | None:
        """The ONNX file that the variant's graph is a copy of; None: it is exported from a module."""
        if variant.candidate.name not in self._own:
            return None
        request, _ = self._own[variant.candidate.name]
        return msgspec.structs.replace(request, preprocess=variant.preprocess)

    def exported(self, variant: Variant) -> bool:
        """Whether the variant's export is kept already, with what its engine builds of it."""
        base = self._export_folder(variant)
        graph = self._graph_folder(variant, base)
        files = [graph / stage / work.ONNX_FILE for stage in _stages(variant)]
        made = (base / work.MANIFEST).is_file() and all(file.is_file() for file in files)
        return made and self._files_at(graph, variant).is_dir()

    def export(self, variant: Variant, timeout_s: float) -> Export:
        """The variant's export, made now unless it is kept from before.

        Raises:
            NothingToRewrite: its passes have nothing to do.
            ChildFailure: exporting failed, crashed, hung or outgrew its memory.
        """
        begin, folder = time.monotonic(), self._export_folder(variant)
        located = self.weights(variant.candidate)
        if not (folder / work.MANIFEST).is_file():
            request = ExportRequest(
                architecture=variant.candidate.architecture,
                implementation=variant.implementation,
                image_size=variant.image_size,
                labels=variant.candidate.labels,
                weights=self.weights_file(located),
                folder=str(folder),
                threads=self.threads,
                task=variant.candidate.task,
                passes=list(passes.of_module(variant.passes)),
                compare=variant.candidate.trained_with is None,
                own=self.own_file(variant),
            )
            folder.parent.mkdir(parents=True, exist_ok=True)
            with store.swept(folder.parent):
                _refuse_idle(self.workshop.run("export", request, timeout_s=timeout_s, name="exporting"))

        def left_s() -> float:
            return max(timeout_s - (time.monotonic() - begin), BUILD_LEAST_S)

        graph = self._rewritten(folder, variant, left_s())
        return self._read_export(folder, variant, self._built(graph, variant, left_s()))

    def _rewritten(self, base: Path, variant: Variant, timeout_s: float) -> Path:
        """The folder with the variant's graph: the export itself, or what passes and int8 make of it."""
        target = self._graph_folder(variant, base)
        if target == base or (target / work.ONNX_FILE).is_file():
            return target
        request = RewriteRequest(
            folder=str(base),
            target=str(target),
            passes=self._graph_passes(variant),
            preprocess=variant.plain.preprocess,
            quantise=self._quantise(variant) if variant.precision == "int8" else None,
            threads=self.threads,
        )
        target.parent.mkdir(exist_ok=True)
        with store.swept(target.parent):
            name = "quantising" if request.quantise else "rewriting"
            _refuse_idle(self.workshop.run("rewrite", request, timeout_s=timeout_s, name=name))
        return target

    def _quantise(self, variant: Variant) -> QuantiseRequest:
        assert self.calibration is not None, "int8 needs photos to be calibrated on"
        task = self.task(variant)
        fit = max(tasks.fitting(task, HELD_MIB, inputs=True), LEAST_PHOTOS)
        photos = evenly_spaced(list(self.calibration.photos), fit)
        judged, labels = photos, None
        if self.dataset is not None:
            examples = evenly_spaced(list(self.dataset.of("validation")), min(MOST_JUDGED, fit))
            judged = [example.path for example in examples]
            if isinstance(task, Classify):
                labels = [task.labels.index(self.dataset.answer(example)) for example in examples]
        return QuantiseRequest(
            task=tasks.pack(task),
            photos=photos,
            max_drop=self._max_drop,
            judged=judged,
            labels=labels,
            batch=self._own[variant.candidate.name][1].batch if variant.candidate.name in self._own else None,
        )

    @cached_property
    def _typed_key(self) -> dict[str, object]:
        """What decides how a typed graph differs from the one it is made of."""
        return {"method": work.TYPED_METHOD, "photos": digest_of(self._ranges_of)}

    def built_key(self, variant: Variant) -> dict[str, object]:
        """What else decides the files that the variant's engine reads, or who runs them; empty: nothing."""
        engine, key = runtimes.RUNTIMES[variant.runtime], dict[str, object]()
        if _takes_typed(variant):
            key["typed"] = self._typed_key
        if engine.builder is not None:
            key["builder"] = runtimes.building(variant.runtime)
        if engine.module == "onnxruntime" and engine.plans:  # a plug-in, whose own version is the engine's
            key["onnxruntime"] = runtimes.version("onnxruntime")
        return key

    def _measured(self, variant: Variant) -> QuantiseRequest | None:
        """The photos that say where a typed graph stays in float32; None: there are none."""
        if not _takes_typed(variant) or not self._ranges_of:
            return None
        return QuantiseRequest(
            task=tasks.pack(self.task(variant)),
            photos=self._ranges_of,
            batch=self._own[variant.candidate.name][1].batch if variant.candidate.name in self._own else None,
        )

    def _quantise_module(self, variant: Variant) -> QuantiseRequest | None:
        """How an engine that builds of the module makes int8 of it; None: it makes none."""
        engine = runtimes.RUNTIMES[variant.runtime]
        if variant.precision != "int8" or not engine.of_module:
            return None
        if reason := uncontrolled(variant, self._max_drop):
            raise ChildFailure(reason)
        return msgspec.structs.replace(self._quantise(variant), batch=self._batch_size)

    def _graph_passes(self, variant: Variant) -> list[str]:
        before = passes.of_module(variant.passes)
        return [name for name in variant.passes if name not in before]

    def rewrite_key(self, variant: Variant) -> dict[str, object]:
        """What decides how the variant's graph differs from its export; empty: it is the export's."""
        names = self._graph_passes(variant)
        if not names and variant.precision != "int8":
            return {}
        key: dict[str, object] = {
            "passes": names,
            "version": passes.VERSION,
            "preprocess": msgspec.to_builtins(variant.plain.preprocess),
        }
        if variant.precision == "int8":
            assert self.calibration is not None, "int8 needs photos to be calibrated on"
            judged = self.dataset.digest if self.dataset else None
            control = None if self._max_drop is None else {"max_drop": self._max_drop, "data": judged}
            key |= {"calibration": self.calibration.digest, "control": control, **_quantiser(variant)}
        return key

    def _graph_folder(self, variant: Variant, base: Path) -> Path:
        key = self.rewrite_key(variant)
        if not key or runtimes.RUNTIMES[variant.runtime].of_module:
            return base
        names = [*self._graph_passes(variant), *(["int8"] if variant.precision == "int8" else [])]
        return base / "rewritten" / f"{'-'.join(names)}-{store.digest_of(key)[:16]}"

    def _built(self, folder: Path, variant: Variant, timeout_s: float) -> Path:
        """The folder with the files that the variant's engine reads, built now unless it is there."""
        target = self._files_at(folder, variant)
        if not target.is_dir():
            request = BuildRequest(
                folder=str(folder),
                runtime=variant.runtime,
                target=str(target),
                stages=list(tasks.known(variant.candidate.task).stages),
                form=self._form(variant),
                quantise=self._quantise_module(variant),
                unsigned=_takes_unsigned(variant),
                typed=variant.precision if _takes_typed(variant) else None,
                measured=self._measured(variant),
            )
            with store.swept(folder):
                self.workshop.run("build", request, timeout_s=timeout_s, name="building")
        return target

    def _files_at(self, folder: Path, variant: Variant) -> Path:
        """Where the files that the variant's engine reads are, or will be."""
        if _takes_unsigned(variant):
            return folder / "unsigned"
        if _takes_typed(variant):
            return folder / f"typed-{variant.precision}-{store.digest_of(self._typed_key)[:12]}"
        if not runtimes.RUNTIMES[variant.runtime].builds:
            return folder
        form = self._form(variant)
        mark = "" if form is None else f"-{store.digest_of(msgspec.to_builtins(form))[:12]}"
        return folder / f"{variant.runtime}{mark}"

    def _form(self, variant: Variant) -> Form | None:
        """What the engine builds of the module for; None: it builds of the ONNX file, or nothing."""
        engine = runtimes.RUNTIMES[variant.runtime]
        if not engine.of_module:
            return None
        calibration = self.calibration if variant.precision == "int8" else None
        return Form(
            precision=variant.precision,
            batch_size=self._batch_size,
            threads=self.threads if engine.compiles else 0,
            settings=dict(variant.settings),
            machine=self._machine if engine.compiles else "",
            engine="" if engine.reference else str(runtimes.building(variant.runtime)),
            calibration=calibration.digest if calibration is not None else "",
        )

    def discard(self, variant: Variant) -> None:
        """Remove an export with random weights: its timing is kept, its files are worth nothing."""
        if self.weights(variant.candidate) is None:
            shutil.rmtree(self._export_folder(variant), ignore_errors=True)

    def task(self, variant: Variant) -> tasks.Task:
        """What the variant's export is for; the export was made before."""
        folder = self._export_folder(variant)
        return tasks.known(variant.candidate.task).of_export(
            variant.preprocess, _export_facts(folder), lambda name: (folder / name).read_bytes()
        )

    def _read_export(self, folder: Path, variant: Variant, files_at: Path) -> Export:
        manifest = _export_facts(folder)
        engine = runtimes.RUNTIMES[variant.runtime]
        toolchain = manifest["toolchain"] | _quantiser(variant) | _builder(variant)
        return Export(
            folder=str(files_at),
            files=tuple(
                str(PurePosixPath(stage) / name)
                for stage in _stages(variant)
                for name in engine.files
                if (files_at / stage / name).is_file()
            ),
            graphs=self.task(variant).graphs(engine.entry),
            seconds=float(manifest["seconds"]),
            random_weights=bool(manifest["random_weights"]),
            toolchain=tuple(sorted(toolchain.items())),
            rewriting=_with_islands(self._rewriting(variant, folder), files_at),
            built_s=_built_s(files_at),
        )

    def _rewriting(self, variant: Variant, base: Path) -> Rewriting | None:
        graph = self._graph_folder(variant, base)
        if graph == base:
            return self._module_quantised(variant)
        facts = msgspec.json.decode((graph / REWRITTEN_FILE).read_bytes())
        found = Rewriting(places=tuple(facts["places"].items()), seconds=float(facts["seconds"]))
        if variant.precision != "int8":
            return found
        assert self.calibration is not None
        int8 = facts["int8"]
        return replace(
            found,
            calibration=self.calibration.digest,
            calibrated_on=self.calibration.source,
            calibration_photos=int8["photos"],
            kept=tuple(int8["kept"]),
            tried=tuple((int(layers), float(drop)) for layers, drop in int8["tried"]),
        )

    def _module_quantised(self, variant: Variant) -> Rewriting | None:
        """What an engine did that made int8 of the module; None: it did not."""
        if variant.precision != "int8":
            return None
        assert self.calibration is not None
        return Rewriting(
            calibration=self.calibration.digest,
            calibrated_on=self.calibration.source,
            calibration_photos=len(self.calibration.photos),
        )

    def _export_folder(self, variant: Variant) -> Path:
        candidate, image_size = variant.candidate, variant.image_size
        key = {
            "architecture": candidate.architecture,
            "implementation": variant.implementation,
            "weights": self.weights_key(candidate),
            "labels": labels_key(candidate.labels),
            "image_size": image_size,
            "toolchain": work.toolchain(),
            "version": work.EXPORT_VERSION,
        }
        if candidate.task != "classify":
            key["task"] = candidate.task
        if changed := passes.of_module(variant.passes):
            key |= {"passes": list(changed), "passes_version": passes.VERSION}
        digest = store.digest_of(key)[:16]
        return self._cache / "exports" / f"{candidate.architecture}-{image_size}-{digest}"

    def weights_file(self, located: Located | None) -> str | None:
        """The file an export is made from; None: random weights."""
        return str(located.path) if located else None

    def weights_key(self, candidate: Candidate) -> str:
        """The digest of its weights, part of the key of all that is made with them."""
        located = self.weights(candidate)
        sha256 = located.weights.sha256 or "" if located else "random"
        if candidate.name not in self._own:
            return sha256
        _, graph = self._own[candidate.name]
        engine = runtimes.version("onnxruntime")
        return store.digest_of({"file": sha256, "engine": engine, **msgspec.to_builtins(graph)})


def _stages(variant: Variant) -> tuple[str, ...]:
    """The folders of its graphs within its export; "": it has one, without a folder of its own."""
    return tasks.known(variant.candidate.task).stages or ("",)


def uncontrolled(variant: Variant, max_drop: float | None) -> str | None:
    """Why int8 of the variant cannot be held to a drop; None: it can, or need not."""
    engine = runtimes.RUNTIMES[variant.runtime]
    if max_drop is None or variant.precision != "int8" or not engine.of_module:
        return None
    return f"{engine.label} keeps no layers of int8 in higher precision: leave --max-drop out"


def _takes_unsigned(variant: Variant) -> bool:
    return variant.precision == "int8" and runtimes.RUNTIMES[variant.runtime].unsigned


def _takes_typed(variant: Variant) -> bool:
    return variant.precision in ("fp16", "int8") and runtimes.RUNTIMES[variant.runtime].typed


def _quantiser(variant: Variant) -> dict[str, str]:
    """The versions of what made int8 of its graph; empty: it is not, or its engine did."""
    by_engine = runtimes.RUNTIMES[variant.runtime].of_module
    return work.quantiser() if variant.precision == "int8" and not by_engine else {}


def _builder(variant: Variant) -> dict[str, str]:
    """The version of what built the engine's files of the module; empty: they are of the ONNX file."""
    built_by = runtimes.building(variant.runtime)
    if built_by is None or not runtimes.RUNTIMES[variant.runtime].of_module:
        return {}
    name, _, version = built_by.partition(" ")
    return {name: version}


def _refuse_idle(made: dict[str, Any]) -> None:
    if nothing := made.get("nothing"):
        raise NothingToRewrite(f"nothing to do in this graph: {', '.join(nothing)}")


def _export_facts(folder: str | Path) -> dict[str, Any]:
    """What the child that exported wrote beside its files."""
    facts: dict[str, Any] = msgspec.json.decode((Path(folder) / work.MANIFEST).read_bytes())
    return facts


def _built_s(folder: Path) -> float:
    """What the engine took to build its files; 0 where it reads the export's."""
    file = folder / work.BUILT
    return float(msgspec.json.decode(file.read_bytes())["seconds"]) if file.is_file() else 0.0


def _with_islands(rewriting: Rewriting | None, folder: Path) -> Rewriting | None:
    """What was done to a graph, with the nodes of its typed form that stay in float32."""
    file = folder / work.BUILT
    kept = msgspec.json.decode(file.read_bytes()).get("kept") if file.is_file() else None
    if kept is None:
        return rewriting
    found = rewriting or Rewriting()
    return replace(found, kept=(*found.kept, *kept))


def labels_key(labels: str) -> str:
    """A label set's name, or the digest of a labels file: an edited file is another one."""
    path = Path(labels)
    return store.sha256_file(path) if path.is_file() else labels
