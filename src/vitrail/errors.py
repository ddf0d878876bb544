"""Errors that a user can cause or must know about, with the exit code each one ends a command with."""

from __future__ import annotations


class VitrailError(Exception):
    """Base of all errors whose message is written for the user; the CLI prints it without a traceback."""

    exit_code = 2


class InputError(VitrailError, ValueError):
    """Wrong use or bad input (exit code 2). The message is one sentence that names the fix."""


class MissingExtraError(InputError):
    """A library of an optional extra is not installed. The message holds the exact install line.

    Args:
        what: is missing.
        install: the line as of a release; said as it works here (`vitrail.install.here`).
    """

    def __init__(self, what: str, install: str) -> None:
        from vitrail.install import here  # takes 20 ms to import

        self.install = here(install)
        super().__init__(f"{what} is not installed: run `{self.install}`.")


class ClaimError(VitrailError):
    """An intact artifact no longer meets its claims, or nothing meets the requirements (exit code 3)."""

    exit_code = 3
