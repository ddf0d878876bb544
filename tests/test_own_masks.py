"""A person's own ONNX file that makes masks: copied, or refused; photos with masks; the road."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import artifacts
import mask_nets
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import own_nets
import pytest
from mask_nets import CLASSES, SAID, SIZE, net, write_photos
from PIL import Image

from vitrail import cli, hardware
from vitrail import load as load_artifact
from vitrail.artifact import Evidence, open_artifact, write
from vitrail.artifact.bundle import _entries
from vitrail.artifact.manifest import decode, encode
from vitrail.errors import InputError
from vitrail.export import own_masks, own_onnx
from vitrail.export.bench import Bench
from vitrail.export.calibration import calibration
from vitrail.export.requests import OwnRequest
from vitrail.export.variants import variants
from vitrail.export.workshop import Workshop
from vitrail.images.photos import photo_folder
from vitrail.masks import rle
from vitrail.masks.dataset import IGNORED, load
from vitrail.sources.gather import check_task
from vitrail.sources.own_onnx import OwnONNX
from vitrail.sources.prepared import example, prepared
from vitrail.sources.source import Context
from vitrail.vocabulary import Requirements, SearchSettings, Variant, Workload
from vitrail.weights.find import WeightsFinder

IMAGES = np.random.default_rng(5).uniform(-2, 2, (3, 3, SIZE, SIZE)).astype(np.float32)


def asked(path: Path, classes: int = 3, **said: object) -> OwnRequest:
    found = prepared({**SAID, **said})
    return OwnRequest(
        file=str(path), preprocess=found.preprocess, classes=classes, batch_size=1, threads=1,
        output=found.output, task="segment", values=found.values,
    )  # fmt: skip


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def run(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: images})[0]


def as_masks(given: np.ndarray, maps: str) -> np.ndarray:
    return {"NCHW": given, "NHWC": np.moveaxis(given, -1, 1), "NHW": given[:, None]}[maps]


# --- the copy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "maps"), [(3, "NCHW"), (3, "NHWC"), (1, "NCHW"), (1, "NHW"), (1, "NHWC")]
)
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_copy_gives_the_file_s_maps(tmp_path, classes, maps, batch):
    path = saved(net(classes=classes, maps=maps, batch=batch), tmp_path)
    facts = own_onnx.write_copy(asked(path, classes), tmp_path / "copy.onnx")
    assert (facts["values"], facts["height"], facts["width"]) == ("logits", 16, 16)
    found = run(tmp_path / "copy.onnx", "images", IMAGES)
    each = [run(path, "pixels", IMAGES[i : i + 1]) for i in range(3)]
    assert found.shape == (3, classes, 16, 16)
    np.testing.assert_allclose(found, as_masks(np.concatenate(each), maps), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(own_onnx.open_own(asked(path, classes)).runner(1)(IMAGES), found, atol=1e-5)


@pytest.mark.parametrize(
    "ending", [("Softmax",), ("ArgMax",), ("Softmax", "ArgMax"), ("Softmax", "Identity")]
)
@pytest.mark.parametrize("maps", ["NCHW", "NHWC"])
def test_scores_of_classes_are_read_before_what_decides(tmp_path, ending, maps):
    path = saved(net(ending=ending, maps=maps), tmp_path)
    facts = own_onnx.describe(msgspec.to_builtins(asked(path)))
    name = "ArgMax" if "ArgMax" in ending else "Softmax"
    assert facts["notes"] == [
        f"net.onnx ends in a {name}: its scores are read before it, which changes no mask"
    ]
    own_onnx.write_copy(asked(path), tmp_path / "copy.onnx")
    found = run(tmp_path / "copy.onnx", "images", IMAGES).argmax(axis=1)
    given = run(path, "pixels", IMAGES)
    expected = given if name == "ArgMax" else as_masks(given, maps).argmax(axis=1)
    assert np.array_equal(found, expected)


def test_a_cut_out_is_read_before_its_sigmoid_or_as_probabilities(tmp_path):
    path = saved(net(classes=1, ending=("Sigmoid",)), tmp_path)
    own_onnx.write_copy(asked(path, 1), tmp_path / "copy.onnx")
    given = run(path, "pixels", IMAGES)
    assert np.array_equal(run(tmp_path / "copy.onnx", "images", IMAGES) > 0, given > 0.5)
    # After a Clip nobody can tell, so the values say it, or the person.
    clipped = net(classes=1, ending=("Sigmoid", "Relu"))
    path = saved(clipped, tmp_path)
    facts = own_onnx.describe(msgspec.to_builtins(asked(path, 1)))
    assert facts["own"]["values"] == "probabilities"
    assert "inside above 0.5, as they lie from 0 to 1" in facts["notes"][0]
    facts = own_onnx.describe(msgspec.to_builtins(asked(path, 1, values="logits")))
    assert (facts["own"]["values"], facts["notes"]) == ("logits", [])


def test_costs_and_the_example_are_of_the_file(tmp_path):
    path = saved(net(), tmp_path)
    facts = own_onnx.describe(msgspec.to_builtins(asked(path)))
    assert facts["macs"] == 32 * 32 * 12 * 27 + 16 * 16 * 3 * 12
    text = example(own_onnx.inspect({"file": str(path)}), path.name, "segment")
    (tmp_path / "p.toml").write_text(text)
    found = prepared(tmp_path / "p.toml").preprocess
    assert (found.crop, found.crop_mode, found.image_size) == (1.0, "squash", SIZE)


# --- refused ----------------------------------------------------------------------------------------


def refusal(request: OwnRequest) -> str:
    facts = own_onnx.describe(msgspec.to_builtins(request))
    assert set(facts) == {"refused"}, facts
    assert "\n" not in facts["refused"]
    return facts["refused"]


def test_what_makes_no_masks_is_refused(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(own_nets.net().SerializeToString())
    assert "gives logits (B, 3), not a map of scores for each image" in refusal(asked(tmp_path / "net.onnx"))
    path = saved(net(), tmp_path)
    assert "3 maps for each image, and --labels holds 2 labels: give one for each" in refusal(asked(path, 2))
    plain = msgspec.structs.replace(asked(path), task="classify")
    assert "for masks, give --task segment" in refusal(plain)
    path = saved(net(classes=1), tmp_path)
    assert "1 map for each image, and --labels holds 3 labels: give one, the name" in refusal(asked(path))
    monkeypatch.setattr(own_masks, "MOST_VALUES", 200)
    assert "256 values for each image and above the limit of 200" in refusal(asked(path, 1))


def test_an_ending_over_something_else_is_refused(tmp_path):
    model = net(ending=("Softmax",), maps="NHWC")
    model.graph.node[-1].attribute[0].i = 1  # over the rows
    path = saved(model, tmp_path)
    assert "ends in a Softmax that is not over the classes" in refusal(asked(path))


@pytest.mark.parametrize(
    ("arguments", "toml", "said"),
    [
        ([], {"crop": 0.875}, "masks are about whole photos: say crop_mode"),
        ([], {"crop_mode": "center"}, "masks are about whole photos: say crop_mode"),
        (["--models", "resnet*"], {}, "none of which makes masks"),
        (["--min-iou", "80"], {}, "give labelled images with --data DIR"),
        (["--min-recall", "disc=80"], {}, "--min-recall is for --task classify"),
        (["--layout", "class"], {}, "--layout is about folders of classes"),
    ],
)
def test_a_wrong_question_is_one_sentence(tmp_path, capsys, monkeypatch, arguments, toml, said):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    options = mask_nets.saved(net(), tmp_path)
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**SAID, **toml}.items())
    (tmp_path / "prepared.toml").write_text(text)
    assert cli.main(["select", *options, *arguments]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("error:") == 1


def test_masks_need_a_model_of_one_s_own(capsys):
    assert cli.main(["select", "--task", "segment"]) == 2
    assert "give your own with --onnx FILE" in capsys.readouterr().err
    with pytest.raises(InputError, match="is about classes"):
        check_task([OwnONNX(file="x", labels="y")], "embed")


# --- photos with masks ------------------------------------------------------------------------------


def test_a_folder_of_masks_is_split_and_read(tmp_path):
    found = load(write_photos(tmp_path / "d", 10, masks="classes"), CLASSES)
    assert {split: len(found.of(split)) for split in ("train", "validation", "test")} == {
        "train": 6, "validation": 2, "test": 2,
    }  # fmt: skip
    for example_ in found.examples:
        number = int(Path(example_.path).stem)
        _, labels = mask_nets.photo(number, (60 + number % 3, 90))
        assert np.array_equal(found.truth(example_), labels)
    assert "10 photos with PNG masks of classes" in found.found
    again = load(tmp_path / "d", CLASSES)
    assert again.digest == found.digest
    inside = load(write_photos(tmp_path / "i", 5, masks="inside"), ("disc",))
    assert set(np.unique(inside.truth(inside.examples[0]))) == {0, 1}


def test_equal_photos_count_once_and_contradictions_not_at_all(tmp_path):
    folder = write_photos(tmp_path / "d", 6, masks="classes")
    for new, photo, mask in ((90, 0, 0), (91, 1, 2)):
        (folder / "photos" / f"{new}.jpg").write_bytes((folder / "photos" / f"0{photo}.jpg").read_bytes())
        size = Image.open(folder / "masks" / f"0{photo}.png").size
        Image.open(folder / "masks" / f"0{mask}.png").resize(size, Image.NEAREST).save(
            folder / "masks" / f"{new}.png"
        )
    if (folder / "masks" / "90.png").read_bytes() != (folder / "masks" / "00.png").read_bytes():
        (folder / "masks" / "90.png").write_bytes((folder / "masks" / "00.png").read_bytes())
    found = load(folder, CLASSES)
    assert (len(found.examples), found.duplicates, len(found.conflicts)) == (5, 1, 1)
    assert found.doubts() == (
        "1 photo is a copy and counts once",
        "1 photo has different masks and is left out",
    )


def coco(folder: Path, categories: tuple[str, ...], count: int = 4) -> Path:
    """Photos in images/, and annotations of the disc (and the bar) beside them."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        photo, labels = mask_nets.photo(number)
        photo.save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 90})
        for place, name in enumerate(categories):
            mask = labels == CLASSES.index(name)
            annotations.append(
                {"image_id": number, "category_id": 10 * place, "segmentation": rle.encode(mask).coco()}
            )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 10 * place, "name": name} for place, name in enumerate(categories)],
    }
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def test_coco_s_annotations_become_labels(tmp_path):
    folder = coco(tmp_path / "c", ("disc", "bar"))
    for place in (folder, folder / "annotations.json"):
        found = load(place, ("background", "bar", "disc"))
        for example_ in found.examples:
            _, labels = mask_nets.photo(int(Path(example_.path).stem))
            assert np.array_equal(found.truth(example_), np.array([0, 2, 1])[labels])
    ignoring = load(folder, ("bar", "disc"))
    truth = ignoring.truth(ignoring.examples[0])
    assert set(np.unique(truth)) == {IGNORED, 0, 1}
    only = load(folder, ("disc",))
    _, labels = mask_nets.photo(int(Path(only.examples[0].path).stem))
    assert np.array_equal(only.truth(only.examples[0]) == 1, labels == 1)
    anything = load(folder, ("thing",))
    assert np.array_equal(anything.truth(anything.examples[0]) == 1, labels > 0)
    with pytest.raises(InputError, match=r"categories that --labels does not name \(disc\)"):
        load(folder, ("bar", "dog"))


