"""Our ViT against timm, torchvision and transformers, with every parameter randomised."""

import dataclasses
import re

import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
import transformers
from exports import graph_of
from safetensors.torch import load_file
from timm.models import vision_transformer as timm_vit
from torch import nn

from vitrail.errors import InputError
from vitrail.export.onnx import write_onnx
from vitrail.models import inplace, load_weights
from vitrail.models.registry import MODELS, OWN
from vitrail.models.vit import VARIANTS, Block, ViT, ViTConfig, resample_positions

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64, "patch_size": 8, "num_classes": 5}
SMALL_TIMM = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 8,
    "num_classes": 5,
    "dynamic_img_size": True,
}
HUGGING_FACE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and buffer random, factors around 1; in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            matrix = value.ndim >= 2 and "token" not in name and "pos" not in name
            value.copy_(noise * value[0].numel() ** -0.5 if matrix else 0.5 + 0.5 * noise)
    return model


def small(**changes) -> ViT:
    return randomised(ViT(ViTConfig(**{**SMALL, "image_size": (32, 32), **changes})), seed=1)


def twins(ours: dict, theirs: dict, size: tuple[int, int] = (32, 32)) -> tuple[ViT, nn.Module]:
    reference = randomised(timm_vit.VisionTransformer(**{**SMALL_TIMM, "img_size": size, **theirs}))
    model = small(image_size=size, **ours)
    load_weights(model, reference.state_dict())
    return model, reference


def images(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-3, "the reference is constant: nothing would be compared"
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# --- the published sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in OWN])
def test_names_and_shapes_are_timms(name):
    with torch.device("meta"):
        assert shapes(ViT(VARIANTS[name])) == shapes(timm.create_model(name))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in OWN])
def test_a_small_one_of_each_computes_what_timms_does(name):
    """Activations, pooling, epsilons and orders do not show in shapes."""
    config = VARIANTS[name]
    size = (2 * config.patch_size, 3 * config.patch_size)
    reduced = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "num_classes": 5}
    reduced_timm = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    reference = randomised(timm.create_model(name, img_size=size, **reduced_timm))
    model = ViT(dataclasses.replace(config, image_size=size, **reduced)).double().eval()
    load_weights(model, reference.state_dict())
    batch = images(2, 3, *size)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch))
        assert_equal(
            model.forward_features(batch), reference.forward_head(reference.forward_features(batch), True)
        )


@pytest.mark.parametrize("name", [name for name in VARIANTS if name in OWN])
def test_our_small_variants_equal_timm_s_vit_of_their_size(name):
    """No one publishes them, but timm's code can be built to their size."""
    config = VARIANTS[name]
    reference = randomised(
        timm_vit.VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=10,
            class_token=False,
            global_pool="avg",
        )
    )
    model = ViT(config).double().eval()
    load_weights(model, reference.state_dict())
    batch = images(2, 3, *config.image_size)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch))


def test_the_light_table_lists_these_names():
    assert {name for name, target in MODELS.items() if target.endswith(":ViT")} == set(VARIANTS)


# --- the architecture ---------------------------------------------------------------------------------

