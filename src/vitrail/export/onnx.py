"""One ONNX file with a dynamic batch, from which engines build their own files.

Every letter in the shapes of a graph's inputs is a dimension that stays open: "B" of a classifier, also the
numbers of prompts and of points of a promptable model's decoder.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from vitrail import runtimes
from vitrail.errors import VitrailError
from vitrail.export import fused_attention
from vitrail.export.onnx_file import ONE_FILE_LIMIT
from vitrail.vocabulary import Graph, Target, TensorSpec
from vitrail.weights.finite import check_outputs

TRACED_BATCH = 2
CHECKED_BATCH = 3
"""A batch size that was not traced: a frozen batch dimension shows up here."""

BATCH = "batch"
"""The name of dimension "B" in a file; others keep their letter."""

EXPORT_TOLERANCE = 1e-4
"""Largest relative difference between the file and the module it was made from, in fp32."""

RANDOM_TOLERANCE = 0.1
"""The same for random weights: an untrained net's activations grow or vanish with depth, so fp32 rounding
does too (1.6e-3 seen on EfficientNetV2-S). They are only timed; a wrong graph is off by far more."""

SMALL_VOCABULARY = 100
"""Tokens below this number are in every vocabulary."""

FROZEN = re.compile(r"TracerWarning|speciali[sz]|frozen|froze|as a constant|not generali[sz]e", re.IGNORECASE)
"""Words in torch's warnings that a value of the traced input became a constant of the graph. The catalogue's
families export without any warning (torch 2.15), so none is silenced."""

SHARED_NAME = "# The axis name: "
"""Begins torch's warning that two inputs share a dimension, as they are meant to."""


class ExportMismatch(VitrailError):
    """The exported file does not compute what the module computes."""


def write_onnx(model: nn.Module, graph: Graph, path: Path) -> None:
    """Trace the module and write one ONNX file whose lettered dimensions are dynamic, with the graph's names.

    Raises:
        ExportMismatch: the exporter made one of them, or another traced value, a constant of the file.
    """
    traced = runtimes.sized(graph, _sizes(graph, TRACED_BATCH))
    examples = tuple(torch.from_numpy(values) for values in _noise(traced).values())
    size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    with _frozen_values_are_errors(), _nothing_in_place(model):
        program = torch.onnx.export(
            model,
            examples,
            dynamo=True,
            dynamic_shapes=_dynamic(graph),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            custom_translation_table=fused_attention.translations(),
            verbose=False,
        )
    assert program is not None
    for spec, value in zip(graph.inputs, program.model.graph.inputs, strict=True):
        assert value.shape is not None
        _check_open(spec, list(value.shape))
    program.save(path, external_data=size > ONE_FILE_LIMIT)


def _check_open(spec: TensorSpec, written: list[object]) -> None:
    for letter, side in zip(spec.shape, written, strict=True):
        if isinstance(letter, str) and isinstance(side, int):
            # The exporter silently retries with the size that the model's code insists on.
            what = BATCH if letter == "B" else f"{letter} of {spec.name}"
            raise ExportMismatch(
                f"the exporter froze the {what} at {side}: something in the model turns this size into a "
                "number (len(x), int(x.shape[0]), a comparison with one size, a loop over images)"
            )


def _sizes(graph: Graph, batch: int) -> dict[str, int]:
    """A number for each letter of the inputs, all different, so that none is taken for another."""
    letters = dict.fromkeys(side for spec in graph.inputs for side in spec.shape if isinstance(side, str))
    others = [letter for letter in letters if letter != "B"]
    return {"B": batch} | {letter: batch + 2 + i for i, letter in enumerate(others)}


def _dynamic(graph: Graph) -> tuple[dict[int, Dim], ...]:
    dims = {letter: Dim(BATCH if letter == "B" else letter, min=1) for letter in _sizes(graph, 1)}
    return tuple(
        {axis: dims[side] for axis, side in enumerate(spec.shape) if isinstance(side, str)}
        for spec in graph.inputs
    )


def warm_up() -> None:
    """Export one linear layer, so that everything the first export loads is loaded."""
    torch.onnx.export(nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)


@contextmanager
def _nothing_in_place(model: nn.Module) -> Iterator[None]:
    """Activations write new tensors: the graph is the same, and tracing takes half the time.

    In place they are decomposed into primitives that reason about the symbolic batch one by one.
    """
    changed = [module for module in model.modules() if getattr(module, "inplace", None) is True]
    for module in changed:
        setattr(module, "inplace", False)  # noqa: B010 - the attribute is no part of nn.Module
    try:
        yield
    finally:
        for module in changed:
            setattr(module, "inplace", True)  # noqa: B010


@contextmanager
def _frozen_values_are_errors() -> Iterator[None]:
    """Fail on a warning that a traced value became a constant; show all others as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if FROZEN.search(f"{warning.category.__name__}: {warning.message}"):
            raise ExportMismatch(f"the exporter warned of a frozen value: {warning.message}")
        if str(warning.message).startswith(SHARED_NAME):
            continue
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def check(model: nn.Module, folder: Path, graph: Graph, *, tolerance: float = EXPORT_TOLERANCE) -> float:
    """Run the file at sizes that were not traced; return its largest relative difference to the module.

    Raises:
        InputError: the module's own outputs are not finite, which is not the file's fault.
        ExportMismatch: the difference is above `tolerance`, or a size was frozen.
    """
    sizes = _sizes(graph, CHECKED_BATCH)
    inputs = _noise(runtimes.sized(graph, sizes))
    with torch.inference_mode():
        outputs = model(*map(torch.from_numpy, inputs.values()))
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    for spec, output in zip(graph.outputs, outputs, strict=True):
        check_outputs(output, "this model", spec.name)
    try:
        runner = runtimes.load(
            folder,
            graph,
            Target(runtime="onnxruntime", precision="fp32"),
            sizes=sizes,
            threads=torch.get_num_threads(),
        )
        given = runner.run(inputs)
        runner.close()
    except Exception as error:  # a batch frozen inside the graph can raise any error in the engine
        raise ExportMismatch(
            f"the ONNX file does not run at batch {CHECKED_BATCH} ({str(error).splitlines()[0]})"
        ) from error
    return max(
        _difference(given[spec.name], output.numpy(), tolerance)
        for spec, output in zip(graph.outputs, outputs, strict=True)
    )


def _difference(given: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    if given.shape != expected.shape:
        raise ExportMismatch(f"the ONNX file gives {given.shape} where the module gives {expected.shape}")
    wide = expected.astype(np.float64)  # squares of large scores exceed the range of float32
    scale = float(np.linalg.norm(wide)) or 1.0
    difference = float(np.linalg.norm(given - wide)) / scale
    if not difference <= tolerance:
        raise ExportMismatch(
            f"the ONNX file differs from the module by {difference:.1e} (relative) at batch {CHECKED_BATCH}"
        )
    return difference


def _noise(graph: Graph) -> dict[str, np.ndarray]:
    """An input for each of the graph's, of its type: normal values, or small whole numbers (tokens)."""
    rng = np.random.default_rng(0)

    def values(spec: TensorSpec) -> np.ndarray:
        shape = [int(side) for side in spec.shape]
        if spec.dtype == "float32":
            return rng.standard_normal(shape, dtype=np.float32)
        return rng.integers(0, SMALL_VOCABULARY, shape).astype(spec.dtype)

    return {spec.name: values(spec) for spec in graph.inputs}
