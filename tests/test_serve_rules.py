"""The rules of a server that need no server: queue, batches, sizes in headers, forms, settings. About 1 s."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.declared import declared_pixels
from vitrail.images.limits import LIMITS
from vitrail.names import model_name
from vitrail.serve import scale, wire
from vitrail.serve.admission import Queue
from vitrail.serve.batching import BESIDE, beside_pays, chosen, largest, p95
from vitrail.serve.refusals import CODES, Refusal
from vitrail.serve.settings import Settings, check, from_toml, served, shadow_of
from vitrail.serve.tensors import rows_of

# --- queue --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60)), max_size=40))
def test_a_queue_never_holds_more_than_it_may(requests):
    queue, held = Queue(8, 100), []
    for images, pixels in requests:
        if queue.images + images <= 8 and queue.pixels + pixels <= 100:
            queue.take(images, pixels)
            held.append((images, pixels))
        else:
            with pytest.raises(Refusal) as refused:
                queue.take(images, pixels)
            assert (refused.value.code, refused.value.retry_after) == ("queue_full", 1)
            queue.give_back(*held.pop(0), done=1)
        assert queue.images == sum(i for i, _ in held) <= 8
        assert queue.pixels == sum(p for _, p in held) <= 100


def test_what_never_fits_is_not_told_to_try_again():
    for images, pixels in ((9, 0), (1, 101)):
        with pytest.raises(Refusal) as refused:
            Queue(8, 100).take(images, pixels)
        assert (refused.value.code, refused.value.retry_after) == ("too_large", None)


def test_with_a_promise_no_more_is_taken_than_can_be_answered_within_it():
    queue = Queue(100, 100)
    queue.promise_s, queue.seconds_per_image = 0.1, 0.02
    queue.take(1, 0)
    queue.take(1, 0)
    with pytest.raises(Refusal, match="full"):
        queue.take(1, 0)
    queue.give_back(2, 0, done=0)
    queue.take(5, 0)  # alone it is taken whatever it needs: nothing could answer it sooner


def test_the_pace_is_learnt_from_results_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("vitrail.serve.admission.time.monotonic", lambda: now[0])
    queue = Queue(100, 100)
    for _ in range(6):
        queue.take(1, 0)
    now[0] += 0.2
    queue.give_back(1, 0, done=1)
    assert queue.seconds_per_image == pytest.approx(0.2)
    for _ in range(3):  # given up in the same moment: no engine is as fast
        queue.give_back(1, 0, done=0)
    assert queue.seconds_per_image == pytest.approx(0.2)
    now[0] += 0.2
    queue.give_back(1, 0, done=1)
    assert queue.seconds_per_image == pytest.approx(0.2)


# --- batches ------------------------------------------------------------------------------------------


def test_the_largest_batch_that_keeps_the_promise_and_saves_time():
    table = {1: [10.0] * 20, 2: [15.0] * 20, 4: [24.0] * 20, 8: [47.0] * 20}
    assert largest(table, 5.0, None) == 4  # 8 saves no more than 2 % per image
    assert largest(table, 5.0, 53.0) == 4
    assert largest(table, 5.0, 52.0) == 2
    assert largest(table, 5.0, 20.0) == 1
    assert largest({1: [10.0], 2: [21.0]}, 0.0, None) == 1
    assert largest({1: [10.0], 2: [21.0], 4: [20.0]}, 0.0, None) == 4


def test_single_images_side_by_side_are_taken_where_they_are_as_quick_and_keep_the_promise():
    table = {BESIDE: [12.0] * 20, 1: [10.0] * 20, 2: [15.0] * 20, 4: [24.0] * 20}
    assert largest(table, 5.0, None) == 4  # side by side is no batch
    assert beside_pays(table, 4, 2, 5.0, None)
    assert beside_pays(table, 4, 2, 5.0, 29.0)
    assert not beside_pays(table, 4, 2, 5.0, 28.9)
    assert not beside_pays({**table, BESIDE: [12.1] * 20}, 4, 2, 5.0, None)
    assert not beside_pays({**table, BESIDE: []}, 4, 2, 5.0, None)
    assert not beside_pays({1: [10.0]}, 1, 2, 5.0, None)


def test_a_batch_is_padded_only_where_that_takes_less_time():
    latencies = {1: 10.0, 8: 30.0}
    assert [chosen(waiting, latencies) for waiting in (1, 2, 3, 4, 8, 20)] == [1, 1, 1, 8, 8, 8]


def test_the_95th_percentile_comes_from_above():
    assert p95(range(1, 21)) == 19
    assert p95([7.0]) == 7.0
    assert p95(range(1, 101)) == 95


# --- sizes in headers ---------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF")


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_are_read_from_the_header(file_format):
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 91, 3), np.uint8))
    image.save(file, file_format)
    assert declared_pixels(file.getvalue()) == 37 * 91


def test_a_file_that_hides_its_size_counts_as_the_largest():
    assert declared_pixels(b"no image") == 0
    assert declared_pixels(b"") == 0
    assert declared_pixels(b"\xff\xd8\xff\xe0") == LIMITS.pixels
    assert declared_pixels(b"\x89PNG\r\n\x1a\n") == LIMITS.pixels
    assert declared_pixels(b"RIFF\x00\x00\x00\x00WEBPxxxx") == LIMITS.pixels // 2
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 2**31 - 1, 2**31 - 1)
    assert declared_pixels(huge) == LIMITS.pixels


# --- forms --------------------------------------------------------------------------------------------


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def test_the_files_of_a_form_are_its_images():
    uploads = pytest.importorskip("vitrail.serve.uploads")
    kind = "multipart/form-data; boundary=b"
    data = bytes(range(256)) + b"\r\n--c\r\n-\r\n--"
    assert uploads.images_of(form(FILE + data, FILE + b""), kind, 5) == [data, b""]
    assert uploads.images_of(data, "image/x-whatever", 5) == [data]
    assert uploads.images_of(data, "", 5) == [data]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(b"Content-Disposition: form-data; name=url\r\n\r\nhttp://x"), "bad_request"),
        (form(FILE + b"x", end=b""), "bad_request"),
        (form(), "bad_request"),
        (b"x" * 100, "bad_request"),
        (form(b"A: " + b"y" * 5000 + b"\r\n\r\nx"), "bad_request"),
        (form(*[FILE + b"x"] * 6), "too_large"),
    ],
)
def test_other_forms_are_refused(body, code):
    uploads = pytest.importorskip("vitrail.serve.uploads")
    with pytest.raises(Refusal) as refused:
        uploads.images_of(body, "multipart/form-data; boundary=b", 5)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "body",
    [
        form(FILE + b"x" + b"\r\n--bx" * 100_000),  # each a false boundary
        b"--b\r\n" + FILE + b"x\r\n--b" + b" " * 100_000 + b"\r\n" + FILE + b"y\r\n--b--\r\n",
    ],
)
def test_a_form_that_would_be_parsed_byte_by_byte_is_not_parsed(body, monkeypatch):
    uploads = pytest.importorskip("vitrail.serve.uploads")
    monkeypatch.setattr(uploads, "MultipartParser", None)
    with pytest.raises(Refusal):
        uploads.images_of(body, "multipart/form-data; boundary=b", 5)


@pytest.mark.parametrize(
    "kind",
    [
        'multipart/form-data; x="' + ";" * 60_000,
        f"multipart/form-data; boundary*{'9' * 500}*=x",
        "multipart/form-data; boundary*=utf-8''b",
        "multipart/form-data; boundary=\xfc",
        "multipart/form-data" + ";" * 900,
    ],
)
def test_an_odd_content_type_is_refused(kind):
    uploads = pytest.importorskip("vitrail.serve.uploads")
    with pytest.raises(Refusal) as refused:
        uploads.images_of(form(FILE + b"x"), kind, 5)
    assert refused.value.code == "bad_request"
    assert uploads.images_of(form(FILE + b"x"), 'Multipart/Form-Data; charset=x; boundary="b"', 5) == [b"x"]


def test_an_uploads_bytes_count_until_all_have_let_go_of_it():
    uploads = pytest.importorskip("vitrail.serve.uploads")
    budget = uploads.Uploads(body_bytes=100, all_bytes=100, timeout_s=1.0)
    upload = uploads.Upload(budget)
    upload.add(b"ab")
    upload.add(b"c")
    upload.keep()  # the model's process, or a shadow's
    upload.let_go()  # the request has its answer
    assert (upload.whole(), budget.bytes) == (b"abc", 3)
    upload.let_go()
    assert budget.bytes == 0


# --- tensors ------------------------------------------------------------------------------------------

WANTED = [wire.Tensor(name="images", dtype="float32", shape=[-1, 2], size=0)]


def tensor(shape: list[int], text: bytes = b"", **changes: object) -> tuple[wire.Tensor, memoryview]:
    spec = {"name": "images", "dtype": "float32", "shape": shape, "size": len(text), "json": True, **changes}
    return wire.Tensor(**spec), memoryview(text)


@pytest.mark.parametrize("text", [b"[1, 2.5, 3, 4]", b"[[1, 2.5], [3, 4]]", b"[ [1,2.5],\n [3,4] ]"])
def test_numbers_come_flat_or_nested(text):
    given, payload = tensor([2, 2], text)
    rows = rows_of([given], payload, WANTED)
    assert [row["images"].tolist() for row in rows] == [[[1.0, 2.5]], [[3.0, 4.0]]]


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([1] * 100, b"[1]"),  # more sides than NumPy takes
        ([1, 2**30, 2**30, 2**30], b"[]"),  # their product wraps to 0
        ([2**30] * 200_000, b"[1]"),
        ([10**4000, 2], b"[1]"),
        ([-1, 2], b"[1, 2]"),
        ([0, 2], b"[]"),
        ([], b"[1]"),
        ([1, 2], b"[1, 2, 3]"),
        ([1, 2], b"[1]"),
        ([1, 2], b"[[], []]"),
        ([1, 2], b'["a,b"]'),
        ([1, 2], b"[1, " + b"0" * 10_000 + b"]"),
        ([1, 2], b"[" * 5000 + b"1,2" + b"]" * 5000),
        ([1, 2], b"[1, 1" + b"0" * 4000 + b"]"),
        ([1, 2], b"1,2"),
    ],
)
def test_tensors_that_lie_about_themselves_are_refused(shape, text):
    given, payload = tensor(shape, text)
    with pytest.raises(InputError) as refused:
        rows_of([given], payload, WANTED)
    assert len(str(refused.value)) < 300


def test_numbers_are_counted_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("vitrail.serve.tensors.msgspec.json.decode", None)
    given, payload = tensor([1, 2], b"[" + b"0," * 1_000_000 + b"0]")
    with pytest.raises(InputError, match="not as many numbers as its shape"):
        rows_of([given], payload, WANTED)


# --- settings -----------------------------------------------------------------------------------------


def test_a_file_gives_settings_with_paths_relative_to_it(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(
        'artifacts = ["a=one", "two", "models/x=y/w", "b=x=y"]\n'
        'max-latency = "0.05s"\nport = 9\napi-keys = "keys"\n'
        'shadow = "a=three"\nshadow_share = 1\naccess-log = false\n'
    )
    artifacts, found = from_toml(file)
    assert artifacts == (
        f"a={tmp_path}/one",
        f"{tmp_path}/two",
        f"{tmp_path}/models/x=y/w",
        f"b={tmp_path}/x=y",
    )
    assert found == {
        "max_latency_ms": 50.0,
        "port": 9,
        "api_keys": tmp_path / "keys",
        "shadow": f"a={tmp_path}/three",
        "shadow_share": 1,
        "access_log": False,
    }


def test_replicas_are_a_number_or_a_range(tmp_path):
    assert [scale.replicas_of(text) for text in (None, "3", "2-8", "2-2")] == [(1, 1), (3, 3), (2, 8), (2, 2)]
    for text in ("0", "8-2", "2-", "-2", "1-2-3", "two", "1001", "1.5", "²"):
        with pytest.raises(InputError, match="give a number, or a range such as 2-8, from 1 to 1000"):
            scale.replicas_of(text)
    file = tmp_path / "serve.toml"
    file.write_text('ray = "auto"\nreplicas = 2\n')
    assert from_toml(file)[1] == {"ray": "auto", "replicas": "2"}


def test_replicas_are_added_well_before_the_queue_refuses():
    assert [scale.target_requests(Settings(max_queue=size)) for size in (1, 8, 64, 400)] == [1, 1, 8, 50]
    assert scale.target_requests(Settings(max_latency_ms=50.0)) == 1


@pytest.mark.parametrize(
    "line",
    ["port = '8000'", "access_log = 1", "max_queue = true", "artifacts = 'x'", "deadline = 5", "ray = true"],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path, line):
    file = tmp_path / "serve.toml"
    file.write_text(line)
    with pytest.raises(InputError, match=str(file)):
        from_toml(file)


def test_loopback_needs_no_keys_and_anything_else_does(tmp_path):
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        check(Settings(host=host))
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(InputError, match="API keys are needed"):
            check(Settings(host=host))
        check(Settings(host=host, api_keys=tmp_path))


def test_names_come_from_folders_or_are_given(tmp_path):
    first, second = served([f"a={tmp_path}", str(tmp_path / "b.c-d")])
    assert (first.name, second.name) == ("a", "b.c-d")
    (odd,) = served([str(tmp_path / "x=y" / "model")])  # an equals sign of a path
    assert odd.name == "model"
    assert shadow_of("some/where", ["only"])[0] == "only"


def test_a_body_that_can_never_be_taken_is_no_setting():
    with pytest.raises(InputError, match="raise it, or lower max body mib"):
        check(Settings(max_body_mib=512))
    check(Settings(max_body_mib=512, max_uploads_mib=512))


@pytest.mark.parametrize("name", ["a", "A1", "a.b-c_d", "a__b", "a---b", "x" * 100])
def test_a_models_name(name):
    assert model_name(name, "") == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a.", "x-", "a..b", "a.-b", "a___b", "ä", "a/b", "x" * 101])
def test_what_cannot_be_a_models_name(name):
    with pytest.raises(InputError, match="cannot be a model's name: use up to"):
        model_name(name, "as in model=x")


def test_every_code_has_the_status_that_the_documentation_says():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")
    for code, status in CODES.items():
        rows = [row for row in text.splitlines() if row.startswith("|") and f"`{code}`" in row]
        assert any(str(status) in row.split("|")[1] for row in rows), code
