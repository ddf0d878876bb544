"""Our UPerNet against transformers' on a Swin, with the same random weights, in small sizes."""

from __future__ import annotations

import math

import pytest
import torch
from exports import graph_of
from safetensors.torch import save_file
from transformers import SwinConfig as TheirSwinConfig
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from vitrail import models, runtimes
from vitrail.errors import InputError
from vitrail.export import onnx
from vitrail.models.registry import SEGMENTERS
from vitrail.models.swin import Swin
from vitrail.models.swin_config import SwinConfig
from vitrail.models.upernet import VARIANTS, UPerNet, UPerNetConfig
from vitrail.vocabulary import Graph, Target, TensorSpec

WIDTH, DEPTHS, HEADS, CLASSES = 16, (2, 2, 2, 2), (2, 4, 2, 4), 5
STAGES = ["stage1", "stage2", "stage3", "stage4"]

# (image, window, fixed windows). Without fixed windows every map must divide into them, two or more a side:
# elsewhere transformers lets padding into attention, and moves a window that has no neighbour.
SIZES = [
    ((128, 192), 2, False),
    ((192, 192), 3, False),
    ((128, 192), 2, True),
    ((100, 150), 7, True),  # maps of 25 × 38, 13 × 19, 7 × 10 and 4 × 5 tokens
    ((64, 224), 7, True),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(size=(128, 192), window=2, fixed=False, **changes) -> UPerNetConfig:
    backbone = SwinConfig(
        image_size=size, window=window, fixed_windows=fixed, width=WIDTH, depths=DEPTHS, heads=HEADS,
        num_classes=0, drop_path=0.0,
    )  # fmt: skip
    heads = {"num_classes": CLASSES, "head_width": 24, "auxiliary_width": 12}
    return UPerNetConfig(backbone=backbone, **{**heads, **changes})


def reference(size=(128, 192), window=2, **changes) -> UperNetForSemanticSegmentation:
    backbone = TheirSwinConfig(
        image_size=list(size), window_size=window, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS,
        drop_path_rate=0.0, out_features=STAGES,
    )  # fmt: skip
    heads = {"num_labels": CLASSES, "hidden_size": 24, "auxiliary_channels": 12}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **{**heads, **changes}))
    return randomised(model.double().eval())


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                noise = 0.5 + noise.square()
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif value.ndim > 1 and "table" not in name:
                noise = noise / math.sqrt(value[0].numel())
            value.copy_(noise)
    return model


def loaded(theirs: torch.nn.Module, of: UPerNetConfig) -> UPerNet:
    model = UPerNet(of).double().eval()
    models.load_weights(model, theirs.state_dict())
    return model


def images(size, batch=2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("size", "window", "fixed"), SIZES)
def test_equals_transformers(size, window, fixed):
    theirs = reference(size, window)
    model, x = loaded(theirs, config(size, window, fixed)), images(size)
    with torch.no_grad():
        expected = theirs(pixel_values=x).logits
        maps = theirs.backbone(x).feature_maps
        auxiliary = torch.nn.functional.interpolate(theirs.auxiliary_head(maps), size, mode="bilinear")
        for found, wanted in zip(model.pyramid(x), maps, strict=True):
            assert relative(found, wanted) < 1e-9
        assert relative(model(x), expected) < 1e-9
        both = model.forward_both(x)
        assert relative(both.scores_BKHW, expected) < 1e-9
        assert relative(both.auxiliary_BKHW, auxiliary) < 1e-9
    # With gradients Swin takes maps whole.
    assert relative(model(x), expected) < 1e-9
    with torch.no_grad():
        narrow = model.float().forward_both(x.float())
        assert relative(narrow.scores_BKHW, expected) < 1e-5
        assert relative(narrow.auxiliary_BKHW, auxiliary) < 1e-5


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ({"auxiliary_concat": True}, {"auxiliary_concat_input": True}),
        ({"auxiliary_depth": 2, "pool_scales": (1, 4)}, {"auxiliary_num_convs": 2, "pool_scales": [1, 4]}),
    ],
)
def test_other_heads_equal_transformers(ours, others):
    size = (128, 128)
    theirs = reference(size, **others)
    model, x = loaded(theirs, config(size, **ours)), images(size, 1)
    with torch.no_grad():
        assert relative(model(x), theirs(pixel_values=x).logits) < 1e-9
        auxiliary = theirs.auxiliary_head(theirs.backbone(x).feature_maps)
        auxiliary = torch.nn.functional.interpolate(auxiliary, size, mode="bilinear")
        assert relative(model.forward_both(x).auxiliary_BKHW, auxiliary) < 1e-9


def test_a_training_step_equals_transformers():
    """Loss of both heads, gradients, and the batch norms' running figures."""
    size = (128, 128)
    theirs = reference(size)
    model, x = loaded(theirs, config(size)).train(), images(size)
    labels = torch.randint(0, CLASSES, (2, *size), generator=torch.Generator().manual_seed(3))
    expected = theirs.train()(pixel_values=x, labels=labels).loss
    expected.backward()
    found = model.forward_both(x)
    entropy = torch.nn.functional.cross_entropy
    loss = entropy(found.scores_BKHW, labels) + 0.4 * entropy(found.auxiliary_BKHW, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    wanted = theirs.backbone.swin.embeddings.patch_embeddings.projection.weight.grad
    assert relative(model.backbone.patch_embed.proj.weight.grad, wanted) < 1e-7
    for name in ("running_mean", "running_var"):
        ours, other = (getattr(m.decode_head.fpn_bottleneck.batch_norm, name) for m in (model, theirs))
        assert relative(ours, other) < 1e-9


def test_any_size_is_labelled_whole():
    model = UPerNet(config()).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 75, 110)).shape == (1, CLASSES, 75, 110)


