"""Our CLIP and SigLIP against open_clip and Hugging Face transformers, all weights random, in small sizes."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP, resize_pos_embed
from safetensors.torch import save_file
from transformers import CLIPConfig as HFCLIPConfig
from transformers import CLIPModel, SiglipConfig, SiglipModel

from vitrail.errors import InputError
from vitrail.models import factory
from vitrail.models.clip import CLIP, VARIANTS, CLIPConfig, similarity
from vitrail.models.clip_config import TextConfig
from vitrail.models.registry import OWN
from vitrail.models.text import TextTransformer
from vitrail.models.vit import ViT, ViTConfig
from vitrail.text.tokenizer import BPETokenizer
from vitrail.weights.checkpoints import read_state_dict
from vitrail.weights.dialects import detect, translate

E, PATCH, LENGTH, VOCABULARY = 24, 8, 12, 96
END = VOCABULARY - 1
IMAGE = {"width": 48, "depth": 3, "heads": 3}
TEXT = {"width": 32, "depth": 2, "heads": 4}
SIZES = [(32, 32), (24, 40), (64, 48)]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def clip_config(size=(32, 32), *, activation="gelu", **fields) -> CLIPConfig:
    """ViT-B-32's fields but for the sizes."""
    whole = VARIANTS["ViT-B-32"]
    return CLIPConfig(
        image=replace(
            whole.image,
            **IMAGE,
            patch_size=PATCH,
            image_size=size,
            num_classes=E,
            activation=activation,
        ),
        text=replace(
            whole.text,
            **TEXT,
            context_length=LENGTH,
            vocab_size=VOCABULARY,
            embed_width=E,
            activation=activation,
        ),
        **fields,
    )


def siglip_config(size=(32, 32), **changes) -> CLIPConfig:
    """ViT-B-16-SigLIP's fields but for the sizes; the embedding is as wide as the image tower."""
    whole = VARIANTS["ViT-B-16-SigLIP"]
    return replace(
        whole,
        image=replace(whole.image, **IMAGE, patch_size=PATCH, image_size=size, **changes),
        text=replace(
            whole.text,
            **{**TEXT, "width": 48},
            context_length=LENGTH,
            vocab_size=VOCABULARY,
            embed_width=48,
            **changes,
        ),
    )


def randomised(model: torch.nn.Module, seed=0) -> torch.nn.Module:
    """Every parameter moved by noise, norms, biases, tables and the scale included; in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def loaded(config: CLIPConfig, state: dict[str, torch.Tensor], dialect: str) -> CLIP:
    """Our model with a foreign state dict; every key must find its place."""
    model = CLIP(config).double().eval()
    found = detect(state, CLIP.DIALECTS)
    assert found is not None
    assert found.name == dialect
    model.load_state_dict(model.adapt_weights(translate(state, found)))
    return model


def images_of(size, batch=3) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tokens_of(batch=4) -> torch.Tensor:
    """Texts of many lengths: start, words, end, zeros."""
    tokens = torch.zeros(batch, LENGTH, dtype=torch.int64)
    generator = torch.Generator().manual_seed(6)
    for i, row in enumerate(tokens):
        words = 1 + (i * 3) % (LENGTH - 2)
        row[0] = END - 1
        row[1 : 1 + words] = torch.randint(1, END - 1, (words,), generator=generator)
        row[1 + words] = END
    return tokens


def open_clip_model(size=(32, 32), *, quick=False, apart=False) -> torch.nn.Module:
    vision = {
        "layers": IMAGE["depth"],
        "width": IMAGE["width"],
        "head_width": IMAGE["width"] // IMAGE["heads"],
        "patch_size": PATCH,
        "image_size": size,
    }
    text = {
        "context_length": LENGTH,
        "vocab_size": VOCABULARY,
        "width": TEXT["width"],
        "heads": TEXT["heads"],
        "layers": TEXT["depth"],
    }
    return randomised((CustomTextCLIP if apart else OpenCLIP)(E, vision, text, quick_gelu=quick))


def open_clip_siglip(size=(32, 32)) -> torch.nn.Module:
    text = {
        "context_length": LENGTH,
        "vocab_size": VOCABULARY,
        "width": 48,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 160}
    model = CustomTextCLIP(48, vision, text, init_logit_bias=-10, init_logit_scale=math.log(110))
    model.visual.trunk = timm.create_model(
        "vit_base_patch16_siglip_224",
        num_classes=0,
        embed_dim=48,
        depth=3,
        num_heads=3,
        patch_size=PATCH,
        img_size=size,
    )
    return randomised(model)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance=1e-9) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert difference <= tolerance, f"{difference:.1e}"


def compare_with_open_clip(ours: CLIP, theirs: torch.nn.Module, size) -> None:
    images, tokens = images_of(size), tokens_of()
    with torch.no_grad():
        close(ours.encode_image(images, normalize=False), theirs.encode_image(images))
        close(ours.encode_text(tokens, normalize=False), theirs.encode_text(tokens))
        close(ours.encode_image(images), theirs.encode_image(images, normalize=True))
        close(similarity(*ours(images, tokens)), theirs.get_logits(images, tokens)[0])


class TestAgainstOpenClip:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(
        ("quick", "apart", "dialect"),
        [
            (False, False, "open_clip"),
            (True, False, "open_clip"),
            (True, True, "open_clip, text tower apart"),
        ],
    )
    def test_embeddings_and_scores(self, size, quick, apart, dialect):
        theirs = open_clip_model(size, quick=quick, apart=apart)
        config = clip_config(size, activation="quick_gelu" if quick else "gelu")
        compare_with_open_clip(loaded(config, theirs.state_dict(), dialect), theirs, size)

    def test_the_activations_are_told_apart(self):
        theirs = open_clip_model(quick=True)
        ours = loaded(clip_config(activation="gelu"), theirs.state_dict(), "open_clip")
        with pytest.raises(AssertionError):
            compare_with_open_clip(ours, theirs, (32, 32))

    @pytest.mark.parametrize("size", SIZES)
    def test_siglip(self, size):
        theirs = open_clip_siglip(size)
        assert theirs.logit_scale.exp() > 100  # as SigLIP's published scales
        ours = loaded(siglip_config(size), theirs.state_dict(), "open_clip, image tower of timm")
        compare_with_open_clip(ours, theirs, size)

    def test_fp32(self):
        theirs = open_clip_model(quick=True)
        ours = loaded(clip_config(activation="quick_gelu"), theirs.state_dict(), "open_clip").float()
        images, tokens = images_of((32, 32)), tokens_of()
        with torch.no_grad():
            scores = similarity(*ours(images.float(), tokens))
            close(scores.double(), theirs.get_logits(images, tokens)[0], 1e-5)

    @pytest.mark.parametrize("siglip", [False, True])
    def test_gradients(self, siglip):
        theirs = open_clip_siglip() if siglip else open_clip_model()
        dialect = "open_clip, image tower of timm" if siglip else "open_clip"
        ours = loaded(siglip_config() if siglip else clip_config(), theirs.state_dict(), dialect)
        images, tokens = images_of((32, 32)), tokens_of()
        similarity(*ours(images, tokens)).sin().sum().backward()
        theirs.get_logits(images, tokens)[0].sin().sum().backward()
        found = next(d for d in CLIP.DIALECTS if d.name == dialect)
        expected = translate({name: p.grad for name, p in theirs.named_parameters()}, found)
        expected = ours.adapt_weights(expected)
        for name, parameter in ours.named_parameters():
            close(parameter.grad, expected[name], 1e-4)

    @pytest.mark.parametrize("size", [(48, 48), (40, 64)])
    def test_positions_of_another_size_are_resampled(self, size):
        """Weights of 32 px in a model for another size, against open_clip's own resampling when it loads."""
        state = open_clip_model((32, 32)).state_dict()
        theirs = open_clip_model(size)
        resized = {name: tensor.float() for name, tensor in state.items()}
        resize_pos_embed(resized, theirs)
        positions = resized["visual.positional_embedding"].double()
        theirs.load_state_dict({**state, "visual.positional_embedding": positions})
        ours = loaded(clip_config(size), state, "open_clip")
        images = images_of(size)
        with torch.no_grad():
            close(ours.encode_image(images), theirs.encode_image(images, normalize=True), 1e-6)
            # The same weights without a model for that size: resampled as the images come.
            small = loaded(clip_config((32, 32)), state, "open_clip")
            close(small.encode_image(images), theirs.encode_image(images, normalize=True), 1e-6)


