"""Our SAM against transformers' SamModel on the same random weights, in small sizes; and its two graphs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from vitrail import models, runtimes
from vitrail.errors import InputError
from vitrail.export import onnx
from vitrail.images.letterbox import letterbox
from vitrail.models.registry import SEGMENTERS
from vitrail.models.sam import SAM, VARIANTS, PromptGraph, Prompts, SAMConfig
from vitrail.models.sam_decoder import MaskDecoder, TwoWayTransformer
from vitrail.models.sam_encoder import ImageEncoder, RelativeAttention
from vitrail.models.sam_prompts import PADDING, PromptEncoder
from vitrail.vocabulary import Graph, Target, TensorSpec

# 10 × 10 tokens in windows of 4: the last row and column of windows are filled up with zeros.
SMALL = SAMConfig(
    image_size=(80, 80),
    patch_size=8,
    width=32,
    depth=3,
    heads=2,
    window=4,
    global_blocks=(1,),
    embed_width=32,
    mask_channels=8,
    decoder_heads=4,
    decoder_mlp_width=48,
    iou_width=24,
)
SIDE, MASK = 80, 40


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif value.ndim > 1 and "embed" not in name and "token" not in name and "rel_pos" not in name:
                noise = noise / math.sqrt(value[0].numel())
            value.copy_(noise)
    return model


@pytest.fixture(scope="module")
def theirs() -> SamModel:
    c = SMALL
    vision = SamVisionConfig(
        hidden_size=c.width, output_channels=c.embed_width, num_hidden_layers=c.depth, mlp_dim=4 * c.width,
        num_attention_heads=c.heads, image_size=SIDE, patch_size=c.patch_size, window_size=c.window,
        global_attn_indexes=list(c.global_blocks), num_pos_feats=c.embed_width // 2,
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(
        hidden_size=c.embed_width,
        image_size=SIDE,
        patch_size=c.patch_size,
        mask_input_channels=c.mask_channels,
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=c.embed_width, mlp_dim=c.decoder_mlp_width, num_attention_heads=c.decoder_heads,
        iou_head_hidden_dim=c.iou_width,
    )  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    # Their eager attention computes its softmax in fp32, whatever the weights.
    config._attn_implementation = "sdpa"
    model = randomised(SamModel(config).double().eval())
    with torch.no_grad():
        # N(0, 1), as in published files; random features of a higher frequency are noise in fp32.
        model.shared_image_embedding.positional_embedding.normal_(generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def ours(theirs) -> SAM:
    return loaded(theirs.state_dict())


def loaded(state: dict[str, torch.Tensor], config: SAMConfig = SMALL) -> SAM:
    model = SAM(config).double().eval()
    models.load_weights(model, state)
    return model


def images(batch: int = 2) -> torch.Tensor:
    """Two photos, one wide and one tall, as they are prepared."""
    rng = np.random.default_rng(0)
    sizes = [(50, 70), (90, 40), (64, 64)][:batch]
    photos = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return torch.from_numpy(np.stack([letterbox(photo, SIDE)[0] for photo in photos])).double()


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
    return {
        "point": {"input_points": points[:, :1, :1], "input_labels": labels[:, :1, :1]},
        "points": {"input_points": points, "input_labels": labels},
        "padded": {"input_points": points, "input_labels": padded},
        "boxes": {"input_boxes": boxes},
        "both": {"input_points": points, "input_labels": labels, "input_boxes": boxes},
        "mask": {"input_masks": masks},
        "all": {"input_points": points, "input_labels": padded, "input_boxes": boxes, "input_masks": masks},
    }[kind]


KINDS = ("point", "points", "padded", "boxes", "both", "mask", "all")


def as_ours(given: dict[str, torch.Tensor]) -> Prompts:
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    return Prompts(*(given.get(name) for name in names))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multimask", [True, False])
def test_equals_transformers(theirs, ours, kind, multimask):
    given, x = prompts(kind), images()
    with torch.no_grad():
        expected = theirs(pixel_values=x, **given, multimask_output=multimask)
        found = ours(x, as_ours(given), multimask=multimask)
    assert relative(found.masks_BPMYX, expected.pred_masks) < 1e-9
    assert relative(found.ious_BPM, expected.iou_scores) < 1e-9
    assert found.masks_BPMYX.shape[2:] == (3 if multimask else 1, MASK, MASK)


def test_embeddings_equal_transformers(theirs, ours):
    x = images()
    with torch.no_grad():
        expected = theirs.get_image_embeddings(x)
        assert relative(ours.encode(x), expected) < 1e-9
        positions = theirs.get_image_wide_positional_embeddings()[0]
        assert relative(ours.prompt_encoder.image_positions(), positions) < 1e-12
    # With gradients blocks are not computed in place.
    assert relative(ours.encode(x), expected) < 1e-9


@pytest.mark.parametrize("kind", ["points", "boxes", "all"])
def test_equals_transformers_in_fp32(theirs, kind):
    given, x = prompts(kind), images()
    model = loaded(theirs.state_dict()).float()
    narrow = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    with torch.no_grad():
        expected = theirs(pixel_values=x, **given)
        found = model(x.float(), as_ours(narrow))
        assert relative(model.encode(x.float()), theirs.get_image_embeddings(x)) < 1e-5
    assert relative(found.masks_BPMYX, expected.pred_masks) < 1e-5
    assert relative(found.ious_BPM, expected.iou_scores) < 1e-5


def test_gradients_equal_transformers(theirs):
    given, model = prompts("all"), loaded(theirs.state_dict())
    x, y = images().requires_grad_(), images().requires_grad_()
    expected = theirs(pixel_values=x, **given)
    (expected.pred_masks.square().sum() + expected.iou_scores.sum()).backward()
    found = model(y, as_ours(given))
    (found.masks_BPMYX.square().sum() + found.ious_BPM.sum()).backward()
    assert relative(y.grad, x.grad) < 1e-9
    theirs.zero_grad()


def test_relative_positions_are_the_formula():
    """score(i, j) = q k / √d + q · R_h[Δrow] + q · R_w[Δcolumn], written as a loop."""
    attention = randomised(RelativeAttention(8, 2, grid=(3, 5), window=None).double())
    x = torch.randn(1, 15, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2)[0] for t in attention.qkv(x).chunk(3, -1))
    scores = torch.empty(2, 15, 15, dtype=torch.float64)
    for i in range(15):
        for j in range(15):
            down, right = i // 5 - j // 5 + 2, i % 5 - j % 5 + 4
            place = attention.rel_pos_h[down] + attention.rel_pos_w[right]
            scores[:, i, j] = (q[:, i] * k[:, j]).sum(-1) / 2 + q[:, i] @ place
    expected = attention.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    assert relative(attention(x)[0], expected) < 1e-12
    assert relative(attention.weights(x)[0], scores.softmax(-1)) < 1e-12


@pytest.mark.parametrize("kernel", ["naive", "fused", "blocked"])
def test_kernels_take_queries_wider_than_values(kernel):
    """`blocked` is what a whole map of the published sizes gets on CPUs."""
    reference = randomised(RelativeAttention(32, 2, grid=(24, 24), window=None, attention="math").double())
    attention = RelativeAttention(32, 2, grid=(24, 24), window=None, attention=kernel)
    attention.load_state_dict(reference.state_dict())
    x = torch.randn(2, 576, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(attention(x), reference(x.double())) < 1e-5
        assert relative(attention.bfloat16()(x.bfloat16()), reference(x.double())) < 3e-2


def test_an_image_alone_and_a_prompt_alone_give_the_same(ours):
    given, x = as_ours(prompts("all")), images()
    with torch.no_grad():
        whole = ours(x, given)
        points, labels, boxes = (part[1:, 1:2] for part in given[:3])
        alone = ours(x[1:], Prompts(points, labels, boxes, given.masks_BPYX[1:]))
    assert relative(alone.masks_BPMYX, whole.masks_BPMYX[1:, 1:2]) < 1e-9


def test_each_prompt_may_have_a_mask_of_its_own(ours):
    """As a decoder's answer is fed back, for every object of a photo."""
    points, labels, *_ = as_ours(prompts("points"))
    x = images()
    with torch.no_grad():
        first = ours(x, Prompts(points, labels), multimask=False)
        again = ours(x, Prompts(points, labels, None, first.masks_BPMYX[:, :, 0]))
        for p in range(3):
            one = Prompts(points[:, p : p + 1], labels[:, p : p + 1], None, first.masks_BPMYX[:, p])
            alone = ours(x, one)
            assert relative(alone.masks_BPMYX[:, 0], again.masks_BPMYX[:, p]) < 1e-9


