"""Vectors, their file and the search over them; test_embeddings_models.py has the models that make them."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.embeddings import Embedder, Index, Origin, VectorTable, embed, read_table, write_table
from vitrail.embeddings.inputs import image_paths, text_lines
from vitrail.errors import ClaimError, InputError
from vitrail.vocabulary import Preprocess, Weights


def origin(dimension=8, *, sha256="a" * 64, reads_text=False, **changes):
    values = {
        "model": "some_model", "architecture": "some_model", "implementation": "timm",
        "weights": Weights(source="file", reference="w.pth", sha256=sha256),
        "preprocess": Preprocess(image_size=32), "dimension": dimension, "reads_text": reads_text,
    }  # fmt: skip
    return Origin(**values | changes)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clustered(rng, rows, dimension, centres=50):
    """Vectors in clouds, as those of real photos lie."""
    middle = rng.standard_normal((centres, dimension))
    vectors = middle[rng.integers(0, centres, rows)] + 0.7 * rng.standard_normal((rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(count):
    return tuple(f"photos/größe {i}.jpg" for i in range(count))


def brute_force(vectors, queries, top):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return rows, np.take_along_axis(scores, rows, axis=1)


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "dimension", "top"), [(1, 3, 5), (7, 8, 7), (2000, 65, 10), (5000, 512, 100)]
)
@pytest.mark.parametrize("asked", [1, 9])
def test_exact_search_is_brute_force(rows, dimension, top, asked):
    rng = np.random.default_rng(rows + asked)
    vectors, queries = unit(rng, rows, dimension), unit(rng, asked, dimension)
    index = Index.build(vectors, names(rows), origin(dimension))
    assert index.exact
    found = index.search(queries, top=top)
    expected_rows, expected_scores = brute_force(vectors, queries, top)
    assert [[hit.row for hit in hits] for hits in found] == expected_rows.tolist()
    scores = [[hit.score for hit in hits] for hits in found]
    np.testing.assert_allclose(scores, np.clip(expected_scores, -1, 1), atol=1e-12)
    assert all(hit.name == names(rows)[hit.row] for hits in found for hit in hits)


def test_one_query_needs_no_second_dimension_and_none_gives_none():
    vectors = unit(np.random.default_rng(0), 20, 8)
    index = Index.build(vectors, names(20), origin())
    assert index.search(vectors[3], top=2) == index.search(vectors[3:4], top=2)
    assert index.search(vectors[3], top=1)[0][0].row == 3
    assert index.search(vectors[:0]) == []


def test_equal_vectors_come_in_the_order_of_their_rows():
    vectors = unit(np.random.default_rng(0), 6, 8)
    vectors[[1, 4]] = vectors[2]
    hits = Index.build(vectors, names(6), origin()).search(vectors[4], top=3)[0]
    assert [hit.row for hit in hits] == [1, 2, 4]


def test_the_graph_finds_nearly_all_and_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    rng = np.random.default_rng(5)
    vectors = clustered(rng, 4000, 64)
    queries = clustered(np.random.default_rng(5), 4000, 64)[:100] + 0.05 * unit(rng, 100, 64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = Index.build(vectors, names(4000), origin(64), exact_up_to=100)
    assert not index.exact
    expected, _ = brute_force(vectors, queries, 10)

    def recall(found):
        return np.mean([len({hit.row for hit in hits} & set(row)) / 10 for hits, row in zip(found, expected, strict=True)])  # fmt: skip # noqa: E501

    first = index.search(queries, top=10)
    assert recall(first) >= 0.98
    (graph,) = (tmp_path / "indexes").iterdir()
    written = graph.stat().st_mtime_ns
    again = Index.build(vectors, names(4000), origin(64), exact_up_to=100)
    assert again.search(queries, top=10) == first
    assert graph.stat().st_mtime_ns == written
    # More than the graph's usual list is asked for: it is made longer.
    assert len(again.search(queries[:1], top=600)[0]) == 600
    graph.write_bytes(graph.read_bytes()[:1000])
    mended = Index.build(vectors, names(4000), origin(64), exact_up_to=100)
    assert recall(mended.search(queries, top=10)) >= 0.98
    assert graph.stat().st_size > 1000
    # Other vectors never meet this graph.
    other = Index.build(vectors[::-1].copy(), names(4000), origin(64), exact_up_to=100)
    assert other.search(vectors[:1], top=1)[0][0].row == 3999


@pytest.mark.parametrize(
    ("queries", "top", "said"),
    [
        (np.ones((1, 8), np.float32), 0, "top is 0"),
        (np.ones((1, 9), np.float32), 1, "vectors of 8 numbers"),
        (np.full((1, 8), np.nan, np.float32), 1, "length 1"),
        (np.ones((1, 8), np.float32), 1, "length 1"),
    ],
)
def test_wrong_queries(queries, top, said):
    index = Index.build(unit(np.random.default_rng(0), 4, 8), names(4), origin())
    with pytest.raises(InputError, match=said):
        index.search(queries, top=top)


def test_wrong_tables():
    vectors = unit(np.random.default_rng(0), 4, 8)
    for bad, count, said in (
        (vectors, 3, "3 names"),
        (vectors.astype(np.float64), 4, "float64"),
        (vectors * 2, 4, "length 1"),
        (np.where(np.arange(8) == 2, np.nan, vectors).astype(np.float32), 4, "length 1"),
    ):
        with pytest.raises(InputError, match=said):
            Index.build(bad, names(count), origin())
    with pytest.raises(InputError, match="no rows"):
        Index.build(vectors[:0], (), origin())


def test_the_digest_is_of_what_decides_the_numbers():
    same = origin()
    assert same.digest == origin(model="other name", implementation="vitrail").digest
    moved = Weights(source="hub", reference="elsewhere", sha256="a" * 64)
    assert same.digest == origin(weights=moved).digest
    for other in (
        origin(sha256="b" * 64),
        origin(preprocess=Preprocess(image_size=32, crop=1.0)),
        origin(tokenizer_sha256="c" * 64),
        origin(architecture="another"),
    ):
        assert other.digest != same.digest


# --- the file -------------------------------------------------------------------------------------


def a_table(rows=12, dimension=8, content="image"):
    vectors = unit(np.random.default_rng(rows), rows, dimension)
    return VectorTable(content=content, names=names(rows), vectors_ND=vectors, origin=origin(dimension))


@pytest.mark.parametrize("content", ["image", "text"])
def test_what_is_written_is_read(tmp_path, content):
    table, path = a_table(content=content), tmp_path / "t.parquet"
    write_table(table, path)
    back = read_table(path)
    assert (back.content, back.names, back.origin, back.digest) == (
        content, table.names, table.origin, table.digest,
    )  # fmt: skip
    np.testing.assert_array_equal(back.vectors_ND, table.vectors_ND)
    assert [item.name for item in tmp_path.iterdir()] == ["t.parquet"]


def test_the_file_is_plain_parquet_for_others(tmp_path):
    table, path = a_table(), tmp_path / "t.parquet"
    write_table(table, path)
    rows = parquet.read_table(path)
    assert rows.column_names == ["path", "embedding"]
    assert rows.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 8)
    np.testing.assert_array_equal(
        np.stack(rows["embedding"].to_pylist()).astype(np.float32), table.vectors_ND
    )
    facts = json.loads(rows.schema.metadata[b"vitrail"])
    assert facts["normalised"] is True
    assert facts["origin"]["weights"]["sha256"] == "a" * 64
    assert facts["origin"]["dimension"] == 8
    assert facts["origin"]["preprocess"]["image_size"] == 32


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "t.parquet"
    write_table(a_table(), path)
    return path.read_bytes(), path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_still_whole(written, data):
    content, path = written
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(1, 255))
    other = path.with_name("damaged.parquet")
    other.write_bytes(flipped)
    try:
        back = read_table(other)
    except InputError:
        return
    # Bits that no reader looks at.
    whole = a_table()
    assert (back.digest, back.origin, back.content) == (whole.digest, whole.origin, whole.content)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file(written, share):
    content, path = written
    other = path.with_name("cut.parquet")
    other.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="make it again"):
        read_table(other)


def test_files_that_are_no_index(tmp_path):
    with pytest.raises(InputError, match="There is no index"):
        Index.read(tmp_path / "none.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        Index.read(text)
    foreign = tmp_path / "foreign.parquet"
    parquet.write_table(pyarrow.table({"path": ["a"], "embedding": [[1.0]]}), foreign)
    with pytest.raises(InputError, match="not made by `vitrail embed`"):
        Index.read(foreign)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts | {"schema_version": 9}, "schema version 9"),
        (lambda facts: {**facts, "origin": {}}, "is damaged"),
        (lambda facts: {**facts, "content": "sound"}, "is damaged"),
        (lambda facts: {k: v for k, v in facts.items() if k != "digest"}, "is damaged"),
        (lambda facts: {**facts, "origin": facts["origin"] | {"dimension": 5}}, "is damaged"),
        (lambda facts: [facts], "is damaged"),
    ],
)
def test_metadata_that_does_not_fit(written, change, said):
    _, path = written
    rows = parquet.read_table(path)
    facts = change(json.loads(rows.schema.metadata[b"vitrail"]))
    other = path.with_name("changed.parquet")
    parquet.write_table(rows.replace_schema_metadata({b"vitrail": msgspec.json.encode(facts)}), other)
    with pytest.raises(InputError, match=said):
        read_table(other)


def test_renaming_rows_without_their_digest_is_damage(written):
    _, path = written
    rows = parquet.read_table(path)
    column = pyarrow.array(["swapped", *rows["path"].to_pylist()[1:]])
    other = path.with_name("renamed.parquet")
    parquet.write_table(rows.set_column(0, "path", column), other)
    with pytest.raises(InputError, match="its content was changed"):
        read_table(other)


# --- embedding ------------------------------------------------------------------------------------


class Letters(Embedder):
    """Counts the letters a to h; names that have none are broken."""

    origin = origin()

    def images_each(self, paths):
        for path in paths:
            counts = np.array([path.count(letter) for letter in "abcdefgh"], np.float32)
            length = np.linalg.norm(counts)
            yield counts / length if length else InputError(f"{path} has no letters: choose another.")

    def texts_each(self, texts):
        raise InputError("This model embeds no texts.")


def test_embedding_lists_what_is_broken_and_keeps_the_order(tmp_path):
    asked = [f"{'abcdefgh'[i % 8]}{i}" if i % 7 else f"{i}" for i in range(200)]
    done = []
    table = embed(Letters(), asked, "image", progress=done.append)
    assert list(table.names) == [name for i, name in enumerate(asked) if i % 7]
    assert [broken.name for broken in table.broken] == [name for i, name in enumerate(asked) if not i % 7]
    assert done[-1] == 200
    np.testing.assert_array_equal(table.vectors_ND, Letters().images(table.names))
    write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").broken == table.broken
    with pytest.raises(InputError, match="7 has no letters"):
        Letters().images(["a", "7", "b"])
    with pytest.raises(InputError, match=r"No image could be embedded \(2 tried\); the first: 1 has no"):
        embed(Letters(), ["1", "2"], "image")
    with pytest.raises(InputError, match="no texts"):
        embed(Letters(), ["a"], "text")


def test_a_name_that_is_no_utf8_is_broken_not_a_crash(tmp_path):
    table = embed(Letters(), ["a", "b\udcff"], "image")
    write_table(table, tmp_path / "t.parquet")
    (broken,) = read_table(tmp_path / "t.parquet").broken
    assert broken.name == "b\\xff"
    assert "rename" in broken.reason


def test_vectors_that_were_made_before_the_model_ended_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("vitrail.embeddings.vectors.CHUNK", 2)

    class Ending(Letters):
        def texts_each(self, texts):
            return super().images_each(texts)

        def images_each(self, paths):
            if "d" in paths:
                raise ClaimError("it outgrew the memory")
            return super().images_each(paths)

    table = embed(Ending(), ["a", "b", "c", "d", "e"], "image")
    assert table.names == ("a", "b")
    assert [item.name for item in table.broken] == ["c", "d", "e"]
    assert "not embedded, because the model failed: it outgrew the memory" in table.broken[0].reason
    with pytest.raises(ClaimError):
        embed(Ending(), ["d", "a"], "image")


def test_an_index_of_another_model_is_refused():
    index = Index(embed(Letters(), ["a"], "image"))
    index.check(Letters())
    other = Letters()
    other.origin = origin(sha256="b" * 64)
    with pytest.raises(InputError, match="use one model for both"):
        index.check(other)


def test_sources(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        image_paths(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no images"):
        image_paths(str(tmp_path))
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_paths(str(tmp_path)) == [
        f"{tmp_path.as_posix()}/{n}" for n in ("a.jpg", "b.PNG", "sub/c.webp")
    ]
    assert image_paths(str(tmp_path / "notes.txt")) == [str(tmp_path / "notes.txt")]
    texts = tmp_path / "texts.txt"
    texts.write_bytes("\ufeffa cat \r\n\n  \nline\u2028separator\n".encode())
    assert text_lines(str(texts)) == ["a cat", "line\u2028separator"]
    for content, said in ((b"\n \n", "holds no text"), (b"\xff\xfe", "UTF-8")):
        texts.write_bytes(content)
        with pytest.raises(InputError, match=said):
            text_lines(str(texts))
    with pytest.raises(InputError, match="cannot be read"):
        text_lines(str(tmp_path / "none"))
