"""What weights files say beyond names and shapes; advice that is followed; one reader for all. About 15 s."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from open_clip.model import CLIP as OpenCLIP
from safetensors.torch import save_file
from test_vit import HUGGING_FACE, SMALL_TIMM, assert_equal, images, randomised, small
from timm.layers import resample_abs_pos_embed
from timm.models import vision_transformer as timm_vit

from vitrail import cli, models
from vitrail.errors import InputError
from vitrail.models import timm as timm_models
from vitrail.models.clip import CLIP, VARIANTS
from vitrail.models.offsets import relative_index
from vitrail.models.registry import MODELS
from vitrail.models.swin import Swin, SwinConfig
from vitrail.models.vit import ViT
from vitrail.profiling.describe import describe
from vitrail.weights import checkpoints
from vitrail.weights.finite import is_finite

pytestmark = pytest.mark.slow

SWIN = {"width": 16, "depths": (2, 2), "heads": (2, 4), "num_classes": 5, "drop_path": 0.0}


def refusal(model, weights, **options) -> str:
    with pytest.raises(InputError) as raised:
        models.load_weights(model, weights, **options)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def named_in(sentence: str) -> str:
    found = re.search(r"they are the weights of ([\w.-]+): name that model", sentence)
    assert found, sentence
    return found.group(1)


# --- a count is no shape ----------------------------------------------------------------------------


def test_rows_of_an_oblong_grid_or_of_a_square_are_asked_about():
    """16 rows are 4 × 4 or 2 × 8; either option of the sentence is followed."""
    source, oblong = small(), {"image_size": (16, 64)}
    sentence = refusal(small(**oblong), source.state_dict())
    assert "2 × 8 patches or of 4 × 4" in sentence
    square, own = re.search(r"image_size=(\d+)\) or image_size=\((\d+, \d+)\)", sentence).groups()
    model = small(**oblong)
    models.load_weights(model, source.state_dict(), image_size=int(square))
    table = resample_abs_pos_embed(source.pos_embed.float(), [2, 8], [4, 4], num_prefix_tokens=1)
    assert_equal(model.pos_embed, table.double(), 1e-6)
    models.load_weights(model, source.state_dict(), image_size=tuple(map(int, own.split(", "))))
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_the_case_of_224_pixels_as_reported():
    source = models.build("vit_tiny_patch16_224", depth=1)
    model = models.build("vit_tiny_patch16_224", depth=1, image_size=(112, 448))
    assert "7 × 28 patches or of 14 × 14" in refusal(model, source.state_dict())
    models.load_weights(model, source.state_dict(), image_size=224)
    with torch.no_grad():
        batch = images(1, 3, 112, 448).float()
        assert_equal(model(batch), source(batch), 1e-5)  # which resamples on the way


def test_an_image_size_that_the_rows_are_not_of_is_refused():
    sentence = refusal(small(), small().state_dict(), image_size=48)
    assert "has 16 rows of patches and images of 48 × 48 pixels have 36" in sentence


def test_swins_table_of_a_square_or_an_oblong_window():
    """81 offsets: windows of 5 × 5 or of 2 × 14. The index in a file decides, else the caller."""
    square = Swin(SwinConfig(**SWIN, image_size=(80, 80), window=5)).eval()
    oblong = Swin(SwinConfig(**SWIN, image_size=(32, 224), window=(2, 14))).eval()
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    sentence = refusal(oblong, square.state_dict())
    assert "windows of 2 × 14 tokens or of 5 × 5" in sentence
    models.load_weights(oblong, square.state_dict(), window=5)
    resampled = oblong.state_dict()[key].clone()
    assert not torch.equal(resampled, square.state_dict()[key])
    told = {
        f"layers.{s}.blocks.{b}.attn.relative_position_index": relative_index((5, 5))
        for s in (0, 1)
        for b in (0, 1)
    }
    models.load_weights(oblong, square.state_dict() | told)
    assert torch.equal(oblong.state_dict()[key], resampled)
    models.load_weights(oblong, square.state_dict(), window=(2, 14))
    assert torch.equal(oblong.state_dict()[key], square.state_dict()[key])


# --- SwinV2's offsets ------------------------------------------------------------------------------


def torchvision_v2(window: int) -> torch.nn.Module:
    from torchvision.models import swin_transformer as theirs

    peer = torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [window, window], num_classes=5,
        block=theirs.SwinTransformerBlockV2, downsample_layer=theirs.PatchMergingV2,
    )  # fmt: skip
    # `randomised` fills buffers too: back to what torchvision computed.
    derived = {name: value.clone() for name, value in peer.double().named_buffers()}
    randomised(peer).load_state_dict(derived, strict=False)
    return peer


def v2(**fields) -> Swin:
    return (
        Swin(
            SwinConfig(
                **{**SWIN, "version": 2, "image_size": (64, 64), "pretrained_window": (0, 0), **fields}
            )
        )
        .double()
        .eval()
    )


def test_offsets_of_another_window_are_refused_and_the_advice_works():
    peer = torchvision_v2(4)
    state = peer.state_dict()
    sentence = refusal(v2(window=8), state)
    assert "windows of 4 × 4 tokens, in stage 1 scaled to 4" in sentence
    found = re.search(r"window=(\d+) and pretrained_window=\((\d+), (\d+)\)", sentence)
    window, *before = map(int, found.groups())
    model = v2(window=window, pretrained_window=tuple(before))
    models.load_weights(model, state)
    batch = images(2, 3, 64, 64)
    with torch.no_grad():
        assert_equal(model(batch), peer(batch))
    # The same offsets seen through another window are meant: that is what they are scaled for.
    models.load_weights(v2(window=8, pretrained_window=(4, 4)), state)


def test_a_file_of_window_16_names_the_model_of_window_16():
    """Microsoft's dialect at the published sizes, the shapes alone but for the offsets."""
    reference = timm.create_model("swinv2_tiny_window16_256")
    state = {k: v.to("meta") for k, v in reference.state_dict().items()}
    state |= {k: v for k, v in reference.named_buffers() if k.endswith("relative_coords_table")}
    with torch.device("meta"):
        model = models.build("swinv2_tiny_window8_256")
        name = named_in(refusal(model, state))
        assert name == "swinv2_tiny_window16_256"
        models.load_weights(models.build(name), state)
        # The offsets of the last stage would be scaled to the smaller map's window.
        smaller = refusal(models.build(name, image_size=128), state)
        assert f"the weights of {name}: name that model at its own 256 × 256 pixels" in smaller


