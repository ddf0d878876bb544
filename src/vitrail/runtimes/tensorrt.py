"""TensorRT 11: a typed ONNX file -> a plan for this GPU, kept in the cache -> Runner.

TensorRT 11 has no switch for a precision: it computes each tensor in the type that the graph gives it
(export/passes/typed.py). The one that is left, TF32 for products of fp32 numbers, is on by default; here it
is set either way and read back: `fp32` is without, `tf32` with it.

A plan is for one GPU, driver and version of TensorRT, so it does not ship: the graph does, and `load` builds
the plan where there is none (tensorrt_plan.py), which takes minutes once.

Source: the API of tensorrt-cu13-bindings 11.4.0.106, read from its docstrings, and
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0. It has not run on a GPU yet (docs/unverified.md).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import gpu
from vitrail.errors import InputError
from vitrail.runtimes import Arrays, EngineMismatch, tensorrt_plan
from vitrail.runtimes.device_arrays import DeviceArrays
from vitrail.runtimes.names import matched
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec

__all__ = ["TensorRTRunner", "check_layers", "layers", "load"]

LABEL = tensorrt_plan.LABEL

KINDS = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's names of types -> NumPy's."""
PRECISIONS = {"float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
"""How the engine's inspector names types -> ours; others do not compute."""
WIDTHS = {"int8": 0, "fp16": 1, "bf16": 1, "fp32": 2}


class TensorRTRunner:
    """An engine with its context and memory on the GPU; `run` is not thread-safe."""

    def __init__(self, engine: Any, graph: Graph, arrays: DeviceArrays, facts: RunnerFacts) -> None:
        self._engine, self._arrays = engine, arrays
        self._context = engine.create_execution_context()
        if self._context is None:
            raise InputError(f"{LABEL} has too little memory left on {facts.device}: end what else uses it.")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [spec.name for spec in graph.inputs]
        self._outputs = [spec.name for spec in graph.outputs]
        ours = _ours(engine, graph)
        for name in names:
            if not self._context.set_tensor_address(name, arrays.address(ours[name])):
                raise EngineMismatch(f"{LABEL} does not take memory for {name}.")
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, which are copies; the copies to and from the GPU included.

        Raises:
            InputError: the GPU refused.
        """
        for name in self._inputs:
            self._arrays.put(name, inputs[name])
        if not self._context.execute_async_v3(self._arrays.stream):
            raise InputError(f"{LABEL} refused to run on {self.facts.device}: see `nvidia-smi`.")
        for name in self._outputs:
            self._arrays.fetch(name)
        self._arrays.wait()
        return {name: self._arrays.copied(name) for name in self._outputs}

    def close(self) -> None:
        """Free the context, the engine and the memory on the GPU."""
        del self._context, self._engine
        self._arrays.close()


def load(
    path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]
) -> TensorRTRunner:
    """The plan of a typed ONNX file on the target's GPU, built now unless the cache has it.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        InputError: the file cannot be read or built, TensorRT no longer supports the GPU, or the plan in the
            cache is not the one that was built there.
        EngineMismatch: no layer, or one too many, computes in the precision that was asked for.
    """
    assert not settings, settings
    trt, bound = tensorrt_plan.engine(), tensorrt_plan.bound_to(target.device)
    arrays = DeviceArrays(gpu.number_of(target.device), target.device)
    try:
        folder, built = tensorrt_plan.kept(path, graph, target, bound)
        said = tensorrt_plan.logger(trt)
        said.last = ""
        engine = trt.Runtime(said).deserialize_cuda_engine(tensorrt_plan.trusted(folder, bound))
        if engine is None:
            raise InputError(
                f"{LABEL} cannot load its plan ({said.last}): remove {folder}, and load it again."
            )
        loaded = _graph(engine, graph)
        arrays.take((*loaded.inputs, *loaded.outputs))
        counted = layers(_inspected(trt, engine))
        check_layers(counted, target.precision)
        facts = RunnerFacts(
            runtime=tensorrt_plan.NAME,
            version=str(trt.__version__),
            precision=target.precision,
            threads=threads,
            device=target.device,
            graphs=(loaded,),
            details=(
                ("layers", " ".join(f"{name}:{count}" for name, count in sorted(counted.items()))),
                ("TF32", "on" if target.precision == "tf32" else "off"),
                ("plan", f"built here in {built.seconds:.0f} s"),
                ("GPU", f"{bound.gpu}, driver {bound.driver}"),
            ),
        )
        return TensorRTRunner(engine, loaded, arrays, facts)
    except BaseException:
        arrays.close()
        raise


def layers(information: str) -> Counter[str]:
    """How many layers compute in each precision, by the inspector's JSON.

    A layer counts by the narrowest type that it reads or writes. Layers of other types (shapes) do not count.
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", ()):
        if not isinstance(layer, dict):  # a plan that was built without details has names alone
            raise EngineMismatch(f"{LABEL}'s plan does not tell its layers' types: build it again.")
        tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
        kinds = [str(each.get("DataType") or each.get("Format/Datatype", "")).lower() for each in tensors]
        words = {word for kind in kinds for word in re.findall(r"[a-z]+\d*", kind)}
        found = [PRECISIONS[word] for word in words if word in PRECISIONS]
        if found:
            counts[min(found, key=WIDTHS.__getitem__)] += 1
    return counts


def check_layers(counted: Mapping[str, int], precision: str) -> None:
    """Raise an EngineMismatch unless the plan computes in the precision that was asked for."""
    if not sum(counted.values()):
        raise EngineMismatch(f"{LABEL}'s plan does not tell its layers' types, so {precision} is not shown.")
    if precision in ("fp32", "tf32"):
        narrow = sum(count for name, count in counted.items() if name != "fp32")
        if narrow:
            raise EngineMismatch(
                f"{LABEL} was asked for {precision} and runs {narrow} layers in a lower precision."
            )
    elif not counted.get(precision):
        raise EngineMismatch(f"{LABEL} was asked for {precision} and runs no layer in it: export it again.")


def _inspected(trt: Any, engine: Any) -> str:
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _ours(engine: Any, graph: Graph) -> dict[str, str]:
    """{name in the engine: name in the graph}."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if "INPUT" in str(engine.get_tensor_mode(name))]
    outputs = [name for name in names if name not in inputs]
    return {**matched(graph.inputs, inputs), **matched(graph.outputs, outputs)}


def _graph(engine: Any, asked: Graph) -> Graph:
    """The graph with the shapes and types that the engine has."""
    ours = _ours(engine, asked)

    def specs(wanted: tuple[TensorSpec, ...], mode: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=ours[name],
                shape=tuple(int(side) for side in engine.get_tensor_shape(name)),
                dtype=_kind(engine.get_tensor_dtype(name)),
            )
            for name in ours
            if mode in str(engine.get_tensor_mode(name))
        )

    return Graph(
        name=asked.name,
        entry=asked.entry,
        inputs=specs(asked.inputs, "INPUT"),
        outputs=specs(asked.outputs, "OUTPUT"),
    )


def _kind(kind: Any) -> str:
    """`float32` of TensorRT's DataType.FLOAT."""
    name = str(kind).rpartition(".")[2]
    return KINDS.get(name, name.lower())
