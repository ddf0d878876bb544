"""PyTorch eager as a Runner: the reference that is measured and shown, never shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.export import eager
from vitrail.export.requests import ExportRequest
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.vocabulary import Graph, RunnerFacts, Target


class EagerRunner:
    """An eager module in fp32, or with weights and activations in bf16."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, facts: RunnerFacts) -> None:
        self._model = model
        self._dtype = dtype
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs in the order of the module's arguments -> its one output."""
        (graph,) = self.facts.graphs
        given = [torch.from_numpy(inputs[spec.name]).to(self._dtype) for spec in graph.inputs]
        with torch.inference_mode():
            output = self._model(*given)
        return {graph.outputs[0].name: np.asarray(output.float().numpy())}

    def close(self) -> None:
        """Drop the module."""
        del self._model


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> EagerRunner:
    """Build the module described by the export's `reference.json`; it takes no engine settings.

    Raises:
        InputError: the file, or the weights it names, are missing or damaged.
        EngineMismatch: a different number of threads or precision than requested.
    """
    assert not settings, settings
    precision = target.precision
    try:
        request = msgspec.json.decode(path.read_bytes(), type=ExportRequest)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"PyTorch cannot read {path.name}: export it again ({error}).") from None
    # The process serves only this runner, so torch's process-wide thread count is its own.
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise EngineMismatch(f"PyTorch was asked for {threads} threads and uses {torch.get_num_threads()}.")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = eager.module(request, request.image_size, features=request.features).to(dtype)
    with torch.inference_mode():
        output = model(*(torch.zeros(*map(int, spec.shape), dtype=dtype) for spec in graph.inputs))
    if output.dtype != dtype:
        raise EngineMismatch(f"PyTorch was asked for {precision} and gives {output.dtype}.")
    (result,) = graph.outputs
    facts = RunnerFacts(
        runtime="pytorch",
        version=str(torch.__version__),
        precision=precision,
        threads=torch.get_num_threads(),
        graphs=(replace(graph, outputs=(replace(result, shape=tuple(output.shape)),)),),
        details=(("parameters", str(next(model.parameters()).dtype).removeprefix("torch.")),),
    )
    return EagerRunner(model, dtype, facts)
