"""LiteRT: a `.tflite` of the module for one batch, in float32 or int8; runtimes/litert.py runs it.

`build` exports the module (torch.export), computes once what depends on no image, and has litert-torch
convert the rest. In int8, weights have a scale for each channel, and activations one that calibration fixed;
the images that go in and what comes out stay float32.

Source: https://ai.google.dev/edge/litert (checked against the code of litert-torch 0.10.0 and
ai-edge-quantizer 0.10.0).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import nn

from vitrail import runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export.of_module import subject
from vitrail.export.requests import Form
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.litert import FACTS, LABEL, MODEL, NAME, Converted, opened
from vitrail.runtimes.stderr import caught
from vitrail.tasks.classify import IMAGES, SCORES
from vitrail.tasks.embed import VECTORS
from vitrail.words import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SIGNATURE = "serving_default"
"""What litert-torch calls a model's one signature."""

TOLERANCE = 1e-4
"""Largest relative difference between the float32 file and the module it was made from."""
RANDOM_TOLERANCE = 0.1
"""The same for random weights, which are only timed (see onnx.RANDOM_TOLERANCE)."""

PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators that hold nearly all arithmetic, and all large weights."""
WORSE = 1.5
"""All operators are in int8 where that makes the difference from float32 at most so many times larger than
the products alone make it: a normalisation or softmax in int8 makes it many times larger."""


class Named(nn.Module):
    """A module whose one input and output have names, which the file keeps."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self._output = output
        self.training = False

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) -> {name: (B, ...)}."""
        return {self._output: self.model(images)}


def build(reference: Path, folder: Path, form: Form, calibration: Sequence[Arrays] = ()) -> None:
    """Convert the module of an export's `reference.json` into `folder`, and compare the two on noise.

    Raises:
        MissingExtraError: litert-torch is not installed.
        InputError: the description or its weights are damaged, or the module cannot be exported or
            converted; an operator that the format does not have is named with the module it comes from.
        EngineMismatch: the model computes something else than the module.
    """
    made = subject(reference, LABEL, form)
    tolerance = RANDOM_TOLERANCE if made.uncertain else TOLERANCE
    output = VECTORS if made.request.features else SCORES
    convert(made.model, made.noise, folder, output=output, tolerance=tolerance)
    if form.precision == "int8":
        quantise(folder, calibration, threads=made.request.threads)


def convert(
    model: nn.Module, images: np.ndarray, folder: Path, *, output: str = SCORES, tolerance: float = TOLERANCE
) -> None:
    """Write the float32 model of a module for just the shape of `images`, (B, 3, H, W); raises as `build`."""
    example = torch.from_numpy(images)
    with torch.no_grad():
        try:
            exported = torch.export.export(Named(model, output), (), {IMAGES: example})
        except Exception as error:
            raise InputError(
                f"PyTorch cannot export this model ({first_line(error)}): use another engine."
            ) from error
        _write(exported, example, folder / MODEL)
        expected = model(example).numpy()
    try:
        (given,) = _outputs(folder / MODEL, [{IMAGES: images}], 1)
    except InputError as error:
        raise _cannot_run(error, folder / MODEL) from error
    difference = _difference(given, expected)
    if not difference <= tolerance:
        raise EngineMismatch(f"{LABEL}'s model differs from the module by {difference:.1e} (relative).")
    (folder / FACTS).write_bytes(msgspec.json.encode(Converted(relative_difference=difference)))


def _write(exported: ExportedProgram, example: torch.Tensor, path: Path) -> None:
    with _library() as litert_torch:
        from torchao.quantization.pt2e.constant_fold import constant_fold

        model = exported.module()
        # What depends on no image (resampled positions) would be computed anew in every call, or not at all
        # where the format lacks an operator.
        constant_fold(model)
        for node in model.graph.nodes:
            _shorten(node)
        model.training = False
        try:
            litert_torch.convert(model, sample_kwargs={IMAGES: example}).export(str(path))
        except Exception as error:
            raise _lacking(error, exported) from error


@contextmanager
def _library() -> Iterator[Any]:
    """litert-torch, and nothing of what it, MLIR and the quantiser tell on the way.

    Raises:
        MissingExtraError: it is not installed.
        ModuleNotFoundError: a package that it asks for is not.
    """
    with caught(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import litert_torch
        except ModuleNotFoundError as error:
            missing = runtimes.missing(NAME)
            if missing is None:  # a package of those it asks for
                raise
            raise MissingExtraError(*missing) from error
        litert_torch.config.show_progress = False  # it draws on stdout
        yield litert_torch


# --- int8 -------------------------------------------------------------------------------------------


def quantise(folder: Path, calibration: Sequence[Arrays], *, threads: int = 1) -> None:
    """Make int8 of the float32 model in `folder`: all operators, or else the products alone (see `WORSE`).

    Args:
        calibration: named inputs of the model's shapes.
    """
    assert calibration, "int8 needs photos to be calibrated on"
    path = folder / MODEL
    content = path.read_bytes()
    expected = _outputs(path, calibration, threads)
    ranges = _ranges(path, calibration, threads)
    found: dict[str, tuple[bytes, float]] = {}
    for name in ("all", "products"):
        made = _quantised(content, ranges, only=PRODUCTS if name == "products" else ())
        path.write_bytes(made)
        given = _outputs(path, calibration, threads)
        found[name] = made, _difference(np.stack(given), np.stack(expected))
    kept = () if found["all"][1] <= WORSE * found["products"][1] else ("all but products",)
    made, difference = found["products" if kept else "all"]
    if not np.isfinite(difference):
        raise EngineMismatch(f"{LABEL}'s int8 model gives numbers that are not finite.")
    path.write_bytes(made)
    (folder / FACTS).write_bytes(msgspec.json.encode(Converted(relative_difference=difference, kept=kept)))


def _ranges(path: Path, calibration: Sequence[Arrays], threads: int) -> dict[str, Any]:
    """The least and greatest values of each tensor over the photos that calibrate.

    The quantiser's own default is a moving average, which forgets the first photos and cuts off more.
    """
    with _library():
        from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
        from ai_edge_quantizer.recipe_manager import RecipeManager
        from ai_edge_quantizer.utils.qsv_utils import min_max_update

        calibrator = Calibrator(
            path.read_bytes(),
            num_threads=threads,
            mode=CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=min_max_update,
        )
        calibrator.calibrate({SIGNATURE: [dict(inputs) for inputs in calibration]}, RecipeManager())
        found = calibrator.get_model_qsvs()
    # The profiler leaves out the tensors' dimensions, which the quantiser compares with its constants'.
    dimensions = {each["name"]: len(each["shape"]) for each in opened(path, 1).get_tensor_details()}
    return {
        name: {end: np.reshape(value, (1,) * dimensions[name]) for end, value in ends.items()}
        for name, ends in found.items()
    }


def _quantised(content: bytes, ranges: dict[str, Any], only: Sequence[str] = ()) -> bytes:
    """The model in int8, with float32 inputs and outputs; `only`: these operators; (): all it can."""
    with _library():
        from ai_edge_quantizer.qtyping import TFLOperationName as Operator
        from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer

        quantizer = Quantizer(content)
        for name in only or (Operator.ALL_SUPPORTED,):
            quantizer.add_static_config(".*", Operator(name), activation_num_bits=8, weight_num_bits=8)
        if not only:
            for end in (Operator.INPUT, Operator.OUTPUT):
                quantizer.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        made = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        assert made.quantized_model is not None
        return bytes(made.quantized_model)


# --- what it computes, and what it lacks ------------------------------------------------------------


def _outputs(path: Path, batches: Sequence[Arrays], threads: int) -> list[np.ndarray]:
    """The model's one output for each batch of its one input."""
    interpreter = opened(path, threads)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for inputs in batches:
        (images,) = inputs.values()
        interpreter.set_tensor(source["index"], np.ascontiguousarray(images))
        interpreter.invoke()
        found.append(np.asarray(interpreter.get_tensor(target["index"])))
    return found


