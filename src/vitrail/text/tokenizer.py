"""Text -> token numbers, as the text towers of CLIP and SigLIP were trained to read them.

Shapes: B texts, L tokens (the context length).

    text ──clean──► words ──byte-pair encoding──► ids ──frame──► (B, L)

`BPETokenizer` is CLIP's (Radford et al. 2021, section 2.4): byte-pair encoding (Sennrich et al. 2016,
section 3.2) over bytes, so it can encode any text. Its 49,408 ids are 256 bytes, 256 bytes that end a word,
one id for each of 48,894 merges, and two that frame every text. `FileTokenizer` reads a `tokenizer.json`;
SigLIP's vocabulary is not part of this package.

Tokens are NumPy arrays, so that an artifact can read texts without torch. The libraries that clean and split
texts belong to the extra `text`, and are imported when a tokenizer is made.
"""

from __future__ import annotations

import gzip
import heapq
import html
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitrail.errors import InputError, MissingExtraError

__all__ = [
    "CLIP_TOKENIZER",
    "BPETokenizer",
    "FileTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "canonicalize",
    "load_tokenizer",
]

TEXT_INSTALL = 'pip install "vitrail[text]"'
SIGLIP_INSTALL = 'pip install "vitrail[siglip]"'

CLIP_TOKENIZER = "clip"
"""`TokenizerConfig.tokenizer` of towers that read CLIP's vocabulary, which ships with this package."""

MERGES = 49_152 - 256 - 2
"""CLIP uses only this many of the file's merges, the most frequent ones."""

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"

WORD = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
"""A frame token, an English contraction, a run of letters, a single digit, or a run of other non-spaces."""

CACHED_WORDS = 65_536


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer a text tower needs, and how its rows are laid out."""

    tokenizer: str = CLIP_TOKENIZER
    """`CLIP_TOKENIZER`, or the vocabulary's repository on the Hugging Face hub."""
    context_length: int = 77
    """L, including the frame tokens."""
    vocab_size: int = 49_408
    """V, the number of distinct tokens."""
    pad_id: int = 0
    """Fills a row after the end of its text."""


class Tokenizer(Protocol):
    """Turns texts into the token numbers that one text tower reads."""

    context_length: int

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """One text or several as (B, L) int64, framed and padded.

        Raises:
            InputError: no texts, something that is not a text, or one longer than L and not `truncate`.
        """


