"""benchmarks/gpu.py with the CPU as its device: its sections find what they should, and none loses others."""

import json
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_engines
import gpu_sections
import gpu_training
import pytest
import torch
from gpu_timing import Contender, Setting, in_turns, kernels, median_interval

from vitrail import runtimes
from vitrail.cli import command_parser


@pytest.fixture
def here(tmp_path: Path) -> Setting:
    return Setting(device="cpu", small=True, seconds=60, folder=str(tmp_path), rows=tmp_path / "rows")


def rows(here: Setting, kind: str) -> list[dict]:
    found = map(json.loads, here.rows.read_text().splitlines())
    return [row for row in found if row.get("kind") == kind]


def section(folder: Path, code: str, seconds: float = 30) -> dict:
    return gpu.Section("one", [sys.executable, "-c", code], folder, seconds).result()


def test_a_section_that_dies_keeps_its_rows_and_says_how_it_ended(tmp_path):
    code = 'import sys; open(sys.argv[2], "a").write("{\\"ms\\": 1}\\n"); print("because"); '
    found = section(tmp_path, code + "sys.exit(3)")
    assert found["rows"] == [{"ms": 1}]
    assert found["error"] == "one ended with code 3"
    assert "because" in found["log"]
    killed = section(tmp_path, code + "import os; os.kill(os.getpid(), 9)")
    assert killed["error"] == "one ended with SIGKILL"
    late = section(tmp_path, code + "sys.stdout.flush(); import time; time.sleep(60)", 1.0)
    assert late["rows"][-1] == {"ms": 1}
    assert "was ended after 1 s" in late["error"]
    assert "error" not in section(tmp_path, "pass")


def test_attention(here):
    gpu_sections.attention(here)
    table = rows(here, "attention")
    measured = {(row["precision"], row["kernel"]) for row in table if "ms" in row}
    assert {("fp32", name) for name in ("naive", "flash", "ours")} <= measured
    assert all(row["error"] < (1e-5 if row["precision"] == "fp32" else 1e-2) for row in table if "ms" in row)
    assert {row["kernel"] for row in table if "unavailable" in row} == {"efficient", "cudnn"}
    reached = rows(here, "reaches")
    assert {row["reached"] for row in reached if row["kernel"] == "flash"} == {"flash"}


def test_a_part_that_fails_is_a_row(here):
    with here.part(kind="growth", size=7):
        raise RuntimeError("no room")
    here.row(kind="growth", size=8)
    assert rows(here, "growth") == [
        {"kind": "growth", "size": 7, "error": "RuntimeError: no room"},
        {"kind": "growth", "size": 8},
    ]


def test_one_that_cannot_be_timed_leaves_the_others_theirs():
    def broken() -> None:
        raise RuntimeError("out of memory")

    x = torch.ones(8, 8)
    found = in_turns({"broken": Contender(broken), "product": Contender(lambda: x @ x)}, "cpu", 0.01)
    assert found["broken"] == {"error": "RuntimeError: out of memory"}
    low, high = found["product"]["interval_ms"]
    assert 0 < low <= found["product"]["ms"] <= high
    assert any("mm" in name for name, _ in kernels(Contender(lambda: x @ x), "cpu"))


def test_the_interval_of_a_median_is_that_of_the_sign_test():
    assert median_interval(range(1, 6)) is None
    assert median_interval(range(1, 7)) == (1, 6)
    assert median_interval(range(1, 10)) == (2, 8)
    assert median_interval(range(1, 21)) == (6, 15)


@pytest.mark.parametrize(
    ("names", "reached"),
    [
        (["void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>"], "flash"),
        (["fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"], "efficient"),
        (["cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128"], "cudnn"),
        (["ampere_fp16_s16816gemm", "void softmax_warp_forward<half>"], "scores written out"),
    ],
)
def test_kernels_are_told_apart_by_their_names(names, reached):
    assert gpu_sections.family(names) == reached


@pytest.mark.slow
def test_parity_and_losses(here, monkeypatch):
    monkeypatch.setattr(gpu_sections, "SMALL_PARITY", {"vit_tiny_patch16_224": None})
    gpu_sections.parity(here)
    (row,) = rows(here, "parity")
    assert row["held"]
    assert row["spread"] > 1e-3
    assert 1e-4 < row["amp bf16 against fp32"]["ours"] < 0.1
    assert [loss["gradient_difference"] < 1e-5 for loss in rows(here, "losses")] == [True, True]


