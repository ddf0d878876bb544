"""The way to somebody's Ray cluster, for `vitrail batch --ray` and `vitrail serve --ray`."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitrail.errors import InputError, MissingExtraError

__all__ = ["check_installed", "connected", "first_line"]

INSTALL = 'pip install "vitrail[ray]"'
KNOCK_S = 10.0
LONGEST_REASON = 160


def check_installed() -> Any:
    """The module ray. Raises MissingExtraError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray, which --ray needs,", INSTALL) from None
    return ray


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """This process is a driver of the cluster within the block.

    Args:
        ray: the module, from `check_installed`.
        address: of the cluster, or `auto`.

    Raises:
        InputError: this process is connected already, nothing answers there, or another Ray or Python does.
    """
    if ray.is_initialized():
        raise InputError("This process is connected to a Ray cluster already: call ray.shutdown() first.")
    worker = ray._private.worker
    told = worker._worker_logs_enabled
    # Ray would tell of workers that died, which it replaces, on standard output: results are written there.
    worker._worker_logs_enabled = False
    try:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(_mismatch(address, str(error)) or _nobody(address, error)) from None
        yield
    finally:
        ray.shutdown()
        worker._worker_logs_enabled = told


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST_REASON].rstrip(".")


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S):
            pass


def _nobody(address: str, error: BaseException) -> str:
    return (
        f"No Ray cluster answers at {address} ({first_line(error)}): start one with `ray start --head`, or "
        "give its address with --ray ADDRESS."
    )


def _mismatch(address: str, text: str) -> str | None:
    """Ray compares versions, of Python to the last digit, and says so in six lines."""
    versions = re.findall(r"^\s*(?:Ray|Python): (\S+)$", text, re.MULTILINE)
    if "mismatch" not in text or len(versions) != 4:
        return None
    return (
        f"The cluster at {address} has Ray {versions[0]} on Python {versions[1]}, and this command Ray "
        f"{versions[2]} on Python {versions[3]}: install the same of both here."
    )
