"""Forms of TIFF with known pixels (fuzz/tiff.py has all of them), and what those forms came from."""

from __future__ import annotations

import io
import random
import struct
import warnings

import numpy as np
import pytest
import tiff as tiff_forms
import tifffile
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.limits import Limits

RNG = np.random.default_rng(5)
EVERY = tiff_forms.forms()


def written(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **options)
    return buffer.getvalue()


@pytest.mark.slow
def test_no_form_is_wrong():
    """A seeded sample of 1,000."""
    usual = [form for form in EVERY if form.make.__qualname__.startswith("usual")]
    others = [form for form in EVERY if not form.make.__qualname__.startswith("usual")]
    assert len(EVERY) > 8000
    drawn = random.Random(11).sample(usual, 600) + random.Random(11).sample(others, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = [(form.name, *tiff_forms.judge(form)) for form in drawn]
    assert [entry for entry in judged if entry[1] not in ("right", "refused")] == []
    assert sum(entry[1] == "right" for entry in judged) > 850


def test_sixteen_bits_from_white_are_not_negative():
    grey = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    data = written(65535 - grey, photometric="miniswhite")
    assert np.array_equal(np.asarray(decode(data))[..., 0], grey >> 8)


def test_sixteen_bits_in_separate_planes_are_no_noise():
    planes = RNG.integers(0, 65536, (3, 20, 30), dtype=np.uint16)
    data = written(planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(np.asarray(decode(data)), np.moveaxis(planes, 0, 2) >> 8)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "jpeg"])
def test_what_pillow_writes_is_what_pillow_reads(compression):
    """On the forms that Pillow reads rightly the pixels are its own, bit for bit."""
    y, x = np.mgrid[:120, :200]
    picture = Image.fromarray(np.stack([x, y * 2, (x * y) % 256], -1).astype(np.uint8))
    for mode in ("RGB", "L", "RGBA", "CMYK", "1", "P", "LA"):
        if compression == "jpeg" and mode not in ("RGB", "L"):
            continue
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, "TIFF", compression=compression)
        expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
        assert np.array_equal(np.asarray(decode(buffer.getvalue())), expected), mode


def test_pages_after_the_first_and_what_they_declare_do_not_matter():
    first, second = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    data = written(np.stack([first, second]), photometric="rgb")
    assert np.array_equal(np.asarray(decode(data)), first)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({259: (8,), 279: (3, 3, 3, 3, 3)}, "truncated, damaged"),
        ({330: (8,), 254: (1,)}, "a camera's RAW file is not read"),
        ({258: (32,)}, "32-bit samples are not read: nothing says which value is white"),
        ({262: (8,)}, "CIE Lab is not read"),
        ({278: (1,)}, "5 strips or tiles with 5 lengths instead of 29"),
        ({256: (60_000,), 257: (60_000,)}, "60000 x 60000 pixels, above the limit"),
        ({322: (65535,), 323: (65535,), 324: (8,), 325: (9,)}, "a size out of range"),
    ],
)
def test_the_reason_of_a_refusal_is_said(change, reason):
    data = tiff_forms.plain(tiff_forms.samples(8, 1), 8, 1, "<", 1, 1, 7, change)
    with pytest.raises(InputError, match="The given data") as error:
        decode(data)
    assert reason in str(error.value)


def test_tags_are_bounded_before_they_are_read():
    entry = struct.pack("<HHII", 273, 4, 2**30, 8)
    for data in (
        b"II*\0\x08\0\0\0\x01\0" + entry + b"\0" * 4,
        b"II*\0\x08\0\0\0\xff\xff" + entry * 65535,
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + b"\0" * 64,
    ):
        with pytest.raises(InputError, match="TIFF"):
            decode(data)
    values = tiff_forms.plain(tiff_forms.samples(8, 1), 8, 1, "<", 1, 1, 1, {})
    with pytest.raises(InputError, match="more than 16"):
        decode(values, limits=Limits(parts=4))
