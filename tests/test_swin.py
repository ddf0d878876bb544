"""Swin v1 and v2 against timm, torchvision, transformers and loops written from the papers."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from exports import graph_of
from timm.models import swin_transformer as timm_v1
from timm.models import swin_transformer_v2 as timm_v2
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.export import onnx as export
from vitrail.models import load_weights, swin_inplace, window_attention, windows
from vitrail.models.offsets import relative_index
from vitrail.models.registry import OWN
from vitrail.models.swin import VARIANTS, Swin, SwinConfig
from vitrail.runtimes.openvino import core
from vitrail.weights.dialects import detect

SMALL = {"width": 16, "depths": (2, 2, 3, 2), "heads": (2, 4, 2, 4), "num_classes": 5, "drop_path": 0.0}
THEIRS = {"embed_dim": 16, "depths": (2, 2, 3, 2), "num_heads": (2, 4, 2, 4), "num_classes": 5}
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(version: int, size: tuple[int, int], **changes: object) -> Swin:
    return Swin(SwinConfig(**{"version": version, "image_size": size, **SMALL, **changes})).double().eval()  # type: ignore[arg-type]


def timms(version: int, size: tuple[int, int], **changes: object) -> torch.nn.Module:
    kind = timm_v1.SwinTransformer if version == 1 else timm_v2.SwinTransformerV2
    arguments = {"img_size": size, "window_size": 7, "drop_path_rate": 0.0, **THEIRS, **changes}
    return randomised(kind(**arguments).double().eval())


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if "logit_scale" in name:
                # Some above ln 100, where it is clamped.
                noise = 3.5 + 1.5 * noise
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif value.ndim > 1 and "table" not in name:
                noise = noise / math.sqrt(value[0].numel())
            value.copy_(noise)
    return model


def images(batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# The maps of all stages divide by the windows at these sizes: elsewhere timm lets padding into attention.
# Among them: rows and columns that differ, odd maps merged, maps smaller than the window in one axis or both.
@VERSIONS
@pytest.mark.parametrize(
    ("size", "window"),
    [((112, 224), 7), ((56, 56), 7), ((32, 64), 8), ((96, 48), 3), ((96, 192), (3, 6))],
)
def test_equals_timm(version, size, window):
    reference = timms(version, size, window_size=window)
    model = ours(version, size, window=window)
    model.load_state_dict(reference.state_dict())
    x = images(2, size)
    expected = reference(x)
    with torch.no_grad():
        assert relative(model(x), expected) < 1e-9
        maps = reference.forward_intermediates(x, intermediates_only=True)
        for found, wanted in zip(model.forward_pyramid(x), maps, strict=True):
            assert relative(found, wanted) < 1e-9
        features = reference.forward_head(reference.forward_features(x), pre_logits=True)
        assert relative(model.forward_features(x), features) < 1e-9
        assert relative(model.float()(x.float()), expected) < 1e-5
    # With gradients the map is taken whole.
    assert relative(model.double()(x), expected) < 1e-5


@VERSIONS
def test_gradients_equal_timms(version):
    size = (56, 112)
    reference = timms(version, size)
    model = ours(version, size)
    model.load_state_dict(reference.state_dict())
    x, y = images(2, size).requires_grad_(), images(2, size).requires_grad_()
    reference(x).square().sum().backward()
    model(y).square().sum().backward()
    assert relative(y.grad, x.grad) < 1e-9
    expected = dict(reference.named_parameters())
    for name, value in model.named_parameters():
        assert relative(value.grad, expected[name].grad) < 1e-4, name


def test_window_shrinks_as_timms_and_the_table_is_resampled():
    # Trained with window 7; at 96 × 64 the maps are 24 × 16, 12 × 8, 6 × 4 and 3 × 2.
    trained = timms(1, (224, 224), window_size=8)
    small = timms(1, (96, 64), window_size=8)
    state = timm_v1.checkpoint_filter_fn(trained.state_dict(), small)
    small.load_state_dict(state)
    x = images(2, (96, 64))
    model = ours(1, (96, 64), window=8)
    load_weights(model, trained.state_dict())
    mine = model.state_dict()
    for name, value in state.items():
        assert torch.allclose(mine[name], value, rtol=1e-5, atol=1e-5), name
    # The same by a model that is built for the trained size and shown the smaller one.
    wide = ours(1, (224, 224), window=8)
    load_weights(wide, trained.state_dict())
    with torch.no_grad():
        assert relative(wide(x), model(x)) < 1e-6


def attention_of_real_tokens(block, map_hwD, plan, version):
    """One block by loops: each token attends to the real tokens of its window and region, nothing else."""
    height, width, depth = map_hwD.shape
    attn, heads = block.attn, block.attn.heads
    rows, columns = plan.window
    down, right = plan.shift if block.shifts else (0, 0)
    x = map_hwD.reshape(-1, depth)
    normed = block.norm1(x) if version == 1 else x
    bias = attn.qkv.bias
    if version == 2:
        bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    q, k, v = F.linear(normed, attn.qkv.weight, bias).view(-1, 3, heads, depth // heads).unbind(1)
    if version == 1:
        table = attn.relative_position_bias_table
        q = q * q.shape[-1] ** -0.5
    else:
        q = F.normalize(q, dim=-1) * attn.logit_scale.clamp(max=math.log(100)).exp().view(1, heads, 1)
        k = F.normalize(k, dim=-1)

    def place(row, column):
        # Shifted windows start `down` rows later; what lies before the first window wraps into the last one.
        padded_h, padded_w = plan.padded
        r, c = (row - down) % padded_h, (column - right) % padded_w
        return (r // rows, c // columns), (r % rows, c % columns), (row < down, column < right)

    def offset_bias(dy, dx):
        if version == 1:
            return table[(dy + rows - 1) * (2 * columns - 1) + dx + columns - 1]
        scaled = torch.tensor(
            [8 * d / max(m - 1, 1) for d, m in ((dy, rows), (dx, columns))], dtype=torch.float32
        )
        log = scaled.sign() * torch.log2(scaled.abs() + 1) / 3
        return 16 * torch.sigmoid(attn.cpb_mlp(log.double()))

    cells = [(r, c) for r in range(height) for c in range(width)]
    places = [place(r, c) for r, c in cells]
    out = torch.zeros_like(x)
    for i, (window, (r, c), region) in enumerate(places):
        seen = [j for j, other in enumerate(places) if other[0] == window]
        penalty = torch.tensor([0.0 if places[j][2] == region else -100.0 for j in seen]).double()
        bias_SH = torch.stack([offset_bias(r - places[j][1][0], c - places[j][1][1]) for j in seen])
        scores_HS = (q[i][:, None] * k[seen].transpose(0, 1)).sum(-1) + bias_SH.T + penalty
        out[i] = torch.einsum("hs,shd->hd", scores_HS.softmax(-1), v[seen]).reshape(-1)
    mixed = attn.proj(out)
    if version == 1:
        x = x + mixed
        return (x + block.mlp(block.norm2(x))).view(map_hwD.shape)
    x = x + block.norm1(mixed)
    return (x + block.norm2(block.mlp(x))).view(map_hwD.shape)


@VERSIONS
@pytest.mark.parametrize("size", [(26, 45), (33, 36)])
def test_padding_does_not_leak(version, size):
    """Sizes that divide by neither patch nor window, against loops over the real tokens."""
    two = {"depths": (2, 3), "heads": (2, 4), "pretrained_window": (0, 0)}
    model = randomised(ours(version, size, window=(3, 4), **two))
    x = images(1, size)
    padded = False
    with torch.no_grad():
        found = model.forward_pyramid(x)
        patches = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
        map_hwD = model.patch_embed.norm(model.patch_embed.proj(patches)[0].permute(1, 2, 0))
        for index, (stage, tables) in enumerate(zip(model.layers, model._tables.at(*size), strict=True)):
            if index:
                even = F.pad(map_hwD, (0, 0, 0, map_hwD.shape[1] % 2, 0, map_hwD.shape[0] % 2))
                four = [even[r::2, c::2] for c in (0, 1) for r in (0, 1)]
                map_hwD = stage.downsample(torch.cat(four, -1))
            for block in stage.blocks:
                map_hwD = attention_of_real_tokens(block, map_hwD, tables.plan, version)
            padded |= tables.plan.has_padding
            assert relative(found[index][0].permute(1, 2, 0), map_hwD) < 1e-9
        assert padded
        pooled = model.norm(map_hwD).mean((0, 1))
        assert relative(model(x)[0], model.head.fc(pooled)) < 1e-9
    assert relative(model(x), model.head.fc(pooled)[None]) < 1e-9


@VERSIONS
def test_what_padding_holds_does_not_matter(version):
    size = (90, 134)
    model = randomised(ours(version, size))
    x = images(2, size)
    key = (*size, "cpu")
    with torch.no_grad():
        expected = model(x)
        changed = []
        for tables in model._tables.at(*size):
            source = tables.enter_regular_N4.clone()
            padding = ~tables.plan.regular.real_N
            source[padding] = torch.randint(0, int(source.max()) + 1, source[padding].shape)
            changed.append(dataclasses.replace(tables, enter_regular_N4=source))
        assert any((~t.plan.regular.real_N).any() for t in changed)
        model._tables.by_size[key] = tuple(changed)
        assert torch.equal(model(x), expected)


@VERSIONS
def test_chunks_do_not_change_the_numbers(version, monkeypatch):
    size = (90, 134)
    model = randomised(ours(version, size))
    x = images(3, size)
    expected = model(x).detach()
    for tokens in ((1, 49), (1, 100), (400, 1000), (10**6, 10**6)):
        monkeypatch.setattr(swin_inplace, "CHUNK_TOKENS", tokens)
        monkeypatch.setattr(swin_inplace, "CHUNK_BYTES", 1)
        with torch.no_grad():
            assert relative(model(x), expected) < 1e-12
    with torch.inference_mode():
        assert relative(model(x), expected) < 1e-12
    assert torch.equal(x, images(3, size))


@VERSIONS
@pytest.mark.parametrize("kernel", ["naive", "math", "flash"])
def test_kernels_agree(version, kernel):
    model = randomised(ours(version, (56, 84)))
    other = ours(version, (56, 84), attention=kernel)
    other.load_state_dict(model.state_dict())
    x = images(1, (56, 84))
    with torch.no_grad():
        assert relative(other(x), model(x)) < 1e-9


@VERSIONS
def test_bf16_is_close(version):
    model = randomised(ours(version, (112, 112)))
    x = images(2, (112, 112))
    with torch.no_grad():
        expected = model.forward_features(x)
        found = copy.deepcopy(model).bfloat16().forward_features(x.bfloat16())
    peer = timms(version, (112, 112))
    peer.load_state_dict(model.state_dict())
    with torch.no_grad():
        theirs = peer.bfloat16()
        theirs = theirs.forward_head(theirs.forward_features(x.bfloat16()), pre_logits=True)
    assert relative(found.double(), expected) < 1.5 * relative(theirs.double(), expected) < 0.2


def test_our_small_variant_equals_timm_s_swin_of_its_size():
    """No one publishes it, but timm's code can be built to its size; patches of 2 pixels."""
    config = VARIANTS["swin_nano_patch2_window7_28"]
    reference = timm.models.SwinTransformer(
        img_size=28,
        patch_size=2,
        window_size=7,
        embed_dim=config.width,
        depths=config.depths,
        num_heads=config.heads,
        num_classes=10,
    )
    generator = torch.Generator().manual_seed(0)
    for value in reference.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    reference = reference.double().eval()
    model = Swin(config).double().eval()
    load_weights(model, reference.state_dict())
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_variants_are_timms():
    for name, config in VARIANTS.items():
        if name in OWN:
            continue
        with torch.device("meta"):
            model = Swin(config)
            reference = timm.create_model(name)
        classes = config.num_classes
        if reference.num_classes != classes:
            reference.reset_classifier(classes)
        wanted = {k: v.shape for k, v in reference.state_dict().items()}
        assert {k: v.shape for k, v in model.state_dict().items()} == wanted, name
        if config.version == 2:
            for stage, theirs, side in zip(
                model._tables.at(*config.image_size),
                reference.layers,
                config.pretrained_window,
                strict=True,
            ):
                assert theirs.blocks[0].attn.pretrained_window_size == (side, side)
                assert stage.plan.window == theirs.blocks[0].window_size
                assert stage.plan.shift == theirs.blocks[1].shift_size


