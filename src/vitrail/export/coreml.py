"""CoreML: an `.mlpackage` of the module for one batch, built anywhere, run on Apple's systems -> Runner.

`build` exports the module (torch.export), lets coremltools convert it to an ML program, and checks the files
that came out: names, shapes and types, how weights are stored, how large they are, and what the program
computes (mil.py), which is not what a Mac computes. `load` needs coremltools on macOS, and no torch; it was
written against coremltools 9.0's code, and has never run (docs/unverified.md).

Source: https://apple.github.io/coremltools and the code of coremltools 9.0.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vitrail import runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export.requests import Form
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

NAME, LABEL = "coreml", "CoreML"
PACKAGE, FACTS = "model.mlpackage", "converted.json"
INSIDE = "Data/com.apple.CoreML"
WEIGHTS = f"{INSIDE}/weights/weight.bin"
UNITS = "compute_units"
"""The setting: where CoreML may run the model, a name of coremltools' ComputeUnit."""
ANY_UNIT = "ALL"

SPECIFICATION, LEAST = 7, "macOS 13, iOS 16"
"""Of the program: the first whose inputs and outputs may be of any type, and what reads it."""
DIMENSIONS = 5
"""A CoreML tensor has no more."""
BYTES = {"fp16": 2, "fp32": 4}
SIZE_SHARE, SIZE_BYTES = 1.05, 1 << 16
"""What the weights' file may have beyond the program's constants: alignment, and a header for each."""

TOLERANCE = {"fp16": 2e-2, "fp32": 1e-4}
"""Largest relative difference between what the package says and the module, on noise."""
RANDOM_TOLERANCE = 0.1
"""The same for random weights, which nobody uses (see onnx.RANDOM_TOLERANCE)."""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a package."""

    form: Form
    least: str
    """The systems that read it."""
    operators: dict[str, int]
    weights_bytes: int
    relative_difference: float | None
    """What the package says, from the module, on one batch of noise; None: it was not computed."""
    not_computed: str = ""
    """Why it was not."""


class CoreMLRunner:
    """A loaded package; `run` is not thread-safe."""

    def __init__(self, model: Any, facts: RunnerFacts) -> None:
        self._model = model
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, copies in float32."""
        (graph,) = self.facts.graphs
        found = self._model.predict({spec.name: inputs[spec.name] for spec in graph.inputs})
        return {spec.name: np.array(found[spec.name], dtype=np.float32) for spec in graph.outputs}

    def close(self) -> None:
        """Drop the model."""
        del self._model


# --- making a package -------------------------------------------------------------------------------


def build(reference: Path, folder: Path, form: Form, calibration: Sequence[Arrays] = ()) -> None:
    """Convert the module of an export's `reference.json` into `folder`, and check the package.

    Raises:
        InputError: the description or its weights are damaged, or the module cannot be exported; or an
            operator that CoreML does not have, named with the module it comes from.
        EngineMismatch: the package is not what was asked for, or computes something else than the module.
    """
    from vitrail.export.of_module import subject

    made = subject(reference, LABEL, form)
    output = "vectors" if made.request.features else "scores"
    tolerance = RANDOM_TOLERANCE if made.uncertain else TOLERANCE[form.precision]
    convert(made.model, made.noise, folder, form, output=output, tolerance=tolerance)


def convert(
    model: nn.Module, images: np.ndarray, folder: Path, form: Form, *, output: str, tolerance: float
) -> Converted:
    """Write the package of a module for just the shape of `images`, (B, 3, H, W), and its facts.

    Raises as `build`.
    """
    import torch

    from vitrail.export import folded

    example = torch.from_numpy(images)
    try:
        program = folded.exported(model, example)
    except Exception as error:
        from vitrail.words import first_line

        raise InputError(
            f"PyTorch cannot export this model ({first_line(error)}): use another engine."
        ) from error
    ready = folded.narrowed(folded.folded(program, example), example, DIMENSIONS)
    ct = coremltools()
    package = folder / PACKAGE
    with _silent():
        _converted(ct, ready, program, form, output).save(str(package))
    with torch.no_grad():
        expected = model(example).numpy()
    kept = _checked(ct, package, ready, images, expected, form, output, tolerance)
    (folder / FACTS).write_bytes(msgspec.json.encode(kept))
    return kept


