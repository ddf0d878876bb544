"""TensorRT 11 without a GPU: which calls are made, what is kept, and what is refused, by a stand-in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import artifacts
import fake_nvml
import fake_tensorrt
import msgspec
import numpy as np
import onnx
import pytest
from int8_toys import convolutions, photos, weights
from test_compiled import NoWeights
from test_typed import run

from vitrail import cards, hardware, runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import work
from vitrail.export.exports import MOST_MEASURED, Exports
from vitrail.export.passes.islands import islands
from vitrail.export.passes.quantize import quantize, symmetric
from vitrail.export.passes.typed import check, half
from vitrail.export.requests import BuildRequest
from vitrail.export.variants import variants
from vitrail.images.photos import sample_photos
from vitrail.report import phrases
from vitrail.runtimes import RUNTIMES, EngineMismatch
from vitrail.runtimes.tensorrt import check_layers, layers
from vitrail.runtimes.tensorrt_plan import FACTS, PLAN, Plan
from vitrail.vocabulary import (
    Graph,
    Rewriting,
    SearchSettings,
    Target,
    TensorSpec,
    Variant,
    Workload,
)

NAME = "tensorrt"
IMAGES = weights(50, 2, 3, 8, 8)
GRAPH = Graph(
    entry="model.onnx",
    inputs=(TensorSpec(name="images", shape=("B", 3, 8, 8)),),
    outputs=(TensorSpec(name="scores", shape=("B", 5)),),
)


@pytest.fixture
def world(monkeypatch, tmp_path) -> fake_tensorrt.World:
    """A machine with an H100 and TensorRT 11, and an empty cache."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    real = runtimes.version
    monkeypatch.setattr(runtimes, "version", lambda name: "11.4.0.106" if name == NAME else real(name))
    fake_nvml.install(monkeypatch, fake_nvml.gpu(), fake_nvml.gpu("NVIDIA L4", capability=(8, 9)))
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    """An export, in each precision's types."""
    place = tmp_path / "export"
    for precision, model in {
        "fp32": convolutions(),
        "tf32": convolutions(),
        "fp16": half(convolutions()),
    }.items():
        (place / precision).mkdir(parents=True)
        onnx.save(model, place / precision / "model.onnx")
    return place


def load(folder: Path, precision: str = "fp16", *, batch: int = 2, device: str = "cuda") -> runtimes.Runner:
    target = Target(runtime=NAME, precision=precision, device=device)
    return runtimes.load(folder / precision, GRAPH, target, sizes={"B": batch}, threads=2)


def plans(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache" / NAME).glob(f"*/{PLAN}"))


# --- what is built --------------------------------------------------------------------------------


def test_arrays_go_in_and_out_through_the_gpu(world, folder) -> None:
    runner = load(folder)
    first = runner.run({"images": IMAGES})["scores"]
    np.testing.assert_allclose(first, run(half(convolutions()), IMAGES), rtol=2e-3, atol=2e-3)
    assert world.copies == ["in", "execute", "out", "wait"], "a call ends when all is computed and copied"
    kept = first.copy()
    runner.run({"images": -IMAGES})
    np.testing.assert_array_equal(first, kept, "an output is memory that the next call writes to")
    assert world.memory
    runner.close()
    assert not world.memory, "memory was not given back"


def test_facts_are_read_back_from_the_engine(world, folder) -> None:
    facts = load(folder, device="cuda:1").facts
    assert (facts.runtime, facts.version, facts.device) == (NAME, "11.4.0.106", "cuda:1")
    assert facts.graphs[0].inputs == (TensorSpec(name="images", shape=(2, 3, 8, 8)),)
    assert facts.graphs[0].outputs == (TensorSpec(name="scores", shape=(2, 5)),)
    said = dict(facts.details)
    assert said["layers"] == "fp16:1 fp32:1"
    assert said["GPU"] == "NVIDIA L4, driver 580.65.06"
    assert said["plan"].startswith("built here in ")
    assert world.named("cudaSetDevice") == [("cudaSetDevice", 1)]


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("tf32", True), ("fp16", False)])
def test_the_network_is_typed_and_tf32_is_set_either_way(world, folder, precision, on) -> None:
    runner = load(folder, precision)
    assert world.named("create_network") == [("create_network", 1)], "1 << STRONGLY_TYPED"
    ((_, config, network),) = world.named("build")
    assert (fake_tensorrt.BuilderFlag.TF32 in config.flags) is on
    assert config.flags <= {fake_tensorrt.BuilderFlag.TF32}
    assert config.profiling_verbosity == fake_tensorrt.ProfilingVerbosity.DETAILED
    assert network.get_input(0).shape == (2, 3, 8, 8), "the plan is for one batch"
    assert dict(runner.facts.details)["TF32"] == ("on" if on else "off")


