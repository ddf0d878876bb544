"""How much an untrusted image may ask for, whatever it declares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds for one image, checked before anything is decoded.

    With the defaults an image takes at most 2 s of one of today's server cores and 512 MiB (docs/images.md
    has the figures): they fit the 48 and 50 megapixels of phones.

    `pixels`: width x height. Kinds that take more time or memory per pixel are allowed a share of it, see
    `SHARE`. `file_bytes`: size of the file. `memory_bytes`: estimate of what reading and decoding takes.
    `parts`: number of segments, chunks, blocks, strips, tiles or tags. `scans`: how often a progressive
    JPEG may pass over its pixels; passes x pixels is limited as well (`PASSES`).
    """

    pixels: int = 48 * 2**20
    file_bytes: int = 256 * 2**20
    memory_bytes: int = 512 * 2**20
    parts: int = 65_536
    scans: int = 100

    @classmethod
    def of_megapixels(cls, count: int) -> Limits:
        """Limits for pictures of up to `count` million pixels: bytes and memory grow in proportion."""
        default = cls()
        scale = max(count * 1_000_000 / default.pixels, 1.0)
        return cls(
            pixels=count * 1_000_000,
            file_bytes=round(default.file_bytes * scale),
            memory_bytes=round(default.memory_bytes * scale),
        )


LIMITS = Limits()

SHARE: dict[str, float] = {"WebP": 0.5, "AVIF": 0.5, "HEIF": 0.5}
"""Kind -> the share of `Limits.pixels` it may have: WebP takes 16 bytes per pixel, the others are slow."""

PASSES = 12
"""Passes over `Limits.pixels` that all scans of a progressive JPEG may add up to; ten are usual."""