# --- CLIP's towers ---------------------------------------------------------------------------------


def open_clip_small(*, quick: bool = False) -> OpenCLIP:
    vision = {"layers": 2, "width": 128, "patch_size": 8, "image_size": 32}
    text = {"context_length": 12, "vocab_size": 96, "width": 32, "heads": 4, "layers": 2}
    torch.manual_seed(0)
    return randomised(OpenCLIP(24, vision, text, quick_gelu=quick))


def image_tower(**fields) -> ViT:
    return small(width=128, heads=2, mlp_width=None, num_classes=24, pre_norm=True, norm_eps=1e-5, **fields)


@pytest.mark.parametrize("facts", [False, True])
def test_a_whole_clip_gives_its_image_tower_as_timm_takes_it(facts):
    theirs = open_clip_small(quick=True)
    state = theirs.state_dict()
    if facts:
        state |= {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(12),
            "vocab_size": torch.tensor(96),
        }
    model = image_tower(activation="quick_gelu")
    models.load_weights(model, state)
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model(batch), theirs.encode_image(batch))
    filtered = timm_vit.checkpoint_filter_fn(
        dict(state),
        timm_vit.VisionTransformer(32, 8, embed_dim=128, depth=2, num_heads=2, num_classes=24, pre_norm=True),
    )
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in filtered.items() if key in found)
    bare = image_tower(activation="quick_gelu")
    models.load_weights(bare, theirs.visual.state_dict())
    assert torch.equal(bare.blocks[1].mlp.fc2.weight, model.blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"),
        ("vit_large_patch14_clip_224", "vit_large_patch14_clip_quickgelu_224"),
        ("ViT-L-14", "ViT-L-14-quickgelu"),
        ("ViT-B-32", "ViT-L-14-quickgelu"),
        ("vit_base_patch16_clip_quickgelu_224", "vit_base_patch32_clip_quickgelu_224"),
    ],
)
def test_openais_weights_name_a_model_with_their_gelu(asked, right):
    whole = {
        "vit_base_patch32_clip_quickgelu_224": "ViT-B-32",
        "vit_large_patch14_clip_quickgelu_224": "ViT-L-14",
    }
    with torch.device("meta"):
        theirs = open_clip.create_model(whole.get(right, right.removesuffix("-quickgelu")), device="meta")
        state = theirs.state_dict() | {"input_resolution": torch.empty(())}
        model = models.build(asked)
        name = named_in(refusal(model, state, replace_head=asked.startswith("vit")))
        assert name == right
        models.load_weights(models.build(name), state, replace_head=asked.startswith("vit"))


