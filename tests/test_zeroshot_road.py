"""From class names to an exported classifier on the road, with a small CLIP in ViT-B-32's place."""

import dataclasses
from types import SimpleNamespace

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from vitrail import hardware
from vitrail.artifact import Evidence, write
from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.export import bench, work
from vitrail.export.variants import variants
from vitrail.images.photos import sample_photos
from vitrail.models import clip, factory
from vitrail.predict import load
from vitrail.sources import zero_shot
from vitrail.sources.catalogue import Catalogue
from vitrail.sources.gather import arranged, find, gather
from vitrail.sources.source import Context
from vitrail.text.tokenizer import load_tokenizer
from vitrail.vocabulary import Requirements, SearchSettings, Workload
from vitrail.zeroshot import fold
from vitrail.zeroshot.hub import Finder

pytestmark = pytest.mark.slow

TEMPLATES = ("a photo of a {}.", "a drawing of the {}.")
CLASSES = ("corgi dog", "persian cat", "teapot")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A CLIP of 2 + 2 blocks under ViT-B-32's name, its weights, and calls of a child in this process."""
    full = clip.VARIANTS["ViT-B-32"]
    image = dataclasses.replace(
        full.image, image_size=(64, 64), patch_size=16, width=64, depth=2, heads=2, num_classes=32
    )
    text = dataclasses.replace(full.text, width=48, depth=2, heads=2, embed_width=32)
    config = dataclasses.replace(full, image=image, text=text)
    monkeypatch.setitem(clip.VARIANTS, "ViT-B-32", config)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = factory.build("ViT-B-32").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter += 0.1 * torch.randn_like(parameter)
    weights = tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    monkeypatch.setattr(zero_shot.sandbox, "call", lambda _, payload, **__: fold.fold(payload))
    return model, weights


def found_for(weights, **changes):
    own = zero_shot.OwnCLIP(file=str(weights), arch="ViT-B-32", tag="laion2b_s34b_b79k", **changes)
    names = zero_shot.ClassNames(classes=CLASSES, templates=TEMPLATES, own=own)
    return zero_shot.of_names(names, (), Finder(offline=True), threads=2)


def expected_logits(model, images):
    tokenizer = load_tokenizer(model.config.text)
    rows = []
    for name in CLASSES:
        text = model.encode_text(
            torch.from_numpy(tokenizer([template.format(name) for template in TEMPLATES]))
        )
        rows.append(F.normalize(text.mean(0), dim=0))
    return model.encode_image(images) @ torch.stack(rows).T * model.scale()


def test_names_become_a_classifier_that_the_engine_runs_as_the_two_towers_would(small, tmp_path):
    model, weights = small
    (candidate,) = found_for(weights).candidates
    assert candidate.name == "ViT-B-32.laion2b_s34b_b79k+zero-shot"
    assert candidate.accuracy is None
    assert candidate.weights.license == "own"
    (form,) = variants(
        [candidate], Workload(), SearchSettings(runtimes=("onnxruntime",), precisions=("fp32",))
    )
    assert form.implementation == "vitrail"
    work.export(
        {
            "architecture": candidate.architecture,
            "implementation": form.implementation,
            "image_size": 64,
            "labels": candidate.labels,
            "weights": candidate.weights.reference,
            "folder": str(tmp_path / "export"),
            "threads": 2,
        }
    )
    session = onnxruntime.InferenceSession(tmp_path / "export" / work.ONNX_FILE)
    images = torch.randn(7, 3, 64, 64)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        expected = expected_logits(model, images).numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (tmp_path / "export" / work.LABELS_FILE).read_text() == "corgi dog\npersian cat\nteapot\n"


@pytest.mark.parametrize(("bias", "kind"), [(None, "softmax"), (-10.0, "sigmoid")])
def test_what_ships_of_a_siglip_says_that_each_score_stands_alone(small, tmp_path, monkeypatch, bias, kind):
    """From the weights' bias over the export to what `predict` reads of the artifact."""
    config = dataclasses.replace(clip.VARIANTS["ViT-B-32"], bias=bias)
    monkeypatch.setitem(clip.VARIANTS, "ViT-B-32", config)
    torch.manual_seed(0)
    save_file(
        {name: tensor.contiguous() for name, tensor in factory.build("ViT-B-32").state_dict().items()},
        small[1],
    )
    (candidate,) = found_for(small[1]).candidates
    wanted = SearchSettings(runtimes=("onnxruntime",), precisions=("fp32",))
    (form,) = variants([candidate], Workload(), wanted)
    own = bench.Bench(
        workload=Workload(threads=2),
        photos=sample_photos(),
        finder=Finder(offline=True),
        machine=hardware.facts(),
    )
    here = SimpleNamespace(run=lambda _, request, **__: work.export(msgspec.to_builtins(request)))
    monkeypatch.setattr(own, "workshop", here)
    export = own.export(form, 60.0)
    outputs = {"scores": np.zeros((1, 1, 3), np.float32)}
    monkeypatch.setattr(own, "reference_outputs", lambda variant: outputs)
    launch = SimpleNamespace(outputs=lambda *_: outputs, close=lambda: None)
    subject = SimpleNamespace(launch=lambda _: launch, task=own.task(form))
    monkeypatch.setattr(own, "subject", lambda *_: subject)
    evidence = Evidence(requirements=Requirements(), workload=Workload(threads=2))
    made = write(tmp_path / "artifact", own.bundle(form, export, None, evidence))
    assert made.task.probability == kind
    with load(made.path) as predictor:
        assert predictor.task.probability == kind


