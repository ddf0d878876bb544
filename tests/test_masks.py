"""Run lengths against pycocotools' output and brute force; IoU, agreement and drawing against brute force."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sklearn.metrics import confusion_matrix

from vitrail.errors import InputError
from vitrail.masks import agreement, rle
from vitrail.masks.iou import ClassIous, iou, ious, mean_interval
from vitrail.masks.overlay import colours, overlay

Y, X = np.mgrid[:48, :37]

# Made with pycocotools 2.0.11: mask.encode(np.asfortranarray(m.astype(np.uint8))), mask.area, mask.toBbox.
ENCODED = {
    "disc": (
        (X - 18) ** 2 + (Y - 20) ** 2 < 150,
        "b95X16K4M2N2N2O0O2O000O2O00000001N10001N101N2N2N3L5Ja8", 481, (6, 8, 25, 25),
    ),
    "all": (np.ones((48, 37), bool), "0`g1", 1776, (0, 0, 37, 48)),
    "none": (np.zeros((48, 37), bool), "`g1", 0, (0, 0, 0, 0)),
    "corner": ((X < 1) & (Y < 1), "01_g1", 1, (0, 0, 1, 1)),
}  # fmt: skip

# The same with mask.merge(mask.frPyObjects(outlines, 48, 37)).
FILLED = [
    ([[3.2, 4.5, 30.7, 8.1, 22.4, 40.9]], "U62^12N2N2N2N101N2N2N2N2N2N2N2O1N1O2N2N2NL4L4L5K4L4L4L4Ll8", 467),
    ([[-2, -3, 20, 10.5, 5, 60]], "0b0n0:F9G9H1OO001O001L4L3L5L4L3M4K4M4L4K4MYi0", 593),
    (
        [[5, 5, 30, 5, 30, 30, 5, 30], [20.5, 20.5, 36, 20.5, 36, 47, 20.5, 47]],
        "e7i0g0000000000000000000000000000000a0_O000000000000000`0@0000000000k0", 934,
    ),
    (
        [[2, 2, 34, 44, 34, 2, 2, 44]],
        "S3X19N2N2M4M2N2M4M2N2M4M2N2M4M2N2N10O2N2M3N3M2M3N3M2M3N3M2M3N3M2N2\\4", 672,
    ),
]  # fmt: skip


@st.composite
def masks(draw, least=1, most=24):
    """Noise of any density, blocks, and combinations of both."""
    height, width = draw(st.integers(least, most)), draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    if draw(st.booleans()):
        mask[: height // 2, width // 3 :] = draw(st.booleans())
    return mask


def test_the_example_of_the_docs_runs_as_it_stands(capsys):
    page = (Path(__file__).parents[1] / "docs" / "masks.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(example, "docs/masks.md", "exec"), names)
    house, shifted, picture = names["house"], names["shifted"], np.array(names["picture"])
    assert np.array_equal((picture != 255).any(-1), house)
    both, either = (house & shifted).sum(), (house | shifted).sum()
    assert f"{both / either}" in capsys.readouterr().out
    assert names["same"].changed == (house != shifted).mean()


# --- run lengths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODED)
def test_a_mask_is_encoded_as_by_pycocotools(name):
    mask, text, area, box = ENCODED[name]
    runs = rle.encode(mask)
    assert (runs.text(), runs.area, runs.box) == (text, area, box)
    assert np.array_equal(rle.from_text(text, (48, 37)).mask(), mask)


@pytest.mark.parametrize(("outlines", "text", "area"), FILLED)
def test_outlines_are_filled_as_by_pycocotools(outlines, text, area):
    runs = rle.fill(outlines, (48, 37))
    assert (runs.text(), runs.area) == (text, area)


@given(masks())
def test_runs_are_counted_column_by_column(mask):
    expected, inside, run = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != inside:
            expected.append(run)
            inside, run = pixel, 0
        run += 1
    assert list(rle.encode(mask).counts) == [*expected, run]


@given(masks())
def test_masks_come_back(mask):
    runs = rle.encode(mask)
    assert np.array_equal(runs.mask(), mask)
    assert rle.from_coco(runs.coco()) == runs
    assert rle.from_coco({"size": runs.size, "counts": runs.text().encode()}) == runs
    assert rle.from_coco({"size": list(runs.size), "counts": list(runs.counts)}) == runs


@given(masks())
def test_area_and_box_are_those_of_the_pixels(mask):
    runs = rle.encode(mask)
    rows, columns = np.nonzero(mask)
    assert runs.area == len(rows)
    box = (0, 0, 0, 0)
    if len(rows):
        left, top = columns.min(), rows.min()
        box = (left, top, columns.max() - left + 1, rows.max() - top + 1)
    assert runs.box == box


@given(masks(), masks(), st.sampled_from([np.uint8, np.uint16, np.int64]))
def test_labels_become_the_mask_of_each_number_that_is_there(some, others, dtype):
    height, width = min(len(some), len(others)), min(some.shape[1], others.shape[1])
    labels = (some[:height, :width] + 7 * others[:height, :width].astype(int)).astype(dtype)
    found = rle.of_labels(labels)
    assert list(found) == sorted(set(labels.ravel().tolist()))
    assert found == {number: rle.encode(labels == number) for number in found}


@given(masks(), masks())
def test_overlaps_are_counted_without_making_masks(some, others):
    height, width = min(len(some), len(others)), min(some.shape[1], others.shape[1])
    a, b = some[:height, :width], others[:height, :width]
    assert rle.overlap(rle.encode(a), rle.encode(b)) == np.count_nonzero(a & b)
    empty_runs = rle.RunLengths(size=(height, width), counts=(0, 0, height * width, 0))
    assert rle.overlap(empty_runs, rle.encode(b)) == 0
    with pytest.raises(ValueError, match="masks of"):
        rle.overlap(rle.encode(a), rle.encode(np.zeros((height + 1, width), bool)))


def test_runs_of_no_pixels_change_nothing():
    runs = rle.RunLengths(size=(3, 4), counts=(2, 0, 1, 2, 0, 1, 6))
    assert np.array_equal(runs.mask().T.ravel(), [False] * 3 + [True] * 3 + [False] * 6)
    assert (runs.area, runs.box) == (3, (1, 0, 1, 3))
    assert rle.from_text(runs.text(), runs.size) == runs


def test_large_masks_are_encoded():
    mask = np.zeros((3000, 2000), bool)
    mask[1000:1001, 500:1500] = True
    assert np.array_equal(rle.from_coco(rle.encode(mask).coco()).mask(), mask)


@given(st.integers(0, 2**32 - 1), st.integers(20, 60), st.integers(20, 60))
@settings(max_examples=50)
def test_an_outline_holds_what_is_well_inside_and_nothing_well_outside(seed, height, width):
    """By the angles of a polygon around a point, which needs no rule for edges, one pixel away from them."""
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.random(7)) * 2 * np.pi
    radii = rng.uniform(0.3, 0.9, 7) * min(height, width) / 2
    corners = np.stack([width / 2 + radii * np.cos(turns), height / 2 + radii * np.sin(turns)], 1)
    filled = rle.fill([corners.ravel().tolist()], (height, width)).mask()
    # Pixels' centres lie at + 0.5.
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    after = np.roll(corners, -1, axis=0)
    a, b = corners - centres[..., None, :], after - centres[..., None, :]
    cross, dot = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1)
    inside = np.abs(np.arctan2(cross, dot).sum(-1)) > np.pi
    edge = after - corners
    along = np.clip((-a * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    away = np.linalg.norm(a + along[..., None] * edge, axis=-1).min(-1) > 1
    assert away.any()
    assert np.array_equal(filled[away], inside[away])


@pytest.mark.parametrize(
    ("text", "said"),
    [("0 1", "hold ' ' at character 1"), ("P", "are cut off"), ("oooooooooo", "at character 7 is too long"),
     ("55", "add up to 10 pixels, but 4 × 3 are 12"), ("O=", "The run -1 of a mask is negative"),
     ("", "add up to 0")],
)  # fmt: skip
def test_damaged_run_lengths_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        rle.from_text(text, (3, 4))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"size": [3, 4]},
        {"size": 3, "counts": "`0"},
        {"size": ["a", 4], "counts": "`0"},
        {"size": [3, 4], "counts": 7},
    ],
)
def test_what_is_no_mask_is_refused(value):
    with pytest.raises(InputError, match=r"has no size \[height, width\] and counts: give both"):
        rle.from_coco(value)


@pytest.mark.parametrize("size", [(0, 4), (2**20, 2**20)])
def test_sizes_that_no_photo_has_are_refused_before_memory_is_asked_for(size):
    with pytest.raises(InputError, match=r"give its height and width|is above the limit"):
        rle.RunLengths(size=size, counts=(size[0] * size[1],))
    with pytest.raises(InputError, match=r"give its height and width|is above the limit"):
        rle.fill([[0, 0, 1, 0, 1, 1]], size)


@pytest.mark.parametrize(
    ("outline", "said"),
    [([1, 1, 2, 2], "of 4 numbers is not x, y of at least 3 points"), ([1, 1, 2, 2, 3, 3, 4], "of 7 numbers"),
     ([0, 0, 1e9, 0, 0, 5], r"\(1e\+09, 0\) of an outline lies far outside the photo of 4 × 3 pixels"),
     ([0, 0, 1, float("nan"), 0, 5], "far outside")],
)  # fmt: skip
def test_outlines_that_cannot_be_filled_are_refused(outline, said):
    with pytest.raises(InputError, match=said):
        rle.fill([outline], (3, 4))


def test_an_endless_outline_is_refused():
    with pytest.raises(InputError, match="pixels long, above the limit of 838,860: simplify it"):
        rle.fill([[0, 0, 5000, 5000] * 200], (5000, 5000))


def test_only_whole_numbers_are_labels():
    for labels in (np.zeros((2, 2)), np.zeros((2, 2), bool), np.zeros(4, int)):
        with pytest.raises(ValueError, match="whole numbers"):
            rle.of_labels(labels)
    with pytest.raises(InputError, match="has none"):
        rle.of_labels(np.zeros((0, 3), np.uint8))


def test_only_boolean_masks_are_encoded():
    with pytest.raises(ValueError, match="boolean"):
        rle.encode(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="boolean"):
        rle.encode(np.zeros((1, 3, 4), bool))


# --- IoU ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4))
def test_ious_are_those_of_sets(seed, count, other):
    rng = np.random.default_rng(seed)
    found, truth = (rng.random((n, 6, 7)) < rng.choice([0, 0.1, 0.6, 1], (n, 1, 1)) for n in (count, other))
    crowd = rng.random(other) < 0.5
    plain, crowded = ious(found, truth), ious(found, truth, crowd=crowd)
    assert plain.shape == crowded.shape == (count, other)
    for i, one in enumerate(found):
        for j, two in enumerate(truth):
            a, b = set(np.flatnonzero(one)), set(np.flatnonzero(two))
            expected = len(a & b) / len(a | b) if a | b else 0.0
            assert plain[i, j] == pytest.approx(expected, abs=1e-9)
            assert iou(one, two) == pytest.approx(expected, abs=1e-9)
            if crowd[j]:
                expected = len(a & b) / len(a) if a else 0.0
            assert crowded[i, j] == pytest.approx(expected, abs=1e-9)


def test_two_empty_masks_are_what_the_caller_says():
    empty = np.zeros((2, 2), bool)
    assert iou(empty, empty) == 0.0  # as pycocotools
    assert iou(empty, empty, empty=1.0) == 1.0


@pytest.mark.parametrize(
    ("found", "truth", "crowd"),
    [(np.zeros((1, 2, 3), bool), np.zeros((1, 3, 2), bool), None),
     (np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3), bool), None),
     (np.zeros((2, 3), bool), np.zeros((2, 3), bool), None),
     (np.zeros((1, 2, 3), bool), np.zeros((1, 2, 3), bool), [True, False])],
)  # fmt: skip
def test_masks_that_do_not_belong_together_are_refused(found, truth, crowd):
    with pytest.raises(ValueError, match=r"masks|crowd"):
        ious(found, truth, crowd=crowd)
    with pytest.raises(ValueError, match="differ in shape"):
        iou(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=40)
def test_the_mean_iou_is_that_of_sets(seed, photos):
    rng = np.random.default_rng(seed)
    counted, names = ClassIous("abcde"), "abcde"
    truths, founds = [], []
    for _ in range(photos):
        shape = tuple(rng.integers(1, 9, 2))
        # The last class never occurs.
        truth, found = rng.integers(0, 4, shape), rng.integers(0, 4, shape)
        truth[rng.random(shape) < 0.2] = 255
        truth.flat[0] = 0
        counted.add(truth.astype(np.uint8), found)
        truths.append(truth.ravel())
        founds.append(found.ravel())
    truth, found = np.concatenate(truths), np.concatenate(founds)
    judged = truth != 255
    result = counted.result()
    expected = {}
    for k, name in enumerate(names):
        a, b = set(np.flatnonzero(judged & (truth == k))), set(np.flatnonzero(judged & (found == k)))
        if a | b:
            expected[name] = (len(a & b) / len(a | b), len(a))
    assert {c.name: (pytest.approx(c.iou, abs=1e-9), c.pixels) for c in result.classes} == expected
    assert result.value == pytest.approx(np.mean([share for share, _ in expected.values()]), abs=1e-9)
    assert result.absent == tuple(name for name in names if name not in expected)
    assert "e" in result.absent
    assert (result.photos, result.ignored) == (photos, int((~judged).sum()))
    assert np.array_equal(result.confusion, confusion_matrix(truth[judged], found[judged], labels=range(5)))


def test_a_class_counts_the_photos_in_which_it_is_or_was_said_to_be():
    counted = ClassIous(["sky", "sea"], ignore=None)
    counted.add(np.array([[0, 0]]), np.array([[0, 1]]))
    counted.add(np.array([[0, 0]]), np.array([[0, 0]]))
    sky, sea = counted.result().classes
    assert (sky.iou, sky.pixels, sky.photos) == (0.75, 4, 2)
    assert (sea.iou, sea.pixels, sea.photos) == (0.0, 0, 1)
    assert counted.result().interval is None  # two photos say nothing about others


@pytest.mark.parametrize(
    ("truth", "found", "said"),
    [(np.array([[0]]), np.array([[0, 1]]), "belong together"),
     (np.array([[0.0]]), np.array([[0]]), "belong together"),
     (np.array([[2]]), np.array([[0]]), "labels from 2 to 2 for 2 classes"),
     (np.array([[0]]), np.array([[255]]), "outputs from 255 to 255 for 2 classes")],
)  # fmt: skip
def test_labels_that_are_none_are_refused(truth, found, said):
    counted = ClassIous(["a", "b"])
    with pytest.raises(ValueError, match=said):
        counted.add(truth, found)
    assert not counted.confusion.any()


def test_nothing_to_judge_is_refused():
    counted = ClassIous(["a", "b"])
    counted.add(np.full((2, 2), 255), np.zeros((2, 2), int))
    with pytest.raises(InputError, match="No pixel is judged"):
        counted.result()
    with pytest.raises(ValueError, match="to be ignored"):
        ClassIous(["a", "b"], ignore=1)


def test_the_interval_of_the_mean_iou_holds_the_truth():
    """How often, over data sets of 40 photos of one population, of which the true mean IoU is computed."""

    def photo(rng):
        # Photos differ in how well they are segmented, and in what they show.
        truth = (rng.random((1, 60)) < rng.uniform(0.2, 0.8)).astype(int)
        return truth, np.where(rng.random((1, 60)) < rng.uniform(0.05, 0.3), 1 - truth, truth)

    def measured(rng, photos):
        counted = ClassIous(["a", "b"])
        for _ in range(photos):
            counted.add(*photo(rng))
        return counted

    # By hand, so that no interval is drawn from 20,000 photos.
    table = measured(np.random.default_rng(1), 20_000).confusion
    both = table.diagonal()
    true = float(np.mean(both / (table.sum(0) + table.sum(1) - both)))
    results = [measured(np.random.default_rng(seed), 40).result() for seed in range(100, 160)]
    held = sum(result.interval[0] <= true <= result.interval[1] for result in results)
    assert 0.85 * len(results) <= held < len(results)
    assert all(result.interval[0] < result.value < result.interval[1] for result in results)


def test_the_interval_of_a_mean_is_near_the_normal_ones():
    values = np.random.default_rng(3).random(400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(values) == (low, high)  # the draws are fixed
    assert mean_interval(values[:7]) is None


# --- agreement ------------------------------------------------------------------------------------


def test_photos_agree_by_their_pixels():
    reference = [np.array([[1.0, 1, -1, -1]]), np.array([[-1.0, -1]]), np.array([[[1.0, -1]], [[1.0, 1]]])]
    outputs = [np.array([[2.0, -1, -1, 0]]), np.array([[-2.0, -3]]), np.array([[[1.0, 1]], [[3.0, 1]]])]
    found = agreement.compare(reference, outputs)
    assert [photo.iou for photo in found.photos] == [0.5, 1.0, 0.5]
    assert [photo.changed for photo in found.photos] == [0.25, 0.0, 0.25]
    assert (found.iou, found.least_iou, found.worst) == (pytest.approx(2 / 3), 0.5, 0)
    assert found.changed == pytest.approx(2 / 10)  # of pixels, not of photos


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_agreement_is_that_of_sets(seed):
    rng = np.random.default_rng(seed)
    reference = [rng.random(tuple(rng.integers(1, 6, 2))) for _ in range(4)]
    outputs = [np.clip(one + rng.normal(0, 0.3, one.shape), 0, 1) for one in reference]
    found = agreement.compare(reference, outputs, threshold=0.5)
    expected = []
    for one, other in zip(reference, outputs, strict=True):
        a, b = set(np.flatnonzero(one > 0.5)), set(np.flatnonzero(other > 0.5))
        expected.append((len(a & b) / len(a | b) if a | b else 1.0, -len(a ^ b) / one.size))
    assert [(photo.iou, -photo.changed) for photo in found.photos] == [pytest.approx(e) for e in expected]
    assert found.worst == expected.index(min(expected))


def test_outputs_that_are_not_finite_agree_nowhere():
    reference = [np.ones((2, 2)), np.ones((2, 2))]
    outputs = [np.ones((2, 2)), np.array([[1, 1], [1, np.nan]])]
    found = agreement.compare(reference, outputs)
    assert found.worst == 1
    assert found.photos[1] == agreement.PhotoAgreement(iou=0.0, changed=1.0, finite=False)


@pytest.mark.parametrize(
    ("reference", "outputs", "said"),
    [([], [], "0 maps"), ([np.ones((2, 2))], [], "1 maps of the reference and 0 outputs"),
     ([np.ones((2, 2))], [np.ones((2, 3))], "photo 0"), ([np.ones((0, 2))], [np.ones((0, 2))], "photo 0"),
     ([np.full((2, 2), np.inf)], [np.ones((2, 2))], "the reference is not finite")],
)  # fmt: skip
def test_maps_that_cannot_be_compared_are_refused(reference, outputs, said):
    with pytest.raises(ValueError, match=said):
        agreement.compare(reference, outputs)


# --- drawing --------------------------------------------------------------------------------------


def test_every_pixel_of_the_overlay_is_as_said():
    """Over 1,000 random shapes: outside nothing changes, inside is blended, the edge has the full colour."""
    rng = np.random.default_rng(4)
    shapes = ("rectangle", "ellipse", "polygon")
    for i in range(1000):
        height, width = rng.integers(3, 60, 2).tolist()
        drawn = Image.new("1", (width, height))
        box = np.sort(rng.integers(-5, 60, (2, 2)), axis=0)
        pen = ImageDraw.Draw(drawn)
        kind = shapes[i % 3]
        places = rng.integers(-5, 60, 8).tolist() if kind == "polygon" else box.ravel().tolist()
        getattr(pen, kind)(places, fill=1)
        mask = np.array(drawn, bool)
        photo = rng.integers(0, 256, (height, width, 3), np.uint8)
        contour, paint = i // 3 % 3, (250, 20, 130)
        found = np.array(
            overlay(Image.fromarray(photo), [mask], colour=[paint], opacity=0.25, contour=contour)
        )
        edge = np.zeros_like(mask)
        beyond = np.pad(mask, contour)
        for down in range(-contour, contour + 1):
            for across in range(abs(down) - contour, contour - abs(down) + 1):
                rows = slice(contour + down, contour + down + height)
                columns = slice(contour + across, contour + across + width)
                edge |= ~beyond[rows, columns]
        edge &= mask
        inner = mask & ~edge
        assert np.array_equal(found[~mask], photo[~mask])
        assert (found[edge] == paint).all()
        exact = 0.75 * photo[inner].astype(float) + 0.25 * np.array(paint)
        assert np.abs(found[inner] - exact).max(initial=0) <= 0.5


def test_later_masks_lie_over_earlier_ones_and_the_photo_stays():
    photo = Image.new("RGB", (6, 6), (10, 20, 30))
    one, two = np.zeros((2, 6, 6), bool)
    one[:4, :4], two[2:, 2:] = True, True
    found = np.array(overlay(photo, [one, two], opacity=1.0, contour=0))
    first, second = colours(2)
    assert (found[two] == second).all()
    assert (found[one & ~two] == first).all()
    assert (found[~one & ~two] == (10, 20, 30)).all()
    assert (np.array(photo) == (10, 20, 30)).all()


def test_colours_differ_and_do_not_depend_on_how_many_follow():
    many = np.array(colours(40), float)
    apart = np.linalg.norm(many[:, None] - many[None], axis=-1)
    assert apart[~np.eye(40, dtype=bool)].min() > 40
    assert colours(5) == colours(40)[:5]
    assert many.min() >= 0
    assert many.max() <= 255


@pytest.mark.parametrize(
    ("change", "said"),
    [({"photo": Image.new("L", (4, 3))}, "a L image"),
     ({"masks": [np.zeros((4, 3), bool)]}, r"a mask bool \(4, 3\)"),
     ({"masks": [np.zeros((3, 4))]}, "a mask float64"), ({"colour": []}, "0 colours for 1 masks"),
     ({"opacity": 1.5}, "out of range"), ({"contour": -1}, "out of range")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(change, said):
    asked = {"photo": Image.new("RGB", (4, 3)), "masks": [np.zeros((3, 4), bool)], **change}
    with pytest.raises(ValueError, match=said):
        overlay(asked.pop("photo"), asked.pop("masks"), **asked)
