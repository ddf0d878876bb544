"""References that compile, and autocast: what they read back, and that they agree with timm. About 30 s."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import artifacts
import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from vitrail import runtimes
from vitrail.cli import doctor
from vitrail.errors import InputError
from vitrail.export import compiled, eager, reference, work
from vitrail.export.exports import Exports
from vitrail.export.requests import BuildRequest, ExportRequest, Form
from vitrail.models import timm
from vitrail.runtimes import RUNTIMES, EngineMismatch, cxx
from vitrail.tasks.agreement import BOUNDS
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Candidate, Preprocess, Target
from vitrail.weights.find import WeightsUnavailable

needs_compiler = pytest.mark.skipif(cxx.found() is None, reason="needs a C++ compiler")
COMPILING = [name for name, engine in RUNTIMES.items() if engine.compiles]


@pytest.fixture(autouse=True)
def compiler_cache(tmp_path_factory, monkeypatch) -> None:
    """One compiler's cache for this run, outside the person's own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))


def graph_of(size: int, classes: int, entry: str = "reference.json"):
    labels = tuple(map(str, range(classes)))
    return Classify(preprocess=Preprocess(image_size=size), labels=labels).graph(entry)


def load(folder: Path, runtime: str, precision: str, *, size: int, classes: int, batch: int = 2, **settings):
    """The runner on one thread; what compiles ahead is built next to the export."""
    if RUNTIMES[runtime].builds:
        form = Form(precision=precision, batch_size=batch, threads=1, settings=settings)
        target = folder / f"{runtime}-{precision}"
        if not target.is_dir():
            request = {"folder": str(folder), "runtime": runtime, "target": str(target)}
            work.build({**request, "form": msgspec.to_builtins(form)})
        folder = target
    return runtimes.load(
        folder,
        graph_of(size, classes, RUNTIMES[runtime].entry),
        Target(runtime=runtime, precision=precision),
        sizes={"B": batch},
        threads=1,
        settings=settings,
    )


def described(folder: Path, architecture: str, size: int, weights: Path | None, labels: str) -> Path:
    """A folder with the `reference.json` of an export, and nothing else."""
    request = ExportRequest(
        architecture=architecture,
        implementation="timm",
        image_size=size,
        labels=labels,
        weights=None if weights is None else str(weights),
        folder=str(folder),
        threads=1,
    )
    (folder / work.REFERENCE_FILE).write_bytes(msgspec.json.encode(request))
    return folder


def noise(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)