class TestAgainstTransformers:
    @pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
    def test_clip(self, activation):
        sizes = {
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "hidden_size": 48,
            "intermediate_size": 192,
        }
        config = HFCLIPConfig(
            vision_config={**sizes, "image_size": 32, "patch_size": PATCH, "hidden_act": activation},
            text_config={
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "hidden_size": 32,
                "hidden_act": activation,
                "intermediate_size": 128,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": LENGTH,
                "bos_token_id": END - 1,
                "eos_token_id": END,
                "pad_token_id": 0,
            },
            projection_dim=E,
            attn_implementation="sdpa",
        )
        theirs = randomised(CLIPModel(config))
        ours = loaded(clip_config(activation=activation), theirs.state_dict(), "Hugging Face transformers")
        self._compare(ours, theirs)

    def test_siglip(self):
        sizes = {
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "hidden_size": 48,
            "intermediate_size": 192,
        }
        config = SiglipConfig(
            vision_config={**sizes, "image_size": 32, "patch_size": PATCH},
            text_config={
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "hidden_size": 48,
                "projection_size": 48,
                "intermediate_size": 192,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": LENGTH,
            },
            attn_implementation="sdpa",
        )
        theirs = randomised(SiglipModel(config))
        with torch.no_grad():
            theirs.logit_scale.fill_(math.log(117.3))
        # transformers runs SigLIP with a GELU by tanh, open_clip with the exact one.
        ours = loaded(siglip_config(activation="gelu_tanh"), theirs.state_dict(), "Hugging Face transformers")
        self._compare(ours, theirs)

    def _compare(self, ours, theirs):
        images, tokens = images_of((32, 32)), tokens_of()
        with torch.no_grad():
            expected = theirs(input_ids=tokens, pixel_values=images)
            found = ours(images, tokens)
            close(found.image_BE, expected.image_embeds)
            close(found.text_TE, expected.text_embeds)
            close(similarity(*found), expected.logits_per_image)

    def test_tables_of_indices_in_old_files_are_left_out(self):
        theirs = CLIPModel(
            HFCLIPConfig(
                vision_config={"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16},
                text_config={
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "hidden_size": 16,
                    "vocab_size": 9,
                },
            )
        )
        state = theirs.state_dict()
        old = state | {
            f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("text", "vision")
        }
        dialect = detect(old, CLIP.DIALECTS)
        assert translate(old, dialect).keys() == translate(state, dialect).keys()


class TestOpenAI:
    """OpenAI's files hold open_clip's names and three sizes, in fp16 where they are matrices."""

    @pytest.fixture
    def theirs(self):
        return open_clip_model(quick=True)

    @pytest.fixture
    def state(self, theirs):
        sizes = {"input_resolution": 32, "context_length": LENGTH, "vocab_size": VOCABULARY}
        return theirs.state_dict() | {k: torch.tensor(v) for k, v in sizes.items()}

    def test_loads_where_the_model_has_quick_gelu(self, theirs, state):
        ours = loaded(clip_config(activation="quick_gelu"), state, "OpenAI CLIP")
        compare_with_open_clip(ours, theirs, (32, 32))

    def test_as_published_the_file_is_a_program_and_not_opened(self, tmp_path):
        """OpenAI's files are TorchScript archives; the refusal says how to convert one, and that works."""
        old, new = tmp_path / "ViT-B-32.pt", tmp_path / "converted.pt"
        torch.jit.script(torch.nn.Linear(2, 3)).save(str(old))
        with pytest.raises(InputError, match=r"TorchScript archive.*torch\.jit\.load\(OLD, 'cpu'\)"):
            read_state_dict(old)
        torch.save(torch.jit.load(old, "cpu").state_dict(), new)
        assert read_state_dict(new)["weight"].shape == (3, 2)

    def test_half_precision_is_widened(self, state):
        half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        ours = loaded(clip_config(activation="quick_gelu"), half, "OpenAI CLIP").float()
        assert {p.dtype for p in ours.parameters()} == {torch.float32}

    def test_refused_without_quick_gelu(self, state):
        with pytest.raises(InputError, match=r"QuickGELU and this model has GELU.*activation='quick_gelu'"):
            factory.load_weights(CLIP(clip_config()), state)

    @pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
    def test_the_refusal_names_the_right_variant(self, name):
        with torch.device("meta"):
            model = CLIP(VARIANTS[name].overridden(attention="naive"))
            right = factory.build(f"{name}-quickgelu")
        state = model.state_dict() | {"input_resolution": torch.tensor(224)}
        with pytest.raises(InputError, match=f"the weights of {name}-quickgelu: name that model"):
            factory.load_weights(model, state)
        factory.load_weights(right, state)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_by_name_and_from_a_file(device, tmp_path):
    theirs, config = open_clip_model(), clip_config()
    save_file(
        {name: t.contiguous() for name, t in theirs.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    with torch.device(device):
        ours = factory.build("ViT-B-32", image=config.image, text=config.text).double()
    factory.load_weights(ours, tmp_path / "clip.safetensors")
    compare_with_open_clip(ours, theirs, (32, 32))


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - set(OWN)))
def test_variants_have_open_clips_parameters(name):
    """On the meta device: open_clip's model under our names has our keys and shapes, and as many numbers."""
    logging.disable(logging.WARNING)
    with torch.device("meta"):
        theirs = open_clip.create_model(name, device="meta")
        ours = CLIP(VARIANTS[name])
    logging.disable(logging.NOTSET)
    state = theirs.state_dict()
    translated = ours.adapt_weights(translate(state, detect(state, CLIP.DIALECTS)))
    assert {k: v.shape for k, v in translated.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    numbers = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - set(OWN)))