# --- weights --------------------------------------------------------------------------------------


def metas(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the names of Meta's files, as segment_anything/modeling has them."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".mlp.fc", ".mlp.lin")
        name = name.replace(".mlp.layers.0", ".mlp.lin1").replace(".mlp.layers.1", ".mlp.lin2")
        if name == "image_encoder.pos_embed":
            value = value.unflatten(1, SMALL.grid)
        renamed[name] = value
    return renamed


def test_metas_names_are_read(ours, tmp_path):
    path = tmp_path / "sam.pth"
    torch.save(metas(ours.state_dict()), path)
    names = set(metas(ours.state_dict()))
    assert {
        "image_encoder.blocks.0.mlp.lin1.weight",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.neck.3.bias",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.point_embeddings.3.weight",
        "prompt_encoder.mask_downscaling.6.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight",
        "mask_decoder.transformer.layers.0.mlp.lin2.bias",
        "mask_decoder.transformer.norm_final_attn.weight",
        "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
        "mask_decoder.iou_prediction_head.layers.0.weight",
    } <= names
    model = SAM(SMALL).double()
    models.load_weights(model, path)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())


def test_transformers_files_hold_the_fourier_features_once_or_twice(theirs, ours, tmp_path):
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    again = "prompt_encoder.shared_embedding.positional_embedding"
    assert again in state
    for without in (again, "shared_image_embedding.positional_embedding"):
        path = tmp_path / "model.safetensors"
        save_file({name: value for name, value in state.items() if name != without}, path)
        model = SAM(SMALL).double()
        models.load_weights(model, path)
        assert torch.equal(model.prompt_encoder.image_positions(), ours.prompt_encoder.image_positions())
    state[again] = state[again] + 1
    with pytest.raises(InputError, match="two matrices of Fourier features that differ"):
        models.load_weights(SAM(SMALL), state)


