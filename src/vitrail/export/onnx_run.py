"""Running and writing a graph in the process that reads a person's own ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper

from vitrail.errors import InputError
from vitrail.export.onnx_copy import DYNAMIC
from vitrail.export.onnx_file import ONE_FILE_LIMIT, weight_bytes
from vitrail.privacy import import_engine

__all__ = ["folded", "save", "session"]


def session(
    model: onnx.ModelProto, threads: int, path: Path
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """What runs a model's only output in ONNX Runtime, in fp32, each operator as the file has it."""
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        with tempfile.TemporaryDirectory() as folder:
            source: str | bytes
            if weight_bytes(model) > ONE_FILE_LIMIT:
                source = str(Path(folder) / "model.onnx")
                save(model, Path(source))
            else:
                source = model.SerializeToString()
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(path, "load", error) from None

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        try:
            (found,) = session.run(None, inputs)
        except Exception as error:
            raise _refused(path, "run", error) from None
        return np.asarray(found, np.float32)

    return run


def folded(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The copy as an engine simplifies it for so many images, with what does not depend on them computed.

    Exporters write arithmetic on shapes into graphs, which hides the shapes of all that follows.
    """
    if weight_bytes(model) > ONE_FILE_LIMIT:
        return model
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_free_dimension_override_by_name(DYNAMIC, batch)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load_model(options.optimized_model_filepath)


def _refused(path: Path, what: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return InputError(f"ONNX Runtime cannot {what} {path} ({reason}): export it again.")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, a large one's weights into a file beside it; the model stays as it is."""
    if weight_bytes(model) <= ONE_FILE_LIMIT:
        onnx.save_model(model, str(path))
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    # Writing moved the weights out of the model.
    external_data_helper.load_external_data_for_model(model, str(path.parent))