def test_a_file_that_does_not_say_its_gelu_names_a_model_with_the_asked_one():
    """As reported: the whole file of a CLIP was answered with the model of the other GELU."""
    with torch.device("meta"):
        state = open_clip.create_model("ViT-L-14", device="meta").state_dict()
        for asked, right in (
            ("vit_base_patch32_clip_quickgelu_224", "vit_large_patch14_clip_quickgelu_224"),
            ("ViT-B-32-quickgelu", "ViT-L-14-quickgelu"),
        ):
            assert named_in(refusal(models.build(asked), state)) == right


@pytest.mark.parametrize("siglip", [False, True])
def test_transformers_whole_files_give_their_image_tower(siglip):
    vision = {**HUGGING_FACE, "projection_dim": 24}
    text = {**HUGGING_FACE, "vocab_size": 96, "max_position_embeddings": 12, "projection_size": 32}
    text.pop("patch_size"), text.pop("image_size")
    batch = images(2, 3, 32, 32)
    if siglip:
        theirs = randomised(
            transformers.SiglipModel(transformers.SiglipConfig(vision_config=HUGGING_FACE, text_config=text))
        )
        model = small(class_token=False, pool="map", num_classes=0, activation="gelu_tanh")
    else:
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        theirs = randomised(transformers.CLIPModel(config))
        model = small(num_classes=24, pre_norm=True, norm_eps=1e-5, activation="quick_gelu")
    models.load_weights(model, theirs.state_dict())
    with torch.no_grad():
        assert_equal(model(batch), theirs.get_image_features(pixel_values=batch).pooler_output)


# --- heads -----------------------------------------------------------------------------------------


def test_dinov2s_classifier_of_2_d_features_is_replaced_as_the_advice_says():
    config = transformers.Dinov2Config(**HUGGING_FACE, mlp_ratio=2, num_labels=5)
    theirs = randomised(transformers.Dinov2ForImageClassification(config))
    model = small(layer_scale=1.0)
    sentence = refusal(model, theirs.state_dict())
    assert (
        "the file's reads 64 features (DINOv2's, of the class token and the mean of the patches)" in sentence
    )
    assert sentence.endswith("load with replace_head=True.")
    models.load_weights(model, theirs.state_dict(), replace_head=True)
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(model.forward_tokens(batch), theirs.dinov2(batch).last_hidden_state)


@pytest.mark.parametrize("classes", [7, 0])
def test_advice_on_the_number_of_classes_works(classes):
    source, model = small(num_classes=classes), small()
    found = re.search(r"num_classes=(\d+)", refusal(model, source.state_dict()))
    models.load_weights(small(num_classes=int(found.group(1))), source.state_dict())


# --- what training wraps around names ----------------------------------------------------------------

