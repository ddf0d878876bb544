"""CoreML: what the package says against the modules, and what is refused where it cannot run.

Packages are converted only where coremltools is installed (two minutes); folding, narrowing, the table of
operators and the refusals are tested everywhere (20 s).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from test_compiled import described, graph_of, labels_of, noise
from test_executorch import our_swin, randomised, tiny_cnn
from torch import nn

from vitrail import cli, runtimes
from vitrail.artifact import NOT_RUN, open_artifact
from vitrail.errors import InputError
from vitrail.export import coreml, folded, mil, work
from vitrail.export.requests import Form
from vitrail.install import extras_of
from vitrail.models import timm
from vitrail.runtimes import RUNTIMES, EngineMismatch
from vitrail.selection.select import select
from vitrail.vocabulary import SearchSettings, Target

NAME, ROW = "coreml", RUNTIMES["coreml"]
needs = pytest.mark.skipif(
    runtimes.version(NAME) is None,
    reason="coremltools is not installed: 26 MB that only converting needs, and untested beside the newest "
    f"torch by its makers, so it is not in the extra dev: {ROW.install}",
)


def form(precision: str = "fp16", batch: int = 2) -> Form:
    return Form(precision=precision, batch_size=batch, threads=0, settings={})


def tiny_vit() -> nn.Module:
    return timm.build("test_vit", image_size=64, classes=10, weights=None)


def converted(model: nn.Module, folder: Path, size: int, precision: str = "fp16") -> coreml.Converted:
    return coreml.convert(
        model, noise(size), folder, form(precision), output="scores", tolerance=coreml.TOLERANCE[precision]
    )


# --- the program, before CoreML -------------------------------------------------------------------


def most_dimensions(program: torch.export.ExportedProgram) -> int:
    return max(node.meta["val"].ndim for node in program.graph.nodes if hasattr(node.meta.get("val"), "ndim"))


def names(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_what_depends_on_no_image_is_computed_before():
    model, images = randomised(tiny_vit()), torch.from_numpy(noise(64))
    program = folded.exported(model, images)
    assert any("bicubic" in name for name in names(program)), "the model resamples its positions"
    after = folded.folded(program, images)
    assert not any("bicubic" in name for name in names(after))
    assert [node.name for node in after.graph.nodes if node.op == "placeholder"][-1] == "images"
    with torch.no_grad():
        torch.testing.assert_close(after.module()(images), model(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [our_swin, lambda: timm_swin()])
def test_windows_and_heads_take_five_dimensions(make: Callable[[], nn.Module]):
    model = randomised(make())
    images = torch.randn(2, 3, 28, 28)
    program = folded.folded(folded.exported(model, images), images)
    assert most_dimensions(program) == 6
    after = folded.narrowed(program, images, 5)
    assert most_dimensions(after) <= 5
    with torch.no_grad():
        torch.testing.assert_close(after.module()(images), model(images), rtol=1e-5, atol=1e-5)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=28, patch_size=2, window_size=7, embed_dim=16, depths=(2,), num_heads=(2,), num_classes=10
    )


class Turned(nn.Module):
    """Six dimensions that no four or five stand for."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, 3, 4, 7, 4, 7).permute(5, 4, 3, 2, 1, 0).flip(0).sum(dim=(0, 1, 2, 3)).T


def test_what_cannot_be_narrowed_stays():
    images = torch.randn(2, 3, 28, 28)
    program = folded.exported(Turned(), images)
    after = folded.narrowed(program, images, 5)
    assert most_dimensions(after) == 6
    torch.testing.assert_close(after.module()(images), Turned()(images))


# --- the table of operators -----------------------------------------------------------------------


def t(*sides: int) -> torch.Tensor:
    return torch.arange(np.prod(sides), dtype=torch.float32).reshape(sides)


X = t(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("operator", "given", "expected"),
    [
        ("slice_by_index", {"x": X, "begin": [0, 1, 1, 0], "end": [1, 3, 4, 0], "stride": [1, 1, 2, 1],
          "end_mask": [False, False, False, True], "squeeze_mask": [True, False, False, False]},
         X.numpy()[0, 1:3, 1:4:2, :]),
        ("gather", {"x": X, "indices": [2, -3], "axis": 1}, X.numpy()[:, [2, 0]]),
        ("gather", {"x": X, "indices": 1, "axis": 1}, X.numpy()[:, 1]),
        ("squeeze", {"x": t(1, 3, 1), "axes": [-1]}, t(1, 3).numpy()),
        ("expand_dims", {"x": t(3), "axes": [0, -1]}, t(1, 3, 1).numpy()),
        ("pad", {"x": t(1, 2), "pad": [0, 1, 2, 0], "constant_val": 7.0}, [[7, 7, 0, 1], [7, 7, 7, 7]]),
        ("matmul", {"x": t(2, 3), "y": t(2, 3), "transpose_y": True}, t(2, 3).numpy() @ t(2, 3).numpy().T),
        ("sigmoid_hard", {"x": torch.tensor([-9.0, 0, 9]), "alpha": 1 / 6, "beta": 0.5}, [0, 0.5, 1]),
        ("thresholded_relu", {"x": torch.tensor([-1.0, 0.5, 2]), "alpha": 1.0}, [0, 0, 2]),
        ("reduce_mean", {"x": X, "axes": [2, 3], "keep_dims": True}, X.numpy().mean((2, 3), keepdims=True)),
        ("tile", {"x": t(1, 2), "reps": [2, 2]}, np.tile(t(1, 2).numpy(), (2, 2))),
    ],
)  # fmt: skip
def test_an_operator_does_what_its_definition_says(operator: str, given: dict, expected: object):
    np.testing.assert_allclose(mil.OPERATORS[operator](given).numpy(), expected, rtol=1e-6)


