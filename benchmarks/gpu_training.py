"""The sections of gpu.py that call the command line: training, killed and resumed; `vitrail attention`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_timing import Setting
from PIL import Image
from torch import Tensor

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
EACH = 120
"""Images of each class."""
SIDE = 32
SWIN, VIT = "swin_nano_patch2_window7_28", "vit_nano_patch4_28"
EVERY = 5
"""Steps between checkpoints."""
START_S = 25.0
"""A run is not begun with less time than this."""
KILLED_AT = 15
"""The run is killed once the checkpoint of this step is there."""
VARY = ("seconds", "best_file", "best_sha256")
"""Of a run's progress: what differs between two runs that learn the same, or says the same once more."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way of training."""

    name: str
    model: str
    options: tuple[str, ...]
    epochs: int = 12
    twice: bool = False
    """Run it a second time without an end in between: how far apart two equal runs are."""
    killed: bool = True
    workers: int = 0


def kinds(here: Setting) -> list[Kind]:
    """What is trained here."""
    if not here.gpu:
        return [Kind(name="fp32", model=VIT, options=("--precision", "fp32"), epochs=4)]
    one = ("--strategy", "ddp", "--processes", "1")
    found = [
        Kind(name=precision, model=SWIN, options=("--precision", precision), twice=True)
        for precision in ("fp32", "fp16", "bf16")
    ]
    return [
        *found,
        Kind(name="ddp of one process, fp32", model=VIT, options=("--precision", "fp32", *one), workers=2),
        Kind(
            name="fsdp of one process, fp32",
            model=VIT,
            options=(
                *("--precision", "fp32", "--strategy", "fsdp", "--processes", "1"),
                *("--set", "regularization.average_decay=none"),
            ),
        ),
        Kind(name="bf16 compiled", model=VIT, options=("--precision", "bf16", "--compile"), killed=False),
        Kind(name="ddp of one process, fp16", model=VIT, options=("--precision", "fp16", *one)),
    ]


def training(here: Setting) -> None:
    """Each kind's run, its run that is killed and resumed, and at the end some kinds' run again; as many at a
    time as there are threads for them."""
    here.environment()
    data = squares(Path(here.folder) / "squares")
    ended = [Ended(here, kind, data) for kind in kinds(here)]
    jobs = [(kind, way) for kind in ended for way in kind.ways]
    with ThreadPoolExecutor(here.threads) as pool:
        for kind, way in sorted(jobs, key=lambda job: job[1] == "again"):
            pool.submit(kind.run, way)


def squares(folder: Path) -> Path:
    """Noise with a coloured square somewhere in it; its colour is the class."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            pixels = rng.integers(0, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            top, left = rng.integers(0, SIDE - 14, 2)
            pixels[top : top + 14, left : left + 14] = colour
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


class Ended:
    """How the ways of training of one kind ended; the last to end writes what they say together."""

    def __init__(self, here: Setting, kind: Kind, data: Path) -> None:
        self._here, self._kind, self._data = here, kind, data
        self._place = Path(here.folder) / kind.name.replace(" ", "-").replace(",", "")
        self.ways = ["whole", *(["resumed"] if kind.killed else []), *(["again"] if kind.twice else [])]
        self._ended: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, way: str) -> None:
        """One of the ways, from its beginning to its row."""
        trained = resumed if way == "resumed" else whole
        try:
            if self._here.left_s < START_S:
                raise RuntimeError(f"not begun: {self._here.left_s:.0f} s were left")
            ended = trained(self._here, self._kind, self._data, self._place / way)
        except Exception as error:
            ended = {"error": f"{type(error).__name__}: {str(error)[-600:]}"}
        self._here.row(kind="run", name=self._kind.name, way=way, **ended)
        with self._lock:
            self._ended[way] = ended
            done = len(self._ended) == len(self.ways)
        if done:
            name, model = self._kind.name, self._kind.model
            with self._here.part(kind="training", name=name):
                found = _compared(self._place, self._ended)
                self._here.row(kind="training", name=name, model=model, **self._ended, **found)


def _compared(place: Path, ended: Mapping[str, Any]) -> dict[str, Any]:
    """How far the other ways' last checkpoints are from the first one's; and the line that says it."""
    found: dict[str, Any] = {}
    if "error" in ended["whole"]:
        return {"said": f"{place.name}: {ended['whole']['error'][-200:]}"}
    said = f"{place.name}: accuracy {ended['whole']['accuracy']:.1f} %"
    for way in ("again", "resumed"):
        if way in ended and "error" not in ended[way]:
            difference = differences(last(place / "whole"), last(place / way))
            found[f"{way}_differs"] = difference
            same = "the same bits" if difference["same_bits"] else f"{difference['model']:.1e} apart"
            said += f"; {way}: {same}"
        elif way in ended:
            said += f"; {way}: {ended[way]['error'][-200:]}"
    return {**found, "said": said}


def _command(here: Setting, kind: Kind, data: Path, out: Path) -> list[str]:
    accelerator = "cuda" if here.gpu else "cpu"
    return [
        *(sys.executable, "-m", "vitrail", "train", "--data", str(data), "--out", str(out)),
        *("--model", kind.model, "--epochs", str(kind.epochs), "--batch-size", "32", "--offline"),
        *("--checkpoint-every", str(EVERY), "--workers", str(kind.workers), "--threads", "1"),
        *("--accelerator", accelerator, *kind.options),
    ]


def _started(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "COLUMNS": "200",
    }
    with log.open("ab") as file:
        # In our session, so that it is ended with us.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def whole(here: Setting, kind: Kind, data: Path, out: Path) -> dict[str, Any]:
    """A run from its beginning to its end."""
    begin = time.monotonic()
    log = out.with_suffix(".log")
    process = _started(_command(here, kind, data, out), log)
    try:
        code = process.wait(max(1.0, here.left_s - 5))
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"not done in time: {log.read_text()[-300:]}") from None
    if code:
        raise RuntimeError(f"ended with code {code}: {log.read_text()[-600:]}")
    return {"seconds": round(time.monotonic() - begin, 1), **_learned(out)}


def _learned(out: Path) -> dict[str, Any]:
    """What the run's record says."""
    record = json.loads((out / "trained.json").read_text())
    history = record["history"]
    return {
        "finished": record["finished"],
        "steps": history[-1]["step"],
        "accuracy": max(epoch["accuracy"] for epoch in history),
        "accuracies": [round(epoch["accuracy"], 2) for epoch in history],
        "losses": [round(epoch["train_loss"], 4) for epoch in history],
        "training_s": history[-1]["seconds"],
    }


