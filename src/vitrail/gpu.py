"""NVIDIA GPUs as their driver tells of them (NVML): what they are, how they run now, and who else uses them.

Nothing here starts CUDA. Devices are written as everywhere in CUDA: `cuda` is the first that this process may
use (`CUDA_VISIBLE_DEVICES`), `cuda:1` the next.

Source: NVML API reference, https://docs.nvidia.com/deploy/nvml-api (nvidia-ml-py 13).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vitrail.errors import InputError, MissingExtraError

__all__ = ["Card", "Reading", "card", "count", "memory_mib", "number_of", "reading"]

MIB = 1024 * 1024
INSTALL = 'pip install "vitrail[cuda]"'
VISIBLE = "CUDA_VISIBLE_DEVICES"

HELD_BACK = {
    0x4: "the power cap",
    0x8: "a hardware slowdown",
    0x20: "heat",
    0x40: "heat",
    0x80: "the power supply",
    0x200: "the board's limit",
}
"""Bits of NVML's clocks event reasons that lower the clocks below what load asks for -> what does it. The
others say that the GPU is idle, or that somebody set its clocks."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one GPU is: all that decides how fast it is and which engines run on it."""

    name: str
    capability: str
    """Compute capability, e.g. `9.0`."""
    driver: str
    memory_mib: int
    power_limit_w: float | None
    """The cap that is enforced; None: this GPU does not say."""
    clock_mhz: int | None
    """The highest clock of its multiprocessors."""
    partitioned: bool = False
    """It is divided (MIG), so that figures belong to one share of it."""

    def facts(self) -> dict[str, Any]:
        """The same as plain JSON data."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one GPU runs now."""

    clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    held_back: tuple[str, ...]
    """What keeps its clocks low, in words."""
    others: int
    """Other processes that compute on it."""


def number_of(device: str) -> int:
    """1 of `cuda:1`, 0 of `cuda`.

    Raises:
        InputError: it is not the name of such a device.
    """
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if found is None:
        raise InputError(f"There is no device {device!r}: use cpu, cuda or cuda:N.")
    return int(found[1] or 0)


def count() -> int:
    """GPUs that this process may use; 0 without a driver.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
    """
    with _nvml(lambda _: None) as nvml:
        return 0 if nvml is None else len(_handles(nvml))


def card(device: str) -> Card:
    """What the GPU is.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
        InputError: there is no such GPU, no driver that answers, or the GPU was lost.
    """
    with _opened(device) as (nvml, handle):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        limit = _or_none(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        return Card(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            capability=f"{major}.{minor}",
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB,
            power_limit_w=None if limit is None else limit / 1000,
            clock_mhz=_or_none(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            partitioned=bool((_or_none(lambda: nvml.nvmlDeviceGetMigMode(handle)) or (0, 0))[0]),
        )


def reading(device: str) -> Reading:
    """Its clocks, and what holds them back. Raises as `card`."""
    with _opened(device) as (nvml, handle):
        power = _or_none(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        reasons = _or_none(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        there = _or_none(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        mine = {os.getpid(), os.getppid()}
        return Reading(
            clock_mhz=_or_none(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            power_w=None if power is None else power / 1000,
            temperature_c=_or_none(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            held_back=tuple(dict.fromkeys(word for bit, word in HELD_BACK.items() if reasons & bit)),
            others=_others([process.pid for process in there], mine),
        )


def memory_mib(device: str) -> float:
    """MiB of the GPU's memory that is in use, by this process where the driver says, else by all.

    An engine's allocator keeps what it once took, so that after a call this is its peak. Raises as `card`.
    """
    with _opened(device) as (nvml, handle):
        there = _or_none(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        own = [process.usedGpuMemory for process in there if process.pid == os.getpid()]
        if own and own[0] is not None:
            return float(own[0]) / MIB
        return float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / MIB


def _others(there: list[int], mine: set[int]) -> int:
    """How many of these processes are not ours; in a container the driver names them by other numbers."""
    if mine & set(there):
        return len(set(there) - mine)
    return max(len(set(there)) - 1, 0)


@contextmanager
def _opened(device: str) -> Iterator[tuple[Any, Any]]:
    number = number_of(device)

    def refuse(why: str) -> None:
        raise InputError(f"No NVIDIA driver answers on this machine ({why}): use --device cpu.")

    with _nvml(refuse) as nvml:
        assert nvml is not None, "refused"
        try:
            handles = _handles(nvml)
            if not handles:
                raise InputError(f"There is no {device} here, the driver shows no GPU: use --device cpu.")
            if number >= len(handles):
                there = "cuda" if len(handles) == 1 else f"cuda:0 to cuda:{len(handles) - 1}"
                raise InputError(f"There is no {device} here: use {there}.")
            yield nvml, handles[number]
        except nvml.NVMLError as error:
            raise InputError(
                f"{device} was lost or does not answer ({error}): see `nvidia-smi`, restart the machine."
            ) from None


@contextmanager
def _nvml(refuse: Callable[[str], None]) -> Iterator[Any]:
    """The library, initialised; None where `refuse` returns after hearing why it cannot be."""
    try:
        import pynvml
    except ModuleNotFoundError:
        raise MissingExtraError("nvidia-ml-py, which reads NVIDIA GPUs,", INSTALL) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        refuse(str(error))
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handles(nvml: Any) -> list[Any]:
    """The GPUs that CUDA would show this process, in its order."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    named = os.environ.get(VISIBLE)
    if named is None:
        return every
    found = []
    for name in filter(None, (each.strip() for each in named.split(","))):
        if name.isdecimal():
            if int(name) >= len(every):  # as CUDA does: what follows an unknown one is not there either
                break
            found.append(every[int(name)])
        else:
            same = [handle for handle in every if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]
            if len(same) != 1:
                break
            found += same
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _or_none(read: Callable[[], Any]) -> Any:
    """A figure that not every GPU or driver tells; None where it does not."""
    import pynvml

    try:
        return read()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None