WRAPPED = {
    "compiled": lambda k: f"_orig_mod.{k}",
    "lightning": lambda k: f"model.{k}",
    "parallel": lambda k: f"module.{k}",
    "parallel and compiled": lambda k: f"module._orig_mod.{k}",
    "compiled blocks": lambda k: re.sub(r"(blocks\.\d+)\.", r"\1._orig_mod.", k),
    "checkpointed blocks": lambda k: re.sub(r"(blocks\.\d+)\.", r"\1._checkpoint_wrapped_module.", k),
    "of one's own": lambda k: f"net.classifier_x.{k}",
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("dialect", ["timm", "torchvision", "transformers"])
def test_a_prefix_that_all_names_share_is_stripped(wrapped, dialect, tmp_path):
    theirs = {
        "timm": lambda: timm_vit.VisionTransformer(**SMALL_TIMM, img_size=32),
        "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5),
        "transformers": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**HUGGING_FACE, num_labels=5)
        ),
    }[dialect]()
    state = randomised(theirs).state_dict()
    plain, model = small(), small()
    models.load_weights(plain, state)
    torch.save({WRAPPED[wrapped](key): value for key, value in state.items()}, tmp_path / "net.pth")
    models.load_weights(model, tmp_path / "net.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("wrapped", [*(w for w in WRAPPED if "blocks" not in w), "averaged"])
def test_timms_models_too_and_their_classes_are_counted(wrapped, tmp_path):
    source = randomised(
        timm_models.build("test_efficientnet", image_size=64, classes=7, weights=None)
    ).float()
    rename = WRAPPED.get(wrapped, WRAPPED["parallel"])
    state = {rename(key): value for key, value in source.state_dict().items()}
    if wrapped == "averaged":
        state["n_averaged"] = torch.tensor(3)
    torch.save(state, tmp_path / "net.pth")
    given = checkpoints.read_state_dict(tmp_path / "net.pth")
    assert timm_models.classes_in("test_efficientnet", given) == 7
    model = timm_models.build("test_efficientnet", image_size=64, classes=7, weights=tmp_path / "net.pth")
    assert torch.equal(model.classifier.weight, source.classifier.weight)


def test_real_wrappers_of_torch():
    model, source = small(), small()
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(torch.compile(source)))
    state = averaged.state_dict()
    assert any("_orig_mod" in key for key in state)
    assert "n_averaged" in state
    torch.nn.init.zeros_(model.head.weight)
    models.load_weights(model, state)
    assert torch.equal(model.head.weight, source.head.weight)


# --- the file beside ---------------------------------------------------------------------------------


def repository(folder, model, config, name="config.json", weights="model.safetensors"):
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / weights)
    (folder / name).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / weights


def test_transformers_config_says_the_gelu_and_the_heads(tmp_path):
    config = transformers.ViTConfig(**HUGGING_FACE, num_labels=5, hidden_act="quick_gelu")
    path = repository(
        tmp_path, randomised(transformers.ViTForImageClassification(config)), config.to_json_string()
    )
    sentence = refusal(small(), path)
    assert (
        f"{tmp_path / 'config.json'} says they were trained with QuickGELU and this model has GELU"
        in sentence
    )
    assert "set activation='quick_gelu' in build" in sentence
    models.load_weights(small(activation="quick_gelu"), path)
    config.num_attention_heads, config.hidden_act = 4, "gelu"
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert "says 4 attention heads and this model has 2; set heads=4" in refusal(small(), path)
    models.load_weights(small(heads=4), path)
    # A file under a name of one's own is not what config.json is about.
    path.rename(tmp_path / "mine.safetensors")
    models.load_weights(small(), tmp_path / "mine.safetensors")


def test_what_transformers_leaves_out_is_its_default(tmp_path):
    theirs = transformers.CLIPConfig(
        vision_config={**HUGGING_FACE}, text_config={"vocab_size": 96, "hidden_size": 32}, projection_dim=24
    )
    assert theirs.vision_config.hidden_act == "quick_gelu"
    said = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 2, "image_size": 32},
        "text_config": {},
    }
    path = repository(tmp_path, image_tower(), said)
    assert "QuickGELU" in refusal(image_tower(), path)
    models.load_weights(image_tower(activation="quick_gelu"), path)


