"""Every form of TIFF with known pixels: none may come out wrong.

    python fuzz/tiff.py [--sample N] [--seed S]

Writers: tifffile with imagecodecs (independent of what Vitrail reads with), Pillow for fax compression, and
`plain` below for what neither writes (fill order). What a form must become is computed here from the
samples that were written. The last line of stdout is one JSON document; exit code 1 if a form is wrong.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode

WIDTH, HEIGHT = 37, 29
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4, "palette": 1}
EXTRAS = {"none": (), "unspecified": (0,), "premultiplied": (1,), "straight": (2,), "two": (2, 0)}
COMPRESSIONS = ("none", "adobe_deflate", "lzw", "packbits", "lzma", "zstd")
PREDICTED = ("adobe_deflate", "lzw", "lzma", "zstd")


@dataclass(frozen=True)
class Form:
    """A file to be made and the pixels it must become: uint8 (H, W, 3); None: it must be refused.

    `tolerance`: grey levels that the mean may differ, for lossy compression.
    """

    name: str
    make: Callable[[], bytes]
    expected: Callable[[], np.ndarray | None]
    tolerance: float = 0.0


def samples(bits: int, count: int, seed: int = 0) -> np.ndarray:
    """Random samples (H, W, count) with the smallest and the largest among them."""
    values = np.random.default_rng([seed, bits, count]).integers(0, 1 << bits, (HEIGHT, WIDTH, count))
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def levels(values: np.ndarray, bits: int, photometric: str, extra: tuple[int, ...]) -> np.ndarray:
    """What samples (H, W, S) mean, one at a time and in Python's integers where that is no loss."""
    largest = (1 << bits) - 1
    colours = values[:, :, : COLOURS[photometric]].astype(np.int64)
    if extra and extra[0] == 1:
        alpha = values[:, :, COLOURS[photometric], None].astype(np.int64)
        colours = np.where(
            alpha == 0, colours, np.minimum(colours * largest // np.maximum(alpha, 1), largest)
        )
    if photometric == "miniswhite":
        colours = largest - colours
    colours = (
        colours // 2 ** (bits - 8) if bits > 8 else np.floor(colours * 255 / largest + 0.5).astype(np.int64)
    )
    if photometric == "separated":
        return np.asarray(Image.fromarray(colours.astype(np.uint8), mode="CMYK").convert("RGB"))
    return np.broadcast_to(colours, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def written(values: np.ndarray, planar: str, **options: Any) -> bytes:
    """A TIFF by tifffile of samples (H, W, S)."""
    image = values[:, :, 0] if values.shape[2] == 1 else values
    if values.shape[2] > 1:
        options["planarconfig"] = planar
        image = np.moveaxis(values, 2, 0) if planar == "separate" else values
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, metadata=None, **options)
    return buffer.getvalue()


# --- forms --------------------------------------------------------------------------------------


def usual() -> Iterator[Form]:
    """8 and 16 bits in all combinations of colours, planes, extra samples, layout and compression."""
    layouts: dict[str, dict[str, Any]] = {
        "one strip": {"rowsperstrip": HEIGHT}, "strips of 7": {"rowsperstrip": 7},
        "rows": {"rowsperstrip": 1},
        "tiles": {"tile": (16, 32)}, "large tile": {"tile": (64, 48)},
    }  # fmt: skip
    for bits, photometric, planar, extra, layout, compression, predictor, order in itertools.product(
        (8, 16), ("minisblack", "miniswhite", "rgb", "separated"), ("contig", "separate"), EXTRAS, layouts,
        COMPRESSIONS, (False, True), ("<", ">"),
    ):  # fmt: skip
        kinds = EXTRAS[extra]
        count = COLOURS[photometric] + len(kinds)
        if (predictor and compression not in PREDICTED) or (count == 1 and planar == "separate"):
            continue
        options = {
            **layouts[layout],
            "byteorder": order,
            "photometric": photometric,
            "extrasamples": kinds or None,
        }
        if compression != "none":
            options |= {"compression": compression, "predictor": predictor}
        big = (bits + len(layout) + len(compression)) % 3 == 0
        refused = photometric == "separated" and kinds[:1] == (1,)

        def make(bits=bits, count=count, planar=planar, options=options, big=big) -> bytes:
            return written(samples(bits, count), planar, bigtiff=big, **options)

        def expected(bits=bits, count=count, photometric=photometric, kinds=kinds, refused=refused):
            return None if refused else levels(samples(bits, count), bits, photometric, kinds)

        name = f"{bits} bit {photometric} {planar} extra {extra}, {layout}, {compression}, "
        yield Form(f"{name}{'predicted ' if predictor else ''}{order}{' big' if big else ''}", make, expected)


def packed() -> Iterator[Form]:
    """Other numbers of bits, which tifffile packs."""
    for bits, photometric, planar, order, tile in itertools.product(
        (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15), ("minisblack", "miniswhite", "rgb"),
        ("contig", "separate"), ("<", ">"), (None, (16, 16)),
    ):  # fmt: skip
        count = COLOURS[photometric]
        # Above 8 bits tifffile packs the other byte order so that it cannot read it itself: see `by_hand`.
        if (count == 1 and planar == "separate") or (bits > 8 and order == ">"):
            continue
        options = {"bitspersample": bits, "byteorder": order, "tile": tile, "photometric": photometric}

        def make(bits=bits, count=count, planar=planar, options=options) -> bytes:
            return written(samples(bits, count), planar, **options)

        def expected(bits=bits, count=count, photometric=photometric):
            return levels(samples(bits, count), bits, photometric, ())

        yield Form(
            f"{bits} bit {photometric} {planar}, {'tiles' if tile else 'strips'} {order}", make, expected
        )


def palettes() -> Iterator[Form]:
    """Colour maps of 16 bits, of 8 bits in a field of 16, and dark ones."""
    for bits, reach, compression, order in itertools.product(
        (8, 16), ("16", "8"), ("none", "lzw", "adobe_deflate"), ("<", ">")
    ):
        colours = np.random.default_rng(bits).integers(0, 256, (3, 1 << bits))
        stored = (colours * 257 if reach == "16" else colours).astype(np.uint16)

        options = {"photometric": "palette", "colormap": stored, "byteorder": order}
        options["compression"] = None if compression == "none" else compression

        def make(bits=bits, options=options) -> bytes:
            return written(samples(bits, 1), "contig", **options)

        def expected(bits=bits, colours=colours):
            return colours.T[samples(bits, 1)[:, :, 0]].astype(np.uint8)

        yield Form(f"{bits} bit palette of {reach} bit, {compression} {order}", make, expected)
    for bits, order, fill in itertools.product((1, 2, 4, 8), "<>", (1, 2)):
        colours = np.random.default_rng(bits).integers(0, 256, (3, 1 << bits))

        def make(bits=bits, order=order, fill=fill, colours=colours) -> bytes:
            more = {320: tuple(int(value) * 257 for value in colours.ravel())}
            return plain(samples(bits, 1), bits, 3, order, fill, 1, 7, more)

        def expected(bits=bits, colours=colours):
            return colours.T[samples(bits, 1)[:, :, 0]].astype(np.uint8)

        yield Form(f"{bits} bit palette by hand, fill order {fill} {order}", make, expected)


def by_hand() -> Iterator[Form]:
    """What tifffile does not write: fill order 2, and few bits in planes and with either sign."""
    for bits, photometric, order, fill, planar, rows in itertools.product(
        (1, 2, 4, 8, 10, 12, 14, 16), (0, 1, 2), "<>", (1, 2), (1, 2), (1, 7, HEIGHT)
    ):
        name = {0: "miniswhite", 1: "minisblack", 2: "rgb"}[photometric]
        count = COLOURS[name]
        if count == 1 and planar == 2:
            continue

        def make(
            bits=bits, photometric=photometric, order=order, fill=fill, planar=planar, rows=rows, count=count
        ):
            return plain(samples(bits, count), bits, photometric, order, fill, planar, rows, {})

        def expected(bits=bits, name=name, count=count):
            return levels(samples(bits, count), bits, name, ())

        layout = f"fill order {fill}, planes {planar}, {rows} rows {order}"
        yield Form(f"{bits} bit {name} by hand, {layout}", make, expected)


def faxes() -> Iterator[Form]:
    """CCITT compression by Pillow's libtiff, of either sign."""
    ink = samples(1, 1)[:, :, 0].repeat(3, axis=1)[:, :WIDTH]
    for compression, photometric in itertools.product(("tiff_ccitt", "group3", "group4"), (0, 1)):

        def make(compression=compression, photometric=photometric) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(ink.astype(bool)).save(
                buffer, "TIFF", compression=compression, tiffinfo={262: photometric}
            )
            return buffer.getvalue()

        def expected(photometric=photometric):
            # Pillow turns the bits when it is asked for the other sign, so the picture stays.
            return np.repeat(ink[:, :, None] * np.uint8(255), 3, axis=2)

        yield Form(f"{compression} photometric {photometric}", make, expected)


def jpegs() -> Iterator[Form]:
    """JPEG compression, lossy: smooth pixels, and a tolerance."""
    y, x = np.mgrid[:64, :80]
    smooth = np.stack([x * 3, y * 3, (x + y)], -1).astype(np.uint8)
    for photometric, layout, order in itertools.product(
        ("minisblack", "rgb", "ycbcr"), ({}, {"rowsperstrip": 16}, {"tile": (32, 48)}), "<>"
    ):
        count = 1 if photometric == "minisblack" else 3

        stored = np.asarray(Image.fromarray(smooth).convert("YCbCr")) if photometric == "ycbcr" else smooth
        options = {"photometric": photometric, "byteorder": order, "compression": "jpeg", **layout}

        def make(stored=stored, options=options, count=count) -> bytes:
            buffer = io.BytesIO()
            image = stored[:, :, 0] if count == 1 else stored
            tifffile.imwrite(buffer, image, metadata=None, compressionargs={"level": 95}, **options)
            return buffer.getvalue()

        def expected(count=count):
            return np.broadcast_to(smooth[:, :, :1], smooth.shape) if count == 1 else smooth

        yield Form(f"jpeg {photometric} {layout} {order}", make, expected, tolerance=3)


def refused() -> Iterator[Form]:
    """Samples whose white nothing states, and colours that need a profile."""
    for kind, photometric, order in itertools.product(
        ("i1", "i2", "u4", "i4", "f2", "f4", "f8", "c8"), ("minisblack", "miniswhite", "rgb"), "<>"
    ):
        count = COLOURS[photometric]

        def make(kind=kind, count=count, photometric=photometric, order=order) -> bytes:
            values = samples(7, count).astype(kind)
            return written(values, "contig", photometric=photometric, byteorder=order)

        yield Form(f"{kind} {photometric} {order}", make, lambda: None)
    for photometric in ("cielab", "icclab", "itulab", "logl", "cfa", "linear_raw", "mask"):

        def make(photometric=photometric) -> bytes:
            number = tifffile.PHOTOMETRIC[photometric.upper()].value
            count = 1 if photometric in ("logl", "cfa", "mask") else 3
            return plain(samples(8, count), 8, number, "<", 1, 1, 7, {})

        yield Form(f"photometric {photometric}", make, lambda: None)
    hostile: dict[str, dict[int, tuple[int, ...]]] = {
        "signed 8 bit": {339: (2,)}, "no photometric": {262: ()}, "no size": {256: (), 257: ()},
        "DNG": {50706: (1, 4, 0, 0)},
        "preview": {254: (1,), 330: (8,)}, "reduced": {254: (1,)}, "mask page": {254: (4,)},
        "old JPEG": {259: (6,)}, "unknown compression": {259: (9999,)}, "fax of 8 bits": {259: (4,)},
        "32 bits": {258: (32,)}, "64 bits": {258: (64,)}, "0 bits": {258: (0,)}, "mixed bits": {258: (8, 4)},
        "0 samples": {277: (0,)}, "3 samples of 1": {277: (3,)}, "no rows": {278: (0,)},
        "no width": {256: (0,)},
        "no strips": {273: ()}, "too few lengths": {279: (1,)}, "far strips": {273: (9999999,) * 5},
        "predictor 3": {259: (8,), 317: (3,)}, "damaged deflate": {259: (8,)}, "damaged LZW": {259: (5,)},
        "damaged Zstandard": {259: (50000,)}, "damaged JPEG": {259: (7,)},
        "palette without a map": {262: (3,)},
    }  # fmt: skip
    for name, more in hostile.items():

        def make(more=more) -> bytes:
            return plain(samples(8, 1), 8, 1, "<", 1, 1, 7, more)

        yield Form(name, make, lambda: None)
    yield Form("inks", lambda: plain(samples(8, 4), 8, 5, "<", 1, 1, 7, {332: (2,)}), lambda: None)
    for subsampling in ((2, 2), (2, 1), (4, 4), None):

        def make(subsampling=subsampling) -> bytes:
            return plain(samples(8, 3), 8, 6, "<", 1, 1, 7, {530: subsampling} if subsampling else {})

        yield Form(f"plain YCbCr subsampled {subsampling}", make, lambda: None)


def forms() -> list[Form]:
    """All forms, in a fixed order."""
    every = (usual, packed, palettes, by_hand, faxes, jpegs, refused)
    return [form for family in every for form in family()]


# --- a writer of plain strips -------------------------------------------------------------------


def plain(
    values: np.ndarray, bits: int, photometric: int, order: str, fill: int, planar: int, rows: int,
    more: dict[int, tuple[int, ...]],
) -> bytes:  # fmt: skip
    """An uncompressed TIFF, bit by bit; `more` replaces tags, an empty one leaves it out."""
    planes = np.moveaxis(values, 2, 0)[..., None] if planar == 2 else values[None]
    strips = []
    for plane in planes:
        for top in range(0, HEIGHT, rows):
            lines = []
            for line in plane[top : top + rows]:
                if bits == 16:
                    lines.append(b"".join(struct.pack(order + "H", int(value)) for value in line.ravel()))
                    continue
                digits = "".join(f"{int(value):0{bits}b}" for value in line.ravel())
                digits += "0" * (-len(digits) % 8)
                lines.append(bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)))
            strips.append(b"".join(lines))
    if fill == 2:
        strips = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip) for strip in strips]
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip
    count = values.shape[2]
    tags: dict[int, tuple[int, ...]] = {
        256: (WIDTH,), 257: (HEIGHT,), 258: (bits,) * count, 259: (1,), 262: (photometric,), 266: (fill,),
        273: tuple(offsets), 277: (count,), 278: (rows,), 279: tuple(map(len, strips)), 284: (planar,),
        **more,
    }  # fmt: skip
    long = {273, 279, 330}
    arrays, entries, place = b"", b"", 8 + len(body)
    tags = {tag: numbers for tag, numbers in sorted(tags.items()) if numbers}
    for tag, numbers in tags.items():
        kind = 4 if tag in long else 1 if tag == 50706 else 3
        data = struct.pack(f"{order}{len(numbers)}{'BxHI'[kind - 1]}", *numbers)
        entries += struct.pack(order + "HHI", tag, kind, len(numbers))
        if len(data) > 4:
            entries += struct.pack(order + "I", place + len(arrays))
            arrays += data
        else:
            entries += data.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", place + len(arrays))
    return head + body + arrays + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4


