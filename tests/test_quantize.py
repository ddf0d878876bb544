"""The int8 pass on small graphs, against ONNX Runtime and against integers computed here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from int8_toys import WIDTH, attention, constants, convolutions, linear, photos, pooled, weights

import vitrail
from vitrail.export.passes.quantize import quantised_nodes, quantize, unsigned
from vitrail.runtimes.openvino import core as one_core  # a second one would unload the plugin

pytest.importorskip("nncf")

GRAPHS = [(convolutions, (3, 8, 8)), (attention, (6, WIDTH)), (pooled, (6, WIDTH))]


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_linear_layer_is_the_integer_product_computed_by_hand() -> None:
    weight = weights(0, 16, 4)
    model = quantize(linear(weight), photos((16,)))
    assert quantised_nodes(model) == ("linear",)
    values = constants(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    node = next(node for node in model.graph.node if node.name == "linear")
    activation, stored = (producers[name] for name in node.input)
    scale, zero = (values[name] for name in activation.input[1:])
    integers, weight_scale = (values[name] for name in stored.input[:2])
    assert integers.dtype == np.int8
    np.testing.assert_allclose(weight_scale, np.abs(weight).max(axis=0) / 127, rtol=0.01)
    np.testing.assert_array_equal(integers, np.clip(np.rint(weight / weight_scale), -128, 127))

    images = weights(7, 3, 16)
    limits = np.iinfo(zero.dtype)
    rounded = np.clip(np.rint(images / scale) + zero, limits.min, limits.max).astype(np.int64) - zero
    expected = (rounded @ integers.astype(np.int64)) * scale * weight_scale
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (convolutions, (3, 8, 8), ("stem", "depthwise", "pointwise", "head")),
        (attention, (6, WIDTH), ("project", "back")),
    ],
)
def test_all_layers_become_int8_and_the_answer_stays_near(make, shape, layers) -> None:
    model = make()
    before = model.SerializeToString()
    quantised = quantize(model, photos(shape))
    assert model.SerializeToString() == before
    assert quantised_nodes(model) == ()
    assert quantised_nodes(quantised) == layers
    for batch in (1, 5):
        images = weights(50 + batch, batch, *shape)
        assert 0 < relative(run(quantised, images), run(model, images)) < 0.1
    for edges in ("input", "output"):
        assert list(getattr(quantised.graph, edges)) == list(getattr(model.graph, edges))


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_openvino_computes_what_onnx_runtime_computes(make, shape) -> None:
    quantised = quantize(make(), photos(shape))
    images = weights(50, 3, *shape)
    compiled = one_core().compile_model(
        openvino.Core().read_model(quantised.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert relative(compiled(images)[0], run(quantised, images)) < 0.02


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_unsigned_is_the_same_function_in_one_type(make, shape) -> None:
    quantised = quantize(make(), photos(shape))
    form = unsigned(quantised)
    zeros = {node.input[2] for node in form.graph.node if node.op_type == "QuantizeLinear"}
    assert {constants(form)[name].dtype for name in zeros} == {np.dtype(np.uint8)}
    onnx.checker.check_model(form, full_check=True)
    images = weights(50, 3, *shape)
    np.testing.assert_allclose(run(form, images), run(quantised, images), rtol=1e-5, atol=1e-5)


def test_the_fused_attention_survives() -> None:
    quantised = quantize(attention(), photos((6, WIDTH)))
    assert [node.op_type for node in quantised.graph.node].count("MultiHeadAttention") == 1


def test_kept_nodes_compute_as_before() -> None:
    quantised = quantize(convolutions(), photos((3, 8, 8)), kept=["depthwise", "head"])
    assert quantised_nodes(quantised) == ("stem", "pointwise")
    with pytest.raises(ValueError, match="no nodes of the model: tail"):
        quantize(convolutions(), photos((3, 8, 8)), kept=["tail"])


def test_no_photos_is_an_error() -> None:
    with pytest.raises(ValueError, match="photos to calibrate"):
        quantize(convolutions(), [])


def test_nodes_without_names_are_quantised_too() -> None:
    model = convolutions()
    for node in model.graph.node:
        node.name = ""
    assert len(quantised_nodes(quantize(model, photos((3, 8, 8))))) == 4


def test_a_bias_that_others_read_changes_for_none_of_them() -> None:
    model = convolutions()
    for node in model.graph.node:
        if node.name in ("stem", "depthwise"):
            node.input[2] = "b0"
    quantised = quantize(model, photos((3, 8, 8)))
    found = constants(quantised)
    biases = [node.input[2] for node in quantised.graph.node if node.name in ("stem", "depthwise")]
    assert len({found[name].tobytes() for name in biases}) == 2
    images = weights(50, 3, 3, 8, 8)
    assert relative(run(quantised, images), run(model, images)) < 0.1


def test_the_same_photos_give_the_same_bytes_and_leave_no_trace(capfd) -> None:
    logger_class = logging.getLoggerClass()
    first, second = (quantize(attention(), photos((6, WIDTH))).SerializeToString() for _ in range(2))
    assert first == second
    assert logging.getLoggerClass() is logger_class
    assert capfd.readouterr() == ("", "")


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import int8_toys as toys
from vitrail.export.passes.quantize import quantize
quantize(toys.convolutions(), toys.photos((3, 8, 8)))
"""


@pytest.mark.slow
def test_nncf_reports_nothing_and_writes_nothing_at_home(tmp_path) -> None:
    """In a process without pytest's switches; a report would need openvino_telemetry."""
    home = tmp_path / "home"
    home.mkdir()
    checked = PROGRAM + "assert 'openvino_telemetry' not in sys.modules, 'it may report'\n"
    done = subprocess.run(
        [sys.executable, "-c", checked, str(Path(__file__).parent)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONPATH": str(Path(vitrail.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []
