"""Zero-shot heads against open_clip's on the same random weights; prompts, names and the table of weights."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from exports import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from PIL import Image

from vitrail.catalog.clip import all_published, of_hub, of_model, preprocess_of, published
from vitrail.catalog.licenses import LICENSES
from vitrail.catalog.table import NORMALISATIONS
from vitrail.errors import InputError
from vitrail.export.onnx import write_onnx
from vitrail.images.preprocess import prepare
from vitrail.models import clip, factory
from vitrail.models.clip import CLIP, VARIANTS, CLIPConfig, similarity
from vitrail.models.registry import OWN
from vitrail.text.tokenizer import BPETokenizer
from vitrail.vocabulary import Preprocess
from vitrail.zeroshot import prompts
from vitrail.zeroshot.head import check_names, classifier, text_head
from vitrail.zeroshot.score import clip_score

SIZE, PATCH, E = 32, 8, 48
CLASSES = ("a corgi dog", "persian cat", "tram", "cheese {sandwich}")
TEMPLATES = ("a photo of a {}.", "the {} in a video game.", "{}")


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter moved by noise; the scale stays where CLIP's clamp does not reach."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += (0.02 if name.startswith("logit") else 0.15) * noise
    return model.eval()


def small(name: str, **text) -> CLIPConfig:
    """A published config but for its sizes; CLIP's own vocabulary."""
    whole = VARIANTS[name]
    width = whole.image.num_classes and E
    return replace(
        whole,
        image=replace(
            whole.image,
            width=E, depth=2, heads=3, patch_size=PATCH, image_size=(SIZE, SIZE), num_classes=width,
        ),
        text=replace(
            whole.text,
            width=32 if width else E, depth=2, heads=4, embed_width=E,
            **({"vocab_size": 49_408} | text),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[CLIP, torch.nn.Module]]:
    """Our model and open_clip's with the same weights."""
    torch.manual_seed(0)
    vision = {"layers": 2, "width": E, "head_width": 16, "patch_size": PATCH, "image_size": SIZE}
    text = {"context_length": 77, "vocab_size": 49_408, "width": 32, "heads": 4, "layers": 2}
    theirs = randomised(OpenCLIP(E, vision, text))
    ours = CLIP(small("ViT-B-32")).eval()
    factory.load_weights(ours, theirs.state_dict())
    sig_text = {
        **text,
        "width": E, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }  # fmt: skip
    import timm

    stand_in = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 160}
    sig_theirs = CustomTextCLIP(E, stand_in, sig_text, init_logit_bias=-10, init_logit_scale=math.log(110))
    sig_theirs.visual.trunk = timm.create_model(
        "vit_base_patch16_siglip_224",
        num_classes=0, embed_dim=E, depth=2, num_heads=3, patch_size=PATCH, img_size=SIZE,
    )  # fmt: skip
    randomised(sig_theirs)
    sig_ours = CLIP(small("ViT-B-16-SigLIP", context_length=77, pad_id=0)).eval()
    factory.load_weights(sig_ours, sig_theirs.state_dict())
    return {"CLIP": (ours, theirs), "SigLIP": (sig_ours, sig_theirs)}


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer()


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def close(found, expected, tolerance=1e-5):
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