def coremltools() -> ModuleType:
    """The library. Raises MissingExtraError where it is not installed."""
    with _silent():
        try:
            import coremltools as ct
        except ModuleNotFoundError:
            raise MissingExtraError(LABEL, runtimes.RUNTIMES[NAME].install) from None
    return ct


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and the warnings about versions and absent parts that it writes; errors are raised."""
    logger = logging.getLogger("coremltools")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _converted(
    ct: ModuleType, ready: ExportedProgram, program: ExportedProgram, form: Form, output: str
) -> Any:
    kinds = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}
    try:
        return ct.convert(
            ready,
            convert_to="mlprogram",
            outputs=[ct.TensorType(name=output, dtype=np.float32)],
            compute_precision=kinds[form.precision],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    except Exception as error:
        from vitrail.export.operators import lacking

        found = re.findall(r"Unsupported fx node \S+, kind (\S+?)\.?$", str(error), re.MULTILINE)
        found += re.findall(r"convert function for op '(\S+?)' not implemented", str(error))
        names = [f"aten::{name.partition('.')[0]}" if "::" not in name else name for name in found]
        raise lacking(LABEL, names, program, error) from error


# --- checking it ------------------------------------------------------------------------------------


def _checked(
    ct: ModuleType,
    package: Path,
    ready: ExportedProgram,
    images: np.ndarray,
    expected: np.ndarray,
    form: Form,
    output: str,
    tolerance: float,
) -> Converted:
    """What is in the package's files. Raises EngineMismatch for the first thing that is not as asked."""
    from vitrail.export import mil

    with _silent():
        spec = ct.utils.load_spec(str(package))
        program = mil.read(ct, package)
    graph = _graph(spec)
    ours = Graph(
        inputs=(TensorSpec(name="images", shape=images.shape),),
        outputs=(TensorSpec(name=output, shape=expected.shape),),
    )
    if (graph.inputs, graph.outputs) != (ours.inputs, ours.outputs):
        raise EngineMismatch(f"CoreML's package has {graph.inputs} -> {graph.outputs}, not {ours}.")
    if spec.specificationVersion != SPECIFICATION:
        raise EngineMismatch(
            f"CoreML's package is of version {spec.specificationVersion}, not {SPECIFICATION}."
        )
    if (stored := precision_of(spec)) != form.precision:
        raise EngineMismatch(f"CoreML's package computes in {stored}, and {form.precision} was asked for.")
    size = (package / WEIGHTS).stat().st_size
    constants = [*ready.state_dict.values(), *ready.constants.values()]
    most = SIZE_SHARE * BYTES[form.precision] * sum(value.numel() for value in constants) + SIZE_BYTES
    if size > most:
        raise EngineMismatch(f"CoreML's weights take {size} bytes, and {most:.0f} are enough for these.")
    difference, why = _difference(program, images, expected, output)
    if difference is not None and not np.isfinite(difference):
        raise EngineMismatch(f"CoreML's package overflows in {form.precision}: choose --precisions fp32.")
    if difference is not None and not difference <= tolerance:
        raise EngineMismatch(f"CoreML's package differs from the module by {difference:.1e} (relative).")
    return Converted(
        form=form,
        least=LEAST,
        operators=mil.operators(program),
        weights_bytes=size,
        relative_difference=difference,
        not_computed=why,
    )


def _difference(
    program: Any, images: np.ndarray, expected: np.ndarray, output: str
) -> tuple[float | None, str]:
    """How far what the package says is from the module, and why it is not known."""
    from vitrail.export import mil

    try:
        found = mil.outputs(program, {"images": images})[output]
    except mil.NotComputed as error:
        return None, str(error)
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide)) / (float(np.linalg.norm(wide)) or 1.0), ""


def _graph(spec: Any) -> Graph:
    """Names, shapes and types that the package declares."""
    kinds = {"FLOAT32": "float32", "FLOAT16": "float16", "INT32": "int32", "DOUBLE": "float64"}

    def of(feature: Any) -> TensorSpec:
        array = feature.type.multiArrayType
        kind = array.ArrayDataType.Name(array.dataType)
        return TensorSpec(name=feature.name, shape=tuple(array.shape), dtype=kinds.get(kind, kind))

    description = spec.description
    return Graph(inputs=tuple(map(of, description.input)), outputs=tuple(map(of, description.output)))


def precision_of(spec: Any) -> str:
    """`fp16` or `fp32`: the type of the stored weights; "mixed" if they are of both."""
    found = set()
    for block in spec.mlProgram.functions["main"].block_specializations.values():
        for operation in block.operations:
            value = operation.attributes["val"] if operation.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                kind = value.type.tensorType
                found.add(
                    kind.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number[kind.dataType].name
                )
    found &= {"FLOAT16", "FLOAT32"}
    return {"FLOAT16": "fp16", "FLOAT32": "fp32"}[found.pop()] if len(found) == 1 else "mixed"


# --- running one ------------------------------------------------------------------------------------


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> CoreMLRunner:
    """Open a package, given by its `Manifest.json`, on a Mac.

    CoreML divides a model among CPU, GPU and neural engine by itself, and chooses its threads. All share the
    memory, so its device is `cpu`; the setting `compute_units` says which of them it may use.

    Raises:
        InputError: the package is missing or damaged, or an unknown unit.
        EngineMismatch: another precision, or another batch than it was made for.
    """
    ct, package = coremltools(), path.parent
    named = settings.get(UNITS, ANY_UNIT)
    if named not in ct.ComputeUnit.__members__:
        raise InputError(f"{UNITS} is {named!r}: use one of {', '.join(ct.ComputeUnit.__members__)}.")
    try:
        with _silent():
            model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[named])
    except Exception as error:
        from vitrail.words import first_line

        raise InputError(
            f"CoreML cannot read {package.name}: export it again ({first_line(error)})."
        ) from None
    spec = model.get_spec()
    if (stored := precision_of(spec)) != target.precision:
        raise EngineMismatch(f"CoreML was asked for {target.precision}, and {package.name} is {stored}.")
    loaded = _graph(spec)
    _check_batch(loaded, graph, package)
    facts = RunnerFacts(
        runtime=target.runtime,
        version=str(runtimes.version(NAME)),
        precision=stored,
        threads=threads,
        graphs=(Graph(name=graph.name, entry=graph.entry, inputs=loaded.inputs, outputs=loaded.outputs),),
        details=((UNITS, model.compute_unit.name), ("threads", "CoreML's own choice")),
    )
    return CoreMLRunner(model, facts)


def _check_batch(loaded: Graph, asked: Graph, package: Path) -> None:
    theirs, ours = loaded.inputs[0].shape, asked.inputs[0].shape
    if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
        raise EngineMismatch(
            f"{package.name} was made for {theirs[0]} at once, and {ours[0]} at once are asked for: "
            f"ask for {theirs[0]}, or make it again with --batch-size {ours[0]}."
        )
