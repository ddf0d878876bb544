"""LiteRT: `.tflite` files against the modules, in float32 and int8; what it refuses. A minute where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

import artifacts
import msgspec
import numpy as np
import pytest
import torch
from test_compiled import described, graph_of, labels_of, noise
from test_search import MODELS, WORKLOAD
from torch import nn

from vitrail import catalog, models, runtimes
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import variants, work
from vitrail.export.requests import Form
from vitrail.install import extras_of, here
from vitrail.models import timm
from vitrail.runtimes import RUNTIMES, EngineMismatch
from vitrail.runtimes.stderr import caught
from vitrail.vocabulary import SearchSettings, Target

NAME = "litert"
ROW = RUNTIMES[NAME]
HERE = runtimes.version(NAME) is not None and util.find_spec("litert_torch") is not None
needs = pytest.mark.skipif(
    not HERE,
    reason="litert-torch is not installed: with JAX, torchao and others that it asks for, it takes "
    "770 MB, too much for the extra dev: docs/decisions/litert.md says how to install it",
)


def form(batch: int = 2, precision: str = "fp32") -> Form:
    return Form(precision=precision, batch_size=batch, threads=0, settings={})


def load(
    folder: Path,
    precision: str = "fp32",
    *,
    size: int = 64,
    classes: int = 10,
    batch: int = 2,
    threads: int = 1,
):
    graph, target = graph_of(size, classes, ROW.entry), Target(runtime=NAME, precision=precision)
    return runtimes.load(folder, graph, target, sizes={"B": batch}, threads=threads)


def randomised(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """Values in every tensor, norms and biases too; running variances stay positive."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += scale * torch.randn(value.shape, generator=generator).abs()
    return model.eval()


def photos(size: int, batch: int = 2, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Batches that are smooth, as photos are."""
    generator = np.random.default_rng(7)
    small = generator.standard_normal((count, batch, 3, 4, 4), dtype=np.float32)
    repeats = size // 4
    return [{"images": each.repeat(repeats, axis=2).repeat(repeats, axis=3)} for each in small]


def relative(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(given - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session")
def vit(tiny_export, tiny_weights, tmp_path_factory) -> Path:
    """The tiny ViT's model for two images, built as the exporter does."""
    folder = described(
        tmp_path_factory.mktemp("litert"), "test_vit", 64, tiny_weights, labels_of(tiny_export)
    )
    target = folder / NAME
    request = {"folder": str(folder), "runtime": NAME, "target": str(target)}
    work.build({**request, "form": msgspec.to_builtins(form())})
    return target


# --- what it computes -----------------------------------------------------------------------------


@needs
@pytest.mark.slow
def test_a_vit_agrees_and_says_what_it_runs_on(vit, tiny_weights):
    runner = load(vit)
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    first = runner.run({"images": noise(64)})["scores"]
    kept = first.copy()
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    runner.run({"images": -noise(64)})
    np.testing.assert_array_equal(first, kept, "an output is the engine's own memory")
    facts = runner.facts
    assert (facts.runtime, facts.version, facts.threads) == (NAME, metadata.version("ai-edge-litert"), 1)
    said = dict(facts.details)
    assert said["XNNPACK runs"].endswith(("part", "parts"))
    assert "f32:" in said["operations"]
    assert "i8:" not in said["operations"]
    assert facts.graphs[0].inputs[0].shape == (2, 3, 64, 64)
    assert facts.graphs[0].outputs[0].shape == (2, 10)
    runner.close()


@needs
@pytest.mark.slow
def test_the_file_names_its_tensors_as_the_task_does(vit):
    from ai_edge_litert.interpreter import Interpreter

    with caught():
        interpreter = Interpreter(model_path=str(vit / ROW.entry))
    signatures = interpreter.get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["scores"]}}
    names = [each["name"] for each in interpreter.get_tensor_details()]
    assert any(name.startswith("blocks.0.attn:Attention") for name in names)
    assert not [name for name in names if "timm." in name or "torch." in name], "full names of classes"


def our_swin() -> nn.Module:
    return models.build("swin_nano_patch2_window7_28", num_classes=10)


def tiny_cnn() -> nn.Module:
    return timm.build("test_efficientnet", image_size=64, classes=10, weights=None)


@needs
@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [(tiny_cnn, 64), (our_swin, 28)])
def test_convolutions_and_windows_agree_also_in_int8(tmp_path, make: Callable[[], nn.Module], size: int):
    from vitrail.export import litert

    model = randomised(make())
    litert.convert(model, noise(size), tmp_path)
    images = photos(size, count=5)[-1]["images"]
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    assert relative(load(tmp_path, size=size).run({"images": images})["scores"], expected) < 1e-4
    with pytest.raises(EngineMismatch, match="asked for int8 and runs no operation in int8"):
        load(tmp_path, "int8", size=size)
    whole = (tmp_path / ROW.entry).stat().st_size

    litert.quantise(tmp_path, photos(size))
    runner = load(tmp_path, "int8", size=size)
    scores = runner.run({"images": images})["scores"]
    assert scores.dtype == np.float32
    assert 1e-5 < relative(scores, expected) < 0.25
    said = dict(runner.facts.details)
    assert "i8:" in said["operations"]
    assert (tmp_path / ROW.entry).stat().st_size < 0.75 * whole
    with pytest.raises(EngineMismatch, match=r"asked for fp32 and runs \d+ operations in a lower precision"):
        load(tmp_path, size=size)


