"""Which attention kernels this machine has, and what each costs: time, memory, error.

Nothing is inferred from names or versions: a kernel is available for a device and a precision if it computes
there. Each kernel and length is measured in a separate process, so that a crash, a kill for memory or a hang
is a result like any other. The processes of one length run side by side and are called in turn, in random
order: whatever slows the machine for a while slows all kernels alike.
"""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from vitrail import gpu, hardware
from vitrail.errors import InputError
from vitrail.measure.sandbox import Child, ChildFailure
from vitrail.models.attention import attend, choose
from vitrail.models.choices import KERNELS
from vitrail.profiling.kernel_session import PRECISIONS, PROBE_TOKENS, Case, inputs

__all__ = [
    "MEASURED",
    "Kernel",
    "KernelRow",
    "auto_takes",
    "available",
    "check_device",
    "gib",
    "measure",
    "needs_mib",
    "no_gpu",
]

MEASURED = tuple(kernel for kernel in KERNELS if kernel != "auto")
"""Without `auto`, which is one of the others: `choose` says which."""

EMPTY_WORDS = ("because:", "available", "runtime disabled")
"""Ends of torch's warnings that give no reason."""
MIB = 1024 * 1024
ROUNDS = 5
SLOW_ROUNDS = 3
SLOW_MS = 2000.0
"""A call that takes longer is repeated only `SLOW_ROUNDS` times."""
BLOCK_MS = 60.0
"""Short calls are timed several per turn, so that a turn lasts about this long."""
START_S = 120.0
CALL_S = 180.0
PROCESS_MIB = 450.0
"""Memory reserved for each process that has imported torch and waits for its turn."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Whether a kernel computes on a device in a precision."""

    kernel: str
    device: str
    precision: str
    forward: bool
    backward: bool
    takes: str | None = None
    """The kernel that this one resolves to (`fused` chooses)."""
    reason: str | None = None
    """Why not, where `forward` or `backward` is false."""


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """What was measured of a kernel at one length."""

    tokens: int
    kernel: str
    status: str
    """`measured`; `too large` (never run); `unavailable`; `failed` (killed, crashed, timed out)."""
    reason: str | None = None
    needs_mib: float | None = None
    """Computed: what the inputs, the result and, where the kernel has one, the N × N matrix take."""
    median_ms: float | None = None
    fastest_ms: float | None = None
    slowest_ms: float | None = None
    calls: int = 0
    peak_mib: float | None = None
    """Peak memory above the inputs; includes the result and, with backward, the gradients."""
    error: float | None = None
    """‖result − float64‖ / ‖float64‖ over `REFERENCE_ROWS` queries of every head."""
    gradient_error: float | None = None
    """The same of the gradient of those queries."""


# --- which kernels there are --------------------------------------------------------------------------