def test_tf32_that_stays_on_is_no_fp32(world, folder) -> None:
    world.refuses.add("clear")
    with pytest.raises(EngineMismatch, match="asked for TF32 off and keeps it otherwise"):
        load(folder, "fp32")


def test_a_plan_is_built_once_for_gpu_driver_version_batch_and_graph(world, folder, tmp_path, monkeypatch):
    load(folder).close()
    load(folder).close()
    assert len(world.named("build")) == 1
    load(folder, batch=3)
    load(folder, device="cuda:1")
    fake_nvml.install(monkeypatch, fake_nvml.gpu(), driver="590.10")
    load(folder)
    sys.modules["tensorrt"].__version__ = "11.5.0"
    load(folder)
    onnx.save(half(convolutions(), kept=["head"]), folder / "fp16" / "model.onnx")
    load(folder)
    assert len(world.named("build")) == len(plans(tmp_path)) == 6
    bounds = {str(msgspec.json.decode((p / FACTS).read_bytes(), type=Plan).bound) for p in plans(tmp_path)}
    assert "NVIDIA H100 80GB HBM3 (9.0) with driver 580.65.06 and TensorRT 11.4.0.106" in bounds
    assert "NVIDIA H100 80GB HBM3 (9.0) with driver 590.10 and TensorRT 11.5.0" in bounds


def test_measured_speeds_of_kernels_are_kept_for_the_next_plan(world, folder, tmp_path) -> None:
    load(folder)
    load(folder, batch=3)
    assert world.timing_caches == [b"", b"timed"]
    (kept,) = (tmp_path / "cache" / NAME).glob("timings-*.bin")
    assert kept.read_bytes() == b"timedtimed"
    world.refuses.add("timings")  # of another GPU, says TensorRT
    load(folder, batch=4)
    assert world.timing_caches[2:] == [b"timedtimed", b""]


# --- what is refused ------------------------------------------------------------------------------


def test_a_plan_that_is_not_ours_is_never_loaded(world, folder, tmp_path) -> None:
    load(folder).close()
    (place,) = plans(tmp_path)
    loaded = len(world.named("deserialize"))
    plan = (place / PLAN).read_bytes()
    (place / PLAN).write_bytes(plan + b"x")
    with pytest.raises(
        InputError, match=r"is not the plan that was built there .* remove .*, and it is built"
    ):
        load(folder)
    (place / PLAN).unlink()
    with pytest.raises(InputError, match="its digest differs"):
        load(folder)
    (place / PLAN).write_bytes(plan)
    facts = msgspec.json.decode((place / FACTS).read_bytes(), type=Plan)
    other = msgspec.structs.replace(facts.bound, gpu="NVIDIA A100", tensorrt="11.2.0")
    (place / FACTS).write_bytes(msgspec.json.encode(msgspec.structs.replace(facts, bound=other)))
    with pytest.raises(
        InputError, match=r"was built for NVIDIA A100 .*TensorRT 11.2.0, and this is NVIDIA H100"
    ):
        load(folder)
    (place / FACTS).write_bytes(b"{")
    with pytest.raises(InputError, match=r"plan.json is damaged \(DecodeError\): remove"):
        load(folder)
    assert len(world.named("deserialize")) == loaded
    assert not world.memory, "a refused plan keeps memory"


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("parse", r"cannot read model.onnx: no importer \(node odd, Odd\); export it again"),
        ("build", r"cannot build model.onnx \(no tactic\): use another engine"),
        ("deserialize", r"cannot load its plan \(of another world\): remove .*, and load it again"),
        ("context", r"too little memory left on cuda"),
        ("memory", r"cuda has too little memory left \(cudaErrorMemoryAllocation\): end what else"),
    ],
)
def test_what_fails_is_one_sentence_and_leaves_nothing(world, folder, tmp_path, refused, said) -> None:
    world.refuses.add(refused)
    with pytest.raises(InputError, match=said) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    assert not world.memory
    assert len(plans(tmp_path)) == (0 if refused in ("parse", "build") else 1)


def test_a_call_that_the_gpu_refuses(world, folder) -> None:
    runner = load(folder)
    world.refuses.add("execute")
    with pytest.raises(InputError, match="refused to run on cuda: see `nvidia-smi`"):
        runner.run({"images": IMAGES})


def test_another_precision_than_asked_for_is_a_mismatch(world, folder) -> None:
    """What old code meets in TensorRT 11: `fp16=True` builds an fp32 engine without a word."""
    onnx.save(convolutions(), folder / "fp16" / "model.onnx")
    with pytest.raises(EngineMismatch, match="asked for fp16 and runs no layer in it"):
        load(folder, "fp16")
    onnx.save(half(convolutions()), folder / "fp32" / "model.onnx")
    with pytest.raises(EngineMismatch, match="asked for fp32 and runs 1 layers in a lower precision"):
        load(folder, "fp32")