@needs
@pytest.mark.slow
def test_int8_leaves_what_it_would_spoil_in_floating_point(vit, tmp_path, monkeypatch):
    from vitrail.export import litert

    folder = Path(shutil.copytree(vit, tmp_path / "copied"))
    monkeypatch.setattr(litert, "WORSE", 0.0)
    litert.quantise(folder, photos(64))
    products = dict(load(folder, "int8").facts.details)
    assert products["in floating point"] == "all but products"
    shutil.copytree(vit, folder, dirs_exist_ok=True)
    monkeypatch.setattr(litert, "WORSE", np.inf)
    litert.quantise(folder, photos(64))
    everything = dict(load(folder, "int8").facts.details)
    assert "in floating point" not in everything
    counts = [dict(pair.split(":") for pair in each["operations"].split()) for each in (products, everything)]
    assert int(counts[0]["i8"]) < int(counts[1]["i8"])
    assert int(counts[0]["f32"]) > int(counts[1]["f32"])


@needs
@pytest.mark.slow
def test_the_file_is_hardly_larger_than_its_weights(tmp_path):
    from vitrail.export import litert

    model = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 1000)).eval()
    weights = sum(value.numel() for value in model.state_dict().values())
    litert.convert(model, noise(64), tmp_path)
    assert (tmp_path / ROW.entry).stat().st_size <= 1.05 * 4 * weights
    litert.quantise(tmp_path, photos(64))
    assert (tmp_path / ROW.entry).stat().st_size <= 1.05 * weights


@needs
@pytest.mark.slow
def test_a_process_that_only_runs_it_loads_no_torch_says_nothing_and_uses_the_threads(vit, tmp_path):
    code = (
        "import sys, socket\nfrom pathlib import Path\nimport numpy as np, psutil\n"
        "asked = []\n"
        "sys.addaudithook(lambda name, args: asked.append(name) if name.startswith('socket.') else None)\n"
        "from vitrail import runtimes\n"
        "from vitrail.tasks.classify import Classify\n"
        "from vitrail.vocabulary import Preprocess, Target\n"
        "task = Classify(preprocess=Preprocess(image_size=64), labels=tuple('abcdefghij'))\n"
        "target = Target(runtime='litert', precision='fp32')\n"
        "import vitrail.runtimes.litert\n"
        "counts = []\n"
        "for threads in (1, 3):\n"
        "    before = psutil.Process().num_threads()\n"
        "    runner = runtimes.load(Path(sys.argv[1]), task.graph('model.tflite'), target, sizes={'B': 2},\n"
        "                           threads=threads)\n"
        "    runner.run({'images': np.zeros((2, 3, 64, 64), np.float32)})\n"
        "    counts.append(psutil.Process().num_threads() - before)\n"
        "heavy = {'torch', 'timm', 'onnx', 'litert_torch', 'jax', 'tensorflow', 'ai_edge_quantizer'}\n"
        "print(sorted(heavy & set(sys.modules)), asked, counts)"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(vit)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
        check=True,
    )
    assert done.stdout.strip() == "[] [] [0, 2]"
    assert done.stderr == "", "the engine tells that it made a delegate"
    assert list(home.iterdir()) == [], "the engine writes into the home folder"


# --- what a person can get wrong ------------------------------------------------------------------


@needs
@pytest.mark.slow
def test_a_model_of_another_batch_or_cut_off_is_one_sentence(vit, tmp_path):
    folder = Path(shutil.copytree(vit, tmp_path / "copied"))
    with pytest.raises(EngineMismatch, match=r"made for 2 at once, and 3 at once.*--batch-size 3"):
        load(folder, batch=3)
    with pytest.raises(EngineMismatch, match=r"takes images as float32 \(2, 3, 64, 64\), not the requested"):
        load(folder, size=32)
    whole = (folder / ROW.entry).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK" * 500, bytes(64) + whole[64:]):
        (folder / ROW.entry).write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read model.tflite: export it again \(\S.*\)") as raised:
            load(folder)
        assert "\n" not in str(raised.value)
    (folder / ROW.entry).unlink()
    with pytest.raises(InputError, match=r"cannot read model.tflite: export it again"):
        load(folder)
    (folder / ROW.entry).write_bytes(whole)
    (folder / "converted.json").unlink()
    load(folder)