def test_pretrained_window_normalises_the_offsets():
    before = (4, 4, 4, 2)
    reference = timms(2, (128, 128), window_size=8, pretrained_window_sizes=before)
    model = ours(2, (128, 128), window=8, pretrained_window=before)
    model.load_state_dict(reference.state_dict())
    x = images(1, (128, 128))
    with torch.no_grad():
        assert relative(model(x), reference(x)) < 1e-9


def test_build_on_meta_then_load():
    reference = randomised(ours(2, (64, 64)).float())
    with torch.device("meta"):
        model = Swin(reference.config)
    load_weights(model, reference.state_dict())
    x = images(1, (64, 64), torch.float32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), reference(x))


# --- dialects ---------------------------------------------------------------------------------------------


def microsoft(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The keys of the original repository's files, as its models' state dicts have them: timm computes the
    same buffers and does not save them."""
    derived = {k: v for k, v in model.named_buffers() if "relative" in k or k.endswith("attn_mask")}
    state = model.state_dict() | derived
    named: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        named[".".join(parts).replace("head.fc", "head")] = value
    return named


PUBLISHED = {
    1: (
        "patch_embed.proj.weight",
        "patch_embed.norm.bias",
        "layers.0.blocks.0.norm1.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
        "layers.0.blocks.0.attn.relative_position_index",
        "layers.0.blocks.0.attn.qkv.weight",
        "layers.0.blocks.0.attn.proj.bias",
        "layers.0.blocks.0.mlp.fc1.weight",
        "layers.0.blocks.1.attn_mask",
        "layers.0.downsample.reduction.weight",
        "layers.2.downsample.norm.weight",
        "norm.weight",
        "head.weight",
    ),
    2: (
        "layers.0.blocks.0.attn.logit_scale",
        "layers.0.blocks.0.attn.q_bias",
        "layers.0.blocks.0.attn.v_bias",
        "layers.0.blocks.0.attn.relative_coords_table",
        "layers.0.blocks.0.attn.cpb_mlp.0.weight",
        "layers.0.blocks.0.attn.cpb_mlp.2.weight",
        "layers.0.downsample.reduction.weight",
        "head.bias",
    ),
}


@VERSIONS
def test_microsofts_files(version):
    reference = timms(version, (112, 112))
    state = microsoft(reference)
    assert set(PUBLISHED[version]) <= state.keys()
    filters = timm_v1 if version == 1 else timm_v2
    reference.load_state_dict(filters.checkpoint_filter_fn(dict(state), reference))
    model = ours(version, (112, 112))
    assert detect(state, Swin.DIALECTS).name == "Microsoft's Swin"
    load_weights(model, state)
    x = images(1, (112, 112))
    with torch.no_grad():
        assert relative(model(x), reference(x)) < 1e-9


@VERSIONS
def test_torchvision(version):
    from torchvision.models import swin_transformer as theirs

    kinds = {
        1: (theirs.SwinTransformerBlock, theirs.PatchMerging),
        2: (theirs.SwinTransformerBlockV2, theirs.PatchMergingV2),
    }
    block, merging = kinds[version]
    peer = torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2, 3, 2], [2, 4, 2, 4], [4, 4], num_classes=5, block=block, downsample_layer=merging
    )
    peer = randomised(peer.double().eval())
    model = ours(version, (128, 256), window=4)
    load_weights(model, peer.state_dict())
    x = images(2, (128, 256))
    with torch.no_grad():
        assert relative(model(x), peer(x)) < 1e-9


@VERSIONS
@pytest.mark.parametrize("with_head", [True, False])
def test_transformers(version, with_head):
    arguments = {
        "image_size": 128,
        "embed_dim": 16,
        "depths": [2, 2, 3, 2],
        "num_heads": [2, 4, 2, 4],
        "window_size": 4,
        "num_labels": 5,
    }
    config, whole, body = {
        1: (transformers.SwinConfig, transformers.SwinForImageClassification, transformers.SwinModel),
        2: (transformers.Swinv2Config, transformers.Swinv2ForImageClassification, transformers.Swinv2Model),
    }[version]
    peer = randomised((whole if with_head else body)(config(**arguments)).double().eval())
    model = ours(version, (128, 128), window=4, num_classes=5 if with_head else 0)
    load_weights(model, peer.state_dict())
    x = images(2, (128, 128))
    with torch.no_grad():
        output = peer(x)
        assert relative(model(x), output.logits if with_head else output.pooler_output) < 1e-9


def test_transformers_files(tmp_path):
    """save_pretrained writes the names of the hub's files, not those of the modules."""
    config = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    peer = randomised(transformers.SwinForImageClassification(config).eval())
    peer.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "model.safetensors")
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in state
    state["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = relative_index((4, 4))
    model = Swin(
        SwinConfig(image_size=(64, 64), width=16, depths=(2, 2), heads=(2, 4), window=4, num_classes=2)
    ).eval()
    load_weights(model, state)
    x = images(1, (64, 64), torch.float32)
    with torch.no_grad():
        assert relative(model(x), peer(x).logits) < 1e-5


# --- compile and export -----------------------------------------------------------------------------------


@pytest.mark.slow
@VERSIONS
def test_compiles_once_for_all_batches(version):
    size = (90, 64)
    model = randomised(ours(version, size, depths=(1, 2), heads=(2, 2), pretrained_window=(0, 0)).float())
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in (2, 3, 7):
            x = images(batch, size, torch.float32)
            torch._dynamo.mark_dynamic(x, 0)
            assert relative(compiled(x), model(x)) < 1e-5
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compiled_code_is_given_its_tables_where_the_weights_are():
    model = ours(1, (64, 64), depths=(2, 2), heads=(2, 2)).to("meta")
    given: list[torch.Tensor] = []

    def keep(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        given.extend(value for value in inputs if isinstance(value, torch.Tensor))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, fullgraph=True, backend=keep)(images(1, (64, 64)).to("meta"))
    tables = [value for value in given if not value.dtype.is_floating_point]
    assert tables
    assert all(value.is_meta for value in given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "size", "folded"), [(1, (56, 56), True), (2, (56, 56), True), (2, (60, 90), False)]
)
def test_exports(version, size, folded, tmp_path: Path, monkeypatch, recwarn):
    # A table that is not folded makes a graph that is slow to trace: there one stage of one version has to
    # do, for the loop over windows is the same in both.
    depths, heads = ((2, 2), (2, 4)) if folded else ((2,), (2,))
    if not folded:
        monkeypatch.setattr(window_attention, "FOLDED_BIAS", 0)
    model = randomised(
        ours(version, size, depths=depths, heads=heads, pretrained_window=(0,) * len(depths)).float()
    )
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.onnx.export(
            model,
            (images(2, size, torch.float32),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=["scores"],
            verbose=False,
        )
    assert not [str(w.message) for w in caught if "vitrail" in str(w.filename) or "onstant" in str(w.message)]
    program.save(path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    engines = {
        hint: core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        for hint in ("f32", "bf16")
    }
    for count in (1, 2, 7):
        x = images(count, size, torch.float32)
        with torch.no_grad():
            expected = model(x)
        (found,) = session.run(None, {"images": x.numpy()})
        assert relative(torch.from_numpy(found), expected) < 1e-5
        assert relative(torch.from_numpy(engines["f32"](x.numpy())[0]), expected) < 1e-5
        rough = torch.from_numpy(np.array(engines["bf16"](x.numpy())[0]))
        assert relative(rough, expected) < 0.1


@pytest.mark.slow
def test_the_products_own_export(tmp_path: Path):
    model = randomised(ours(1, (64, 64), depths=(1, 2), heads=(2, 4)).float())
    graph = graph_of(64, model.config.num_classes, "model.onnx")
    export.write_onnx(model, graph, tmp_path / graph.entry)
    assert export.check(model, tmp_path, graph) < 1e-5


def test_export_at_an_unprepared_size_says_what_to_do():
    model = ours(1, (64, 64), depths=(1, 1), heads=(2, 2)).float()
    x = images(2, (96, 96), torch.float32)
    with torch.no_grad(), pytest.raises(Exception, match=r"model\.prepare\(96, 96\)"):
        torch.export.export(model, (x,), strict=False)
    model.prepare(96, 96)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        assert relative(program.module()(x), model(x)) < 1e-5


# --- bad input, warnings, upkeep --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 64, 64), "images\\[None\\]"),
        ((1, 1, 64, 64), "channels"),
        ((0, 3, 64, 64), "empty"),
        ((1, 3, 31, 64), "32 × 32"),
    ],
)
def test_bad_images(shape, says):
    with torch.no_grad(), pytest.raises(InputError, match=says):
        ours(1, (64, 64))(torch.zeros(shape).double())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 3}, "versions 1 and 2"),
        ({"heads": (2, 4)}, "per stage"),
        ({"heads": (3, 4, 2, 4)}, "divisible"),
        ({"attention": "quick"}, "attention kernel"),
        ({"image_size": (16, 64)}, "at least 32"),
        ({"window": 0}, "window"),
    ],
)
def test_bad_configs(changes, says):
    with pytest.raises(InputError, match=says):
        Swin(SwinConfig(**{"image_size": (64, 64), **SMALL, **changes}))