# --- the verdict --------------------------------------------------------------------------------


def judge(form: Form) -> tuple[str, str]:
    """("right" | "refused" | "wrong" | "not as expected" | "foreign exception", why)."""
    data, expected = form.make(), form.expected()
    try:
        result = np.asarray(decode(data)).astype(int)
    except InputError as error:
        return ("refused", str(error)) if expected is None else ("not as expected", str(error))
    except Exception as error:
        return "foreign exception", repr(error)
    if expected is None:
        return "wrong", "decoded, although nothing says what its samples mean"
    if result.shape != expected.shape:
        return "wrong", f"shape {result.shape}"
    difference = np.abs(result - expected.astype(int))
    if form.tolerance:
        mean = difference.mean()
        return ("right", "") if mean <= form.tolerance else ("wrong", f"{mean:.1f} levels off in the mean")
    share = (difference > 0).mean()
    return ("right", "") if not share else ("wrong", f"{share:.0%} of the pixels")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many forms, drawn by chance, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = forms()
    if options.sample:
        every = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    counts: Counter[str] = Counter()
    for form in every:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, why = judge(form)
        counts[verdict] += 1
        if verdict not in ("right", "refused"):
            print(f"{verdict}: {form.name}: {why}")
    print(json.dumps({"forms": len(every), **counts}))
    return 0 if set(counts) <= {"right", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