def agrees(runner: runtimes.Runner, images: np.ndarray, expected: np.ndarray, precision: str) -> None:
    scores = runner.run({"images": images})["scores"]
    difference = np.linalg.norm(scores - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert difference.max() <= BOUNDS[precision].relative_error, difference
    assert runner.facts.threads == torch.get_num_threads() == 1
    if precision == "bf16":
        assert difference.max() > 1e-4, "nothing was computed in bf16"


def details(runner: runtimes.Runner) -> dict[str, str]:
    return dict(runner.facts.details)


# --- autocast -----------------------------------------------------------------------------------


def test_autocast_computes_products_in_bf16_and_keeps_the_weights(tiny_export, tiny_weights):
    runner = load(tiny_export, "pytorch-amp", "bf16", size=64, classes=10)
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    agrees(runner, noise(64), expected, "bf16")
    said = details(runner)
    assert said["parameters"] == "float32"
    counts = {name: int(n) for name, n in (pair.split(":") for pair in said["operations"].split())}
    assert counts["bfloat16"] > 0
    assert counts["float32"] > 0
    eager_counts = details(load(tiny_export, "pytorch", "fp32", size=64, classes=10))["operations"]
    assert "bfloat16" not in eager_counts


def test_autocast_that_casts_nothing_is_refused(tiny_export, monkeypatch):
    monkeypatch.setattr(reference, "autocast", lambda _: torch.autocast("cpu", enabled=False))
    with pytest.raises(EngineMismatch, match="ran no operation in it"):
        load(tiny_export, "pytorch-amp", "bf16", size=64, classes=10)


# --- what compiles ------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.slow
def test_a_compiled_vit_agrees_and_says_what_the_compiler_did(tiny_export, tiny_weights):
    runner = load(tiny_export, "pytorch-compiled", "fp32", size=64, classes=10, freezing="1")
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    agrees(runner, noise(64), expected, "fp32")
    said = details(runner)
    assert (said["mode"], said["freezing"]) == ("default", "1")
    assert (said["graphs"], said["graph breaks"], said["recompiles"]) == ("1", "0", "0")
    assert float(said["first call"].split()[0]) > float(said["second call"].split()[0])
    assert int(said["packed weights"]) > 0
    assert torch._inductor.config.freezing is False, "the setting outlived the compile"


@needs_compiler
@pytest.mark.slow
def test_a_package_is_for_what_it_was_compiled_for(tiny_export, tiny_weights, tmp_path):
    folder = described(tmp_path, "test_vit", 64, tiny_weights, labels_of(tiny_export))
    runner = load(folder, "pytorch-aot", "fp32", size=64, classes=10)
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    agrees(runner, noise(64), expected, "fp32")
    said, package = details(runner), folder / "pytorch-aot-fp32" / "model.pt2"
    assert float(said["compiled in"].split()[0]) > 0.5
    assert said["on disk"] == f"{package.stat().st_size / 2**20:.1f} MiB"
    with pytest.raises(
        EngineMismatch, match=r"asked for fp32, 3 at once, 1 thread, .*compiled for fp32, 2 at"
    ):
        load(folder, "pytorch-aot", "fp32", size=64, classes=10, batch=3)
    whole = package.read_bytes()
    package.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read model.pt2: export it again"):
        load(folder, "pytorch-aot", "fp32", size=64, classes=10)
    (package.parent / "compiled.json").write_text("{}")
    with pytest.raises(InputError, match=r"cannot read compiled.json: export it again"):
        load(folder, "pytorch-aot", "fp32", size=64, classes=10)


def labels_of(export: Path) -> str:
    return str(export / work.LABELS_FILE)


class Builder:
    """A workshop that makes empty packages and keeps what it was asked for."""

    def __init__(self) -> None:
        self.forms: list[Form] = []

    def run(self, job: str, request: BuildRequest, **_: object) -> None:
        assert (job, request.runtime) == ("build", "pytorch-aot")
        assert request.form is not None
        self.forms.append(request.form)
        Path(request.target).mkdir()
        (Path(request.target) / "model.pt2").touch()


class NoWeights:
    def locate(self, candidate: Candidate) -> None:
        raise WeightsUnavailable("none here", why="none here")


def test_a_package_is_built_once_for_each_form(tiny_export, tmp_path, monkeypatch):
    folder, builder = Path(shutil.copytree(tiny_export, tmp_path / "copied")), Builder()
    monkeypatch.setattr(Exports, "_export_folder", lambda *_: folder)
    variant = replace(artifacts.make_variant(), runtime="pytorch-aot", reference=True)
    frozen = replace(variant, settings=(("freezing", "1"),))
    seen = []
    for batch, threads, asked in [(8, 1, variant), (8, 2, variant), (1, 1, variant), (8, 1, frozen)]:
        exports = Exports(NoWeights(), threads, builder, batch_size=batch, machine="m")
        assert not exports.exported(asked)
        first = exports.export(asked, 60.0)
        assert exports.exported(asked)
        assert exports.export(asked, 60.0) == first
        assert first.files == ("model.pt2",)
        seen.append(first.folder)
    assert len(set(seen)) == len(builder.forms) == 4
    assert builder.forms[3] == Form(
        precision="fp32", batch_size=8, threads=1, settings={"freezing": "1"}, machine="m"
    )


class Recompiles(nn.Module):
    """Each of the first calls has another number in it, and code that cannot be compiled in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(10), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls = min(self.calls + 1, 3)
        scores = images.mean((1, 2, 3), keepdim=True).flatten(1) * self.calls
        torch._dynamo.graph_break()
        return scores + self.weight


@needs_compiler
@pytest.mark.slow
def test_graph_breaks_and_recompiles_are_counted(tiny_export, monkeypatch):
    monkeypatch.setattr(eager, "module", lambda *_, **__: Recompiles().eval())
    runner = load(tiny_export, "pytorch-compiled", "fp32", size=64, classes=10)
    said = details(runner)
    assert (said["freezing"], said["packed weights"]) == ("0", "0")
    assert said["graph breaks"] == "1"
    before = int(details(runner)["recompiles"])
    assert before >= 1, "its second call compiled again"
    for _ in range(3):
        runner.run({"images": noise(64)})
    after = int(details(runner)["recompiles"])
    assert after > before
    runner.run({"images": noise(64)})
    assert int(details(runner)["recompiles"]) == after


# --- what a person can get wrong ----------------------------------------------------------------


@pytest.mark.parametrize("runtime", COMPILING)
def test_without_a_compiler_it_is_not_available_and_says_what_to_install(tiny_export, monkeypatch, runtime):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(
        InputError, match=r"is not available here: it needs a C\+\+ compiler.*apt install g\+\+"
    ):
        load(tiny_export, runtime, "fp32", size=64, classes=10)
    assert not list(tiny_export.glob("pytorch-aot*"))
    (lacking,) = [item for item in doctor.doctor_document(peaks=False)["missing"] if "C++" in item["what"]]
    assert lacking["install"] == "apt install g++"
    assert RUNTIMES[runtime].label in lacking["purpose"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"mode": "reduce-overhead"},
            "reduce-overhead does nothing on a CPU: choose default or max-autotune",
        ),
        ({"freezing": "yes"}, "freezing is 0 or 1, not yes"),
        ({"cpp.threads": "1"}, "does not take the setting cpp.threads"),
    ],
)
def test_settings_are_checked(tiny_export, settings, said):
    with pytest.raises(InputError, match=said):
        load(tiny_export, "pytorch-compiled", "fp32", size=64, classes=10, **settings)


@needs_compiler
def test_what_the_compiler_says_becomes_one_sentence(tiny_export, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("C++ compile error\nfatal error: Python.h: No such file\n")

    monkeypatch.setattr(compiled.torch, "compile", lambda *_, **__: fails)
    with pytest.raises(InputError, match=r"\(C\+\+ compile error\): check that the C\+\+ compiler") as raised:
        load(tiny_export, "pytorch-compiled", "fp32", size=64, classes=10)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("runtime", ["pytorch-amp", "pytorch-compiled"])
def test_a_damaged_description_is_one_sentence(tiny_export, tmp_path, runtime):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "copied"))
    (folder / "reference.json").write_bytes(b"{")
    if cxx.found() is None and RUNTIMES[runtime].compiles:
        pytest.skip("needs a C++ compiler")
    with pytest.raises(InputError, match=r"cannot read reference.json: export it again"):
        load(folder, runtime, RUNTIMES[runtime].on("cpu")[-1], size=64, classes=10)
