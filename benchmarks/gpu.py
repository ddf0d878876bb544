"""Everything of Vitrail that needs a GPU, in one run of at most four minutes on one NVIDIA card.

    python benchmarks/gpu.py [--sections a,b] [--seconds 240] [--out DIR] [--save [HARDWARE]]
    python benchmarks/gpu.py --device cpu --small        # that it runs, on any machine

attention  ms and memory of naive, flash, efficient, cuDNN and our attention, 8 x 12 heads x 64 at 1024, 4096
           and 8192 tokens; and which kernel ours really launches, by the profiler's names
swin       Swin-B at 224 px, batch 32, timm's and ours in turns: fp32, TF32, AMP fp16, AMP bf16
growth     ViT-B/16 against Swin-B, 224 to 1024 px, batch 1 and 4
engines    `vitrail optimize --device cuda`: Swin-B at 224 px, batch 32, in every engine that is installed
parity     our models against timm's with the same random values: float64, fp32, AMP; a loss over NCCL
training   `vitrail train` in each precision: run twice, killed and resumed; DDP and FSDP of one process
command    `vitrail attention` on the device, as a user calls it
compiled   Swin-B under torch.compile; by name also `compiled-timm`, timm's beside it (a minute more)

Each section is a process of its own with a budget: one that fails, hangs or dies keeps the rows it had, and
says how it ended. The first four are timed and have the machine for themselves. The others run side by side
on shares of its cores, so that their seconds are no measurements; compiling begins once parity has ended, one
implementation after the other, and what was compiled is timed when nothing else runs any more. The last line
of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1
ALONE = {"attention": 45.0, "swin": 30.0, "growth": 30.0, "engines": 60.0}
"""Sections that are timed -> the most seconds each may take."""
TOGETHER = {"parity": 90.0, "training": 120.0, "command": 60.0}
COMPILED = {"compiled": 90.0, "compiled-timm": 90.0}
"""They compile one after the other, beside what still runs of the others."""
SHARES = {"parity": 4, "training": 5, "command": 2, "compiled": 5, "compiled-timm": 5}
"""Threads of those that run side by side, of the 16 cores that a lent card often comes with."""
TIMING_S = 15.0
"""Kept for the timing of each compiled model."""
END_S = 3.0
"""Kept for the end of the run."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
"""Variables with a number of threads; torch's compiler otherwise starts a process on every core."""
SECTIONS = (*ALONE, *TOGETHER, "compiled")
BY_NAME = ("compiled-timm",)
"""Sections that run only where they are asked for."""
SMI = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,"
    "memory.used,memory.total,utilization.gpu,clocks_throttle_reasons.active,mig.mode.current"
)