KINDS = {
    "class token": ({}, {}),
    "qk norm": ({"qk_norm": True}, {"qk_norm": True}),
    "mean": ({"pool": "avg", "norm_after_pool": True}, {"global_pool": "avg"}),
    "registers": (
        {"register_tokens": 3, "position_covers_prefix": False, "layer_scale": 0.1},
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
    ),
    "attention pooling": (
        {"class_token": False, "pool": "map", "activation": "gelu_tanh"},
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    ),
    "clip": (
        {"pre_norm": True, "activation": "quick_gelu", "norm_eps": 1e-5},
        {
            "pre_norm": True,
            "act_layer": "quick_gelu",
            "norm_layer": lambda *a, **k: nn.LayerNorm(*a, **{**k, "eps": 1e-5}),
        },
    ),
    "swiglu, no bias": (
        {"mlp": "swiglu", "qkv_bias": False},
        {"mlp_layer": timm_vit.SwiGLUPacked, "act_layer": "silu", "qkv_bias": False},
    ),
}


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (24, 56), (8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_image_size_equals_timm(kind, size):
    model, reference = twins(*KINDS[kind])
    batch = images(3, 3, *size)
    with torch.inference_mode():
        assert_equal(model(batch), reference(batch))
        assert_equal(model.forward_tokens(batch), reference.forward_features(batch))
        model, reference = model.float(), reference.float()
        assert_equal(model(batch.float()), reference(batch.float()), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_timms(kind):
    model, reference = twins(*KINDS[kind])
    batch = images(2, 3, 24, 40)
    for net in (model, reference):
        net(batch).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[name].grad
        assert (parameter.grad - expected).norm() <= 1e-8 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("kernel", ["naive", "fused", "blocked"])
def test_kernels_agree(kernel):
    model = small().float()
    other = ViT(dataclasses.replace(model.config, attention=kernel)).eval()
    other.load_state_dict(model.state_dict())
    batch = images(2, 3, 32, 32).float()
    with torch.no_grad():
        assert_equal(other(batch), model(batch), 1e-5)


def test_inference_in_parts_equals_the_path_of_training(monkeypatch):
    for kind in ("class token", "swiglu, no bias", "clip", "attention pooling"):
        model = twins(*KINDS[kind])[0].float()
        batch = images(2, 3, 40, 40).float()
        expected = model(batch)
        # 7 rows a part, which divides neither 25 patches nor 26 tokens
        monkeypatch.setattr(inplace, "ROWS_BYTES", 7 * 64 * 4)
        with torch.inference_mode():
            assert_equal(model(batch), expected.detach(), 1e-5)
        monkeypatch.undo()


def test_hidden_activations_stay_small_in_inference(monkeypatch):
    seen = []
    monkeypatch.setattr(inplace, "ROWS_BYTES", 10 * 64 * 8)
    model = small()
    for block in model.blocks:
        block.mlp.fc1.register_forward_hook(lambda _module, _args, out: seen.append(out.numel() // 64))
    with torch.no_grad():
        model(images(2, 3, 64, 64))
    assert max(seen) <= 10
    assert sum(seen) == 2 * 2 * 65


def test_nothing_that_others_hold_is_written_over():
    block = Block(32, 2, layer_scale=0.5).double().eval()
    tokens = images(2, 9, 32)
    before = tokens.clone()
    with torch.no_grad():
        block(tokens)
    assert torch.equal(tokens, before)
    model, seen = small(), []
    for each in model.blocks:
        each.register_forward_hook(lambda _module, _args, out: seen.append((out, out.clone())))
        each.attn.register_forward_hook(lambda _module, _args, out: seen.append((out, out.clone())))
    batch = images(2, 3, 32, 32)
    copy = batch.clone()
    with torch.no_grad():
        model(batch)
    assert torch.equal(batch, copy)
    assert all(torch.equal(now, then) for now, then in seen)
    assert len(seen) == 4


def test_drop_path_equals_timms():
    model, reference = twins({"drop_path": 0.6, "depth": 3}, {"drop_path_rate": 0.6, "depth": 3})
    batch = images(16, 3, 32, 32)
    torch.manual_seed(5)
    expected = reference.train()(batch)
    torch.manual_seed(5)
    found = model.train()(batch)
    assert_equal(found.detach(), expected.detach(), 1e-7)
    with torch.no_grad():
        assert (found - model.eval()(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_equal_timms(norm):
    model, reference = twins({"depth": 4, "register_tokens": 2}, {"depth": 4, "reg_tokens": 2})
    batch = images(2, 3, 32, 48)
    with torch.no_grad():
        expected = reference.forward_intermediates(batch, [1, 3], norm=norm, intermediates_only=True)
        for indices in ([1, 3], [-3, -1]):
            found = model.forward_intermediates(batch, indices, norm=norm)
            assert len(found) == 2
            for ours, theirs in zip(found, expected, strict=True):
                assert_equal(ours, theirs)
                assert ours.is_contiguous()
        assert len(model.forward_intermediates(batch)) == 4
    with pytest.raises(InputError, match="blocks 0 to 3"):
        model.forward_intermediates(batch, [4])


def test_attention_maps_equal_what_timms_unfused_path_multiplies():
    model, reference = twins(*KINDS["qk norm"])
    expected = []
    for block in reference.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, _args, out: expected.append(out))
    batch = images(2, 3, 24, 32)
    with torch.no_grad():
        reference(batch)
        found = model.attention_maps(batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal(ours, theirs)


def test_without_a_head_the_model_gives_its_features():
    model = small()
    bare = ViT(dataclasses.replace(model.config, num_classes=0)).double().eval()
    load_weights(bare, {k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(bare(batch), model.forward_features(batch))
    bare.reset_head(7)
    assert bare(batch).shape == (2, 7)
    assert bare.config.num_classes == 7
    assert bare.head.weight.dtype is torch.float64


def test_built_on_the_meta_device_and_loaded():
    model = small().float()
    with torch.device("meta"):
        empty = ViT(model.config)
    load_weights(empty.eval(), model.state_dict())
    batch = images(1, 3, 40, 32).float()
    with torch.no_grad():
        assert torch.equal(empty(batch), model(batch))


# --- checkpoints --------------------------------------------------------------------------------------


def saved(model: nn.Module, folder) -> dict[str, torch.Tensor]:
    """What transformers writes: the names of version 4."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision(old_names):
    reference = randomised(torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5))
    state = reference.state_dict()
    if old_names:
        state = {re.sub(r"mlp\.0", "mlp.linear_1", key): value for key, value in state.items()}
        state = {re.sub(r"mlp\.3", "mlp.linear_2", key): value for key, value in state.items()}
    model = small()
    load_weights(model, state)
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch))


@pytest.mark.parametrize("from_file", [False, True])
def test_transformers_vit(from_file, tmp_path):
    config = transformers.ViTConfig(**HUGGING_FACE, num_labels=5)
    reference = randomised(transformers.ViTForImageClassification(config))
    model = small(norm_eps=config.layer_norm_eps)
    load_weights(model, saved(reference, tmp_path) if from_file else reference.state_dict())
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch).logits)
        assert_equal(model.forward_tokens(batch), reference.vit(batch).last_hidden_state)


def test_transformers_vit_without_a_head(tmp_path):
    config = transformers.ViTConfig(**HUGGING_FACE)
    reference = randomised(transformers.ViTModel(config))
    model = small(norm_eps=config.layer_norm_eps, num_classes=0)
    load_weights(model, saved(reference, tmp_path))
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model.forward_tokens(batch), reference(batch).last_hidden_state)


@pytest.mark.parametrize("from_file", [False, True])
def test_transformers_deit_reads_its_distillation_token_as_a_register(from_file, tmp_path):
    config = transformers.DeiTConfig(**HUGGING_FACE, num_labels=5)
    reference = randomised(transformers.DeiTForImageClassification(config))
    model = small(norm_eps=config.layer_norm_eps, register_tokens=1)
    load_weights(model, saved(reference, tmp_path) if from_file else reference.state_dict())
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch).logits)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_transformers_dinov2(swiglu, registers, from_file, tmp_path):
    options = {**HUGGING_FACE, "mlp_ratio": 2, "use_swiglu_ffn": swiglu}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        reference = randomised(transformers.Dinov2WithRegistersModel(config))
    else:
        reference = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
    # transformers rounds two thirds of the hidden width up to a multiple of 8, for each half
    mlp = {"mlp": "swiglu", "mlp_width": 2 * 48} if swiglu else {}
    batch = images(2, 3, 32, 32)
    for covers in (True, False):
        model = small(
            layer_scale=1.0,
            register_tokens=registers,
            position_covers_prefix=covers,
            num_classes=0,
            **mlp,
        )
        load_weights(model, saved(reference, tmp_path) if from_file else reference.state_dict())
        with torch.no_grad():
            assert_equal(model.forward_tokens(batch), reference(batch).last_hidden_state)
            assert_equal(model(batch), reference(batch).pooler_output)


@pytest.mark.parametrize("from_file", [False, True])
def test_transformers_siglip(from_file, tmp_path):
    config = transformers.SiglipVisionConfig(**HUGGING_FACE)
    reference = randomised(transformers.SiglipVisionModel(config))
    model = small(class_token=False, pool="map", num_classes=0, activation="gelu_tanh")
    state = saved(reference, tmp_path) if from_file else reference.state_dict()
    # the files of version 4 have a prefix
    load_weights(
        model, {f"vision_model.{key}": value for key, value in state.items()} if from_file else state
    )
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch).pooler_output)


def published_dinov2(config: ViTConfig, side: int) -> dict[str, torch.Size]:
    """Keys and shapes of Meta's files, dinov2_vit*14_pretrain.pth and dinov2_vit*14_reg4_pretrain.pth."""
    width, hidden = config.width, config.mlp_width or 4 * config.width
    found = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if config.register_tokens:
        found["register_tokens"] = (1, config.register_tokens, width)
    first, second = ("w12", "w3") if config.mlp == "swiglu" else ("fc1", "fc2")
    inner = hidden // 2 if config.mlp == "swiglu" else hidden
    for b in range(config.depth):
        for part, shape in (
            ("norm1", (width,)),
            ("attn.qkv", (3 * width, width)),
            ("attn.proj", (width, width)),
            ("norm2", (width,)),
            (f"mlp.{first}", (hidden, width)),
            (f"mlp.{second}", (width, inner)),
        ):
            found[f"blocks.{b}.{part}.weight"] = shape
            found[f"blocks.{b}.{part}.bias"] = shape[:1]
        found[f"blocks.{b}.ls1.gamma"] = found[f"blocks.{b}.ls2.gamma"] = (width,)
    return {name: torch.Size(shape) for name, shape in found.items()}


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_giant_patch14_dinov2",
        "vit_giant_patch14_reg4_dinov2",
    ],
)
def test_the_published_keys_of_dinov2_fit(name):
    config = VARIANTS[name]
    with torch.device("meta"):
        model = ViT(config)
        state = {key: torch.empty(shape) for key, shape in published_dinov2(config, 37).items()}
        load_weights(model, state)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_metas_dinov2_becomes_what_timm_makes_of_it(swiglu, registers, side):
    mlp, mlp_timm = ({}, {})
    if swiglu:
        mlp, mlp_timm = {"mlp": "swiglu"}, {"mlp_layer": timm_vit.SwiGLUPacked, "act_layer": "silu"}
    model = small(
        layer_scale=1.0,
        register_tokens=registers,
        position_covers_prefix=not registers,
        num_classes=0,
        **mlp,
    )
    reference = timm_vit.VisionTransformer(
        **{**SMALL_TIMM, "num_classes": 0, "img_size": 32, "init_values": 1.0},
        reg_tokens=registers,
        no_embed_class=bool(registers),
        **mlp_timm,
    )
    state = {
        key: images(*shape, seed=i)
        for i, (key, shape) in enumerate(published_dinov2(model.config, side).items())
    }
    expected = timm_vit.checkpoint_filter_fn(dict(state), reference)
    load_weights(model, state)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    reference.double().eval().load_state_dict(expected)
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), reference(batch))


def test_deit3_in_its_own_names():
    model = small(layer_scale=1.0)
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): v for key, v in model.state_dict().items()}
    other = small(layer_scale=1.0)
    nn.init.zeros_(other.blocks[0].ls1.gamma)
    load_weights(other, state)
    assert torch.equal(other.blocks[0].ls1.gamma, model.blocks[0].ls1.gamma)


@pytest.mark.parametrize(("covers", "registers"), [(True, 0), (True, 2), (False, 2)])
def test_a_table_of_another_size_is_resampled_as_timm_does(covers, registers):
    source = small(register_tokens=registers, position_covers_prefix=covers)
    target = small(register_tokens=registers, position_covers_prefix=covers, image_size=(24, 72))
    reference = timm_vit.VisionTransformer(
        **SMALL_TIMM, img_size=(24, 72), reg_tokens=registers, no_embed_class=not covers
    )
    expected = timm_vit.checkpoint_filter_fn(source.state_dict(), reference)["pos_embed"]
    load_weights(target, source.state_dict())
    assert torch.equal(target.pos_embed, expected)
    # and it is the same as resampling on the way
    batch = images(1, 3, 24, 72)
    with torch.no_grad():
        assert_equal(target(batch), source(batch))


def test_a_table_of_the_models_own_grid_is_kept():
    model = small(image_size=(16, 64))
    other = small(image_size=(16, 64))
    nn.init.zeros_(other.pos_embed)
    load_weights(other, model.state_dict(), image_size=(16, 64))
    assert torch.equal(other.pos_embed, model.pos_embed)
    oblong = small(image_size=(16, 48))
    load_weights(small(image_size=(16, 48)), oblong.state_dict())  # 12 patches are no square's
    with pytest.raises(InputError, match="no square grid"):
        load_weights(small(image_size=(24, 24)), oblong.state_dict())
    load_weights(small(image_size=(24, 24)), oblong.state_dict(), image_size=(16, 48))


def test_resampling_to_the_same_size_changes_nothing():
    table = images(1, 2 + 12, 8)
    assert_equal(resample_positions(table, (3, 4), (3, 4), prefix=2), table, 1e-6)


# --- compiled and exported ----------------------------------------------------------------------------


@pytest.mark.slow
def test_compiles_whole_and_once():
    model = small().float()
    graphs = []

    def counting(graph, _example):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    with torch.no_grad():
        for count in (2, 3, 7):
            batch = images(count, 3, 32, 32).float()
            torch._dynamo.mark_dynamic(batch, 0)
            assert_equal(compiled(batch), model(batch), 1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"), [("class token", 32), ("registers", 48), ("attention pooling", 48)]
)
def test_exported(kind, size, tmp_path):
    model = small(**{**KINDS[kind][0], "image_size": (size, size)}).float()
    path = tmp_path / "model.onnx"
    write_onnx(model, graph_of(size, model.config.num_classes), path)
    graph = onnx.load(path).graph
    assert not {"Resize", "If", "Loop"} & {node.op_type for node in graph.node}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        batch = images(count, 3, size, size).float()
        (found,) = session.run(None, {"images": batch.numpy()})
        with torch.no_grad():
            assert_equal(torch.from_numpy(found), model(batch), 1e-5)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"images\[None\]"),
        ((2, 1, 32, 32), "takes 3 channels and the images have 1"),
        ((0, 3, 32, 32), "empty"),
        ((1, 3, 30, 45), "nearest is 32 × 48"),
        ((1, 3, 4, 3), "nearest is 8 × 8"),
        ((1, 3, 0, 32), "nearest is 8 × 32"),
    ],
)
def test_bad_images(shape, message):
    model = small()
    for run in (model, model.forward_intermediates, model.attention_maps):
        with pytest.raises(InputError, match=message):
            run(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "5 heads"),
        ({"pool": "max"}, "token, avg, map"),
        ({"mlp": "moe"}, "plain, swiglu"),
        ({"activation": "relu6"}, "quick_gelu"),
        ({"class_token": False}, "pool='avg'"),
        ({"attention": "fast"}, "naive"),
        ({"image_size": (225, 224)}, "nearest is 224 × 224"),
        ({"mlp": "swiglu", "mlp_width": 63}, "even number"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(InputError, match=message):
        ViT(ViTConfig(**{**SMALL, **changes}))