def check_device(device: str) -> str:
    """`device`, if torch can compute on it here.

    Raises:
        InputError: an unknown device, or one that does not exist here.
    """
    if device == "cpu":
        return device
    number = gpu.number_of(device)
    reason = no_gpu()
    if reason is not None:
        raise InputError(f"There is no {device} here, {reason}: use cpu.")
    if number >= torch.cuda.device_count():
        raise InputError(f"There is no {device}: use cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    return device


def no_gpu() -> str | None:
    """Why torch has no GPU, as a clause; None if it has one."""
    if torch.cuda.is_available():
        return None
    seen = hardware.facts()["gpus"]
    if not seen:
        return "this machine has none"
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA and cannot use {', '.join(seen)}"
    return f"torch {torch.__version__} cannot use {', '.join(seen)}: its driver is missing or too old"


def available(device: str, precision: str, *, heads: int = 12, width: int = 64) -> list[Kernel]:
    """Try every kernel once, forward and backward, on a few tokens."""
    return [_probe(kernel, device, precision, heads, width) for kernel in MEASURED]


def _probe(kernel: str, device: str, precision: str, heads: int, width: int) -> Kernel:
    case = Case(tokens=PROBE_TOKENS, heads=heads, width=width, precision=precision, device=device)
    q, k, v = inputs(case)
    with torch.no_grad():
        forward = _why_not(lambda: attend(q, k, v, kernel=kernel), device)
    for tensor in (q, k, v):
        tensor.requires_grad_()
    backward = _why_not(lambda: attend(q, k, v, kernel=kernel).float().sum().backward(), device)
    if forward is None and backward is not None and kernel == "blocked":
        backward = "forward only"
    return Kernel(
        kernel=kernel,
        device=device,
        precision=precision,
        forward=forward is None,
        backward=backward is None,
        takes=_fused_takes(q, k, v) if kernel == "fused" else None,
        reason=forward or backward,
    )


def _why_not(run: Callable[[], object], device: str) -> str | None:
    """None if it runs, else why not, in torch's own words if possible (it warns before it fails)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run()
        except InputError as error:
            said = [_words(str(warning.message)) for warning in caught]
            # Torch also tells of the other kernels, which were only switched off for this try.
            said = [text for text in said if text and not text.endswith(EMPTY_WORDS)]
            if said:
                return _only_for(said[-1]) or said[-1]
            inside = re.search(r"\((it .*?)\)", str(error))
            if inside:
                return inside[1]
            return "torch has it for GPUs only" if device == "cpu" else "torch has none for this device"
        except RuntimeError as error:
            return _words(str(error))
    return None


def _words(text: str) -> str:
    """A message of torch's as one clause, without its source location."""
    return text.partition(" (Triggered internally")[0].split("\n")[0].strip().rstrip(".")


def _only_for(text: str) -> str | None:
    """The precisions that a message of torch's asks for, as a clause; None if it asks for none."""
    dtypes = re.match(r"Expected query, key and value to all be of dtype: \{([^}]*)\}", text)
    if dtypes is None:
        return None
    names = {"Half": "fp16", "BFloat16": "bf16", "Float": "fp32", "Double": "fp64"}
    return f"torch has it in {' and '.join(names.get(name, name) for name in dtypes[1].split(', '))} only"


def _fused_takes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    numbers = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
    with contextlib.suppress(RuntimeError, AttributeError):
        return numbers.get(int(torch._fused_sdp_choice(q, k, v)))
    return None


# --- measuring: the parent's side ---------------------------------------------------------------------


def needs_mib(case: Case, kernel: str) -> float:
    """The least memory a kernel needs: inputs, result, and the scores if it writes them out.

    `naive` and `math` hold the scores and their softmax, with backward also the gradient.
    """
    size = PRECISIONS[case.precision].itemsize
    matrix = case.batch_size * case.heads * case.tokens**2
    vectors = case.batch_size * case.heads * case.tokens * case.width
    total = vectors * size * (8 if case.backward else 4)
    if kernel in ("naive", "math"):
        # torch's own composition computes in fp32 for any input.
        total += matrix * (4 if kernel == "math" else size) * (3 if case.backward else 2)
    return total / MIB


def auto_takes(case: Case) -> str:
    """The kernel that `auto` resolves to; nothing is computed."""
    # The meta device stands in for the CPU: `choose` treats them alike, and nothing is allocated.
    q = (
        torch.empty(1, 1, case.tokens, 1, device="meta")
        if case.device == "cpu"
        else torch.empty(1, 1, 1, 1, device=case.device)
    )
    q = q.to(PRECISIONS[case.precision]).requires_grad_(case.backward)
    with torch.set_grad_enabled(case.backward):
        return choose(q, q, q)


def free_mib(device: str) -> float:
    """Memory free now, within this process's limit."""
    if device != "cpu":
        return float(torch.cuda.mem_get_info(device)[0]) / MIB
    free = float(psutil.virtual_memory().available) / MIB
    limit = hardware.facts()["memory"]["limit_mib"]
    return free if limit is None else min(free, limit)


def measure(case: Case, kernels: list[Kernel], *, seed: int = 0) -> list[KernelRow]:
    """Run each of `kernels` at `case`, in turn; one row each, whatever happens."""
    rows: dict[str, KernelRow] = {}
    room = free_mib(case.device) - PROCESS_MIB * len(kernels)
    contestants = []
    for kernel in kernels:
        needs = needs_mib(case, kernel.kernel)
        row = KernelRow(tokens=case.tokens, kernel=kernel.kernel, status="failed", needs_mib=needs)
        if not (kernel.backward if case.backward else kernel.forward):
            row = _with(row, status="unavailable", reason=kernel.reason)
        elif needs > room:
            reason = f"would need {gib(needs)}, {gib(max(room, 0.0))} are free"
            row = _with(row, status="too large", reason=reason)
        else:
            contestants.append(kernel.kernel)
        rows[kernel.kernel] = row
    with contextlib.ExitStack() as stack:
        children = {
            name: stack.enter_context(
                Child(
                    "vitrail.profiling.kernel_session:start",
                    {"kernel": name, "case": asdict(case)},
                    memory_mib=(room if case.device == "cpu" else free_mib("cpu")) + PROCESS_MIB,
                    name=name,
                )
            )
            for name in contestants
        }
        _race(children, rows, random.Random(seed))
    return list(rows.values())


def _race(children: dict[str, Child], rows: dict[str, KernelRow], dice: random.Random) -> None:
    """First one call each, for memory and error; then rounds of timed turns in random order."""
    samples: dict[str, list[float]] = {}
    first_ms: dict[str, float] = {}
    for name in dice.sample(list(children), len(children)):
        try:
            children[name].result(START_S)
            found = children[name].call("first", CALL_S)
        except ChildFailure as failure:
            rows[name] = _with(rows[name], reason=str(failure))
            children[name].close()
            continue
        first_ms[name] = found.pop("ms")
        samples[name] = []
        rows[name] = _with(rows[name], **found)
    for turn in range(ROUNDS):
        for name in dice.sample(list(samples), len(samples)):
            if turn >= SLOW_ROUNDS and first_ms[name] > SLOW_MS:
                continue
            calls = max(1, min(20, round(BLOCK_MS / max(first_ms[name], 0.01))))
            try:
                samples[name] += children[name].call("time", CALL_S, calls=calls)
            except ChildFailure as failure:
                rows[name] = _with(rows[name], status="failed", reason=str(failure))
                del samples[name]
    for name, times in samples.items():
        rows[name] = _with(
            rows[name],
            status="measured",
            median_ms=statistics.median(times),
            fastest_ms=min(times),
            slowest_ms=max(times),
            calls=len(times),
        )


def _with(row: KernelRow, **changes: Any) -> KernelRow:
    return KernelRow(**{**asdict(row), **changes})


def gib(mib: float) -> str:
    """`24.0 GiB`, or in MiB below 1 GiB."""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
