"""How counts and names are written, on a screen and in a document.

A name that Vitrail did not choose (of a file, a class, a model) may hold anything: line breaks, escape
sequences that a terminal obeys, bytes that are not UTF-8. It is printed and stored with the escapes of
Python's literals, which a shell reads as `$'...'`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["NOT_AT_HAND", "counted", "first_line", "is_utf8", "shown", "some_of", "utf8", "utf8_all"]

NOT_AT_HAND = "weights not at hand"
"""The phrase for what could win but has no weights on this machine; notes about it begin with it."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONE = re.compile("[\ud800-\udfff]")
# A name must not reverse the text printed around it (Unicode's TR 36, 3.6).
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def first_line(error: Exception) -> str:
    """What an error says first, at most 200 letters, or its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:200] for line in lines if line), type(error).__name__)


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 image`, `2 images`; `many` is the plural where it is not `one` plus an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 2 more`: the first few names and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(text: str) -> str:
    """The text as one line that a terminal prints but does not obey: whatever it cannot show is escaped.

    Line breaks become `\\n`, other control characters `\\x1b`, bytes that are not UTF-8 `\\xff`; characters
    that change the writing direction `\\u202e`. Everything else, backslashes included, stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(sign) if _is_unprintable(sign) else sign for sign in text)


def utf8(text: str) -> str:
    """The text with any bytes that are not UTF-8 (Linux allows them in file names) written as `\\xff`.

    Python holds such a byte as a lone surrogate (PEP 383), which neither JSON nor Parquet may contain.
    """
    return _LONE.sub(lambda found: _escape(found[0]), text)


def is_utf8(name: str | Path) -> bool:
    """Whether a name can be stored in a record and read back unchanged."""
    return _LONE.search(str(name)) is None


def utf8_all(value: Any) -> Any:
    """`utf8` of every string in nested dicts (keys too), lists and tuples."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {utf8_all(key): utf8_all(item) for key, item in value.items()}
    return [utf8_all(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_unprintable(sign: str) -> bool:
    return unicodedata.category(sign) in _UNPRINTABLE or _TURNING.match(sign) is not None


def _escape(sign: str) -> str:
    code = ord(sign)
    if sign in _SHORT:
        return _SHORT[sign]
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as os.fsdecode holds it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
