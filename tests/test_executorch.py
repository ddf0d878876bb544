"""ExecuTorch with XNNPACK: against the modules, and what it refuses. Two minutes where it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import artifacts
import msgspec
import numpy as np
import pytest
import torch
from test_compiled import NoWeights, described, graph_of, labels_of, noise
from test_search import MODELS, WORKLOAD
from torch import nn

from vitrail import catalog, hardware, models, runtimes, tasks
from vitrail.errors import InputError
from vitrail.export import variants, work
from vitrail.export.exports import Exports
from vitrail.export.requests import BuildRequest, Form, QuantiseRequest
from vitrail.install import extras_of, here
from vitrail.measure import peaks
from vitrail.models import timm
from vitrail.report import phrases
from vitrail.runtimes import RUNTIMES, EngineMismatch
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import LedgerEntry, Memory, Observation, Preprocess, SearchSettings, Target

NAME, TARGET = "executorch", Target(runtime="executorch", precision="fp32")
ROW = RUNTIMES[NAME]
HERE = runtimes.version(NAME) is not None
needs = pytest.mark.skipif(
    not HERE,
    reason="executorch is not installed: with coremltools, pandas and torchao, which it asks for, it takes "
    f"290 MB, too much for the extra dev: {ROW.install}",
)


def form(batch: int = 2, precision: str = "fp32") -> Form:
    return Form(precision=precision, batch_size=batch, threads=0, settings={})


def load(
    folder: Path,
    *,
    size: int = 64,
    classes: int = 10,
    batch: int = 2,
    threads: int = 1,
    precision: str = "fp32",
):
    graph = graph_of(size, classes, ROW.entry)
    target = replace(TARGET, precision=precision)
    return runtimes.load(folder, graph, target, sizes={"B": batch}, threads=threads)


def randomised(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """Values in every tensor, norms and biases too; running variances stay positive."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += scale * torch.randn(value.shape, generator=generator).abs()
    return model.eval()


def tiny_cnn() -> nn.Module:
    return timm.build("test_efficientnet", image_size=64, classes=10, weights=None)


def our_swin() -> nn.Module:
    return models.build("swin_nano_patch2_window7_28", num_classes=10)


@pytest.fixture(scope="session")
def vit_program(tiny_export, tiny_weights, tmp_path_factory) -> Path:
    """The tiny ViT's program for two images, built as the exporter does."""
    folder = described(
        tmp_path_factory.mktemp("executorch"), "test_vit", 64, tiny_weights, labels_of(tiny_export)
    )
    target = folder / NAME
    request = {"folder": str(folder), "runtime": NAME, "target": str(target)}
    work.build({**request, "form": msgspec.to_builtins(form())})
    return target


# --- what it computes -----------------------------------------------------------------------------


@needs
@pytest.mark.slow
def test_a_vit_agrees_and_says_what_it_runs_on(vit_program, tiny_weights):
    runner = load(vit_program)
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    first = runner.run({"images": noise(64)})["scores"]
    kept = first.copy()
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    runner.run({"images": -noise(64)})
    np.testing.assert_array_equal(first, kept, "an output is the engine's own memory")
    facts = runner.facts
    assert (facts.runtime, facts.version, facts.threads) == (NAME, metadata.version(NAME), 1)
    said = dict(facts.details)
    assert said["process"] == "with PyTorch in it"
    assert said["XNNPACK runs"].endswith("parts")
    assert "native_layer_norm" in said["own kernels run"]
    assert facts.graphs[0].inputs[0].shape == (2, 3, 64, 64)
    assert facts.graphs[0].outputs[0].shape == (2, 10)
    runner.close()


