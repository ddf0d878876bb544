"""Recipes and the order of images: what a run is told, and what follows from it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import InputError
from vitrail.images import decode, preprocess
from vitrail.learn import images
from vitrail.learn.order import Steps, chance, seed_of
from vitrail.learn.recipe import RECIPES, Augmentation, Leg, load_recipe
from vitrail.vocabulary import Preprocess

# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_and_says_where_it_comes_from(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.source) > 60


def test_the_papers_figures():
    swin, deit = load_recipe("swin-paper"), load_recipe("deit-paper")
    assert (swin.epochs, swin.batch_size, swin.learning_rate()) == (300, 1024, 1e-3)
    assert (swin.regularization.drop_path, swin.optimizer.clip_norm) == (0.2, 5.0)
    assert deit.learning_rate() == pytest.approx(1e-3), "0.0005 · 1024 / 512"
    assert deit.optimizer.clip_norm is None
    assert load_recipe("swin-paper", ["batch_size=64"]).learning_rate() == pytest.approx(1e-3 / 16)
    # Their codes: timm makes no color jitter beside RandAugment, and DeiT evaluates the weights themselves.
    assert (swin.augmentation.color, deit.augmentation.color) == (0, 0)
    assert deit.regularization.average_decay is swin.regularization.average_decay is None


@pytest.mark.parametrize("name", ["swin-paper", "deit-paper", "full"])
def test_recipes_say_what_of_a_paper_is_not_offered(name):
    said = load_recipe(name).source
    for missing in ("noise of 0.5 on RandAugment", "increasing operations", "erasing with pixel noise"):
        assert missing in said.split("not offered here: ")[1]


def test_changes_are_of_the_recipe_s_types(tmp_path):
    changed = load_recipe(
        "light", ["optimizer.clip_norm=5", "engine.compile=true", "augmentation.crop_area=none"]
    )
    assert (changed.optimizer.clip_norm, changed.engine.compile, changed.augmentation.crop_area) == (
        5,
        True,
        None,
    )
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 3\n[engine]\nprecision = "fp32"\n')
    assert load_recipe(str(file)).engine.precision == "fp32"
    assert load_recipe(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["optimiser.clip_norm=5"], "no key 'optimiser'"),
        (["optimizer.clip=5"], "'optimizer.clip'.*optimizer.clip_norm"),
        (["epochs=0"], "epochs is from 1 to 1000000"),
        (["epochs=many"], "epochs"),
        (["engine.precision=bf8"], "engine.precision"),
        (["epochs"], "KEY=VALUE"),
        (["epochs.more=1"], "no fields"),
        (["engine.accumulate=3"], "divides batch_size"),
        (["augmentation.pad=2"], "0 together with crop_area"),
        (["augmentation.crop_area=[0.9, 0.1]"], "rising shares"),
        (["optimizer.learning_rate=nan"], "above 0"),
        (["optimizer.name=sgd", "optimizer.betas=[0.0, 0.9]"], "begin above 0 for sgd"),
        (["seed=-1"], "seed is from 0"),
        (["seed=9223372036854775808"], "seed is from 0"),
    ],
)
def test_what_a_recipe_cannot_be_told(changes, said):
    with pytest.raises(InputError, match=said):
        load_recipe("light", changes)


def test_the_largest_seed_and_the_smallest_momentum_are_taken():
    """By the rules of the recipe, and by torch."""
    seed = load_recipe("light", ["seed=9223372036854775807"]).seed
    torch.Generator().manual_seed(seed)
    with chance(seed, "image", 0, 0):
        torch.rand(1)
    assert load_recipe("light", ["optimizer.betas=[0.0, 0.9]"]).optimizer.betas[0] == 0, "of AdamW"
    beta = load_recipe("light", ["optimizer.name=sgd", "optimizer.betas=[1e-9, 0.9]"]).optimizer.betas[0]
    torch.optim.SGD([torch.zeros(1)], momentum=beta, nesterov=True)


def test_recipes_that_are_no_recipes(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(InputError, match="is not TOML"):
        load_recipe(str(broken))
    with pytest.raises(InputError, match="Did you mean light"):
        load_recipe("lite")


def test_a_recipe_s_digest_is_of_its_values():
    light = load_recipe("light")
    assert light.digest() == load_recipe("light").digest()
    assert light.digest() != load_recipe("light", ["seed=1"]).digest()


@given(warmup=st.floats(0, 2), epochs=st.integers(3, 12), per_epoch=st.integers(1, 40))
def test_the_rate_rises_once_and_falls_to_its_final_share(warmup, epochs, per_epoch):
    recipe = load_recipe("light", [f"epochs={epochs}", f"optimizer.warmup_epochs={warmup}"])
    rates = [recipe.learning_rate_at(step, per_epoch) for step in range(epochs * per_epoch + 1)]
    top, final = recipe.learning_rate(), recipe.learning_rate() * recipe.optimizer.final_share
    highest = int(np.argmax(rates))
    assert all(0 < rate <= top * (1 + 1e-12) for rate in rates)
    assert rates[:highest] == sorted(rates[:highest])
    assert rates[highest:] == sorted(rates[highest:], reverse=True)
    assert rates[-1] == pytest.approx(final)
    if warmup == 0:
        half = top * (0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)
        if per_epoch * epochs % 2 == 0:
            assert rates[per_epoch * epochs // 2] == pytest.approx(half)


@given(
    warmup=st.floats(0, 1),
    legs=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=2, max_size=4),
    per_epoch=st.integers(2, 20),
)
def test_an_extension_rises_from_where_the_rate_was_and_falls_once_more(warmup, legs, per_epoch):
    ends, done = [], 0
    for epochs, unused in legs:  # patience may have ended a leg before its schedule
        ends.append(Leg(done + epochs + unused, done + epochs))
        done += epochs
    recipe = load_recipe("light", [f"epochs={ends[-1].planned}", f"optimizer.warmup_epochs={warmup}"])
    rates = [recipe.learning_rate_at(i, per_epoch, ends[:-1]) for i in range(ends[-1].planned * per_epoch)]
    before = load_recipe("light", [f"epochs={ends[0].planned}", f"optimizer.warmup_epochs={warmup}"])
    first = ends[0].ended * per_epoch
    assert rates[:first] == [before.learning_rate_at(i, per_epoch) for i in range(first)]
    top = recipe.learning_rate()
    for n, ((_, begin), (planned, _)) in enumerate(itertools.pairwise(ends), 1):
        whole = load_recipe("light", [f"epochs={planned}", f"optimizer.warmup_epochs={warmup}"])
        steps = range(begin * per_epoch, planned * per_epoch)
        leg = [whole.learning_rate_at(step, per_epoch, ends[:n]) for step in steps]
        assert all(0 < rate <= top * (1 + 1e-12) for rate in leg)
        rise = min(warmup * per_epoch, len(leg) / 2)
        if rise:
            step = (top - rates[begin * per_epoch - 1]) / (rise + 1)
            assert leg[0] == pytest.approx(rates[begin * per_epoch - 1] + step)
        fall = leg[math.ceil(rise) :]
        assert fall == sorted(fall, reverse=True)
        assert recipe.learning_rate_at(planned * per_epoch, per_epoch, ends[:-1]) > 0


def test_an_extension_by_hand():
    """Two epochs of four steps and two more; half an epoch to warm up, and to a tenth of the rate."""
    changes = ("optimizer.learning_rate=1", "optimizer.warmup_epochs=0.5", "optimizer.final_share=0.1")
    recipe = load_recipe("light", ["epochs=4", *changes])
    rates = [recipe.learning_rate_at(step, 4, [Leg(2, 2)]) for step in range(16)]

    def cosine(share):
        return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2

    last = cosine(5 / 6)
    fall = [cosine(i / 6) for i in range(6)]
    again = [last + (1 - last) / 3, last + 2 * (1 - last) / 3]
    assert rates == pytest.approx([1 / 3, 2 / 3, *fall, *again, *fall])


# --- order ----------------------------------------------------------------------------------------


@given(
    images=st.integers(4, 60),
    share=st.integers(1, 3),
    parts=st.integers(1, 2),
    processes=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_processes_and_parts_share_the_same_batches(images, share, parts, processes, seed):
    batch = share * parts * processes
    if batch > images:
        with pytest.raises(InputError, match="more than the"):
            Steps(images=images, batch_size=batch, epochs=2, seed=seed, parts=parts, processes=processes)
        return

    def made(parts=1, rank=0, processes=1, first=0):
        steps = Steps(
            images=images,
            batch_size=batch,
            epochs=2,
            seed=seed,
            parts=parts,
            rank=rank,
            processes=processes,
            first=first,
        )
        return list(steps), steps

    whole, steps = made()
    assert len(whole) == len(steps) == 2 * (images // batch)
    for epoch in range(2):
        seen = [index for batch in whole for (e, index) in batch if e == epoch]
        assert len(seen) == len(set(seen)) == images // batch * batch
    shares = [made(parts, rank, processes)[0] for rank in range(processes)]
    for step, expected in enumerate(whole):
        together = [
            place
            for part in range(parts)
            for rank in range(processes)
            for place in shares[rank][step * parts + part]
        ]
        assert together == expected
    assert made(first=len(whole) // 2)[0] == whole[len(whole) // 2 :]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(
            index
            for batch in Steps(images=32, batch_size=8, epochs=3, seed=seed)
            for e, index in batch
            if e == epoch
        )
        for epoch in range(3)
        for seed in range(2)
    }
    assert len(orders) == 6


def test_a_batch_divides_among_parts_and_processes():
    with pytest.raises(InputError, match="give a multiple of 6"):
        Steps(images=100, batch_size=10, epochs=1, seed=0, parts=2, processes=3)


def test_chance_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with chance(0, "image", 1, 2):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with chance(0, "image", 1, 2):
        assert torch.equal(torch.rand(3), first)
    assert len({seed_of(0, "step", n) for n in range(100)}) == 100


# --- images ---------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(70, 50), (40, 90), (64, 64)]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(paths[-1])
    return paths


PREPROCESS = Preprocess(image_size=32)


def test_evaluation_images_are_what_predict_sees(photos):
    pixels = images.read_pixels(photos, images.evaluated(PREPROCESS), threads=2, memory_mib=100)
    made = images.EvaluationImages(pixels, [7, 8, 9], PREPROCESS)
    for i, path in enumerate(photos):
        image_CHW, target = made[i]
        expected = preprocess.prepare(decode.decode(path), PREPROCESS)
        np.testing.assert_allclose(image_CHW.numpy(), expected, atol=1e-5)
        assert target == 7 + i


def test_training_images_follow_from_epoch_and_index_alone(photos):
    change = Augmentation(randaugment=(2, 9), color=0.3, erase=0.5, flip_vertical=0.5)
    pixels = images.read_pixels(photos, images.stored(PREPROCESS, change), threads=1, memory_mib=100)
    made = images.TrainingImages(pixels, [0, 1, 2], images.augmentation(change, PREPROCESS), seed=3)
    torch.manual_seed(1)
    first = {(e, i): made[e, i][0] for e in range(3) for i in range(3)}
    torch.manual_seed(2)
    torch.rand(17)
    for place, image_CHW in reversed(first.items()):
        assert torch.equal(made[place][0], image_CHW)
        assert image_CHW.shape == (3, 32, 32)
        assert image_CHW.dtype == torch.float32
    assert len({image_CHW.numpy().tobytes() for image_CHW in first.values()}) == 9


def test_images_that_do_not_fit_are_decoded_when_they_are_needed(photos):
    make = images.stored(PREPROCESS, Augmentation())
    kept = images.read_pixels(photos, make, threads=1, memory_mib=100)
    needed = images.read_pixels(photos, make, threads=1, memory_mib=0.001)
    assert isinstance(needed, images.PixelsOnDemand)
    for i in range(3):
        assert np.array_equal(kept[i], needed[i])
        assert min(kept[i].shape[:2]) == min(math.ceil(32 * images.MARGIN), (50, 40, 64)[i])


@given(width=st.integers(225, 1999), height=st.integers(225, 1999), size=st.sampled_from([28, 160, 224, 288]))
def test_a_kept_image_is_never_smaller_than_asked(width, height, size):
    side = min(math.ceil(size * images.MARGIN), width, height)
    kept = images.reduced(width, height, side)
    assert min(kept) == side
    assert kept[0] / kept[1] == pytest.approx(width / height, abs=2 / side * max(width, height) / side)
    assert (kept[0] <= kept[1]) == (width <= height) or kept[0] == kept[1]


def test_every_square_is_kept_at_the_asked_side():
    for edge in range(225, 2000):
        assert images.reduced(edge, edge, 224) == (224, 224)
        assert images.reduced(float(edge), 1.5 * edge, 224) == (224, 336)


def test_a_photo_whose_reduction_rounds_down_is_kept_whole(tmp_path):
    side = math.ceil(224 * images.MARGIN)
    edge = next(n for n in range(side + 1, 2000) if int(n * (side / n)) < side)
    Image.new("RGB", (edge, edge + 9)).save(tmp_path / "photo.png")
    kept = images.stored(Preprocess(image_size=224), Augmentation())(str(tmp_path / "photo.png"))
    assert kept.shape[1] == side


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_without_a_change_training_and_evaluation_see_the_same(photos, crop, crop_mode):
    plain = Augmentation(crop_area=None, flip=0.0)
    own = Preprocess(image_size=32, crop=crop, crop_mode=crop_mode)
    seen = images.read_pixels(photos, images.stored(own, plain), threads=1, memory_mib=100)
    made = images.TrainingImages(seen, [0, 1, 2], images.augmentation(plain, own), seed=0)
    held = images.EvaluationImages(
        images.read_pixels(photos, images.evaluated(own), threads=1, memory_mib=100), [0, 1, 2], own
    )
    for i in range(3):
        torch.testing.assert_close(made[0, i][0], held[i][0], atol=1e-6, rtol=0)
