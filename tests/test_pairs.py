"""Pairs of images and texts: the manifest, gradient caching, texts that several images share, recall."""

from __future__ import annotations

import csv
import dataclasses
import math
import zlib

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import multiprocessing
from torch.nn import functional as F

from vitrail.data.pairs import load
from vitrail.errors import InputError
from vitrail.learn import retrieval
from vitrail.learn.losses import Right, clip_loss, siglip_loss
from vitrail.learn.pairs import Contrastive, Texts, TrainingPairs, read_texts
from vitrail.models.clip import CLIP, VARIANTS
from vitrail.text.tokenizer import BPETokenizer

pytestmark = pytest.mark.slow

# --- the manifest ---------------------------------------------------------------------------------


def picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def manifest(folder, rows, header="path,text", name="pairs.csv"):
    for row in rows:
        file = folder / row[0]
        if row[0].endswith(".png") and ".." not in row[0] and not file.exists():
            picture(file, zlib.crc32(row[0].encode()))
    with open(folder / name, "w", newline="") as out:
        out.write(header + "\n")
        csv.writer(out).writerows(rows)
    return folder / name


def many(count, *more):
    return [(f"{i:03d}.png", f"text {i}", *(value(i) for value in more)) for i in range(count)]


def refusal(path):
    with pytest.raises(InputError) as caught:
        load(path)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


def test_rows_of_one_image_are_its_texts(tmp_path):
    rows = [*many(20), ("003.png", "another text"), ("003.png", "text 3"), ("004.png", "  text 4 ")]
    pairs = load(manifest(tmp_path, rows))
    texts = {pair.path.rsplit("/", 1)[1]: pair.texts for pair in pairs.pairs}
    assert len(pairs.pairs) == 20
    assert set(texts["003.png"]) == {"text 3", "another text"}
    assert texts["004.png"] == ("text 4",)
    assert (pairs.broken, pairs.copies, pairs.conflicts, pairs.categories) == ((), (), (), ())


def test_without_splits_the_content_decides(tmp_path):
    here, there = tmp_path / "a", tmp_path / "b"
    here.mkdir()
    there.mkdir()
    pairs = load(manifest(here, many(40)))
    assert [len(pairs.of(split)) for split in ("train", "validation", "test")] == [32, 4, 4]
    # The same files under other names and in another order: the same splits.
    renamed = []
    for path, text in reversed(many(40)):
        (there / f"x{path}").write_bytes((here / path).read_bytes())
        renamed.append((f"x{path}", text))
    again = load(manifest(there, renamed))
    assert {p.digest: p.split for p in again.pairs} == {p.digest: p.split for p in pairs.pairs}
    assert again.digest == pairs.digest


def test_equal_files_are_one_image_in_one_split(tmp_path):
    rows = many(10, lambda i: "train" if i < 8 else "validation")
    manifest(tmp_path, rows)
    (tmp_path / "copy.png").write_bytes((tmp_path / "000.png").read_bytes())
    rows.append(("copy.png", "seen twice", "validation"))
    pairs = load(manifest(tmp_path, rows, "path,text,split"))
    (copy,) = pairs.copies
    assert copy.straddles
    (both,) = [pair for pair in pairs.pairs if "seen twice" in pair.texts]
    assert both.split == "validation"
    assert set(both.texts) == {"seen twice", "text 0"}
    assert len({pair.digest for pair in pairs.pairs}) == len(pairs.pairs) == 10


def test_given_splits_stay_and_a_missing_validation_is_cut_from_train(tmp_path):
    rows = many(30, lambda i: "test" if i % 3 == 0 else "train")
    pairs = load(manifest(tmp_path, rows, "path,text,split"))
    tests = {pair.path.rsplit("/", 1)[1] for pair in pairs.of("test")}
    assert tests == {row[0] for row in rows if row[2] == "test"}
    assert len(pairs.of("validation")) == 2
    assert pairs.given == ("train", "test")


def test_categories_and_what_contradicts_itself(tmp_path):
    rows = many(10, lambda i: "food" if i % 2 else "animal")
    rows += [("000.png", "text again", "food"), ("001.png", "more", "")]
    pairs = load(manifest(tmp_path, rows, "path,text,category"))
    assert pairs.categories == ("animal", "food")
    of = {pair.path.rsplit("/", 1)[1]: pair.category for pair in pairs.pairs}
    assert of["000.png"] is None
    assert (of["001.png"], of["002.png"]) == ("food", "animal")
    (conflict,) = pairs.conflicts
    assert set(conflict.labels) == {"animal", "food"}


