"""Records when each of a model's tensors is allocated and freed, without computing anything.

The model runs on fake tensors (torch's FakeTensorMode), which have shapes, strides, a dtype and the device
"cpu", but no values; unlike on the meta device, operators and our own code make the same decisions as on a
CPU. A dispatch mode sees every operator. An unknown storage is an allocation; a weak reference tells when it
is freed. Views and in-place results have no new storage, so nothing counts twice. Autograd keeps tensors for
the backward pass just as in a real run.

Buffers that an operator's kernel allocates while it runs are not seen (`memory.ALLOWANCE`), except for the
kernels that oneDNN compiles and keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Event", "Lifetimes", "inference", "training"]

aten = torch.ops.aten

KERNEL_BYTES = 2 * 296_880
"""Memory oneDNN keeps for each matrix product it compiles: one per shape, layout and dtype."""
ONEDNN_LEAST = 16**3
"""Smaller products of bf16 matrices do not go to oneDNN."""


@dataclass(frozen=True)
class Event:
    """The allocation (`bytes` > 0) or the end (`bytes` = 0) of a block."""

    block: int
    bytes: int


@dataclass(frozen=True)
class Lifetimes:
    """All events in order, and the role of each block."""

    events: tuple[Event, ...]
    roles: dict[int, str]
    """block -> weights, input, activations, attention, kernels, gradients or optimizer."""
    loaded: int
    """Number of events before the run begins: the allocation of the weights."""


class _Tracker(TorchDispatchMode):
    """Records allocations while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.roles: dict[int, str] = {}
        self.role = "activations"
        self._alive: dict[int, tuple[int, weakref.ref]] = {}
        self._elements: dict[int, int] = {}
        self._parents: dict[int, tuple[int, ...]] = {}
        self._next = 0
        self._kernels: set[Hashable] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        new = [t for t in outputs if self._find(t) is None]
        if outputs:
            self._record(func, args, inputs, new)
        if "softmax" in func.__name__ and "log_softmax" not in func.__name__:
            self._mark_scores([*inputs[:2], *outputs])
        return output

    def block(self, tensor: Tensor) -> int:
        """The number of a tensor's block; an unknown tensor counts as allocated now."""
        found = self._find(tensor)
        return self._allocate(tensor) if found is None else found

    def _record(self, func: Any, args: tuple, inputs: list[Tensor], new: list[Tensor]) -> None:
        compiled = _compiled(func, args)
        if compiled is not None and compiled not in self._kernels:
            self._kernels.add(compiled)
            self._number(KERNEL_BYTES, "kernels")
        known = tuple(number for t in inputs if (number := self._find(t)) is not None)
        for tensor in new:
            if tensor.untyped_storage().nbytes():
                self._parents[self._allocate(tensor)] = known

    def _find(self, tensor: Tensor) -> int | None:
        found = self._alive.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    def _allocate(self, tensor: Tensor) -> int:
        found = self._find(tensor)  # two outputs may share one storage
        if found is not None:
            return found
        storage = tensor.untyped_storage()
        key, number = storage._cdata, self._number(storage.nbytes(), self.role)
        self._elements[number] = tensor.numel()

        def died(_: weakref.ref) -> None:
            self._alive.pop(key, None)
            self._end([number])

        self._alive[key] = (number, weakref.ref(storage, died))
        return number

    def _number(self, size: int, role: str) -> int:
        number, self._next = self._next, self._next + 1
        self.roles[number] = role
        self.events.append(Event(number, max(size, 1)))
        return number

    def _end(self, numbers: Iterable[int]) -> None:
        self.events.extend(Event(number, 0) for number in numbers)

    def _mark_scores(self, tensors: Iterable[Tensor]) -> None:
        """A softmax's input and output are attention, as are tensors of the same size that its input was made
        from."""
        waiting = [number for t in tensors if (number := self._find(t)) is not None]
        elements = {self._elements[number] for number in waiting if number in self._elements}
        while waiting:
            number = waiting.pop()
            if self.roles[number] != "activations" or self._elements.get(number) not in elements:
                continue
            self.roles[number] = "attention"
            waiting.extend(self._parents.get(number, ()))


