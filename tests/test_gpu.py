"""`--device cuda` where there is no GPU: what is asked of the driver, refused, and measured again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import engines
import exports
import fake_nvml
import numpy as np
import pynvml
import pytest
import selections
import torch
from simulated import Machine, SimulatedSession, SimulatedSubject
from torch import nn

from vitrail import gpu, hardware, runtimes
from vitrail.cli import main
from vitrail.cli.doctor import doctor_document
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import exports as exports_module
from vitrail.export import reference
from vitrail.export.variants import variants
from vitrail.measure import peaks
from vitrail.measure.latency import Plan, screen
from vitrail.measure.session import ExportSession
from vitrail.replay import judge_recorded
from vitrail.requirements import resolve
from vitrail.runtimes import RUNTIMES, EngineMismatch, onnxruntime_cuda
from vitrail.selection import optimise
from vitrail.vocabulary import (
    Graph,
    Requirements,
    RunnerFacts,
    SearchSettings,
    Target,
    TensorSpec,
    Variant,
    Workload,
)

# --- what the driver says -------------------------------------------------------------------------


def test_the_binding_has_all_that_is_asked_of_it(monkeypatch):
    """The stand-in answers nothing that NVML's own binding does not have, by the same names."""
    real = set(dir(pynvml))
    fake_nvml.install(monkeypatch)
    asked = {name for name in dir(sys.modules["pynvml"]) if not name.startswith("__")}
    assert asked <= real, asked - real
    for bit in gpu.HELD_BACK:
        assert any(
            getattr(pynvml, name) == bit for name in real if name.startswith("nvmlClocksThrottleReason")
        )