def test_variants_have_open_clips_facts(name):
    """What parameter shapes do not show: sizes, heads, activations, norms, masks, pooling."""
    facts, ours = open_clip.get_model_config(name), VARIANTS[name]
    vision, text = facts["vision_cfg"], facts["text_cfg"]
    assert ours.image_size == (vision["image_size"],) * 2
    assert ours.embed_width == facts["embed_dim"]
    assert (ours.bias, ours.max_scale) == ((-10.0, None) if "init_logit_bias" in facts else (None, 100.0))
    if "timm_model_name" in vision:
        with torch.device("meta"):
            trunk = timm.create_model(vision["timm_model_name"])
        assert ours.image.heads == trunk.blocks[0].attn.num_heads == trunk.attn_pool.num_heads
        assert ours.image.norm_eps == trunk.norm.eps
        assert type(trunk.blocks[0].mlp.act).__name__ == "GELU"
        assert ours.image.activation == "gelu"
    else:
        quick = facts.get("quick_gelu", False)
        assert ours.image.activation == ("quick_gelu" if quick else "gelu")
        assert ours.image.heads == vision["width"] // vision.get("head_width", 64)
        assert ours.image.norm_eps == 1e-5
    tanh = text.get("act_kwargs", {}).get("approximate") == "tanh"
    assert (ours.text.activation == "gelu_tanh") == tanh
    assert (ours.text.activation == "quick_gelu") == facts.get("quick_gelu", False)
    assert ours.text.heads == text["heads"]
    assert ours.text.norm_eps == text.get("norm_kwargs", {}).get("eps", 1e-5)
    assert ours.text.causal == (not text.get("no_causal_mask", False))
    assert ours.text.pool == ("last" if text.get("pool_type") == "last" else "end")
    assert (ours.text.context_length, ours.text.vocab_size) == (text["context_length"], text["vocab_size"])


def test_a_model_built_without_memory_works_once_it_has_weights():
    """Nothing derived is kept in buffers that a build on the meta device would leave empty."""
    whole = randomised(CLIP(clip_config()))
    with torch.device("meta"):
        empty = CLIP(clip_config())
    empty.double().eval().load_state_dict(whole.state_dict(), assign=True)
    images, tokens = images_of((32, 32)), tokens_of()
    with torch.no_grad():
        assert torch.equal(similarity(*empty(images, tokens)), similarity(*whole(images, tokens)))