def resumed(here: Setting, kind: Kind, data: Path, out: Path) -> dict[str, Any]:
    """A run that is killed with SIGKILL in the middle, and the same command once more."""
    log = out.with_suffix(".log")
    process = _started(_command(here, kind, data, out), log)
    while process.poll() is None and not any(step >= KILLED_AT for step in _steps(out)):
        if here.left_s < 5:
            process.kill()
            raise RuntimeError(f"no checkpoint in time: {log.read_text()[-300:]}")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"it was not killed, but ended with code {code}: {log.read_text()[-600:]}")
    kept = sorted(_steps(out))
    before = json.loads((out / "trained.json").read_text()) if (out / "trained.json").exists() else {}
    after = whole(here, kind, data, out)
    return {"killed_at": kept, "was_finished": bool(before.get("finished")), "after": after}


def _steps(out: Path) -> list[int]:
    return [int(file.name.split("-")[1]) for file in (out / "checkpoints").glob("step-*-*.ckpt")]


def last(out: Path) -> dict[str, Any]:
    """A run's last checkpoint."""
    newest = max((out / "checkpoints").glob("step-*-*.ckpt"))
    state: dict[str, Any] = torch.load(newest, map_location="cpu", weights_only=True)
    return state


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """How far apart two checkpoints are: of each part the largest ‖a − b‖ / ‖a‖ of a tensor, and what is not
    equal among all the rest."""
    found: dict[str, Any] = {"same_bits": True, "values": []}
    ours, theirs = dict(_leaves(one)), dict(_leaves(other))
    if ours.keys() != theirs.keys():
        found["values"].append(f"only in one: {sorted(ours.keys() ^ theirs.keys())[:5]}")
        found["same_bits"] = False
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        part = name.split("/")[0]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            length = float(a.double().norm()) or 1.0
            far = float((a.double() - b.double()).norm()) / length
            found[part] = max(found.get(part, 0.0), far)
            found["same_bits"] &= torch.equal(a, b)
        elif a != b:
            found["values"].append(f"{name}: {a} and {b}"[:120])
            found["same_bits"] = False
    found["values"] = sorted(found["values"])[:12]
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in nested dicts and lists, except what is of the clock."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in VARY:
                yield from _leaves(inner, f"{name}/{key}".lstrip("/"))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{name}/{number}")
    else:
        yield name, value


def command(here: Setting) -> None:
    """`vitrail attention` on the device: that it runs, what it finds, and how exact that is."""
    out = Path(here.folder) / "attention.json"
    size = (
        ("--tokens", "64", "--heads", "2")
        if here.small
        else ("--tokens", "1024", "8192", "--batch-size", "8")
    )
    precision = "fp16" if here.gpu else "fp32"
    asked = [sys.executable, "-m", "vitrail", "attention"]
    asked += ["--device", here.device, "--precision", precision, "--threads", str(here.threads)]
    begin = time.monotonic()
    made = subprocess.run(
        [*asked, *size, "--json", str(out)], capture_output=True, text=True, timeout=max(1.0, here.left_s - 2)
    )
    seconds = time.monotonic() - begin
    if made.returncode:
        raise RuntimeError(f"ended with code {made.returncode}: {made.stderr[-600:]}")
    document = json.loads(out.read_text())
    states: dict[str, int] = {}
    for row in document["rows"]:
        states[row["status"]] = states.get(row["status"], 0) + 1
    here.row(
        kind="command",
        seconds=seconds,
        printed=made.stdout[-4000:],
        document=document,
        said=f"vitrail attention --device {here.device}: {states}, auto takes {document['auto']}",
    )
