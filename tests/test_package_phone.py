"""`vitrail package --for phone`: the tensors that it writes, and the bounds as an app reads them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import artifacts
import desk
import numpy as np
import pytest
from packages import instructions, named
from serving import Server

from vitrail.artifact import Artifact, write
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch
from vitrail.package import package, phone
from vitrail.runtimes import RUNTIMES, sized
from vitrail.vocabulary import Export


def of_phone(
    folder: Path,
    runtime: str = "executorch",
    *,
    batch_size: int = 1,
    model: bytes = b"a model's file",
    settings: tuple[tuple[str, str], ...] = (),
    measured: bool = True,
) -> Artifact:
    """An artifact of an engine; writing and packaging it load no model."""
    bundle = artifacts.make_bundle(folder, batch_size=batch_size)
    entry = RUNTIMES[runtime].entry
    (folder / "built" / entry).parent.mkdir(parents=True)
    (folder / "built" / entry).write_bytes(model)
    graph = replace(bundle.export.graphs[0], entry=entry)
    facts = replace(bundle.evidence.facts, runtime=runtime, graphs=(sized(graph, {"B": batch_size}),))
    evidence = replace(bundle.evidence, facts=facts)
    if not measured:
        evidence = replace(evidence, accuracy=None, latency={}, throughput=None, memory=None)
    return write(
        folder / "winner",
        replace(
            bundle,
            variant=replace(bundle.variant, runtime=runtime, settings=settings),
            export=Export(folder=str(folder / "built"), files=(entry,), graphs=(graph,)),
            evidence=evidence,
        ),
    )


def tensor(folder: Path, check: dict, photo: dict, kind: str) -> np.ndarray:
    """The one tensor of a photo, as an app reads it."""
    (spec,) = check["inputs" if kind == "inputs" else "outputs"]
    assert spec["dtype"] == "float32"
    return np.fromfile(folder / photo[kind][spec["name"]], "<f4").reshape(spec["shape"])


def holds(check: dict, found: np.ndarray, expected: np.ndarray) -> bool:
    """The README's bounds for one photo, written down again."""
    ((_, usual),) = check["bounds"]["usual_norm"].items()
    found, expected = found.astype(np.float64)[0], expected.astype(np.float64)[0]
    x, y = np.linalg.norm(expected), np.linalg.norm(found)
    error = np.linalg.norm(found - expected) / max(x, usual)
    cosine = 1 - (x * y - found @ expected) / max(x * y, usual**2)
    return error <= check["bounds"]["relative_error"] and cosine >= check["bounds"]["cosine"]