def test_layers_count_by_the_narrowest_type_they_touch() -> None:
    def layer(inputs: list[str], outputs: list[str], key: str = "DataType") -> dict:
        return {"Inputs": [{key: kind} for kind in inputs], "Outputs": [{key: kind} for kind in outputs]}

    said = [
        layer(["Float"], ["Float"]),
        layer(["Half", "Int8"], ["Half"]),
        layer(["Float"], ["Half"]),
        layer(["Int64"], ["Int64"]),
        layer(["Half"], ["Half"], "Format/Datatype"),
    ]
    found = layers(msgspec.json.encode({"Layers": said}).decode())
    assert found == {"fp32": 1, "int8": 1, "fp16": 2}
    check_layers(found, "int8")
    check_layers(found, "fp16")
    with pytest.raises(EngineMismatch, match="runs 3 layers in a lower precision"):
        check_layers(found, "tf32")
    with pytest.raises(EngineMismatch, match="does not tell its layers' types"):
        layers(msgspec.json.encode({"Layers": ["conv1", "conv2"]}).decode())


def test_what_is_not_there_is_said(world, folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match=r"cuda-bindings.* is not installed: run `.*tensorrt"):
        load(folder)
    sys.modules["tensorrt"].__version__ = "10.13.0"
    with pytest.raises(InputError, match=r"TensorRT 10.13.0 is older than 11: install TensorRT 11"):
        load(folder)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"TensorRT is not installed: run `.*\[tensorrt\]"):
        load(folder)
    fake_nvml.install(monkeypatch)
    with pytest.raises(InputError, match="There is no cuda here, the driver shows no GPU: use --device cpu"):
        load(folder)


def test_a_card_that_tensorrt_left_behind_is_told_what_it_has(world, folder, monkeypatch) -> None:
    fake_nvml.install(monkeypatch, fake_nvml.gpu("Tesla V100-SXM2-16GB", capability=(7, 0)))
    with pytest.raises(InputError, match=r"Tesla V100.*Volta generation, which TensorRT supports up to 10.4"):
        load(folder)
    assert not world.calls or world.named("build") == []


# --- its rows, and how its graphs are made --------------------------------------------------------


def test_both_are_measured_on_gpus_where_they_are_named_and_fp16_is_no_cpus(monkeypatch) -> None:
    there = {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"}
    monkeypatch.setattr(runtimes, "version", lambda name: "1" if name in there else None)
    candidate = artifacts.make_variant().candidate
    gpu = Workload(device="cuda")
    named = SearchSettings(runtimes=("tensorrt", "tensorrt-rtx"))
    found = variants([candidate], gpu, named, int8=True)
    assert {(each.runtime, each.precision) for each in found} == {
        *(("tensorrt", each) for each in ("fp32", "tf32", "fp16", "int8")),
        *(("tensorrt-rtx", each) for each in ("tf32", "fp16", "int8")),
    }
    with pytest.raises(InputError, match="No installed runtime offers fp16"):
        variants([candidate], Workload(), SearchSettings(precisions=("fp16",)))
    with pytest.raises(InputError, match="TensorRT has no cpu here: choose cuda"):
        runtimes.load(Path(), GRAPH, Target(runtime=NAME, precision="fp16"), sizes={"B": 1}, threads=1)
    assert all(RUNTIMES[name].named_only for name in named.runtimes)
    assert hardware.engines({NAME: RUNTIMES[NAME]})[NAME]["label"] == "TensorRT"


class Kept(Exports):
    """Exports whose graph is there already."""

    def __init__(self, folder: Path, photos: tuple[str, ...] = ()) -> None:
        self.asked: list[BuildRequest] = []
        super().__init__(NoWeights(), 1, SimpleNamespace(run=self._run), photos=photos)
        self._folder = folder

    def _run(self, job: str, request: BuildRequest, **_: object) -> None:
        self.asked.append(request)
        work.build(msgspec.to_builtins(request))

    def _export_folder(self, variant: Variant) -> Path:
        return self._folder


def test_a_typed_graph_is_an_export_of_its_own(tiny_export, monkeypatch, tmp_path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_export, tmp_path / "copied"))
    exports = Kept(folder)
    variant = replace(artifacts.make_variant(), runtime=NAME, precision="fp16", image_size=64)
    export = exports.export(variant, 60.0)
    assert export.files == ("model.onnx",)
    model = onnx.load(Path(export.folder) / "model.onnx")
    assert check(model, "fp16") == ()
    assert Path(export.folder).parent == folder
    assert (exports.asked[0].typed, exports.asked[0].measured) == ("fp16", None)
    assert exports.export(variant, 60.0) == export
    assert len(exports.asked) == 1
    assert exports.exported(variant)
    for precision in ("fp32", "tf32"):
        assert exports.export(replace(variant, precision=precision), 60.0).folder == str(folder)
    others = [replace(variant, runtime=name, precision="fp32") for name in ("onnxruntime", "openvino")]
    assert [exports.export(each, 60.0).files[0] for each in others] == ["model.onnx", "model.xml"]
    assert len(exports.asked) == 1
    measured = Kept(folder, sample_photos().paths)
    assert measured.export(variant, 60.0).folder != export.folder
    assert len(measured.asked[0].measured.photos) == MOST_MEASURED
    rewriting = measured.export(variant, 60.0).rewriting
    assert rewriting is not None
    assert set(rewriting.kept) <= {node.name for node in model.graph.node}


