"""NVIDIA GPUs as their driver tells of them (NVML): what they are, how they run now, and who else uses them.

Nothing here starts CUDA. Devices are written as everywhere in CUDA: `cuda` is the first that this process may
use (`CUDA_VISIBLE_DEVICES`), `cuda:1` the next. Where the two libraries may mean different cards by a number,
or a card is divided (MIG), the device is refused: its figures would be another's.

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
ORDER, BY_BUS = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"

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
        try:
            return 0 if nvml is None else len(_handles(nvml))
        except nvml.NVMLError:  # one of them was lost: `card` says which
            return int(nvml.nvmlDeviceGetCount())


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
        )


def reading(device: str) -> Reading:
    """Its clocks, and what holds them back. Raises as `card`."""
    with _opened(device) as (nvml, handle):
        power = _or_none(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        reasons = _or_none(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        there = _or_none(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        return Reading(
            clock_mhz=_or_none(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            power_w=None if power is None else power / 1000,
            temperature_c=_or_none(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            held_back=tuple(dict.fromkeys(word for bit, word in HELD_BACK.items() if reasons & bit)),
            others=_others({process.pid for process in there}),
        )


def memory_mib(device: str) -> tuple[float, bool]:
    """MiB of the GPU's memory in use, and whether that is this process's alone: not every driver tells.

    An engine's allocator keeps what it once took, so that after a call this is its peak. Raises as `card`.
    """
    with _opened(device) as (nvml, handle):
        there = _or_none(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        own = [process.usedGpuMemory for process in there if process.pid == os.getpid()]
        if own and own[0] is not None:
            return float(own[0]) / MIB, True
        return float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / MIB, False


def _others(there: set[int]) -> int:
    """How many of these processes are not ours: neither this one nor the others that its parent started.

    In a container the driver names processes by other numbers; then as many as are ours are taken off.
    """
    import psutil  # not for every command

    parent = psutil.Process().parent()
    ours = {os.getpid(), *(child.pid for child in (parent.children(recursive=True) if parent else ()))}
    return len(there - ours) if there & ours else max(len(there) - len(ours), 0)


@contextmanager
def _opened(device: str) -> Iterator[tuple[Any, Any]]:
    number = number_of(device)

    def refuse(why: str) -> None:
        raise InputError(f"No NVIDIA driver answers on this machine ({why}): use --device cpu.")

    with _nvml(refuse) as nvml:
        assert nvml is not None, "refused"
        try:
            handles = _handles(nvml)
            _check_numbers(nvml, handles)
            if not handles:
                raise InputError(f"There is no {device} here, the driver shows no GPU: use --device cpu.")
            if number >= len(handles):
                there = "cuda" if len(handles) == 1 else f"cuda:0 to cuda:{len(handles) - 1}"
                raise InputError(f"There is no {device} here: use {there}.")
            _check_whole(nvml, handles[number], device)
            yield nvml, handles[number]
        except nvml.NVMLError_NoPermission:
            raise InputError(
                f"This user may not read {device}: ask for the right to, or use --device cpu."
            ) from None
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


def _check_numbers(nvml: Any, handles: list[Any]) -> None:
    """CUDA counts the quickest card first, and the driver by bus, unless the first is told to do so too."""
    names = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if len(names) > 1 and os.environ.get(ORDER) != BY_BUS:
        raise InputError(
            f"This machine has unlike GPUs ({', '.join(sorted(names))}), which CUDA and the driver number in "
            f"different orders: set {ORDER}={BY_BUS}."
        )


def _check_whole(nvml: Any, handle: Any, device: str) -> None:
    if (_or_none(lambda: nvml.nvmlDeviceGetMigMode(handle)) or (0, 0))[0]:
        raise InputError(
            f"{device} is divided (MIG), and figures of its shares cannot be told apart yet: measure on a "
            "whole GPU."
        )


def _handles(nvml: Any) -> list[Any]:
    """The GPUs that CUDA would show this process, in its order."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    named = os.environ.get(VISIBLE)
    if named is None:
        return every
    found = []
    for name in filter(None, (each.strip() for each in named.split(","))):
        if name.startswith("MIG-"):
            raise InputError(f"{VISIBLE} names a share of a GPU ({name}): measure on a whole one.")
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
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NoPermission,
    ):
        return None
