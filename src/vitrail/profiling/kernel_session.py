"""One attention kernel at one length, in a separate process (a child of measure/sandbox.py).

Shapes: B batch, H heads, N tokens (queries and keys), d head width; R some of the N rows.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.footprint import peak_mib, resident_mib, restart_peak
from vitrail.models.attention import attend

__all__ = ["PRECISIONS", "PROBE_TOKENS", "Case", "KernelSession", "inputs", "start"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MIB = 1024 * 1024
PROBE_TOKENS = 64
REFERENCE_ROWS = 128
"""Queries of each head that are also computed in float64, over all keys, so that any N can be checked."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention to measure: q, k and v of (B, H, N, d), no bias, not causal."""

    tokens: int
    heads: int = 12
    width: int = 64
    batch_size: int = 1
    precision: str = "fp32"
    backward: bool = False
    device: str = "cpu"
    threads: int = 1


def start(payload: dict[str, Any]) -> KernelSession:
    """Called by the sandbox: make the inputs and warm the kernel up on a few tokens."""
    return KernelSession(payload["kernel"], Case(**payload["case"]))


class KernelSession:
    """One kernel at one length."""

    def __init__(self, kernel: str, case: Case) -> None:
        torch.set_num_threads(case.threads)
        self._kernel, self._case = kernel, case
        # Threads, libraries and compiled code are not counted as memory of this length.
        self._qkv, self._upstream = inputs(Case(**{**asdict(case), "tokens": PROBE_TOKENS})), None
        self._run()
        self._qkv = inputs(case)
        if case.backward:
            self._upstream = torch.randn_like(self._qkv[0])

    def first(self) -> dict[str, float | None]:
        """One call: `ms`, `peak_mib` above the inputs, `error` and `gradient_error` against float64."""
        gc.collect()
        before = _start_of_peak(self._case.device)
        begin = time.perf_counter()
        out = self._run()
        taken = 1e3 * (time.perf_counter() - begin)
        peak = max(_peak_mib(self._case.device) - before, 0.0)
        if not bool(torch.isfinite(out).all()):
            raise VitrailError("its result is not finite")
        error, gradient_error = self._errors(out)
        return {"ms": taken, "peak_mib": peak, "error": error, "gradient_error": gradient_error}

    def time(self, calls: int) -> list[float]:
        """Time `calls` calls, in ms each."""
        times = []
        for _ in range(calls):
            begin = time.perf_counter()
            self._run()
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    def _run(self) -> Tensor:
        q, k, v = self._qkv
        with torch.set_grad_enabled(self._case.backward):
            for tensor in self._qkv:
                tensor.requires_grad_(self._case.backward)
                tensor.grad = None
            out = attend(q, k, v, kernel=self._kernel)
            if self._case.backward:
                out.backward(torch.ones_like(out) if self._upstream is None else self._upstream)
        if self._case.device != "cpu":
            torch.cuda.synchronize(self._case.device)
        return out.detach()

    def _errors(self, out_BHNd: Tensor) -> tuple[float, float | None]:
        """Errors of the result and of q's gradient; each query's is independent of other queries."""
        rows = torch.linspace(0, self._case.tokens - 1, min(REFERENCE_ROWS, self._case.tokens)).long()
        rows = rows.to(out_BHNd.device)
        wrong, right, wrong_gradient, right_gradient = 0.0, 0.0, 0.0, 0.0
        for b in range(out_BHNd.shape[0]):
            for h in range(out_BHNd.shape[1]):
                q_Nd, k_Nd, v_Nd = (t[b, h].detach().double() for t in self._qkv)
                q_Rd = q_Nd[rows].requires_grad_(self._case.backward)
                exact_Rd = (q_Rd @ k_Nd.T * self._case.width**-0.5).softmax(-1) @ v_Nd
                wrong += float((out_BHNd[b, h, rows] - exact_Rd.detach()).square().sum())
                right += float(exact_Rd.detach().square().sum())
                if self._upstream is not None:
                    exact_Rd.backward(self._upstream[b, h, rows].double())
                    gradient, found = q_Rd.grad, self._qkv[0].grad
                    assert gradient is not None
                    assert found is not None
                    wrong_gradient += float((found[b, h, rows] - gradient).square().sum())
                    right_gradient += float(gradient.square().sum())
        gradient_error = (wrong_gradient / right_gradient) ** 0.5 if self._upstream is not None else None
        return (wrong / right) ** 0.5, gradient_error


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a normal distribution, the same for every kernel."""
    generator = torch.Generator().manual_seed(case.tokens)
    shape = (case.batch_size, case.heads, case.tokens, case.width)
    dtype = PRECISIONS[case.precision]
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype).to(case.device) for _ in range(3))
    return q, k, v


def _start_of_peak(device: str) -> float:
    """Memory in MiB now; restarts the peak counter."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device)) / MIB
    restart_peak()
    return resident_mib()


def _peak_mib(device: str) -> float:
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated(device)) / MIB
    return peak_mib()
