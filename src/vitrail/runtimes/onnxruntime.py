"""ONNX Runtime's CPU provider: an ONNX file -> Runner. It has no bf16 matmul, so it runs fp32 only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import InputError
from vitrail.privacy import import_engine
from vitrail.runtimes import EngineMismatch
from vitrail.vocabulary import RunnerFacts

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = import_engine("onnxruntime")

PROVIDER = "CPUExecutionProvider"


class ONNXRunner:
    """An inference session bound to one static batch."""

    def __init__(self, session: ort.InferenceSession, facts: RunnerFacts) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.facts = facts

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (B, 3, H, W) -> float32 (B, K)."""
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)

    def close(self) -> None:
        """Drop the session."""
        del self._session


def load(
    path: Path, *, precision: str, batch_size: int, image_size: int, threads: int, settings: dict[str, str]
) -> ONNXRunner:
    """Open a session with the batch dimension fixed before the graph is optimised."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", batch_size)
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise InputError(
            f"ONNX Runtime cannot read {path.name}: export it again ({str(error).splitlines()[0]})."
        ) from None
    return ONNXRunner(session, _facts(session, precision, batch_size, threads))


def _facts(session: ort.InferenceSession, precision: str, batch_size: int, threads: int) -> RunnerFacts:
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise EngineMismatch(f"ONNX Runtime uses {', '.join(providers)} where only {PROVIDER} was asked for.")
    real_threads = session.get_session_options().intra_op_num_threads
    if real_threads != threads:
        raise EngineMismatch(f"ONNX Runtime was asked for {threads} threads and uses {real_threads}.")
    source, result = session.get_inputs()[0], session.get_outputs()[0]
    if source.type != "tensor(float)" or result.type != "tensor(float)":
        raise EngineMismatch(f"The ONNX file takes {source.type} and gives {result.type}; fp32 is float.")
    return RunnerFacts(
        runtime="onnxruntime",
        version=ort.__version__,
        precision=precision,
        threads=real_threads,
        input_shape=tuple(source.shape),
        output_shape=tuple(batch_size if size == "batch" else size for size in result.shape),
        details=(("provider", PROVIDER),),
    )