@needs
@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [(tiny_cnn, 64), (our_swin, 28)])
def test_convolutions_and_windows_agree(tmp_path, make: Callable[[], nn.Module], size: int):
    from vitrail.export import executorch

    model = randomised(make())
    executorch.lower(model, noise(size), tmp_path, form())
    runner = load(tmp_path, size=size)
    images = np.random.default_rng(5).standard_normal((2, 3, size, size), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    scores = runner.run({"images": images})["scores"]
    assert np.abs(expected).max() > 1e-3
    assert np.linalg.norm(scores - expected) / np.linalg.norm(expected) < 1e-4
    runner.close()


@needs
@pytest.mark.slow
def test_threads_are_set_and_read_back_and_never_changed_under_an_open_program(vit_program):
    runner = load(vit_program, threads=2)
    assert runner.facts.threads == 2
    expected = runner.run({"images": noise(64)})["scores"]
    with pytest.raises(EngineMismatch, match="one number of threads for a process, and here it is 2, not 1"):
        load(vit_program, threads=1)
    runner.close()
    single = load(vit_program, threads=1)
    assert single.facts.threads == 1
    np.testing.assert_allclose(single.run({"images": noise(64)})["scores"], expected, rtol=1e-4, atol=1e-4)
    single.close()


@needs
@pytest.mark.slow
def test_a_process_that_only_runs_it_loads_torch_and_no_exporter(vit_program, tmp_path):
    code = (
        "import sys, numpy as np; from test_executorch_alone import load\n"
        "runner = load(sys.argv[1]); runner.run({'images': np.zeros((2, 3, 64, 64), np.float32)})\n"
        "print(sorted({'torch', 'timm', 'onnx', 'executorch.exir', 'torchao'} & set(sys.modules)))"
    )
    alone = (
        "from pathlib import Path\nfrom vitrail import runtimes\n"
        "from vitrail.tasks.classify import Classify\n"
        "from vitrail.vocabulary import Preprocess, Target\n"
        "def load(folder):\n"
        "    task = Classify(preprocess=Preprocess(image_size=64), labels=tuple('abcdefghij'))\n"
        "    target = Target(runtime='executorch', precision='fp32')\n"
        "    graph = task.graph('model.pte')\n"
        "    return runtimes.load(Path(folder), graph, target, sizes={'B': 2}, threads=1)\n"
    )
    (tmp_path / "test_executorch_alone.py").write_text(alone)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(vit_program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert done.stdout.strip() == "['torch']"
    assert done.stderr == "", "the runtime tells which files it looked at"


@needs
@pytest.mark.slow
def test_the_file_is_hardly_larger_than_its_weights(vit_program, tmp_path):
    from vitrail.export import executorch

    model = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 1000)).eval()
    executorch.lower(model, noise(64), tmp_path, form())
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert (tmp_path / ROW.entry).stat().st_size <= 1.05 * weights


# --- int8 -----------------------------------------------------------------------------------------


