"""ExecuTorch with XNNPACK: a `.pte` of the module for one batch -> Runner, the engine of phones run here.

`build` exports the module (torch.export), for int8 puts it between quantisers (pt2e.py), hands XNNPACK all it
takes, and leaves the rest to ExecuTorch's own kernels. `load` needs only torch and ExecuTorch, not the rest
of the workbench: the Python runtime takes and gives torch's tensors, so memory measured here is of a process
with torch in it, unlike a phone's.

Source: https://docs.pytorch.org/executorch (checked against the code of 1.5.1).
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vitrail import runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import pte
from vitrail.export.operators import lacking, operator
from vitrail.export.requests import Form
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec
from vitrail.words import counted, first_line

try:
    import torch
except ModuleNotFoundError:  # ExecuTorch does not ask pip for it
    raise MissingExtraError(
        "PyTorch, which ExecuTorch's Python runtime loads,", runtimes.RUNTIMES["executorch"].install
    ) from None

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

NAME, LABEL, BACKEND, METHOD = "executorch", "ExecuTorch", "XnnpackBackend", "forward"
PROGRAM, FACTS = "model.pte", "lowered.json"
MIB = 1024 * 1024

TOLERANCE = 1e-4
"""Largest relative difference between the file and the module it was made from."""
RANDOM_TOLERANCE = 0.1
"""The same for random weights, which are only timed (see onnx.RANDOM_TOLERANCE)."""
INT8_TOLERANCE = 0.7
"""The same for int8, over photos that calibrate: beyond it something is broken; parity judges the rest."""
COMPARED = 16
"""Of the photos that calibrate, on how many a program in int8 is compared with the module."""

KINDS = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}
"""c10::ScalarType's numbers, which a program's tensors carry."""

_LOADING = threading.Lock()
_OPEN: weakref.WeakSet[ExecuTorchRunner] = weakref.WeakSet()
"""Runners of this process: they share one pool of threads, and keep a pointer to it."""


class Lowered(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a program."""

    form: Form
    parts: int
    """Parts of the graph that XNNPACK runs."""
    left: dict[str, int]
    """Operators that ExecuTorch's own kernels run, and how often each occurs."""
    relative_difference: float
    """From the fp32 module: on one batch of noise, or in int8 on photos that calibrate."""


class ExecuTorchRunner:
    """A loaded method; `run` is not thread-safe."""

    def __init__(self, method: Any, facts: RunnerFacts) -> None:
        self._method = method
        self.facts = facts
        _OPEN.add(self)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, which the engine copies out of its memory."""
        (graph,) = self.facts.graphs
        outputs = self._method([torch.from_numpy(np.ascontiguousarray(inputs[s.name])) for s in graph.inputs])
        return {spec.name: value.numpy() for spec, value in zip(graph.outputs, outputs, strict=True)}

    def close(self) -> None:
        """Drop the method, and its program with it."""
        _OPEN.discard(self)
        del self._method


# --- making a program -------------------------------------------------------------------------------


def build(reference: Path, folder: Path, form: Form, calibration: Sequence[Arrays] = ()) -> None:
    """Lower the module of an export's `reference.json` into `folder`, and compare the two.

    Args:
        calibration: named inputs, a batch for each photo; they calibrate int8.

    Raises:
        InputError: the description or its weights are damaged, or the module cannot be exported; or an
            operator that ExecuTorch does not have, named with the module it comes from.
        EngineMismatch: the program computes something else than the module, or not in int8 where that is
            asked for.
    """
    from vitrail.export.of_module import subject  # timm: not to load what was built

    made = subject(reference, LABEL, form)
    tolerance = RANDOM_TOLERANCE if made.uncertain else TOLERANCE
    if form.precision == "int8":
        tolerance = math.inf if made.request.weights is None else INT8_TOLERANCE
    photos = [next(iter(inputs.values())) for inputs in calibration]
    lower(made.model, made.noise, folder, form, tolerance, photos)


def lower(
    model: nn.Module,
    images: np.ndarray,
    folder: Path,
    form: Form,
    tolerance: float = TOLERANCE,
    photos: Sequence[np.ndarray] = (),
) -> None:
    """Write the program of a module for just the shape of `images`, (B, 3, H, W); raises as `build`.

    `photos`, of the same shape each, calibrate int8.
    """
    example = torch.from_numpy(images)
    with torch.no_grad():
        exported = _folded(_exported(model, example))
        if form.precision == "int8":
            from vitrail.export import pt2e  # torchao

            # Not folded again: that would make floating point of the weights.
            exported = _exported(pt2e.quantised(exported, photos), example)
        lowered = _lowered(exported)
        edge = lowered.exported_program()
        nodes = [node for node in edge.graph.nodes if node.op == "call_function"]
        delegated = sum("executorch_call_delegate" in str(node.target) for node in nodes)
        left = Counter(operator(node.target) for node in nodes if hasattr(node.target, "_schema"))
        try:
            program = lowered.to_executorch()
        except Exception as error:
            raise lacking(LABEL, re.findall(r"'(\w+::[\w.]+)'", str(error)), edge, error) from error
        with (folder / PROGRAM).open("wb") as file:
            program.write_to_file(file)
        _check_stored(folder / PROGRAM, form.precision)
        difference = _off(
            model, folder / PROGRAM, photos[:COMPARED] if form.precision == "int8" else [images]
        )
    if not difference <= tolerance:
        raise EngineMismatch(f"ExecuTorch's program differs from the module by {difference:.1e} (relative).")
    kept = Lowered(form=form, parts=delegated, left=dict(left), relative_difference=difference)
    (folder / FACTS).write_bytes(msgspec.json.encode(kept))


def _exported(model: nn.Module, example: torch.Tensor) -> ExportedProgram:
    try:
        return torch.export.export(model, (example,))
    except Exception as error:
        raise InputError(
            f"PyTorch cannot export this model ({first_line(error)}): use another engine."
        ) from error


def _folded(exported: ExportedProgram) -> ExportedProgram:
    """The program without what depends on no image (resampled positions, gathered biases).

    It would be computed anew in every call, by ExecuTorch's own kernels or, where these lack an operator,
    not at all.
    """
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    return constant_prop_pass(exported)


def _off(model: nn.Module, path: Path, batches: Sequence[np.ndarray]) -> float:
    """How far a program is from the module over all batches, relative to the module's outputs."""
    method, _ = _opened(path)
    given = [method([torch.from_numpy(np.ascontiguousarray(each))])[0].numpy() for each in batches]
    expected = [model(torch.from_numpy(each)).numpy() for each in batches]
    return _difference(np.stack(given), np.stack(expected))


