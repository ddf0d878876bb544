"""One ONNX file with a dynamic batch, and from it OpenVINO's IR: the two file sets all engines read."""

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

from vitrail.errors import VitrailError
from vitrail.export import attention
from vitrail.privacy import import_engine
from vitrail.weights.finite import check_outputs

INPUT, OUTPUT = "images", "scores"
TRACED_BATCH = 2
CHECKED_BATCH = 3
"""A batch size that was not traced: a frozen batch dimension shows here."""

EXPORT_TOLERANCE = 1e-4
"""Largest relative difference between the file and the module it was made from, in fp32."""

RANDOM_TOLERANCE = 0.1
"""The same for random weights: an untrained net's activations grow or vanish with depth, so fp32 rounding
does too (1.6e-3 seen on EfficientNetV2-S). They are only timed; a wrong graph is off by far more."""

ONE_FILE_LIMIT = 1_800 * 1024 * 1024
"""A protobuf file ends at 2 GiB; above this the weights go into a file beside it."""


FROZEN = re.compile(r"TracerWarning|speciali[sz]|frozen|froze|as a constant|not generali[sz]e", re.IGNORECASE)
"""Words by which torch warns that a value of the traced input became a constant of the graph. The catalogue's
families export without any warning (torch 2.15), so none is silenced."""


class ExportMismatch(VitrailError):
    """The exported file does not compute what the module computes."""


def write_onnx(model: nn.Module, image_size: int, path: Path) -> None:
    """Trace (B, 3, S, S) -> (B, K) and write one ONNX file whose batch is dynamic.

    Raises:
        ExportMismatch: the exporter made the batch, or another traced value, a constant of the file.
    """
    example = torch.zeros(TRACED_BATCH, 3, image_size, image_size)
    size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    with _frozen_values_are_errors(), _nothing_in_place(model):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: Dim("batch", min=1)},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            custom_translation_table=attention.translations(),
            verbose=False,
        )
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    assert shape is not None
    batch = shape[0]
    if isinstance(batch, int):
        # The exporter retries with the size that the model's code insists on, and says nothing.
        raise ExportMismatch(
            f"the exporter froze the batch at {batch}: something in the model turns the batch size into a "
            "number (len(x), int(x.shape[0]), a comparison with one size, a loop over images)"
        )
    program.save(path, external_data=size > ONE_FILE_LIMIT)


def warm_up() -> None:
    """Export one linear layer, so that all that the first export loads is loaded."""
    torch.onnx.export(nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)


@contextmanager
def _nothing_in_place(model: nn.Module) -> Iterator[None]:
    """Activations write new tensors: the graph is the same, and tracing takes half the time.

    In place they are taken apart into primitives that reason about the symbolic batch, one by one.
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
    """Fail on a warning that a traced value became a constant; show every other one as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if FROZEN.search(f"{warning.category.__name__}: {warning.message}"):
            raise ExportMismatch(f"the exporter warns of a frozen value: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def write_openvino(onnx_path: Path, path: Path) -> None:
    """Convert the ONNX file to OpenVINO's IR with its weights left in fp32."""
    from vitrail.runtimes.openvino import core

    ov, passes = import_engine("openvino"), import_engine("openvino.passes")
    # Not ov.convert_model: it folds too, but would report if somebody else imported OpenVINO first.
    model = core().read_model(onnx_path)
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    ov.save_model(model, path, compress_to_fp16=False)


def check(
    model: nn.Module, onnx_path: Path, image_size: int, *, tolerance: float = EXPORT_TOLERANCE
) -> float:
    """Run the file at a batch size that was not traced; return its relative difference to the module.

    Raises:
        InputError: the module's own scores are not finite: no fault of the file.
        ExportMismatch: the difference is above `tolerance`, or the batch size was frozen.
    """
    from vitrail import runtimes

    shape = (CHECKED_BATCH, 3, image_size, image_size)
    batch = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.inference_mode():
        scores = model(torch.from_numpy(batch))
    check_outputs(scores, "this model", "scores")
    expected = scores.numpy()
    try:
        runner = runtimes.load(
            onnx_path.parent,
            onnx_path.name,
            runtime="onnxruntime",
            precision="fp32",
            batch_size=CHECKED_BATCH,
            image_size=image_size,
            threads=torch.get_num_threads(),
        )
        found = runner.run(batch)
        runner.close()
    except Exception as error:  # a batch frozen inside the graph shows as whatever the engine raises
        raise ExportMismatch(
            f"the ONNX file does not run at batch {CHECKED_BATCH} ({str(error).splitlines()[0]})"
        ) from error
    if found.shape != expected.shape:
        raise ExportMismatch(f"the ONNX file gives {found.shape} where the module gives {expected.shape}")
    wide = expected.astype(np.float64)  # squares of large scores leave the range of float32
    scale = float(np.linalg.norm(wide)) or 1.0
    difference = float(np.linalg.norm(found - wide)) / scale
    if not difference <= tolerance:
        raise ExportMismatch(
            f"the ONNX file differs from the module by {difference:.1e} (relative) at batch {CHECKED_BATCH}"
        )
    return difference