def inference(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Lifetimes:
    """The run of one batch of images of `shape` (B, C, H, W) without gradients.

    The model is on the meta device, in `dtype` and evaluation mode; it is not changed.
    """
    tracker = _Tracker()
    with FakeTensorMode(allow_non_fake_inputs=True), tracker, torch.no_grad():
        weights = _weights(model, tracker)
        loaded = len(tracker.events)
        images = _images(shape, dtype, tracker)
        scores = _call(model, weights, images)
        tracker.block(scores)
        del scores, images
    return Lifetimes(tuple(tracker.events), tracker.roles, loaded)


def training(model: nn.Module, shape: tuple[int, ...], *, autocast: bool) -> Lifetimes:
    """Two steps of AdamW on the cross-entropy, in fp32 or with `autocast` to bf16.

    Two, because the optimiser's state exists only after the first; the second shows what training costs.
    """
    tracker = _Tracker()
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        weights = _weights(model, tracker)
        loaded = len(tracker.events)
        parameters = {name: weights[name] for name, _ in model.named_parameters()}
        for parameter in parameters.values():
            parameter.requires_grad_()
        images = _images(shape, torch.float32, tracker)
        labels: Tensor | None = None
        states: dict[str, tuple[Tensor, Tensor]] = {}
        for _ in range(2):
            for parameter in parameters.values():
                parameter.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                scores = _call(model, weights, images)
                if labels is None:  # one for each image, or each pixel
                    labels = torch.zeros(scores.shape[:1] + scores.shape[2:], dtype=torch.long)
                loss = functional.cross_entropy(scores, labels)
                del scores
            loss.backward()
            del loss
            _name_gradients(parameters.values(), tracker)
            _adamw(parameters, states, tracker)
        del images, labels, states
    return Lifetimes(tuple(tracker.events), tracker.roles, loaded)


def _weights(model: nn.Module, tracker: _Tracker) -> dict[str, Tensor]:
    # Shared tensors are listed only once, so tied weights count once.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tracker.role = "weights"
    made = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    tracker.role = "activations"
    return made


def _images(shape: tuple[int, ...], dtype: torch.dtype, tracker: _Tracker) -> Tensor:
    tracker.role = "input"
    images = torch.empty(shape, dtype=dtype)
    tracker.role = "activations"
    return images


def _call(model: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    scores: Tensor = torch.func.functional_call(model, weights, (images,))
    return scores


def _name_gradients(parameters: Iterable[Tensor], tracker: _Tracker) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            tracker.roles[tracker.block(parameter.grad)] = "gradients"


def _adamw(
    parameters: dict[str, Tensor], states: dict[str, tuple[Tensor, Tensor]], tracker: _Tracker
) -> None:
    """Allocate what one step of torch.optim.AdamW does, tensor by tensor; the values do not matter."""
    tracker.role = "optimizer"
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.grad is not None and name not in states:
                states[name] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            denominator = (states[name][1].sqrt() / 2.0).add_(1e-8)
            parameter.addcdiv_(states[name][0], denominator, value=-1e-3)
            del denominator
    tracker.role = "activations"


def _compiled(func: Any, args: tuple) -> Hashable | None:
    """The matrix product that oneDNN compiles for this operator and keeps; None: it compiles nothing."""
    packet = func.overloadpacket
    if packet is getattr(torch.ops.mkldnn, "_linear_pointwise", None):
        rows, weight, bias, activation = args[:4]
        return ("linear", rows.flatten(0, -2).shape, weight.shape, rows.dtype, bias is None, activation)
    if packet not in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
        return None
    added = packet in (aten.addmm, aten.baddbmm)
    left, right = args[1:3] if added else args[:2]
    small = prod(left.shape) * right.shape[-1] <= ONEDNN_LEAST
    if left.dtype is not torch.bfloat16 or small or not _onednn_has_bf16():
        return None  # fp32 is MKL's, which compiles nothing
    return ("product", left.shape, left.stride(), right.shape, right.stride(), added)


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
