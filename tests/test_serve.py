"""`vitrail serve` answers as `predict` does, and refuses what it should. One server for all. About 6 s."""

from __future__ import annotations

import io
import json
import re
import time

import artifacts
import numpy as np
import pytest
from PIL import Image

from vitrail.predict import load

pytest.importorskip("fastapi", reason="needs the extra serve")
tritonclient = pytest.importorskip("tritonclient.http")

from serving import Server  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return artifacts.make_embed_artifact(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def server(classifier, embedder, tmp_path_factory):
    names = (f"tiny={classifier.path}", f"vectors={embedder.path}")
    with Server(*names, "--max-batch", 1, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="module")
def photos(classifier):
    return [photo.read_bytes() for photo in classifier.photos]


def code(response) -> str:
    """The code of a refusal, whose answer says nothing of this machine."""
    body = response.json()
    error = body if isinstance(body["error"], str) else body["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert not re.search(r"(^|[\s'\"])/(?!v1/)", error.get("message", str(body["error"])))
    return error["code"]


# --- images -----------------------------------------------------------------------------------------


def test_labels_and_probabilities_are_exactly_those_of_predict(server, classifier, photos):
    with load(classifier.path, batch_size=1) as model:
        expected = model.predict(photos, top=3)
    for photo, prediction in zip(photos, expected, strict=True):
        found = server.post("/v1/classify?model=tiny&top=3", photo).json()
        assert found["results"] == [
            {
                "labels": [
                    {"label": r.label, "index": r.index, "probability": r.probability} for r in prediction.top
                ]
            }
        ]
    assert (found["model"], len(found["version"])) == ("tiny", 12)
    assert set(found["timing_ms"]) == {"wait", "prepare", "run"}


def test_several_images_come_back_in_order_and_a_bad_one_spoils_no_other(server, photos):
    alone = [server.post("/v1/classify", photo).json()["results"][0] for photo in photos]
    files = [("image", (f"{i}.jpg", data)) for i, data in enumerate([photos[0], b"no image", photos[1]])]
    answer = server.client.post("/v1/classify", files=files)
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert (results[0], results[2]) == (alone[0], alone[1])
    assert results[1]["error"]["code"] == "unusable_image"
    assert "is not a JPEG" in results[1]["error"]["message"]


def test_vectors_are_exactly_those_of_predict(server, embedder, photos):
    with load(embedder.path, batch_size=1) as model:
        expected = model.predict(photos)
    files = [("image", (str(i), data)) for i, data in enumerate(photos)]
    found = server.client.post("/v1/embed", files=files).json()["results"]
    for result, vector in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(result["vector"], np.float32), vector)


@pytest.mark.parametrize(
    ("content", "kind", "status", "expected"),
    [
        (b"", "image/png", 400, "bad_request"),
        (b"hello", "image/png", 422, "unusable_image"),
        (b"{}", "application/json", 415, "unsupported_media"),
        (b"--b\r\n", "multipart/form-data; boundary=b", 400, "bad_request"),
        (b"x", "multipart/form-data", 400, "bad_request"),
        (b"x" * 65 * 2**20, "image/png", 413, "too_large"),
        (
            b'--b\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttp://x\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
            "bad_request",
        ),
    ],
)
def test_what_is_no_image_is_refused(server, photos, content, kind, status, expected):
    answer = server.post("/v1/classify", content, kind)
    assert (answer.status_code, code(answer)) == (status, expected)
    assert server.post("/v1/classify", photos[0]).status_code == 200


def test_more_images_than_a_request_may_have_are_refused(server, photos):
    files = [("image", (str(i), photos[0])) for i in range(17)]
    answer = server.client.post("/v1/classify", files=files)
    assert (answer.status_code, code(answer)) == (413, "too_large")


def test_an_image_of_too_many_pixels_is_refused_and_harms_nothing(server, photos):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    answer = server.post("/v1/classify", file.getvalue())
    assert (answer.status_code, code(answer)) == (422, "unusable_image")
    assert "above the limit" in answer.json()["error"]["message"]
    assert server.post("/v1/classify", photos[0]).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/classify?top=0", 400),
        ("/v1/classify?topp=3", 400),
        ("/v1/classify?top=x", 400),
        ("/v1/classify?model=other", 404),
        ("/v1/classify?model=vectors", 400),
        ("/v1/nothing", 404),
    ],
)
def test_wrong_addresses_and_options_are_refused(server, photos, path, status):
    assert server.post(path, photos[0]).status_code == status


def test_a_deadline_that_cannot_be_kept_is_a_504(server, photos):
    wide = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)).save(wide, "PNG")
    answer = server.post("/v1/classify", wide.getvalue(), x_deadline_ms="1")
    assert (answer.status_code, code(answer)) == (504, "deadline")
    assert server.post("/v1/classify", photos[0], x_deadline_ms="no").status_code == 400
    deadline = time.monotonic() + 5
    while server.models()["tiny"]["queue"]["images"]:  # given back once the work has ended
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- Open Inference Protocol ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(server):
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.mark.parametrize("binary", [True, False])
def test_the_stock_triton_client_gets_the_models_own_outputs(triton, classifier, photos, binary):
    with load(classifier.path, batch_size=1) as model:
        inputs = model.prepare(photos)
        expected = model.run(inputs)["scores"]
    given = tritonclient.InferInput("images", list(inputs["images"].shape), "FP32")
    given.set_data_from_numpy(inputs["images"], binary_data=binary)
    wanted = tritonclient.InferRequestedOutput("scores", binary_data=binary)
    found = triton.infer("tiny", [given], outputs=[wanted], request_id="7")
    np.testing.assert_array_equal(found.as_numpy("scores"), expected)
    assert found.get_response()["id"] == "7"
    assert found.get_response()["model_version"] == triton.get_model_metadata("tiny")["versions"][0]


