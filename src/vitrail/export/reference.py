"""Eager PyTorch as a Runner: a reference that is measured and shown, never shipped.

In fp32, with weights and activations in bf16 or fp16 (`pytorch`), or with fp32 weights under torch's
autocast, which casts products and convolutions to half of the bits and keeps the rest (`pytorch-amp`). The
references that compile start from the same module (`prepared`).

On a GPU, fp32 means products of fp32 numbers; `tf32` lets its matrix units round them to ten bits first, as
torch does only where it is told. A call takes arrays and gives arrays there too: the copies to and from the
device are in its time, and the last one waits until all is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail import gpu
from vitrail.errors import InputError
from vitrail.export import eager
from vitrail.export.requests import ExportRequest
from vitrail.profiling import kernels
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec
from vitrail.words import first_line

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
AUTOCAST = "pytorch-amp"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A module and zeros to call it with, in the dtype of its parameters and inputs."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    dtype: torch.dtype
    device: torch.device


class ModuleRunner:
    """Something that is called as the module is, on tensors of one dtype, in inference mode."""

    def __init__(
        self,
        call: Callable[..., Any],
        dtype: torch.dtype,
        facts: RunnerFacts,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._call = call
        self._dtype, self._device = dtype, place_of(facts.device)
        self._facts = facts
        self._around = around

    @property
    def facts(self) -> RunnerFacts:
        """What was read back."""
        return self._facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs in the order of the module's arguments -> its outputs."""
        (graph,) = self._facts.graphs
        with told(self._device):
            # Outside of inference mode, as the inputs were with which it was compiled.
            given = [
                torch.from_numpy(inputs[spec.name]).to(self._device, dtype_of(spec, self._dtype, self._call))
                for spec in graph.inputs
            ]
            with torch.inference_mode(), self._around():
                return eager.named(graph, self._call(*given))

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
    made = prepared(read(path), graph, "fp32" if cast else target.precision, target.device)
    around = partial(autocast, target) if cast else nullcontext
    seen: Counter[str] = Counter()
    with torch.inference_mode(), around(), _Dtypes(seen), told(made.device):
        output = made.model(*made.inputs)
    output = output if isinstance(output, Tensor) else output[0]
    if cast and not seen[str(DTYPES[target.precision]).removeprefix("torch.")]:
        raise EngineMismatch(
            f"PyTorch was asked for autocast to {target.precision} and ran no operation in it."
        )
    if not cast:
        check_precision(output, target.precision)
    details = (
        ("parameters", str(next(made.model.parameters()).dtype).removeprefix("torch.")),
        ("operations", " ".join(f"{name}:{count}" for name, count in sorted(seen.items()))),
    )
    facts = read_back(target, graph, output, details)
    return ModuleRunner(made.model, made.dtype, facts, around)


def read(path: Path, engine: str = "PyTorch") -> ExportRequest:
    """What the export's `reference.json` describes; errors say that `engine` cannot read it.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportRequest)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{engine} cannot read {path.name}: export it again ({error}).") from None


def prepared(request: ExportRequest, graph: Graph, precision: str, device: str = "cpu") -> Prepared:
    """The module on the device with its parameters in `precision`, and inputs of the graph's sizes.

    Raises:
        InputError: the weights are missing or damaged; or torch cannot use the device, or that has too little
            memory left.
    """
    dtype, place = DTYPES[precision], place_of(kernels.check_device(device))
    if place.type == "cuda":
        use_tf32(precision == "tf32")
    with told(place):
        whole = eager.module(request, request.image_size, features=request.features)
        model = (eager.stages(whole)[graph.name] if graph.name != Graph.name else whole).to(place, dtype)
        # Sizes that stay open are as small as any in the first call.
        inputs = tuple(
            torch.zeros(
                *(1 if isinstance(side, str) else side for side in spec.shape),
                dtype=dtype_of(spec, dtype, model) or getattr(torch, spec.dtype),
                device=place,
            )
            for spec in graph.inputs
        )
    return Prepared(model=model, inputs=inputs, dtype=dtype, device=place)


def dtype_of(spec: TensorSpec, dtype: torch.dtype, call: Callable[..., Any]) -> torch.dtype | None:
    """In which dtype a module of `dtype` takes an input; None: as it comes, of whole numbers, or of numbers
    that the module says must be `precise`."""
    precise = spec.dtype != "float32" or spec.name in getattr(call, "precise", ())
    return None if precise else dtype


def place_of(device: str) -> torch.device:
    """torch's device of this name, with its number. Raises InputError for another name."""
    return torch.device("cpu") if device == "cpu" else torch.device("cuda", gpu.number_of(device))


def autocast(target: Target) -> torch.autocast:
    """Mixed precision as people use it on the device."""
    return torch.autocast(place_of(target.device).type, dtype=DTYPES[target.precision])


def use_tf32(on: bool) -> None:
    """Set and read back whether fp32 products on a GPU may be rounded to TF32 on the way.

    Raises:
        EngineMismatch: torch does otherwise.
    """
    # The process serves only this runner, so torch's process-wide switches are its own.
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
    if (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) != (on, on):
        raise EngineMismatch(f"PyTorch was asked for TF32 {'on' if on else 'off'} and keeps it otherwise.")


@contextmanager
def told(device: torch.device) -> Iterator[None]:
    """Whatever the device refuses in this block, as one sentence.

    Raises:
        InputError: its memory is full, or it was lost.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{device} has too little memory left ({first_line(error)}): end what else uses it, or ask for a "
            "smaller batch or image."
        ) from None
    except torch.AcceleratorError as error:
        raise InputError(
            f"{device} was lost or refused to go on ({first_line(error)}): see `nvidia-smi`, and start again."
        ) from None


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
    result, *others = graph.outputs
    if output.device.type == "cuda":
        details += (("TF32", "on" if torch.backends.cuda.matmul.allow_tf32 else "off"),)
    return RunnerFacts(
        runtime=target.runtime,
        version=str(torch.__version__),
        precision=target.precision,
        threads=torch.get_num_threads(),
        device=target.device if output.device == place_of(target.device) else str(output.device),
        graphs=(replace(graph, outputs=(replace(result, shape=_read_shape(result, output)), *others)),),
        details=details,
    )


def _read_shape(spec: TensorSpec, output: Tensor) -> tuple[int | str, ...]:
    """The sizes of an output; of those that are open nothing was read."""
    if len(spec.shape) != output.ndim:
        return tuple(output.shape)
    pairs = zip(spec.shape, output.shape, strict=True)
    return tuple(asked if isinstance(asked, str) else found for asked, found in pairs)


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
