"""Exports against the module they were made from. About 60 s."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import exports
import numpy as np
import pytest
import torch
from exports import graph_of, scores
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from vitrail.errors import InputError
from vitrail.export import onnx, work
from vitrail.images.labels import read_labels
from vitrail.images.photos import sample_photos
from vitrail.models import timm
from vitrail.models.vit import ViT, ViTConfig
from vitrail.runtimes.openvino import core
from vitrail.tasks import pack, read_arrays
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Graph, Preprocess
from vitrail.weights.labels import labels

pytestmark = pytest.mark.slow

SIZE, CLASSES = 64, 10


def randomised(model: nn.Module, seed: int = 0, by: float = 0.3) -> nn.Module:
    """Values in every tensor that norms and biases start without; running variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.dim() <= 1:
                noise = by * torch.randn(value.shape, generator=generator)
                value.copy_((value + noise).abs() + 0.1 if name.endswith("running_var") else value + noise)
    return model.eval()


def images(batch: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, size, size), dtype=np.float32)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def assert_equals_module(folder: Path, model: nn.Module, batches: tuple[int, ...], size: int = SIZE) -> None:
    for runtime in ("onnxruntime", "openvino"):
        for batch in batches:
            with torch.inference_mode():
                expected = model(torch.from_numpy(images(batch, size))).double().numpy()
            runner = exports.load(folder, runtime, batch=batch, size=size, classes=expected.shape[1])
            assert difference(scores(runner, images(batch, size)), expected) <= 1e-4, (runtime, batch)
            runner.close()


# --- files equal the module -----------------------------------------------------------------------


def test_an_export_equals_its_weights_at_batches_that_were_not_traced(tiny_export, tiny_weights):
    assert onnx.TRACED_BATCH == 2
    model = timm.build("test_vit", image_size=SIZE, classes=CLASSES, weights=tiny_weights)
    assert_equals_module(tiny_export, model, (1, 2, 3, 7))


def convolutional() -> nn.Module:
    # Depthwise convolutions, squeeze-and-excitation, batch norm and hard-swish in one.
    return timm.build("mobilenetv3_small_050", image_size=SIZE, classes=CLASSES, weights=None)


def windowed() -> nn.Module:
    # Two stages of two blocks, so that a shifted window, its mask and a patch merging take part.
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=SIZE, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=CLASSES
    )


@pytest.mark.parametrize("make", [convolutional, windowed])
def test_other_families_equal_their_module_at_every_batch(tmp_path, make):
    torch.manual_seed(0)
    model = randomised(make()).requires_grad_(False)
    exports.write(model, tmp_path, SIZE, CLASSES)
    assert onnx.check(model, tmp_path, graph_of(SIZE, CLASSES)) <= onnx.EXPORT_TOLERANCE
    assert_equals_module(tmp_path, model, (1, 3, 7))


def test_the_ir_keeps_its_weights_in_fp32(tiny_export, tiny_weights):
    import openvino as ov

    constants = [
        op
        for op in ov.Core().read_model(tiny_export / "openvino" / "model.xml").get_ops()
        if "Const" in str(op)
    ]
    kinds = {op.get_element_type().get_type_name() for op in constants}
    assert "f32" in kinds
    assert kinds.isdisjoint({"f16", "bf16"})
    values = sum(value.numel() for value in torch.load(tiny_weights, weights_only=True).values())
    assert (tiny_export / "openvino" / "model.bin").stat().st_size >= 4 * values


def test_the_folder_says_what_is_in_it(tiny_export, tiny_labels):
    names = {path.name for path in tiny_export.iterdir()}
    assert names == {
        "model.onnx",
        "openvino",
        work.REFERENCE_FILE,
        work.LABELS_FILE,
        work.MANIFEST,
    }
    assert read_labels(tiny_export / work.LABELS_FILE) == read_labels(tiny_labels)
    manifest = json.loads((tiny_export / work.MANIFEST).read_bytes())
    assert manifest["random_weights"] is False
    assert 0 <= manifest["relative_difference"] <= onnx.EXPORT_TOLERANCE
    assert manifest["toolchain"]["torch"] == torch.__version__.split("+")[0]


def test_imagenet_has_a_thousand_distinct_labels_that_survive_their_file(tmp_path):
    names = labels("imagenet-1k")
    assert len(set(names)) == len(names) == 1000
    assert (names[0].split(",")[0], names[985]) == ("tench", "daisy")
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    assert read_labels(path) == names


def test_an_unknown_label_set_is_refused():
    with pytest.raises(InputError, match="no label set 'imagenet-2k'"):
        labels("imagenet-2k")