def _lowered(exported: ExportedProgram) -> Any:
    """The program with XNNPACK's parts cut out of it, in ExecuTorch's edge dialect."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    except Exception as error:
        found = re.findall(r"Operator (?:torch\._ops\.)?(\w+\.\w+)(?:\.\w+)? is not", str(error))
        raise lacking(
            LABEL, [name.replace(".", "::", 1) for name in found], exported.run_decompositions(), error
        ) from error


def _check_stored(path: Path, precision: str) -> pte.Stored:
    """What a program's parts compute in, which must be the precision.

    Raises:
        InputError: it is damaged.
        EngineMismatch: it is another.
    """
    try:
        stored = pte.read_stored(path)
    except (OSError, ValueError) as error:
        raise InputError(f"ExecuTorch cannot read {path.name}: export it again ({error}).") from None
    if stored.int8 != (precision == "int8"):
        found = ", ".join(f"{count:,} in {kind}" for kind, count in sorted(stored.weights.items())) or "none"
        raise EngineMismatch(
            f"{path.name} is not in {precision}: of its weights XNNPACK has {found}. Export it again."
        )
    return stored


def _difference(given: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(given - wide)) / (float(np.linalg.norm(wide)) or 1.0)


# --- running one ------------------------------------------------------------------------------------


def load(
    path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]
) -> ExecuTorchRunner:
    """Open a program; it takes no engine settings.

    Raises:
        InputError: the program is missing or damaged, or this ExecuTorch lacks something that it needs.
        EngineMismatch: another number of threads, or another batch or precision than it was made for.
    """
    assert not settings, settings
    with _LOADING:
        _use_threads(threads)
        method, engine = _opened(path)
    stored = _check_stored(path, target.precision)
    loaded = _graph(method.method_meta(), graph)
    _check_batch(loaded, graph, path)
    facts = RunnerFacts(
        runtime=target.runtime,
        version=str(runtimes.version(NAME)),
        precision=target.precision,
        threads=int(engine._threadpool_get_thread_count()),
        graphs=(loaded,),
        details=(
            ("process", "with PyTorch in it"),
            ("weights", _counts(stored.weights)),
            ("tensors", _counts(stored.tensors)),
            *_kept(path.parent / FACTS),
        ),
    )
    return ExecuTorchRunner(method, facts)


def _engine() -> Any:
    """The compiled runtime.

    The public module (`executorch.runtime`) gives the same functions, and loads the exporter beside it: 8 s
    and 220 MiB that only making a program needs.
    """
    try:
        import executorch.extension.pybindings._C as engine
    except ImportError:  # the module's name is ExecuTorch's own business
        import executorch.extension.pybindings.portable_lib as engine
    return engine


def _use_threads(threads: int) -> None:
    """Set and read back the number of threads, which is one for the process.

    Raises:
        EngineMismatch: another number than requested.
    """
    engine = _engine()
    with _said():
        now = int(engine._threadpool_get_thread_count())
        if now != threads and _OPEN:  # a new pool would take away that of the programs that are open
            raise EngineMismatch(
                f"ExecuTorch has one number of threads for a process, and here it is {now}, not {threads}: "
                f"ask for {now}, or close what is loaded."
            )
        if now != threads:
            engine._unsafe_reset_threadpool(threads)
        now = int(engine._threadpool_get_thread_count())
    if now != threads:
        raise EngineMismatch(f"ExecuTorch was asked for {counted(threads, 'thread')} and uses {now}.")


def _opened(path: Path) -> tuple[Any, Any]:
    """The program's one method, and the runtime that it is of."""
    engine = _engine()
    if not engine._is_available(BACKEND):
        raise InputError("This ExecuTorch was built without XNNPACK: install the one on PyPI.")
    with _said() as said:
        try:
            check = engine.Verification.InternalConsistency
            method = engine._load_program(str(path), program_verification=check).load_method(METHOD)
        except Exception as error:
            why = said() or first_line(error)
            raise InputError(f"ExecuTorch cannot read {path.name}: export it again ({why}).") from None
    return method, engine


