"""What holds a process, an engine or a pool until it is closed."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Closing"]

_Held = TypeVar("_Held", bound="Closing")


class Closing:
    """A context manager whose end closes it, whatever happened within."""

    def close(self) -> None:
        """Let go of what it holds."""
        raise NotImplementedError

    def __enter__(self: _Held) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
