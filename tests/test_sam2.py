"""Our SAM 2 and EdgeTAM against transformers' on the same random weights, in small sizes."""

from __future__ import annotations

import math
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    EdgeTamConfig,
    EdgeTamMaskDecoderConfig,
    EdgeTamModel,
    EdgeTamPromptEncoderConfig,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    EdgeTamVisionConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    TimmWrapperConfig,
)
from transformers.models.edgetam import modeling_edgetam
from transformers.models.sam2 import modeling_sam2

from vitrail import models
from vitrail.catalog import promptable
from vitrail.errors import InputError
from vitrail.models.registry import PROMPTABLE, SEGMENTERS
from vitrail.models.sam2 import SAM2, VARIANTS, Prompts, SAM2Config
from vitrail.models.sam2_config import HieraConfig, RepViTConfig
from vitrail.models.sam2_decoder import FineMaskDecoder, clear
from vitrail.models.sam2_encoder import Hiera, ImageEncoder
from vitrail.models.sam_decoder import TwoWayTransformer
from vitrail.models.sam_prompts import PADDING, PromptEncoder
from vitrail.profiling import cost

# Maps of 24, 12, 6 and 3 tokens a side: windows of 4 do not divide 6, those of 2 do not divide 3.
TRUNK = HieraConfig(
    width=16, depths=(1, 2, 3, 2), heads=1, windows=(8, 4, 4, 2), global_blocks=(4,), background=(5, 5)
)
SIDE, GRID, MASK = 96, 6, 24
SMALL = SAM2Config(
    image_size=(SIDE, SIDE),
    trunk=TRUNK,
    embed_width=32,
    mask_channels=8,
    decoder_heads=4,
    decoder_mlp_width=48,
    iou_width=24,
)
EDGE = replace(SMALL, trunk=RepViTConfig(name="repvit_m1", widths=(48, 96, 192, 384)))
CONFIGS = {"sam2": SMALL, "edgetam": EDGE}
FAMILIES = tuple(CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def float64_all_the_way():
    """transformers rounds the coarsest level to fp32 before it is enlarged."""
    widened = types.ModuleType("torch")
    widened.__dict__.update({**torch.__dict__, "float32": torch.float64})
    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_sam2, modeling_edgetam):
            patch.setattr(module, "torch", widened)
        yield


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                noise = noise.abs() + 0.5
            elif ".bn." in name and name.endswith("weight"):
                # Dozens of residual blocks: their sums must not grow beyond all bounds.
                noise = 0.3 + 0.1 * noise
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif value.ndim > 1 and "embed" not in name and "token" not in name:
                noise = noise / math.sqrt(value[0].numel())
            value.copy_(noise)
        model.shared_image_embedding.positional_embedding.normal_(generator=generator)
        again = model.prompt_encoder.shared_embedding.positional_embedding
        again.copy_(model.shared_image_embedding.positional_embedding)
    return model


def built(family: str, side: int = SIDE) -> torch.nn.Module:
    """transformers' model of the small size."""
    c, grid = CONFIGS[family], side // 16
    sam2 = family == "sam2"
    prompt_config, decoder_config = (
        (Sam2PromptEncoderConfig, Sam2MaskDecoderConfig)
        if sam2
        else (EdgeTamPromptEncoderConfig, EdgeTamMaskDecoderConfig)
    )
    neck = {
        "backbone_channel_list": list(reversed(c.trunk.widths)),
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        "fpn_hidden_size": c.embed_width,
    }
    parts = {
        "prompt_encoder_config": prompt_config(
            hidden_size=c.embed_width, image_size=side, mask_input_channels=c.mask_channels
        ),
        "mask_decoder_config": decoder_config(
            hidden_size=c.embed_width, mlp_dim=c.decoder_mlp_width, num_attention_heads=c.decoder_heads,
            iou_head_hidden_dim=c.iou_width,
        ),
    }  # fmt: skip
    if sam2:
        backbone = Sam2HieraDetConfig(
            hidden_size=TRUNK.width, num_attention_heads=TRUNK.heads, image_size=[side, side],
            window_positional_embedding_background_size=list(TRUNK.background),
            blocks_per_stage=list(TRUNK.depths), embed_dim_per_stage=list(TRUNK.widths),
            num_attention_heads_per_stage=[TRUNK.heads << i for i in range(4)],
            window_size_per_stage=list(TRUNK.windows), global_attention_blocks=list(TRUNK.global_blocks),
        )  # fmt: skip
        config = Sam2Config(vision_config=Sam2VisionConfig(backbone_config=backbone, **neck), **parts)
    else:
        backbone = TimmWrapperConfig(
            architecture=c.trunk.name,
            model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        )
        vision = EdgeTamVisionConfig(backbone_config=backbone, **neck)
        config = EdgeTamConfig(vision_config=vision, **parts)
    # Their eager attention computes its softmax in fp32, whatever the weights.
    config._attn_implementation = "sdpa"
    return randomised((Sam2Model if sam2 else EdgeTamModel)(config).double().eval())