@pytest.mark.parametrize("theirs_or_metas", ["transformers", "Meta"])
def test_a_tensor_too_few_or_too_many_is_named(theirs, ours, theirs_or_metas):
    state = theirs.state_dict() if theirs_or_metas == "transformers" else metas(ours.state_dict())
    model, before = SAM(SMALL), SAM(SMALL).state_dict()
    model.load_state_dict(before)
    few = {name: value for name, value in state.items() if not name.endswith("not_a_point_embed.weight")}
    with pytest.raises(InputError, match=r"missing prompt_encoder\.not_a_point_embed\.weight"):
        models.load_weights(model, few)
    many = {**state, "mask_decoder.extra": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unexpected mask_decoder\.extra"):
        models.load_weights(model, many)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_size_name_the_model_that_takes_them(tmp_path):
    with torch.device("meta"):
        base = models.build("sam_vit_base")
        large = models.build("sam_vit_large")
    with pytest.raises(InputError, match="weights of sam_vit_large: name that model"):
        models.load_weights(base, large.state_dict())


def test_weights_on_the_meta_device_are_taken_over(ours):
    with torch.device("meta"):
        model = SAM(SMALL)
    models.load_weights(model, {name: value.float() for name, value in ours.state_dict().items()})
    with torch.no_grad():
        found = model(images().float(), as_ours_in(torch.float32, "points"))
        assert relative(found.masks_BPMYX, ours(images(), as_ours(prompts("points"))).masks_BPMYX) < 1e-5


def as_ours_in(dtype: torch.dtype, kind: str) -> Prompts:
    return Prompts(
        *(
            value if value is None or not value.is_floating_point() else value.to(dtype)
            for value in as_ours(prompts(kind))
        )
    )


# --- parts and sizes ------------------------------------------------------------------------------


def test_the_parts_can_be_handed_in():
    encoder, prompt = ImageEncoder(SMALL), PromptEncoder(SMALL)
    transformer = TwoWayTransformer(SMALL)
    decoder = MaskDecoder(SMALL, transformer=transformer)
    model = SAM(SMALL, image_encoder=encoder, prompt_encoder=prompt, mask_decoder=decoder)
    assert (model.image_encoder, model.prompt_encoder, model.mask_decoder) == (encoder, prompt, decoder)
    assert model.mask_decoder.transformer is transformer


@pytest.mark.parametrize(
    ("name", "millions"), [("sam_vit_base", 93.7), ("sam_vit_large", 312.3), ("sam_vit_huge", 641.1)]
)
def test_published_sizes_have_transformers_parameters(name, millions):
    """And tensors: every one of transformers' model of that size, built without memory, fits."""
    c = VARIANTS[name]
    with torch.device("meta"):
        model = models.build(name)
        vision = SamVisionConfig(
            hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads,
            global_attn_indexes=list(c.global_blocks),
        )  # fmt: skip
        reference = SamModel(SamConfig(vision_config=vision))
    models.load_weights(model, reference.state_dict())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_small_one_learns():
    model = models.build("sam_vit_nano").train()
    assert sum(p.numel() for p in model.parameters()) <= 10e6
    assert set(VARIANTS) == {name for name, place in SEGMENTERS.items() if place.endswith(":SAM")}
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(1, 3, 256, 256)
    wanted = torch.zeros(1, 1, 1, 128, 128)
    wanted[..., 40:90, 30:80] = 1
    prompt = Prompts(torch.tensor([[[[110.0, 130.0]]]]), torch.ones(1, 1, 1, dtype=torch.int64))
    losses = []
    for _ in range(6):
        found = model(x, prompt, multimask=False)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found.masks_BPMYX, wanted)
        optimizer.zero_grad()
        (loss + found.ious_BPM.square().mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    unused = {name for name, value in model.named_parameters() if value.grad is None}
    assert all(
        name.startswith(("prompt_encoder.mask_downscaling", "prompt_encoder.point_embeddings"))
        for name in unused
    ), unused


# --- bad input ------------------------------------------------------------------------------------


def test_build_takes_fields_and_no_classes():
    model = models.build("sam_vit_nano", image_size=64, depth=3, global_blocks=(2,))
    assert model.config.grid == (8, 8)
    with pytest.raises(InputError, match="SAM has no classifier: leave num_classes out"):
        models.build("sam_vit_nano", num_classes=5)
    with pytest.raises(InputError, match="did you mean sam_vit_"):
        models.build("sam_vit_bas")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": (80, 64)}, "squares of whole patches of 8 pixels, not 80 × 64"),
        ({"image_size": (84, 84)}, "squares of whole patches"),
        ({"heads": 3}, "do not divide into 3 heads"),
        ({"global_blocks": (3,)}, "there are blocks 0 to 2"),
        ({"mask_channels": 6}, "give multiples of 8 and of 4"),
        ({"masks": 0}, "at least one mask"),
    ],
)
def test_impossible_configs_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        replace(SMALL, **changes)


