"""Photos with single objects: pieces and inner pixels against scipy, and what is read from files."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vitrail.errors import InputError
from vitrail.masks import objects, rle


def blobs(rng, shape, values):
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    return np.digitize(noise, np.quantile(noise, np.linspace(0.3, 0.9, values))).astype(np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    values = blobs(rng, rng.integers(1, 60, 2), int(rng.integers(1, 4)))
    if seed % 4 == 0:
        values = rng.integers(0, 3, values.shape).astype(np.uint8)
    found = objects.pieces(values)
    expected = set()
    for value in np.unique(values[values > 0]):
        labels, count = ndimage.label(values == value, structure=np.ones((3, 3)))
        expected |= {(labels == number).tobytes() for number in range(1, count + 1)}
    assert {(found == number).tobytes() for number in range(1, found.max() + 1)} == expected
    assert ((found > 0) == (values > 0)).all()


@pytest.mark.parametrize("seed", range(40))
def test_the_inner_pixel_is_the_maximum_of_scipy_s_distances(seed):
    rng = np.random.default_rng(seed)
    mask = blobs(rng, rng.integers(2, 70, 2), 1) > 0
    if not mask.any():
        mask[0, 0] = True
    x, y = objects.interior(mask)
    distances = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert mask[y, x]
    assert distances[y, x] == distances.max()
    assert (y, x) == np.unravel_index(distances.argmax(), mask.shape)


def test_an_empty_mask_has_no_inner_pixel():
    with pytest.raises(ValueError, match="no pixel to click"):
        objects.interior(np.zeros((3, 4), bool))


# --- files ----------------------------------------------------------------------------------------

MASK = np.zeros((20, 30), np.uint8)
MASK[2:8, 3:12], MASK[2:8, 15:25], MASK[12:18, 4:20], MASK[12:18, 25:] = 1, 1, 2, 255
MASK[10, 1] = 1  # a speck


def photos(folder, count=5):
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (30, 20), (number * 30, 9, 9)).save(folder / "images" / f"{number}.png")


def with_png(folder, masks):
    photos(folder, len(masks))
    (folder / "masks").mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def with_coco(folder, annotations, count=5):
    photos(folder, count)
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(count)],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [{"category_id": 7, **each} for each in annotations],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def runs(mask):
    return rle.encode(mask).coco()


def test_pieces_of_png_masks_are_objects(tmp_path):
    dataset = objects.load(with_png(tmp_path / "d", [MASK, MASK, np.zeros_like(MASK), MASK]))
    assert len(dataset.examples) == 3
    assert dataset.bare == 1
    assert dataset.doubts() == ("1 photo shows no object and is not used",)
    masks = [each.mask() for each in dataset.truth(dataset.examples[0])]
    assert [int(mask.sum()) for mask in masks] == [54, 60, 96]
    assert (masks[0] | masks[1] == ((MASK == 1) & (np.arange(20) != 10)[:, None])).all()


def test_png_masks_of_inside_and_outside(tmp_path):
    inside = np.where(MASK == 1, 255, 0).astype(np.uint8)
    dataset = objects.load(with_png(tmp_path / "d", [inside] * 3))
    assert [each.area for each in dataset.truth(dataset.examples[0])] == [54, 60]


def test_coco_s_instances_are_objects_without_crowds_and_empty_ones(tmp_path):
    one, other = MASK == 1, MASK > 0
    thin = [[1.0, 1.0, 1.1, 1.0, 1.1, 1.01]]
    annotations = [{"image_id": i, "segmentation": runs(mask)} for i in (0, 1, 2) for mask in (one, other)]
    annotations += [
        {"image_id": 3, "segmentation": runs(one), "iscrowd": 1},
        {"image_id": 4, "segmentation": thin},
        {"image_id": 0, "segmentation": thin},
    ]
    folder = with_coco(tmp_path / "d", annotations)
    (folder / "masks").mkdir()  # PNG masks beside the file are of classes: the file knows more
    dataset = objects.load(folder)
    assert len(dataset.examples) == 3
    assert dataset.bare == 2
    assert "2 photos show no object and are not used" in dataset.doubts()
    for example in dataset.examples:
        found = [each.mask() for each in dataset.truth(example)]
        assert len(found) == 2
        assert (found[0] == one).all()
        assert (found[1] == other).all()


def test_what_is_drawn_is_part_of_the_digest(tmp_path):
    def annotated(name, mask):
        each = [{"image_id": i, "segmentation": runs(mask)} for i in range(3)]
        return objects.load(with_coco(tmp_path / name, each, 3))

    assert annotated("a", MASK == 1).digest == annotated("b", MASK == 1).digest
    assert annotated("a2", MASK == 1).digest != annotated("c", MASK == 2).digest


def test_bad_data(tmp_path):
    with pytest.raises(InputError, match=r"No photo of .* shows an object: draw masks of some"):
        objects.load(with_png(tmp_path / "a", [np.zeros_like(MASK)] * 3))
    with pytest.raises(InputError, match="give at least 3"):
        objects.load(with_png(tmp_path / "b", [MASK, MASK, np.zeros_like(MASK)]))
    folder = with_coco(tmp_path / "c", [{"image_id": i, "segmentation": runs(MASK == 1)} for i in range(5)])
    (folder / "more.json").write_text("{}")
    with pytest.raises(InputError, match="holds 2 JSON files"):
        objects.load(folder)