def test_triton_reads_health_and_metadata(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = triton.get_model_metadata("vectors")
    side = artifacts.SIZE
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, side, side]}]
    assert found["outputs"] == [{"name": "vectors", "datatype": "FP32", "shape": [-1, 8]}]
    assert triton.is_model_ready("vectors", found["versions"][0])
    assert not triton.is_model_ready("vectors", "1")


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]},
        {"inputs": [{"name": "other", "datatype": "FP32", "shape": [1, 1], "data": [1]}]},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 2], "data": [1]}]},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 2], "data": ["a", "b"]}]},
        {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [-1], "data": [1]}]},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1]}]},
        {
            "inputs": [{"name": "images", "datatype": "FP32", "shape": [1], "data": [1]}],
            "outputs": [{"name": "x"}],
        },
        {"nothing": 1},
        [1],
    ],
)
def test_tensors_that_are_not_the_models_are_refused(server, change):
    answer = server.client.post("/v2/models/tiny/infer", json=change)
    assert (answer.status_code, code(answer)) == (400, "bad_request")
    assert isinstance(answer.json()["error"], str)


# --- who may come in, and what is told ---------------------------------------------------------------


def test_pages_of_other_sites_get_nothing(server, photos):
    assert server.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    origin = server.post("/v1/classify", photos[0], origin="http://evil.example")
    assert (origin.status_code, code(origin)) == (403, "forbidden")
    assert server.post("/v1/classify", photos[0], origin=server.url).status_code == 200


def test_request_ids_are_taken_over_and_logged_as_json(server, photos):
    answer = server.post("/v1/classify?model=tiny", photos[0], x_request_id="mine-1")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    assert server.post("/v1/classify", photos[0], x_request_id="no good").headers["x-request-id"] != "no good"
    deadline = time.monotonic() + 5
    while not (lines := [line for line in server.log if line["id"] == "mine-1"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (line,) = lines
    assert (line["status"], line["model"], line["images"], line["method"]) == (200, "tiny", 1, "POST")


def test_metrics_count_what_happened(server, photos):
    before = server.metric("vitrail_requests_total", endpoint="classify", status="200", model="tiny")
    refused = server.metric("vitrail_rejected_total", code="unusable_image")
    server.post("/v1/classify", photos[0])
    server.post("/v1/classify", b"hello")
    assert (
        server.metric("vitrail_requests_total", endpoint="classify", status="200", model="tiny") == before + 1
    )
    assert server.metric("vitrail_rejected_total", code="unusable_image") == refused + 1
    assert server.metric("vitrail_ready", model="tiny") == 1
    assert server.metric("vitrail_queue_images", model="tiny") == 0
    assert server.metric("vitrail_stage_seconds_count", model="tiny", stage="run") > 0


def test_the_models_come_with_their_evidence_and_no_path(server, classifier):
    found = server.models()["tiny"]
    assert found["ready"]
    assert found["evidence"]["accuracy"]["value"] == 71.5
    assert found["digest"] == json.loads((classifier.path / "manifest.json").read_text())["digest"]
    assert str(classifier.path) not in json.dumps(found)