# --- files that do not equal the module -----------------------------------------------------------


class FrozenInput(nn.Module):
    """Traced without a dynamic batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def write_frozen(path: Path) -> None:
    torch.onnx.export(
        FrozenInput().eval(),
        (torch.zeros(onnx.TRACED_BATCH, 3, SIZE, SIZE),),
        path,
        dynamo=True,
        input_names=["images"],
        output_names=["scores"],
        verbose=False,
    )


def test_a_frozen_batch_is_caught(tmp_path):
    path = tmp_path / "frozen.onnx"
    write_frozen(path)
    with pytest.raises(onnx.ExportMismatch, match="does not run at batch 3"):
        onnx.check(FrozenInput(), tmp_path, graph_of(SIZE, 3, path.name))


def test_a_batch_frozen_inside_the_graph_is_caught(tmp_path):
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    images_ = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])
    shape = numpy_helper.from_array(np.array([2, 3, SIZE * SIZE], dtype=np.int64), "shape")
    axes = numpy_helper.from_array(np.array([2], dtype=np.int64), "axes")
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "frozen", [images_], [scores], [shape, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    library.save(model, tmp_path / "frozen.onnx")
    with pytest.raises(onnx.ExportMismatch, match="does not run at batch 3"):
        onnx.check(FrozenInput(), tmp_path, graph_of(SIZE, 3, "frozen.onnx"))


def test_other_values_are_caught(tiny_export):
    other = timm.build("test_vit", image_size=SIZE, classes=CLASSES, weights=None, seed=3)
    with pytest.raises(onnx.ExportMismatch, match="differs from the module by"):
        onnx.check(other, tiny_export, graph_of(SIZE, CLASSES))
    fewer = timm.build("test_vit", image_size=SIZE, classes=CLASSES - 1, weights=None)
    with pytest.raises(onnx.ExportMismatch, match=r"gives \(3, 10\) where the module gives \(3, 9\)"):
        onnx.check(fewer, tiny_export, graph_of(SIZE, CLASSES))


def test_scores_that_are_not_numbers_are_caught(tiny_export, tiny_weights):
    model = timm.build("test_vit", image_size=SIZE, classes=CLASSES, weights=tiny_weights)
    model.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="scores that are not finite"):
        onnx.check(model, tiny_export, graph_of(SIZE, CLASSES))


# --- attention ------------------------------------------------------------------------------------


def attentive(model: nn.Module) -> nn.Module:
    """Matrices of unit gain: fresh transformers attend to all tokens alike, whatever the scores are."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.copy_(1.5 * torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    return randomised(model).requires_grad_(False)