def test_masks_of_other_classes_or_sizes_are_refused(tmp_path):
    folder = write_photos(tmp_path / "d", 4, masks="classes")
    with pytest.raises(InputError, match="cuts out one thing"):
        load(folder, ("disc",))
    with pytest.raises(InputError, match="values up to 2, and --labels names 2 classes"):
        load(folder, ("ground", "disc"))
    inside = write_photos(tmp_path / "i", 4, masks="inside")
    with pytest.raises(InputError, match="says only what is inside, and the model has 3"):
        load(inside, CLASSES)
    Image.new("L", (91, 60)).save(folder / "masks" / "00.png")
    with pytest.raises(InputError, match=r"90 × 60 pixels, but its mask 91 × 60"):
        load(folder, CLASSES)
    few = write_photos(tmp_path / "f", 2, masks="classes")
    with pytest.raises(InputError, match="2 usable distinct photos with masks: give at least 3"):
        load(few, CLASSES)
    for name in ("a.json", "b.json"):
        (few / "photos" / name).write_text("{}")
    with pytest.raises(InputError, match="2 JSON files"):
        load(few / "photos", CLASSES)


# --- the road ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A folder with an artifact for fp32, int8 and, where the CPU has it, bf16, and what was judged."""
    place = tmp_path_factory.mktemp("masks")
    mask_nets.saved(net(ending=("Softmax",)), place)
    write_photos(place / "data", 60, masks="classes", first=100)
    write_photos(place / "photos", 12)
    with pytest.MonkeyPatch.context() as patch, Workshop() as workshop:
        patch.setenv("VITRAIL_CACHE", str(place / "cache"))
        settings = SearchSettings(offline=True, task="segment", passes=())
        source = OwnONNX(file=str(place / "net.onnx"), labels=str(place / "labels.txt"), preprocess=SAID)
        dataset = source.read_labelled(str(place / "data"), settings)
        photos = photo_folder(str(place / "photos"))
        found, photos = calibration(None, None, dataset, photos)
        bench = Bench(
            workload=Workload(threads=1),
            photos=photos,
            finder=WeightsFinder(offline=True),
            machine=hardware.facts(),
            fresh=True,
            workshop=workshop,
            calibration=found,
            max_drop=5.0,
            dataset=dataset,
        )
        context = Context(requirements=Requirements(), settings=settings, bench=bench, download_mib=0)
        (candidate,) = source.find(context).candidates
        judged = {}
        for form in variants([candidate], bench.workload, settings, int8=True):
            if form.runtime == "openvino":
                judged[form.precision] = ship(bench, form, place)
        (place / "judged.json").write_bytes(msgspec.json.encode(judged))
    return place


