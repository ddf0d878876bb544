"""AOTInductor as a Runner: compiled ahead of time into a package, a reference that never ships.

`build` exports the module and compiles it for one form (precision, batch, threads, settings); `load` opens
the package, and needs no compiler any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import _inductor as inductor
from torch import nn

from vitrail.errors import InputError
from vitrail.export import eager
from vitrail.export.compiled import cannot_compile, compiler_options, described
from vitrail.export.reference import DTYPES, ModuleRunner, check_precision, read, read_back, use_threads
from vitrail.export.requests import Form
from vitrail.runtimes import Arrays, EngineMismatch, cxx
from vitrail.vocabulary import Graph, Target
from vitrail.words import counted, first_line

LABEL = "PyTorch AOTInductor"
PACKAGE, FACTS = "model.pt2", "compiled.json"
MIB = 1024 * 1024


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a package."""

    form: Form
    seconds: float
    """Exporting and compiling."""


def build(reference: Path, folder: Path, form: Form, calibration: Sequence[Arrays] = ()) -> None:
    """Compile the module of an export's `reference.json` into `folder`.

    Raises:
        InputError: the file or its weights are damaged, there is no C++ compiler, a setting is unknown, or
            the module cannot be compiled.
        EngineMismatch: a different number of threads than requested.
    """
    options = compiler_options(form.settings)
    cxx.require(LABEL)
    use_threads(form.threads)  # the number is compiled in
    request = read(reference)
    dtype = DTYPES[form.precision]
    model = eager.module(request, request.image_size, features=request.features).to(dtype)
    side = request.image_size
    begin = time.perf_counter()
    try:
        _compile(model, torch.zeros(form.batch_size, 3, side, side, dtype=dtype), options, folder / PACKAGE)
    except Exception as error:
        raise cannot_compile(error) from error
    kept = Compiled(form=form, seconds=time.perf_counter() - begin)
    (folder / FACTS).write_bytes(msgspec.json.encode(kept))


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ModuleRunner:
    """Open a package that was compiled for just this.

    Raises:
        InputError: the package is missing or damaged.
        EngineMismatch: it was compiled for something else than what is asked for.
    """
    try:
        kept = msgspec.json.decode((path.parent / FACTS).read_bytes(), type=Compiled)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"PyTorch cannot read {FACTS}: export it again ({error}).") from None
    form, batch = kept.form, int(graph.inputs[0].shape[0])
    asked = (target.precision, batch, threads, settings)
    if asked != (form.precision, form.batch_size, form.threads, form.settings):
        raise EngineMismatch(
            f"{LABEL} was asked for {_said(*asked)}, and the package was compiled for "
            f"{_said(form.precision, form.batch_size, form.threads, form.settings)}."
        )
    use_threads(threads)
    dtype = DTYPES[target.precision]
    inputs = [torch.zeros(*map(int, spec.shape), dtype=dtype) for spec in graph.inputs]
    try:
        package = inductor.aoti_load_package(path)
        with torch.inference_mode():
            output = package(*inputs)
    except Exception as error:
        raise InputError(f"PyTorch cannot read {path.name}: export it again ({first_line(error)}).") from None
    check_precision(output, target.precision)
    details = (
        *described(settings),
        ("compiled in", f"{kept.seconds:.1f} s"),
        ("on disk", f"{path.stat().st_size / MIB:.1f} MiB"),
    )
    return ModuleRunner(package, dtype, read_back(target, graph, output, details))


def _compile(model: nn.Module, example: torch.Tensor, options: dict[str, Any], package: Path) -> None:
    with torch.inference_mode():
        program = torch.export.export(model, (example,))
        inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)


def _said(precision: str, batch: int, threads: int, settings: Mapping[str, str]) -> str:
    named = "".join(f", {name} {value}" for name, value in sorted(settings.items()))
    return f"{precision}, {batch} at once, {counted(threads, 'thread')}{named}"