def written(model: nn.Module, folder: Path, size: int = SIZE) -> Counter:
    """Write both file sets; how many nodes of each kind the graph holds."""
    import onnx as library

    exports.write(model, folder, size, CLASSES)
    graph = library.load(folder / work.ONNX_FILE, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def timm_vit(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    options = {
        "img_size": SIZE,
        "embed_dim": 96,
        "depth": 2,
        "num_heads": 3,
        "num_classes": CLASSES,
        **options,
    }
    return VisionTransformer(patch_size=16, **options)


def our_vit(**options: object) -> nn.Module:
    sizes = {"image_size": (SIZE, SIZE), "width": 96, "depth": 2, "heads": 3, "num_classes": CLASSES}
    return ViT(ViTConfig(**{**sizes, **options}))


def assert_close_in_bf16(folder: Path, model: nn.Module, batch: int) -> None:
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return
    runner = exports.load(folder, "openvino", batch=batch, size=SIZE, classes=CLASSES, precision="bf16")
    expected = model(torch.from_numpy(images(batch))).double().numpy()
    assert difference(scores(runner, images(batch)), expected) <= 0.05


@pytest.mark.parametrize(("make", "qk_norm"), [(timm_vit, False), (our_vit, False), (our_vit, True)])
def test_a_vit_holds_one_fused_node_per_block_fed_by_slices_of_one_projection(tmp_path, make, qk_norm):
    model = attentive(make(qk_norm=qk_norm))
    kinds = written(model, tmp_path)
    assert kinds["MultiHeadAttention"] == 2
    assert kinds["Softmax"] == 0
    # Patches to tokens, once; q, k and v are cut out of their projection without moving it.
    assert (kinds["Transpose"], kinds["Slice"]) == (1, 2 * 3)
    assert_equals_module(tmp_path, model, (1, 3, 7))
    assert_close_in_bf16(tmp_path, model, 7)


def siglip() -> nn.Module:
    return timm_vit(depth=1, class_token=False, global_pool="map")


def our_siglip() -> nn.Module:
    return our_vit(depth=1, class_token=False, pool="map")


@pytest.mark.parametrize("make", [siglip, our_siglip])
def test_one_query_may_attend_to_all_tokens(tmp_path, make):
    model = attentive(make())
    kinds = written(model, tmp_path)
    assert (kinds["MultiHeadAttention"], kinds["Softmax"]) == (2, 0)
    assert_equals_module(tmp_path, model, (1, 3, 7))


class Patches(nn.Module):
    """(B, 3, S, S) -> tokens (B, N, D) of 16 x 16 pixels; then whatever attention a subclass computes."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 24, 16, stride=16)
        self.qkv = nn.Linear(24, 72)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return self.qkv(self.tokens(x)).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)


class Scaled(Patches):
    """Parts taken by number and out of order, fewer keys than queries, and a scale of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.heads(x)
        found = scaled_dot_product_attention(parts[2], parts[0][:, :, :5], parts[1][:, :, :5], scale=0.9)
        return found.transpose(1, 2).flatten(1)


def test_a_scale_of_its_own_and_fewer_keys_than_queries(tmp_path):
    model = attentive(Scaled())
    assert written(model, tmp_path)["MultiHeadAttention"] == 1
    assert_equals_module(tmp_path, model, (1, 2, 7))


class NotFused(Patches):
    """A bias, a causal mask, values of another width, fewer heads of keys: none is for the fused node."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x).unbind(0)
        bias = torch.linspace(-2, 2, 16 * 16).view(16, 16)
        found = (
            scaled_dot_product_attention(q, k, v, attn_mask=bias),
            scaled_dot_product_attention(q, k, v, is_causal=True),
            scaled_dot_product_attention(q, k, v[..., :5]),
            scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        )
        return torch.cat([part.flatten(1) for part in found], 1)


def test_other_attention_stays_decomposed_and_right(tmp_path):
    model = attentive(NotFused())
    kinds = written(model, tmp_path)
    assert (kinds["MultiHeadAttention"], kinds["Softmax"]) == (0, 4)
    assert_equals_module(tmp_path, model, (1, 2, 7))


PEAK = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from vitrail import runtimes
from vitrail.vocabulary import Graph, Target, TensorSpec

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

before = peak()
options = dict(sizes={"B": 1}, threads=2)
target = Target(runtime="onnxruntime", precision="fp32")
graph = Graph(
    entry="model.onnx",
    inputs=(TensorSpec(name="images", shape=("B", 3, 256, 256)),),
    outputs=(TensorSpec(name="scores", shape=("B", 10)),),
)
runner = runtimes.load(Path(sys.argv[1]), graph, target, **options)
runner.run({"images": np.zeros((1, 3, 256, 256), np.float32)})
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_4096_tokens_do_not_take_memory_by_their_square(tmp_path):
    tokens, heads = 64 * 64, 4
    sizes = {"image_size": (256, 256), "patch_size": 4, "depth": 1, "heads": heads, "width": 64}
    model = our_vit(**sizes, class_token=False, pool="avg").eval().requires_grad_(False)
    exports.write(model, tmp_path, 256, CLASSES, openvino=False)
    child = [sys.executable, "-c", PEAK, str(tmp_path)]
    taken = float(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    # 28 MiB were seen; decomposed 289, of which the scores are 256.
    assert taken < tokens**2 * heads * 4 / 2**20 / 2


# --- frozen values --------------------------------------------------------------------------------


class CountsImages(nn.Module):
    """len() of a tensor is a number, so the traced batch becomes a constant, and the exporter is silent."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + torch.ones(1, 3).expand(len(x), -1)


def test_a_batch_that_the_exporter_froze_without_a_word_is_refused(tmp_path):
    with pytest.raises(onnx.ExportMismatch, match=r"froze the batch at 2: .*len\(x\)"):
        onnx.write_onnx(CountsImages().eval(), graph_of(SIZE, 3), tmp_path / work.ONNX_FILE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("warning", "hint"),
    [
        (torch.jit.TracerWarning("Converting a tensor to a Python boolean"), True),
        (UserWarning("the value 7 was treated as a constant in the graph"), True),
        (UserWarning("dimension 0 was specialized to 2"), True),
        (UserWarning("the model is in training mode"), False),
    ],
)
def test_a_warning_of_a_frozen_value_fails_and_others_are_shown(tmp_path, monkeypatch, warning, hint):
    real = torch.onnx.export

    def warns(*arguments: object, **options: object) -> object:
        warnings.warn(warning, stacklevel=1)
        return real(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", warns)
    text = str(warning)
    with pytest.raises(onnx.ExportMismatch, match=text) if hint else pytest.warns(UserWarning, match=text):
        onnx.write_onnx(FrozenInput().eval(), graph_of(SIZE, 3), tmp_path / work.ONNX_FILE)


# --- whole or not at all --------------------------------------------------------------------------


@pytest.fixture
def request_(tiny_weights, tiny_labels, tmp_path) -> dict[str, object]:
    return {
        "architecture": "test_vit",
        "implementation": "timm",
        "image_size": SIZE,
        "labels": str(tiny_labels),
        "weights": str(tiny_weights),
        "folder": str(tmp_path / "exports" / "tiny"),
        "threads": 2,
    }


@pytest.mark.parametrize("stage", ["write_onnx", "check"])
def test_a_failure_on_the_way_leaves_nothing(request_, tiny_export, tmp_path, monkeypatch, stage):
    # The trace itself is slow and tested above: here the finished file stands in for it.
    def traced(model: nn.Module, graph: Graph, path: Path) -> None:
        shutil.copy(tiny_export / work.ONNX_FILE, path)

    monkeypatch.setattr(onnx, "write_onnx", traced)
    real = getattr(onnx, stage)

    def fails(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(onnx, stage, fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        work.export(request_)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_export_that_was_there(request_, monkeypatch):
    folder = Path(str(request_["folder"]))
    folder.mkdir(parents=True)
    (folder / "earlier").write_text("whole")

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(onnx, "write_onnx", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        work.export(request_)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert [path.name for path in folder.iterdir()] == ["earlier"]


def test_weights_that_do_not_fit_end_the_export_before_it_writes(request_, tmp_path):
    with pytest.raises(InputError, match="does not fit"):
        work.export({**request_, "architecture": "test_vit2"})
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_said_to_be_random_and_the_same_each_time(request_, tiny_export, monkeypatch):
    written = []
    monkeypatch.setattr(onnx, "check", lambda *_, **__: 0.0)
    monkeypatch.setattr(onnx, "write_onnx", lambda model, *_: written.append(model.state_dict()))
    state = torch.random.get_rng_state()
    for _ in range(2):
        assert work.export({**request_, "weights": None})["random_weights"] is True
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = written
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- the fp32 reference ---------------------------------------------------------------------------


def reference_request(tiny_weights, tiny_labels, target: Path, **changes: object) -> dict[str, object]:
    photos = [str(path) for path in sample_photos().paths[:3]]
    return {
        "architecture": "test_vit",
        "implementation": "timm",
        "task": pack(Classify(preprocess=Preprocess(image_size=SIZE), labels=read_labels(tiny_labels))),
        "labels": str(tiny_labels),
        "weights": str(tiny_weights),
        "photos": photos * 2,
        "crops_per_photo": 2,
        "seconds": 600.0,
        "minimum": 1,
        "target": str(target),
        "threads": 2,
        **changes,
    }


def test_reference_outputs_are_the_models_own(tiny_weights, tiny_labels, tmp_path):
    from vitrail.images.decode import decode
    from vitrail.images.preprocess import crops

    request = reference_request(tiny_weights, tiny_labels, tmp_path / "outputs.npz")
    assert work.reference_outputs(request) == {"photos": 6}
    found = read_arrays(tmp_path / "outputs.npz")["scores"]
    assert (found.shape, found.dtype) == ((6, 2, CLASSES), np.float32)
    np.testing.assert_array_equal(found[:3], found[3:])
    model = timm.build("test_vit", image_size=SIZE, classes=CLASSES, weights=tiny_weights)
    batch = crops(decode(request["photos"][1]), Preprocess(image_size=SIZE), 2)
    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(batch).double()).numpy()
    assert difference(found[1], expected) < 1e-5


@pytest.mark.parametrize(("minimum", "taken"), [(0, 0), (2, 2), (6, 6), (9, 6)])
def test_reference_outputs_stop_by_time_but_never_below_the_minimum(monkeypatch, minimum, taken):
    monkeypatch.setattr(work.time, "perf_counter", lambda: 10.0)
    photos = [str(number) for number in range(6)]
    assert list(work._until(photos, 9.0, minimum)) == photos[:taken]
    assert list(work._until(photos, 11.0, minimum)) == photos


def test_reference_outputs_without_time_keep_to_the_minimum(tiny_weights, tiny_labels, tmp_path):
    request = reference_request(tiny_weights, tiny_labels, tmp_path / "s.npz", seconds=-1.0, minimum=2)
    assert work.reference_outputs(request) == {"photos": 2}
    assert read_arrays(tmp_path / "s.npz")["scores"].shape == (2, 2, CLASSES)