def test_gelu_by_tanh_is_said_and_not_refused(tmp_path):
    path = repository(tmp_path, small(), {"model_type": "siglip_vision_model", "image_size": 32})
    with pytest.warns(
        UserWarning, match="trained with GELU by tanh and this model computes GELU: scores differ"
    ):
        models.load_weights(small(), path)


def test_the_config_s_image_size_settles_the_grid(tmp_path):
    path = repository(tmp_path, small(), {"model_type": "vit", "image_size": 32})
    model = small(image_size=(16, 64))
    models.load_weights(model, path)
    by_hand = small(image_size=(16, 64))
    models.load_weights(by_hand, small().state_dict(), image_size=32)
    assert torch.equal(model.pos_embed, by_hand.pos_embed)


def test_swinv2s_config_says_its_window(tmp_path):
    said = {"model_type": "swinv2", "window_size": 4, "pretrained_window_sizes": [0, 0, 0, 0]}
    path = repository(tmp_path, v2(window=4), said)
    sentence = refusal(v2(window=8), path)
    window = int(re.search(r"build it with window=(\d+) and pretrained_window=\(0, 0\)", sentence).group(1))
    models.load_weights(v2(window=window), path)


def test_open_clips_config_says_its_gelu(tmp_path):
    said = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"image_size": 32}, "text_cfg": {}}}
    path = repository(tmp_path, image_tower(), said, "open_clip_config.json", "open_clip_model.safetensors")
    assert "QuickGELU" in refusal(image_tower(), path)
    models.load_weights(image_tower(activation="quick_gelu"), path)


def test_timms_config_says_its_architecture(tmp_path):
    """Two of one shape: TensorFlow's pads otherwise."""
    model = timm_models.build("tf_efficientnet_b0", image_size=64, classes=5, weights=None)
    path = repository(tmp_path, model, {"architecture": "tf_efficientnet_b0", "num_classes": 5})
    with pytest.raises(
        InputError, match="of tf_efficientnet_b0, not of efficientnet_b0: name that"
    ) as raised:
        timm_models.build("efficientnet_b0", image_size=64, classes=5, weights=path)
    right = re.search(r"are of (\w+),", str(raised.value)).group(1)
    timm_models.build(right, image_size=64, classes=5, weights=path)


def test_a_config_that_is_no_json_is_told(tmp_path):
    path = repository(tmp_path, small(), "<html>")
    assert "cannot be read as JSON" in refusal(small(), path)
    path.rename(tmp_path / "mine.safetensors")
    models.load_weights(small(), tmp_path / "mine.safetensors")


# --- other models ------------------------------------------------------------------------------------


def test_a_file_of_any_of_our_models_names_one_that_takes_it():
    """Shapes only: what is named is built, and takes the file."""
    for name in list(MODELS)[::23]:
        with torch.device("meta"):
            state = models.build(name).state_dict()
            asked = models.build(
                "swin_nano_patch2_window7_28" if name != "swin_nano_patch2_window7_28" else "ViT-nano-8-64"
            )
            found = named_in(refusal(asked, state))
            models.load_weights(models.build(found), state, replace_head=not found.startswith("ViT"))


def test_timms_models_answer_with_the_name_too(tmp_path):
    source = models.build("vit_nano_patch4_28")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"the weights of vit_nano_patch4_28: name that model \(--arch\)"):
        timm_models.build("resnet18", image_size=64, classes=10, weights=tmp_path / "net.safetensors")


# --- NaN and infinity ----------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.complex64]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_number_is_found_in_any_dtype(dtype, bad):
    tensor = torch.randn(3, 5).to(dtype)
    assert is_finite(tensor)
    tensor[1, 2] = torch.tensor(bad).to(dtype)
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_what_has_no_such_numbers_is_finite():
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor([1, 2]))
    assert is_finite(torch.tensor(True))
    assert is_finite(torch.empty(3, device="meta"))
    assert not is_finite(torch.tensor([1e39], dtype=torch.float64)), "infinite once it is float32"
    assert is_finite(torch.tensor([1e39], dtype=torch.float64), torch.float64)


