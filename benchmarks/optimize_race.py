"""A fresh process in which forms of one model are loaded, checked, chosen and timed side by side.

Forms belong to groups ("vitrail", "onnxruntime", …). Of each group the quickest is chosen on some rounds and
timed on others, so that taking a minimum does not flatter: neither us nor a peer. A round calls each form for
a moment, in random order; ratios are of blocks of one round.

Run by `race`; the process reads its task from stdin and writes its answer as the last line of stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

BLOCK_S = 0.1
"""One block of calls: several of a quick model, one of a slow one."""
SCREENED = 1.15
"""A form this much slower than the best of its group, when first called, is not timed any further."""
CHOOSING_ROUNDS, TIMING_ROUNDS = 3, 8
"""At least so many, however little time there is: an interval needs six."""
WAIT_S = 1800


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the model."""

    name: str
    group: str
    kind: str
    """A key of `LOADERS`."""
    path: str = ""
    runtime: str = ""
    precision: str = "fp32"
    settings: dict[str, str] = {}
    graph: dict[str, Any] = {}
    max_error: float | None = None
    """Largest relative error to eager fp32; a form above it is refused. None: any."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is asked to do."""

    architecture: str
    weights: str
    inputs: str
    """`.npz` with `images` (B, 3, S, S) and `pixels` uint8 (B, S, S, 3) of the same photos."""
    threads: int
    forms: list[Form]
    seconds: float
    rounds: int = TIMING_ROUNDS
    """Timed at least."""
    peers: list[str] = []
    """Folders of packages that only peers need; they come last on the path."""


def race(task: Task, log: Path) -> dict[str, Any]:
    """Run a task in a fresh process; its messages go to `log`.

    Raises:
        RuntimeError: the process failed; what it said last.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as messages:
        done = subprocess.run(
            [sys.executable, __file__],
            input=msgspec.json.encode(task),
            stdout=subprocess.PIPE,
            stderr=messages,
            timeout=WAIT_S,
            env=environment,
        )
    if done.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"ended with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return answer


# --- in the process -----------------------------------------------------------------------------------


class Call:
    """A loaded form: images -> scores (B, K)."""

    def __init__(self, run: Callable[[], Any], close: Callable[[], None] = lambda: None) -> None:
        self.run, self.close = run, close

    def block(self, seconds: float = BLOCK_S) -> list[float]:
        """Milliseconds of each call; of several, the first is left out: it finds the caches of others."""
        samples, end = [], time.perf_counter() + seconds
        while not samples or time.perf_counter() < end:
            begin = time.perf_counter()
            self.run()
            samples.append(1000 * (time.perf_counter() - begin))
        return samples[1:] or samples


def _module(task: Task) -> Any:
    import timm
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(task.threads)
    model = timm.create_model(task.architecture, pretrained=False)
    model.load_state_dict(load_file(task.weights))
    return model.eval().requires_grad_(False)


def _runner(form: Form, task: Task, images: Mapping[str, np.ndarray]) -> Call:
    from vitrail import runtimes
    from vitrail.vocabulary import Graph, Target

    graph = msgspec.convert(form.graph, Graph)
    (spec,) = graph.inputs
    given = {spec.name: images["pixels" if spec.dtype == "uint8" else "images"]}
    runner = runtimes.load(
        Path(form.path),
        graph,
        Target(runtime=form.runtime, precision=form.precision),
        sizes={"B": len(images["images"])},
        threads=task.threads,
        settings=form.settings,
    )
    (output,) = graph.outputs
    return Call(lambda: runner.run(given)[output.name], runner.close)


def _openvino(form: Form, task: Task, images: Mapping[str, np.ndarray]) -> Call:
    """An IR file as anybody loads it: threads and precision are set, and nothing else."""
    from vitrail.runtimes.openvino import core

    hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[form.precision]
    model = core().read_model(form.path)
    batch = images["images"]
    model.reshape({model.inputs[0]: list(batch.shape)})
    config = {"INFERENCE_NUM_THREADS": task.threads, "INFERENCE_PRECISION_HINT": hint}
    request = core().compile_model(model, "CPU", config).create_infer_request()
    return Call(lambda: request.infer([batch], share_inputs=True, share_outputs=True)[0])


def _onnxruntime(form: Form, task: Task, images: Mapping[str, np.ndarray]) -> Call:
    from vitrail.privacy import import_engine

    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = ort.InferenceSession(form.path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images["images"]}
    return Call(lambda: session.run(None, given)[0])


def _torch(form: Form, task: Task, images: Mapping[str, np.ndarray]) -> Call:
    """timm's module, eager or compiled; `settings` are `freezing` and `backend`."""
    import torch
    from torch._inductor import config

    model, batch = _module(task), torch.from_numpy(images["images"])
    call = model
    if form.kind == "compile":
        backend = form.settings.get("backend", "inductor")
        if backend != "inductor":
            __import__(backend)
        call = torch.compile(model, dynamic=False, backend=backend)

    @torch.inference_mode()
    def run() -> Any:
        return call(batch).numpy()

    with config.patch(freezing=form.settings.get("freezing") == "1"):
        run(), run()
    return Call(run)