# --- weights --------------------------------------------------------------------------------------


def test_files_with_older_names_and_tables_are_read(tmp_path):
    """As published: the backbone without `swin.`, q, k and v as transformers 4 named them."""
    theirs = reference()
    state = {}
    for name, value in theirs.state_dict().items():
        if name.startswith("backbone.swin.layernorm") or name.endswith("num_batches_tracked"):
            continue
        name = name.replace("backbone.swin.", "backbone.")
        for new, old in (
            ("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
            ("attention.relative_position_bias.", "attention.self."),
            (".mlp.fc1", ".intermediate.dense"), (".mlp.fc2", ".output.dense"),
        ):  # fmt: skip
            name = name.replace(new, old)
        state[name] = value.clone()
    assert "backbone.encoder.layers.0.blocks.1.attention.self.query.weight" in state
    save_file(state, tmp_path / "upernet.safetensors")
    model = UPerNet(config()).double().eval()
    models.load_weights(model, tmp_path / "upernet.safetensors")
    x = images((128, 192), 1)
    with torch.no_grad():
        assert relative(model(x), theirs(pixel_values=x).logits) < 1e-9


def test_a_tensor_too_few_or_too_many_is_named():
    state = reference().state_dict()
    few = {name: value for name, value in state.items() if name != "decode_head.bottleneck.conv.weight"}
    with pytest.raises(InputError, match=r"missing decode_head\.bottleneck\.conv\.weight"):
        models.load_weights(UPerNet(config()), few)
    with pytest.raises(InputError, match=r"unexpected decode_head\.extra"):
        models.load_weights(UPerNet(config()), {**state, "decode_head.extra": torch.zeros(1)})


def test_the_auxiliary_head_may_be_left_out_and_the_classifier_replaced():
    theirs = reference()
    bare = UPerNet(config(auxiliary=False)).double()
    models.load_weights(bare.eval(), theirs.state_dict())
    assert bare.forward_both(images((128, 192), 1)).auxiliary_BKHW is None
    other = UPerNet(config(num_classes=3)).double()
    with pytest.raises(InputError, match="only the head differs: load with replace_head=True"):
        models.load_weights(other, theirs.state_dict())
    models.load_weights(other, theirs.state_dict(), replace_head=True)
    assert torch.equal(other.decode_head.bottleneck.conv.weight, bare.decode_head.bottleneck.conv.weight)
    other.reset_head(7)
    assert other.eval()(images((128, 192), 1)).shape == (1, 7, 128, 192)


def test_a_trained_swin_can_be_handed_in():
    swin = Swin(config().backbone)
    assert UPerNet(config(), backbone=swin).backbone is swin
    swin.reset_head(5)
    with pytest.raises(InputError, match="does not match the config"):
        UPerNet(config(), backbone=swin)


# --- sizes ----------------------------------------------------------------------------------------


def test_published_sizes_are_transformers():
    assert set(VARIANTS) == {name for name, place in SEGMENTERS.items() if place.endswith(":UPerNet")}
    for name in ("upernet_swin_tiny", "upernet_swin_base"):
        c = VARIANTS[name]
        assert c.backbone.fixed_windows
        with torch.device("meta"):
            backbone = TheirSwinConfig(
                embed_dim=c.backbone.width, depths=c.backbone.depths, num_heads=c.backbone.heads,
                window_size=c.backbone.window, out_features=STAGES,
            )  # fmt: skip
            theirs = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=150))
            model = models.build(name)
        models.load_weights(model, theirs.state_dict())
    assert sum(p.numel() for p in models.build("upernet_swin_nano").parameters()) < 5e6


def test_build_takes_size_classes_and_fields():
    model = models.build("upernet_swin_nano", image_size=(128, 256), num_classes=3, auxiliary=False)
    assert model(torch.zeros(1, 3, 128, 256)).shape == (1, 3, 128, 256)
    with pytest.raises(InputError, match="at least two classes"):
        models.build("upernet_swin_nano", num_classes=1)
    with pytest.raises(InputError, match="pool_scales of at least 1"):
        models.build("upernet_swin_nano", pool_scales=())
    with pytest.raises(InputError, match="give it num_classes=0"):
        UPerNetConfig(backbone=SwinConfig())


@pytest.mark.slow
def test_its_export_equals_the_model(tmp_path):
    size = 128
    model = loaded(reference((size, size)), config((size, size))).float().requires_grad_(False)
    graph = Graph(
        entry="model.onnx",
        inputs=graph_of(size, CLASSES).inputs,
        outputs=(TensorSpec(name="scores", shape=("B", CLASSES, size, size)),),
    )
    onnx.write_onnx(model, graph, tmp_path / graph.entry)
    assert onnx.check(model, tmp_path, graph) < onnx.EXPORT_TOLERANCE
    target = Target(runtime="onnxruntime", precision="fp32")
    runner = runtimes.load(tmp_path, graph, target, sizes={"B": 1}, threads=1)
    x = images((size, size), 1).float()
    with torch.no_grad():
        found = torch.from_numpy(runner.run({graph.inputs[0].name: x.numpy()})["scores"])
        assert relative(found, model(x)) < 1e-5
