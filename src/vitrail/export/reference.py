"""PyTorch eager as a Runner: the reference that is measured and shown, never shipped."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.export import source
from vitrail.export.work import ExportRequest
from vitrail.runtimes import EngineMismatch
from vitrail.vocabulary import RunnerFacts


class EagerRunner:
    """An eager module in fp32, or with weights and activations in bf16."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, facts: RunnerFacts) -> None:
        self._model = model
        self._dtype = dtype
        self.facts = facts

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (B, 3, H, W) -> float32 (B, K)."""
        with torch.inference_mode():
            scores = self._model(torch.from_numpy(batch).to(self._dtype))
        return np.asarray(scores.float().numpy())

    def close(self) -> None:
        """Drop the module."""
        del self._model


def load(
    path: Path, *, precision: str, batch_size: int, image_size: int, threads: int, settings: dict[str, str]
) -> EagerRunner:
    """Build the module that the export's `reference.json` describes; it takes no engine settings.

    Raises:
        InputError: the file is missing or damaged, or the weights it names are.
        EngineMismatch: another number of threads or another precision than asked.
    """
    assert not settings, settings
    try:
        request = msgspec.json.decode(path.read_bytes(), type=ExportRequest)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"PyTorch cannot read {path.name}: export it again ({error}).") from None
    # The whole process serves this one runner, so torch's process-wide thread count is its own.
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise EngineMismatch(f"PyTorch was asked for {threads} threads and uses {torch.get_num_threads()}.")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = source.module(request, image_size).to(dtype)
    with torch.inference_mode():
        output = model(torch.zeros(batch_size, 3, image_size, image_size, dtype=dtype))
    if output.dtype != dtype:
        raise EngineMismatch(f"PyTorch was asked for {precision} and gives {output.dtype}.")
    facts = RunnerFacts(
        runtime="pytorch",
        version=str(torch.__version__),
        precision=precision,
        threads=torch.get_num_threads(),
        input_shape=(batch_size, 3, image_size, image_size),
        output_shape=tuple(output.shape),
        details=(("parameters", str(next(model.parameters()).dtype).removeprefix("torch.")),),
    )
    return EagerRunner(model, dtype, facts)