class BPETokenizer:
    """CLIP's tokenizer; gives the same ids as open_clip's `SimpleTokenizer` for any text.

    One difference is deliberate: open_clip silently truncates a long text; here `truncate` has to be set.

    Args:
        context_length: L, including both frame tokens.
        clean: "lower" (CLIP) or "canonicalize" (`canonicalize` after repairing the text).

    Raises:
        InputError: a context too short for the frame, or an unknown value of `clean`.
        MissingExtraError: the extra `text` is not installed.
    """

    def __init__(self, *, context_length: int = 77, clean: str = "lower") -> None:
        if context_length < 2:
            raise InputError(
                f"A context of {context_length} has no room for the start and end tokens: use 2 or more."
            )
        self.context_length = context_length
        self._clean = _cleaner(clean)
        self._words = _word_pattern()
        self._merges, symbols = _vocabulary()
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._symbols = symbols
        self.vocab_size = len(symbols)
        self.start_id, self.end_id = self._ids[START], self._ids[END]
        # An end token spelled out in a text counts as one, as in open_clip.
        self._word_ids = lru_cache(CACHED_WORDS)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without frame tokens or padding.

        Raises:
            InputError: not a text.
        """
        _check_text(text, 0)
        letters = _byte_letters()
        ids: list[int] = []
        for word in self._words.findall(self._clean(text)):
            ids.extend(self._word_ids("".join(letters[byte] for byte in word.encode())))
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a row of ids, in lower case, each word followed by a space.

        Frame tokens appear as they are spelled, invalid UTF-8 as U+FFFD.

        Raises:
            InputError: an id outside the vocabulary.
        """
        numbers = [int(i) for i in ids]
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                raise InputError(f"{number} is not a token of CLIP: ids go from 0 to {self.vocab_size - 1}.")
        bytes_of = {letter: byte for byte, letter in _byte_letters().items()}
        raw = bytes(bytes_of[letter] for number in numbers for letter in self._symbols[number])
        return raw.decode(errors="replace").replace(WORD_END, " ")

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """One text or several as (B, L) int64: start, ids, end, then zeros.

        Args:
            texts: what to encode.
            truncate: cut a long text to L − 1 tokens and the end token instead of refusing it.

        Raises:
            InputError: no texts, something that is not a text, or one that is too long.
        """
        batch = _checked(texts)
        rows_BL = np.zeros((len(batch), self.context_length), np.int64)
        for row, text in zip(rows_BL, batch, strict=True):
            ids = [self.start_id, *self.encode(text), self.end_id]
            if len(ids) > self.context_length:
                if not truncate:
                    raise _too_long(text, len(ids), self.context_length)
                ids = [*ids[: self.context_length - 1], self.end_id]
            row[: len(ids)] = ids
        return rows_BL

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """Ids of one word, given as the letters of its bytes."""
        if word in (START, END):
            return (self._ids[word],)
        return tuple(self._ids[symbol] for symbol in self._merged([*word[:-1], word[-1] + WORD_END]))

    def _merged(self, symbols: list[str]) -> list[str]:
        """Join the pair of lowest rank wherever it occurs, left to right; repeat while any pair has a rank.

        A heap of positions and a linked list take n log n steps. Scanning the word once per merge, as the
        algorithm is usually written, takes n²: 8 s instead of 0.06 s for a run of 20,000 random letters.
        """
        end = len(symbols)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        heap: list[tuple[int, int]] = []

        def note(left: int) -> None:
            if left >= 0 and after[left] < end:
                rank = self._ranks.get((symbols[left], symbols[after[left]]))
                if rank is not None:
                    heapq.heappush(heap, (rank, left))

        for place in range(end):
            note(place)
        while heap:
            rank, left = heapq.heappop(heap)
            first, second = self._merges[rank]
            right = after[left]
            if right == end or symbols[left] != first or symbols[right] != second:
                continue  # one of the two has since been joined to something else
            symbols[left], symbols[right] = first + second, ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            # Merges only join what earlier merges made, so new pairs rank after every occurrence of this one.
            note(before[left])
            note(left)
        return [symbol for symbol in symbols if symbol]


class FileTokenizer:
    """A tokenizer read from a `tokenizer.json`, as SigLIP's towers need; uses the library `tokenizers`.

    Args:
        path: the file. No code in it is run.
        context_length: L.
        pad_id: fills a row after the end of the text.
        clean: "canonicalize" (SigLIP) or "lower".

    Raises:
        MissingExtraError: the extra `siglip` is not installed.
        InputError: the file does not exist, or is not a tokenizer.
    """

    def __init__(self, path: Path, *, context_length: int, pad_id: int, clean: str = "canonicalize") -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingExtraError("tokenizers, which reads SigLIP's vocabulary,", SIGLIP_INSTALL) from None
        if not path.is_file():
            raise InputError(f"There is no tokenizer file at {path}: check the path.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise InputError(f"{path} is not a tokenizer.json ({error}): download it again.") from None
        self.context_length = context_length
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self._pad_id = pad_id
        self._clean = _cleaner(clean)

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """One text or several as (B, L) int64: ids, the end tokens that the file adds, then `pad_id`.

        Raises:
            InputError: no texts, something that is not a text, or one that is too long.
        """
        batch = _checked(texts)
        cleaned = [self._clean(text) for text in batch]
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(cleaned)]
        for text, ids in zip(batch, rows, strict=True):
            if len(ids) > self.context_length and not truncate:
                raise _too_long(text, len(ids), self.context_length)
        if any(len(ids) > self.context_length for ids in rows):
            # Only the library knows which ids belong to the text and which the file adds at the end.
            self._tokenizer.enable_truncation(self.context_length)
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch(cleaned)]
        rows_BL = np.full((len(rows), self.context_length), self._pad_id, np.int64)
        for row, ids in zip(rows_BL, rows, strict=True):
            row[: len(ids)] = ids
        return rows_BL


