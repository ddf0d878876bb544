"""What facts alone rule out before anything is exported.

A fact is a license, a published accuracy, the bytes of the weights, or a floor of the latency: the
variant's arithmetic at its engine's own peak. The floor is never reached, yet it only prunes when it
exceeds twice the limit, because peaks are measured too.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitrail import judge, stats, tasks
from vitrail.catalog import admits
from vitrail.runtimes import RUNTIMES
from vitrail.vocabulary import Requirements, Variant, Workload

FLOOR_FACTOR = 2.0
PROCESS_MIB = 24.0
"""A Python process with numpy; with an engine imported, which all have, at least 46 were seen."""
MIB = 1024 * 1024
WEIGHT_BYTES: dict[str, float] = {"fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0}

LEFT_BY_MERGING = 0.25
"""Share of the arithmetic that merging tokens leaves at the least that makes sense: no prediction."""

Peaks = Mapping[str, Mapping[str, float]]
"""GFLOP/s by runtime and precision."""


def unmade(variant: Variant) -> str | None:
    """Why a variant of a model with stages is not made; None: it is, or has one graph."""
    if not tasks.known(variant.candidate.task).stages:
        return None
    engine = RUNTIMES[variant.runtime]
    if engine.of_module:
        return f"{engine.label} builds of whole modules, and this one's work has two stages"
    if variant.precision in ("int8", "fp16"):
        return f"{variant.precision} is not made of models that answer prompts yet"
    return None


def accuracy_bound(variant: Variant) -> float | None:
    """Highest top-1 the variant may claim in %: its candidate's figure, at that figure's resolution."""
    candidate = variant.candidate
    if candidate.accuracy is None or variant.image_size != candidate.preprocess.image_size:
        return None
    return candidate.accuracy.value


def macs(variant: Variant) -> float:
    """Multiply-accumulates of one image at the variant's size; scaled by area away from the table's size."""
    candidate = variant.candidate
    scale = (variant.image_size / candidate.preprocess.image_size) ** 2
    return candidate.macs * scale * (1.0 if variant.exact else LEFT_BY_MERGING)


def floor_ms(variant: Variant, workload: Workload, peaks: Peaks) -> float | None:
    """Latency of the whole batch if every operation ran at the engine's peak; None: peak unknown.

    Of one call, however many clients there are: where decoding is slow, some need not wait for the others.
    """
    peak = peaks.get(variant.runtime, {}).get(variant.precision)
    if not peak:
        return None
    return 2 * macs(variant) * workload.batch_size / (peak * 1e9) * 1e3


def memory_floor_mib(variant: Variant) -> float:
    """The bytes of the weights alone, in the variant's precision."""
    return variant.candidate.parameters * WEIGHT_BYTES[variant.precision] / MIB


def process_floor_mib(variant: Variant, workload: Workload) -> float:
    """What no process that runs the variant can stay below: itself, the weights, one fp32 batch of images.

    The prediction of `vitrail memory` is not used here. It is of PyTorch eager, where every operator writes
    its result to memory; an engine fuses operators, works in tiles and in place, and may need less than any
    two tensors of the graph. A limit that only such a tensor exceeds would reject what fits, so activations
    count as nothing. The gammas that an engine folds into its convolutions are far less than what
    `PROCESS_MIB` leaves out.
    """
    images = workload.batch_size * 3 * variant.image_size**2 * 4 / MIB
    return PROCESS_MIB + memory_floor_mib(variant) + images


def accuracy_ceiling(variant: Variant, photos: int) -> float | None:
    """Highest accuracy the variant can end with: lower precisions lose at least the stated allowance.

    With enough photos the allowance gives way to a measured bound, which is only known to be positive. What a
    probe was measured to reach on the user's images may turn out higher by the allowance, in any precision.
    """
    bound = accuracy_bound(variant)
    known = variant.candidate.accuracy
    if bound is None and known is not None and known.provenance == "measured":
        # It is measured at every size; a smaller one hardly tells more, a larger one may.
        smaller = variant.image_size < variant.candidate.preprocess.image_size
        return min(known.value + judge.ALLOWANCE_POINTS, 100.0) if smaller else 100.0
    if bound is not None and known is not None and known.provenance == "measured":
        # A head's own figure on the user's images: another precision or engine moves it either way.
        return min(bound + judge.ALLOWANCE_POINTS, 100.0)
    if bound is None or variant.precision == "fp32" or photos >= stats.PHOTOS_FOR_LOSS_BOUND:
        return bound
    return bound - judge.ALLOWANCE_POINTS


def ruled_out(
    variant: Variant, requirements: Requirements, workload: Workload, peaks: Peaks, photos: int
) -> str | None:
    """Why facts alone exclude the variant, as a clause for the ledger; None: it has to be measured.

    `photos` is how many there are to measure the loss of a lower precision on.
    """
    admitted, reason = admits(requirements.license, variant.candidate.weights.license)
    if not admitted:
        return f"license: {reason}"
    ceiling, asked = accuracy_ceiling(variant, photos), requirements.min_accuracy
    if asked is not None and ceiling is None:
        return f"no accuracy known: a figure belongs to its resolution, {variant.image_size} px has none"
    if asked is not None and ceiling is not None and ceiling < asked:
        return f"accuracy: at most {ceiling:g} %, {asked:g} % asked"
    return _resources(variant, requirements, workload, peaks)


def _resources(variant: Variant, requirements: Requirements, workload: Workload, peaks: Peaks) -> str | None:
    memory = process_floor_mib(variant, workload)
    if requirements.max_memory_mib is not None and memory > requirements.max_memory_mib:
        return f"memory: its weights and one batch of images alone take {memory:.0f} MiB"
    floor = floor_ms(variant, workload, peaks)
    if floor is None:
        return None
    limit = requirements.whole_ms
    if limit is not None and floor > FLOOR_FACTOR * limit:
        return f"latency: at the engine's peak it would still take {floor:.0f} ms"
    throughput = requirements.min_throughput
    if throughput is not None and workload.batch_size / (floor / 1e3) * FLOOR_FACTOR < throughput:
        best = workload.batch_size / (floor / 1e3)
        return f"throughput: at the engine's peak it would still be {best:.0f} images/s"
    return None
