"""A CoreML package's program, read from its files and computed with PyTorch.

CoreML runs on Apple's systems alone. Its operators are documented, so what a package says can be computed
anywhere: weights as they are stored, results rounded to the type that the program declares for them. What an
Apple device makes of it (orders of summation, a neural engine's own arithmetic) is not in this.

Source: the operators' definitions in coremltools (converters/mil/mil/ops/defs, version 9.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import VitrailError

__all__ = ["NotComputed", "operators", "outputs", "read"]

Given: TypeAlias = "Mapping[str, Any]"
"""An operator's arguments by name: tensors, tuples of tensors, or constants; absent ones have the default."""

GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
ROUNDED = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}


class NotComputed(VitrailError):
    """An operator that is not in the table, or in a form that is not: nothing is known of the outputs."""


def read(ct: ModuleType, package: Path) -> Any:
    """The program of a package, with its constants; `ct` is coremltools."""
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(package))
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    return load(spec, spec.specificationVersion, str(weights))


def operators(program: Any) -> dict[str, int]:
    """How often each operator occurs; constants are none."""
    found: dict[str, int] = {}
    for each in program.functions["main"].operations:
        if each.op_type != "const":
            found[each.op_type] = found.get(each.op_type, 0) + 1
    return dict(sorted(found.items()))


