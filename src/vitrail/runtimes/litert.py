"""LiteRT on the CPU, with XNNPACK: a `.tflite` file -> Runner, the engine of Android phones run here.

The file is made elsewhere (export/litert.py): running it takes `ai-edge-litert` and NumPy, no torch.

Source: https://ai.google.dev/edge/litert (checked against the code of ai-edge-litert 2.3.0).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.names import matched
from vitrail.runtimes.stderr import caught
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec
from vitrail.words import counted, first_line

try:
    from ai_edge_litert.interpreter import Interpreter
except ModuleNotFoundError:
    raise MissingExtraError("LiteRT", runtimes.RUNTIMES["litert"].install) from None

NAME, LABEL, MODEL, FACTS = "litert", "LiteRT", "model.tflite", "converted.json"
DELEGATE = "DELEGATE"
"""The node that stands for a part of the graph that XNNPACK runs."""
SHORT = {"float32": "f32", "float16": "f16", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"}


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a model: what making it did."""

    relative_difference: float
    """From the module, on one batch of noise; of int8, on the photos that calibrated it."""
    kept: tuple[str, ...] = ()
    """Operators that int8 left in floating point."""


class LiteRTRunner:
    """A model with its memory allocated; `run` is not thread-safe."""

    def __init__(self, interpreter: Any, places: dict[str, dict[str, int]], facts: RunnerFacts) -> None:
        self._interpreter = interpreter
        self._places = places
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs; the engine copies both."""
        for name, place in self._places["inputs"].items():
            self._interpreter.set_tensor(place, np.ascontiguousarray(inputs[name]))
        self._interpreter.invoke()
        return {
            name: np.asarray(self._interpreter.get_tensor(place))
            for name, place in self._places["outputs"].items()
        }

    def close(self) -> None:
        """Drop the interpreter, which frees its memory."""
        del self._interpreter


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> LiteRTRunner:
    """Open a model; it takes no engine settings.

    Raises:
        InputError: the model is missing or damaged, or this LiteRT lacks an operator of it.
        EngineMismatch: another precision, or another batch than it was made for.
    """
    assert not settings, settings
    interpreter = opened(path, threads)
    loaded, places = _graph(interpreter, graph)
    _check_batch(loaded, graph, path)
    facts = RunnerFacts(
        runtime=target.runtime,
        version=str(runtimes.version(NAME)),
        precision=target.precision,
        threads=threads,
        graphs=(loaded,),
        details=(
            *_operations(interpreter, target.precision),
            ("threads", "as it was told: it does not say how many it uses"),
            *_kept(path.parent / FACTS),
        ),
    )
    return LiteRTRunner(interpreter, places, facts)


def opened(path: Path, threads: int) -> Any:
    """The interpreter of a model, its memory allocated.

    Raises:
        InputError: the model is missing or damaged, or has an operator that this LiteRT lacks.
    """
    with caught():  # the first one says that it made XNNPACK's delegate
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{LABEL} cannot read {path.name}: export it again ({first_line(error).rstrip('.')})."
            ) from None
    return interpreter


def _graph(interpreter: Any, asked: Graph) -> tuple[Graph, dict[str, dict[str, int]]]:
    """The graph with the names, shapes and types that the model has, and the places of its tensors.

    Names are those of the model's signature; a model without one, or with several, is read by its order.
    """
    signatures = list(interpreter._get_full_signature_list().values())  # the public list has no places
    sides, places = {}, {}
    for which, details in (
        ("inputs", interpreter.get_input_details()),
        ("outputs", interpreter.get_output_details()),
    ):
        by_place = {}
        if len(signatures) == 1:
            by_place = {int(place): name for name, place in signatures[0][which].items()}
        theirs = [by_place.get(int(each["index"]), f"#{i}") for i, each in enumerate(details)]
        names = list(matched(getattr(asked, which), theirs).values())
        sides[which] = tuple(_spec(name, each) for name, each in zip(names, details, strict=True))
        places[which] = {name: int(each["index"]) for name, each in zip(names, details, strict=True)}
    return Graph(name=asked.name, entry=asked.entry, inputs=sides["inputs"], outputs=sides["outputs"]), places


def _spec(name: str, details: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(side) for side in details["shape"])
    return TensorSpec(name=name, shape=shape, dtype=np.dtype(details["dtype"]).name)


def _check_batch(loaded: Graph, asked: Graph, path: Path) -> None:
    theirs, ours = loaded.inputs[0].shape, asked.inputs[0].shape
    if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
        raise EngineMismatch(
            f"{path.name} was made for {theirs[0]} at once, and {ours[0]} at once are asked for: "
            f"ask for {theirs[0]}, or make it again with --batch-size {ours[0]}."
        )


def _operations(interpreter: Any, precision: str) -> tuple[tuple[str, str], ...]:
    """In what the operators compute, and how many parts of the graph XNNPACK runs.

    Raises:
        EngineMismatch: something else than the precision that was asked for.
    """
    # No public call tells operators; they stay in the list after XNNPACK took them.
    nodes = interpreter._get_ops_details()
    counts: Counter[str] = Counter()
    for node in nodes:
        if node["op_name"] != DELEGATE and node["result_types"]:
            kind = np.dtype(node["result_types"][0]).name
            counts[SHORT.get(kind, kind)] += 1
    lower = sum(counts[name] for name in ("f16", "i8", "i16"))
    if precision == "fp32" and lower:
        raise EngineMismatch(
            f"{LABEL} was asked for fp32 and runs {counted(lower, 'operation')} in a lower precision."
        )
    if precision == "int8" and not counts["i8"]:
        raise EngineMismatch(f"{LABEL} was asked for int8 and runs no operation in int8: quantise it again.")
    parts = sum(node["op_name"] == DELEGATE for node in nodes)
    return (
        ("operations", " ".join(f"{name}:{count}" for name, count in sorted(counts.items()))),
        ("XNNPACK runs", counted(parts, "part") if parts else "nothing"),
    )


def _kept(path: Path) -> tuple[tuple[str, str], ...]:
    """What int8 left in floating point; () where nothing, or the file beside the model is gone."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Converted).kept
    except (OSError, msgspec.DecodeError):
        return ()
    return (("in floating point", " ".join(kept)),) if kept else ()
