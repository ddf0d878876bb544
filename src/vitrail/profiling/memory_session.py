"""The child's side of memory.py: predicts or measures in a process that does nothing else.

Each function is the whole life of one process: its imports, and their order, are part of the figures.
"""

from __future__ import annotations

import difflib
import functools
import gc
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.errors import InputError
from vitrail.footprint import peak_mib, resident_mib, restart_peak
from vitrail.models.registry import OF_IMAGES, SEGMENTERS, TWO_TOWERS
from vitrail.profiling.malloc import give_back
from vitrail.profiling.memory import ALLOWANCE, MIB, ROLES, MemorySetup

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vitrail.profiling.cost import Cost
    from vitrail.profiling.lifetimes import Lifetimes

REPEATS = 2
"""Calls after the first, for `repeated`."""
FAR = 4
"""Beyond this many times the given batch, the largest one is extrapolated."""
MOST_EVENTS = 30_000
"""Allocations and ends followed in one run: about ten seconds."""
PROBES = 12
"""Most batch sizes predicted while searching for the largest."""


# --- prediction ---------------------------------------------------------------------------------


def predict(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`memory.predict` in this process; a user's mistake comes back as {"refused": sentence}."""
    try:
        return _predict(_resolved(MemorySetup(**payload["setup"])), payload["budget_mib"])
    except InputError as error:
        return {"refused": str(error)}


def _predict(setup: MemorySetup, budget_mib: float | None) -> dict[str, Any]:
    _import(setup)
    baseline = resident_mib()
    runtime = max(0.0, _warmed_up(setup) - baseline)
    peaks = _Peaks(setup, {"baseline": baseline, "runtime": runtime})
    predicted = peaks.at(setup.batch_size)
    largest = None
    if budget_mib is not None:
        largest = _largest_batch(setup.batch_size, predicted, peaks.at, budget_mib)
    cost = _cost(setup)
    return {
        "predicted_mib": predicted,
        "followed_batches": peaks.followed_for(setup.batch_size),
        "largest_batch": largest,
        "image_size": setup.image_size,
        "implementation": setup.implementation,
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


class _Peaks:
    """Predicted peaks by batch size.

    In code that processes images one by one, events grow with the batch, and a large batch would take minutes
    to follow. Beyond `MOST_EVENTS` each part of the peak is extrapolated from two smaller batches: the memory
    such code holds at a time is constant, everything else grows linearly.
    """

    def __init__(self, setup: MemorySetup, fixed: dict[str, float]) -> None:
        self._setup, self._fixed = setup, fixed
        self._known: dict[int, dict[str, float]] = {}
        self._events: dict[int, int] = {}

    def at(self, batch_size: int) -> dict[str, float]:
        """MiB of `total` and of each part."""
        low, *rest = self.followed_for(batch_size)
        parts = self._followed(low)
        if rest:
            high = self._followed(rest[0])
            steps = (batch_size - low) / (rest[0] - low)
            parts = {name: max(0.0, parts[name] + steps * (high[name] - parts[name])) for name in parts}
        parts = {**self._fixed, **parts}
        return {"total": sum(parts.values()), **parts}

    def followed_for(self, batch_size: int) -> list[int]:
        """The batch itself if it can be followed, else the two to extrapolate from."""
        if batch_size <= 2:
            return [batch_size]
        for known in (1, 2):
            self._followed(known)
        an_image = self._events[2] - self._events[1]
        most = max(2, int(MOST_EVENTS / max(1, an_image)))
        return [batch_size] if batch_size <= most else [most // 2, most]

    def _followed(self, batch_size: int) -> dict[str, float]:
        if batch_size not in self._known:
            lifetimes = _lifetimes(self._setup, batch_size)
            self._events[batch_size] = len(lifetimes.events)
            self._known[batch_size] = _peak(lifetimes)
        return self._known[batch_size]


def _cost(setup: MemorySetup) -> Cost:
    import torch

    from vitrail.profiling import cost

    assert setup.image_size is not None
    with torch.device("meta"):
        model = _built(replace(setup, training=False, precision="fp32"))
    return cost.count(model, setup.image_size)


def _peak(lifetimes: Lifetimes) -> dict[str, float]:
    """MiB of each role when most bytes are alive, and the allowance for what is held besides."""
    alive: dict[str, int] = dict.fromkeys(ROLES, 0)
    sizes: dict[int, int] = {}
    now, most, parts = 0, -1, alive
    for event in lifetimes.events:
        change = event.bytes or -sizes.pop(event.block)
        if event.bytes:
            sizes[event.block] = event.bytes
        alive[lifetimes.roles[event.block]] += change
        now += change
        if now > most:
            most, parts = now, dict(alive)
    return {role: size / MIB for role, size in {**parts, "allowance": int(ALLOWANCE * most)}.items()}


def _lifetimes(setup: MemorySetup, batch_size: int) -> Lifetimes:
    import torch

    from vitrail.profiling import lifetimes

    with torch.device("meta"):
        model = _built(setup)
    assert setup.image_size is not None
    shape = (batch_size, 3, setup.image_size, setup.image_size)
    try:
        if setup.training:
            return lifetimes.training(model, shape, autocast=setup.precision == "bf16")
        return lifetimes.inference(model, shape, _dtype(setup))
    except InputError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise _unaccepted(setup, error) from None


def _unaccepted(setup: MemorySetup, error: Exception) -> InputError:
    reason = " ".join(str(error).split("\n")[0].split()).rstrip(".") or type(error).__name__
    return InputError(f"{setup.model} does not take {setup.image_size} px ({reason}): give another size.")


def _largest_batch(
    start: int, first: dict[str, float], total: Callable[[int], dict[str, float]], budget_mib: float
) -> int:
    """The largest batch predicted to stay within the budget; 0: not even one image.

    Memory grows almost linearly with the batch, so the next guess is where the line through the two nearest
    known sizes meets the budget. Far beyond `start` that guess is the answer: following a large batch takes
    long, and the line is straight there.
    """
    known = {start: first["total"]}

    def fits(batch_size: int) -> bool:
        if batch_size not in known:
            known[batch_size] = total(batch_size)["total"]
        return known[batch_size] <= budget_mib

    if not fits(1):
        return 0
    fits(FAR * start)
    for _ in range(PROBES):
        low = max(b for b in known if fits(b))
        over = [b for b in known if not fits(b)]
        guess = _guess(known, low, budget_mib)
        if not over:
            return guess
        high = min(over)
        if high - low == 1:
            break
        fits(max(low + 1, min(high - 1, guess)))
    return low


def _guess(known: Mapping[int, float], low: int, budget_mib: float) -> int:
    near = min((b for b in known if b != low), key=lambda b: abs(b - low))
    slope = (known[near] - known[low]) / (near - low)
    return int(low + (budget_mib - known[low]) / slope) if slope > 0 else low


def _warmed_up(setup: MemorySetup) -> float:
    """Resident MiB after every kind of kernel has run on something small, in the setup's precision."""
    import torch
    from torch.nn import functional

    from vitrail.models.linear import linear

    dtype = _dtype(setup)
    _small_model(setup, dtype)
    with torch.inference_mode():
        # Large enough for the matrix kernels to allocate their full buffers.
        for kernel in (functional.linear, linear):
            kernel(torch.rand(1536, 768, dtype=dtype), torch.rand(3072, 768, dtype=dtype))
    gc.collect()
    give_back()
    return resident_mib()


def _small_model(setup: MemorySetup, dtype: torch.dtype) -> None:
    """Run a small model with every kind of layer twice."""
    import torch
    from torch import nn
    from torch.nn import functional

    layers = nn.Sequential(
        *(nn.Conv2d(3, 32, 4, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32)),
        *(nn.Conv2d(32, 64, 1), nn.GELU(), nn.SiLU(), nn.Flatten(2), nn.LayerNorm(256), nn.Linear(256, 768)),
    )
    layers = layers.to(dtype).train(setup.training)

    def forward() -> torch.Tensor:
        x_BND = layers(torch.rand(2, 3, 64, 64, dtype=dtype))
        q, k, v = x_BND.unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4).unbind(0)
        fused = functional.scaled_dot_product_attention(q, k, v)
        return (fused + (q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1)

    if not setup.training:
        with torch.inference_mode():
            forward()
            forward()
        return
    optimizer = torch.optim.AdamW(layers.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.precision == "bf16"):
            loss = functional.cross_entropy(forward(), torch.zeros(2, dtype=torch.long))
        loss.backward()
        optimizer.step()


# --- measuring ----------------------------------------------------------------------------------


def measure(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`memory.measure` in this process; a user's mistake comes back as {"refused": sentence}."""
    try:
        return _measure(_resolved(MemorySetup(**payload["setup"])))
    except InputError as error:
        return {"refused": str(error)}


def _measure(setup: MemorySetup) -> dict[str, Any]:
    import torch

    _import(setup)
    baseline = resident_mib()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _built(setup)
    gc.collect()
    loaded, load_peak = resident_mib(), peak_mib()
    restart_peak()
    call = _step(setup, model)
    try:
        for _ in range(2 if setup.training else 1):
            call()
    except RuntimeError as error:
        raise _unaccepted(setup, error) from None
    run_peak = peak_mib()
    for _ in range(REPEATS):
        call()
    return {
        "measured_mib": {
            "total": max(load_peak, run_peak),
            "baseline": baseline,
            "load": loaded - baseline,
            "run": run_peak - loaded,
            "repeated": peak_mib() - loaded,
        }
    }


def _step(setup: MemorySetup, model: nn.Module) -> Callable[[], None]:
    """A function that runs the model once on the same batch."""
    import torch
    from torch.nn import functional

    assert setup.image_size is not None
    shape = (setup.batch_size, 3, setup.image_size, setup.image_size)
    images = torch.rand(shape, dtype=_dtype(setup))
    if not setup.training:

        def infer() -> None:
            with torch.inference_mode():
                model(images)

        return infer
    optimizer = torch.optim.AdamW(model.parameters())
    zeros = functools.cache(lambda *shape: torch.zeros(shape, dtype=torch.long))

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.precision == "bf16"):
            scores = model(images)
            # A label for each image, or each pixel.
            loss = functional.cross_entropy(scores, zeros(*scores.shape[:1], *scores.shape[2:]))
        loss.backward()
        optimizer.step()

    return train


# --- both ---------------------------------------------------------------------------------------


def _import(setup: MemorySetup) -> None:
    """Import what the process needs before it builds a model."""
    importlib.import_module("torch")
    importlib.import_module("vitrail.models.factory" if setup.ours else "vitrail.models.timm")
    if setup.ours:
        importlib.import_module(OF_IMAGES[setup.model].partition(":")[0])


def _resolved(setup: MemorySetup) -> MemorySetup:
    """With `implementation` and `image_size` filled in; imports no more than that implementation needs."""
    if setup.implementation == "vitrail" or setup.model in OF_IMAGES:
        implementation = setup.implementation or "vitrail"
    else:
        implementation = "timm"
    setup = replace(setup, implementation=implementation)
    if setup.ours and setup.model not in OF_IMAGES:
        raise InputError(_unknown(setup.model, OF_IMAGES, "Vitrail has no model {} of its own"))
    if not setup.ours:
        import timm

        if not timm.is_model(setup.model):
            known = timm.list_models() if setup.model not in OF_IMAGES else []
            raise InputError(_unknown(setup.model, [*known, *OF_IMAGES], "There is no model {}"))
    if setup.image_size is not None:
        return setup
    return replace(setup, image_size=_own_size(setup))


def _unknown(name: str, known: Iterable[str], complaint: str) -> str:
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=3) or names[:3]
    return f"{complaint.format(repr(name))}: did you mean {' or '.join(near)}?"


def _own_size(setup: MemorySetup) -> int:
    if setup.ours:
        module = importlib.import_module(OF_IMAGES[setup.model].partition(":")[0])
        return int(module.VARIANTS[setup.model].image_size[0])
    import timm

    config: Any = timm.get_pretrained_cfg(setup.model, allow_unregistered=False)
    return int(config.input_size[-1])


def _dtype(setup: MemorySetup) -> torch.dtype:
    """Dtype of weights and images; training keeps both in fp32 and lets autocast convert."""
    import torch

    return torch.bfloat16 if setup.precision == "bf16" and not setup.training else torch.float32


def _built(setup: MemorySetup) -> nn.Module:
    """The model with random weights, on the default device, in the setup's dtype and mode."""
    import torch

    before = torch.get_default_dtype()
    # Built in its dtype: converting afterwards would hold both at once.
    torch.set_default_dtype(_dtype(setup))
    try:
        model = _ours(setup) if setup.ours else _of_timm(setup)
    finally:
        torch.set_default_dtype(before)
    model = model.to(_dtype(setup)).requires_grad_(setup.training).train(setup.training)
    if setup.training and setup.model in SEGMENTERS:
        # One photo pooled to one cell has no statistics; what is kept for the gradients is the same without.
        for head in (model.decode_head, model.auxiliary_head):
            head.eval()  # type: ignore[union-attr]
    return model


def _ours(setup: MemorySetup) -> nn.Module:
    from vitrail.models import factory

    name, size = setup.model, setup.image_size
    assert size is not None
    if name in TWO_TOWERS:
        # Texts are embedded once; only the image tower runs on images.
        from vitrail.models.clip import VARIANTS
        from vitrail.models.vit import ViT

        return ViT(VARIANTS[name].overridden(image_size=(size, size), attention=setup.attention).image)
    return factory.build(name, image_size=size, attention=setup.attention)


def _of_timm(setup: MemorySetup) -> nn.Module:
    from vitrail.models import timm

    if setup.attention not in ("auto", "naive", "fused"):
        raise InputError(
            f"timm's code has no attention kernel {setup.attention!r}: choose auto, naive or fused, or a "
            "model of ours with --implementation vitrail."
        )
    assert setup.image_size is not None
    model = timm.build(setup.model, image_size=setup.image_size, classes=1000, weights=None)
    if setup.attention != "auto":
        # timm's own switch is global; this sets the same in each module.
        modules = [module for module in model.modules() if hasattr(module, "fused_attn")]
        if not modules:
            raise InputError(f"{setup.model} has no attention: leave --attention out.")
        for module in modules:
            module.fused_attn = setup.attention == "fused"  # type: ignore[assignment]
    return model