@pytest.fixture(scope="module")
def references() -> dict[str, torch.nn.Module]:
    return {family: built(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def ours(references) -> dict[str, SAM2]:
    return {family: loaded(family, model.state_dict()) for family, model in references.items()}


def loaded(family: str, state: dict[str, torch.Tensor]) -> SAM2:
    model = SAM2(CONFIGS[family]).double().eval()
    models.load_weights(model, state)
    return model


def images(batch: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def prompts(kind: str, batch: int = 2, count: int = 3) -> dict[str, torch.Tensor]:
    """transformers' arguments."""
    generator = torch.Generator().manual_seed(4)
    points = SIDE * torch.rand(batch, count, 4, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (batch, count, 4), generator=generator)
    corners = SIDE * torch.rand(batch, count, 2, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat((corners.amin(2), corners.amax(2)), -1)
    masks = 3 * torch.randn(batch, 1, MASK, MASK, generator=generator, dtype=torch.float64)
    padded = labels.clone()
    padded[:, 1:, 2:] = PADDING
    padded[:, -1, 1] = -1
    # Theirs takes several prompts of an image with one mask only where there is one image.
    one = {"input_points": points[:, :1], "input_labels": padded[:, :1], "input_boxes": boxes[:, :1]}
    return {
        "point": {"input_points": points[:, :1, :1], "input_labels": labels[:, :1, :1]},
        "points": {"input_points": points, "input_labels": labels},
        "padded": {"input_points": points, "input_labels": padded},
        "boxes": {"input_boxes": boxes},
        "both": {"input_points": points, "input_labels": labels, "input_boxes": boxes},
        "mask": {"input_masks": masks},
        "all": {**one, "input_masks": masks},
    }[kind]


KINDS = ("point", "points", "padded", "boxes", "both", "mask", "all")


def as_ours(given: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64) -> Prompts:
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    tensors = (given.get(name) for name in names)
    return Prompts(*(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(references, ours, family, kind, multimask):
    given, x = prompts(kind), images()
    with torch.no_grad():
        expected = references[family](pixel_values=x, **given, multimask_output=multimask)
        found = ours[family](x, as_ours(given), multimask=multimask)
    assert relative(found.masks_BPMYX, expected.pred_masks) < 1e-9
    assert relative(found.ious_BPM, expected.iou_scores) < 1e-9
    assert relative(found.objects_BP1, expected.object_score_logits) < 1e-9
    assert found.masks_BPMYX.shape[2:] == (3 if multimask else 1, MASK, MASK)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_transformers(references, ours, family):
    x = images()
    with torch.no_grad():
        quarter, half, embeddings = references[family].get_image_embeddings(x)
        found = ours[family].encode(x)
    for mine, theirs in zip(found, (embeddings, half, quarter), strict=True):
        assert relative(mine, theirs) < 1e-9
    # With gradients blocks are not computed in place.
    assert relative(ours[family].encode(x).embeddings_BEhw, embeddings) < 1e-9


@pytest.mark.parametrize("kind", ["points", "boxes", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_in_fp32(references, ours, family, kind):
    given, x = prompts(kind), images()
    model = loaded(family, references[family].state_dict()).float()
    with torch.no_grad():
        expected = references[family](pixel_values=x, **given)
        found = model(x.float(), as_ours(given, torch.float32))
        exact = ours[family].encode(x)
        for mine, wanted in zip(model.encode(x.float()), exact, strict=True):
            assert relative(mine, wanted) < 1e-5
    assert relative(found.masks_BPMYX, expected.pred_masks) < 1e-5
    assert relative(found.ious_BPM, expected.iou_scores) < 1e-5
    assert relative(found.objects_BP1, expected.object_score_logits) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_transformers(references, family):
    given, model = prompts("all"), loaded(family, references[family].state_dict())
    x, y = images().requires_grad_(), images().requires_grad_()
    expected = references[family](pixel_values=x, **given)
    (expected.pred_masks.square().sum() + expected.object_score_logits.sum()).backward()
    found = model(y, as_ours(given))
    (found.masks_BPMYX.square().sum() + found.objects_BP1.sum()).backward()
    assert relative(y.grad, x.grad) < 1e-9
    references[family].zero_grad()


def test_a_clear_prompts_mask_gives_way_where_it_is_not_stable(references):
    """One prompt with a stable mask, one whose scores hover about zero, one without any pixel, one on the
    very threshold: 49 of 50 pixels."""
    masks = 5 * torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks[0, 0, 0] = torch.where(masks[0, 0, 0] > 0, 1.0, -1.0)
    masks[0, 1, 0] *= 0.01
    masks[0, 2, 0] = -1
    masks[0, 3, 0] = -1
    masks[0, 3, 0].view(-1)[:50] = 1
    masks[0, 3, 0, 0, 0] = 0
    ious = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = references["sam2"].mask_decoder._dynamic_multimask_via_stability(masks, ious)
    found = clear(masks, ious, SMALL)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    chosen = [int((masks[0, p] == found[0][0, p]).all(-1).all(-1).nonzero()[0]) for p in range(4)]
    assert chosen == [0, 1 + int(ious[0, 1, 1:].argmax()), 0, 0]


def test_a_model_in_training_answers_a_clear_prompt_with_the_first_mask(ours):
    given, model = as_ours(prompts("both")), ours["sam2"]
    with torch.no_grad():
        features = model.encode(images())
        sparse, dense = model.prompt_encoder(given)
        positions = model.prompt_encoder.image_positions()
        masks, *_ = model.mask_decoder(features, positions, sparse, dense)
        found = model.train().decode(features, given, multimask=False)
        model.eval()
        settled = model.decode(features, given, multimask=False)
    assert torch.equal(found.masks_BPMYX, masks[:, :, :1])
    # Random weights give masks that are not stable.
    assert not torch.equal(settled.masks_BPMYX, found.masks_BPMYX)


def test_positions_repeat_in_every_window():
    trunk = Hiera(SMALL, TRUNK).double()
    with torch.no_grad():
        trunk.pos_embed.zero_()
        trunk.pos_embed_window.normal_(generator=torch.Generator().manual_seed(0))
        places = trunk.positions(24, 24)
    for row in range(3):
        for column in range(3):
            tile = places[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(tile, trunk.pos_embed_window[0].permute(1, 2, 0))


def test_an_image_alone_and_a_prompt_alone_give_the_same(ours):
    given, x = as_ours(prompts("both")), images()
    with torch.no_grad():
        whole = ours["sam2"](x, given)
        points, labels, boxes = (part[1:, 1:2] for part in given[:3])
        alone = ours["sam2"](x[1:], Prompts(points, labels, boxes))
    assert relative(alone.masks_BPMYX, whole.masks_BPMYX[1:, 1:2]) < 1e-9


# --- weights --------------------------------------------------------------------------------------


def metas(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the names of Meta's files, as sam2/modeling has them, and some of a video's."""
    renamed = {"maskmem_tpos_enc": torch.zeros(7, 1, 1, 4), "obj_ptr_proj.layers.0.bias": torch.zeros(4)}
    for name, value in state.items():
        if ".trunk.blocks." in name:
            name = name.replace(".mlp.fc1", ".mlp.layers.0").replace(".mlp.fc2", ".mlp.layers.1")
        if name.startswith(("prompt_encoder", "mask_decoder")):
            name = "sam_" + name
        renamed[name] = value
    return renamed


def test_metas_names_are_read(ours, tmp_path):
    state = metas(ours["sam2"].state_dict())
    assert {
        "image_encoder.trunk.pos_embed_window",
        "image_encoder.trunk.patch_embed.proj.weight",
        "image_encoder.trunk.blocks.1.proj.weight",
        "image_encoder.trunk.blocks.1.attn.qkv.bias",
        "image_encoder.trunk.blocks.0.mlp.layers.1.weight",
        "image_encoder.neck.convs.3.conv.weight",
        "no_mem_embed",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "sam_prompt_encoder.point_embeddings.3.weight",
        "sam_prompt_encoder.mask_downscaling.6.weight",
        "sam_mask_decoder.transformer.layers.0.mlp.layers.1.weight",
        "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight",
        "sam_mask_decoder.output_upscaling.3.weight",
        "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
        "sam_mask_decoder.iou_prediction_head.layers.2.weight",
        "sam_mask_decoder.pred_obj_score_head.layers.2.weight",
        "sam_mask_decoder.obj_score_token.weight",
        "sam_mask_decoder.conv_s1.weight",
    } <= state.keys()
    path = tmp_path / "sam2.pt"
    torch.save({"model": state}, path)
    model = SAM2(SMALL).double()
    models.load_weights(model, path)
    assert all(torch.equal(value, ours["sam2"].state_dict()[k]) for k, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["sam2_hiera_tiny", "edgetam"])
def test_the_files_on_the_hub_are_those_of_videos(name):
    """They hold every tensor of the image mode, and a memory that is left out."""
    with torch.device("meta"):
        model = models.build(name)
        theirs = (
            EdgeTamVideoModel(EdgeTamVideoConfig(vision_config=published_edgetam()))
            if name == "edgetam"
            else Sam2VideoModel(Sam2VideoConfig())
        )
    state = theirs.state_dict()
    assert any(key.startswith("memory_encoder.") for key in state)
    models.load_weights(model, state)


def published_edgetam() -> EdgeTamVisionConfig:
    backbone = TimmWrapperConfig(architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True})
    return EdgeTamVisionConfig(backbone_config=backbone)


def test_transformers_files_hold_the_fourier_features_once_or_twice(references, ours, tmp_path):
    state = {name: value.clone() for name, value in references["sam2"].state_dict().items()}
    again = "prompt_encoder.shared_embedding.positional_embedding"
    assert again in state
    for without in (again, "shared_image_embedding.positional_embedding"):
        path = tmp_path / "model.safetensors"
        save_file({name: value for name, value in state.items() if name != without}, path)
        model = SAM2(SMALL).double()
        models.load_weights(model, path)
        own = ours["sam2"].prompt_encoder.image_positions()
        assert torch.equal(model.prompt_encoder.image_positions(), own)
    state[again] = state[again] + 1
    with pytest.raises(InputError, match="two matrices of Fourier features that differ"):
        models.load_weights(SAM2(SMALL), state)


@pytest.mark.parametrize("theirs_or_metas", ["transformers", "Meta"])
def test_a_tensor_too_few_or_too_many_is_named(references, ours, theirs_or_metas):
    named = theirs_or_metas == "transformers"
    state = references["sam2"].state_dict() if named else metas(ours["sam2"].state_dict())
    model, before = SAM2(SMALL), SAM2(SMALL).state_dict()
    model.load_state_dict(before)
    few = {name: value for name, value in state.items() if not name.endswith("not_a_point_embed.weight")}
    with pytest.raises(InputError, match=r"missing prompt_encoder\.not_a_point_embed\.weight"):
        models.load_weights(model, few)
    many = {**state, "image_encoder.extra": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unexpected image_encoder\.extra"):
        models.load_weights(model, many)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("asked", ["sam2_hiera_tiny", "edgetam", "sam_vit_base"])
def test_weights_of_another_size_name_the_model_that_takes_them(asked):
    with torch.device("meta"):
        model, large = models.build(asked), models.build("sam2_hiera_large")
    with pytest.raises(InputError, match="weights of sam2_hiera_large: name that model"):
        models.load_weights(model, large.state_dict())


# --- parts and sizes ------------------------------------------------------------------------------


def test_the_parts_can_be_handed_in():
    trunk = Hiera(SMALL, TRUNK)
    encoder, prompt = ImageEncoder(SMALL, trunk=trunk), PromptEncoder(SMALL)
    transformer = TwoWayTransformer(SMALL)
    decoder = FineMaskDecoder(SMALL, transformer=transformer)
    model = SAM2(SMALL, image_encoder=encoder, prompt_encoder=prompt, mask_decoder=decoder)
    assert (model.image_encoder, model.prompt_encoder, model.mask_decoder) == (encoder, prompt, decoder)
    assert (model.mask_decoder.transformer, model.image_encoder.trunk) == (transformer, trunk)


@pytest.mark.parametrize(
    "name", ["sam2_hiera_tiny", "sam2_hiera_small", "sam2_hiera_base_plus", "sam2_hiera_large", "edgetam"]
)
def test_published_sizes_have_transformers_parameters(name):
    """Every tensor of transformers' model of that size, built without memory, fits."""
    trunk = VARIANTS[name].trunk
    with torch.device("meta"):
        model = models.build(name)
        if isinstance(trunk, RepViTConfig):
            reference = EdgeTamModel(EdgeTamConfig(vision_config=published_edgetam()))
        else:
            backbone = Sam2HieraDetConfig(
                hidden_size=trunk.width, num_attention_heads=trunk.heads,
                window_positional_embedding_background_size=list(trunk.background),
                blocks_per_stage=list(trunk.depths), embed_dim_per_stage=list(trunk.widths),
                num_attention_heads_per_stage=[trunk.heads << i for i in range(4)],
                window_size_per_stage=list(trunk.windows), global_attention_blocks=list(trunk.global_blocks),
            )  # fmt: skip
            vision = Sam2VisionConfig(
                backbone_config=backbone, backbone_channel_list=list(reversed(trunk.widths))
            )
            reference = Sam2Model(Sam2Config(vision_config=vision))
    models.load_weights(model, reference.state_dict())
    # Meta counts 38.9, 46, 80.8 and 224.4 million with the memory of a video; a dozen of them are its.
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    published = {
        "sam2_hiera_tiny": 38.9, "sam2_hiera_small": 46.0, "sam2_hiera_base_plus": 80.8,
        "sam2_hiera_large": 224.4, "edgetam": 13.9,
    }  # fmt: skip
    assert 0 < published[name] - millions < 13
    assert SEGMENTERS[name].endswith(":SAM2")


def test_the_catalogue_says_what_the_models_cost_and_how_photos_are_prepared():
    rows = {each.architecture: each for each in promptable.CANDIDATES if each.family == "sam2"}
    assert rows.keys() == VARIANTS.keys() - {"sam2_hiera_nano"}
    for name, row in rows.items():
        with torch.device("meta"):
            model = models.build(name)
        counted = cost.count(model.stages()["encode"], model.config.image_size[0])
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert (row.macs, row.activations) == (counted.macs, counted.activations)
        assert (row.preprocess.crop_mode, row.preprocess.image_size) == ("squash", 1024)
        assert PROMPTABLE[name] == SEGMENTERS[name]


# --- bad input ------------------------------------------------------------------------------------


def test_build_takes_fields_and_no_classes():
    model = models.build("sam2_hiera_nano", image_size=64, masks=2)
    assert (model.config.grid, model.config.masks) == ((4, 4), 2)
    with pytest.raises(InputError, match="SAM 2 has no classifier: leave num_classes out"):
        models.build("sam2_hiera_nano", num_classes=5)
    with pytest.raises(InputError, match="did you mean sam2_hiera_"):
        models.build("sam2_hiera_tinny")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": (96, 64)}, "SAM 2's images are squares of whole patches of 32 pixels, not 96 × 64"),
        ({"image_size": (80, 80)}, "squares of whole patches of 32"),
        (
            {"trunk": replace(TRUNK, windows=(10, 4, 4, 2))},
            "24 × 24 tokens, which do not divide into windows",
        ),
        ({"decoder_heads": 3}, "do not divide into 3 heads"),
        ({"masks": 0}, "SAM 2 needs at least one mask"),
    ],
)
def test_impossible_configs_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_blocks": (8,)}, "there are blocks 0 to 7"),
        ({"depths": (1, 0, 3, 2)}, "a stage has at least one"),
        ({"windows": (8, 5, 4, 2)}, "give even numbers"),
        ({"heads": 3}, "do not divide into 3 heads"),
    ],
)
def test_impossible_trunks_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        replace(TRUNK, **changes)


def test_images_and_prompts_of_other_sizes_are_refused(ours):
    model = ours["sam2"]
    with pytest.raises(InputError, match="takes images of 96 × 96 pixels, not 96 × 64"):
        model.encode(torch.zeros(1, 3, 96, 64))
    features = model.encode(images(2))
    with pytest.raises(InputError, match="features of 2 images and prompts for 1"):
        model.decode(features, Prompts(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.int64)))
