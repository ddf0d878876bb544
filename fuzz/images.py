"""Mutated images: no crash, no foreign exception, nothing slow or large, no pixel silently wrong.

    python fuzz/images.py [--cases N] [--seed S] [--only INDEX] [--largest]

Every case follows from the seed and its index alone. Decoding happens in a process of its own: one that does
not answer within a minute is killed, counted, and replaced. Time is the processor time of the decoding;
memory is how far the peak of the resident set rises above what was there before. `--largest` decodes
pictures at the default limits instead. The last line of stdout is one JSON document; exit code 1 for a fault.

What can be told of the pixels: a PNG whose checksums were not made anew is refused or unchanged; so is any
file that was only cut, and a JPEG whose end was overwritten with zeros.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import random
import re
import selectors
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.limits import LIMITS, SHARE

SECONDS, MIB, PATIENCE_S = 2.0, 512, 60.0
FAULTS = ("foreign exception", "slow", "large", "wrong", "crash", "hang")
ODD = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    4095,
    32767,
    32768,
    65535,
    65536,
    2**24 - 1,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
)

# --- whole files --------------------------------------------------------------------------------


def picture(width: int = 97, height: int = 61) -> Image.Image:
    """Edges, slopes and noise, different in every corner."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(3).integers(0, 40, (height, width))
    channels = [
        x * 255 // max(width - 1, 1),
        y * 255 // max(height - 1, 1),
        (x // 7 + y // 5) % 2 * 200 + noise,
    ]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def whole_files() -> dict[str, bytes]:
    """Name -> file; the name begins with its kind."""
    photo, exif = picture(), Image.Exif()
    exif[0x0112] = 6
    grey, few = photo.convert("L"), photo.quantize(32)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files = {
        "JPEG": encoded(photo, "JPEG"),
        "JPEG exif": encoded(photo, "JPEG", exif=exif, icc_profile=b"p" * 3000),
        "JPEG progressive": encoded(photo, "JPEG", progressive=True),
        "JPEG grey": encoded(grey, "JPEG"),
        "JPEG CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "JPEG two": encoded(photo, "MPO", save_all=True, append_images=[photo]),
        "JPEG restarts": encoded(photo, "JPEG", restart_marker_blocks=3, subsampling=0),
        "PNG": encoded(photo, "PNG", exif=exif),
        "PNG palette": encoded(few, "PNG"),
        "PNG deep": encoded(deep, "PNG"),
        "PNG alpha": encoded(photo.convert("RGBA"), "PNG"),
        "PNG frames": encoded(photo, "PNG", save_all=True, append_images=[photo]),
        "GIF": encoded(few, "GIF"),
        "GIF frames": encoded(
            few, "GIF", save_all=True, append_images=[few.rotate(90)], disposal=2, transparency=3
        ),
        "WebP": encoded(photo, "WEBP", exif=exif),
        "WebP lossless": encoded(photo, "WEBP", lossless=True),
        "WebP alpha": encoded(photo.convert("RGBA"), "WEBP"),
        "WebP frames": encoded(photo, "WEBP", save_all=True, append_images=[photo.rotate(5)]),
        "BMP": encoded(photo, "BMP"),
        "BMP palette": encoded(few, "BMP"),
        "TIFF": encoded(photo, "TIFF"),
        "TIFF LZW": encoded(photo, "TIFF", compression="tiff_lzw", exif=exif),
        "TIFF deflate": encoded(deep, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encoded(photo, "TIFF", compression="jpeg"),
        "TIFF palette": encoded(few, "TIFF"),
        "TIFF fax": encoded(photo.convert("1"), "TIFF", compression="group4"),
        "TIFF PackBits": encoded(photo.convert("CMYK"), "TIFF", compression="packbits"),
        "TIFF Zstandard": encoded(photo, "TIFF", compression="zstd"),
        "AVIF": encoded(photo, "AVIF", speed=9),
        "AVIF alpha": encoded(photo.convert("RGBA"), "AVIF", speed=9),
        "AVIF frames": encoded(photo, "AVIF", speed=9, save_all=True, append_images=[photo]),
        "PPM": encoded(photo, "PPM"),
        "PPM grey": encoded(deep, "PPM"),
        "PPM bits": encoded(photo.convert("1"), "PPM"),
        "PPM plain": b"P3 9 9 255\n" + b" ".join(b"%d" % value for value in range(243)) + b"\n",
    }
    try:
        import pillow_heif
    except ImportError:
        return files
    for name, options in {"HEIF": {"quality": 60}, "HEIF tiles": {"quality": 60, "tile_size": 64}}.items():
        buffer = io.BytesIO()
        source = picture(200, 130) if "tiles" in name else photo
        pillow_heif.from_pillow(source).save(buffer, **options)
        files[name] = buffer.getvalue()
    return files


# --- mutations ----------------------------------------------------------------------------------

Mutation = Callable[[bytearray, random.Random], bytearray]


def flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def flip_early(data: bytearray, rng: random.Random) -> bytearray:
    """Where headers stand."""
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 400))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data


