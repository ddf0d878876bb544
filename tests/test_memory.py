"""Predicted memory: tensors' lives, the largest batch, the command (about 20 s)."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from vitrail import catalog, cli, footprint
from vitrail.errors import InputError
from vitrail.export.variants import variants
from vitrail.measure import sandbox
from vitrail.models.linear import Linear
from vitrail.profiling import lifetimes, malloc, memory, memory_session
from vitrail.profiling.memory import MemorySetup
from vitrail.selection.prune import PROCESS_MIB, memory_floor_mib, process_floor_mib, ruled_out
from vitrail.vocabulary import Requirements, SearchSettings, Workload

pytestmark = pytest.mark.slow

MIB = 2**20
RECORDED = Path(__file__).parents[1] / "benchmarks" / "results"


# --- the allocator ------------------------------------------------------------------------------


def freed_in_a_child(payload):
    """Per 256 MiB that are written to and freed: MiB that stay and page faults, before, while and after
    freed memory is kept; and MiB of address space that stay of 8192."""

    def left_and_faults():
        begin, before = footprint.resident_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(64 * MIB)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return footprint.resident_mib() - begin, faults

    usual, _ = left_and_faults()
    begin = footprint.resident_mib()
    with contextlib.suppress(KeyError), malloc.freed_memory_kept():
        kept, _ = left_and_faults()
        # What alignment leaves beside a block is kept aside at first, and without it the block is too short.
        for _ in range(9):
            left_and_faults()
        faults = max(left_and_faults()[1] for _ in range(3))
        raise KeyError
    afterwards = footprint.resident_mib() - begin
    # Mapped and unmapped again; untouched, for a hole that 256 MiB left may be filled and stay.
    address_space = psutil.Process().memory_info().vms
    torch.empty(8192 * MIB, dtype=torch.uint8)
    mapped = (psutil.Process().memory_info().vms - address_space) / MIB
    return {"usual": usual, "kept": kept, "faults": faults, "afterwards": afterwards, "mapped": mapped}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's")
def test_freed_memory_is_kept_within_its_block_and_given_back_afterwards(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # In a child, whose heap holds nothing of other tests.
    found = sandbox.call("test_memory:freed_in_a_child", {}, timeout_s=120, memory_mib=4096)
    assert found["usual"] < 50
    assert found["kept"] > 200
    assert found["faults"] < 0.1 * 256 * MIB // resource.getpagesize()
    assert found["afterwards"] < 50
    assert found["mapped"] < 50


# --- tensors' lives -----------------------------------------------------------------------------


def peak_of(lives, role=None):
    """Most bytes alive at once, of one role or of all."""
    alive, sizes, most = 0, {}, 0
    for event in lives.events:
        if event.bytes and (role is None or lives.roles[event.block] == role):
            sizes[event.block] = event.bytes
            alive += event.bytes
        elif not event.bytes:
            alive -= sizes.pop(event.block, 0)
        most = max(most, alive)
    return most


def on_meta(module):
    return module.to("meta").eval()


def test_a_chain_holds_two_neighbours_at_a_time():
    model = on_meta(nn.Sequential(nn.Flatten(1), *(nn.Linear(300, 300, bias=False) for _ in range(4))))
    lives = lifetimes.inference(model, (1000, 3, 10, 10), torch.float32)
    assert peak_of(lives, "weights") == 4 * 300 * 300 * 4
    assert peak_of(lives, "input") == 1000 * 300 * 4
    assert peak_of(lives, "activations") == 2 * 1000 * 300 * 4
    assert sum(e.bytes > 0 for e in lives.events) == sum(e.bytes == 0 for e in lives.events) + 4


class InPlace(nn.Module):
    def forward(self, x):
        y = x + 1
        y.relu_().mul_(2)
        return y.transpose(1, 2)[:, 1:]


def test_views_and_results_written_in_place_bring_nothing_new():
    lives = lifetimes.inference(InPlace(), (2, 3, 8, 8), torch.float32)
    made = [e for e in lives.events if e.bytes and lives.roles[e.block] == "activations"]
    assert [e.bytes for e in made] == [2 * 3 * 8 * 8 * 4]


def test_bf16_halves_tensors():
    def sizes(dtype):
        model = on_meta(nn.Sequential(nn.Flatten(1), nn.Linear(300, 300), nn.GELU(), nn.Linear(300, 10)))
        lives = lifetimes.inference(model.to(dtype), (64, 3, 10, 10), dtype)
        return [peak_of(lives, role) for role in ("weights", "input", "activations")]

    assert sizes(torch.float32) == [2 * size for size in sizes(torch.bfloat16)]


def test_each_shape_of_a_linear_layer_of_ours_leaves_one_compiled_kernel():
    def layers(*sizes):
        return on_meta(nn.Sequential(nn.Flatten(1), *(Linear(300, size, bias=False) for size in sizes)))

    def kernels(model):
        return peak_of(lifetimes.inference(model, (64, 3, 10, 10), torch.float32), "kernels")

    one = kernels(layers(300))
    assert kernels(layers(300, 300, 300)) == one
    assert kernels(layers(300, 300, 150)) == 2 * one
    assert kernels(on_meta(nn.Sequential(nn.Flatten(1), nn.Linear(300, 300)))) == 0  # MKL's


def test_training_keeps_what_backward_needs_gradients_and_two_averages():
    width, depth, batch = 300, 3, 500
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.Sigmoid())]
    model = on_meta(nn.Sequential(nn.Flatten(1), *layers)).train()
    lives = lifetimes.training(model, (batch, 3, 10, 10), autocast=False)
    weights = depth * width * width * 4
    assert peak_of(lives, "weights") == weights
    assert peak_of(lives, "gradients") == weights
    # The averages, and the denominator of one parameter with the root it is made from.
    assert peak_of(lives, "optimizer") == 2 * weights + 2 * width * width * 4
    # Each sigmoid's output is kept (the next layer's input is the same tensor), and more is alive around it.
    assert depth * batch * width * 4 <= peak_of(lives, "activations") <= (depth + 4) * batch * width * 4


def test_autocast_trains_fp32_weights_on_bf16_activations():
    def activations(autocast):
        layers = [layer for _ in range(24) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
        model = on_meta(nn.Sequential(nn.Flatten(2), nn.Linear(256, 64), *layers, nn.Flatten(1))).train()
        lives = lifetimes.training(model, (1024, 3, 16, 16), autocast=autocast)
        assert peak_of(lives, "optimizer") > 2 * peak_of(lives, "weights") * 0.99
        return peak_of(lives, "activations")

    assert activations(True) < 0.8 * activations(False)


@pytest.mark.parametrize(("attention", "times"), [("naive", 2), ("fused", 0)])
def test_attention_is_the_scores_of_every_head_and_their_softmax(attention, times):
    setup = MemorySetup(
        model="vit_tiny_patch16_224",
        image_size=384,
        batch_size=2,
        attention=attention,
        implementation="vitrail",
    )
    lives = memory_session._lifetimes(setup, 2)
    heads, tokens = 3, (384 // 16) ** 2 + 1
    scores = 2 * heads * tokens**2 * 4
    assert peak_of(lives, "attention") == times * scores


def test_timms_switch_for_attention_is_left_alone():
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    model = memory_session._built(
        MemorySetup(model="vit_tiny_patch16_224", image_size=224, attention="naive", implementation="timm")
    )
    assert not any(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))
    assert use_fused_attn() == before
    assert torch.get_default_dtype() == torch.float32


def test_the_peak_is_the_moment_when_most_is_alive_and_a_tenth_more():
    happened = [(0, 4), (1, 2), (0, 0), (2, 3), (1, 0)]
    events = tuple(lifetimes.Event(block, size * MIB) for block, size in happened)
    roles = {0: "weights", 1: "activations", 2: "gradients"}
    parts = memory_session._peak(lifetimes.Lifetimes(events, roles, 1))
    assert parts.pop("allowance") == pytest.approx(0.6, rel=1e-6)
    assert parts == {**dict.fromkeys(memory.ROLES, 0), "weights": 4, "activations": 2}


# --- the largest batch --------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 3, 40])
@pytest.mark.parametrize(("fixed", "each", "budget"), [(500, 10, 900), (500, 300, 900), (0, 7, 100)])
def test_the_largest_batch_is_the_last_that_fits(start, fixed, each, budget):
    asked = []

    def total(batch):
        asked.append(batch)
        return {"total": fixed + each * batch + 3 * (batch % 2)}

    largest = memory_session._largest_batch(start, total(start), total, budget)
    true = max(b for b in range(1, 1000) if fixed + each * b + 3 * (b % 2) <= budget)
    assert largest == true if true < memory_session.FAR * start else largest == pytest.approx(true, rel=0.15)
    assert len(asked) < 10


def test_nothing_fits_into_nothing():
    assert memory_session._largest_batch(4, {"total": 50}, lambda batch: {"total": 10 * batch + 10}, 15) == 0


def test_a_large_batch_of_code_in_parts_is_read_off_a_line(monkeypatch):
    setup = MemorySetup(model="vit_tiny_patch16_224", image_size=448, implementation="vitrail")

    def peaks():
        return memory_session._Peaks(setup, {"baseline": 100.0})

    followed = peaks()
    assert followed.followed_for(8) == [8]
    monkeypatch.setattr(memory_session, "MOST_EVENTS", 4 * 360)
    read_off = peaks()
    assert len(read_off.followed_for(8)) == 2
    assert read_off.at(8)["total"] == pytest.approx(followed.at(8)["total"], rel=0.03)
    assert read_off.at(8)["weights"] == followed.at(8)["weights"]


# --- the command --------------------------------------------------------------------------------


def test_predicted_and_measured_agree(tmp_path, capsys):
    target = tmp_path / "memory.json"
    asked = ["vit_tiny_patch16_224", "--batch-size", "4", "--image-size", "384", "--attention", "naive"]
    assert cli.main(["memory", *asked, "--measure", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    predicted, measured = found["predicted_mib"], found["measured_mib"]
    assert predicted["total"] == pytest.approx(sum(v for k, v in predicted.items() if k != "total"))
    assert set(predicted) == {"total", "baseline", "runtime", "allowance", *memory.ROLES}
    assert predicted["weights"] == pytest.approx(found["parameters"] * 4 / MIB, rel=1e-6)
    assert set(measured) == {"total", "baseline", "load", "run", "repeated"}
    assert measured["total"] == pytest.approx(measured["baseline"] + measured["load"] + measured["run"])
    assert predicted["baseline"] == pytest.approx(measured["baseline"], rel=0.02)
    assert predicted["total"] == pytest.approx(measured["total"], rel=0.10)
    assert found["macs"] > 4e9
    assert (found["fits"], found["implementation"], found["image_size"]) == (True, "vitrail", 384)
    assert found["largest_batch"] > 4
    text = capsys.readouterr().out
    assert (
        "vit_tiny_patch16_224 (vitrail) · 384 × 384 px · batch 4 · fp32 · inference · attention naive" in text
    )
    assert "fits in this machine's" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_base_patch16_225"], "did you mean vit_base_patch16_224"),
        (["swin_unknown", "--implementation", "vitrail"], "no model 'swin_unknown' of its own"),
        (["vit_base_patch16_224", "--attention", "fsat"], "no attention kernel 'fsat'"),
        (["resnet18", "--attention", "flash"], "timm's code has no attention kernel 'flash'"),
        (["resnet18", "--attention", "naive"], "has no attention: leave --attention out"),
        (["vit_base_patch16_224", "--image-size", "100"], "patches of 16"),
        (["vit_base_patch16_224", "--image-size", "-5"], "'-5' is not a whole number from 1 to 8192"),
        (["vit_base_patch16_224", "--batch-size", "0"], "'0' is not a whole number from 1 to 65536"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys, monkeypatch):
    if arguments != ["vit_base_patch16_225"]:  # one process of its own is enough: each imports torch
        here = {"vitrail.profiling.memory_session:predict": memory_session.predict}
        monkeypatch.setattr(sandbox, "call", lambda function, payload, **_: here[function](payload))
    assert cli.main(["memory", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_what_would_not_fit_is_not_run(monkeypatch, capsys):
    parts = dict.fromkeys(("baseline", "runtime", *memory.ROLES, "allowance"), 0.0)
    answer = {"implementation": "timm", "image_size": 224, "parameters": 1, "macs": 1}
    answer |= {"largest_batch": 0, "followed_batches": [1]}

    def predict(setup, *, budget_mib):
        return {**answer, "predicted_mib": {"total": 2 * budget_mib, **parts}}

    def measure(*args, **kwargs):
        raise AssertionError("it was run")

    monkeypatch.setattr(memory, "predict", predict)
    monkeypatch.setattr(memory, "measure", measure)
    assert cli.main(["memory", "resnet18", "--measure"]) == 1
    out, err = capsys.readouterr()
    assert "does not fit in this machine's" in out
    assert "not even one image does" in out
    assert err.startswith("not measured: it would take")


def test_setups_are_checked():
    with pytest.raises(InputError, match="not a precision"):
        MemorySetup(model="resnet18", precision="int8")
    with pytest.raises(InputError, match="no implementation"):
        MemorySetup(model="resnet18", implementation="other")


# --- what select prunes with it -----------------------------------------------------------------


def test_pruning_counts_the_process_the_weights_and_one_batch():
    settings = SearchSettings(models=("resnet50.a1_in1k",), runtimes=("onnxruntime",), precisions=("fp32",))
    workload = Workload(threads=1, batch_size=64)
    (variant,) = variants(catalog.find(settings.models), workload, settings)
    images = 64 * 3 * variant.image_size**2 * 4 / MIB
    floor = process_floor_mib(variant, workload)
    assert floor == pytest.approx(PROCESS_MIB + memory_floor_mib(variant) + images)
    below = Requirements(max_memory_mib=floor - 1, license=("any",))
    assert "one batch of images alone" in ruled_out(variant, below, workload, {}, 0)
    above = Requirements(max_memory_mib=floor + 1, license=("any",))
    assert ruled_out(variant, above, workload, {}, 0) is None


def test_no_recorded_measurement_is_below_its_floor():
    workload = Workload(threads=2)
    (grid,) = RECORDED.glob("selection-grid-*.jsonl")
    rows = [json.loads(line) for line in grid.read_text().splitlines()[1:]]
    peaks = {row["variant"]: row["memory"]["peak"] for row in rows if row.get("memory")}
    known = {v.name: v for v in variants(catalog.find(()), workload, SearchSettings())}
    both = peaks.keys() & known.keys()
    assert len(both) > 20
    assert all(process_floor_mib(known[name], workload) < peaks[name] for name in both)
