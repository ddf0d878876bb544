"""How much memory a model takes, predicted without running it, and measured by running it.

    predicted peak = baseline     a process that has imported what it needs; a fact of this machine, measured
                   + runtime      code, threads and buffers of kernels that have run once; measured too
                   + tensors      the most that are alive at once (`lifetimes.py`)
                   + allowance    a share of that, for kernels' buffers and what malloc holds (`ALLOWANCE`)

The run is one batch in PyTorch eager: inference under `torch.inference_mode` with weights and images in the
precision, or two training steps (the optimiser's state exists only after the first) of AdamW on the
cross-entropy, bf16 meaning autocast over fp32 weights. Further calls can take more, because what malloc
keeps changes from call to call; `measure` reports them separately as `repeated`.

Predicting and measuring happen in children of `measure/sandbox.py`: a prediction leaves fake tensors in
caches, and both need a fresh process. All sizes are MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from vitrail.errors import InputError
from vitrail.limits import whole
from vitrail.measure import sandbox

__all__ = ["ROLES", "MemorySetup", "measure", "predict"]

MIB = 1024 * 1024
ROLES = ("weights", "input", "activations", "attention", "kernels", "gradients", "optimizer")
ALLOWANCE = 0.10
"""Memory held beyond the tensors, as a share of theirs: buffers inside kernels, and holes that malloc keeps.
Chosen on the fixed points of benchmarks/memory.py (docs/memory.md)."""
IMPLEMENTATIONS = ("vitrail", "timm")
PRECISIONS = ("fp32", "bf16")
PREDICT_TIMEOUT_S = 600.0
MEASURE_TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class MemorySetup:
    """What is run.

    Raises:
        InputError: an unknown implementation or precision, a size or batch out of range, or an attention
            kernel that timm's code does not have.
    """

    model: str
    """timm's name without a tag, or open_clip's name of a CLIP, whose image tower is meant."""
    image_size: int | None = None
    """H = W in pixels; None: the model's own."""
    batch_size: int = 1
    precision: str = "fp32"
    training: bool = False
    attention: str = "auto"
    """A kernel of `models.attention`; for timm's code auto, naive or fused."""
    implementation: str | None = None
    """vitrail or timm; None: ours if we have it."""

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        if self.image_size is not None:
            whole("image_size", self.image_size)
        if self.precision not in PRECISIONS:
            raise InputError(
                f"{self.precision!r} is not a precision for this: choose {' or '.join(PRECISIONS)}."
            )
        if self.implementation not in (None, *IMPLEMENTATIONS):
            raise InputError(
                f"There is no implementation {self.implementation!r}: choose {' or '.join(IMPLEMENTATIONS)}."
            )

    @property
    def ours(self) -> bool:
        """Whether our code runs."""
        return self.implementation == "vitrail"


def predict(setup: MemorySetup, *, budget_mib: float | None = None) -> dict[str, Any]:
    """Predict the peak.

    The answer has `predicted_mib` {total, baseline, runtime, one for each of ROLES, allowance},
    `largest_batch`, `image_size`, `implementation`, `parameters`, `macs` (of one image) and
    `followed_batches` (two smaller ones, if following the batch itself would take minutes).

    Args:
        setup: what would be run.
        budget_mib: memory that the largest batch must fit in; None: it is not searched (null).

    Raises:
        InputError: a model, size or kernel that does not exist, or that do not fit together.
        ChildFailure: the model cannot be followed without values.
    """
    payload = {"setup": asdict(setup), "budget_mib": budget_mib}
    return _in_child("predict", payload, PREDICT_TIMEOUT_S, "predicting", psutil.virtual_memory().total / MIB)


def measure(setup: MemorySetup, *, memory_mib: float) -> dict[str, Any]:
    """Run it: {"measured_mib": {total, baseline, load, run, repeated}}.

    `total` is the peak resident memory of the process up to the end of the first call (in training: of the
    second step), `load` what the model took over `baseline`, `run` the peak over both, `repeated` the peak
    over both in further calls.

    Raises:
        InputError: as `predict`.
        ChildFailure: it crashed, or went over `memory_mib`.
    """
    return _in_child("measure", {"setup": asdict(setup)}, MEASURE_TIMEOUT_S, "measuring", memory_mib)


def _in_child(
    function: str, payload: Mapping[str, Any], timeout_s: float, name: str, memory_mib: float
) -> dict[str, Any]:
    answer: dict[str, Any] = sandbox.call(
        f"vitrail.profiling.memory_session:{function}",
        payload,
        timeout_s=timeout_s,
        memory_mib=memory_mib,
        name=name,
    )
    if "refused" in answer:
        raise InputError(answer["refused"])
    return answer