class Clamped(nn.Module):
    """A convolution and a linear layer that end in ReLU6, most of whose values lie far above 6."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.BatchNorm2d(64), nn.ReLU6(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(4096, 500), nn.ReLU6(), nn.Linear(500, 10))
        with torch.no_grad():
            self.body[0].weight *= 30
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


@pytest.fixture(scope="session")
def clamped(tmp_path_factory) -> tuple[nn.Module, list[np.ndarray], Path]:
    """A module, the inputs that calibrated its int8, and the program."""
    from vitrail.export import executorch

    model = Clamped()
    inputs = [np.random.default_rng(seed).standard_normal((2, 3, 64, 64), np.float32) for seed in range(12)]
    folder = tmp_path_factory.mktemp("int8")
    executorch.lower(model, inputs[0], folder, form(precision="int8"), 0.2, inputs)
    return model, inputs, folder


@needs
@pytest.mark.slow
def test_int8_is_near_the_module_and_says_what_it_holds(clamped):
    model, inputs, folder = clamped
    runner = load(folder, precision="int8")
    with torch.inference_mode():
        expected = np.stack([model(torch.from_numpy(each)).numpy() for each in inputs])
    given = np.stack([runner.run({"images": each})["scores"] for each in inputs])
    difference = np.linalg.norm(given - expected) / np.linalg.norm(expected)
    # Ranges behind the clamps give 0.017, before them 0.036.
    assert 1e-4 < difference < 0.025
    said = dict(runner.facts.details)
    layers = sum(value.numel() for name, value in model.named_parameters() if value.dim() > 1)
    assert said["weights"].startswith(f"int32:{64 + 500 + 10} int8:{layers}")
    assert runner.facts.precision == "int8"
    runner.close()
    assert (folder / ROW.entry).stat().st_size <= 1.05 * sum(each.numel() for each in model.parameters())


@needs
@pytest.mark.slow
def test_types_are_read_as_executorch_itself_reads_them(clamped, vit_program, tmp_path):
    from importlib import resources

    import executorch.backends.xnnpack.serialization as schemas
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize import _flatbuffer, _program

    from vitrail.export import pte

    schema = tmp_path / "schema.fbs"
    schema.write_bytes(resources.files(schemas).joinpath("schema.fbs").read_bytes())
    for folder in (clamped[2], vit_program):
        data = (folder / ROW.entry).read_bytes()
        tensors, weights, index = {}, {}, 0
        while (part := _program._extract_delegate_payload(data, "xnnpack", index)) is not None:
            header = XNNHeader.from_bytes(part[: XNNHeader.EXPECTED_LENGTH])
            (tmp_path / "schema.bin").write_bytes(part[header.flatbuffer_offset :][: header.flatbuffer_size])
            _flatbuffer._flatc_decompile(
                str(tmp_path), str(schema), str(tmp_path / "schema.bin"), ["--raw-binary"]
            )
            for value in json.loads((tmp_path / "schema.json").read_bytes())["xvalues"]:
                tensor = value["xvalue_union"]
                tensor = tensor.get("tensor_value", tensor)
                kind = pte.TYPES[getattr(schemas.xnnpack_graph_schema.XNNDatatype, tensor["datatype"]).value]
                tensors[kind] = tensors.get(kind, 0) + 1
                if tensor.get("constant_buffer_idx"):
                    weights[kind] = weights.get(kind, 0) + int(np.prod(tensor.get("dims", [])))
            index += 1
        assert index
        assert pte.read_stored(folder / ROW.entry) == pte.Stored(tensors=tensors, weights=weights)


@needs
@pytest.mark.slow
def test_a_program_of_another_precision_is_refused(clamped, vit_program, tmp_path, monkeypatch):
    from vitrail.export import executorch, pt2e

    model, inputs, folder = clamped
    with pytest.raises(
        EngineMismatch, match=r"model.pte is not in fp32: of its weights XNNPACK has 574 in int32"
    ):
        load(folder)
    with pytest.raises(EngineMismatch, match=r"model.pte is not in int8: .* in fp32. Export it again"):
        load(vit_program, precision="int8")
    asked = form(precision="int8")
    with pytest.raises(InputError, match=r"int8 needs photos to be calibrated on: give --images"):
        executorch.lower(model, inputs[0], tmp_path, asked)
    with pytest.raises(EngineMismatch, match="differs from the module by"):
        executorch.lower(nn.Sequential(nn.Conv2d(3, 10, 8)), inputs[0], tmp_path, asked, 1e-6, inputs)
    monkeypatch.setattr(pt2e, "quantised", lambda exported, photos: exported.module())
    with pytest.raises(EngineMismatch, match="is not in int8"):
        executorch.lower(nn.Sequential(nn.Conv2d(3, 10, 8)), inputs[0], tmp_path, asked, 1.0, inputs)


@needs
@pytest.mark.slow
def test_int8_of_a_vit_is_built_as_the_exporter_does(tiny_export, tiny_weights, tmp_path, coloured):
    folder = described(tmp_path, "test_vit", 64, tiny_weights, labels_of(tiny_export))
    task = Classify(preprocess=Preprocess(image_size=64), labels=tuple("abcdefghij"))
    quantise = QuantiseRequest(
        task=tasks.pack(task), photos=[str(each) for each in sorted(coloured.rglob("*.png"))[:10]], batch=2
    )
    target = folder / NAME
    request = {"folder": str(folder), "runtime": NAME, "target": str(target)}
    asked = {"form": form(precision="int8"), "quantise": quantise}
    work.build({**request, **{name: msgspec.to_builtins(each) for name, each in asked.items()}})
    runner = load(target, precision="int8")
    assert np.isfinite(runner.run({"images": noise(64)})["scores"]).all()
    runner.close()


def test_a_part_that_is_cut_off_is_damaged(tmp_path):
    from vitrail.export import pte

    file = tmp_path / "model.pte"
    file.write_bytes(b"weights with XH00 in the middle of them" * 100)
    assert pte.read_stored(file) == pte.Stored(tensors={}, weights={})
    head = bytes(4) + b"XH00" + (30).to_bytes(2, "little") + (32).to_bytes(4, "little")
    graph = (1000).to_bytes(4, "little") + b"XN01"
    file.write_bytes(head.ljust(32, b"\0") + graph)
    with pytest.raises(ValueError, match=r"a part of model.pte is damaged"):
        pte.read_stored(file)


# --- what a person can get wrong ------------------------------------------------------------------


@needs
@pytest.mark.slow
def test_a_program_of_another_batch_or_cut_off_is_one_sentence(vit_program, tmp_path):
    folder = Path(shutil.copytree(vit_program, tmp_path / "copied"))
    with pytest.raises(EngineMismatch, match=r"made for 2 at once, and 3 at once.*--batch-size 3"):
        load(folder, batch=3)
    with pytest.raises(EngineMismatch, match=r"takes images as float32 \(2, 3, 64, 64\), not the requested"):
        load(folder, size=32)
    whole = (folder / "model.pte").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK" * 500, bytes(64) + whole[64:]):
        (folder / "model.pte").write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read model.pte: export it again \(\S.*\)") as raised:
            load(folder)
        assert "\n" not in str(raised.value)
    (folder / "model.pte").unlink()
    with pytest.raises(InputError, match=r"cannot read model.pte: export it again"):
        load(folder)
    (folder / "model.pte").write_bytes(whole)
    (folder / "lowered.json").unlink()
    details = [name for name, _ in load(folder).facts.details]
    assert details == ["process", "weights", "tensors"], "it says only how it was made"


class Lacks(nn.Module):
    """Computes with an operator that the edge dialect does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.gammaln(images.abs() + 1).mean((2, 3))