def test_runs_are_trained_in_order_and_one_that_fails_leaves_the_others_theirs(here, monkeypatch):
    begun = []

    def whole(here, kind, data, out):
        begun.append((kind.name, out.name))
        if kind.name == "broken":
            raise RuntimeError("no gradients")
        return {"accuracy": 100.0}

    plan = [gpu_training.Kind(name="broken", model="m", options=(), killed=False, twice=True)]
    plan += [gpu_training.Kind(name="good", model="m", options=())]
    monkeypatch.setattr(gpu_training, "kinds", lambda _: plan)
    monkeypatch.setattr(gpu_training, "whole", whole)
    monkeypatch.setattr(gpu_training, "resumed", whole)
    monkeypatch.setattr(gpu_training, "last", lambda _: {"model": {"w": torch.ones(2)}})
    gpu_training.training(here)
    assert begun == [("broken", "whole"), ("good", "whole"), ("good", "resumed"), ("broken", "again")]
    good, broken = rows(here, "training")
    assert good["resumed_differs"]["same_bits"]
    assert broken["whole"] == broken["again"] == {"error": "RuntimeError: no gradients"}
    here.seconds = 0.0
    gpu_training.Ended(here, plan[1], Path(here.folder)).run("whole")
    assert "not begun" in rows(here, "run")[-1]["error"]


def test_a_section_has_its_share_of_the_cores(tmp_path):
    code = 'import json, os, sys; row = {"threads": os.environ["OMP_NUM_THREADS"]}; '
    code += 'open(sys.argv[2], "a").write(json.dumps(row))'
    command = [sys.executable, "-c", code]
    assert gpu.Section("one", command, tmp_path, 30, threads=3).result()["rows"] == [{"threads": "3"}]
    at_once = [name for name in gpu.SHARES if name not in gpu.BY_NAME]
    assert sum(gpu.SHARES[name] for name in at_once) <= 16


def test_checkpoints_are_compared_by_their_values_and_not_by_their_clocks():
    def state(weight: float, seconds: float, step: int = 3) -> dict:
        return {
            "model": {"w": torch.tensor([3.0, weight])},
            "progress": {"step": step, "seconds": seconds, "history": [{"seconds": seconds, "loss": 1.0}]},
        }

    assert gpu_training.differences(state(4.0, 1.0), state(4.0, 2.0))["same_bits"]
    found = gpu_training.differences(state(4.0, 1.0), state(4.5, 1.0))
    assert not found["same_bits"]
    assert found["model"] == pytest.approx(0.1)
    later = gpu_training.differences(state(4.0, 1.0), state(4.0, 1.0, 4))
    assert later["values"] == ["progress/step: 3 and 4"]


def described(runtime: str, precision: str, ms: float | None, **changes) -> dict:
    """A row of a document of `vitrail optimize`, as far as it is read."""
    figures = {"model": {"p50": ms}} if ms else None
    row = {"runtime": runtime, "precision": precision, "latency_ms": figures, "memory_mib": 9.0}
    return (
        row
        | {"settings": {}, "flags": [], "engine": {}, "made": {}, "failure": None, "reasons": []}
        | changes
    )


def test_the_engines_of_the_device_are_measured_by_the_command(here, monkeypatch):
    """The command is one that the command line takes; what it does, test_optimise.py tries."""
    asked = []

    def run(command, **_):
        asked.append(command_parser("optimize").parse_args(command[4:]))
        variants = [described("onnxruntime", "fp32", 2.5), described("pytorch", "fp32", 10.0)]
        Path(asked[0].json).write_text(json.dumps({"variants": variants}))
        return subprocess.CompletedProcess(command, 3, "the table", "")

    monkeypatch.setattr(gpu_engines.subprocess, "run", run)
    gpu_engines.engines(here)
    assert (asked[0].device, asked[0].random_weights, asked[0].runtimes) == (
        "cpu", True, ["pytorch", "onnxruntime"],
    )  # fmt: skip
    onnx, eager = rows(here, "engine")
    assert (onnx["over_eager"], eager["over_eager"]) == (4.0, 1.0)
    assert "4.00 × eager fp32" in onnx["said"]
    assert rows(here, "printed")[0]["printed"] == "the table"


def test_an_engine_that_failed_is_a_row_that_says_why():
    variant = described("tensorrt", "fp16", None, failure="measuring failed: cuda was lost")
    (row,) = gpu_engines.rows({"variants": [variant]})
    assert (row["ms"], row["over_eager"]) == (None, None)
    assert row["said"].endswith("not measured, measuring failed: cuda was lost")


def test_references_come_first_and_only_what_runs_on_the_device(monkeypatch):
    monkeypatch.setattr(runtimes, "installed", lambda: dict.fromkeys(runtimes.RUNTIMES, "1"))
    on_gpu = gpu_engines.names("cuda:0")
    assert on_gpu[:2] == ["pytorch", "pytorch-amp"]
    assert not {"pytorch-compiled", "pytorch-aot"} & set(on_gpu)
    assert "onnxruntime-cuda" in on_gpu
    assert "openvino" not in on_gpu
