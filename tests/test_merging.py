"""Token merging: against the paper's algorithm written as loops, its invariants, and the exported file."""

import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import exports
import numpy as np
import pytest
import torch
from scipy.special import erf
from test_vit import assert_equal, images, small

from vitrail.errors import InputError
from vitrail.models.merging import (
    MergedViT,
    constant,
    decreasing,
    match,
    merge,
    merge_tokens,
    token_counts,
)
from vitrail.profiling.cost import count

KINDS = {
    "class token": {"image_size": (48, 40)},
    "registers": {"image_size": (48, 40), "register_tokens": 4},
    "mean": {"image_size": (40, 40), "class_token": False, "pool": "avg", "norm_after_pool": True},
    "map": {"image_size": (40, 40), "class_token": False, "pool": "map"},
}


# --- the paper's algorithm, one token after the other ---------------------------------------------------


def merged_by_hand(x, sizes, keys, wanted, prefix):
    """Section 3.1 for one image: tokens, sizes and keys as arrays of rows."""
    even = [i for i in range(prefix, len(x)) if i % 2 == 0]
    odd = [i for i in range(prefix, len(x)) if i % 2 == 1]
    edges = []
    for i in even:
        likeness = {j: keys[i] @ keys[j] / np.linalg.norm(keys[i]) / np.linalg.norm(keys[j]) for j in odd}
        nearest = max(likeness, key=likeness.get)
        edges.append((likeness[nearest], i, nearest))
    edges = sorted(edges, reverse=True)[:wanted]
    groups = {i: [i] for i in [*range(prefix), *even, *odd]}
    for _, i, nearest in edges:
        groups[nearest] += groups.pop(i)
    rows = [sum(sizes[i] * x[i] for i in group) / sum(sizes[i] for i in group) for group in groups.values()]
    return np.array(rows), np.array([sum(sizes[i] for i in group) for group in groups.values()])


def norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def tokens_by_hand(model, image, schedule):
    """One image's tokens after the last norm and their sizes: a plain ViT of two heads, in NumPy."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    x, prefix = model.embed(image[None])[0].numpy(), model.config.prefix_tokens
    sizes = np.ones(len(x))
    for i, wanted in enumerate(schedule):
        qkv = linear(norm(x, weights, f"blocks.{i}.norm1"), weights, f"blocks.{i}.attn.qkv")
        q, k, v = qkv.reshape(len(x), 3, 2, -1).transpose(1, 2, 0, 3)
        gathered = []
        for head in range(2):
            scores = q[head] @ k[head].T / math.sqrt(q.shape[-1])
            factors = np.exp(scores - scores.max(-1, keepdims=True)) * sizes  # exp(score + log size)
            gathered.append(factors / factors.sum(-1, keepdims=True) @ v[head])
        x = x + linear(np.concatenate(gathered, -1), weights, f"blocks.{i}.attn.proj")
        if wanted:
            x, sizes = merged_by_hand(x, sizes, k.mean(0), min(wanted, (len(x) - prefix) // 2), prefix)
        hidden = linear(norm(x, weights, f"blocks.{i}.norm2"), weights, f"blocks.{i}.mlp.fc1")
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, weights, f"blocks.{i}.mlp.fc2")
    return norm(x, weights, "norm"), sizes


@pytest.mark.parametrize("schedule", [[3, 3, 3], [9, 4, 0], [0, 5, 0], [100, 100, 100]], ids=str)
@pytest.mark.parametrize("kind", ["class token", "registers"])
@torch.no_grad()
def test_tokens_equal_the_papers_algorithm(kind, schedule):
    model, batch = small(depth=3, **KINDS[kind]), images(3, 3, *KINDS[kind]["image_size"])
    tokens, sizes = MergedViT(model, schedule).forward_tokens(batch)
    for image, row, size in zip(batch, tokens, sizes, strict=True):
        expected, expected_sizes = tokens_by_hand(model, image, schedule)
        assert row.shape == expected.shape
        assert np.array_equal(size.numpy(), expected_sizes)
        assert np.abs(row.numpy() - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [16, 17])
def test_one_merge_equals_the_papers_for_any_number_of_tokens(tokens, prefix):
    rng = np.random.default_rng(tokens + prefix)
    x, keys = rng.standard_normal((2, 2, tokens, 8))
    sizes = rng.integers(1, 5, (2, tokens)).astype(float)
    for wanted in range(1, (tokens - prefix) // 2 + 1):
        matching = match(torch.tensor(keys), wanted, prefix=prefix)
        found, found_sizes = merge(torch.tensor(x), torch.tensor(sizes), matching)
        for i in range(2):
            expected, expected_sizes = merged_by_hand(x[i], sizes[i], keys[i], wanted, prefix)
            assert np.allclose(found[i].numpy(), expected, rtol=0, atol=1e-12)
            assert np.array_equal(found_sizes[i].numpy(), expected_sizes)


def test_equal_tokens_are_merged_once_each():
    """With all scores equal, a token must be neither lost nor counted twice."""
    keys = torch.ones(1, 13, 4, dtype=torch.float64)
    x = torch.arange(13.0, dtype=torch.float64)[None, :, None]
    merged, sizes = merge(x, None, match(keys, 4, prefix=1))
    assert merged.shape[1] == 9
    assert float((merged[..., 0] * sizes).sum()) == 78.0
    assert float(sizes.sum()) == 13.0


# --- invariants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_none_is_the_model(kind):
    model, batch = small(**KINDS[kind]), images(2, 3, *KINDS[kind]["image_size"])
    assert merge_tokens(model, 0) is model
    unmerged = MergedViT(model, [0, 0])
    assert (unmerged(batch) - model(batch)).abs().max() <= 1e-12
    assert (unmerged.forward_tokens(batch)[1] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decrease", [False, True])
@torch.no_grad()
def test_counts_sizes_and_tokens_that_never_merge(kind, decrease):
    model, batch = small(depth=4, **KINDS[kind]), images(2, 3, *KINDS[kind]["image_size"])
    prefix = model.config.prefix_tokens
    merged = merge_tokens(model, 4, decrease=decrease)
    tokens, sizes = merged.forward_tokens(batch)
    whole = model.forward_tokens(batch).shape[1]
    counts = token_counts(whole, prefix, merged.schedule)
    assert tokens.shape[1] == sizes.shape[1] == counts[-1] < whole
    assert (sizes.sum(1) == whole).all()
    assert (sizes[:, :prefix] == 1).all()
    assert (sizes >= 1).all()
    assert sizes.max() > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(kind):
    model = merge_tokens(small(**KINDS[kind]), 5)
    batch, order = images(4, 3, *KINDS[kind]["image_size"]), torch.tensor([2, 0, 3, 1])
    scores = model(batch)
    assert (model(batch[order]) - scores[order]).abs().max() <= 1e-12
    assert (model(batch[1:2]) - scores[1:2]).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["mean", "map"])
@torch.no_grad()
def test_pooling_counts_the_patches_a_token_stands_for(kind):
    """Equal patches everywhere: merging them must change nothing, whoever is merged."""
    model = small(depth=3, **KINDS[kind])
    model.pos_embed.copy_(model.pos_embed[:, :1].expand_as(model.pos_embed))
    # Two kinds of patches: those of the left half and those of the right.
    batch = images(1, 3, 1, 1).expand(-1, -1, 40, 40).clone()
    batch[..., 16:] = batch[..., 16:] + 3.0
    merged = merge_tokens(model, 4)
    assert merged.forward_tokens(batch)[1].max() > 1
    assert (merged(batch) - model(batch)).abs().max() <= 1e-9


@torch.no_grad()
def test_merging_changes_what_patches_that_differ_give():
    model, batch = small(**KINDS["class token"]), images(2, 3, 48, 40)
    assert (merge_tokens(model, 5)(batch) - model(batch)).abs().max() > 1e-3


def test_gradients_reach_the_weights():
    model = small(depth=3, **KINDS["mean"]).train()
    merge_tokens(model, 4)(images(2, 3, 40, 40)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# --- schedules and refusals ---------------------------------------------------------------------------


def test_schedules():
    assert constant(8, 12) == [8] * 12
    assert decreasing(8, 12) == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert decreasing(8, 1) == [16]
    assert token_counts(197, 1, constant(8, 12)) == [197 - 8 * i for i in range(13)]
    assert token_counts(11, 1, [3, 30, 30]) == [11, 8, 5, 3]


def test_bad_numbers_are_refused():
    model = small()
    with pytest.raises(InputError, match="-1 tokens cannot be merged"):
        merge_tokens(model, -1)
    with pytest.raises(InputError, match="2 blocks and the schedule 3 numbers"):
        MergedViT(model, [1, 1, 1])


# --- cost and export ----------------------------------------------------------------------------------


def test_the_cost_is_of_the_tokens_that_are_left():
    model = small(depth=3, image_size=(40, 40)).float()
    width, hidden, counts = 32, 64, token_counts(26, 1, [6, 6, 6])
    expected = 25 * width * 3 * 8 * 8 + width * 5  # patches and classifier
    for before, after in pairwise(counts):
        even, odd = (before - 1) // 2, before // 2
        expected += before * 4 * width**2 + 2 * before**2 * width + after * 2 * width * hidden
        expected += even * odd * width // 2 + after * (before - after) * width  # likeness of keys, sums
    assert count(merge_tokens(model, 6), 40).macs == expected < count(model, 40).macs


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A kind's merged model and the folder of its files, written once for both engines."""

    @cache
    def write(kind: str) -> tuple[torch.nn.Module, Path]:
        model = merge_tokens(small(depth=3, **{**KINDS[kind], "image_size": (40, 40)}).float(), 4)
        folder = tmp_path_factory.mktemp("merged")
        exports.write(model, folder, 40, 5)
        return model, folder

    return write


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["registers", "map"])
def test_exported_file_equals_the_module(kind, runtime, exported):
    model, folder = exported(kind)
    for batch in (1, 3, 7):
        inputs = images(batch, 3, 40, 40).float()
        runner = exports.load(folder, runtime, batch=batch, size=40, classes=5)
        with torch.no_grad():
            expected = model(inputs)
        assert_equal(torch.from_numpy(exports.scores(runner, inputs.numpy())), expected, 1e-5)