class Branches(nn.Module):
    """Decides by a value, which no exporter can follow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


library = torch.library.Library("vitrail_test", "DEF")
library.define("half(Tensor x) -> Tensor")
torch.library.impl(library, "half", "CompositeExplicitAutograd")(lambda x: x * 0.5)
torch.library.register_fake("vitrail_test::half")(torch.empty_like)


class Custom(nn.Module):
    """Computes with an operator of somebody's own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ops.vitrail_test.half(images).mean((2, 3))


@needs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Lacks(), r"ExecuTorch has no operator aten::lgamma \(used in 1.neck, a Lacks\): use another engine"),
        (Custom(), r"no operator vitrail_test::half \(used in 1.neck, a Custom\): use another engine"),
        (Branches(), r"PyTorch cannot export this model \(\S.*\): use another engine"),
    ],
)
def test_what_it_lacks_is_named_with_the_module_and_nothing_is_left(
    tiny_export, tiny_weights, tmp_path, monkeypatch, module, said
):
    from vitrail.export import eager

    inner = nn.Sequential()
    inner.add_module("neck", module)
    monkeypatch.setattr(eager, "module", lambda *_, **__: nn.Sequential(nn.Conv2d(3, 10, 1), inner).eval())
    folder = described(tmp_path, "test_vit", 64, tiny_weights, labels_of(tiny_export))
    request = {"folder": str(folder), "runtime": NAME, "target": str(folder / NAME)}
    with pytest.raises(InputError, match=said) as raised:
        work.build({**request, "form": msgspec.to_builtins(form())})
    assert "\n" not in str(raised.value)
    assert [path.name for path in folder.iterdir()] == ["reference.json"]


@needs
@pytest.mark.slow
def test_a_program_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    from vitrail.export import executorch

    monkeypatch.setattr(executorch, "_difference", lambda *_: 1.0)
    with pytest.raises(EngineMismatch, match=r"differs from the module by 1.0e\+00"):
        executorch.lower(nn.Sequential(nn.Conv2d(3, 10, 1)).eval(), noise(8), tmp_path, form())


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "vitrail.export.executorch", raising=False)
    with pytest.raises(InputError, match=r"PyTorch, which ExecuTorch.* is not installed: run `.*executorch"):
        runtimes.implementation(NAME)


# --- its row --------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """The engine as if it were installed: nothing here loads it."""
    real = runtimes.version
    monkeypatch.setattr(runtimes, "version", lambda name: "1.5.1" if name == NAME else real(name))


def test_it_is_measured_only_where_it_is_named(installed):
    rows = catalog.find(MODELS)
    assert NAME not in {each.runtime for each in variants.variants(rows, WORKLOAD, SearchSettings())}
    found = variants.variants(rows, WORKLOAD, SearchSettings(runtimes=(NAME,)), int8=True)
    assert {(each.runtime, each.precision) for each in found} == {(NAME, "fp32"), (NAME, "int8")}
    unasked = [name for name, row in RUNTIMES.items() if not row.reference and not row.named_only]
    assert [name for name in unasked if RUNTIMES[name].on("cpu")] == ["openvino", "onnxruntime"]