@pytest.mark.parametrize("dialect", ["timm", "transformers"])
@pytest.mark.parametrize("replace_head", [False, True])
def test_the_tensor_is_named_as_the_file_names_it(dialect, replace_head, tmp_path):
    if dialect == "timm":
        state, name = small().float().state_dict(), "blocks.1.attn.qkv.weight"
    else:
        theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**HUGGING_FACE, num_labels=5))
        state, name = theirs.state_dict(), "vit.layers.1.attention.k_proj.weight"
    for bad in (name, next(key for key in state if key.startswith(("head.w", "classifier.w")))):
        torch.save(
            {k: v.masked_fill(v == v.flatten()[3], math.nan) if k == bad else v for k, v in state.items()},
            tmp_path / "w.pt",
        )
        sentence = refusal(small().float(), tmp_path / "w.pt", replace_head=replace_head)
        assert (
            f"{tmp_path / 'w.pt'} holds numbers that are not finite (NaN or infinity) in {bad}: fetch"
            in sentence
        )


def test_a_mask_that_is_left_out_may_be_infinite():
    theirs = open_clip_small()
    mask = torch.full((12, 12), -math.inf).triu(1)
    models.load_weights(image_tower(), theirs.state_dict() | {"attn_mask": mask})


@pytest.fixture
def clip_files(monkeypatch, tmp_path):
    from test_zeroshot import randomised as random_clip
    from test_zeroshot import small as small_clip

    from vitrail.models import clip

    monkeypatch.setitem(clip.VARIANTS, "ViT-B-32", small_clip("ViT-B-32"))
    state = random_clip(CLIP(VARIANTS["ViT-B-32"])).state_dict()
    damaged = {k: v.clone() for k, v in state.items()}
    damaged["text.blocks.0.mlp.fc1.bias"][2] = math.inf
    save_file(damaged, tmp_path / "damaged.safetensors")
    save_file(
        {k: v * 1e30 if k == "image.patch_embed.proj.weight" else v for k, v in state.items()},
        tmp_path / "huge.safetensors",
    )
    from PIL import Image

    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "cat.png")
    return tmp_path


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", ["zero-shot", "score"])
def test_every_command_that_reads_weights_of_a_clip_refuses_them(command, as_json, clip_files, capsys):
    weights, image = str(clip_files / "damaged.safetensors"), str(clip_files / "cat.png")
    argv = {
        "zero-shot": [image, "--classes", "cat,dog"],
        "score": [image, "a cat"],
    }[command]
    argv = [
        command,
        *argv,
        "--model",
        "ViT-B-32",
        "--weights",
        weights,
        *(["--json", "-"] if as_json else []),
    ]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "not finite (NaN or infinity) in text.blocks.0.mlp.fc1.bias" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("architecture", ["test_efficientnet", "vit_tiny_patch16_224"])
def test_every_command_that_reads_weights_of_a_classifier_refuses_them(architecture, tmp_path):
    """What embed's child, select's child and train call, and the exporter's reader."""
    from vitrail.export import towers
    from vitrail.learn.start import starting
    from vitrail.weights.find import WeightsFinder

    state = timm_models.build(architecture, image_size=224, classes=5, weights=None).state_dict()
    name = next(
        key
        for key in reversed(state)
        if key.endswith("bias") and "classifier" not in key and "head" not in key
    )
    state[name] = state[name].index_fill(0, torch.tensor(1), math.nan)
    path = tmp_path / "damaged.pth"
    torch.save(state, path)
    said = f"{path} holds numbers that are not finite (NaN or infinity) in {name}: fetch the file again"
    wanted = {"architecture": architecture, "classes": 5, "image_size": 224, "weights": str(path)}
    assert said in describe(wanted)["refused"]
    request = {
        "model": architecture,
        "weights": str(path),
        "content": "image",
        "preprocess": None,
        "threads": 1,
    }
    assert said in towers.export(request | {"folder": str(tmp_path / "towers")})["refused"]
    assert not (tmp_path / "towers").exists()
    with pytest.raises(InputError, match=re.escape(said)):
        starting(architecture, classes=3, finder=WeightsFinder(offline=True), weights=path)
    with pytest.raises(InputError, match=re.escape(said)):
        timm_models.build(architecture, image_size=224, classes=5, weights=path)