class TestHead:
    @pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
    @pytest.mark.parametrize("templates", [TEMPLATES, prompts.IMAGENET])
    def test_weights_equal_open_clips(self, pairs, tokenizer, kind, templates):
        ours, theirs = pairs[kind]
        names = [name.replace("{", "").replace("}", "") for name in CLASSES]  # theirs would format braces
        found = text_head(ours, tokenizer, names, templates)
        expected = open_clip.build_zero_shot_classifier(
            theirs, open_clip.get_tokenizer("ViT-B-32"), names, list(templates)
        )
        close(found.weight_KE, (expected * theirs.logit_scale.exp()).T)
        assert not found.weight_KE.requires_grad
        if kind == "CLIP":
            assert found.bias_K is None
        else:
            assert found.bias_K.tolist() == [float(theirs.logit_bias)] * len(names)

    @pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
    def test_the_classifier_gives_open_clips_logits(self, pairs, tokenizer, kind):
        ours, theirs = pairs[kind]
        model = classifier(ours, *text_head(ours, tokenizer, CLASSES[:3], ["{}"]))
        with torch.no_grad():
            expected, _ = theirs.get_logits(images(5), open_clip.tokenize(list(CLASSES[:3])))
            close(model(images(5)), expected)
        assert not any(name.startswith("text") for name in model.state_dict())
        assert not any(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize("batch", [1, 2, 5, 100])
    def test_the_batch_changes_nothing(self, pairs, tokenizer, batch):
        ours, _ = pairs["CLIP"]
        whole = text_head(ours, tokenizer, CLASSES, TEMPLATES)
        close(text_head(ours, tokenizer, CLASSES, TEMPLATES, batch=batch).weight_KE, whole.weight_KE, 1e-6)

    def test_order_of_classes_is_the_order_of_rows_and_templates_have_none(self, pairs, tokenizer):
        ours, _ = pairs["CLIP"]
        whole = text_head(ours, tokenizer, CLASSES, TEMPLATES).weight_KE
        turned = text_head(ours, tokenizer, CLASSES[::-1], TEMPLATES[::-1]).weight_KE
        close(turned, whole.flip(0), 1e-6)

    def test_braces_of_a_name_stay(self, pairs, tokenizer):
        ours, _ = pairs["CLIP"]
        with torch.no_grad():
            text = ours.encode_text(torch.from_numpy(tokenizer([f"a {name}" for name in CLASSES])))
        close(text_head(ours, tokenizer, CLASSES, ["a {}"]).weight_KE, text * ours.scale())

    @pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
    def test_onnxruntime_gives_the_same_logits_at_any_batch(self, pairs, tokenizer, kind, tmp_path):
        ours, _ = pairs[kind]
        model = classifier(ours, *text_head(ours, tokenizer, CLASSES, TEMPLATES))
        write_onnx(model, graph_of(SIZE, len(CLASSES)), tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        for batch in (1, 2, 7):
            (found,) = session.run(None, {"images": images(batch).numpy()})
            with torch.no_grad():
                close(found, model(images(batch)), 1e-4)

    def test_wrong_use_is_told(self, pairs, tokenizer):
        ours, _ = pairs["CLIP"]
        cases = [
            (CLASSES, (), {}, "no templates"),
            (CLASSES, TEMPLATES, {"batch": 0}, "batch is 0: give 1 to"),
            (("cat", "CAT "), TEMPLATES, {}, "the same class at positions 1 and 2"),
            (("cat", "word " * 100), TEMPLATES, {}, "shorten it.$"),
            (("cat", "\x00\x01"), TEMPLATES, {}, "reads nothing in the class name"),
        ]
        for classes, templates, options, message in cases:
            with pytest.raises(InputError, match=message):
                text_head(ours, tokenizer, classes, templates, **options)
        with pytest.raises(InputError, match="own text tower"):
            classifier(ours, torch.ones(3, E + 1))
        with pytest.raises(InputError, match="for the same classes"):
            classifier(ours, torch.ones(3, E), torch.ones(2))

    def test_names_are_judged_as_the_tokenizer_reads_them(self):
        canonical = BPETokenizer(clean="canonicalize")
        check_names(BPETokenizer(), ["!?", "cat", "cat!"])
        with pytest.raises(InputError, match="in the class name '!\\?'"):
            check_names(canonical, ["cat", "!?"])
        with pytest.raises(InputError, match="'cat' and 'cat!' apart"):
            check_names(canonical, ["cat", "cat!"])


def test_clip_score_is_the_papers(pairs, tokenizer):
    ours, theirs = pairs["CLIP"]
    texts = ["a cat", "a tram", "two cats"]
    found = clip_score(ours, images(3), torch.from_numpy(tokenizer(texts)))
    with torch.no_grad():
        image, text = theirs.encode_image(images(3)), theirs.encode_text(open_clip.tokenize(texts))
    cosine = torch.nn.functional.cosine_similarity(image, text)
    close(found.cosine_B, cosine)
    assert torch.allclose(found.clip_score_B, 2.5 * cosine.clamp(min=0), atol=1e-5)
    # With the texts turned round every pair that agreed disagrees.
    turned = copy.deepcopy(ours)
    with torch.no_grad():
        turned.text.projection.weight.neg_()
    found = clip_score(turned, images(3), torch.from_numpy(tokenizer(texts)))
    close(found.cosine_B, -cosine)
    assert ((found.clip_score_B > 0) == (cosine < 0)).all()
    assert float(found.clip_score_B.min()) >= 0


# --- prompts and names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        (prompts.IMAGENET, OPENAI_IMAGENET_TEMPLATES, 80),
        (prompts.SIMPLE, SIMPLE_IMAGENET_TEMPLATES, 7),
    ],
)
def test_the_sets_are_clips(ours, theirs, count):
    assert len(ours) == len(set(ours)) == count
    assert [prompts.filled(t, "red fox") for t in ours] == [t("red fox") for t in theirs]


