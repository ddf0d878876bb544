"""Labelled data: layouts, splits by content, refusals. About 10 s."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail import data
from vitrail.data import SPLITS, load
from vitrail.data.splits import FRACTIONS, assign
from vitrail.errors import InputError, MissingExtraError
from vitrail.install import here


def image(path: Path, seed: int) -> Path:
    """A small image that differs for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, **classes: int) -> Path:
    """DIR/CLASS/i.png, so many of each, no two alike."""
    seed = 0
    for name, count in classes.items():
        for index in range(count):
            image(root / name / f"{index}.png", seed := seed + 1)
    return root


def manifest(path: Path, rows: list[tuple[str, ...]], header=("path", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def refusal(path: Path, **options) -> str:
    """The message that `load` refuses with: one sentence, one line."""
    with pytest.raises(InputError) as error:
        load(path, **options)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def split_of(dataset: data.Dataset) -> dict[str, str]:
    return {example.digest: example.split for example in dataset.examples}


# --- a folder per class -------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path):
    dataset = load(folder(tmp_path / "pets", dog=10, cat=20))
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.counts() == {
        "cat": {"train": 12, "validation": 4, "test": 4},
        "dog": {"train": 6, "validation": 2, "test": 2},
    }
    assert (dataset.broken, dataset.copies, dataset.conflicts, dataset.given) == ((), (), (), ())
    for example in dataset.examples:
        path = Path(example.path)
        assert path.is_absolute()
        assert path.parent.name == dataset.classes[example.label]
        assert example.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(e.path for split in SPLITS for e in dataset.of(split)) == [e.path for e in dataset.examples]


def test_the_data_sets_digest_is_of_contents_label_names_and_splits(tmp_path):
    dataset = load(folder(tmp_path, dog=4, cat=3))
    content = sorted([e.digest, dataset.classes[e.label], e.split] for e in dataset.examples)
    text = json.dumps(content, separators=(",", ":"))
    assert dataset.digest == hashlib.sha256(text.encode()).hexdigest()
    os.rename(tmp_path / "cat", tmp_path / "kitten")
    assert load(tmp_path).digest != dataset.digest
    assert load(tmp_path, fractions=(0.2, 0.2, 0.6)).digest != load(tmp_path).digest


def test_images_are_found_below_a_class_and_by_content(tmp_path):
    folder(tmp_path, cat=3, dog=3)
    image(tmp_path / "cat" / "more" / "deep.png", 50)
    image(tmp_path / "cat" / "x.png", 51).rename(tmp_path / "cat" / "no-suffix")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._0.png").write_bytes(b"left by a file manager")
    (tmp_path / ".git").mkdir()
    dataset = load(tmp_path)
    names = {Path(e.path).name for e in dataset.examples if e.label == 0}
    assert names == {"0.png", "1.png", "2.png", "deep.png", "no-suffix"}
    assert dataset.broken == ()


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path):
    folder(tmp_path, cat=3, dog=3)
    (tmp_path / "cat" / "cut.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:60])
    (tmp_path / "dog" / "empty.jpg").touch()
    image(tmp_path / "loose.png", 9)
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    dataset = load(tmp_path)
    reasons = {Path(item.path).name: item.reason for item in dataset.broken}
    assert set(reasons) == {"cut.png", "empty.jpg", "loose.png", "pipe.png", "gone.png"}
    assert "truncated" in reasons["cut.png"]
    assert "empty" in reasons["empty.jpg"]
    assert "folder of its class" in reasons["loose.png"]
    assert len(dataset.examples) == 6


def test_copies_are_counted_once_and_contradictions_are_left_out(tmp_path):
    folder(tmp_path, cat=5, dog=5)
    before = load(tmp_path)
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "z.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "a.png")
    after = load(tmp_path)
    assert after.duplicates == 2
    assert {Path(copy.path).name for copy in after.copies} == {"a.png", "z.png"}
    assert {Path(copy.original).name for copy in after.copies} == {"0.png"}
    assert not any(copy.straddles for copy in after.copies)
    assert (after.digest, split_of(after)) == (before.digest, split_of(before))

    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "dog" / "cat.png")
    third = load(tmp_path)
    (conflict,) = third.conflicts
    assert sorted(zip(map(os.path.basename, conflict.paths), conflict.labels, strict=True)) == [
        ("0.png", "cat"), ("a.png", "cat"), ("cat.png", "dog"), ("z.png", "cat"),
    ]  # fmt: skip
    assert conflict.digest not in split_of(third)
    assert third.duplicates == 0
    assert len(third.examples) == 9


# --- splits by content --------------------------------------------------------------------------


def digests(count: int, seed: int) -> list[str]:
    return [hashlib.sha256(f"{seed} {index}".encode()).hexdigest() for index in range(count)]


shares = st.tuples(*[st.floats(0.05, 1)] * 3).map(lambda v: tuple(x / sum(v) for x in v))


@given(st.integers(3, 400), st.integers(0, 10**6), shares)
def test_every_split_has_its_share_of_a_class(count, seed, fractions):
    names = digests(count, seed)
    splits = assign(names, {}, fractions)
    assert set(splits) == set(names)
    got = Counter(splits.values())
    for split, share in zip(SPLITS, fractions, strict=True):
        assert got[split] >= 1
        # Rounded at both ends, and at least one image wherever the share is less than that.
        assert abs(got[split] - share * count) <= 2


@given(st.integers(3, 100), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(count, seed, chance):
    names = digests(count, seed)
    shuffled = chance.sample(names, count)
    assert assign(names, {}, FRACTIONS) == assign(shuffled, {}, FRACTIONS)


@given(st.integers(3, 300), st.integers(0, 10**6))
def test_an_added_image_moves_at_most_one_other_per_cut(count, seed):
    names = digests(count + 1, seed)
    before, after = assign(names[:-1], {}, FRACTIONS), assign(names, {}, FRACTIONS)
    assert sum(before[name] != after[name] for name in names[:-1]) <= 2


def test_splits_are_a_shuffle_not_an_order_of_digests():
    names = sorted(digests(3000, 0))
    splits = assign(names, {}, FRACTIONS)
    first_half = Counter(splits[name] for name in names[:1500])
    assert abs(first_half["test"] - 300) < 60  # four standard deviations


def test_the_split_of_known_contents_is_pinned():
    """Recorded data sets keep their splits: another salt or another order of cutting must not slip in."""
    ranked = sorted(digests(5, 1), key=lambda d: hashlib.sha256(b"vitrail.data/1 " + d.encode()).digest())
    assert [assign(ranked, {}, FRACTIONS)[name] for name in ranked] == ["train"] * 3 + ["validation", "test"]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(3, 7), min_size=2, max_size=3),
    copied=st.lists(st.integers(0, 10**6), max_size=6),
    seed=st.integers(0, 10**6),
)
def test_names_order_and_copies_never_decide_a_split(counts, copied, seed):
    """The same images under other names, in other places, some several times: the same splits."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        one = folder(Path(place) / "one", **{f"c{i}": count for i, count in enumerate(counts)})
        two = Path(place) / "two"
        files = sorted(one.rglob("*.png"))
        extra = [files[index % len(files)] for index in copied]
        for number, file in enumerate(chance.sample([*files, *extra], len(files) + len(extra))):
            target = two / file.parent.name / str(chance.randrange(3)) / f"{chance.random()}-{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        first, second = load(one), load(two)
    assert split_of(first) == split_of(second)
    assert first.digest == second.digest
    assert second.duplicates == len(extra)
    assert len({e.digest for e in second.examples}) == len(second.examples)
    assert all(n >= 1 for row in second.counts().values() for n in row.values())


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.6, 0.2, 0.3), (0.8, 0.2, 0.0), (1.2, -0.1, -0.1)])
def test_fractions_that_do_not_split_are_refused(tmp_path, fractions):
    assert "sum to 1" in refusal(folder(tmp_path, a=3, b=3), fractions=fractions)


# --- splits that the source gives ---------------------------------------------------------------


def test_given_splits_are_kept_and_missing_ones_cut_from_train(tmp_path):
    for name, count in (("train", 8), ("test", 3)):
        folder(tmp_path / name, cat=count, dog=count)
    for index, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        image(path, 100 + index)
    dataset = load(tmp_path)
    assert dataset.given == ("train", "test")
    # 0.6 : 0.2 of what was given as train.
    assert dataset.counts()["cat"] == {"train": 6, "validation": 2, "test": 3}
    for example in dataset.examples:
        assert (example.split == "test") == (Path(example.path).parts[-3] == "test")


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_all_splits_given(tmp_path, name):
    for start, split in enumerate(("train", name, "TEST")):
        for index, label in enumerate(("cat", "dog")):
            image(tmp_path / split / label / "0.png", 10 * start + index)
    dataset = load(tmp_path)
    assert dataset.given == SPLITS
    assert dataset.counts() == {label: dict.fromkeys(SPLITS, 1) for label in ("cat", "dog")}


def test_a_copy_across_given_splits_stays_where_it_judges(tmp_path):
    folder(tmp_path / "train", cat=6, dog=6)
    for label, seed in (("cat", 90), ("dog", 91)):
        image(tmp_path / "test" / label / "z.png", seed)
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "cat" / "leak.png")
    dataset = load(tmp_path)
    (copy,) = dataset.copies
    assert copy.straddles
    assert (Path(copy.path).name, Path(copy.original).name) == ("0.png", "leak.png")
    digest = hashlib.sha256(Path(copy.path).read_bytes()).hexdigest()
    assert split_of(dataset)[digest] == "test"


def test_classes_may_be_called_like_splits(tmp_path):
    assert load(folder(tmp_path / "a", train=3, car=3)).classes == ("car", "train")
    both = folder(tmp_path / "b", train=3, test=3)
    assert "--layout class" in refusal(both)
    assert load(both, layout="class").classes == ("test", "train")


def test_a_folder_beside_the_splits_is_an_unknown_split(tmp_path):
    for split in ("train", "test", "holdout"):
        folder(tmp_path / split, cat=3, dog=3)
    assert "unknown split 'holdout'" in refusal(tmp_path)


# --- manifests ----------------------------------------------------------------------------------


def test_a_csv_manifest_equals_the_folder(tmp_path):
    root = folder(tmp_path, cat=5, dog=4)
    rows = [(f"{p.parent.name}/{p.name}", p.parent.name, "x") for p in sorted(root.rglob("*.png"))]
    path = manifest(tmp_path / "pets.csv", rows, (" Path", "LABEL", "note"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")  # as Excel saves it, and a blank line
    read = load(path)
    assert read.name == "pets"
    assert read.digest == load(root).digest


def test_a_manifests_splits_are_kept(tmp_path):
    root = folder(tmp_path, cat=3, dog=3)
    splits = ["train", "val", "test"]
    rows = [(f"{c}/{i}.png", c, split) for c in ("cat", "dog") for i, split in enumerate(splits)]
    dataset = load(manifest(root / "m.csv", rows, ("path", "label", "split")))
    assert dataset.given == SPLITS
    for example in dataset.examples:
        assert SPLITS.index(example.split) == int(Path(example.path).stem)


def test_an_image_of_a_manifest_that_is_not_there_is_broken(tmp_path):
    root = folder(tmp_path, cat=3, dog=3)
    rows = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(4)]
    dataset = load(manifest(root / "m.csv", rows))
    assert [Path(item.path).name for item in dataset.broken] == ["3.png", "3.png"]
    for item, line in zip(dataset.broken, (5, 9), strict=True):
        assert f"m.csv line {line}: {item.path} does not exist" in item.reason


def test_a_class_that_lacks_images_says_which_files_are_not_there(tmp_path):
    root = folder(tmp_path, cat=3, dog=3)
    rows = [(f"{c}/{i}.png", c) for c in ("cat", "dog", "cow") for i in range(3)]
    said = refusal(manifest(root / "m.csv", rows))
    assert "The class 'cow' has no usable distinct images: give it at least 3" in said
    assert (
        f"3 files that cannot be read, the first: {root / 'm.csv'} line 8: {root / 'cow' / '0.png'} does"
        in said
    )
    only = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(5, 7)]
    assert f"line 2: {root / 'cat' / '5.png'} does not exist" in refusal(manifest(root / "m.csv", only))


def test_a_parquet_manifest_equals_the_csv(tmp_path):
    root = folder(tmp_path, **{"0": 4, "1": 5})
    paths = [str(p.relative_to(root)) for p in sorted(root.rglob("*.png"))]
    labels = [int(Path(p).parent.name) for p in paths]
    csv_digest = load(manifest(root / "m.csv", list(zip(paths, map(str, labels), strict=True)))).digest
    for kind in (pyarrow.int64(), pyarrow.float64(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        values = list(map(str, labels)) if pyarrow.types.is_dictionary(kind) else labels
        table = pyarrow.table({"label": pyarrow.array(values).cast(kind), "path": paths, "note": paths})
        pyarrow.parquet.write_table(table, root / "m.parquet")
        assert load(root / "m.parquet").digest == csv_digest
    labels[2] = None
    pyarrow.parquet.write_table(pyarrow.table({"path": paths, "label": labels}), root / "m.parquet")
    assert "m.parquet row 3 has no label" in refusal(root / "m.parquet")
    cells = pyarrow.array([{"bytes": b"x", "path": None}] * 9)
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": labels}), root / "m.parquet")
    assert "embeds its images" in refusal(root / "m.parquet")
    (root / "m.parquet").write_bytes(b"PAR1 nonsense")
    assert "cannot be read as Parquet" in refusal(root / "m.parquet")


def test_without_pyarrow_the_install_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "m.parquet").touch()
    with pytest.raises(MissingExtraError) as error:
        load(tmp_path / "m.parquet")
    assert error.value.install == here('pip install "vitrail[parquet]"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "lists no images"),
        ("file,label\na.png,cat\n", "no column path, only 'file', 'label'"),
        ("file;class\na.png;cat\n", "no column path and no column label"),
        ("path,label,label\na.png,cat,dog\n", "column label twice"),
        ("path,label\ncat/0.png,cat\ncat/1.png,\n", "line 3 has no label"),
        ("path,label\ncat/0.png,cat\ncat/1.png\n", "line 3 has no label"),
        ("path,label\n ,cat\n", "line 2 has no path"),
        ("path,label,split\ncat/0.png,cat,extra\n", "line 2 has the unknown split 'extra'"),
        ("path,label,split\ncat/0.png,cat,train\ncat/1.png,cat, \n", "line 3 has no split, but every"),
        ("path,label,split\ncat/0.png,cat\n", "line 2 has no split, but every row must have one or none"),
        ('path,label\n"cat/0.png,cat\n', "is not CSV"),
        ("path,label\n../other/0.png,cat\n", "line 2 points outside the manifest's folder"),
        ("path,label\n/etc/hostname,cat\n", "line 2 points outside"),
        ("path,label\nlink/0.png,cat\n", "line 2 points outside"),
        ("path,label\n.,cat\n", "line 2 points outside"),
        ("path,label\ncat/0.png,cat\ncat/1.png,Cat\n", "have the same name"),
        ("path,label\ncat/0.png,cat\ncat/1.png, cat\n", "have the same name"),
    ],
)
def test_manifests_that_are_refused(tmp_path, text, message):
    folder(tmp_path / "other", cat=1)
    root = folder(tmp_path / "data", cat=3)
    (root / "link").symlink_to(tmp_path / "other" / "cat")
    (root / "m.csv").write_text(text, encoding="utf-8")
    assert message in refusal(root / "m.csv")


def test_a_manifest_that_is_not_utf8(tmp_path):
    (tmp_path / "m.csv").write_bytes("path,label\na.png,größe\n".encode("latin-1"))
    assert "not UTF-8" in refusal(tmp_path / "m.csv")


# --- saved data sets ----------------------------------------------------------------------------


def saved(root: Path, images: list[bytes | None], labels: list, *, names: list[str] | None) -> Path:
    """What `datasets.Dataset.save_to_disk` writes, by its documented form, in two shards."""
    root.mkdir(parents=True)
    cells = pyarrow.array(
        [{"bytes": data, "path": "/elsewhere/x.png"} for data in images],
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    )
    table = pyarrow.table({"picture": cells, "label": labels})
    for shard, part in enumerate((table[:2], table[2:])):
        with pyarrow.ipc.new_stream(str(root / f"data-{shard}.arrow"), table.schema) as stream:
            stream.write_table(part)
    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "string", "_type": "Value"}
    features = {"picture": {"_type": "Image"}, "label": label}
    (root / "dataset_info.json").write_text(json.dumps({"features": features}))
    files = [{"filename": f"data-{shard}.arrow"} for shard in range(2)]
    (root / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("names", [None, ["cat", "dog", "never used"]])
def test_a_saved_data_set_equals_the_folder(tmp_path, cache, names):
    root = folder(tmp_path / "pets", cat=4, dog=3)
    files = sorted(root.rglob("*.png"))
    labels = [path.parent.name for path in files]
    values = [names.index(label) for label in labels] if names else labels
    place = saved(tmp_path / "saved", [path.read_bytes() for path in files], values, names=names)
    dataset = load(place)
    assert dataset.digest == load(root).digest
    assert all(Path(e.path).is_relative_to(cache) for e in dataset.examples)
    assert len(list(cache.rglob("*.png"))) == len(files)
    # A damaged file of the cache is written again, a whole one is left.
    damaged, whole = (Path(example.path) for example in dataset.examples[:2])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stamp = whole.stat().st_mtime_ns
    assert load(place).digest == dataset.digest
    assert whole.stat().st_mtime_ns == stamp


def test_a_saved_dictionary_has_its_splits(tmp_path, cache):
    root = folder(tmp_path / "pets", cat=4, dog=4)
    files = sorted(root.rglob("*.png"))
    contents, labels = [path.read_bytes() for path in files], [path.parent.name for path in files]
    place = tmp_path / "saved"
    saved(place / "train", contents[:3] + contents[4:7], labels[:3] + labels[4:7], names=None)
    saved(place / "test", [contents[3], contents[7]], [labels[3], labels[7]], names=None)
    (place / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    dataset = load(place)
    assert dataset.given == ("train", "test")
    assert dataset.counts()["cat"] == {"train": 2, "validation": 1, "test": 1}
    (place / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    assert "unknown split 'unsupervised'" in refusal(place)
    (place / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    assert "not a plain name" in refusal(place)


def test_saved_data_sets_that_are_refused(tmp_path, cache):
    files = sorted(folder(tmp_path / "pets", cat=2, dog=2).rglob("*.png"))
    contents = [path.read_bytes() for path in files]
    place = saved(tmp_path / "a", [*contents[:3], None], [0, 0, 1, 1], names=["cat", "dog"])
    assert "row 4 has no embedded bytes" in refusal(place)
    place = saved(tmp_path / "b", contents, [0, 0, 1, -1], names=["cat", "dog"])
    assert "row 4 has no label" in refusal(place)
    info = json.loads((place / "dataset_info.json").read_text())
    info["features"]["second"] = {"_type": "Image"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    assert "2 features of the kind Image" in refusal(place)
    (place / "data-1.arrow").write_bytes(b"nonsense")
    info["features"].pop("second")
    (place / "dataset_info.json").write_text(json.dumps(info))
    assert "cannot be read as an Arrow stream" in refusal(place)


FUZZ = """
import sys
from pathlib import Path
from vitrail.data import listing, saved
from vitrail.errors import InputError