LOADERS: dict[str, Callable[[Form, Task, Mapping[str, np.ndarray]], Call]] = {
    "runner": _runner,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "eager": _torch,
    "compile": _torch,
}


def _reference(task: Task, images: Mapping[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return np.asarray(_module(task)(torch.from_numpy(images["images"])).numpy())


def _screened(task: Task, images: Mapping[str, np.ndarray]) -> tuple[dict[str, Call], list[dict[str, Any]]]:
    """The forms worth timing, and what was seen of every form."""
    reference = _reference(task, images)
    scale, loaded, seen = np.linalg.norm(reference), dict[str, Call](), list[dict[str, Any]]()
    quickest: dict[str, tuple[str, float]] = {}
    for form in task.forms:
        row: dict[str, Any] = {"name": form.name, "group": form.group}
        seen.append(row)
        begin = time.perf_counter()
        try:
            call = LOADERS[form.kind](form, task, images)
            row["relative_error"] = float(np.linalg.norm(call.run() - reference) / scale)
        except Exception as error:  # an engine's own, of any kind
            lines = [line for line in str(error).splitlines() if line.strip()]
            row["refused"] = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
            continue
        row["load_s"] = round(time.perf_counter() - begin, 2)
        if form.max_error is not None and not row["relative_error"] <= form.max_error:
            row["refused"] = f"relative error {row['relative_error']:.1e} is above {form.max_error:.0e}"
            call.close()
            continue
        row["screened_ms"] = min(call.block(2 * BLOCK_S) + call.block(0))
        loaded[form.name] = call
        best = quickest.get(form.group, (form.name, row["screened_ms"]))
        quickest[form.group] = min(best, (form.name, row["screened_ms"]), key=lambda pair: pair[1])
        for other in seen:
            slow = other.get("screened_ms", 0.0) > SCREENED * quickest[form.group][1]
            if other["group"] == form.group and slow and other["name"] in loaded:
                loaded.pop(other["name"]).close()
    return loaded, seen


def _rounds(
    calls: Mapping[str, Call], seconds: float, least: int, order: np.random.Generator
) -> dict[str, list[float]]:
    """Median milliseconds of each form's block in each round."""
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    end, count = time.perf_counter() + seconds, 0
    while count < least or time.perf_counter() < end:
        for name in order.permutation(list(calls)):
            blocks[str(name)].append(float(np.median(calls[str(name)].block())))
        count += 1
    return blocks


def run(task: Task) -> dict[str, Any]:
    """Load, choose and time; what the process answers."""
    with np.load(task.inputs) as file:
        images = {name: file[name] for name in file.files}
    order = np.random.default_rng(len(task.forms))
    calls, seen = _screened(task, images)
    groups: dict[str, list[str]] = {}
    for form in task.forms:
        if form.name in calls:
            groups.setdefault(form.group, []).append(form.name)
    several = {name: calls[name] for names in groups.values() if len(names) > 1 for name in names}
    blocks = _rounds(several, 0.4 * task.seconds, min(CHOOSING_ROUNDS, task.rounds), order)
    medians = {name: float(np.median(values)) for name, values in blocks.items() if values}
    chosen = {group: min(names, key=lambda name: medians.get(name, 0.0)) for group, names in groups.items()}
    kept = {name: calls[name] for name in chosen.values()}
    for name in set(calls) - set(kept):
        calls[name].close()
    timed = _rounds(kept, 0.6 * task.seconds, task.rounds, order)
    return {"forms": seen, "choosing_ms": medians, "chosen": chosen, "blocks_ms": timed}


@contextlib.contextmanager
def _stdout_is_ours() -> Iterator[int]:
    """A library that prints must not end up in the answer."""
    ours = os.dup(1)
    os.dup2(2, 1)
    yield ours


def main(arguments: Sequence[str] = ()) -> int:
    """The process's side."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.path += task.peers
    with _stdout_is_ours() as answer:
        document = run(task)
        os.write(answer, msgspec.json.encode(document) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