POINTS, LABELS = torch.zeros(2, 1, 3, 2), torch.ones(2, 1, 3, dtype=torch.int64)
BOXES, MASKS = torch.zeros(2, 1, 4), torch.zeros(2, 1, MASK, MASK)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Prompts(), "There is no prompt"),
        (Prompts(POINTS), "Points need labels"),
        (Prompts(boxes_BP4=BOXES, labels_BPN=LABELS), "Points need labels and labels points"),
        (Prompts(POINTS[0], LABELS[0]), r"have the shape \(B, P, N, 2\), not \(1, 3, 2\)"),
        (Prompts(boxes_BP4=torch.zeros(2, 1, 5)), r"have the shape \(B, P, 4\)"),
        (Prompts(masks_BPYX=MASKS[..., 1:]), r"have the shape \(B, P, 40, 40\), not \(2, 1, 40, 39\)"),
        (Prompts(POINTS, LABELS[..., 1:]), "give one for each point"),
        (Prompts(POINTS, LABELS, BOXES.expand(2, 2, 4)), "give both to each"),
        (Prompts(POINTS, LABELS, None, MASKS.expand(2, 3, MASK, MASK)), "give one mask to each"),
        (Prompts(POINTS, LABELS + 6), "7 is not a label of a point: use 1"),
        (Prompts(POINTS[:1], LABELS[:1]), "embeddings of 2 images and prompts for 1"),
    ],
)
def test_prompts_that_do_not_belong_together_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        SAM(SMALL).decode(torch.zeros(2, 32, 10, 10), given)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="takes images of 80 × 80 pixels, not 80 × 72"):
        SAM(SMALL).encode(torch.zeros(1, 3, 80, 72))