def test_the_same_names_are_folded_once_and_other_ones_anew(small, monkeypatch):
    _, weights = small
    first = found_for(weights)
    monkeypatch.setattr(zero_shot.sandbox, "call", None)
    assert found_for(weights) == first
    own = zero_shot.OwnCLIP(file=str(weights), arch="ViT-B-32", tag="laion2b_s34b_b79k")
    names = zero_shot.ClassNames(classes=CLASSES[:2], templates=TEMPLATES, own=own)
    with pytest.raises(TypeError):
        zero_shot.of_names(names, (), Finder(offline=True), threads=2)


def test_weights_of_another_architecture_are_refused(small, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, wrong)
    with pytest.raises(InputError, match="does not fit ViT-B-32: missing"):
        found_for(wrong)


def test_published_weights_that_are_not_here_are_counted(small):
    _, weights = small
    rows = zero_shot.matching(["ViT-B-32", "vit-l-14.*"])
    assert {row.model for row in rows} == {"ViT-B-32", "ViT-L-14"}
    own = zero_shot.OwnCLIP(file=str(weights), arch="ViT-B-32", tag="laion2b_s34b_b79k")
    names = zero_shot.ClassNames(classes=CLASSES, templates=TEMPLATES, own=own)
    found = zero_shot.of_names(names, rows, Finder(offline=True), threads=2)
    assert len(found.candidates) == 1
    assert f"and {len(rows) - 1} more" in found.notes[0]
    with pytest.raises(InputError, match="No CLIP weights are at hand"):
        zero_shot.of_names(dataclasses.replace(names, own=None), rows, Finder(offline=True), threads=2)


def context(models=(), *, dataset=None):
    bench = SimpleNamespace(dataset=dataset, threads=2)
    return Context(
        requirements=Requirements(),
        settings=SearchSettings(models=models, offline=True),
        bench=bench,
        download_mib=0.0,
    )


def test_class_names_are_alone_without_images_and_compete_with_probes_where_there_are_some(small):
    names = zero_shot.ClassNames(classes=CLASSES, templates=TEMPLATES)
    images = SimpleNamespace(classes=CLASSES)
    assert arranged([names], SearchSettings(), None) == (names,)
    assert arranged([names], SearchSettings(models=("swin_*",)), None) == (names,)
    first, catalogue = arranged([names], SearchSettings(models=("swin_*", "ViT-B-16")), images)
    assert first == names
    found = catalogue.find(context(("swin_*", "ViT-B-16"), dataset=images)).candidates
    assert {candidate.family for candidate in found} == {"swin"}
    assert not catalogue.find(context(("ViT-B-16",), dataset=images)).candidates
    with pytest.raises(InputError, match="No model matches 'swan_"):
        catalogue.find(context(("swan_*", "ViT-B-16"), dataset=images))
    with pytest.raises(InputError, match="No CLIP matches"):
        names.check(Requirements(), SearchSettings(models=("swin_*",)), None)
    own = dataclasses.replace(names, own=zero_shot.OwnCLIP(file=str(small[1]), arch="ViT-B-32"))
    assert arranged([own], SearchSettings(), images) == (own,)
    assert len(arranged([own], SearchSettings(models=("swin_*",)), images)) == 2


def test_without_any_clip_the_others_go_on_and_nothing_at_all_is_refused(monkeypatch):
    names = zero_shot.ClassNames(classes=CLASSES, templates=TEMPLATES)
    alone = context()
    found = names.find(alone)
    assert not found.candidates
    assert "No CLIP weights are at hand" in found.notes[0]
    with pytest.raises(InputError, match="No CLIP weights are at hand"):
        gather(find([names], alone), alone)
    both = gather(find([names, Catalogue()], alone), alone)
    assert both.candidates
    assert both.notes == found.notes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--classes", "a cat,A Cat"], "a cat"),
        (["--classes", "cat"], "one"),
        (["--classes", "a dog,a cat", "--min-accuracy", "90"], "--data DIR"),
        (["--classes", "a dog,a cat", "--weights", "missing.safetensors"], "--arch"),
        (["--classes", "a dog,a cat", "--weights", "x", "--arch", "ViT-B-32", "--labels", "l"], "--labels"),
        (["--classes", "a dog,a cat", "--implementations", "timm"], "add vitrail to --implementations"),
        (["--classes", "a dog,a cat", "--weights", "gone.st", "--arch", "ViT-B-32"], "no weights file"),
        (["--prompts", "simple"], "--classes"),
        (["--min-recall", "defect=95"], "--data DIR"),
        (["--data", "missing"], "missing"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    assert main(["select", "--offline", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
