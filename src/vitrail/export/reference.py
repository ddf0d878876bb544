"""Eager PyTorch as a Runner: a reference that is measured and shown, never shipped.

In fp32, with weights and activations in bf16 (`pytorch`), or with fp32 weights under torch's autocast, which
casts products and convolutions to bf16 and keeps the rest (`pytorch-amp`). The references that compile start
from the same module (`prepared`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.errors import InputError
from vitrail.export import eager
from vitrail.export.requests import ExportRequest
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.vocabulary import Graph, RunnerFacts, Target

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AUTOCAST = "pytorch-amp"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A module and zeros to call it with, in the dtype of its parameters and inputs."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    dtype: torch.dtype


class ModuleRunner:
    """Something that is called as the module is, on tensors of one dtype, in inference mode."""

    def __init__(
        self,
        call: Callable[..., Tensor],
        dtype: torch.dtype,
        facts: RunnerFacts,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._call = call
        self._dtype = dtype
        self._facts = facts
        self._around = around

    @property
    def facts(self) -> RunnerFacts:
        """What was read back."""
        return self._facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs in the order of the module's arguments -> its one output."""
        (graph,) = self._facts.graphs
        given = [torch.from_numpy(inputs[spec.name]).to(self._dtype) for spec in graph.inputs]
        with torch.inference_mode(), self._around():
            output = self._call(*given)
        return {graph.outputs[0].name: np.array(output.float().numpy())}

    def close(self) -> None:
        """Drop the module."""
        del self._call


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ModuleRunner:
    """Build the module described by the export's `reference.json`; it takes no engine settings.

    Raises:
        InputError: the file, or the weights it names, are missing or damaged.
        EngineMismatch: a different number of threads or precision than requested.
    """
    assert not settings, settings
    use_threads(threads)
    cast = target.runtime == AUTOCAST
    made = prepared(read(path), graph, "fp32" if cast else target.precision)
    seen: Counter[str] = Counter()
    with torch.inference_mode(), autocast() if cast else nullcontext(), _Dtypes(seen):
        output = made.model(*made.inputs)
    if cast and not seen["bfloat16"]:
        raise EngineMismatch("PyTorch was asked for autocast to bf16 and ran no operation in it.")
    if not cast:
        check_precision(output, target.precision)
    details = (
        ("parameters", str(next(made.model.parameters()).dtype).removeprefix("torch.")),
        ("operations", " ".join(f"{name}:{count}" for name, count in sorted(seen.items()))),
    )
    facts = read_back(target, graph, output, details)
    return ModuleRunner(made.model, made.dtype, facts, autocast if cast else nullcontext)


def read(path: Path, engine: str = "PyTorch") -> ExportRequest:
    """What the export's `reference.json` describes; errors say that `engine` cannot read it.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportRequest)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{engine} cannot read {path.name}: export it again ({error}).") from None


def prepared(request: ExportRequest, graph: Graph, precision: str) -> Prepared:
    """The module with its parameters in `precision`, and inputs of the graph's sizes.

    Raises:
        InputError: the weights are missing or damaged.
    """
    dtype = DTYPES[precision]
    model = eager.module(request, request.image_size, features=request.features).to(dtype)
    inputs = tuple(torch.zeros(*map(int, spec.shape), dtype=dtype) for spec in graph.inputs)
    return Prepared(model=model, inputs=inputs, dtype=dtype)


def autocast() -> torch.autocast:
    """Mixed precision as people use it on a CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def use_threads(threads: int) -> None:
    """Set and read back torch's number of threads.

    Raises:
        EngineMismatch: torch uses another number.
    """
    # The process serves only this runner, so torch's process-wide thread count is its own.
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise EngineMismatch(f"PyTorch was asked for {threads} threads and uses {torch.get_num_threads()}.")


def check_precision(output: Tensor, precision: str) -> None:
    """Check that an output is in the precision that was asked for.

    Raises:
        EngineMismatch: it is not.
    """
    if output.dtype != DTYPES[precision]:
        raise EngineMismatch(f"PyTorch was asked for {precision} and gives {output.dtype}.")


def read_back(
    target: Target, graph: Graph, output: Tensor, details: tuple[tuple[str, str], ...]
) -> RunnerFacts:
    """The facts of a runner whose first call gave `output`."""
    (result,) = graph.outputs
    return RunnerFacts(
        runtime=target.runtime,
        version=str(torch.__version__),
        precision=target.precision,
        threads=torch.get_num_threads(),
        graphs=(replace(graph, outputs=(replace(result, shape=tuple(output.shape)),)),),
        details=details,
    )


class _Dtypes(TorchDispatchMode):
    """Counts the operations of a call by the dtype of what they give: what autocast really did."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._seen[str(result.dtype).removeprefix("torch.")] += 1
        return result
