"""What the sections of gpu.py share: where they run, and how a call is timed, weighed and looked into."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MIB = 1024 * 1024
BLOCK_MS = 10.0
"""Calls between two events last about this long together."""
CALLS = 50
"""Most of them."""
BLOCKS = 9
"""Fewest for a median: with 6 the interval has ends."""
WARM = 3
ROW = threading.Lock()
"""Held while a row is written: the trainings of gpu_training.py end in threads."""


@dataclass
class Setting:
    """Where a section runs, and what it may take."""

    device: str
    small: bool
    seconds: float
    folder: str
    rows: Path
    threads: int = 1
    """Of the CPU, for all that the section starts."""
    began: float = field(default_factory=time.monotonic)

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def left_s(self) -> float:
        """Seconds until the section is killed."""
        return self.seconds - (time.monotonic() - self.began)

    def row(self, **values: Any) -> None:
        """Keep a row: what was found before an end, however sudden, is not lost."""
        with ROW, self.rows.open("a") as file:
            file.write(json.dumps(values) + "\n")

    @contextlib.contextmanager
    def part(self, **what: Any) -> Iterator[None]:
        """Within a section: what fails here becomes a row, and the section goes on."""
        try:
            yield
        except Exception as error:  # whatever it is, the other parts shall have their turn
            self.row(**what, error=f"{type(error).__name__}: {str(error)[:300]}")
            gc.collect()
            if self.gpu:
                torch.cuda.empty_cache()

    def environment(self) -> None:
        """A row of what computes."""
        facts: dict[str, Any] = {"torch": str(torch.__version__), "cuda": torch.version.cuda}
        if self.gpu:
            found = torch.cuda.get_device_properties(self.device)
            facts |= {
                "name": found.name,
                "memory_mib": found.total_memory / MIB,
                "multiprocessors": found.multi_processor_count,
                "capability": list(torch.cuda.get_device_capability(self.device)),
                "cudnn": torch.backends.cudnn.version(),
                "nccl": list(torch.cuda.nccl.version()),
            }
        self.row(kind="environment", **facts)


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


@dataclass
class Contender:
    """A call to be timed, and the context in which a block of calls is made."""

    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def in_turns(contenders: Mapping[str, Contender], device: str, seconds: float) -> dict[str, dict[str, Any]]:
    """Each contender's ms a call: median of blocks with its 95 % interval. They take turns in random order.

    A block's time lies between two events of the GPU, so it holds the gaps in which that waited for Python.
    """
    found: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    for name, contender in contenders.items():
        try:
            for _ in range(WARM):
                _block(contender, 1, device)
            estimate = _block(contender, 1, device)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            if device != "cpu":
                torch.cuda.empty_cache()
            continue
        calls[name] = max(1, min(CALLS, round(BLOCK_MS / max(estimate, 1e-3))))
        samples[name] = []
    dice, end = random.Random(0), time.monotonic() + seconds
    while samples and (min(map(len, samples.values())) < BLOCKS or time.monotonic() < end):
        for name in dice.sample(list(samples), len(samples)):
            samples[name].append(_block(contenders[name], calls[name], device))
    for name, times in samples.items():
        found[name] = {
            "ms": statistics.median(times),
            "interval_ms": median_interval(times),
            "fastest_ms": min(times),
            "blocks": len(times),
            "calls_per_block": calls[name],
        }
    return found


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the median between two order statistics; None for fewer than six samples.

    Source: David and Nagaraja, Order Statistics, 2003, section 7.1.
    """
    ordered, below, cut = sorted(samples), 0.0, 0
    # `cut` samples may be left out at each end while the median lies beyond them in 2.5 % of cases at most.
    while (below := below + math.comb(len(ordered), cut) / 2 ** len(ordered)) <= 0.025:
        cut += 1
    return (ordered[cut - 1], ordered[-cut]) if cut else None


def _block(contender: Contender, calls: int, device: str) -> float:
    """Mean ms of so many calls."""
    with contender.context():
        if device == "cpu":
            begin = time.perf_counter()
            for _ in range(calls):
                contender.call()
            return 1e3 * (time.perf_counter() - begin) / calls
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        first.record()
        for _ in range(calls):
            contender.call()
        last.record()
        torch.cuda.synchronize(device)
        return first.elapsed_time(last) / calls


def peak_mib(contender: Contender, device: str) -> float | None:
    """Highest memory of one call above what was there before; None on a CPU."""
    if device == "cpu":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with contender.context():
        kept = contender.call()
    torch.cuda.synchronize(device)
    del kept
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def kernels(contender: Contender, device: str) -> list[tuple[str, float]]:
    """(name, microseconds) of each kernel that one call launches; on a CPU of each operator."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with contender.context():
        contender.call()
        synchronize(device)
        with profile(activities=activities) as seen:
            contender.call()
            synchronize(device)
    wanted = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
    return [
        (event.name, float(event.time_range.elapsed_us()))
        for event in seen.events()
        if event.device_type == wanted
    ]


def tf32(on: bool) -> None:
    """Whether fp32 products may be rounded to TF32 on the way."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def product_error(device: str) -> float:
    """How far an fp32 product is from float64's: about 1e-7 in fp32, 1e-4 or more in TF32."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    return apart(one @ other, one.double() @ other.double())


def apart(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def amp(precision: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a precision: autocast for `amp fp16` and `amp bf16`, else none."""
    dtypes = {"amp fp16": torch.float16, "amp bf16": torch.bfloat16}
    if precision not in dtypes:
        return nullcontext
    return lambda: torch.autocast(torch.device(device).type, dtypes[precision])


def clocks() -> dict[str, Any]:
    """The card's clocks in MHz and its power in W at this moment; empty where pynvml is missing."""
    with contextlib.suppress(Exception):  # a figure beside others: no section ends for it
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_MEM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(card) / 1e3,
            "throttled_by": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(card),
        }
    return {}