def number(data: bytearray, rng: random.Random) -> bytearray:
    """An odd number of 2 or 4 bytes, in either byte order, mostly near the start."""
    size = rng.choice((2, 4, 4))
    reach = len(data) if rng.random() < 0.4 else min(len(data), 600)
    place = rng.randrange(max(1, reach - size))
    value = rng.choice(ODD) & (1 << 8 * size) - 1
    data[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return data


def cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(1, len(data))]


def zeros(data: bytearray, rng: random.Random) -> bytearray:
    """The end overwritten, the length kept."""
    place = rng.randrange(len(data) // 8, len(data) - 24)
    return data[:place] + bytearray(len(data) - place)


def remove(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    del data[place : place + rng.choice((1, 2, 4, 16, 100))]
    return data or bytearray(b"x")


def insert(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16, 100)))
    return data


def repeat(data: bytearray, rng: random.Random) -> bytearray:
    """A range many times over: segments, chunks, blocks, boxes."""
    place = rng.randrange(len(data))
    part = data[place : place + rng.choice((4, 12, 30, 100, 1000))]
    data[place:place] = part * rng.choice((2, 100, 3000))
    return data


def structure(data: bytearray, rng: random.Random) -> bytearray:
    """A field of the container: a length, a size, a count, a tag; PNG's checksums are made anew."""
    places = fields(bytes(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not places:
            break
        place, size, order = rng.choice(places)
        value = rng.choice(ODD) if rng.random() < 0.6 else rng.randrange(1 << 8 * size)
        data[place : place + size] = (value & (1 << 8 * size) - 1).to_bytes(size, order)
    return checksums(data)


def parts(data: bytearray, rng: random.Random) -> bytearray:
    """A whole segment or chunk left out, doubled, moved, or there thousands of times."""
    pieces = split(bytes(data))
    if len(pieces) < 3:
        return repeat(data, rng)
    index = rng.randrange(1, len(pieces))
    what = rng.randrange(4)
    if what == 0:
        del pieces[index]
    elif what == 1:
        pieces.insert(rng.randrange(1, len(pieces)), pieces[index])
    elif what == 2:
        other = rng.randrange(1, len(pieces))
        pieces[index], pieces[other] = pieces[other], pieces[index]
    else:
        pieces[index:index] = [pieces[index]] * min(
            rng.choice((10, 1000, 70_000)), 2**24 // max(1, len(pieces[index]))
        )
    return bytearray(b"".join(pieces))


MUTATIONS: tuple[Mutation, ...] = (
    flip,
    flip_early,
    number,
    cut,
    zeros,
    remove,
    insert,
    repeat,
    structure,
    structure,
    structure,
    parts,
)


def split(data: bytes) -> list[bytes]:
    """A file in its segments, chunks, boxes or blocks; joined they are the file again."""
    marks = [0]
    if data[:2] == b"\xff\xd8":
        marks += [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    elif data[:4] == b"\x89PNG":
        marks += [8, *(place for place, _ in png_chunks(data))]
    elif data[:4] == b"RIFF":
        place = 12
        while place + 8 <= len(data):
            marks.append(place)
            length = int.from_bytes(data[place + 4 : place + 8], "little")
            place += 8 + length + length % 2
    elif data[4:8] == b"ftyp":
        marks += [
            found.start() - 4
            for found in re.finditer(
                rb"(ftyp|meta|pitm|iloc|iinf|infe|iref|iprp|ipco|ipma|ispe"
                rb"|pixi|av1C|hvcC|colr|mdat|moov|trak|stbl|dimg|auxC|auxl)",
                data,
            )
        ]
    elif data[:3] == b"GIF":
        marks += [found.start() for found in re.finditer(rb"[!,]", data)][:300]
    marks = [*sorted(set(marks)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks)]


def png_chunks(data: bytes) -> list[tuple[int, int]]:
    """(place, length of the body) of each chunk."""
    place, found = 8, []
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((place, length))
        place += 12 + length
    return found


def fields(data: bytes) -> list[tuple[int, int, str]]:
    """(place, bytes, byte order) of the numbers that a container's structure consists of."""
    if data[:2] == b"\xff\xd8":
        heads = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data)]
        return [(place + 2, 2, "big") for place in heads] + [
            (place + at, 1 if at in (1, 4, 9) or at > 9 else 2, "big")
            for place in heads
            if data[place + 1] in (0xC0, 0xC2, 0xDA, 0xDB, 0xC4)
            for at in (1, 4, 5, 7, 9, 10, 11)
        ]
    if data[:4] == b"\x89PNG":
        chunks = png_chunks(data)
        return (
            [(place, 4, "big") for place, _ in chunks]
            + [(16, 4, "big"), (20, 4, "big")]
            + [(at, 1, "big") for at in range(24, 29)]
            + [(place + 8 + at, 2, "big") for place, length in chunks if length > 8 for at in (0, 2, 4)]
        )
    if data[:2] in (b"II", b"MM"):
        order = "little" if data[:2] == b"II" else "big"
        start = int.from_bytes(data[4:8], order)
        count = int.from_bytes(data[start : start + 2], order)
        entries = [start + 2 + 12 * index for index in range(min(count, 60))]
        return [(4, 4, order), (start, 2, order)] + [
            (place + at, size, order)
            for place in entries
            if place + 12 <= len(data)
            for at, size in ((0, 2), (2, 2), (4, 4), (8, 4), (8, 2))
        ]
    if data[4:8] == b"ftyp":
        boxes = [
            found.start()
            for found in re.finditer(
                rb"(meta|iloc|iinf|infe|iref|ipco|ipma|ispe|hvcC|av1C|mdat"
                rb"|stsz|stco|stsc|tkhd|dimg)",
                data,
            )
        ]
        return [(place - 4, 4, "big") for place in boxes] + [
            (place + 4 + at, size, "big")
            for place in boxes
            for at, size in ((0, 4), (4, 2), (4, 4), (6, 2), (8, 4))
        ]
    order = "big" if data[:1] == b"P" else "little"
    return [(place, size, order) for place in range(2, min(len(data), 60) - 4) for size in (1, 2, 4)]


def checksums(data: bytearray) -> bytearray:
    """Make a PNG's checksums fit again, as far as its chunks can be followed."""
    if data[:4] == b"\x89PNG":
        for place, length in png_chunks(bytes(data)):
            if place + 12 + length <= len(data):
                check = zlib.crc32(data[place + 4 : place + 8 + length])
                data[place + 8 + length : place + 12 + length] = struct.pack(">I", check)
    return data


# --- cases --------------------------------------------------------------------------------------


class Cases:
    """Case `index` of a seed: a file's name, what was done to it, and the bytes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.files = whole_files()
        self.names = sorted(self.files)
        self.pixels = {name: np.asarray(decode(data)) for name, data in self.files.items()}

    def case(self, index: int) -> tuple[str, list[str], bytes]:
        rng = random.Random(f"{self.seed} {index}")
        name = self.names[index % len(self.names)]
        data, done = bytearray(self.files[name]), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutation = rng.choice(MUTATIONS)
            if len(data) < 64 and mutation is zeros:
                mutation = flip
            data = mutation(data, rng)
            done.append(mutation.__name__)
        return name, done, bytes(data)

    def judge(self, index: int) -> dict[str, object]:
        """Decode a case here; what came of it, with seconds and MiB."""
        name, done, data = self.case(index)
        verdict, why, image = "decoded", "", None
        gc.collect(0)
        before = _memory("VmRSS")
        _forget_peak()
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = decode(data, short_side=16 if index % 3 == 0 else None)
        except InputError as error:
            verdict, why = "refused", str(error)
            if "\n" in why or len(why) > 500:
                verdict = "foreign exception"
        except BaseException as error:
            verdict, why = "foreign exception", repr(error)
        seconds, grown = time.process_time() - start, (_memory("VmHWM") - before) / 1024
        if seconds > SECONDS:
            verdict, why = "slow", f"{seconds:.1f} s"
        elif grown > MIB:
            verdict, why = "large", f"{grown:.0f} MiB"
        elif image is not None and self.is_wrong(name, done, data, image):
            verdict, why = "wrong", "other pixels than the whole file has"
        return {
            "index": index,
            "file": name,
            "done": done,
            "verdict": verdict,
            "why": why[:300],
            "s": round(seconds, 3),
            "mib": round(grown),
        }

    def is_wrong(self, name: str, done: list[str], data: bytes, image: Image.Image) -> bool:
        """Whether pixels differ although the mutation could be told from a whole file."""
        kind = name.split()[0]
        checked = kind == "PNG" and not {"structure", "parts", "repeat"} & set(done)
        plain = done == ["cut"] or (done == ["zeros"] and kind == "JPEG")
        if not (checked or plain) or image.info.get("vitrail_frame"):
            return False
        expected = self.pixels[name]
        pixels = np.asarray(image)
        return pixels.shape != expected.shape or not np.array_equal(pixels, expected)


def _memory(name: str) -> int:
    """KiB, from the kernel."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# --- the process that decodes, and the one that watches --------------------------------------------


def work(seed: int) -> None:
    """Answer each index on stdin with one JSON line."""
    os.nice(10)
    cases = Cases(seed)
    print(json.dumps({"ready": len(cases.names)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(cases.judge(int(line))), flush=True)


class Worker:
    def __init__(self, seed: int) -> None:
        command = [sys.executable, __file__, "--work", "--seed", str(seed)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.ears = selectors.DefaultSelector()
        self.ears.register(self.process.stdout, selectors.EVENT_READ)
        if not self.answer():
            raise SystemExit("the decoding process does not start")

    def answer(self) -> dict | None:
        """One line, or None: it died (`returncode` is set) or hangs and was killed."""
        if self.ears.select(PATIENCE_S):
            line = self.process.stdout.readline()
            if line:
                return json.loads(line)
            self.process.wait(5)
            return None
        self.process.kill()
        self.process.wait(5)
        return None

    def ask(self, index: int) -> dict:
        self.process.stdin.write(b"%d\n" % index)
        self.process.stdin.flush()
        start = time.monotonic()
        answer = self.answer()
        if answer is not None:
            return answer
        hung = time.monotonic() - start >= PATIENCE_S
        verdict = "hang" if hung else "crash"
        return {
            "index": index,
            "verdict": verdict,
            "why": f"exit {self.process.returncode}",
            "s": 0,
            "mib": 0,
        }


def campaign(seed: int, indices: range | list[int]) -> int:
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    worker = Worker(seed)
    for index in indices:
        result = worker.ask(index)
        counts[result["verdict"]] += 1
        kinds[result.get("file", "?").split()[0]] += 1
        slowest, largest = max(slowest, result["s"]), max(largest, result["mib"])
        if result["verdict"] in FAULTS or len(indices) == 1:
            print(json.dumps(result), flush=True)
        if result["verdict"] in ("crash", "hang"):
            worker = Worker(seed)
        if index % 1000 == 999:
            print(f"{index + 1}: {dict(counts)}", file=sys.stderr, flush=True)
    worker.process.stdin.close()
    print(
        json.dumps(
            {
                "seed": seed,
                "cases": len(indices),
                **counts,
                "slowest_s": slowest,
                "largest_mib": largest,
                "kinds": dict(sorted(kinds.items())),
            }
        )
    )
    return 1 if any(counts[fault] for fault in FAULTS) else 0


# --- the largest pictures -------------------------------------------------------------------------

ONE = """
import sys, time
from vitrail.images.decode import decode
decode(sys.argv[2])
status = lambda: dict(line.split(":") for line in open("/proc/self/status"))
before = int(status()["VmRSS"].split()[0])
open("/proc/self/clear_refs", "w").write("5")
start, wall = time.process_time(), time.perf_counter()
try: print(decode(sys.argv[1]).size, end=" ")
except ValueError as error: print("refused:", str(error)[-150:], end=" ")
print(round(time.process_time() - start, 2), round(time.perf_counter() - wall, 2),
      (int(status()["VmHWM"].split()[0]) - before) // 1024)
"""


def largest(folder: Path) -> int:
    """Decode one picture of each way of coding at its limit of pixels; print CPU s, wall s, MiB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(folder / "small.png")
    ways: dict[str, tuple[str, dict[str, object]]] = {
        "JPEG": ("JPEG", {"exif": exif, "quality": 90}),
        "JPEG 4:4:4 95": ("JPEG", {"quality": 95, "subsampling": 0}),
        "JPEG progressive": ("JPEG", {"progressive": True, "exif": exif}),
        "JPEG progressive 4:4:4 95": ("JPEG", {"progressive": True, "quality": 95, "subsampling": 0}),
        "PNG": ("PNG", {"compress_level": 1, "exif": exif}),
        "WebP": ("WEBP", {"method": 0, "exif": exif}),
        "WebP lossless": ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
        "GIF": ("GIF", {}),
        "BMP": ("BMP", {}),
        "TIFF": ("TIFF", {"exif": exif}),
        "TIFF LZW": ("TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": ("TIFF", {"compression": "jpeg"}),
        "PPM": ("PPM", {}),
        "AVIF": ("AVIF", {"speed": 10}),
        "AVIF 4:4:4": ("AVIF", {"speed": 10, "subsampling": "4:4:4", "quality": 90}),
        "HEIF": ("HEIF", {}),
    }
    fault = False
    for name, (file_format, options) in ways.items():
        pixels = int(LIMITS.pixels * SHARE.get(name.split()[0], 1))
        width = int((pixels * 4 / 3) ** 0.5) // 64 * 64
        height = pixels // width // 64 * 64
        tile = np.asarray(photo_tile())
        tiled = np.tile(tile, (height // tile.shape[0] + 1, width // tile.shape[1] + 1, 1))[:height, :width]
        path = folder / "picture"
        image = Image.fromarray(np.ascontiguousarray(tiled))
        del tiled
        if file_format == "HEIF":
            import pillow_heif

            pillow_heif.from_pillow(image).save(
                path, quality=60, enc_params={"preset": "ultrafast"}, tile_size=512
            )
        else:
            image.save(path, file_format, **options)
        del image
        command = [sys.executable, "-c", ONE, str(path), str(folder / "small.png")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        print(
            f"{name}: {done.stdout.strip() or done.stderr[-300:]} ({path.stat().st_size >> 20} MiB)",
            flush=True,
        )
        fault |= "refused" not in done.stdout and int(done.stdout.split()[-1]) > MIB
    return int(fault)


def photo_tile() -> Image.Image:
    """scikit-learn's photo of a temple where it is installed, else the made-up picture."""
    try:
        import sklearn
    except ImportError:
        return picture(640, 427)
    return Image.open(Path(sklearn.__file__).parent / "datasets/images/china.jpg").convert("RGB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX", help="this case alone")
    parser.add_argument(
        "--largest", type=Path, metavar="FOLDER", help="write and decode pictures at the limits"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.seed)
        return 0
    if options.largest:
        return largest(options.largest)
    indices = range(options.cases) if options.only is None else [options.only]
    return campaign(options.seed, indices)


if __name__ == "__main__":
    sys.exit(main())
