"""Folder layouts that public data sets have: what is a class, what a split, what is refused. About 2 s."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data import load
from vitrail.data.layouts import recognise, split_names
from vitrail.data.records import LAYOUTS
from vitrail.errors import InputError

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def tree(root: Path, *patterns: str) -> Path:
    """Files named by `a/{b,c}/x.png` patterns; a text file where the name does not end in .png."""
    for pattern in patterns:
        for name in expanded(pattern):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG\r\n\x1a\n" if name.endswith(".png") else b"text")
    return root


def expanded(pattern: str) -> list[str]:
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, tail = rest.partition("}")
    return [head + choice + end for choice in inside.split(",") for end in expanded(tail)]


BOTH = {"cat", "dog"}

# Name: files, then layout, classes and splits that are right, and how many images have no class.
LAYOUTS_SEEN = {
    "flowers (class folders)": (["{cat,dog}/0.png"], "class", BOTH, {}, 0),
    "ImageNet": (
        ["{train,val}/{n01440764,n01443537}/0.png", "test/{0,1,2}.png"],
        "split/class", {"n01440764", "n01443537"}, {"train": TRAIN, "val": VALIDATION, "test": TEST}, 3,
    ),
    "Tiny ImageNet": (
        ["train/{n1,n2}/images/0.png", "train/n1/n1_boxes.txt", "val/images/{0,1}.png", "test/images/0.png"],
        "split/class", {"n1", "n2"}, {"train": TRAIN, "val": VALIDATION, "test": TEST}, 3,
    ),
    "Imagenette in its archive's folder": (
        ["imagenette2/{train,val}/{cat,dog}/0.png", "imagenette2/noisy_imagenette.csv"],
        "split/class", BOTH, {"train": TRAIN, "val": VALIDATION}, 0,
    ),
    "Brain tumor MRI": (
        ["{Training,Testing}/{cat,dog}/0.png"], "split/class", BOTH, {"Training": TRAIN, "Testing": TEST}, 0,
    ),
    "MNIST as PNG": (
        ["{training,testing}/{0,1,2}/0.png"],
        "split/class", {"0", "1", "2"}, {"training": TRAIN, "testing": TEST}, 0,
    ),
    "train and dev": (
        ["{train,dev}/{cat,dog}/0.png"], "split/class", BOTH, {"train": TRAIN, "dev": VALIDATION}, 0,
    ),
    "train and eval": (
        ["{train,eval}/{cat,dog}/0.png"], "split/class", BOTH, {"train": TRAIN, "eval": TEST}, 0,
    ),
    "Intel Image Classification": (
        ["seg_train/seg_train/{cat,dog}/0.png", "seg_test/seg_test/{cat,dog}/0.png",
         "seg_pred/seg_pred/{0,1}.png"],
        "split/class", BOTH, {"seg_train": TRAIN, "seg_test": TEST}, 2,
    ),
    "ASL alphabet": (
        ["asl_alphabet_train/asl_alphabet_train/{cat,dog}/0.png",
         "asl_alphabet_test/asl_alphabet_test/0.png"],
        "split/class", BOTH, {"asl_alphabet_train": TRAIN, "asl_alphabet_test": TEST}, 1,
    ),
    "Cat and dog (training_set)": (
        ["training_set/training_set/{cat,dog}/0.png", "test_set/test_set/{cat,dog}/0.png"],
        "split/class", BOTH, {"training_set": TRAIN, "test_set": TEST}, 0,
    ),
    "Chest X-ray": (
        ["chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/0.png", "__MACOSX/chest_xray/train/._0.png"],
        "split/class", {"NORMAL", "PNEUMONIA"}, {"train": TRAIN, "val": VALIDATION, "test": TEST}, 0,
    ),
    "Fruits-360": (
        ["{Training,Test}/{Apple 1,Pear}/0.png", "test-multiple_fruits/{0,1}.png", "LICENSE"],
        "split/class", {"Apple 1", "Pear"}, {"Training": TRAIN, "Test": TEST}, 2,
    ),
    "New Plant Diseases": (
        ["{train,valid}/{cat,dog}/0.png", "test/test/{0,1}.png"],
        "split/class", BOTH, {"train": TRAIN, "valid": VALIDATION, "test": TEST}, 2,
    ),
    "GTSRB": (
        ["Train/{0,1}/0.png", "Test/{0,1,2}.png", "Meta/{0,1}.png", "Train.csv"],
        "split/class", {"0", "1"}, {"Train": TRAIN, "Test": TEST}, 5,
    ),
    "years in the names": (
        ["{train2019,val2019}/{cat,dog}/0.png"],
        "split/class", BOTH, {"train2019": TRAIN, "val2019": VALIDATION}, 0,
    ),
    "split words with blanks": (
        ["{Training Data,Validation Data,Test Data}/{cat,dog}/0.png"], "split/class", BOTH,
        {"Training Data": TRAIN, "Validation Data": VALIDATION, "Test Data": TEST}, 0,
    ),
    "train/images/CLASS": (
        ["{train,test}/images/{cat,dog}/0.png"], "split/class", BOTH, {"train": TRAIN, "test": TEST}, 0,
    ),
    "train alone": (["train/{cat,dog}/0.png"], "split/class", BOTH, {"train": TRAIN}, 0),
    "Food-101": (["images/{cat,dog}/0.png", "meta/train.txt"], "class", BOTH, {}, 0),
    "Caltech-101": (["101_ObjectCategories/{cat,dog}/0.png", "Annotations/cat/0.mat"], "class", BOTH, {}, 0),
    "Stanford Dogs": (
        ["images/Images/{n02-cat,n03-dog}/0.png", "annotations/Annotation/n02-cat/0"],
        "class", {"n02-cat", "n03-dog"}, {}, 0,
    ),
    "DTD": (
        ["dtd/images/{cat,dog}/0.png", "dtd/labels/train1.txt", "dtd/imdb/imdb.mat"], "class", BOTH, {}, 0,
    ),
    "EuroSAT": (["EuroSAT/2750/{cat,dog}/0.png"], "class", BOTH, {}, 0),
    "annotations beside classes": (["{cat,dog}/0.png", "annotations/0.xml"], "class", BOTH, {}, 0),
    "deeper folders of a class": (["cat/{red,blue}/0.png", "dog/0.png"], "class", BOTH, {}, 0),
    "with and without mask": (
        ["{with_mask,without_mask}/0.png"], "class", {"with_mask", "without_mask"}, {}, 0,
    ),
    "vehicles": (["{car,train}/0.png"], "class", {"car", "train"}, {}, 0),
    "stations": (["{bus,train} station/0.png"], "class", {"bus station", "train station"}, {}, 0),
    "distracted driver": (["{c0,c1,c2}/0.png"], "class", {"c0", "c1", "c2"}, {}, 0),
    "class, then split": (
        ["{cat,dog}/{train,val,test}/0.png"],
        "class/split", BOTH, {"train": TRAIN, "val": VALIDATION, "test": TEST}, 0,
    ),
    "class, then Training and Testing, in a folder": (
        ["archive/{cat,dog}/{Training,Testing}/0.png"],
        "class/split", BOTH, {"Training": TRAIN, "Testing": TEST}, 0,
    ),
    "class, then split, with a stray image": (
        ["{cat,dog}/{train,test}/0.png", "cover.png"],
        "class/split", BOTH, {"train": TRAIN, "test": TEST}, 1,
    ),
    "a stray image beside the classes": (["{cat,dog}/0.png", "cover.png"], "class", BOTH, {}, 1),
    "a stray image beside the splits": (
        ["{train,test}/{cat,dog}/0.png", "cover.png", "train/1.png"],
        "split/class", BOTH, {"train": TRAIN, "test": TEST}, 2,
    ),
}  # fmt: skip

# Name: files, words of the refusal, and the options it must offer.
REFUSED = {
    "COCO": (["{train2017,val2017}/0.png", "annotations/a.json"], "no class folders in train", ["class"]),
    "YOLO": (
        ["{train,valid,test}/images/0.png", "{train,valid,test}/labels/0.txt"],
        "no class folders in train", ["class"],
    ),
    "YOLO, the other way": (
        ["images/{train,val}/0.png", "labels/{train,val}/0.txt"], "no class folders in train", ["class"],
    ),
    "train and test without classes": (["{train,test}/0.png"], "no class folders in train", ["class"]),
    "train without classes": (
        ["train/0.png", "test/{cat,dog}/0.png"], "no class folders in train", ["class"],
    ),
    "a folder beside the splits": (
        ["{train,test,holdout}/{cat,dog}/0.png"], "unknown split 'holdout'", ["class"],
    ),
    "a copy inside (chest_xray)": (
        ["{train,test}/{cat,dog}/0.png", "chest_xray/train/{cat,dog}/0.png"],
        "unknown split 'chest_xray'", ["class"],
    ),
    "MVTec AD, one object": (
        ["train/good/0.png", "test/{good,broken}/0.png", "ground_truth/broken/0.png"],
        "unknown split 'ground_truth'", ["class"],
    ),
    "MVTec AD": (
        ["{bottle,cable}/train/good/0.png", "{bottle,cable}/test/{good,broken}/0.png",
         "{bottle,cable}/ground_truth/broken/0.png"],
        "has folders of splits", ["class", "class/split"],
    ),
    "test beside classes": (["{cat,dog,test}/0.png"], "test next to cat", ["class"]),
    "train beside other sets": (["{train,sample}/{cat,dog}/0.png"], "train next to sample", ["class"]),
    "no train": (["{val,test}/{cat,dog}/0.png"], "no train folder", []),
    "Oxford pets": (
        ["images/{0,1}.png", "annotations/trimaps/{0,1}.png", "annotations/list.txt"],
        "images and annotations, which look like", ["class"],
    ),
    "segmentation": (["{images,masks}/0.png"], "images and masks, which look like", ["class"]),
    "Pascal VOC": (
        ["VOC2012/{JPEGImages,SegmentationClass,SegmentationObject}/0.png", "VOC2012/Annotations/0.xml"],
        "which look like", ["class"],
    ),
    "HAM10000": (["HAM10000_images_part_{1,2}/0.png"], "look like parts of one set", ["class"]),
    "folds": (["{fold1,fold2,fold3}/{cat,dog}/0.png"], "look like parts of one set", ["class"]),
    "some classes in splits": (
        ["cat/{train,test}/0.png", "dog/0.png"], "lay out all classes alike", ["class", "class/split"],
    ),
    "splits in classes with images beside them": (
        ["{cat,dog}/{train,test}/0.png", "dog/1.png"], "lay out all classes alike", ["class", "class/split"],
    ),
    "an empty class": (["cat/0.png", "dog/note.txt", "cow/0.png"], "dog holds no images", []),
    "an empty class in a split": (["{train,test}/cat/0.png", "train/dog/a.txt"], "dog holds no images", []),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS_SEEN)
def test_layouts_of_public_data_sets_are_recognised(tmp_path, name):
    files, layout, classes, splits, unplaced = LAYOUTS_SEEN[name]
    root = tree(tmp_path, *files)
    found = recognise(root)
    assert found.layout == layout
    assert {folder.label for folder in found.classes} == classes
    assert dict(found.splits) == splits
    assert len(found.unplaced) == unplaced
    assert {folder.split for folder in found.classes} <= {*splits.values(), *([] if splits else [None])}
    # Every image is in one class or named; but for what archives leave.
    images = {str(path) for path in root.rglob("*.png") if "__MACOSX" not in path.parts}
    placed = [str(path) for folder in found.classes for path in Path(folder.folder).rglob("*.png")]
    assert sorted([*placed, *(item.path for item in found.unplaced)]) == sorted(images)


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_with_the_option_that_decides(tmp_path, name):
    files, words, options = REFUSED[name]
    with pytest.raises(InputError) as error:
        recognise(tree(tmp_path, *files))
    said = str(error.value)
    assert words in said
    assert [layout for layout in LAYOUTS if f"--layout {layout} " in said.replace(".", " ")] == options
    assert "\n" not in said


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][2]])
def test_the_option_that_a_refusal_names_decides(tmp_path, name):
    files, _, options = REFUSED[name]
    root = tree(tmp_path, *files)
    while [entry.name for entry in root.iterdir() if any(entry.rglob("*.png"))][1:] == []:
        root = next(root.iterdir()) if len(list(root.iterdir())) == 1 else root / "images"
    found = recognise(root, options[0])
    assert found.layout == options[0]
    with_images = {entry.name for entry in root.iterdir() if any(entry.rglob("*.png"))}
    assert {folder.label for folder in found.classes} == with_images


def test_asked_layouts(tmp_path):
    root = tree(tmp_path / "a", "{cat,dog}/{train,test}/0.png")
    assert {(c.label, c.split) for c in recognise(root, "class/split").classes} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "test")
    }
    assert {(c.label, c.split) for c in recognise(root, "class").classes} == {("cat", None), ("dog", None)}
    with pytest.raises(InputError, match="no train folder"):
        recognise(root, "split/class")
    with pytest.raises(InputError, match="cat has no folders of splits"):
        recognise(tree(tmp_path / "b", "{cat,dog}/0.png"), "class/split")
    with pytest.raises(InputError, match="the unknown split 'more'"):
        recognise(tree(tmp_path / "c", "{cat,dog}/{train,more}/0.png"), "class/split")
    with pytest.raises(InputError, match="choose class, split/class or class/split"):
        recognise(root, "classes")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "test"], ["train", "test"]),
        (["TRAIN", "Valid"], ["train", "validation"]),
        (["seg_train", "seg_test", "seg_pred"], ["train", "test", None]),
        (["TrainSet", "TestSet"], ["train", "test"]),
        (["train-images", "test-images"], ["train", "test"]),
        (["01_train", "02_dev"], ["train", "validation"]),
        (["train_a", "train_b"], [None, None]),
        (["trainval", "car"], [None, None]),
        (["train station", "bus station"], ["train", None]),
        (["train station", "airport"], [None, None]),
        (["crash test dummy", "car"], [None, None]),
        (["training"], ["train"]),
        (["测试", "训练"], [None, None]),
    ],
)
def test_names_of_splits(names, found):
    assert [split_names(names).get(name) for name in names] == found


def test_linked_folders_that_turn_in_a_circle_end(tmp_path):
    tree(tmp_path, "a/{cat,dog}/0.png")
    (tmp_path / "a" / "cat" / "again").symlink_to(tmp_path)
    assert {folder.label for folder in recognise(tmp_path).classes} == {"cat", "dog"}


def test_a_data_set_says_how_it_was_read(tmp_path):
    for split, count in (("Training", 6), ("Testing", 1)):
        for label in ("cat", "dog"):
            for index in range(count):
                path = tmp_path / "set" / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                seed = abs(hash((split, label, index))) % 2**32
                pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
                Image.fromarray(pixels).save(path)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").touch()
    dataset = load(tmp_path)
    assert (
        dataset.found == "split/class in set: Testing is test, Training is train; without images: Annotations"
    )
    assert dataset.given == ("train", "test")
    assert dataset.counts()["cat"]["test"] == 1