def test_warns_where_accuracy_falls():
    config = dataclasses.replace(SwinConfig(**SMALL), image_size=(64, 64), trained_size=(64, 64))
    model = Swin(config).eval()
    with torch.no_grad():
        with pytest.warns(UserWarning, match="trained at 64 × 64; at 96 × 64"):
            model(images(1, (96, 64), torch.float32))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(images(1, (72, 64), torch.float32))
            # Once for a size, not at each call.
            model(images(1, (96, 64), torch.float32))
    with pytest.warns(UserWarning, match="trained at"):
        Swin(dataclasses.replace(config, image_size=(128, 128)))


def test_tables_of_few_sizes_are_kept():
    model = ours(1, (64, 64), depths=(1, 1), heads=(2, 2))
    with torch.no_grad():
        for side in range(32, 32 + 4 * (windows.SIZES_KEPT + 3), 4):
            model(images(1, (side, side)))
    assert len(model._tables.by_size) == windows.SIZES_KEPT


def test_no_head():
    model = ours(1, (64, 64))
    model.reset_head(0)
    x = images(1, (64, 64))
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_features(x))


def test_training_drops_paths():
    model = randomised(ours(2, (64, 64), drop_path=0.5)).train()
    torch.manual_seed(0)
    x = images(1, (64, 64))
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