def test_what_cannot_be_read_is_listed_with_its_row(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [*many(20), ("bad.png", "bad"), ("gone.jpg", "gone")]
    pairs = load(manifest(tmp_path, rows))
    reasons = {item.path.rsplit("/", 1)[1]: item.reason for item in pairs.broken}
    assert reasons.keys() == {"bad.png", "gone.jpg"}
    assert "line 22" in reasons["bad.png"]
    assert "line 23" in reasons["gone.jpg"]
    assert len(pairs.pairs) == 20


def test_parquet_holds_the_same(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = many(20, lambda i: ("train", "test", "validation")[i % 3])
    pairs = load(manifest(tmp_path, rows, "path,text,split"))
    columns = dict(zip(("path", "text", "split"), zip(*rows, strict=True), strict=True))
    parquet.write_table(pyarrow.table({k: list(v) for k, v in columns.items()}), tmp_path / "p.parquet")
    assert load(tmp_path / "p.parquet").pairs == pairs.pairs


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("a.png", "")], "path,text", "line 2 has no text: fill it in"),
        ([("a.png", "one"), ("a.png", "  ")], "path,text", "line 3 has no text"),
        ([("", "one")], "path,text", "line 2 has no path"),
        ([("a.png", "one")], "path,label", "has no column text"),
        ([("../a.png", "one")], "path,text", "line 2 points outside the manifest's folder"),
        ([("/etc/hostname", "one")], "path,text", "points outside"),
        ([], "path,text", "lists no images"),
        ([("a.png", "one", "")], "path,text,split", "line 2 has no split"),
        ([("a.png", "one", "extra")], "path,text,split", "unknown split 'extra'"),
        ([("a.png", "one", "Food"), ("b.png", "two", "food")], "path,text,category", "have the same name"),
        ([("a.png", "one")], "path,text", "1 usable distinct image and none of them is left for validation"),
        ([("a.png", "one", "test")], "path,text,split", "left for train"),
        ([("gone.jpg", "one")], "path,text", "can be read (1 tried)"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, rows, header, said):
    assert said in refusal(manifest(tmp_path, rows, header))