def test_a_convolution_pads_each_side_as_said():
    given = {"x": X, "weight": t(4, 3, 2, 2), "strides": [2, 2], "pad_type": "custom", "pad": [1, 0, 0, 2]}
    padded = np.pad(X.numpy(), ((0, 0), (0, 0), (1, 0), (0, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))[:, :, ::2, ::2]
    expected = np.einsum("nchwij,fcij->nfhw", windows, given["weight"].numpy())
    np.testing.assert_allclose(mil.OPERATORS["conv"](given).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        ("conv", {"x": X, "weight": t(4, 3, 2, 2), "pad_type": "same"}),
        ("layer_norm", {"x": X, "axes": [1]}),
        ("pad", {"x": X, "pad": [0, 1], "mode": "reflect"}),
    ],
)
def test_a_form_that_is_not_computed_says_so(operator: str, given: dict):
    with pytest.raises(mil.NotComputed, match="is not computed here"):
        mil.OPERATORS[operator](given)


# --- where it does not run ------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="here it runs")
def test_it_is_refused_where_it_does_not_run(tmp_path, capsys):
    assert NAME not in runtimes.installed()
    with pytest.raises(InputError, match="CoreML runs on macOS: build it here with `vitrail export MODEL"):
        select(settings=SearchSettings(runtimes=(NAME,)))
    assert cli.main(["optimize", "resnet50.a1_in1k", "--runtimes", NAME]) == 2
    assert "measure it there with `vitrail verify DIR --measure`" in capsys.readouterr().err
    target = Target(runtime=NAME, precision="fp16")
    with pytest.raises(InputError, match="CoreML runs on macOS and this is Linux"):
        runtimes.load(tmp_path, graph_of(64, 10, ROW.entry), target, sizes={"B": 1}, threads=1)


def test_its_extra_is_named():
    assert extras_of(ROW.install) == ("coreml",)
    assert ROW.files[0].startswith(f"{coreml.PACKAGE}/")
    assert f"{coreml.PACKAGE}/{coreml.WEIGHTS}" in ROW.files
    assert coreml.FACTS in ROW.files


# --- packages -------------------------------------------------------------------------------------


@needs
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("make", "size", "scale"), [(tiny_vit, 64, 0.1), (tiny_cnn, 64, 0.03), (our_swin, 28, 0.1)]
)
def test_a_package_says_what_the_module_computes(tmp_path, make, size: int, scale: float, precision: str):
    kept = converted(randomised(make(), scale), tmp_path, size, precision)
    assert kept.not_computed == ""
    assert kept.relative_difference is not None
    assert kept.relative_difference < {"fp16": 1e-2, "fp32": 1e-5}[precision]
    assert all((tmp_path / name).is_file() for name in ROW.files)
    ct = coreml.coremltools()
    spec = ct.utils.load_spec(str(tmp_path / coreml.PACKAGE))
    (given,), (got,) = spec.description.input, spec.description.output
    assert (given.name, list(given.type.multiArrayType.shape)) == ("images", [2, 3, size, size])
    assert (got.name, list(got.type.multiArrayType.shape)) == ("scores", [2, 10])
    float32 = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert {given.type.multiArrayType.dataType, got.type.multiArrayType.dataType} == {float32}
    assert coreml.precision_of(spec) == precision


@needs
@pytest.mark.slow
def test_weights_are_the_module_s_rounded_once(tmp_path):
    model = randomised(tiny_vit())
    converted(model, tmp_path, 64)
    program = mil.read(coreml.coremltools(), tmp_path / coreml.PACKAGE)
    stored = [
        each.val.val
        for each in program.functions["main"].operations
        if each.op_type == "const" and isinstance(each.val.val, np.ndarray)
    ]
    matrices = [value.detach().numpy() for name, value in model.named_parameters() if "mlp" in name]
    assert len(matrices) > 20
    for matrix in matrices:
        rounded = matrix.astype(np.float16)
        same = [each for each in stored if each.shape == rounded.shape and np.array_equal(each, rounded)]
        assert same, "a tensor of the module is not in the package"