def test_templates_by_name_or_from_a_file(tmp_path):
    assert prompts.templates("imagenet") == prompts.IMAGENET
    assert prompts.templates("simple") == prompts.SIMPLE
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa photo of {}\r\n\n  ein Bild von {}  \n{} {x}".encode())
    assert prompts.templates(str(file)) == ("a photo of {}", "ein Bild von {}", "{} {x}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a {}\n\na cat\n", "no {} at line 3"),
        (b"a {} {}\n", "2 {} at line 1"),
        (b"a {}\nb {}\n a {}", "lines 1 and 3"),
        (b" \n", "has no templates"),
        (b"\xff\xfe{}", "not UTF-8"),
    ],
)
def test_bad_template_files_are_told(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        prompts.templates(str(file))


@pytest.mark.parametrize("source", ["imagnet", "no/such/file", "\0", "x" * 5000])
def test_what_is_neither_a_set_nor_a_file(source):
    with pytest.raises(InputError, match="neither a set of prompts"):
        prompts.templates(source)


def test_classes_from_the_command_line_or_a_file(tmp_path):
    assert prompts.parse_classes(" cat, corgi dog,tram ") == ("cat", "corgi dog", "tram")
    file = tmp_path / "classes.txt"
    file.write_text("dog, big\ncat\n", encoding="utf-8")
    assert prompts.parse_classes(str(file)) == ("dog, big", "cat")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cat", "neither a file nor several"),
        ("", "neither a file nor several"),
        ("cat,,dog", "empty name at position 2"),
        ("cat,dog,", "empty name at position 3"),
        ("cat,dog, Cat", "positions 1 and 3"),
        ("caf\u00e9,cafe\u0301", "positions 1 and 2"),
        ("stra\u00dfe,STRASSE", "positions 1 and 2"),
        ("hot  dog,hot dog", "positions 1 and 2"),
    ],
)
def test_bad_classes_are_told(source, message):
    with pytest.raises(InputError, match=message):
        prompts.parse_classes(source)