place, file = Path(sys.argv[1]), Path(sys.argv[2])
whole, refused = file.read_bytes(), 0
for position in range(0, len(whole), 3):
    for value in (0x00, 0x7F, 0xFF):
        file.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        try:
            listing.list_images(place)
        except InputError:
            refused += 1
print("refused", refused)
"""


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_damaged_tables_end_neither_the_process_nor_in_a_traceback(tmp_path, cache, kind):
    """Arrow's readers abort the process on some damage unless what they read is validated first."""
    if kind == "arrow":
        place = saved(tmp_path / "a", [b"x" * 9, b"y", b"z" * 30, b"w"], list("abab"), names=None)
        file = place / "data-1.arrow"
    else:
        place = file = tmp_path / "m.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png", "b.png"], "label": ["a", "b"]}), file)
    done = subprocess.run([sys.executable, "-c", FUZZ, place, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[1]) > 50


# --- refusals -----------------------------------------------------------------------------------


def test_sources_that_hold_nothing(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal(tmp_path / ("long" * 1000))
    assert "holds no images" in refusal(tmp_path)
    image(tmp_path / "a.png", 1)
    assert "1 image without a class" in refusal(tmp_path)
    assert "not a manifest that ends in .csv" in refusal(tmp_path / "a.png")
    (tmp_path / "labels.csv").touch()
    assert f"give {tmp_path / 'labels.csv'} itself" in refusal(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "The class folder" in refusal(tmp_path)


def test_one_class_only(tmp_path):
    assert "only one class, 'cat'" in refusal(folder(tmp_path, cat=5))


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_distinct_images(tmp_path, count):
    folder(tmp_path, cat=count, dog=5)
    for index in range(4):
        shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / f"again{index}.png")
    assert re.search(rf"'cat' has {count} usable distinct images?: give it at least 3", refusal(tmp_path))


def test_a_class_whose_images_are_all_broken_or_contradicted(tmp_path):
    folder(tmp_path, dog=5)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    assert "'cat' has no usable distinct images" in refusal(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "can be read (6 tried)" in refusal(tmp_path)


def test_a_class_that_equals_another_says_so(tmp_path):
    """The same images in two classes are in none: that is why there are too few."""
    folder(tmp_path, cat=3, dog=5)
    shutil.copytree(tmp_path / "cat", tmp_path / "kitten")
    said = refusal(tmp_path)
    assert "The class 'cat' has no usable distinct images" in said
    assert "It has 3 files equal to a file of another class" in said
    assert f"the first: {tmp_path / 'cat' / '0.png'} is {tmp_path / 'kitten' / '0.png'} of 'kitten'" in said
    image(tmp_path / "cat" / "new.png", 99)
    (tmp_path / "cat" / "cut.png").write_bytes(b"no image")
    said = refusal(tmp_path)
    assert "1 usable distinct image:" in said
    assert "1 file that cannot be read" in said
    assert "3 files equal to a file of another class" in said


def test_a_given_split_that_lacks_a_class(tmp_path):
    folder(tmp_path / "train", cat=5, dog=5)
    image(tmp_path / "test" / "cat" / "x.png", 77)
    assert "'dog' has no usable image left for test" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "train")
    assert "no train folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("STRASSE", "straße"), ("e\u0301te", "\u00e9te"), ("cat", "cat ")]
)
def test_two_classes_with_the_same_name(tmp_path, names):
    assert "have the same name" in refusal(folder(tmp_path, **dict.fromkeys(names, 3)))


def test_a_name_that_is_no_text(tmp_path):
    folder(tmp_path, cat=3, dog=3)
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/k\xe4tzchen")
    assert "The class k\\xe4tzchen" in refusal(tmp_path)


def test_a_file_whose_name_is_no_text_is_left_out_and_named(tmp_path):
    folder(tmp_path, cat=4, dog=3)
    os.rename(tmp_path / "cat" / "3.png", os.fsencode(tmp_path) + b"/cat/\xff.png")
    dataset = load(tmp_path)
    (broken,) = dataset.broken
    assert os.fsencode(broken.path).endswith(b"/\xff.png")
    assert "cat/\\xff.png is not UTF-8" in broken.reason
    assert len(dataset.examples) == 6


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    folder(tmp_path, cat=3, dog=3)
    (tmp_path / "cat" / "more").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "cannot be listed (Permission denied)" in refusal(tmp_path)


def test_names_are_shown_composed(tmp_path):
    assert load(folder(tmp_path, été=3, hiver=3)).classes == ("hiver", "\u00e9t\u00e9")


def test_importing_the_data_side_imports_nothing_heavy():
    heavy = ("numpy", "PIL", "torch", "sklearn", "pyarrow", "openvino")
    script = f"import sys, vitrail.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