def _difference(given: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(given - wide)) / (float(np.linalg.norm(wide)) or 1.0)


def _lacking(error: Exception, program: ExportedProgram) -> InputError:
    """One sentence that names an operator and where it comes from; what was raised, if it names none."""
    found = re.search(r"Lowering not found: (\w+)\.(\w+)", str(error))
    if found is None:
        return InputError(f"{LABEL} cannot convert this model ({first_line(error)}): use another engine.")
    name = "::".join(found.groups())
    where = _origin(name, program)
    return InputError(f"{LABEL} has no operator {name}{where}: use another engine, or rewrite that module.")


def _cannot_run(error: InputError, path: Path) -> InputError:
    """One sentence about an operator that the format has and the engine does not run, with its module."""
    found = re.search(r"builtin opcode '(\w+)'|\((\w+)\) failed to prepare", str(error))
    if found is None:
        return InputError(f"{LABEL} cannot run what it made of this model ({error}): use another engine.")
    name = found[1] or found[2]
    return InputError(
        f"{LABEL} does not run the operator {name}{_place(name, path)}: "
        "use another engine, or rewrite that module."
    )


def _place(operator: str, path: Path) -> str:
    """As `_origin`, of a file's operator, whose output has the names and kinds of the modules around it."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    wanted = getattr(schema.BuiltinOperator, operator, None)
    for graph in model.subgraphs:
        for each in graph.operators:
            if model.operatorCodes[each.opcodeIndex].builtinCode == wanted:
                label = graph.tensors[each.outputs[0]].name.decode("utf-8", "replace")
                where, _, kind = label.partition(";")[0].partition(":")
                return f" (used in {where}, {_a(kind)})" if kind else ""
    return ""


def _origin(operator: str, program: ExportedProgram) -> str:
    """` (used in blocks.0, an Attention)` of the first node with that operator; "" where it is not known."""
    for node in program.run_decompositions().graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and str(schema.name) == operator and (around := _module_of(node)):
            where, kind = around
            return f" (used in {where}, {_a(kind)})"
    return ""


def _module_of(node: torch.fx.Node) -> tuple[str, str] | None:
    """Path and kind of the innermost module that a node comes from; None: not known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if len(stack) < 2:  # the first is `Named`
        return None
    path, kind = stack[-1]
    kind = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
    return path.removeprefix("model").removeprefix(".") or "the model itself", kind


def _shorten(node: torch.fx.Node) -> None:
    """Have the file call a node's result `blocks.0.attn:Attention`.

    litert-torch names it after the full names of all classes around: 3 % of a small int8 file.
    """
    if (around := _module_of(node)) is not None:
        node.meta["nn_module_stack"] = {"": ("", ":".join(around))}


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