class TestText:
    def test_padding_and_batch_mates_do_not_count(self):
        """A row alone, without its padding, among longer ones, and with gradients: one embedding."""
        model = randomised(CLIP(clip_config())).text
        tokens = tokens_of()
        whole = model(tokens).detach()  # under gradients nothing is left out
        with torch.no_grad():
            close(model(tokens), whole)
            for row, expected in zip(tokens, whole, strict=True):
                length = int(row.argmax()) + 1
                close(model(row[None]), expected[None])
                close(model(row[None, :length]), expected[None])
                beyond = row.clone()
                beyond[length:] = 7
                close(model(beyond[None]), expected[None])

    def test_siglip_reads_the_padding(self):
        model = randomised(CLIP(siglip_config())).text
        with torch.no_grad():
            other = tokens_of().clone()
            other[other == 0] = 7
            assert (model(other) - model(tokens_of())).abs().max() > 1e-3

    @pytest.mark.parametrize("kernel", ["naive", "fused", "math"])
    def test_attention_kernels_agree(self, kernel):
        whole = randomised(CLIP(clip_config()))
        other = CLIP(clip_config().overridden(attention=kernel)).double().eval()
        other.load_state_dict(whole.state_dict())
        assert other.text.blocks[0].attn.attention == other.image.blocks[0].attn.attention == kernel
        with torch.no_grad():
            close(other.encode_text(tokens_of()), whole.encode_text(tokens_of()))
            close(other.encode_image(images_of((32, 32))), whole.encode_image(images_of((32, 32))))

    def test_with_the_tokenizer_it_belongs_to(self):
        config = dataclasses.replace(clip_config().text, context_length=77, vocab_size=49_408)
        theirs = open_clip.model.TextTransformer(
            context_length=77, vocab_size=49_408, width=32, heads=4, layers=2, output_dim=E
        )
        theirs = randomised(theirs)
        dialect = detect({"visual.class_embedding": 0, "token_embedding.weight": 0}, CLIP.DIALECTS)
        model = TextTransformer(config).double()
        state = translate(theirs.state_dict(), dialect)
        model.load_state_dict({name.removeprefix("text."): tensor for name, tensor in state.items()})
        texts = ["a photo of a cat", "", "ein Foto von zwei Hunden im Schnee, " * 20]
        tokens = torch.from_numpy(BPETokenizer()(texts, truncate=True))
        with torch.no_grad():
            close(model(tokens), theirs(open_clip.tokenize(texts)))


class TestScale:
    def test_clamped_at_100(self):
        model = CLIP(clip_config())
        assert model.scale().item() == pytest.approx(1 / 0.07)
        with torch.no_grad():
            model.logit_scale.fill_(5.0)
        assert model.scale().item() == 100.0

    def test_siglips_is_not(self):
        model = CLIP(siglip_config())
        assert (model.scale().item(), model.logit_bias.item()) == (pytest.approx(10.0), -10.0)
        with torch.no_grad():
            model.logit_scale.fill_(5.0)
        assert model.scale().item() == pytest.approx(math.exp(5.0))

    def test_embeddings_have_length_1(self):
        image, text, _, bias = randomised(CLIP(clip_config()))(images_of((32, 32)), tokens_of())
        assert bias is None
        for embedding in (image, text):
            assert torch.allclose(embedding.norm(dim=-1), torch.ones((), dtype=torch.float64))


class TestConfig:
    def test_towers_can_be_given(self):
        config = clip_config()
        image, text = ViT(config.image), TextTransformer(config.text)
        model = CLIP(config, image=image, text=text)
        assert (model.image, model.text) == (image, text)

    def test_towers_of_another_config(self):
        with pytest.raises(InputError, match="do not match the config"):
            CLIP(clip_config(), image=ViT(clip_config((64, 64)).image))

    def test_overrides(self):
        config = VARIANTS["ViT-B-32"].overridden(image_size=(256, 320), attention="fused")
        assert config.image_size == (256, 320)
        assert (config.attention, config.text.attention) == ("fused", "fused")
        assert config.channels == 3
        assert VARIANTS["ViT-B-32"].image_size == (224, 224)
        with pytest.raises(InputError, match="leave num_classes out"):
            config.overridden(num_classes=10)

    def test_embeddings_of_different_width(self):
        config = clip_config()
        with pytest.raises(InputError, match="24 features and the text tower 25"):
            replace(config, text=replace(config.text, embed_width=25))

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("heads", 5, "do not divide into 5 heads"),
            ("pool", "middle", "choose one of end, last"),
            ("activation", "swish", "no activation 'swish'"),
            ("attention", "quick", "no attention kernel 'quick'"),
        ],
    )
    def test_text_fields(self, field, value, message):
        with pytest.raises(InputError, match=message):
            TextConfig(**{**TEXT, "embed_width": E, field: value})