def test_what_is_not_installed_is_said_only_where_it_is_named(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == NAME:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert variants.missing_runtimes(SearchSettings(), "cpu") == ()
    (said,) = variants.missing_runtimes(SearchSettings(runtimes=(NAME,)), "cpu")
    assert "ExecuTorch is not installed" in said
    assert "vitrail[executorch]" in said
    with pytest.raises(InputError, match=r"ExecuTorch is not installed: run `.*executorch") as raised:
        variants.variants(catalog.find(MODELS), WORKLOAD, SearchSettings(runtimes=(NAME,)))
    assert raised.value.install == here(ROW.install)


def test_passes_of_the_onnx_graph_do_not_reach_it(installed):
    candidate = catalog.find(["vit_tiny*"])[0]
    settings = SearchSettings(runtimes=(NAME, "openvino"), precisions=("fp32",))
    forms = [variants.Form(), variants.Form(passes=("uint8",)), variants.Form(passes=("merge=2", "uint8"))]
    found = variants.variants([candidate], WORKLOAD, settings, forms=forms)
    assert {each.passes for each in found if each.runtime == NAME} == {(), ("merge=2",)}
    assert {each.passes for each in found if each.runtime == "openvino"} == {
        (),
        ("uint8",),
        ("merge=2", "uint8"),
    }


def test_an_onnx_file_of_ones_own_is_not_for_it(installed):
    candidate = replace(artifacts.make_variant().candidate, trained_with="onnx")
    with pytest.raises(InputError, match=r"ExecuTorch takes modules, and tiny.test is an ONNX file: name"):
        variants.variants([candidate], WORKLOAD, SearchSettings(runtimes=(NAME,)))
    both = variants.variants([candidate], WORKLOAD, SearchSettings(runtimes=(NAME, "onnxruntime")))
    assert {each.runtime for each in both} == {"onnxruntime"}


def test_a_program_is_built_once_for_each_batch_and_version(tiny_export, tmp_path, monkeypatch):
    folder, asked = Path(shutil.copytree(tiny_export, tmp_path / "copied")), []
    monkeypatch.setattr(Exports, "_export_folder", lambda *_: folder)

    def run(job: str, request: BuildRequest, **_: object) -> None:
        assert (job, request.runtime) == ("build", NAME)
        asked.append(request.form)
        Path(request.target).mkdir()
        (Path(request.target) / "model.pte").touch()

    variant = replace(artifacts.make_variant(), runtime=NAME)
    places = []
    for batch, threads, version in [(1, 1, "1.5.1"), (1, 2, "1.5.1"), (8, 1, "1.5.1"), (1, 1, "1.6.0")]:
        monkeypatch.setattr(runtimes, "version", lambda _, version=version: version)
        workshop = SimpleNamespace(run=run)
        exports = Exports(NoWeights(), threads, workshop, batch_size=batch, machine=str(threads))
        export = exports.export(variant, 60.0)
        assert export.files == ("model.pte",)
        places.append(export.folder)
    assert places[0] == places[1], "a program runs on any number of threads"
    assert len(set(places)) == len(asked) == 3
    assert [each.batch_size for each in asked] == [1, 8, 1]


def test_no_peak_is_measured_for_what_must_be_named(installed, monkeypatch):
    begun = []
    monkeypatch.setattr(peaks.sandbox, "Child", lambda *_, **__: begun.append(1) or pytest.skip("unreached"))
    monkeypatch.setattr(runtimes, "RUNTIMES", {NAME: ROW})
    assert peaks.peaks(1, "cpu") == {}
    assert begun == []


def test_figures_of_memory_say_that_torch_is_in_them():
    memory = Memory(peak=521.0, steady=500.0, above_baseline=20.0)
    seen = Observation(variant=replace(artifacts.make_variant(), runtime=NAME), memory=memory)
    entry = LedgerEntry(status="meets", observation=seen, verdicts=(), reasons=())
    assert phrases.peak(entry, "MiB") == "521 MiB with PyTorch"
    plain = replace(seen, variant=artifacts.make_variant())
    assert phrases.peak(replace(entry, observation=plain), "MiB") == "521 MiB"
    assert phrases.peak(replace(entry, observation=replace(seen, memory=None))) == ""


def test_its_extra_brings_the_engine_and_torch():
    assert extras_of(ROW.install) == ("executorch",)
    assert extras_of(RUNTIMES["openvino"].install) == ()
    known = hardware.engines({NAME: ROW})[NAME]
    assert (known["label"], known["reference"]) == ("ExecuTorch", False)
    assert json.dumps(known)
