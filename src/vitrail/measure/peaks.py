"""Peak matrix-multiplication speed of each installed engine, by its own matmul, in GFLOP/s.

The engines differ: the floor of a variant's latency is its MACs over its own engine's peak, not torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import runtimes
from vitrail.measure import sandbox
from vitrail.privacy import import_engine

SIZES = (512, 1024)
"""The smaller one needs under 1 ms a call, so that some call finds the machine to itself."""
SECONDS = 0.25
TIMEOUT_S = 60.0
MEMORY_MIB = 4096
ONNX_MATMUL = Path(__file__).with_name("matmul.onnx")
"""One MatMul with two free inputs; made by scripts/make_matmul.py."""


def peaks(threads: int) -> dict[str, dict[str, float]]:
    """GFLOP/s by runtime and precision for the installed runtimes that ship; a process for each runtime.

    A probe that fails is left out: its floor is then unknown, and nothing is pruned by it.
    """
    found: dict[str, dict[str, float]] = {}
    for name, runtime in runtimes.RUNTIMES.items():
        if runtimes.version(name) is None or name not in PROBES:
            continue
        with sandbox.Child("vitrail.measure.peaks:probes", {}, memory_mib=MEMORY_MIB, name="peak") as child:
            child.result(TIMEOUT_S)
            for precision in runtime.precisions:
                try:
                    speed = child.call("peak", TIMEOUT_S, runtime=name, precision=precision, threads=threads)
                except sandbox.ChildFailure:
                    continue
                found.setdefault(name, {})[precision] = round(float(speed), 1)
    return found


class Probes:
    """The child's side: one runtime's probes share the time that importing it takes."""

    def peak(self, runtime: str, precision: str, threads: int) -> float:
        """Peak in GFLOP/s; raises ValueError if the engine changes the precision."""
        run = PROBES[runtime]
        return max(2e-9 * n**3 / run(n, precision, threads) for n in SIZES)


def probes(_: dict[str, Any]) -> Probes:
    """What the process answers calls with."""
    return Probes()


def _openvino(n: int, precision: str, threads: int) -> float:
    from vitrail.runtimes.openvino import core

    ov, ops = import_engine("openvino"), import_engine("openvino.opset13")
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    left = ops.parameter([n, n], np.float32)
    weights = ops.constant(_values(n))
    model = ov.Model([ops.matmul(left, weights, False, True)], [left], "matmul")
    config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"}
    compiled = core().compile_model(model, "CPU", config)
    real = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if real != hint:
        raise ValueError(f"asked for {precision}, OpenVINO set {real}")
    request = compiled.create_infer_request()
    values = _values(n)
    return _fastest(lambda: request.infer([values], share_inputs=True, share_outputs=True))


def _onnxruntime(n: int, precision: str, threads: int) -> float:
    assert precision == "fp32", precision
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(ONNX_MATMUL), options, providers=["CPUExecutionProvider"])
    inputs = {"a": _values(n), "b": _values(n)}
    return _fastest(lambda: session.run(None, inputs))


PROBES: dict[str, Callable[[int, str, int], float]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def _values(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    # A peak is a bound, so the fastest call counts, not the usual one.
    call()
    best, deadline = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best
