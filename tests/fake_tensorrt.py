"""Stand-ins for TensorRT 11 and CUDA's runtime, for machines without a GPU.

They know the calls of tensorrt-cu13-bindings 11.4.0.106 and cuda-bindings 13 that Vitrail makes, no others.
A "plan" holds the ONNX file; running one reads the inputs from their addresses "on the GPU" and lets ONNX
Runtime compute. tests/test_tensorrt_rtx_build.py checks the names against the real bindings.
"""

from __future__ import annotations

import ctypes
import json
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime

PLANNED = b"PLAN"
KINDS = {1: "FLOAT", 10: "HALF", 2: "UINT8", 7: "INT64"}


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


class BuilderFlag(IntEnum):
    TF32 = 6


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY, DETAILED = 0, 1


class LayerInformationFormat(IntEnum):
    ONELINE, JSON = 0, 1


class DataType:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"DataType.{self.name}"


class ILogger:
    """TensorRT keeps the first logger that it is given, and ignores all others."""

    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class World:
    """What the test sees of all that was done, and what it lets go wrong."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.timing_caches: list[bytes] = []
        self.refuses: set[str] = set()
        self.layers: list[dict] | None = None
        self.memory: dict[int, ctypes.Array] = {}
        self.copies: list[str] = []
        self.logger: ILogger | None = None

    def named(self, name: str) -> list[tuple]:
        return [call for call in self.calls if call[0] == name]


def install(monkeypatch, *, version: str = "11.4.0.106") -> World:
    """Put both in their places."""
    world = World()
    trt = _tensorrt(world, version)
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = _runtime(world)
    cuda.bindings = bindings
    for name, module in {
        "tensorrt": trt,
        "cuda": cuda,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": bindings.runtime,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


# --- TensorRT -------------------------------------------------------------------------------------


def _tensorrt(world: World, version: str) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__version__ = version
    for each in (
        NetworkDefinitionCreationFlag,
        BuilderFlag,
        ProfilingVerbosity,
        LayerInformationFormat,
        ILogger,
    ):
        setattr(module, each.__name__, each)

    class Network:
        def __init__(self) -> None:
            self.model, self.inputs = None, []

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, index: int) -> SimpleNamespace:
            return self.inputs[index]

    class Config:
        def __init__(self) -> None:
            self.flags, self.cache = {BuilderFlag.TF32}, None
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

        def set_flag(self, flag: BuilderFlag) -> None:
            world.calls.append(("set_flag", flag))
            self.flags.add(flag)

        def clear_flag(self, flag: BuilderFlag) -> None:
            world.calls.append(("clear_flag", flag))
            if "clear" not in world.refuses:
                self.flags.discard(flag)

        def get_flag(self, flag: BuilderFlag) -> bool:
            return flag in self.flags

        def create_timing_cache(self, data: bytes) -> SimpleNamespace:
            world.timing_caches.append(bytes(data))
            return SimpleNamespace(data=bytes(data), serialize=lambda: b"timed" + bytes(data))

        def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            if cache.data and "timings" in world.refuses:
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> SimpleNamespace | None:
            return self.cache

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            world.logger = self.logger = world.logger or logger

        def create_network(self, flags: int = 0) -> Network:
            world.calls.append(("create_network", flags))
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            world.calls.append(("build", config, network))
            if "build" in world.refuses:
                self.logger.log(ILogger.Severity.ERROR, "no\ntactic")
                return None
            kept = {"shapes": {each.name: list(each.shape) for each in network.inputs}}
            kept["details"] = config.profiling_verbosity == ProfilingVerbosity.DETAILED
            return PLANNED + json.dumps(kept).encode() + b"\n" + network.model.SerializeToString()

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self.network, self.num_errors = network, 0

        def parse_from_file(self, path: str) -> bool:
            if "parse" in world.refuses:
                self.num_errors = 1
                return False
            self.network.model = onnx.load(path)
            for value in self.network.model.graph.input:
                self.network.inputs.append(SimpleNamespace(name=value.name, shape=(-1,)))
            return True

        def get_error(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(
                desc=lambda: "no importer", node_name=lambda: "odd", node_operator=lambda: "Odd"
            )

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            world.logger = self.logger = world.logger or logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            world.calls.append(("deserialize",))
            if "deserialize" in world.refuses:
                self.logger.log(ILogger.Severity.ERROR, "of another world")
                return None
            return Engine(world, data)

    for each in (Builder, OnnxParser, Runtime):
        setattr(module, each.__name__, each)
    return module


class Engine:
    def __init__(self, world: World, data: bytes) -> None:
        assert data.startswith(PLANNED)
        head, _, rest = data[len(PLANNED) :].partition(b"\n")
        kept = json.loads(head)
        self.world, self.shapes, self.details = world, kept["shapes"], kept["details"]
        self.model = onnx.load_from_string(rest)
        self.batch = next(iter(self.shapes.values()))[0]
        graph = self.model.graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.names, self.inputs = list(self.values), {value.name for value in graph.input}
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return f"TensorIOMode.{'INPUT' if name in self.inputs else 'OUTPUT'}"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return tuple(self.shapes[name])
        dims = self.values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value or self.batch for dim in dims)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(KINDS[self.values[name].type.tensor_type.elem_type])

    def create_engine_inspector(self) -> SimpleNamespace:
        layers = self.world.layers
        if layers is None:
            kinds = {
                "Float",
                *(["Half"] if _has(self.model, 10) else []),
                *(["Int8"] if _has(self.model, 3) else []),
            }
            layers = [_layer(kind) for kind in sorted(kinds)]
        said = layers if self.details else ["layer 1", "layer 2"]
        return SimpleNamespace(
            get_engine_information=lambda _: json.dumps({"Layers": said, "I/O Tensors": []})
        )

    def create_execution_context(self) -> Context | None:
        return None if "context" in self.world.refuses else Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in self.engine.world.memory, "not an address on the GPU"
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        world, engine = self.engine.world, self.engine
        world.copies.append("execute")
        if "execute" in world.refuses:
            return False
        session = onnxruntime.InferenceSession(
            engine.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        given = {name: self._array(name) for name in engine.inputs}
        outputs = [name for name in engine.names if name not in engine.inputs]
        for name, values in zip(outputs, session.run(outputs, given), strict=True):
            self._array(name)[...] = values
        return True

    def _array(self, name: str) -> np.ndarray:
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.engine.values[name].type.tensor_type.elem_type)
        buffer = self.engine.world.memory[self.addresses[name]]
        return np.ndarray(self.engine.get_tensor_shape(name), kind, memoryview(buffer))


def _has(model: onnx.ModelProto, kind: int) -> bool:
    return any(tensor.data_type == kind for tensor in model.graph.initializer)


def _layer(kind: str) -> dict:
    tensor = {"Name": "x", "Dimensions": [1, 8], "Format": "linear", "DataType": kind}
    return {
        "Name": kind,
        "LayerType": "gemm",
        "Inputs": [{**tensor, "DataType": "Float"}],
        "Outputs": [tensor],
    }


# --- CUDA -----------------------------------------------------------------------------------------


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


def _runtime(world: World) -> ModuleType:
    module = ModuleType("cuda.bindings.runtime")
    module.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def taken(size: int) -> tuple:
        if "memory" in world.refuses:
            return Error.cudaErrorMemoryAllocation, None
        buffer = (ctypes.c_char * size)()
        address = ctypes.addressof(buffer)
        world.memory[address] = buffer
        return Error.cudaSuccess, address

    def freed(address: int) -> tuple:
        del world.memory[address]
        return (Error.cudaSuccess,)

    def copied(to: int, source: int, size: int, kind: int, stream: int) -> tuple:
        assert stream == 77
        world.copies.append("in" if kind == 1 else "out")
        ctypes.memmove(to, source, size)
        return (Error.cudaSuccess,)

    def waited(stream: int) -> tuple:
        world.copies.append("wait")
        return (Error.cudaSuccess,)

    def device(number: int) -> tuple:
        world.calls.append(("cudaSetDevice", number))
        return (Error.cudaSuccess,)

    module.cudaSetDevice = device
    module.cudaStreamCreate = lambda: (Error.cudaSuccess, 77)
    module.cudaStreamDestroy = lambda stream: (Error.cudaSuccess,)
    module.cudaStreamSynchronize = waited
    module.cudaMalloc = module.cudaMallocHost = taken
    module.cudaFree = module.cudaFreeHost = freed
    module.cudaMemcpyAsync = copied
    return module