@pytest.mark.parametrize("command", ["zero-shot", "score"])
def test_finite_weights_that_give_no_finite_scores_are_told(command, clip_files, capsys):
    image = str(clip_files / "cat.png")
    argv = {"zero-shot": [image, "--classes", "cat,dog"], "score": [image, "a cat"]}[command]
    argv = [
        command,
        *argv,
        "--model",
        "ViT-B-32",
        "--weights",
        str(clip_files / "huge.safetensors"),
        "--json",
        "-",
    ]
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert "nan" not in out.lower()
    assert "Traceback" not in err
    if code:
        assert code == 2
        assert "not finite (NaN or infinity), though all of their own numbers are" in err


# --- select takes what the others take -----------------------------------------------------------------


def foreign(dialect: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if dialect == "torchvision":
        model = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768, num_classes=5).eval()
        torch.nn.init.normal_(model.heads.head.weight)  # zeros, as it draws it
        return model
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    return transformers.ViTForImageClassification(config).eval()


@pytest.mark.parametrize("dialect", ["torchvision", "transformers"])
def test_own_weights_in_other_dialects_become_the_module_that_is_exported(dialect, tmp_path, monkeypatch):
    """The candidate of `select --weights`, then both implementations with its weights."""
    from vitrail.export import eager
    from vitrail.measure import sandbox
    from vitrail.sources.own import OwnWeights, own_candidate

    theirs = foreign(dialect)
    torch.save({f"model.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "mine.pth")
    (tmp_path / "labels.txt").write_text("ash\nbeech\nelm\noak\nyew\n")
    own = OwnWeights(
        file=str(tmp_path / "mine.pth"), arch="vit_tiny_patch16_224", labels=str(tmp_path / "labels.txt")
    )
    # The process of its own is tested in test_own.py.
    monkeypatch.setattr(sandbox, "call", lambda _name, payload, **_: describe(payload))
    candidate = own_candidate(own)
    assert candidate.parameters == sum(
        p.numel() for p in timm.create_model("vit_tiny_patch16_224", num_classes=5).parameters()
    )
    batch = images(2, 3, 224, 224).float()
    with torch.no_grad():
        expected = theirs(batch)
        expected = getattr(expected, "logits", expected)
        for implementation in ("timm", "vitrail"):
            asked = SimpleNamespace(
                architecture=candidate.architecture,
                implementation=implementation,
                labels=candidate.labels,
                weights=candidate.weights.reference,
            )
            assert_equal(eager.module(asked, 224)(batch), expected, 1e-4)


def test_a_classifier_that_select_cannot_keep_is_answered_with_train(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_labels=5, image_size=518
    )
    with torch.device("meta"):
        state = transformers.Dinov2ForImageClassification(config).state_dict()
    torch.save(
        {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in state.items()}, tmp_path / "dino.pth"
    )
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_dinov2", num_classes=5)
    with pytest.raises(InputError, match="train one on labelled images with `vitrail train --weights`"):
        timm_models.fitted(
            model, "vit_small_patch14_dinov2", tmp_path / "dino.pth", image_size=518, classes=5
        )
    # What `vitrail train` does with the file:
    with torch.device("meta"):
        ours = models.build("vit_small_patch14_dinov2", num_classes=9)
    models.load_weights(ours, tmp_path / "dino.pth", replace_head=True)


def test_why_a_variant_failed_stands_in_the_terminal():
    """As reported: the only reason stood in the JSON."""
    from dataclasses import replace

    import selections

    from vitrail.report import terminal

    selection = selections.selection()
    lost = [entry for entry in selection.ledger if entry.variant.name != selection.selected]
    ledger = tuple(
        replace(entry, observation=replace(entry.observation, failure="exporting failed: no room"))
        if entry in lost
        else entry
        for entry in selection.ledger
    )
    assert "exporting failed: no room" in terminal.summary(replace(selection, ledger=ledger))