@pytest.mark.parametrize("runtime", phone.APPS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_inputs_are_the_photos_and_outputs_are_what_they_should_give(tmp_path, runtime, batch_size):
    winner, out = of_phone(tmp_path, runtime, batch_size=batch_size), tmp_path / "out"
    done = desk.vitrail(
        "package", winner.path, "--for", "phone", "--out", out, cache=tmp_path, without_torch=True
    )
    assert done.returncode == 0, done.stderr
    check = json.loads((out / "check.json").read_text())
    entry = RUNTIMES[runtime].entry
    file = f"model/{entry.split('/')[0]}"  # CoreML's is a folder
    assert (check["engine"], check["precision"], check["model"]) == (runtime, "fp32", file)
    assert (out / "model" / entry).read_bytes() == b"a model's file"
    assert (out / check["labels"]).read_text(encoding="utf-8").splitlines()[1] == "daisy"
    assert check["inputs"][0]["layout"] == "NCHW"
    assert len(check["photos"]) == len(winner.photos) == 3
    for photo, path in zip(check["photos"], winner.photos, strict=True):
        assert (out / photo["image"]).read_bytes() == path.read_bytes()
        inputs = tensor(out, check, photo, "inputs")
        assert inputs.shape == (batch_size, 3, artifacts.SIZE, artifacts.SIZE)
        np.testing.assert_array_equal(inputs[-1:], prepare_batch([decode(path)], artifacts.PREPROCESS))
        scores = artifacts.numpy_scores(inputs)
        assert holds(check, scores, tensor(out, check, photo, "fp32"))
        assert holds(check, tensor(out, check, photo, "here"), scores)
        assert not holds(check, scores * 1.01, tensor(out, check, photo, "fp32"))
        assert photo["answer"] == scores[0].argmax()
        probabilities = np.sort(np.exp(scores[0]) / np.exp(scores[0]).sum())
        assert photo["clear"] == bool(probabilities[-1] - probabilities[-2] >= 0.1)
    page = (out / "README.md").read_text()
    assert re.search(r"None of it was compiled or run on a phone\.", page)
    assert RUNTIMES[runtime].label in page
    assert ("one photo 2 times" in page) == (batch_size == 2)
    assert "{{" not in page


def test_an_engine_that_phones_lack_is_one_sentence(tmp_path):
    winner = named(tmp_path)
    with pytest.raises(
        InputError, match=r"runs on OpenVINO, and this is for ExecuTorch, LiteRT and CoreML: make"
    ):
        package(winner.path, "phone", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_engine_of_phones_has_its_section():
    assert set(phone.APPS) == {name for name, row in RUNTIMES.items() if row.on_phones}


@pytest.mark.parametrize("measured", [True, False])
def test_figures_are_another_machines_only_where_there_are_figures(tmp_path, measured):
    winner = of_phone(tmp_path, measured=measured)
    notes = package(winner.path, "phone", tmp_path / "out").notes
    assert notes == (
        ("its latency and memory were measured on another machine, not on a phone",) if measured else ()
    )


def test_coreml_says_which_units_and_that_it_compiles_to(tmp_path):
    winner = of_phone(tmp_path, "coreml", settings=(("compute_units", "CPU_AND_NE"),))
    package(winner.path, "phone", tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "configuration.computeUnits = .cpuAndNeuralEngine" in page
    assert 'forResource: "model", withExtension: "mlmodelc"' in page


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An artifact of a program that ExecuTorch made."""
    pytest.importorskip("executorch", reason="executorch is too large for the extra dev (docs/unverified.md)")
    folder = tmp_path_factory.mktemp("real")
    import torch
    from torch import nn

    from vitrail.export import executorch
    from vitrail.export.requests import Form

    class Twin(nn.Module):
        """The network of artifacts.py."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 8, 3, bias=False)
            self.head = nn.Linear(8, len(artifacts.LABELS), bias=False)
            with torch.no_grad():
                self.convolution.weight.copy_(torch.from_numpy(artifacts.FILTERS))
                self.head.weight.copy_(torch.from_numpy(artifacts.HEAD.T))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.convolution(images).relu().mean((2, 3)))

    built = folder / "lowered"
    built.mkdir()
    noise = np.random.default_rng(0).standard_normal((1, 3, artifacts.SIZE, artifacts.SIZE), np.float32)
    form = Form(precision="fp32", batch_size=1, threads=0, settings={})
    executorch.lower(Twin().eval(), noise, built, form)
    return of_phone(folder / "of", model=(built / "model.pte").read_bytes())


@pytest.mark.slow
def test_a_program_gives_what_the_package_says(real, tmp_path):
    """Run by ExecuTorch's own runtime, on the package's files alone."""
    import torch

    from vitrail.export import executorch

    package(real.path, "phone", tmp_path / "out")
    check = json.loads((tmp_path / "out" / "check.json").read_text())
    method, _ = executorch._opened(tmp_path / "out" / check["model"])
    for photo in check["photos"]:
        inputs = tensor(tmp_path / "out", check, photo, "inputs")
        (given,) = method([torch.from_numpy(inputs)])
        assert holds(check, given.numpy(), tensor(tmp_path / "out", check, photo, "fp32"))


@pytest.mark.slow
def test_every_command_that_runs_artifacts_runs_one_of_executorch(real, tmp_path):
    done = desk.vitrail("verify", real.path, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "holds its claims" in done.stdout
    best = [artifacts.LABELS[row.argmax()] for row in real.fp32_outputs()["scores"]]
    done = desk.vitrail("predict", real.path, *real.photos, "--json", "-", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["predictions"]
    assert [each["top"][0]["label"] for each in found] == best
    photos = real.path / "reference" / "photos"
    done = desk.vitrail(
        "batch", real.path, photos, "--out", tmp_path / "rows", "--format", "jsonl", cache=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = [line for file in (tmp_path / "rows" / "results").iterdir() for line in file.open()]
    assert sorted(json.loads(line)["label"] for line in lines) == sorted(best)
    with Server(f"tiny={real.path}", cache=tmp_path) as server:
        for photo, label in zip(real.photos, best, strict=True):
            answer = server.post("/v1/classify", photo.read_bytes()).json()
            assert answer["results"][0]["labels"][0]["label"] == label


@pytest.mark.parametrize("target", ["docker", "triton", "openvino-model-server"])
@pytest.mark.parametrize("runtime", [name for name, row in RUNTIMES.items() if "cpu" not in row.devices])
def test_an_engine_of_gpus_is_served_where_they_are(tmp_path, runtime, target):
    winner = of_phone(tmp_path, runtime)
    with pytest.raises(InputError) as refused:
        package(winner.path, target, tmp_path / "out")
    said = str(refused.value)
    assert f"run `vitrail serve {winner.path}` on the machine with the GPU" in said
    extra = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}.get(runtime, "cuda")
    assert f"vitrail[serve,{extra}]" in said
    assert "use docker" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["docker", "triton", "openvino-model-server"])
def test_coreml_is_served_on_a_mac_or_taken_by_a_phone(tmp_path, target):
    winner = of_phone(tmp_path, "coreml")
    said = f"run `vitrail serve {winner.path}` on macOS, or use phone."
    with pytest.raises(InputError, match=re.escape(said)):
        package(winner.path, target, tmp_path / "out")


def test_an_image_of_it_installs_the_engine_and_torch_for_cpus(tmp_path):
    package(of_phone(tmp_path).path, "docker", tmp_path / "out")
    (build, *_) = [rest for name, rest in instructions(tmp_path / "out" / "Dockerfile") if name == "RUN"]
    assert '--extra-index-url ${TORCH} --find-links /wheels "vitrail[serve,executorch]==' in build
    given = [rest for name, rest in instructions(tmp_path / "out" / "Dockerfile") if name == "ARG"]
    assert given[1] == "TORCH=https://download.pytorch.org/whl/cpu"
    package(named(tmp_path / "plain").path, "docker", tmp_path / "without")
    assert "TORCH" not in (tmp_path / "without" / "Dockerfile").read_text()
