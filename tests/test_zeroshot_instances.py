"""Masks for a text through transformers' SAM 3, on a small model with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

from vitrail.errors import InputError, MissingExtraError
from vitrail.zeroshot import instances
from vitrail.zeroshot.instances import TextSegmenter

SIDE = 56


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def segmenter():
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_layers": 1}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14,
                "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
            "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1,
        },
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 9},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Sam3Model(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "embed" not in name:
                value.normal_(std=value[0].numel() ** -0.5)
            elif name.endswith("bias"):
                value.normal_(std=0.3)
    letters = [*"abcdefghijklmnop", *(f"{letter}</w>" for letter in "abcdefghijklmnop")]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    processor = Sam3Processor(
        Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}), CLIPTokenizer(vocab=vocabulary, merges=[])
    )
    return TextSegmenter(model, processor)


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def expected(segmenter, photo, text, least):
    """From the model's raw outputs on one call with everything, by the formula."""
    given = segmenter.processor(images=photo, text=text, return_tensors="pt")
    with torch.no_grad():
        raw = segmenter.model(**{k: given[k] for k in ("pixel_values", "input_ids", "attention_mask")})
    scores = (raw.pred_logits.sigmoid() * raw.presence_logits.sigmoid())[0]
    masks = torch.nn.functional.interpolate(raw.pred_masks.sigmoid(), (40, 70), mode="bilinear")[0] > 0.5
    order = [int(i) for i in scores.argsort(descending=True) if scores[i] > least]
    boxes = raw.pred_boxes[0] * torch.tensor([70, 40, 70, 40])
    return [(masks[i].numpy(), scores[i].item(), boxes[i].tolist()) for i in order]


def test_the_masks_are_the_models(segmenter, photo):
    raw = expected(segmenter, photo, "a dog", 0)
    least = (raw[3][1] + raw[4][1]) / 2
    found = segmenter.segment(photo, ["a dog", "a cab"], least_score=least)
    assert list(found) == ["a dog", "a cab"]
    for text in found:
        wanted = expected(segmenter, photo, text, least)
        assert len(found[text]) == len(wanted)
        for instance, (mask, score, box) in zip(found[text], wanted, strict=True):
            assert instance.score == pytest.approx(score, rel=1e-5)
            assert instance.box == pytest.approx(box, rel=1e-4, abs=1e-3)
            assert instance.mask.shape == (40, 70)
            assert instance.mask.dtype == bool
            assert (instance.mask != mask).mean() < 1e-3
    assert len(found["a dog"]) == 4
    assert [i.score for i in found["a dog"]] != [i.score for i in found["a cab"]]


def test_nothing_may_be_found(segmenter, photo):
    assert segmenter.segment(photo, ["a dog"], least_score=1) == {"a dog": []}


@pytest.mark.parametrize(
    ("texts", "least", "said"),
    [
        ([], 0.3, "no list of texts"),
        ("a dog", 0.3, "no list of texts"),
        (["a dog", "  "], 0.3, "A text is empty"),
        (["a dog " * 20], 0.3, "has 82 tokens and the model reads 32: name the thing in a few words"),
        (["a dog"], 1.5, "least_score is 1.5"),
        (["a dog"], float("nan"), "least_score is nan"),
    ],
)
def test_what_cannot_be_asked_is_refused(segmenter, photo, texts, least, said):
    with pytest.raises(InputError, match=said):
        segmenter.segment(photo, texts, least_score=least)


def test_damaged_weights_are_named(segmenter, photo):
    weight = segmenter.model.detr_decoder.query_embed.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    try:
        with pytest.raises(InputError, match="outputs for 'a dog' are not finite"):
            segmenter.segment(photo, ["a dog"])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.slow
def test_a_saved_folder_is_loaded(segmenter, photo, tmp_path):
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    again = instances.load(str(tmp_path)).segment(photo, ["a dog"], least_score=0.1)["a dog"]
    before = segmenter.segment(photo, ["a dog"], least_score=0.1)["a dog"]
    assert [i.score for i in again] == pytest.approx([i.score for i in before])


def test_what_cannot_be_loaded_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"could not be loaded .* accept its licence at https://"):
        instances.load(str(tmp_path))
    monkeypatch.setattr(instances.importlib, "import_module", lambda name: object())
    with pytest.raises(MissingExtraError, match="transformers with SAM 3 is not installed"):
        instances.load()