def test_islands_that_photos_gave_are_in_the_record(tmp_path) -> None:
    kept = Rewriting(kept=("square", "root"))
    assert phrases.rewritten(kept) == [("fp16", "2 nodes kept in fp32")]


def test_int8_for_it_is_symmetric_with_float16_around(world, folder) -> None:
    pytest.importorskip("nncf")
    int8 = symmetric(quantize(convolutions(), photos((3, 8, 8))))
    (folder / "int8").mkdir()
    onnx.save(half(int8, kept=islands(int8, photos((3, 8, 8)))), folder / "int8" / "model.onnx")
    runner = load(folder, "int8")
    assert dict(runner.facts.details)["layers"] == "fp16:1 fp32:1 int8:1"


# --- cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "generation", "tensorrt", "driver"),
    [
        ("7.0", "Volta", "10.4", "R580"),
        ("Tesla V100-SXM2-16GB", "Volta", "10.4", "R580"),
        ("NVIDIA TITAN V", "Volta", "10.4", "R580"),
        ("6.1", "Pascal", "8.6", "R580"),
        ("NVIDIA GeForce GTX 1080 Ti", "Pascal", "8.6", "R580"),
        ("Tesla P100-PCIE-16GB", "Pascal", "8.6", "R580"),
        ("Quadro P4000", "Pascal", "8.6", "R580"),
        ("5.2", "Maxwell", "8.6", "R580"),
        ("Tesla M60", "Maxwell", "8.6", "R580"),
        ("NVIDIA GeForce GTX TITAN X", "Maxwell", "8.6", "R580"),
        ("Tesla K80", "Kepler", "8.5", "R470"),
        ("Tesla K20Xm", "Kepler", "8.5", "R470"),
        ("3.0", "Kepler", "8.5", "R470"),
        ("2.1", "Kepler", "8.5", "R470"),
    ],
)
def test_cards_left_behind(card, generation, tensorrt, driver) -> None:
    said = cards.unsupported(card)
    assert said is not None
    assert said.startswith(
        f"{card} is of the {generation} generation, which TensorRT supports up to {tensorrt},"
    )
    assert driver in said
    assert said.endswith("newer GPU.")


@pytest.mark.parametrize(
    "card",
    [
        *("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1"),
        *(
            "Tesla T4",
            "NVIDIA L4",
            "NVIDIA L40S",
            "NVIDIA A10",
            "NVIDIA A100-SXM4-80GB",
            "NVIDIA H100 80GB HBM3",
        ),
        *(
            "NVIDIA GeForce GTX 1650",
            "NVIDIA GeForce RTX 2080 Ti",
            "NVIDIA GeForce RTX 3070",
            "NVIDIA TITAN RTX",
        ),
        *(
            "NVIDIA GeForce RTX 5090",
            "Quadro RTX 4000",
            "NVIDIA RTX A4000",
            "NVIDIA B200",
            "Quadro T1000",
            "",
        ),
    ],
)
def test_cards_that_are_supported(card) -> None:
    assert cards.unsupported(card) is None


def test_a_capability_is_of_one_generation() -> None:
    capabilities = [each for row in cards.ARCHITECTURES for each in row.capabilities]
    assert len(capabilities) == len(set(capabilities))


def test_a_plan_whose_types_are_not_told_shows_no_precision():
    """Nothing that is counted is nothing that was seen: fp32 would otherwise pass unread."""
    import json

    from vitrail.runtimes.tensorrt import check_layers, layers

    for precision in ("fp32", "tf32", "fp16", "int8"):
        with pytest.raises(EngineMismatch, match="does not tell its layers' types"):
            check_layers({}, precision)
    said = {"Layers": [{"Inputs": [{"Format/Datatype": "Row major linear FP16"}], "Outputs": []}]}
    assert layers(json.dumps(said)) == {"fp16": 1}