@needs
@pytest.mark.slow
def test_a_package_that_is_not_what_was_asked_for_is_refused(tmp_path, monkeypatch):
    with pytest.raises(EngineMismatch, match="overflows in fp16: choose --precisions fp32"):
        converted(randomised(tiny_cnn(), 0.1), tmp_path, 64)
    model = randomised(tiny_cnn(), 0.03)
    with pytest.raises(EngineMismatch, match="differs from the module by"):
        coreml.convert(model, noise(64), tmp_path, form(), output="scores", tolerance=1e-7)
    kept = coreml._converted
    half = form("fp16")
    monkeypatch.setattr(coreml, "_converted", lambda ct, a, b, _, name: kept(ct, a, b, half, name))
    with pytest.raises(EngineMismatch, match="computes in fp16, and fp32 was asked for"):
        converted(model, tmp_path, 64, "fp32")
    single = form("fp32")
    monkeypatch.setattr(coreml, "_converted", lambda ct, a, b, _, name: kept(ct, a, b, single, name))
    with pytest.raises(EngineMismatch, match="computes in fp32, and fp16 was asked for"):
        converted(model, tmp_path, 64, "fp16")
    monkeypatch.setattr(coreml, "_converted", kept)
    monkeypatch.setattr(coreml, "SIZE_SHARE", 0.1)
    monkeypatch.setattr(coreml, "SIZE_BYTES", 0)
    with pytest.raises(EngineMismatch, match="are enough for these"):
        converted(model, tmp_path, 64)


class Rare(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = Rare()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.odd(images).mean((2, 3))


@needs
@pytest.mark.slow
def test_an_operator_that_it_lacks_is_named_with_its_module(tmp_path):
    said = r"CoreML has no operator aten::special_bessel_j0 \(used in model.odd, a Rare\): use another engine"
    with pytest.raises(InputError, match=said):
        coreml.convert(Holder(), noise(64), tmp_path, form(), output="scores", tolerance=1.0)


@pytest.fixture(scope="session")
def package(tiny_export, tiny_weights, tmp_path_factory) -> Path:
    """The tiny ViT's package for two images, built as the exporter does."""
    folder = described(
        tmp_path_factory.mktemp("coreml"), "test_vit", 64, tiny_weights, labels_of(tiny_export)
    )
    request = {"folder": str(folder), "runtime": NAME, "target": str(folder / NAME)}
    work.build({**request, "form": msgspec.to_builtins(form())})
    return folder / NAME


@needs
@pytest.mark.slow
def test_loading_reads_back_what_it_can(package, tiny_weights, monkeypatch):
    """On a Mac that is played: the library opens the package, and our own reading of it answers."""
    ct = coreml.coremltools()

    def predict(self, data: dict) -> dict:
        return mil.outputs(mil.read(ct, package / coreml.PACKAGE), data)

    monkeypatch.setattr(ct.models.MLModel, "predict", predict)
    monkeypatch.setitem(RUNTIMES, NAME, replace(ROW, platforms=()))
    graph, target = graph_of(64, 10, ROW.entry), Target(runtime=NAME, precision="fp16")

    def load(batch: int = 2, target: Target = target, **settings: str) -> runtimes.Runner:
        return runtimes.load(package, graph, target, sizes={"B": batch}, threads=1, settings=settings)

    runner = load(compute_units="CPU_ONLY")
    assert (runner.facts.runtime, runner.facts.precision) == (NAME, "fp16")
    assert dict(runner.facts.details)["compute_units"] == "CPU_ONLY"
    model = timm.build("test_vit", image_size=64, classes=10, weights=tiny_weights)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise(64))).numpy()
    scores = runner.run({"images": noise(64)})["scores"]
    assert scores.dtype == np.float32
    assert np.linalg.norm(scores - expected) / np.linalg.norm(expected) < 1e-2
    runner.close()
    with pytest.raises(EngineMismatch, match="was made for 2 at once, and 3 at once are asked for"):
        load(batch=3)
    with pytest.raises(EngineMismatch, match=r"asked for fp32, and model\.mlpackage is fp16"):
        load(target=Target(runtime=NAME, precision="fp32"))
    with pytest.raises(InputError, match="use one of ALL"):
        load(compute_units="GPU")


@needs
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="here it runs")
def test_an_export_for_a_mac_travels_whole(tiny_weights, tiny_labels, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    model = ["--arch", "test_vit", "--labels", str(tiny_labels), "--image-size", "64", "--offline"]
    out = tmp_path / "mac"
    assert cli.main(["export", str(tiny_weights), *model, "--runtimes", NAME, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert NOT_RUN in said
    assert f"next, on macOS: vitrail verify {out} --measure" in said
    manifest = open_artifact(out).manifest
    assert manifest.variant.precision == "fp16"
    assert dict(manifest.toolchain)[NAME] == runtimes.version(NAME)
    assert {f"model/{name}" for name in ROW.files} <= set(manifest.files)
    assert manifest.reference.own_outputs == {}
    for command in (["verify", str(out)], ["predict", str(out), str(out / manifest.reference.photos[0])]):
        assert cli.main(command) == 2
        assert "CoreML runs on macOS and this is Linux" in capsys.readouterr().err
    assert cli.main(["package", str(out), "--for", "docker", "--out", str(tmp_path / "image")]) == 2
    assert "does not run on Linux" in capsys.readouterr().err
    weights = out / "model" / coreml.PACKAGE / coreml.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=r"weight\.bin was changed"):
        open_artifact(out)