def test_one_class_is_nothing_to_choose_between(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("cat\n")
    with pytest.raises(InputError, match="only 'cat': give at least two classes"):
        prompts.parse_classes(str(file))
    with pytest.raises(InputError, match="names no class"):
        prompts.class_names([])


@settings(max_examples=200, deadline=None)
# U+0345 turns into a letter and thereby changes what stands before it.
@given(st.text(st.characters(exclude_characters="\u0345"), min_size=1, max_size=20))
def test_the_key_of_a_name_forgets_case_and_composition(name):
    import unicodedata

    assert prompts.key(name.casefold()) == prompts.key(name)
    assert prompts.key(unicodedata.normalize("NFD", name)) == prompts.key(name)
    assert prompts.key(prompts.key(name)) == prompts.key(name)


# --- published weights ------------------------------------------------------------------------------


def test_rows_are_open_clips():
    rows = all_published()
    assert len(rows) == len({(row.model, row.tag) for row in rows}) >= 40
    for row in rows:
        name, tag = row.model, row.tag
        facts = open_clip.get_pretrained_cfg(name, tag)
        assert facts["hf_hub"].rstrip("/") == row.hub, (name, tag)
        assert (facts["mean"], facts["std"]) == NORMALISATIONS[row.normalisation]
        assert facts["interpolation"] == "bicubic"
        assert {"shortest": "center", "squash": "squash"}[facts["resize_mode"]] == row.crop_mode
        assert bool(facts.get("quick_gelu")) == name.endswith("-quickgelu")
        assert name.endswith("-quickgelu") == (VARIANTS[name].image.activation == "quick_gelu")
        assert row.license in LICENSES
        assert row.accuracy is None or 50 < row.accuracy < 90


def test_every_model_that_open_clip_publishes_weights_for_has_a_row():
    without = {name for name in VARIANTS.keys() - set(OWN) if not of_model(name)}
    assert without == {"ViT-L-14-336"}, "OpenAI's alone, which needs QuickGELU"


@pytest.mark.parametrize(
    ("name", "tag"),
    [("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-B-16-SigLIP", "webli")],
)
def test_preprocessing_is_open_clips(name, tag):
    found = preprocess_of(name, 64, published(name, tag))
    facts = open_clip.get_pretrained_cfg(name, tag)
    config = PreprocessCfg(size=64, **{k: facts[k] for k in ("mean", "std", "interpolation", "resize_mode")})
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((400, 260), Image.Resampling.BICUBIC)
    expected = image_transform_v2(config, is_train=False)(photo)
    close(prepare(photo, found), expected, 1e-6)


def test_which_published_weights_are_meant():
    assert published("ViT-B-32", "laion2b_s34b_b79k").hub == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert published("ViT-B-16-SigLIP", None).tag == "webli"
    assert of_hub("ViT-B-32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K").tag == "laion2b_s34b_b79k"
    assert of_hub("ViT-B-16", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K") is None
    for name, tag, message in [
        ("ViT-B-32", None, "choose one with --tag"),
        ("ViT-B-32", "openai", "use --model ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "no QuickGELU: use --model ViT-B-32\\."),
        ("ViT-B-32", "laion2b_s34b_b79", "did you mean laion2b_s34b_b79k"),
        ("ViT-L-14-336", None, "no published weights"),
    ]:
        with pytest.raises(InputError, match=message):
            published(name, tag)


def test_preprocessing_is_never_guessed():
    assert preprocess_of("ViT-B-32", 224, None) == Preprocess(
        image_size=224, crop=1.0,
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
    )  # fmt: skip
    with pytest.raises(InputError, match="--tag \\(laion400m_e32 or laion2b_s32b_b82k"):
        preprocess_of("ViT-L-14", 224, None)
    with pytest.raises(InputError, match="none is known"):
        preprocess_of("ViT-L-14-336", 336, None)


def test_the_head_agrees_with_similarity(pairs, tokenizer):
    ours, _ = pairs["SigLIP"]
    with torch.no_grad():
        expected = similarity(*ours(images(2), torch.from_numpy(tokenizer(["cat", "dog"]))))
        close(classifier(ours, *text_head(ours, tokenizer, ["cat", "dog"], ["{}"]))(images(2)), expected)


def test_variants_have_square_images():
    assert all(config.image_size[0] == config.image_size[1] for config in clip.VARIANTS.values())


def test_the_page_runs_as_it_stands_and_names_the_sets(capsys):
    page = (Path(__file__).parents[1] / "docs" / "zero-shot.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/zero-shot.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    for name, templates in prompts.SETS.items():
        assert f"| `{name}` | {len(templates)} |" in page