def load_tokenizer(config: TokenizerConfig, *, file: Path | None = None) -> Tokenizer:
    """The tokenizer a text tower was trained with.

    Args:
        config: the tower's.
        file: the `tokenizer.json`, for towers whose vocabulary is not part of this package.

    Raises:
        InputError: the vocabulary has to be downloaded first, or the file does not fit the tower.
        MissingExtraError: the extra `text` (`siglip` for a file) is not installed.
    """
    if config.tokenizer == CLIP_TOKENIZER:
        if file is not None:
            raise InputError("This text tower uses CLIP's own vocabulary: leave the tokenizer file out.")
        return BPETokenizer(context_length=config.context_length)
    if file is None:
        raise InputError(
            f"The vocabulary of this text tower is not part of Vitrail: download tokenizer.json from "
            f"https://huggingface.co/{config.tokenizer} and give its path."
        )
    tokenizer = FileTokenizer(file, context_length=config.context_length, pad_id=config.pad_id)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{file} has {tokenizer.vocab_size} tokens, but the text tower has {config.vocab_size}: "
            f"use the tokenizer.json from https://huggingface.co/{config.tokenizer}."
        )
    return tokenizer


def canonicalize(text: str) -> str:
    """SigLIP's form of a text: no ASCII punctuation, lower case, single spaces (an underscore is a space)."""
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _cleaner(name: str) -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError:
        raise MissingExtraError("ftfy, which repairs texts before they are read,", TEXT_INSTALL) from None

    def repaired(text: str) -> str:
        """Undo wrong decoding ("cafÃ©") and HTML escapes; twice, because some captions were escaped twice."""
        return html.unescape(html.unescape(ftfy.fix_text(text))).strip()

    if name == "lower":
        return lambda text: " ".join(repaired(text).split()).lower()
    if name == "canonicalize":
        return lambda text: canonicalize(repaired(text))
    raise InputError(f"There is no cleaning {name!r}: use 'lower' or 'canonicalize'.")


@lru_cache(1)
def _word_pattern() -> Any:
    try:
        import regex
    except ImportError:
        raise MissingExtraError("regex, which splits texts into words,", TEXT_INSTALL) from None
    return regex.compile(WORD, regex.IGNORECASE)


@lru_cache(1)
def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte: its Latin-1 character if printable, else one from U+0100 on.

    The order is that of the first 256 ids.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@lru_cache(1)
def _vocabulary() -> tuple[list[tuple[str, str]], list[str]]:
    """The merges in order of rank, and all symbols in order of id."""
    packed = files("vitrail.text") / "data" / "bpe_simple_vocab_16e6.txt.gz"
    with packed.open("rb") as file, gzip.open(file, "rt", encoding="utf-8") as lines:
        merges = [(first, second) for first, second in map(str.split, islice(lines, 1, 1 + MERGES))]
    letters = list(_byte_letters().values())
    words = [letter + WORD_END for letter in letters]
    return merges, [*letters, *words, *(first + second for first, second in merges), START, END]


def _checked(texts: str | Sequence[str]) -> list[str]:
    if not isinstance(texts, str | list | tuple):
        raise InputError(f"Give a text or a list of texts, not {type(texts).__name__}.")
    batch = [texts] if isinstance(texts, str) else list(texts)
    if not batch:
        raise InputError("There is no text to encode: give at least one.")
    for i, text in enumerate(batch):
        _check_text(text, i)
    return batch


def _check_text(text: object, place: int) -> None:
    if not isinstance(text, str):
        raise InputError(f"Text {place} is {type(text).__name__}, not a string: convert it first.")


def _too_long(text: str, tokens: int, limit: int) -> InputError:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return InputError(
        f"{shown!r} is {tokens} tokens long, but the model reads only {limit}: "
        "shorten it, or pass truncate=True."
    )
