"""Masks of the user's own: PNG values as stored, COCO files and folders read back, and each mistake named."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import ImageError, decode_labels
from vitrail.images.limits import Limits
from vitrail.masks import rle
from vitrail.masks.coco import read_coco
from vitrail.masks.folder import read_folder

SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


# --- PNG values -----------------------------------------------------------------------------------


def png(values, bits, *, palette=False):
    """A PNG written by hand, so that the number of bits is the one asked for."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape
    digits = ((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in digits)
    colours = chunk(b"PLTE", bytes(range(256)) * 3) if palette else b""
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


@given(st.sampled_from([(1, False), (2, False), (4, False), (8, False), (16, False)]
                       + [(bits, True) for bits in (1, 2, 4, 8)]), st.integers(0, 2**32 - 1))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_values_of_a_png_are_read_as_stored(tmp_path_factory, kind, seed):
    bits, palette = kind
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**bits, tuple(rng.integers(1, 20, 2)))
    path = tmp_path_factory.mktemp("png") / "mask.png"
    path.write_bytes(png(values, bits, palette=palette))
    found = decode_labels(path)
    assert np.array_equal(found, values)
    assert found.dtype == (np.uint16 if bits == 16 else np.uint8)


def test_a_mask_is_turned_upright_as_its_photo(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(values).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(decode_labels(tmp_path / "mask.png"), np.rot90(values, -1))


def test_what_is_no_mask_is_refused(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "colours.png")
    Image.new("L", (4, 3)).save(tmp_path / "lossy.jpg")
    (tmp_path / "text.png").write_text("not a mask")
    whole = png(np.zeros((9, 9), int), 8)
    (tmp_path / "cut.png").write_bytes(whole[:-20])
    for name, said in [
        ("colours.png", "colours.png is a RGB image, whose pixels are colours: save the mask with one value"),
        ("lossy.jpg", "lossy.jpg is JPEG: save the mask as PNG, which loses nothing"),
        ("text.png", "text.png is not an image: save the mask as PNG"),
        ("cut.png", "cut.png is truncated, damaged or an unusual PNG"),
        ("none.png", "none.png does not exist: check the path"),
    ]:
        with pytest.raises(ImageError, match=said):
            decode_labels(tmp_path / name)
    (tmp_path / "large.png").write_bytes(whole)
    with pytest.raises(ImageError, match="9 x 9 pixels, above the limit of 80"):
        decode_labels(tmp_path / "large.png", limits=Limits(pixels=80))


# --- COCO -----------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """A folder with two photos, and what writes the file: the changes are made to a good one."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (5, 7)).save(tmp_path / "sub" / "b.png")

    def write(**changes):
        mask = np.zeros((6, 8), bool)
        mask[2:4, 3:7] = True
        runs = rle.encode(mask)
        content = {
            "images": [
                {"id": 7, "file_name": "a.jpg", "height": 6, "width": 8, "license": 3},
                {"id": 3, "file_name": "sub/b.png", "height": 7, "width": 5},
            ],
            "categories": [
                {"id": 90, "name": "cup", "supercategory": "kitchen"},
                {"id": 2, "name": "cat"},
                {"id": 13, "name": "bus"},
            ],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 90, "segmentation": [SQUARE], "area": 12, "bbox": []},
                {"id": 2, "image_id": 7, "category_id": 2, "segmentation": runs.coco(), "iscrowd": 0},
                {
                    "id": 3, "image_id": 7, "category_id": 2, "iscrowd": 1,
                    "segmentation": {"size": [6, 8], "counts": list(runs.counts)},
                },
            ],
        }  # fmt: skip
        for place, value in changes.items():
            *way, last = [int(step) if step.isdigit() else step for step in place.split("__")]
            within = content
            for step in way:
                within = within[step]
            within[last] = value
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_a_coco_file_is_read(coco, tmp_path):
    data = read_coco(coco(), tmp_path)
    assert (data.name, data.classes, data.ids) == ("instances", ("cat", "bus", "cup"), (2, 13, 90))
    first, second = data.photos
    assert (first.size, second.size, second.instances) == ((6, 8), (7, 5), ())
    assert first.image().size == (8, 6)
    assert second.image().size == (5, 7)
    assert [(one.label, one.crowd) for one in first.instances] == [(2, False), (0, False), (0, True)]
    drawn, text, numbers = (one.mask() for one in first.instances)
    square, block = np.zeros((2, 6, 8), bool)
    square[1:4, 1:5] = block[2:4, 3:7] = True
    assert np.array_equal(drawn, square)
    assert np.array_equal(text, block)
    assert np.array_equal(numbers, block)
    assert data.found.endswith(
        "instances.json: COCO instances, 2 photos (1 without an object) with 2 objects and 1 crowd of "
        "3 classes, ids 2 to 90; 1 drawn as outlines, 2 as run lengths; no photo shows bus."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"images__0__height": "6"}, r"is no COCO file of instances \(Expected `int`, got `str` at images\[0\]"),
     ({"annotations__1": {"image_id": 7}}, r"required field `category_id` at annotations\[1\]"),
     ({"annotations__1__segmentation": {"size": [6], "counts": ""}}, r"annotations\[1\].segmentation.size"),
     ({"images": []}, "lists no images: add them"),
     ({"categories": []}, "lists no categories: add them"),
     ({"images__1__id": 7}, "has several images with the id 7: give each its own"),
     ({"categories__1__id": 90}, "has several categories with the id 90"),
     ({"categories__1__name": "cup"}, "has several categories with the name 'cup'"),
     ({"images__1__file_name": "c.png"}, r"1 photo that .* does not hold: 'c.png' \(images\[1\]\)"),
     ({"images__1__file_name": "../a.jpg"}, r"images\[1\]: the file name '../a.jpg' leaves the folder"),
     ({"images__1__file_name": "/a.jpg"}, r"images\[1\]: the file name '/a.jpg' leaves the folder"),
     ({"images__1__file_name": "C:\\a.jpg"}, r"leaves the folder: give a path below it"),
     ({"images__1__file_name": ""}, r"images\[1\]: the file name '' leaves the folder"),
     ({"images__0__width": 0}, r"images\[0\]: 0 × 6 pixels are no size of a photo"),
     ({"images__0__width": 10**9}, r"images\[0\]: 1000000000 × 6 pixels are no size of a photo"),
     ({"annotations__0__image_id": 8}, r"annotations\[0\]: there is no image 8: add it, or remove this"),
     ({"annotations__0__category_id": 1}, r"annotations\[0\]: there is no category 1"),
     ({"annotations__0__iscrowd": 2}, r"annotations\[0\]: iscrowd is 2: give 0 or 1"),
     ({"annotations__0__segmentation": []}, r"annotations\[0\]: segmentation is empty: draw the"),
     ({"annotations__0__segmentation": None}, r"annotations\[0\]: segmentation is empty"),
     ({"annotations__0__segmentation": [SQUARE, [1, 2, 3, 4]]}, r"annotations\[0\]: an outline of 4 numbers"),
     ({"annotations__1__segmentation__size": [8, 6]},
      r"annotations\[1\]: the mask has 6 × 8 pixels, its photo 8 × 6: encode it at the photo's size"),
     ({"annotations__1__segmentation__counts": "55"}, r"annotations\[1\]: The runs of a mask add up to 10"),
     ({"annotations__1__segmentation__counts": [50, -2]}, r"annotations\[1\]: The run -2 of a mask is neg")],
)  # fmt: skip
def test_a_mistake_in_a_coco_file_is_named(coco, tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as caught:
        read_coco(coco(**changes), tmp_path)
    assert "instances.json" in str(caught.value)


def test_an_outline_far_outside_is_named_when_its_mask_is_asked_for(coco, tmp_path):
    data = read_coco(coco(annotations__0__segmentation=[[0, 0, 900, 0, 0, 4]]), tmp_path)
    with pytest.raises(InputError, match=r"instances.json, annotations\[0\]: The point \(900, 0\)"):
        data.photos[0].instances[0].mask()


def test_a_photo_of_another_size_is_named(coco, tmp_path):
    data = read_coco(coco(images__1__height=5, images__1__width=7), tmp_path)
    with pytest.raises(
        InputError, match=r"b.png has 5 × 7 pixels, but its annotations 7 × 5, which is the photo not turned"
    ):
        data.photos[1].image()


def test_what_is_no_json_or_no_file_is_named(tmp_path):
    (tmp_path / "cut.json").write_text('{"images": [')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "latin.json").write_bytes(b'{"images": [{"id": 1, "file_name": "\xff.jpg"}]}')
    for name, said in [("cut", "cut.json is not valid JSON"), ("deep", "deep.json is no"),
                       ("latin", "latin.json is not valid JSON"),
                       ("none", "none.json cannot be read")]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            read_coco(tmp_path / f"{name}.json", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_coco(tmp_path, tmp_path)


def test_photos_that_are_no_folder_are_named(coco, tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg is not a folder: give the one with the photos of"):
        read_coco(coco(), tmp_path / "a.jpg")


# --- folders --------------------------------------------------------------------------------------


def save(folder, name, values=None, size=(5, 4)):
    folder.mkdir(exist_ok=True)
    image = Image.new("RGB", size) if values is None else Image.fromarray(np.array(values, np.uint8))
    image.save(folder / name)


def rows(*values):
    """A mask of 5 × 4 pixels with a value for each row."""
    return np.repeat(np.array(values)[:, None], 5, axis=1)


def test_photos_and_masks_in_one_folder_are_read(tmp_path):
    save(tmp_path, "one.jpg")
    save(tmp_path, "one.png", rows(0, 0, 255, 255))
    save(tmp_path, "two.webp")
    save(tmp_path, "two.png", rows(0, 0, 0, 0))
    data = read_folder(tmp_path)
    assert (data.kind, data.values) == ("inside and outside", (0, 255))
    assert [photo.size for photo in data.photos] == [(4, 5), (4, 5)]
    assert data.photos[0].image().size == (5, 4)
    assert np.array_equal(data.photos[0].labels(), rows(0, 0, 255, 255))
    assert data.found.endswith("2 photos with PNG masks of what is inside (255) and outside (0).")


@pytest.mark.parametrize(("photos", "masks"), [("images", "masks"), ("photos", "labels")])
def test_photos_and_masks_in_two_folders_are_read(tmp_path, photos, masks):
    save(tmp_path / photos, "one.png")
    save(tmp_path / masks, "one.png", rows(0, 3, 7, 255))
    data = read_folder(tmp_path)
    assert (data.kind, data.values, data.name) == ("classes", (0, 3, 7), tmp_path.name)
    assert data.found.endswith("1 photo with PNG masks of classes, 3 values from 0 to 7 (255 is not judged).")
    assert read_folder(tmp_path / photos, tmp_path / masks).photos == data.photos


def test_masks_without_an_object_are_read(tmp_path):
    save(tmp_path, "one.jpg")
    save(tmp_path, "one.png", rows(0, 0, 0, 0))
    assert read_folder(tmp_path).found.endswith("1 photo with PNG masks without an object.")


def test_a_mask_of_another_size_is_named(tmp_path):
    save(tmp_path, "one.jpg", size=(5, 3))
    save(tmp_path, "one.png", rows(0, 1, 1, 0))
    with pytest.raises(
        InputError, match=r"one.jpg has 5 × 3 pixels, but its mask .*one.png 5 × 4: make the two"
    ):
        read_folder(tmp_path).photos[0].image()


def test_mistakes_in_folders_are_named(tmp_path):
    photos, masks = tmp_path / "images", tmp_path / "masks"
    with pytest.raises(InputError, match="images is not a folder: check the path"):
        read_folder(photos, masks)
    photos.mkdir()
    save(masks, "a.png", rows(0, 1, 1, 1))
    with pytest.raises(InputError, match="images holds no photos: give a folder with photos and PNG masks"):
        read_folder(tmp_path)
    save(photos, "a.jpg")
    save(photos, "b.jpg")
    with pytest.raises(
        InputError, match=r"1 photo of .*images without a mask of the same name in .*masks: b.jpg"
    ):
        read_folder(tmp_path)
    (photos / "b.jpg").unlink()
    save(masks, "c.png", rows(0, 1, 1, 1))
    with pytest.raises(
        InputError, match=r"1 mask of .*masks without a photo of the same name in .*images: c.png"
    ):
        read_folder(tmp_path)
    (masks / "c.png").unlink()
    save(photos, "a.webp")
    with pytest.raises(InputError, match=r"a.jpg and .*a.webp have the same name but for the ending: rename"):
        read_folder(tmp_path)
    (photos / "a.webp").unlink()
    save(masks, "a.jpg", rows(0, 1, 1, 1))
    with pytest.raises(InputError, match=r"The mask .*a.jpg is not a PNG: save it as one"):
        read_folder(tmp_path)
    (masks / "a.jpg").unlink()
    save(masks, "a.png")
    with pytest.raises(InputError, match=r"a\.png is a RGB image, whose pixels are colours"):
        read_folder(tmp_path)
    save(tmp_path / "labels", "a.png", rows(0, 1, 1, 1))
    with pytest.raises(InputError, match="holds images, masks, labels: say which folders"):
        read_folder(tmp_path)