def ship(bench: Bench, form: Variant, place: Path) -> dict[str, object]:
    export = bench.export(form, timeout_s=120)
    parity = bench.parity(bench.subject(form, export), left_s=60)
    quality = bench.quality(form, export, "validation")
    evidence = Evidence(
        requirements=Requirements(), workload=bench.workload, accuracy=None, parity=parity, quality=quality,
        hardware={},
    )  # fmt: skip
    write(place / form.precision, bench.bundle(form, export, None, evidence))
    return {"parity": msgspec.to_builtins(parity), "mean": quality.main.value, "tried": export.rewriting}


@pytest.mark.slow
def test_every_precision_is_judged_and_keeps_its_masks(shipped):
    judged = msgspec.json.decode((shipped / "judged.json").read_bytes())
    assert {"fp32", "int8"} <= set(judged)
    for precision, found in judged.items():
        parity = found["parity"]
        assert parity["answer"] == "pass", (precision, parity["reason"])
        assert parity["decided"] >= 8
        assert Path(parity["worst"]).parent == shipped / "photos"
        assert found["mean"] > 90, precision
    assert judged["fp32"]["parity"]["figures"][0]["value"] > 99.9
    (_, drop), *_ = judged["int8"]["tried"]["tried"]
    assert 0 <= drop <= 5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_artifact_makes_masks_and_verifies(shipped, tmp_path, capsys, precision):
    artifact = shipped / precision
    photos = [shipped / "photos" / f"{number:02d}.png" for number in range(3)]
    out = tmp_path / "out"
    assert cli.main(["segment", str(artifact), *map(str, photos), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("ground") == 3
    with load_artifact(artifact) as model:
        found = model.segment(photos)
    for photo, each in zip(photos, found, strict=True):
        number = int(photo.stem)
        _, labels = mask_nets.photo(number, (60 + number % 3, 90))
        written = np.asarray(Image.open(out / "masks" / f"{photo.stem}.png"))
        assert np.array_equal(written, each.labels())
        assert (written == labels).mean() > 0.95
        assert Image.open(out / "overlays" / f"{photo.stem}.jpg").size == Image.open(photo).size
    assert cli.main(["verify", str(artifact)]) == 0
    assert "masks of fp32" in capsys.readouterr().out
    table = tmp_path / "table"
    assert (
        cli.main(["batch", str(artifact), str(shipped / "photos"), "--out", str(table), "--format", "jsonl"])
        == 0
    )
    capsys.readouterr()
    rows = [
        json.loads(line) for part in (table / "results").iterdir() for line in part.read_text().splitlines()
    ]
    assert len(rows) == 12
    assert all(sum(row["shares"]) == pytest.approx(1) for row in rows)


@pytest.mark.slow
def test_making_masks_loads_no_torch(shipped, tmp_path):
    arguments = [
        "segment",
        str(shipped / "fp32"),
        str(shipped / "photos" / "00.png"),
        "--out",
        str(tmp_path / "o"),
    ]
    code = (
        "import sys; from vitrail.cli import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'timm', 'onnx', 'nncf', 'sklearn', 'scipy', 'onnxruntime'}\n"
        "assert not heavy & {name.split('.')[0] for name in sys.modules}, 'loaded'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_damaged_graph_does_not_verify(shipped, tmp_path, capsys):
    """The digests are made to fit, so that only its outputs can tell."""
    artifact = open_artifact(shipped / "fp32")
    swapped = own_onnx_copy(net(ending=("Softmax",), swap=True), tmp_path)
    model = ov.convert_model(str(swapped))
    target = tmp_path / "damaged"
    forge(artifact.path, target, lambda folder: ov.save_model(model, folder / "model" / "model.xml", False))
    assert cli.main(["verify", str(target)]) == 3
    assert "does not hold its claims" in capsys.readouterr().out


def own_onnx_copy(model: onnx.ModelProto, folder: Path) -> Path:
    own_onnx.write_copy(asked(saved(model, folder)), folder / "copy.onnx")
    return folder / "copy.onnx"


def forge(source: Path, target: Path, change: object) -> None:
    """A copy of an artifact with other files, whose manifest fits them."""
    shutil.copytree(source, target)
    manifest = decode((target / "manifest.json").read_bytes(), "m")
    change(target)
    (target / "manifest.json").unlink()
    (target / "manifest.json").write_bytes(encode(replace(manifest, files=_entries(target))))


@pytest.mark.slow
def test_other_commands_say_what_to_use(shipped, tmp_path, capsys):
    artifact, photo = str(shipped / "fp32"), str(shipped / "photos" / "00.png")
    assert cli.main(["predict", artifact, photo]) == 2
    assert "its task is segment, use vitrail segment" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("x")
    for out, overwrite in ((tmp_path / "mine", True), (tmp_path / "mine", False)):
        extra = ["--overwrite"] if overwrite else []
        assert cli.main(["segment", artifact, photo, "--out", str(out), *extra]) == 2
    assert (tmp_path / "mine" / "keep.txt").exists()
    assert cli.main(["segment", artifact, "none.jpg", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    assert cli.main(["segment", artifact, "none.jpg", photo, "--out", str(tmp_path / "one")]) == 1


def test_a_classifier_makes_no_masks(tmp_path, capsys):
    winner = artifacts.make_artifact(tmp_path / "winner")
    photo = str(winner.photos[0])
    assert cli.main(["segment", str(winner.path), photo, "--out", str(tmp_path / "out")]) == 2
    assert "makes no masks, it is to classify: use vitrail predict" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