# --- the two graphs -------------------------------------------------------------------------------


ENCODER = Graph(
    name="encoder",
    entry="encoder.onnx",
    inputs=(TensorSpec(name="images", shape=("B", 3, SIDE, SIDE)),),
    outputs=(TensorSpec(name="embeddings", shape=("B", 32, 10, 10)),),
)
DECODER = Graph(
    name="decoder",
    entry="decoder.onnx",
    inputs=(
        TensorSpec(name="embeddings", shape=("B", 32, 10, 10)),
        TensorSpec(name="points", shape=("B", "P", "N", 2)),
        TensorSpec(name="labels", shape=("B", "P", "N"), dtype="int64"),
        TensorSpec(name="masks", shape=("B", "P", MASK, MASK)),
        TensorSpec(name="has_mask", shape=("B", "P")),
    ),
    outputs=(
        TensorSpec(name="scores", shape=("B", "P", 4, MASK, MASK)),
        TensorSpec(name="ious", shape=("B", "P", 4)),
    ),
)


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    model = loaded(ours.state_dict()).float().requires_grad_(False)
    graphs = {"encoder": (model.image_encoder, ENCODER), "decoder": (PromptGraph(model).eval(), DECODER)}
    for module, graph in graphs.values():
        onnx.write_onnx(module, graph, folder / graph.entry)
        assert onnx.check(module, folder, graph) < onnx.EXPORT_TOLERANCE
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "count", "points"), [(1, 1, 2), (2, 3, 5)])
def test_both_graphs_give_the_models_masks(ours, exported, batch, count, points):
    x = images(batch)
    given = prompts("all", batch, count)
    # A box as two points, at most `points` in all, so that nothing has to close them.
    at, labels = given["input_points"][:, :, : points - 2], given["input_labels"][:, :, : points - 2]
    corners = given["input_boxes"].unflatten(-1, (2, 2))
    kinds = torch.tensor([2, 3]).expand(batch, count, 2)
    masks = given["input_masks"].expand(-1, count, -1, -1)
    with torch.no_grad():
        prompt = Prompts(at, labels, given["input_boxes"], masks)
        expected = ours(x, prompt), ours(x, prompt, multimask=False)
        unmasked = ours(x, prompt._replace(masks_BPYX=None))
    sizes = {"B": batch, "P": count, "N": points}
    target = Target(runtime="onnxruntime", precision="fp32")
    encoder = runtimes.load(exported, ENCODER, target, sizes={"B": batch}, threads=1)
    decoder = runtimes.load(exported, DECODER, target, sizes=sizes, threads=1)
    inputs = {
        "embeddings": encoder.run({"images": x.float().numpy()})["embeddings"],
        "points": torch.cat((at, corners), 2).float().numpy(),
        "labels": torch.cat((labels, kinds), 2).numpy(),
        "masks": masks.float().numpy().copy(),
        "has_mask": np.ones((batch, count), np.float32),
    }
    found = {name: torch.from_numpy(value) for name, value in decoder.run(inputs).items()}
    assert relative(found["scores"][:, :, 1:], expected[0].masks_BPMYX) < 1e-5
    assert relative(found["scores"][:, :, :1], expected[1].masks_BPMYX) < 1e-5
    assert relative(found["ious"][:, :, 1:], expected[0].ious_BPM) < 1e-5
    inputs["has_mask"][:] = 0
    found = decoder.run(inputs)
    assert relative(torch.from_numpy(found["scores"][:, :, 1:]), unmasked.masks_BPMYX) < 1e-5
