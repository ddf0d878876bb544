"""The engines on one tiny export: what they say of themselves, what they refuse. About 4 s."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from vitrail import runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import work
from vitrail.export.passes.quantize import quantize
from vitrail.install import here
from vitrail.runtimes import RUNTIMES, EngineMismatch
from vitrail.runtimes.openvino import core
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Graph, Preprocess, Target, TensorSpec

SIZE, CLASSES = 64, 10
READY = {name: runtime for name, runtime in RUNTIMES.items() if not (runtime.compiles or runtime.of_module)}
"""What compiles, or is built of the module, takes seconds a test: test_compiled.py, test_executorch.py,
test_litert.py."""
PAIRS = [(name, precision) for name, runtime in READY.items() for precision in runtime.on("cpu")]
EXACT = [name for name, precision in PAIRS if precision == "fp32"]
CPU_HAS_BF16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load(folder: Path, runtime: str, precision: str = "fp32", **changes):
    device = changes.pop("device", "cpu")
    threads, batch, size = (changes.pop(k, v) for k, v in (("threads", 2), ("batch", 2), ("size", SIZE)))
    folder = quantised(folder) if precision == "int8" else folder
    folder = folder / runtime if RUNTIMES[runtime].builds else folder
    graph = graph_of(RUNTIMES[runtime].files[0], size)
    arguments = {"sizes": {"B": batch}, "threads": threads, **changes}
    return runtimes.load(
        folder, graph, Target(runtime=runtime, precision=precision, device=device), **arguments
    )


@functools.cache
def quantised(export: Path) -> Path:
    """What int8 makes of an export, and what engines build of that."""
    target = export.parent / "int8"
    target.mkdir()
    onnx.save(
        quantize(onnx.load(export / "model.onnx"), [images(seed, 1) for seed in range(4)]),
        target / "model.onnx",
    )
    work.build({"folder": str(target), "runtime": "openvino", "target": str(target / "openvino")})
    return target


def graph_of(entry: str, size: int = SIZE) -> Graph:
    labels = tuple(map(str, range(CLASSES)))
    return Classify(preprocess=Preprocess(image_size=size), labels=labels).graph(entry)


def images(seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(seed).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)}


@pytest.fixture
def copied(tiny_export, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_export, tmp_path / "copied"))


def supported(runtime: str, precision: str) -> None:
    if runtime == "openvino" and precision == "bf16" and not CPU_HAS_BF16:
        pytest.skip("this CPU has neither avx512_bf16 nor amx_bf16")


@pytest.mark.parametrize(("runtime", "precision"), PAIRS)
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 2)])
def test_what_was_asked_is_read_back(tiny_export, runtime, precision, batch, threads):
    supported(runtime, precision)
    runner = load(tiny_export, runtime, precision, batch=batch, threads=threads)
    facts = runner.facts
    assert (facts.runtime, facts.precision, facts.threads) == (runtime, precision, threads)
    (graph,) = facts.graphs
    assert graph.inputs == (TensorSpec(name="images", shape=(batch, 3, SIZE, SIZE)),)
    assert graph.outputs == (TensorSpec(name="scores", shape=(batch, CLASSES)),)
    assert facts.version.split("+")[0] in runtimes.installed()[runtime]
    scores = runner.run(images(0, batch))["scores"]
    assert (scores.shape, scores.dtype) == ((batch, CLASSES), np.float32)
    runner.close()


@pytest.mark.parametrize(("runtime", "precision"), PAIRS)
def test_outputs_are_copies(tiny_export, runtime, precision):
    supported(runtime, precision)
    runner = load(tiny_export, runtime, precision)
    first = runner.run(images(1))["scores"]
    kept = first.copy()
    second = runner.run(images(2))["scores"]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    assert np.abs(first - second).max() > 1e-3
    first[:] = 0
    np.testing.assert_array_equal(runner.run(images(1))["scores"], kept)


def test_all_engines_agree_in_fp32(tiny_export):
    scores = [load(tiny_export, name).run(images(3))["scores"].astype(np.float64) for name in EXACT]
    for other in scores[1:]:
        assert np.linalg.norm(other - scores[0]) <= 1e-4 * np.linalg.norm(scores[0])


@pytest.mark.skipif(not CPU_HAS_BF16, reason="this CPU has neither avx512_bf16 nor amx_bf16")
def test_bf16_runs_bf16_operations_and_fp32_runs_none(tiny_export):
    def operations(runner) -> dict[str, int]:
        pairs = dict(runner.facts.details)["operations"].split()
        return {name: int(count) for name, count in (pair.split(":") for pair in pairs)}

    exact, reduced = load(tiny_export, "openvino"), load(tiny_export, "openvino", "bf16")
    assert operations(reduced)["bf16"] > 0
    assert operations(exact).keys().isdisjoint({"bf16", "f16"})
    difference = np.abs(exact.run(images(4))["scores"] - reduced.run(images(4))["scores"]).max()
    assert 0 < difference < 0.1 * np.abs(exact.run(images(4))["scores"]).max()


# --- an engine that does something else -----------------------------------------------------------


class Doctored:
    """A compiled model that answers one property with something else."""

    def __init__(self, compiled: ov.CompiledModel, name: str, value: object) -> None:
        self._compiled, self._name, self._value = compiled, name, value

    def get_property(self, name: str) -> object:
        return self._value if name == self._name else self._compiled.get_property(name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._compiled, name)


class DoctoredCore:
    def __init__(self, core: ov.Core, wrap) -> None:
        self._core, self._wrap = core, wrap

    def read_model(self, path: Path) -> ov.Model:
        return self._core.read_model(path)

    def compile_model(self, *arguments: object) -> object:
        return self._wrap(self._core.compile_model(*arguments))


def doctor(monkeypatch, wrap) -> None:
    monkeypatch.setattr(runtimes.openvino, "core", lambda: DoctoredCore(core(), wrap))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INFERENCE_PRECISION_HINT", ov.Type.bf16, "asked for fp32 and set bf16"),
        ("INFERENCE_PRECISION_HINT", ov.Type.f16, "asked for fp32 and set fp16"),
        ("INFERENCE_NUM_THREADS", 1, "asked for 2 threads and uses 1"),
    ],
)
def test_openvino_that_reads_back_otherwise_is_refused(tiny_export, monkeypatch, name, value, said):
    doctor(monkeypatch, lambda compiled: Doctored(compiled, name, value))
    with pytest.raises(EngineMismatch, match=said):
        load(tiny_export, "openvino")


@pytest.mark.skipif(not CPU_HAS_BF16, reason="this CPU has neither avx512_bf16 nor amx_bf16")
@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [("fp32", "bf16", "operations in a lower precision"), ("bf16", "f32", "no operation in bf16")],
)
def test_a_hint_that_the_operations_do_not_follow_is_refused(tiny_export, monkeypatch, asked, given, said):
    # The engine echoes the hint that was asked, yet compiled with another.
    hint = ov.Type.f32 if asked == "fp32" else ov.Type.bf16
    real = core()
    model = real.read_model(tiny_export / "openvino" / "model.xml")
    model.reshape([2, 3, SIZE, SIZE])
    config = {"INFERENCE_PRECISION_HINT": given, "INFERENCE_NUM_THREADS": 2}
    other = real.compile_model(model, "CPU", config)
    doctor(monkeypatch, lambda _: Doctored(other, "INFERENCE_PRECISION_HINT", hint))
    with pytest.raises(EngineMismatch, match=said):
        load(tiny_export, "openvino", asked)


def test_a_model_dropped_in_another_thread_leaves_signals_working(tiny_export):
    """OpenVINO's plugin, once unloaded there, would leave the main thread an unmapped signal stack."""
    script = f"""
import faulthandler, os, signal, threading
from pathlib import Path
from vitrail import runtimes
from vitrail.vocabulary import Graph, Target, TensorSpec
faulthandler.enable()
runner = runtimes.load(
    Path({str(tiny_export / "openvino")!r}), {graph_of("model.xml")!r}, Target(runtime="openvino",
    precision="fp32"), sizes={{"B": 2}}, threads=1,
)
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
def drop():
    global runner
    runner.close()
    del runner
thread = threading.Thread(target=drop)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
print(len(heard))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_onnx_runtime_with_another_provider_or_thread_count_is_refused(tiny_export, monkeypatch):
    import onnxruntime

    real = onnxruntime.InferenceSession
    with monkeypatch.context() as patch:
        patch.setattr(real, "get_providers", lambda _: ["AzureExecutionProvider", "CPUExecutionProvider"])
        with pytest.raises(EngineMismatch, match="only CPUExecutionProvider"):
            load(tiny_export, "onnxruntime")

    def on_one_thread(path: str, options: onnxruntime.SessionOptions, **rest: object):
        options.intra_op_num_threads = 1
        return real(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_one_thread)
    with pytest.raises(EngineMismatch, match="asked for 2 threads and uses 1"):
        load(tiny_export, "onnxruntime")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_size_that_the_file_was_not_made_for_is_refused(tiny_export, runtime):
    with pytest.raises(EngineMismatch, match="96, 96"):
        load(tiny_export, runtime, size=96)


@pytest.mark.parametrize(
    ("which", "changes", "said"),
    [
        ("inputs", {"shape": (1, 3, SIZE, SIZE)}, "takes images as float32 .1, 3"),
        ("outputs", {"shape": (1, CLASSES)}, "gives scores as float32 .1, 10"),
        ("outputs", {"dtype": "float16"}, "gives scores as float16"),
        ("inputs", {"name": "pixels"}, "takes no images, only pixels"),
    ],
)
def test_tensors_read_back_otherwise_are_refused(tiny_export, monkeypatch, which, changes, said):
    from vitrail.runtimes import openvino

    real = openvino._facts

    def otherwise(*arguments):
        facts = real(*arguments)
        (graph,) = facts.graphs
        (spec,) = getattr(graph, which)
        return replace(facts, graphs=(replace(graph, **{which: (replace(spec, **changes),)}),))

    monkeypatch.setattr(openvino, "_facts", otherwise)
    with pytest.raises(EngineMismatch, match=said):
        load(tiny_export, "openvino")


# --- what a user can get wrong --------------------------------------------------------------------


def test_unknown_runtime_and_precision_name_the_choices(tiny_export):
    asked = {"sizes": {"B": 2}, "threads": 2}
    with pytest.raises(InputError, match=r"'tensorlight'.*openvino, onnxruntime, .*executorch, .*pytorch"):
        runtimes.load(
            tiny_export, graph_of("model.xml"), Target(runtime="tensorlight", precision="fp32"), **asked
        )
    with pytest.raises(InputError, match="ONNX Runtime has no bf16 here: choose fp32 or int8"):
        load(tiny_export, "onnxruntime", "bf16")
    with pytest.raises(InputError, match="OpenVINO has no fp16 here: choose fp32 or bf16 or int8"):
        load(tiny_export, "openvino", "fp16")
    with pytest.raises(InputError, match="OpenVINO has no cuda here: choose cpu"):
        load(tiny_export, "openvino", device="cuda")


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_an_engine_that_is_not_installed_names_its_install_line(tiny_export, monkeypatch, runtime):
    from importlib import metadata

    # Of another platform it would be refused for that first.
    monkeypatch.setitem(RUNTIMES, runtime, replace(RUNTIMES[runtime], platforms=()))
    missing, real, here_now = RUNTIMES[runtime].distribution, metadata.version, set(runtimes.installed())
    device, (precision, *_) = next(iter(RUNTIMES[runtime].precisions.items()))

    def version(name: str) -> str:
        if name == missing:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert runtime not in runtimes.installed()
    rest = {name for name in here_now if RUNTIMES[name].distribution != missing}
    assert set(runtimes.installed()) == rest
    with pytest.raises(MissingExtraError, match=r"is not installed: run `.*pip install ") as raised:
        load(tiny_export, runtime, precision, device=device)
    assert raised.value.install == here(RUNTIMES[runtime].install)


@pytest.mark.parametrize(
    ("runtime", "file"),
    [
        ("openvino", "openvino/model.xml"),
        ("openvino", "openvino/model.bin"),
        ("onnxruntime", "model.onnx"),
        ("pytorch", "reference.json"),
    ],
)
@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "missing"])
def test_damaged_files_are_one_sentence(copied, runtime, file, damage):
    path = copied / file
    if damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut short": whole[: len(whole) // 2], "empty": b"", "text": b"hello\n"}[damage])
    with pytest.raises(InputError, match=r"cannot read .*: export it again") as raised:
        load(copied, runtime)
    assert "\n" not in str(raised.value)


def test_a_setting_that_openvino_does_not_know_is_named(tiny_export):
    with pytest.raises(InputError, match=r"NOPE.*check the settings"):
        load(tiny_export, "openvino", settings={"NOPE": "1"})


@pytest.mark.parametrize(
    ("runtime", "images_each", "threads", "streams"),
    [
        ("openvino", "1", 2, 2),
        ("openvino", "3", 2, 2),
        ("openvino", "2", 1, 1),
        ("onnxruntime", "1", 2, 2),
        ("onnxruntime", "3", 3, 2),  # one thread of the session helps both callers
        ("onnxruntime", "2", 1, 1),
    ],
)
def test_a_batch_in_several_requests_gives_the_same(tiny_export, runtime, images_each, threads, streams):
    given = images(7, 6)
    whole = load(tiny_export, runtime, batch=6, threads=threads)
    parts = load(tiny_export, runtime, batch=6, threads=threads, settings={"images_per_request": images_each})
    assert replace(parts.facts, details=()) == replace(whole.facts, details=())
    requests = 6 // int(images_each)
    said = f"{requests} of {images_each} images, {streams} at a time"
    assert dict(parts.facts.details)["requests"] == said
    assert "requests" not in dict(whole.facts.details)
    for _ in range(
        3
    ):  # a request whose input was freed, or that was read too early, shows in some of the calls
        assert parts.run(given)["scores"] == pytest.approx(whole.run(given)["scores"], rel=1e-5, abs=1e-6)
    first = parts.run(given)["scores"]
    parts.run(images(8, 6))
    assert np.array_equal(first, parts.run(given)["scores"])
    parts.close()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_threads_run_single_images_at_the_same_time(tiny_export, runtime):
    given = images(7, 40)
    expected = load(tiny_export, runtime, batch=40).run(given)["scores"]
    runner = load(tiny_export, runtime, batch=2, threads=2, settings={"images_per_request": "1"})
    assert isinstance(runner, runtimes.Lanes)
    assert runner.lanes == 2
    found = np.empty_like(expected)

    def work(lane):
        for k in range(lane, 40, 2):
            row = {name: values[k : k + 1] for name, values in given.items()}
            found[k : k + 1] = runner.run_lane(lane, row)["scores"]

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, lane) for lane in range(2)]:
            done.result()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert load(tiny_export, runtime, batch=6, threads=2, settings={"images_per_request": "3"}).lanes == 1
    assert load(tiny_export, runtime, batch=6, threads=2).lanes == 1


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("asked", ["0", "4", "12", "-1", "two", "\u00b2"])
def test_requests_that_do_not_divide_the_batch_are_refused(tiny_export, runtime, asked):
    with pytest.raises(InputError, match="for a batch of 6: give a number that divides 6"):
        load(tiny_export, runtime, batch=6, settings={"images_per_request": asked})


def test_a_graph_with_a_tensor_that_has_no_batch_is_not_divided(tiny_export):
    graph = graph_of("model.onnx")
    (scores,) = graph.outputs
    graph = replace(graph, outputs=(replace(scores, shape=(2, CLASSES)),))
    with pytest.raises(InputError, match="has tensors without a batch"):
        runtimes.load(
            tiny_export,
            graph,
            Target(runtime="onnxruntime", precision="fp32"),
            sizes={"B": 2},
            threads=2,
            settings={"images_per_request": "1"},
        )


def test_a_file_says_by_itself_whether_it_is_int8(tiny_export):
    graph, asked = graph_of("model.onnx"), {"sizes": {"B": 1}, "threads": 1}
    with pytest.raises(EngineMismatch, match=r"asked for int8, and model\.onnx is fp32"):
        runtimes.load(tiny_export, graph, Target(runtime="onnxruntime", precision="int8"), **asked)
    with pytest.raises(EngineMismatch, match=r"asked for fp32, and model\.onnx is int8"):
        runtimes.load(quantised(tiny_export), graph, Target(runtime="onnxruntime", precision="fp32"), **asked)
    with pytest.raises(EngineMismatch, match="runs no operation in int8: quantise it again"):
        runtimes.load(
            tiny_export / "openvino",
            graph_of("model.xml"),
            Target(runtime="openvino", precision="int8"),
            **asked,
        )
