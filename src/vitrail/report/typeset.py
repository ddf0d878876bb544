"""How running text stands on a page: what stays on one line, and what is code."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

__all__ = ["options_as_code", "sentence", "spelled", "tight"]

_TIGHT = re.compile(r"(?<=\d) (?=(?:ms|MiB|images/s)\b|%)| (?=[≤≥])|(?<=[≤≥]) ")
_STAGED = r"(?:[\d.]+[a-z]+,)?[a-z]+=[\d.]+[a-z]+(?:,[a-z]+=[\d.]+[a-z]+)*"
_OPTION = re.compile(rf"--[a-z][a-z-]+(?: (?:{_STAGED}|[A-Z]+|\d+(?:\.\d+)?[\w%]*)(?![\w-]))?")


def spelled(name: str) -> Markup:
    """A name that may break after its underscores and before its size."""
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace("@", "<wbr>@"))


def options_as_code(text: str) -> Markup:
    """Options, with a value that follows (`--max-latency 62ms`), as code; the rest escaped."""
    return Markup(_OPTION.sub(r"<code>\g<0></code>", str(escape(text))))


def tight(text: Markup) -> Markup:
    """No line ends between a number and its unit, beside a sign of comparison, or within `top-1`."""
    return Markup(_TIGHT.sub("\u00a0", str(text)).replace("top-1", "top\u20111"))


def sentence(text: str) -> Markup:
    """With a capital, unless it begins with a name, and a full stop."""
    start = text[:1].upper() if re.match(r"[a-z]+[ ,:]", text) else text[:1]
    return tight(options_as_code(f"{start}{text[1:].rstrip('.')}."))