def outputs(program: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Named outputs of named inputs, with every result rounded to its declared type.

    Raises:
        NotComputed: naming the operator.
    """
    function = program.functions["main"]
    values = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.inference_mode():
        for each in function.operations:
            if each.op_type == "const":
                continue
            if each.op_type not in OPERATORS:
                raise NotComputed(f"{each.op_type} is not computed here")
            given = {name: _value(var, values) for name, var in each.inputs.items() if var is not None}
            found = OPERATORS[each.op_type](given)
            results = found if isinstance(found, (list, tuple)) else [found]
            for var, result in zip(each.outputs, results, strict=True):
                values[var.name] = _rounded(result, var)
    return {var.name: values[var.name].float().numpy() for var in function.outputs}


def _value(var: Any, values: Mapping[str, Tensor]) -> Any:
    """A tensor for what was computed and for constant arrays, plain Python for other constants."""
    if isinstance(var, (list, tuple)):
        return [_value(each, values) for each in var]
    if var.name in values:
        return values[var.name]
    constant = var.val
    if isinstance(constant, np.ndarray) and constant.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(constant, dtype=np.float32))
    if isinstance(constant, (np.ndarray, np.generic)):
        return constant.tolist()
    return constant


def _rounded(result: Tensor, var: Any) -> Tensor:
    """As the program declares it, in fp32 to go on with."""
    from coremltools.converters.mil.mil import types

    declared = types.builtin_to_string(var.dtype)
    if declared not in ROUNDED:
        raise NotComputed(f"a result of type {declared} is not computed here")
    rounded = result.to(ROUNDED[declared])
    if tuple(rounded.shape) != tuple(var.shape):
        raise NotComputed(
            f"{var.op.op_type} gives {tuple(rounded.shape)} where {tuple(var.shape)} is declared"
        )
    return rounded.float() if declared == "fp16" else rounded


# --- operators ------------------------------------------------------------------------------------


def _padded(x: Tensor, given: Given, kernel: list[int], fill: float = 0.0) -> Tensor:
    """`x` (B, C, *sides) with the padding of a convolution or pooling."""
    kind, sides = given.get("pad_type", "valid"), len(kernel)
    if kind == "valid":
        return x
    if kind != "custom":
        raise NotComputed(f"padding {kind} is not computed here")
    pad = given["pad"]
    return F.pad(x, [pad[2 * axis + end] for axis in reversed(range(sides)) for end in (0, 1)], value=fill)


def _conv(given: Given) -> Tensor:
    weight = given["weight"]
    sides = weight.ndim - 2
    strides, dilations = given.get("strides", [1] * sides), given.get("dilations", [1] * sides)
    x = _padded(given["x"], given, list(weight.shape[2:]))
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[sides]
    groups = int(given.get("groups", 1))
    return run(x, weight, given.get("bias"), stride=strides, dilation=dilations, groups=groups)


def _pool(given: Given, run: Callable[..., Tensor], fill: float, **options: Any) -> Tensor:
    kernel = given["kernel_sizes"]
    pad = given.get("pad", [0] * 2 * len(kernel))
    padded = given.get("pad_type") == "custom" and any(pad)
    if options and padded:  # an average that leaves the padding out
        raise NotComputed("an average without its padding is not computed here")
    x = _padded(given["x"], given, kernel, fill)
    return run(x, kernel, given.get("strides", [1] * len(kernel)), ceil_mode=bool(given.get("ceil_mode")))


def _avg_pool(given: Given) -> Tensor:
    excluding = {"count_include_pad": False} if given.get("exclude_padding_from_average") else {}
    return _pool(given, F.avg_pool2d, 0.0, **excluding)


def _batch_norm(given: Given) -> Tensor:
    names = ("mean", "variance", "gamma", "beta")
    mean, variance, gamma, beta = (given.get(name) for name in names)
    return F.batch_norm(given["x"], mean, variance, gamma, beta, eps=float(given.get("epsilon", 1e-5)))


def _layer_norm(given: Given) -> Tensor:
    x, axes = given["x"], sorted(axis % given["x"].ndim for axis in given["axes"])
    if axes != list(range(x.ndim - len(axes), x.ndim)):
        raise NotComputed("a layer_norm over other axes than the last is not computed here")
    sides = list(x.shape[axes[0] :])
    return F.layer_norm(x, sides, given.get("gamma"), given.get("beta"), float(given.get("epsilon", 1e-5)))


def _matmul(given: Given) -> Tensor:
    x, y = given["x"], given["y"]
    x = x.transpose(-1, -2) if given.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if given.get("transpose_y") else y)


def _gelu(given: Given) -> Tensor:
    mode = given.get("mode", "EXACT")
    if mode not in GELU:
        return given["x"] * torch.sigmoid(1.702 * given["x"])
    return F.gelu(given["x"], approximate=GELU[mode])


def _slice(given: Given) -> Tensor:
    x, rank = given["x"], given["x"].ndim
    none = [False] * rank
    masks = [given.get(f"{name}_mask") or none for name in ("begin", "end", "squeeze")]
    steps = given.get("stride") or [1] * rank
    places: list[Any] = []
    for axis, (begin, end, step) in enumerate(zip(given["begin"], given["end"], steps, strict=True)):
        if step < 0:
            raise NotComputed("a slice that runs backwards is not computed here")
        if masks[2][axis]:
            places.append(begin)
        else:
            places.append(slice(None if masks[0][axis] else begin, None if masks[1][axis] else end, step))
    return x[tuple(places)]


def _split(given: Given) -> tuple[Tensor, ...]:
    x, axis = given["x"], given["axis"]
    return torch.split(x, given.get("split_sizes") or x.shape[axis] // given["num_splits"], axis)


def _gather(given: Given) -> Tensor:
    x, indices = given["x"], torch.as_tensor(given["indices"]).long()
    axis = int(given.get("axis", 0)) % x.ndim
    flat = x.index_select(axis, (indices % x.shape[axis]).reshape(-1))
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _pad(given: Given) -> Tensor:
    x, pad, mode = given["x"], given["pad"], given.get("mode", "constant")
    if mode != "constant":
        raise NotComputed(f"padding {mode} is not computed here")
    sides = [pad[2 * axis + end] for axis in reversed(range(len(pad) // 2)) for end in (0, 1)]
    return F.pad(x, sides, value=float(given.get("constant_val", 0.0)))


def _reduced(run: Callable[..., Tensor]) -> Callable[[Given], Tensor]:
    def reduced(given: Given) -> Tensor:
        axes = given.get("axes") or list(range(given["x"].ndim))
        return run(given["x"], dim=tuple(axes), keepdim=bool(given.get("keep_dims", False)))

    return reduced


def _of_two(run: Callable[..., Any]) -> Callable[[Given], Tensor]:
    return lambda given: run(torch.as_tensor(given["x"]), torch.as_tensor(given["y"]))


def _of_one(run: Callable[[Tensor], Tensor]) -> Callable[[Given], Tensor]:
    return lambda given: run(given["x"])


def _squeezed(given: Given) -> Tensor:
    x = given["x"]
    axes = {axis % x.ndim for axis in given.get("axes") or [i for i in range(x.ndim) if x.shape[i] == 1]}
    return x.reshape([side for axis, side in enumerate(x.shape) if axis not in axes])


def _expanded(given: Given) -> Tensor:
    x, rank = given["x"], given["x"].ndim + len(given["axes"])
    for axis in sorted(each % rank for each in given["axes"]):
        x = x.unsqueeze(axis)
    return x


OPERATORS: dict[str, Callable[[Given], Any]] = {
    "abs": _of_one(torch.abs),
    "add": _of_two(torch.add),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": _of_one(lambda x: x),  # rounded as declared, like every result
    "clip": lambda given: given["x"].clamp(float(given["alpha"]), float(given["beta"])),
    "concat": lambda given: torch.cat(given["values"], int(given["axis"])),
    "conv": _conv,
    "erf": _of_one(torch.erf),
    "exp": _of_one(torch.exp),
    "expand_dims": _expanded,
    "gather": _gather,
    "gelu": _gelu,
    "identity": _of_one(lambda x: x),
    "layer_norm": _layer_norm,
    "leaky_relu": lambda given: F.leaky_relu(given["x"], float(given["alpha"])),
    "linear": lambda given: F.linear(given["x"], given["weight"], given.get("bias")),
    "matmul": _matmul,
    "max_pool": lambda given: _pool(given, F.max_pool2d, -math.inf),
    "maximum": _of_two(torch.maximum),
    "minimum": _of_two(torch.minimum),
    "mul": _of_two(torch.mul),
    "pad": _pad,
    "pow": _of_two(torch.pow),
    "real_div": _of_two(torch.true_divide),
    "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "relu": _of_one(F.relu),
    "relu6": _of_one(F.relu6),
    "reshape": lambda given: given["x"].reshape(given["shape"]),
    "rsqrt": lambda given: torch.rsqrt(given["x"] + float(given.get("epsilon", 1e-12))),
    "sigmoid": _of_one(torch.sigmoid),
    "sigmoid_hard": lambda given: (float(given["alpha"]) * given["x"] + float(given["beta"])).clamp(0, 1),
    "silu": _of_one(F.silu),
    "slice_by_index": _slice,
    "softmax": lambda given: torch.softmax(given["x"], int(given.get("axis", -1))),
    "softplus": _of_one(F.softplus),
    "split": _split,
    "sqrt": _of_one(torch.sqrt),
    "squeeze": _squeezed,
    "stack": lambda given: torch.stack(given["values"], int(given["axis"])),
    "sub": _of_two(torch.sub),
    "tanh": _of_one(torch.tanh),
    "thresholded_relu": lambda given: F.threshold(given["x"], float(given["alpha"]), 0.0),
    "tile": lambda given: given["x"].repeat(given["reps"]),
    "transpose": lambda given: given["x"].permute(given["perm"]),
}