class TestBadInput:
    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (torch.zeros(LENGTH, dtype=torch.int64), r"\(B, 12\), not \(12,\)"),
            (torch.zeros(1, LENGTH + 1, dtype=torch.int64), "13 tokens and the model reads 12"),
            (torch.zeros(1, 0, dtype=torch.int64), "0 tokens and the model reads 12"),
            (torch.zeros(0, LENGTH, dtype=torch.int64), "at least one text"),
            (torch.zeros(1, LENGTH), "int64, not float32"),
            (np.zeros((1, LENGTH), np.int64), r"a tensor, not ndarray.*torch\.from_numpy"),
            (torch.full((1, LENGTH), VOCABULARY), "96 is outside the vocabulary of 96"),
            (torch.full((1, LENGTH), -1), "-1 is outside the vocabulary"),
        ],
    )
    def test_tokens(self, tokens, message):
        with pytest.raises(InputError, match=message):
            CLIP(clip_config()).encode_text(tokens)

    def test_siglip_wants_whole_rows(self):
        with pytest.raises(InputError, match=r"exactly 12.*context_length=12"):
            CLIP(siglip_config()).encode_text(torch.zeros(1, LENGTH - 1, dtype=torch.int64))

    @pytest.mark.parametrize(
        "shape", [(3, 32, 32), (1, 1, 32, 32), (0, 3, 32, 32), (1, 3, 4, 4), (1, 3, 33, 32)]
    )
    def test_images(self, shape):
        with pytest.raises(InputError):
            CLIP(clip_config()).encode_image(torch.zeros(shape))

    def test_weights_of_a_residual_network_are_no_vit(self):
        state = {"visual.conv1.weight": torch.zeros(1), "visual.layer1.0.conv1.weight": torch.zeros(1)}
        assert detect(state, CLIP.DIALECTS) is None


class TestCompileAndExport:
    @pytest.mark.slow
    def test_one_graph_for_all_batch_sizes(self):
        from torch._dynamo.testing import CompileCounter

        model = randomised(CLIP(clip_config())).float()
        for tower, batch_of in (
            (model.image, lambda n: images_of((32, 32), n).float()),
            (model.text, tokens_of),
        ):
            torch._dynamo.reset()
            counter = CompileCounter()
            compiled = torch.compile(tower, backend=counter, fullgraph=True)
            for size in (2, 3, 7):
                batch = batch_of(size)
                torch._dynamo.mark_dynamic(batch, 0)
                with torch.no_grad():
                    close(compiled(batch), tower(batch), 1e-5)
            assert counter.frame_count == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("siglip", [False, True])
    def test_image_tower_as_onnx(self, siglip, tmp_path):
        from exports import graph_of

        from vitrail.export import onnx

        model = randomised(CLIP(siglip_config() if siglip else clip_config(activation="quick_gelu"))).float()
        width = model.image(images_of((32, 32), 1).float()).shape[1]
        onnx.write_onnx(model.image, graph_of(32, width), tmp_path / "image.onnx")
        self._run_and_compare(
            tmp_path / "image.onnx", model.image, [images_of((32, 32), n).float() for n in (1, 2, 7)]
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("siglip", [False, True])
    def test_text_tower_as_onnx(self, siglip, tmp_path):
        model = randomised(CLIP(siglip_config() if siglip else clip_config(activation="quick_gelu"))).float()
        torch.onnx.export(
            model.text,
            (tokens_of(2),),
            tmp_path / "text.onnx",
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        self._run_and_compare(tmp_path / "text.onnx", model.text, [tokens_of(n) for n in (1, 2, 7)])

    def _run_and_compare(self, path, tower, batches):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in batches:
            (found,) = session.run(None, {session.get_inputs()[0].name: np.asarray(batch)})
            with torch.no_grad():
                close(torch.from_numpy(found), tower(batch), 1e-5)


def test_the_small_configs_are_the_published_ones_but_for_size():
    """The comparisons above say something about the variants only if they differ in nothing else."""
    sizes = {
        "width",
        "depth",
        "heads",
        "patch_size",
        "image_size",
        "num_classes",
        "embed_width",
        "vocab_size",
    }
    sizes |= {"context_length"}
    for small, whole in (
        (clip_config(), VARIANTS["ViT-B-32"]),
        (siglip_config(), VARIANTS["ViT-B-16-SigLIP"]),
    ):
        for tower in ("image", "text"):
            one, other = (dataclasses.asdict(getattr(config, tower)) for config in (small, whole))
            assert {k for k in one if one[k] != other[k]} <= sizes
    assert isinstance(VARIANTS["ViT-B-32"].image, ViTConfig)
