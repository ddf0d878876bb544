"""Typed graphs in TensorRT's own parser and compiler: those of TensorRT for RTX work without a GPU.

Skipped where it is not installed: tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings (250 MB) are not in
the extra `dev`.
"""

from __future__ import annotations

import fake_tensorrt
import numpy as np
import onnx
import pytest
from int8_toys import WIDTH, attention, convolutions, photos, pooled

from vitrail.export.passes.islands import islands
from vitrail.export.passes.quantize import quantize, symmetric
from vitrail.export.passes.typed import half

trt = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
)

GRAPHS = [(convolutions, (3, 8, 8)), (attention, (6, WIDTH)), (pooled, (6, WIDTH))]


class Said(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.warnings: list[str] = []

    def log(self, severity, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.warnings.append(message)


SAID = Said()
"""TensorRT keeps the first logger of a process and ignores all others."""


def parsed(model: onnx.ModelProto):
    said = SAID
    said.warnings.clear()
    builder = trt.Builder(said)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, said)
    read = parser.parse(model.SerializeToString())
    assert read, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return said, builder, network, parser


def plan(model: onnx.ModelProto) -> bytes:
    """As `tensorrt_plan.build` makes it, for a card that is not here."""
    said, builder, network, _parser = parsed(model)
    tensor = network.get_input(0)
    tensor.shape = (2, *tuple(tensor.shape)[1:])
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert config.get_flag(trt.BuilderFlag.TF32), "TF32 is on unless it is cleared"
    config.clear_flag(trt.BuilderFlag.TF32)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    made = builder.build_serialized_network(network, config)
    assert made is not None, said.warnings
    return bytes(memoryview(made))


def types(network) -> set[str]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(k) for layer in layers for k in range(layer.num_outputs)]
    return {str(tensor.dtype).rpartition(".")[2] for tensor in outputs}


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_fp16_graphs_build_and_their_tensors_are_half(make, shape) -> None:
    model = half(make(), kept=islands(make(), photos(shape)))
    _said, _builder, network, _parser = parsed(model)
    assert "HALF" in types(network)
    assert "HALF" not in types(parsed(make())[2])
    assert len(plan(model)) > 1000


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_symmetric_int8_builds_without_a_warning(make, shape) -> None:
    pytest.importorskip("nncf")
    int8 = symmetric(quantize(make(), photos(shape)))
    for model in (int8, half(int8, kept=islands(int8, photos(shape)))):
        said, _builder, network, _parser = parsed(model)
        assert said.warnings == []
        assert "INT8" in types(network)
        assert len(plan(model)) > 1000


def test_uint8_is_read_as_int8_which_is_why_it_is_refused() -> None:
    pytest.importorskip("nncf")
    said, _builder, network, _parser = parsed(quantize(convolutions(), photos((3, 8, 8))))
    assert any("UINT8 zero_point" in text and "Defaulting to INT8" in text for text in said.warnings)
    assert "UINT8" not in types(network)


def test_a_zero_point_that_is_not_zero_is_refused() -> None:
    pytest.importorskip("nncf")
    builder = trt.Builder(SAID)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, SAID)
    model = quantize(attention(), photos((6, WIDTH)))
    assert not parser.parse(model.SerializeToString())


def test_the_stand_in_has_the_bindings_names() -> None:
    assert "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__
    assert "TF32" in trt.BuilderFlag.__members__
    assert {"JSON", "ONELINE"} <= set(trt.LayerInformationFormat.__members__)
    assert {"DETAILED"} <= set(trt.ProfilingVerbosity.__members__)
    assert {"INTERNAL_ERROR", "ERROR"} <= set(trt.ILogger.Severity.__members__)
    assert {"FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8"} <= set(trt.DataType.__members__)
    played = {
        trt.Builder: ("create_network", "create_builder_config", "build_serialized_network"),
        trt.IBuilderConfig: (
            *("set_flag", "clear_flag", "get_flag", "create_timing_cache", "set_timing_cache"),
            *("get_timing_cache", "profiling_verbosity"),
        ),
        trt.OnnxParser: ("parse_from_file", "num_errors", "get_error"),
        trt.ParserError: ("desc", "node_name", "node_operator"),
        trt.INetworkDefinition: ("num_inputs", "get_input"),
        trt.Runtime: ("deserialize_cuda_engine",),
        trt.ICudaEngine: (
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape"),
            *("get_tensor_dtype", "create_engine_inspector", "create_execution_context"),
        ),
        trt.IExecutionContext: ("set_tensor_address", "execute_async_v3"),
        trt.EngineInspector: ("get_engine_information",),
        trt.ITimingCache: ("serialize",),
    }
    for kind, names in played.items():
        assert set(names) <= set(dir(kind)), kind
    assert hasattr(fake_tensorrt.Context, "execute_async_v3")
    assert np.dtype(trt.nptype(trt.float16)) == np.float16