def _graph(meta: Any, asked: Graph) -> Graph:
    """The graph with the shapes and types that the program has; it keeps the order of its tensors, no names.

    Raises:
        EngineMismatch: another number of inputs or outputs.
    """
    if (meta.num_inputs(), meta.num_outputs()) != (len(asked.inputs), len(asked.outputs)):
        raise EngineMismatch(
            f"ExecuTorch's program has {counted(meta.num_inputs(), 'input')} and "
            f"{counted(meta.num_outputs(), 'output')}, not {len(asked.inputs)} and {len(asked.outputs)}."
        )

    def spec(named: TensorSpec, info: Any) -> TensorSpec:
        kind = KINDS.get(info.dtype(), f"type {info.dtype()}")
        return TensorSpec(name=named.name, shape=tuple(info.sizes()), dtype=kind)

    return Graph(
        name=asked.name,
        entry=asked.entry,
        inputs=tuple(spec(named, meta.input_tensor_meta(i)) for i, named in enumerate(asked.inputs)),
        outputs=tuple(spec(named, meta.output_tensor_meta(i)) for i, named in enumerate(asked.outputs)),
    )


def _check_batch(loaded: Graph, asked: Graph, path: Path) -> None:
    theirs, ours = loaded.inputs[0].shape, asked.inputs[0].shape
    if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
        raise EngineMismatch(
            f"{path.name} was made for {theirs[0]} at once, and {ours[0]} at once are asked for: "
            f"ask for {theirs[0]}, or make it again with --batch-size {ours[0]}."
        )


def _counts(kinds: dict[str, int]) -> str:
    return " ".join(f"{kind}:{count}" for kind, count in sorted(kinds.items())) or "none"


def _kept(path: Path) -> tuple[tuple[str, str], ...]:
    """What lowering did, for the facts; () where the file beside the program is gone."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Lowered)
    except (OSError, msgspec.DecodeError):
        return ()
    left = " ".join(f"{name.removeprefix('aten::')}:{count}" for name, count in sorted(kept.left.items()))
    return ("XNNPACK runs", counted(kept.parts, "part")), ("own kernels run", left or "nothing")


@contextmanager
def _said() -> Iterator[Any]:
    """Catch what the runtime writes to stderr: why a program cannot be loaded stands only there.

    In every process it also tells there in which files it looked for the kind of CPU.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def last() -> str:
            lines = os.pread(file.fileno(), MIB, 0).decode("utf-8", "replace").splitlines()
            found = [re.sub(r"^\[[\w.]+:\d+\] ", "", line).strip().rstrip(".") for line in lines]
            found = [line for line in found if line]
            return found[-1][:200] if found else ""

        os.dup2(file.fileno(), 2)
        try:
            yield last
        finally:
            os.dup2(kept, 2)
            os.close(kept)