class Lacks(nn.Module):
    """Computes with an operator that the converter does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.gammaln(images.abs() + 1).mean((2, 3))


class Sorts(nn.Module):
    """Computes with an operator that the format has, and the engine does not run."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).sort(-1).values[..., :3].mean(-1)


class Branches(nn.Module):
    """Decides by a value, which no exporter can follow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


@needs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Lacks(), r"LiteRT has no operator aten::lgamma \(used in 1.neck, a Lacks\): use another engine"),
        (Sorts(), r"does not run the operator STABLEHLO_SORT \(used in 1.neck, a Sorts\): use another"),
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
def test_a_model_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    from vitrail.export import litert

    monkeypatch.setattr(litert, "_difference", lambda *_: 1.0)
    with pytest.raises(EngineMismatch, match=r"differs from the module by 1.0e\+00"):
        litert.convert(nn.Sequential(nn.Conv2d(3, 10, 1)).eval(), noise(8), tmp_path)


def test_without_the_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.delitem(sys.modules, "vitrail.runtimes.litert", raising=False)
    with pytest.raises(MissingExtraError, match=r"LiteRT is not installed: run `.*litert\]"):
        runtimes.implementation(NAME)


# --- its row --------------------------------------------------------------------------------------


def pretend(monkeypatch, **found: str | None) -> None:
    """The packages named (with _ for -) in these versions, or not installed: nothing here loads them."""
    real = metadata.version

    def version(name: str) -> str:
        answer = found.get(name.replace("-", "_"), "")
        if answer is None:
            raise metadata.PackageNotFoundError(name)
        return answer or real(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def installed(monkeypatch):
    """The engine and what makes its files, as if they were installed."""
    pretend(monkeypatch, ai_edge_litert="2.3.0", litert_torch="0.10.0")


def test_it_is_measured_only_where_it_is_named_in_both_precisions(installed):
    rows = catalog.find(MODELS)
    assert NAME not in {each.runtime for each in variants.variants(rows, WORKLOAD, SearchSettings())}
    found = variants.variants(rows, WORKLOAD, SearchSettings(runtimes=(NAME,)), int8=True)
    assert {(each.runtime, each.precision) for each in found} == {(NAME, "fp32"), (NAME, "int8")}
    found = variants.variants(rows, WORKLOAD, SearchSettings(runtimes=(NAME,)))
    assert {each.precision for each in found} == {"fp32"}, "nothing to calibrate on"


@pytest.mark.parametrize(
    ("engine", "maker", "what"),
    [(None, None, "LiteRT is"), ("2.3.0", None, "litert-torch, which makes LiteRT's files, is")],
)
def test_what_is_not_installed_is_said_only_where_it_is_named(monkeypatch, engine, maker, what):
    pretend(monkeypatch, ai_edge_litert=engine, litert_torch=maker)
    assert not any("LiteRT" in said for said in variants.missing_runtimes(SearchSettings(), "cpu"))
    (said,) = variants.missing_runtimes(SearchSettings(runtimes=(NAME,)), "cpu")
    assert said == f'{what} not installed: `pip install "vitrail[litert,litert-torch]"`'
    with pytest.raises(MissingExtraError, match=f"{what} not installed: run") as raised:
        variants.variants(catalog.find(MODELS), WORKLOAD, SearchSettings(runtimes=(NAME,)))
    assert raised.value.install == here(ROW.builder.install)
    only = variants.variants(catalog.find(MODELS), WORKLOAD, SearchSettings(runtimes=(NAME, "openvino")))
    assert {each.runtime for each in only} == {"openvino"}


def test_running_asks_for_less_than_making():
    assert extras_of(ROW.install) == ("litert",)
    assert extras_of(ROW.builder.install) == ("litert", "litert-torch")


def test_its_key_holds_the_version_of_what_made_it(monkeypatch, installed):
    assert runtimes.building(NAME) == "litert-torch 0.10.0"
    pretend(monkeypatch, executorch="1.5.1")
    assert runtimes.building("executorch") == "executorch 1.5.1"
    pretend(monkeypatch, litert_torch=None)
    assert runtimes.building(NAME) is None


def test_an_onnx_file_of_ones_own_is_not_for_it(installed):
    candidate = replace(artifacts.make_variant().candidate, trained_with="onnx")
    with pytest.raises(InputError, match=r"LiteRT takes modules, and tiny.test is an ONNX file: name"):
        variants.variants([candidate], WORKLOAD, SearchSettings(runtimes=(NAME,)))


# --- what others caught ---------------------------------------------------------------------------


def test_what_a_library_writes_to_stderr_is_caught_and_stderr_comes_back(capfd):
    with caught() as said:
        os.write(2, b"one\n  two \n\n")
        found = said()
    os.write(2, b"after\n")
    assert found == ["one", "two"]
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(ValueError, match="inside"), caught():
        raise ValueError("inside")
    os.write(2, b"again\n")
    assert capfd.readouterr().err == "again\n"