class Section:
    """One section's process; its rows are read from a file, one JSON object a line.

    Args:
        name: of the section.
        command: what is run; `--rows FILE` is added to it.
        folder: for its rows and its log.
        budget_s: seconds after which it is killed.
        threads: of the CPU, that it and each of its children may use for a calculation.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, budget_s: float, threads: int = 1
    ) -> None:
        self.name, self._rows, self._log = name, folder / f"{name}.rows", folder / f"{name}.log"
        self._rows.touch()
        self.began, self._budget_s = time.monotonic(), budget_s
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--rows", str(self._rows)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **{name: str(threads) for name in THREADS}},
                start_new_session=True,
            )
        self._ended: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()
        say(f"{name}: begun, {budget_s:.0f} s at most")

    def _watch(self) -> None:
        self._process.wait()
        self._ended = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds of its budget."""
        return self._budget_s - (time.monotonic() - self.began)

    def ready(self) -> bool:
        """Whether it has ended, is out of time, or waits to be timed."""
        return self._process.poll() is not None or self.left_s <= 0 or '"ready"' in self._rows.read_text()

    def result(self, more_s: float = 0.0) -> dict[str, Any]:
        """Wait for its end, `more_s` beyond its budget at most; its rows, and the error if it failed."""
        error = None
        try:
            code = self._process.wait(max(self.left_s, 0.0) + more_s)
            if code:
                error = f"ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
        except subprocess.TimeoutExpired:
            error = f"was ended after {time.monotonic() - self.began:.0f} s"
        self.end()
        seconds = (self._ended or time.monotonic()) - self.began
        found: dict[str, Any] = {"seconds": round(seconds, 1), "rows": []}
        for line in self._rows.read_text().splitlines():
            try:
                found["rows"].append(json.loads(line))
            except json.JSONDecodeError:  # cut off as it was killed
                error = error or f"an unreadable row: {line[:80]}"
        if error is not None:
            found["error"] = f"{self.name} {error}"
            found["log"] = self.log()[-1500:]
        say(f"{self.name}: {len(found['rows'])} rows in {seconds:.0f} s {found.get('error', '')}")
        return found

    def end(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")


class Plan:
    """The sections of one run, in order, and the document that they fill."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.began = args, folder, time.monotonic()
        self.running: list[Section] = []
        self.logs: list[Section] = []
        self.document: dict[str, Any] = {
            "benchmark": "gpu",
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": args.device,
            "small": args.small,
            "machine": machine(),
            "sections": {},
        }

    def run(self) -> None:
        """All sections that were asked for."""
        for name, budget in ALONE.items():
            if name in self.args.sections:
                section = self.begin(name, budget)
                self.keep(section, section.result())
        self._others()

    def _others(self) -> None:
        asked = self.args.sections
        others = {name: self.begin(name, budget) for name, budget in TOGETHER.items() if name in asked}
        compiled: list[Section] = []
        if self._compiled:
            if "parity" in others:
                section = others.pop("parity")
                self.keep(section, section.result())
            for name, budget in self._compiled.items():
                share = (self.left_s - self._kept_s) / (len(self._compiled) - len(compiled))
                section = self.begin(name, min(budget, share))
                while not section.ready():
                    time.sleep(0.1)
                compiled.append(section)
        for section in others.values():
            self.keep(section, section.result())
        for section in compiled:
            (self.folder / f"{section.name}.quiet").touch()
            self.keep(section, section.result(min(TIMING_S, self.left_s)))

    @property
    def _kept_s(self) -> float:
        """Seconds at the end in which only what was compiled is timed."""
        return len(self._compiled) * TIMING_S

    @property
    def _compiled(self) -> dict[str, float]:
        """Those that compile and were asked for -> the most seconds each may take."""
        return {name: budget for name, budget in COMPILED.items() if name in self.args.sections}

    @property
    def left_s(self) -> float:
        """Seconds that the whole run still has."""
        return float(self.args.seconds) - END_S - (time.monotonic() - self.began)

    def begin(self, name: str, budget_s: float) -> Section:
        """Start a section with its budget, or with what is left."""
        kept = 0.0 if name in ALONE else self._kept_s
        budget_s = max(1.0, min(budget_s * self.args.patience, self.left_s - kept))
        cores = len(os.sched_getaffinity(0))
        threads = min(cores, SHARES.get(name, cores)) if not self.args.small else 1
        setting = {
            "device": self.args.device,
            "small": self.args.small,
            "seconds": budget_s,
            "threads": threads,
            "folder": str(self.folder),
            "began": time.monotonic(),  # one clock for all processes: imports count too
        }
        command = [sys.executable, __file__, "--child", name, "--setting", json.dumps(setting)]
        section = Section(name, command, self.folder, budget_s, threads)
        self.running.append(section)
        self.logs.append(section)
        return section

    def keep(self, section: Section, found: dict[str, Any]) -> None:
        """Put a section's result into the document, and the document on disk."""
        found["card_after"] = card()
        self.document["sections"][section.name] = found
        self.running.remove(section)
        self.write()

    def write(self) -> None:
        """The document so far, and the logs, where `--out` says."""
        self.document["seconds"] = round(time.monotonic() - self.began, 1)
        if self.args.out is not None:
            self.args.out.mkdir(parents=True, exist_ok=True)
            (self.args.out / "gpu.json").write_text(json.dumps(self.document, indent=1) + "\n")
            logs = "\n".join(f"==== {section.name}\n{section.log()}" for section in self.logs)
            (self.args.out / "gpu-logs.txt").write_text(logs)


def machine() -> dict[str, Any]:
    """The machine, the card before anything ran, and whatever else uses it."""
    from vitrail import hardware
    from vitrail.version import __version__

    return {"vitrail": __version__, "facts": hardware.facts(), "card": card()}


def card() -> dict[str, Any] | None:
    """Clocks, power, temperature and processes of each card, by nvidia-smi; None: there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    rows = _smi(f"--query-gpu={SMI}")
    if rows and not rows[0]:  # a field that this driver has not refuses the whole query
        rows = _smi("--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,power.limit")
    return {"cards": rows, "processes": _smi("--query-compute-apps=pid,process_name,used_memory")}


def _smi(query: str) -> list[dict[str, str]]:
    try:
        made = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [{"error": str(error)}]
    if made.returncode:
        return [{}]
    names = query.partition("=")[2].split(",")
    return [
        dict(zip(names, (value.strip() for value in line.split(",")), strict=False))
        for line in made.stdout.splitlines()
    ]


def lines(document: dict[str, Any]) -> list[str]:
    """The summary for people: the rows that say something by themselves."""
    told = []
    for name, section in document["sections"].items():
        told.append(f"{name}: {section['seconds']} s {section.get('error', '')}".rstrip())
        told += [f"  {row['said']}" for row in section["rows"] if "said" in row]
    return told


def save(document: dict[str, Any], said: str) -> Path:
    """Write the document under a name that says hardware and date."""
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu {said}".lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}-{document['created'][:10]}.json"
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return target


def say(words: str) -> None:
    """A line of progress."""
    print(words, file=sys.stderr, flush=True)


def child(name: str, setting: dict[str, Any], rows: Path) -> int:
    """One section, in its own process."""
    import gpu_engines
    import gpu_sections
    import gpu_training
    import torch
    from gpu_timing import Setting

    where = Setting(**setting, rows=rows)
    # Beside other work threads that wait for one another take many times as long.
    torch.set_num_threads(where.threads)
    torch.set_num_interop_threads(where.threads)
    sections = {
        "attention": gpu_sections.attention,
        "swin": gpu_sections.swin,
        "growth": gpu_sections.growth,
        "engines": gpu_engines.engines,
        "parity": gpu_sections.parity,
        "compiled": lambda here: gpu_sections.compiled(here, "ours"),
        "compiled-timm": lambda here: gpu_sections.compiled(here, "timm"),
        "training": gpu_training.training,
        "command": gpu_training.command,
    }
    sections[name](where)
    return 0


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--small", action="store_true", help="small models and lengths: to see that it runs")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, by commas (all)")
    parser.add_argument("--seconds", type=float, default=240.0, help="for the whole run (240)")
    parser.add_argument("--patience", type=float, default=1.0, help="times each section's budget (1)")
    parser.add_argument("--out", type=Path, help="keep the document and the logs in this folder")
    parser.add_argument(
        "--save", nargs="?", const="this-machine", metavar="HARDWARE", help="keep it in benchmarks/results/"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--setting", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.sections = args.sections.split(",")
    unknown = sorted(set(args.sections) - {*SECTIONS, *BY_NAME})
    if unknown:
        there = ", ".join((*SECTIONS, *BY_NAME))
        parser.error(f"there is no section {unknown[0]!r}: choose some of {there}")
    return args


def main() -> int:
    """Run from the command line."""
    args = parsed()
    if args.child:
        return child(args.child, args.setting, args.rows)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        plan = Plan(args, Path(temporary))
        # An outer time limit still gets the document.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
        try:
            plan.run()
        except (SystemExit, KeyboardInterrupt) as stopped:
            plan.document["error"] = str(stopped) or "interrupted"
        for section in list(plan.running):
            section.end()
            plan.keep(section, section.result())
        plan.write()
    if args.save is not None:
        say(f"saved {save(plan.document, args.save)}")
    print("\n".join(lines(plan.document)))
    print(json.dumps(plan.document))
    return 1 if any("error" in section for section in plan.document["sections"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