def test_paths_that_are_no_manifest(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.csv")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "pairs.txt").write_text("path,text\n")
    assert "does not end in .csv" in refusal(tmp_path / "pairs.txt")


# --- gradient caching -----------------------------------------------------------------------------

BATCH = 8


def small(*, bias=None, drop_path=0.0):
    """A CLIP of few numbers, in float64; seeded."""
    full = VARIANTS["ViT-nano-8-64"]
    image = dataclasses.replace(
        full.image, width=16, depth=2, heads=2, image_size=(16, 16), num_classes=12, drop_path=drop_path
    )
    text = dataclasses.replace(
        full.text, width=16, depth=2, heads=2, embed_width=12, context_length=7, vocab_size=50
    )
    torch.manual_seed(0)
    model = CLIP(dataclasses.replace(full, image=image, text=text, bias=bias))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.double().train()


def batch():
    """images, tokens, numbers, all texts of each: two images share a text, one has a text of another."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 49, (BATCH, 7), generator=generator)
    tokens[:, -1] = 49
    numbers = torch.tensor([0, 1, 2, 3, 4, 0, 6, 7])
    tokens[5] = tokens[0]
    right = torch.stack([numbers, torch.tensor([-1, 4, -1, -1, -1, -1, -1, 9])], 1)
    return images, tokens, numbers, right


def gradients_of(model, task, fabric, parts):
    """Of the loop's own call, with the model set up as the loop does it."""
    wrapped = fabric.setup_module(model)
    torch.manual_seed(5)
    loss = task.backward(fabric, wrapped, parts)
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def contrastive(model):
    loss = "clip" if model.logit_bias is None else "sigmoid"
    return Contrastive(
        model=model,
        images=None,
        validation=None,
        texts=None,
        loss=loss,
        batch_size=BATCH,
        channels_last=False,
    )


def plain(model, parts):
    """The same without caching: all parts in one graph, the randomness in their order."""
    torch.manual_seed(5)
    outputs = [model(images, tokens) for images, tokens, *_ in parts]
    image, text = (torch.cat([output[i] for output in outputs]) for i in (0, 1))
    right = Right(torch.cat([part[2] for part in parts]), torch.cat([part[3] for part in parts]))
    if model.logit_bias is None:
        loss = clip_loss(image, text, model.scale(), right=right)
    else:
        loss = siglip_loss(image, text, model.scale(), model.logit_bias, right=right)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def split(whole, parts):
    return list(zip(*(tensor.chunk(parts) for tensor in whole), strict=True))


def assert_same(found, expected, tolerance=1e-9):
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = gradient.abs().max().clamp(min=1e-6)
        assert (found[1][name] - gradient).abs().max() / largest <= tolerance, name
    assert all(gradient.abs().max() > 0 for gradient in expected[1].values())


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("bias", [None, -2.0])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_gradients_do_not_depend_on_the_parts(fabric, bias, parts):
    expected = plain(small(bias=bias), [batch()])
    model = small(bias=bias)
    assert_same(gradients_of(model, contrastive(model), fabric, split(batch(), parts)), expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_second_pass_draws_the_same_randomness(fabric, parts):
    """Blocks left out at random: the gradients of the very model that the loss saw."""
    pieces = split(batch(), parts)
    expected = plain(small(drop_path=0.6), pieces)
    model = small(drop_path=0.6)
    assert_same(gradients_of(model, contrastive(model), fabric, pieces), expected)
    assert expected[0] != pytest.approx(plain(small(), pieces)[0]), "nothing was left out"


OVER_TWO = ((None, 1), (None, 2), (-2.0, 2))
"""Bias and parts of a batch that two processes share."""


def _process(rank, port, folder):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[TorchElasticEnvironment()])
    fabric.launch()
    every = []
    for bias, parts in OVER_TWO:
        model = small(bias=bias)
        # As `order.Steps` deals a batch out: part by part, each divided among the processes.
        mine = [tuple(t.chunk(2)[rank] for t in piece) for piece in split(batch(), parts)]
        loss, found = gradients_of(model, contrastive(model), fabric, mine)
        loss = float(fabric.all_reduce(torch.tensor(loss, dtype=torch.float64), reduce_op="mean"))
        every.append((loss, found))
    if rank == 0:
        torch.save(every, folder / "found.pt")
    fabric.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def over_two(tmp_path_factory):
    """What two processes find in each case: begun once, for they take seconds to import torch."""
    import socket

    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (port, folder), nprocs=2)
    return dict(zip(OVER_TWO, torch.load(folder / "found.pt"), strict=True))


@pytest.mark.parametrize(("bias", "parts"), OVER_TWO)
def test_two_processes_give_the_gradients_of_one(over_two, bias, parts):
    assert_same(over_two[bias, parts], plain(small(bias=bias), [batch()]))


# --- texts that several images share --------------------------------------------------------------


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def naive(image, text, scale, right, loss, bias=0.0):
    """By hand, one query after the other, over the pairs that count."""
    texts, own = right.text_B.tolist(), [set(row.tolist()) - {-1} for row in right.image_BT]
    count, total = len(texts), 0.0
    score = (scale * image @ text.T + bias).tolist()
    for i in range(count):
        for_image = [j for j in range(count) if j == i or texts[j] not in own[i]]
        for_text = [j for j in range(count) if j == i or texts[i] not in own[j]]
        if loss == "clip":
            total -= score[i][i] - math.log(sum(math.exp(score[i][j]) for j in for_image))
            total -= score[i][i] - math.log(sum(math.exp(score[j][i]) for j in for_text))
        else:
            signs = {j: 1 if j == i else -1 for j in for_image}
            total += sum(math.log1p(math.exp(-signs[j] * score[i][j])) for j in for_image)
    return total / count / (2 if loss == "clip" else 1)


def test_a_text_that_is_right_for_an_image_is_no_negative_of_it():
    _, _, numbers, table = batch()
    image, text, right = unit(BATCH, 6), unit(BATCH, 6, seed=1), Right(numbers, table)
    found = clip_loss(image, text, 3.0, right=right)
    assert float(found) == pytest.approx(naive(image, text, 3.0, right, "clip"), abs=1e-12)
    assert float(found) < float(clip_loss(image, text, 3.0))
    sigmoid = siglip_loss(image, text, 3.0, -1.0, right=right)
    assert float(sigmoid) == pytest.approx(naive(image, text, 3.0, right, "sigmoid", -1.0), abs=1e-12)


