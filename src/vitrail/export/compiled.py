"""`torch.compile` as a Runner: a reference that is measured and shown, never shipped.

Loading compiles: the first call is timed, a second one shows whether the code is kept. What the compiler did
(graphs, graph breaks, recompiles) is read from torch's own counters whenever the facts are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import _inductor as inductor
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

from vitrail.errors import InputError
from vitrail.export.reference import (
    ModuleRunner,
    check_precision,
    prepared,
    read,
    read_back,
    told,
    use_threads,
)
from vitrail.runtimes import cxx
from vitrail.vocabulary import Graph, RunnerFacts, Target
from vitrail.words import first_line

LABEL = "PyTorch compiled"
MODES = ("default", "max-autotune")
"""Those that change something on a CPU: the others of torch differ by CUDA graphs alone."""
SWITCH = {"0": False, "1": True}


class CompiledRunner(ModuleRunner):
    """A compiled module; its facts say what the compiler did up to now."""

    @property
    def facts(self) -> RunnerFacts:
        """What was read back, with the compiler's counters as they are."""
        return replace(self._facts, details=(*self._facts.details, *_counted()))


def load(
    path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]
) -> CompiledRunner:
    """Compile the module described by the export's `reference.json` for the graph's sizes.

    Args:
        settings: `mode` (one of `MODES`) and `freezing` ("1": the weights become constants of the code).

    Raises:
        InputError: the file or its weights are damaged, there is no C++ compiler, a setting is unknown, or
            the module cannot be compiled.
        EngineMismatch: a different number of threads or precision than requested.
    """
    options = compiler_options(settings)
    if target.device == "cpu":
        cxx.require(LABEL)  # on a GPU, Triton compiles
    use_threads(threads)
    made = prepared(read(path), graph, target.precision, target.device)
    # The process serves only this runner, so the compiler's state and counters are its own.
    torch.compiler.reset()
    counters.clear()
    clear_compilation_metrics()
    call = torch.compile(made.model, dynamic=False, options=options)
    seconds, breaks = [], 0
    # Tracing reads the options too (it treats frozen parameters otherwise), but torch hands them only to the
    # code generator.
    with torch.inference_mode(), scoped(options):
        for _ in range(2):
            begin = time.perf_counter()
            try:
                with told(made.device):
                    output = call(*made.inputs)
                    if made.device.type == "cuda":
                        torch.cuda.synchronize(made.device)
            except InputError:
                raise
            except Exception as error:
                raise cannot_compile(error) from error
            seconds.append(time.perf_counter() - begin)
            # A recompile passes the same breaks again, so only those of the first call count.
            breaks = breaks or sum(counters["graph_break"].values())
    check_precision(output, target.precision)
    details = (
        *described(settings),
        ("first call", f"{seconds[0]:.2f} s"),
        ("second call", f"{seconds[1]:.2f} s"),
        ("graph breaks", str(breaks)),
    )
    return CompiledRunner(call, made.dtype, read_back(target, graph, output, details))


def compiler_options(settings: Mapping[str, str]) -> dict[str, Any]:
    """The compiler's options for a variant's settings.

    Raises:
        InputError: a value that a setting does not have here.
    """
    mode, freezing = settings.get("mode", "default"), settings.get("freezing", "0")
    if mode not in MODES:
        raise InputError(f"torch.compile's mode {mode} does nothing on a CPU: choose {' or '.join(MODES)}.")
    if freezing not in SWITCH:
        raise InputError(f"freezing is 0 or 1, not {freezing}: choose one.")
    return {**inductor.list_mode_options(mode), "freezing": SWITCH[freezing]}


def described(settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """All settings as the facts show them, those that were not named too."""
    return ("mode", settings.get("mode", "default")), ("freezing", settings.get("freezing", "0"))


def scoped(options: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """The compiler's configuration with these options, until the block ends."""
    patched: AbstractContextManager[Any] = inductor.config.patch(dict(options))
    return patched


def cannot_compile(error: Exception) -> InputError:
    """One sentence for whatever a compiler raised; its log holds the rest."""
    return InputError(
        f"PyTorch cannot compile this model here ({first_line(error)}): check that the C++ compiler works "
        f"and that Python's headers are installed (`{cxx.INSTALL} python3-dev`), or measure eager PyTorch."
    )


def _counted() -> tuple[tuple[str, str], ...]:
    inductor_did = counters["inductor"]
    cached = inductor_did["fxgraph_cache_hit"]
    fresh = inductor_did["fxgraph_cache_miss"] + inductor_did["fxgraph_cache_bypass"]
    packed = sum(n for name, n in inductor_did.items() if name.endswith("weight_pack_matcher_count"))
    reasons = [one.recompile_reason for one in get_compilation_metrics() if one.recompile_reason]
    return (
        ("graphs", str(counters["stats"]["unique_graphs"])),
        ("recompiles", str(len(reasons))),
        ("from the compiler's cache", f"{cached} of {cached + fresh}"),
        ("packed weights", str(packed)),
    )
