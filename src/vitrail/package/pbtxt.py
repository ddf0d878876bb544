"""Protocol buffers' text format, as far as Triton's `config.pbtxt` needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

__all__ = ["Message", "Value", "Word", "parameters", "text"]


class Word(str):
    """The name of an enum's value, which stands without quotes."""


Value: TypeAlias = "Word | str | int | Message | Sequence[Word] | Sequence[int] | Sequence[Message]"
Message: TypeAlias = "Mapping[str, Value]"


def text(message: Message) -> str:
    """The message, one field a line; a list is a repeated field."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def parameters(values: Mapping[str, str]) -> list[Message]:
    """Triton's map of parameters."""
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        items = value if isinstance(value, list) else [value]
        if items and not any(isinstance(item, Mapping) for item in items):
            said = ", ".join(map(_scalar, items))
            yield f"{indent}{name}: [{said}]" if isinstance(value, list) else f"{indent}{name}: {said}"
            continue
        for item in items:
            assert isinstance(item, Mapping), item
            yield f"{indent}{name} {{"
            yield from _lines(item, indent + "  ")
            yield f"{indent}}}"


def _scalar(value: Word | str | int) -> str:
    return str(value) if isinstance(value, (Word, int)) else f'"{_escaped(value)}"'


def _escaped(value: str) -> str:
    """Printable ASCII as it is, any other byte of its UTF-8 in octal."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}"
        for byte in value.encode("utf-8")
    )