def test_texts_of_their_own_change_nothing():
    image, text, numbers = unit(BATCH, 6), unit(BATCH, 6, seed=1), torch.arange(BATCH)
    right = Right(numbers, numbers[:, None])
    assert torch.equal(clip_loss(image, text, 3.0, right=right), clip_loss(image, text, 3.0))
    assert torch.equal(siglip_loss(image, text, 3.0, -1.0, right=right), siglip_loss(image, text, 3.0, -1.0))


def test_the_scale_is_held_where_clip_s_training_holds_it(fabric):
    model = small()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    _, found = gradients_of(model, contrastive(model), fabric, [batch()])
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(100), abs=1e-5)
    assert found["logit_scale"] != 0, "a scale at its limit must be able to fall"


# --- texts and recall -----------------------------------------------------------------------------


def pair_of(tmp_path, *texts):
    (found, *_) = load(manifest(tmp_path, [("a.png", t) for t in texts] + many(9))).pairs[-1:]
    return dataclasses.replace(found, texts=texts)


def test_texts_are_one_where_the_model_reads_them_alike(tmp_path):
    config = VARIANTS["ViT-nano-8-64"].text
    one, two = pair_of(tmp_path, "A cat", "a dog"), pair_of(tmp_path, "a  CAT")
    texts = read_texts([one, two], BPETokenizer(context_length=config.context_length), config)
    assert texts.right == ((0, 1), (0,))
    assert texts.tokens_TL.shape == (2, 4), "start, two words, end: what follows is never read"
    assert texts.padded_IR.tolist() == [[0, 1], [0, -1]]
    for bad, said in (("\x01", "reads nothing in the text"), ("cat " * 40, "column text")):
        with pytest.raises(InputError, match=said):
            read_texts([pair_of(tmp_path, bad)], BPETokenizer(context_length=config.context_length), config)


class _Pixels:
    def __len__(self):
        return 3

    def __getitem__(self, place):
        return torch.zeros(3, 4, 4), None


def test_each_epoch_shows_one_of_the_texts_and_says_which():
    texts = Texts(torch.arange(12).reshape(4, 3), ((0, 1, 2), (3,), (1,)))
    data = TrainingPairs(_Pixels(), texts, seed=3)
    shown = [data[(epoch, 0)] for epoch in range(40)]
    assert {number for _, _, number, _ in shown} == {0, 1, 2}
    for _, tokens, number, row in shown:
        assert tokens.tolist() == texts.tokens_TL[number].tolist()
        assert row.tolist() == [0, 1, 2]
    assert [data[(e, 0)][2] for e in range(40)] == [number for _, _, number, _ in shown]
    assert data[(0, 1)][2] == 3


def test_recall_against_sorting_by_hand():
    rng = np.random.default_rng(0)
    image, text = unit(30, 5), unit(20, 5, seed=1)
    right = [sorted({i % 20, *rng.integers(0, 20, 2).tolist()}) for i in range(30)]
    found = retrieval.recalls(image, text, right)
    scores = (image @ text.T).numpy()
    for k in (1, 5):
        hits = [bool(set(np.argsort(-scores[i])[:k]) & set(right[i])) for i in range(30)]
        assert found[f"image_to_text_{k}"] == pytest.approx(100 * np.mean(hits))
        back = [{i for i in range(30) if t in right[i]} for t in range(20)]
        hits = [bool(set(np.argsort(-scores[:, t])[:k]) & back[t]) for t in range(20)]
        assert found[f"text_to_image_{k}"] == pytest.approx(100 * np.mean(hits))
    assert found["recall_1"] == pytest.approx((found["image_to_text_1"] + found["text_to_image_1"]) / 2)


def test_embeddings_that_are_all_the_same_find_nothing():
    same = torch.ones(6, 1)
    found = retrieval.recalls(same, same, [(i,) for i in range(6)])
    assert set(found.values()) == {0.0}


def test_zero_shot_accuracy_by_hand():
    prompts = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.0, 1.0]]])
    image = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.5], [0.2, 1.0]]), dim=-1)
    assert retrieval.accuracy(image, prompts, torch.tensor([0, 1, 0, 0])) == 75.0