def test_a_card_is_what_its_driver_says(monkeypatch):
    fake_nvml.install(monkeypatch, fake_nvml.gpu(), fake_nvml.gpu("NVIDIA L4", power_limit=None))
    assert gpu.count() == 2
    first, second = gpu.card("cuda"), gpu.card("cuda:1")
    assert (first.name, first.capability, first.driver) == ("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
    assert (first.memory_mib, first.power_limit_w, first.clock_mhz) == (81559, 700.0, 1980)
    assert (second.name, second.power_limit_w) == ("NVIDIA L4", None)


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["B"]), ("1,0", ["B", "A"]), ("GPU-b", ["B"]), ("0,7,1", ["A"]), ("", []), ("GPU-x", [])],
)
def test_cards_are_numbered_as_cuda_shows_them(monkeypatch, visible, names):
    fake_nvml.install(monkeypatch, fake_nvml.gpu("A", uuid="GPU-a1"), fake_nvml.gpu("B", uuid="GPU-b2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.card(f"cuda:{n}").name for n in range(gpu.count())] == names


def test_what_holds_clocks_back_and_who_else_computes(monkeypatch):
    busy = [fake_nvml.process(), fake_nvml.process(10**8), fake_nvml.process(10**8 + 1)]
    fake_nvml.install(monkeypatch, fake_nvml.gpu(reasons=0x4 | 0x20 | 0x40 | 0x1, processes=busy))
    seen = gpu.reading("cuda")
    assert seen.held_back == ("the power cap", "heat")
    assert seen.others == 2
    # Rivals that the same parent started are no others: they wait while this one is timed.
    rivals = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        pids = [rival.pid for rival in rivals]
        here = f"{pids} + [os.getpid()]"
        # Numbers that no process of this machine has.
        code = (
            f"{SIBLING}; print(seen({here}), seen({here} + [10**8]), seen(range(10**8, 10**8 + 999)) > 900)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        # In a container the driver names processes by other numbers: as many as are ours are taken off.
        assert done.stdout.split() == ["0", "1", "True"]
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()


def test_memory_is_this_processs_where_the_driver_says_so(monkeypatch):
    fake_nvml.install(
        monkeypatch, fake_nvml.gpu(processes=[fake_nvml.process(mib=300), fake_nvml.process(9)])
    )
    assert gpu.memory_mib("cuda") == (300, True)
    assert runtimes.memory(Target(runtime="onnxruntime-cuda", precision="fp32", device="cuda")) == (300, 300)
    fake_nvml.install(monkeypatch, fake_nvml.gpu(used=700, processes=[fake_nvml.process(mib=None)]))
    assert gpu.memory_mib("cuda") == (700, False)


def test_unlike_cards_need_one_order(monkeypatch):
    fake_nvml.install(monkeypatch, fake_nvml.gpu("A"), fake_nvml.gpu("B"))
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    with pytest.raises(InputError, match=r"unlike GPUs .A, B.*set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        gpu.card("cuda:1")
    fake_nvml.install(monkeypatch, fake_nvml.gpu("A"), fake_nvml.gpu("A"))
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    assert gpu.card("cuda:1").name == "A"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7a")
    with pytest.raises(InputError, match="names a share of a GPU"):
        gpu.card("cuda")


def test_a_card_is_part_of_the_machines_fingerprint(monkeypatch):
    def print_of(**changes):
        fake_nvml.install(monkeypatch, fake_nvml.gpu(), driver=changes.pop("driver", "580.65.06"))
        fake = sys.modules["pynvml"]
        for name, value in changes.items():
            monkeypatch.setattr(fake, name, value)
        return hardware.fingerprint(hardware.facts(device="cuda"))

    first = print_of()
    assert first == print_of()
    assert first != print_of(driver="585.1")
    assert first != print_of(nvmlDeviceGetEnforcedPowerLimit=lambda _: 350_000)
    assert first != hardware.fingerprint(hardware.facts())


SIBLING = "from vitrail.gpu import _others; import os; seen = lambda pids: _others({*pids})"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "error", "device", "said"),
    [
        ((), "Driver Not Loaded", "cuda", r"No NVIDIA driver answers .*Driver Not Loaded.*--device cpu"),
        ((), "", "cuda", "the driver shows no GPU: use --device cpu"),
        ((fake_nvml.gpu(),), "", "cuda:1", "There is no cuda:1 here: use cuda"),
        ((fake_nvml.gpu(),) * 4, "", "cuda:4", "There is no cuda:4 here: use cuda:0 to cuda:3"),
        (
            (fake_nvml.gpu(lost=True),),
            "",
            "cuda",
            "cuda was lost or does not answer .GPU is lost.*nvidia-smi",
        ),
        ((fake_nvml.gpu(mig=(1, 1)),), "", "cuda", "cuda is divided .MIG.*measure on a whole GPU"),
        (
            (fake_nvml.gpu(name=fake_nvml.NVMLError_NoPermission()),),
            "",
            "cuda",
            "This user may not read cuda",
        ),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch, cards, error, device, said):
    fake_nvml.install(monkeypatch, *cards, error=error)
    with pytest.raises(InputError, match=said):
        gpu.card(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:1:2", "CUDA", "cuda:12345"])
def test_a_device_has_one_way_to_be_written(device):
    with pytest.raises(InputError, match="use cpu, cuda or cuda:N"):
        resolve(flags={"device": device})
    with pytest.raises(InputError, match="use cpu, cuda or cuda:N"):
        gpu.number_of(device)


def test_doctor_describes_each_card(monkeypatch, capsys):
    fake_nvml.install(
        monkeypatch, fake_nvml.gpu(), fake_nvml.gpu("NVIDIA L4", power_limit=None, memory=23034)
    )
    assert [each["device"] for each in doctor_document(peaks=False)["cards"]] == ["cuda:0", "cuda:1"]
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    facts = "capability 9.0, driver 580.65.06"
    assert f"cuda:0       NVIDIA H100 80GB HBM3, {facts}, 79.6 GiB, capped at 700 W" in said
    assert f"cuda:1       NVIDIA L4, {facts}, 22.5 GiB\n" in said
    fake_nvml.install(monkeypatch, fake_nvml.gpu("Tesla V100-SXM2-16GB", capability=(7, 0)))
    assert main(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "TensorRT supports up to 10.4, CUDA up to 12.9 and drivers up to R580" in said
    fake_nvml.install(monkeypatch, error="Driver Not Loaded")
    assert doctor_document(peaks=False)["cards"] == []
    fake_nvml.install(monkeypatch, fake_nvml.gpu(), fake_nvml.gpu(lost=True))
    _, lost = doctor_document(peaks=False)["cards"]
    assert "lost" in lost["refused"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert doctor_document(peaks=False)["cards"] == []


@pytest.mark.parametrize(
    ("names", "seen"),
    [([], False), (["AMD GPU (renderD128)"], False), (["Apple GPU (Metal)"], False)]
    + [([name], True) for name in ("NVIDIA H200", "Tesla V100-SXM2-16GB", "NVIDIA GPU (renderD128)")],
)
def test_doctor_misses_what_takes_a_gpu_only_where_one_is_seen(monkeypatch, capsys, names, seen):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # so no card is described
    monkeypatch.setattr(hardware, "_gpus", lambda root: names)
    monkeypatch.setattr(hardware, "version_of", lambda engine: None)  # no engine is installed
    of_gpus = {"ONNX Runtime CUDA", "TensorRT", "TensorRT for RTX"}
    missing = {item["what"] for item in doctor_document(peaks=False)["missing"]}
    assert "OpenVINO" in missing
    assert missing & of_gpus == (of_gpus if seen else set())
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert ("uninstall" in said) == seen
    also = "(with an NVIDIA GPU also: ONNX Runtime CUDA, TensorRT, TensorRT for RTX)"
    assert (also in said) != seen


def test_without_the_binding_its_install_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        gpu.card("cuda")


def test_the_command_ends_with_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path):
    fake_nvml.install(monkeypatch, error="Driver Not Loaded")
    for command in (["select", "--max-latency", "50ms"], ["optimize", "resnet50.a1_in1k"]):
        assert main([*command, "--device", "cuda", "--out", str(tmp_path / "winner")]) == 2
        said = capsys.readouterr().err
        assert "No NVIDIA driver answers" in said
        assert "Traceback" not in said
        assert not list(tmp_path.iterdir())


def test_reading_gpus_starts_no_cuda_and_no_torch():
    code = "import vitrail.gpu, vitrail.hardware, sys; print('torch' in sys.modules, 'pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- engines on it --------------------------------------------------------------------------------


def graph(batch=None):
    found = engines.graph_of(32, 10)
    found = replace(found, entry="model.onnx")
    return found if batch is None else runtimes.sized(found, {"B": batch})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))
    exports.write(net.eval(), folder, 32, 10, openvino=False)
    return folder


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The runner of the CUDA provider with all that it does, on the CPU's."""
    place = onnxruntime_cuda.Place(provider="CPUExecutionProvider", device="cpu", number=0)
    target = Target(runtime="onnxruntime-cuda", precision="fp32", device="cuda")

    def opened(folder, **changes):
        where = replace(place, **changes)
        return onnxruntime_cuda.opened(folder / "model.onnx", graph(2), target, where, threads=1)

    return opened


def test_bound_tensors_give_the_scores_of_plain_ones(tiny, as_on_a_gpu):
    bound = as_on_a_gpu(tiny)
    plain = exports.load(tiny, "onnxruntime", batch=2, size=32, classes=10)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(3):
        images = rng.standard_normal((2, 3, 32, 32), dtype=np.float32)
        kept.append((bound.run({"images": images})["scores"], plain.run({"images": images})["scores"]))
    for found, expected in kept:  # an output that was not copied would be the last call's
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(kept[0][0], kept[1][0])
    assert bound.facts.graphs[0].inputs[0].shape == (2, 3, 32, 32)
    assert bound.facts.graphs[0].outputs[0].shape == (2, 10)
    assert bound.facts.device == "cuda"


def test_a_provider_that_cannot_be_loaded_is_refused(tiny, as_on_a_gpu):
    with pytest.raises(InputError, match=r"cannot load CUDAExecutionProvider.*cuDNN"):
        as_on_a_gpu(tiny, provider="CUDAExecutionProvider")
    target = Target(runtime="onnxruntime-cuda", precision="fp32", device="cuda")
    with pytest.raises(InputError, match=r"no CUDA provider.*onnxruntime-gpu"):
        onnxruntime_cuda.load(tiny / "model.onnx", graph(2), target, threads=1, settings={})


def test_a_part_that_runs_elsewhere_is_refused(tiny, as_on_a_gpu):
    bound = as_on_a_gpu(tiny)
    session = bound._session

    class Elsewhere:
        def __getattr__(self, name):
            return getattr(session, name)

        def get_provider_graph_assignment_info(self):
            parts = session.get_provider_graph_assignment_info()
            return [*parts, type("Part", (), {"ep_name": "Other", "get_nodes": lambda _: [1, 2]})()]

    place = onnxruntime_cuda.Place(provider="CPUExecutionProvider", device="cpu", number=0)
    target = Target(runtime="onnxruntime-cuda", precision="fp32", device="cuda")
    with pytest.raises(EngineMismatch, match=r"elsewhere than on cuda .*Other 2"):
        onnxruntime_cuda._facts(Elsewhere(), bound.facts.graphs[0], target, place, 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "too little memory left.*smaller batch"),
        ("Failed to allocate memory for requested buffer of size 1", "too little memory left"),
        ("CUDA failure 700: an illegal memory access was encountered", "lost in mid-run.*nvidia-smi"),
        ("something else\nand more", "refused on cuda: something else"),
    ],
)
def test_what_a_gpu_refuses_is_one_sentence(tiny, as_on_a_gpu, error, said):
    bound = as_on_a_gpu(tiny)

    class Refusing:
        def run_with_iobinding(self, _):
            raise RuntimeError(error)

    bound._session = Refusing()
    with pytest.raises(InputError, match=said):
        bound.run({"images": np.zeros((2, 3, 32, 32), np.float32)})


def test_tf32_is_asked_for_and_never_a_default():
    for precision, said in (("fp32", "0"), ("tf32", "1")):
        target = Target(runtime="onnxruntime-cuda", precision=precision, device="cuda:2")
        place = onnxruntime_cuda.place_of(target)
        assert (place.number, dict(place.options)["use_tf32"], dict(place.options)["device_id"]) == (
            2,
            said,
            "2",
        )


def test_a_gpu_without_an_engine_for_it_names_one(monkeypatch, capsys):
    fake_nvml.install(monkeypatch, fake_nvml.gpu())
    assert main(["select", "--max-latency", "50ms", "--device", "cuda"]) == 2
    assert "ONNX Runtime CUDA is not installed: run `pip uninstall" in capsys.readouterr().err
    assert main(["select", "--runtimes", "openvino", "--device", "cuda"]) == 2
    assert "OpenVINO does not run on cuda: measure it with --device cpu" in capsys.readouterr().err


def test_every_engine_names_the_devices_that_it_has(tiny):
    for runtime, device in (("openvino", "cuda"), ("onnxruntime", "cuda:1"), ("onnxruntime-cuda", "cpu")):
        target = Target(runtime=runtime, precision="fp32", device=device)
        with pytest.raises(InputError, match=f"has no {runtimes.kind_of(device)} here: choose"):
            runtimes.load(tiny, graph(), target, sizes={"B": 1}, threads=1)


def test_what_ships_on_a_gpu_and_what_is_measured_beside_it(monkeypatch):
    candidate = selections.candidate("resnet50.a1_in1k")
    here = dict.fromkeys(RUNTIMES, "1.0")
    monkeypatch.setattr(runtimes, "installed", lambda: here)
    monkeypatch.setattr(runtimes, "version", here.get)
    found = variants([candidate], Workload(device="cuda:0"), SearchSettings())
    assert {(v.runtime, v.precision) for v in found} >= {
        ("onnxruntime-cuda", "fp32"),
        ("onnxruntime-cuda", "fp16"),
    }
    assert all(RUNTIMES[v.runtime].on("cuda") for v in found)
    rows = optimise.rows(found, SearchSettings(), "cuda:0")
    assert {(v.runtime, v.precision) for v in rows} >= {
        ("pytorch", "fp32"), ("pytorch", "tf32"), ("pytorch-amp", "fp16"), ("pytorch-compiled", "tf32"),
    }  # fmt: skip
    assert not {v.runtime for v in rows} & {"openvino", "pytorch-aot"}
    assert all(RUNTIMES[v.runtime].on("cpu") for v in variants([candidate], Workload(), SearchSettings()))


# --- measuring on it ------------------------------------------------------------------------------


class Card(SimulatedSubject):
    """A GPU whose clocks are held back in some blocks of a launch, and shared in some."""

    held: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()

    def launch(self, number):
        super().launch(number)
        return CardSession(self, number)


class CardSession(SimulatedSession):
    def block(self, scope, calls):
        seen = super().block(scope, calls)
        words = ("heat",) if self.measured in self.subject.held else ()
        return replace(seen, held_back=words, others=int(self.measured in self.subject.shared))


def measured(**changes):
    machine = Machine()
    subject = Card(machine)
    for name, value in changes.items():
        setattr(subject, name, value)
    return screen(subject, Plan(limit_ms=50), clock=machine.clock)


def test_a_throttled_block_is_measured_once_more():
    plain, once = measured(), measured(held=(2,))
    assert plain.flags == once.flags == ()
    assert [bool(block.held_back) for block in once.blocks][:3] == [False, True, False]
    held, again = once.blocks[1:3]
    assert (held.scope, len(held.samples_ms)) == (again.scope, len(again.samples_ms))


def test_lasting_throttling_and_other_processes_are_flagged():
    (flag,) = measured(held=tuple(range(99))).flags
    assert flag.startswith("throttled: heat held the GPU's clocks back in ")
    (flag,) = measured(shared=tuple(range(99))).flags
    assert flag.startswith("noise: other processes computed on the GPU")


def test_figures_of_a_machine_that_is_gone_can_be_judged(tmp_path):
    """No driver is asked about a V100 whose figures somebody recorded."""
    path = tmp_path / "v100.json"
    rows = [{"model": "Swin-Base", "latency_ms": 12.0, "accuracy": 83.5}]
    path.write_text(json.dumps({"workload": {"device": "cuda", "batch_size": 32}, "variants": rows}))
    found = judge_recorded(path, Requirements(max_latency_ms=28.0), Workload(), SearchSettings())
    assert found.winner is not None
    assert (found.workload.device, found.workload.batch_size) == ("cuda", 32)


def test_no_bound_is_taken_from_a_product_that_leaves_a_gpu_idle(monkeypatch):
    monkeypatch.setattr(runtimes, "version", lambda _: "1.0")
    monkeypatch.setattr(peaks.sandbox, "Child", None)  # no process is begun
    assert peaks.peaks(1, "cuda:1") == {}


# --- PyTorch on it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
            "too little memory left.*batch",
        ),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "lost or refused.*nvidia-smi"),
    ],
)
def test_what_a_gpu_refuses_pytorch_is_one_sentence(error, said):
    def call(_):
        raise error

    spec = TensorSpec(name="images", shape=(1, 3, 8, 8))
    facts = RunnerFacts(
        runtime="pytorch", version="2", precision="fp32", threads=1,
        graphs=(Graph(inputs=(spec,), outputs=(spec,)),),
    )  # fmt: skip
    runner = reference.ModuleRunner(call, torch.float32, facts)
    with pytest.raises(InputError, match=said):
        runner.run({"images": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_pytorch_that_cannot_use_the_gpu_says_so(monkeypatch):
    """Also where the driver shows one: torch may be built without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"There is no cuda here, .*: use cpu"):
        reference.prepared(None, graph(2), "fp32", "cuda")


def test_tf32_of_pytorch_is_set_and_read_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for on in (True, False):
            reference.use_tf32(on)
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (on, on)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert [str(reference.place_of(name)) for name in ("cpu", "cuda", "cuda:3")] == [
        "cpu",
        "cuda:0",
        "cuda:3",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", RUNTIMES["pytorch"].on("cuda"))
def test_pytorch_answers_on_a_gpu_as_on_the_cpu(tmp_path, precision):
    request = {
        "architecture": "vit_tiny_patch16_224", "implementation": "vitrail", "labels": "imagenet-1k",
        "weights": None, "threads": 1, "image_size": 64, "folder": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "reference.json").write_text(json.dumps(request))
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    found = {}
    for device, asked in (("cpu", "fp32"), ("cuda", precision)):
        runner = runtimes.load(
            tmp_path, replace(engines.graph_of(64, 1000), entry="reference.json"),
            Target(runtime="pytorch", precision=asked, device=device), sizes={"B": 2}, threads=1,
        )  # fmt: skip
        assert runner.facts.device == device
        found[device] = runner.run({"images": images})["scores"]
    far = np.linalg.norm(found["cuda"] - found["cpu"]) / np.linalg.norm(found["cpu"])
    assert far < {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2, "fp16": 5e-3}[precision]
    assert precision == "fp32" or far > 1e-6


def test_graphs_of_other_photos_or_builders_have_figures_of_their_own(monkeypatch):
    candidate = selections.candidate("resnet50.a1_in1k")

    def key_of(runtime, precision, photos=("a",)):
        monkeypatch.setattr(exports_module, "digest_of", lambda paths: " ".join(paths))
        made = exports_module.Exports.__new__(exports_module.Exports)
        made._ranges_of = list(photos)
        return made.built_key(
            Variant(candidate=candidate, image_size=224, runtime=runtime, precision=precision)
        )

    assert key_of("tensorrt", "fp16") != key_of("tensorrt", "fp16", ("b",))
    assert key_of("onnxruntime-cuda", "fp16") == key_of("onnxruntime-cuda", "fp16")
    assert key_of("onnxruntime-cuda", "fp32") == key_of("openvino", "bf16") == {}
    monkeypatch.setattr(runtimes, "building", lambda name: f"{name} 2")
    assert key_of("litert", "fp32") == {"builder": "litert 2"}


def test_memory_of_a_gpu_that_tells_no_processes_is_what_loading_took(monkeypatch):
    """In finals the rivals are loaded too: what is in use by then is not this one's."""
    used = iter([(1000.0, False), (1400.0, False), (2600.0, False), (2600.0, False)])
    monkeypatch.setattr(gpu, "memory_mib", lambda _: next(used))
    session = ExportSession.__new__(ExportSession)
    target = Target(runtime="onnxruntime-cuda", precision="fp32", device="cuda")
    session._request = SimpleNamespace(target=target, clients=1)
    session._predictor = SimpleNamespace(request=lambda _: None)
    session._runner, session._inputs, session._photos = SimpleNamespace(run=lambda _: None), {}, list
    _, session._baseline = runtimes.memory(target)
    session.warm_up(0.0, 1)
    found = session.memory()
    assert found["peak"] == found["steady"] == found["above_baseline"] == 400.0
    assert found["process"] > 1
