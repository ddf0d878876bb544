"""The server's page in a real browser: by keyboard, on a desk and on a phone. About 14 s."""

from __future__ import annotations

import time

import artifacts
import mask_artifacts
import mask_nets
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from vitrail.masks.overlay import colours
from vitrail.predict import load

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

WIDE, PHONE = 1200, 360


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def server(artifact, tmp_path_factory):
    with Server(artifact.path, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_a_photo_chosen_by_keyboard_is_labelled(server, browser, artifact, width):
    browser.open(server.url, width)
    browser.wait_for("document.getElementById('name').textContent === 'winner'")
    assert browser.value("document.getElementById('state').textContent") == "Ready"
    assert not browser.value("document.getElementById('choice').getClientRects().length")
    assert "71.5" in browser.value("document.getElementById('evidence').textContent")
    browser.call("Page.setInterceptFileChooserDialog", enabled=True)
    for _ in range(4):
        browser.press("Tab")
        if browser.value("document.activeElement.id") == "file":
            break
    browser.events.clear()
    browser.press("Enter")
    chosen = browser.wait_for_event("Page.fileChooserOpened")
    photo = artifact.photos[0]
    browser.call("DOM.setFileInputFiles", files=[str(photo)], backendNodeId=chosen["backendNodeId"])
    browser.wait_for("!document.getElementById('result').hidden")
    with load(artifact.path, batch_size=1) as model:
        (expected,) = model.predict(photo)
    assert browser.value("document.getElementById('answer').textContent") == expected.label
    bars = browser.value("[...document.querySelectorAll('#labels rect')].map(r => r.getAttribute('width'))")
    assert [float(bar.rstrip("%")) for bar in bars] == pytest.approx(
        [100 * ranked.probability for ranked in expected.top]
    )
    assert "ms there and back" in browser.value("document.getElementById('timing').textContent")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_the_page_says_what_is_wrong_and_goes_on(server, browser, artifact, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    browser.open(server.url)
    browser.wait_for("document.getElementById('name').textContent === 'winner'")
    for path, shown in ((bad, "trouble"), (artifact.photos[0], "result")):
        choose(browser, path)
        browser.wait_for(f"!document.getElementById('{shown}').hidden")
    assert browser.value("document.getElementById('trouble').hidden")


def test_the_api_is_described_without_the_internet(server, browser):
    browser.events.clear()
    browser.open(f"{server.url}/docs", PHONE)
    browser.wait_for("document.querySelectorAll('.operation').length > 5")
    assert "/v1/classify" in browser.value("document.body.textContent")
    assert browser.value("document.documentElement.scrollWidth") <= PHONE
    assert browser.complaints() == []
    loaded = browser.value("performance.getEntriesByType('resource').map(r => r.name)")
    assert all(name.startswith(server.url) for name in loaded)


def test_pages_allow_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        answer = server.client.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http" not in answer.text.replace("http-equiv", "")


# --- masks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masker(tmp_path_factory):
    return mask_artifacts.make_segment_artifact(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def masks_server(masker, tmp_path_factory):
    with Server(masker.path, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


def choose(browser, path) -> None:
    """As if the file had been chosen."""
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)


PAINTED = """(() => {
  const canvas = document.getElementById('over'), {width, height} = canvas;
  const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  return {width, height, data: [...data]};
})()"""


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_masks_lie_over_the_photo_and_are_chosen_by_keyboard(masks_server, browser, masker, width):
    photo = masker.photos[0]
    browser.open(masks_server.url, width)
    browser.wait_for("document.getElementById('name').textContent === 'winner'")
    choose(browser, photo)
    browser.wait_for("!document.getElementById('result').hidden && document.getElementById('shown').complete")
    with load(masker.path) as model:
        (found,) = model.segment(photo)
    labels, shares = found.labels(), found.shares()
    legend = browser.value("[...document.querySelectorAll('.legend')].map(l => l.textContent)")
    ordered = sorted(shares, key=lambda name: -shares[name])
    assert legend == [f"{name}{100 * shares[name]:.1f} %" for name in ordered]
    painted = browser.value(PAINTED)
    assert (painted["height"], painted["width"]) == labels.shape
    pixels = np.array(painted["data"], np.uint8).reshape(*labels.shape, 4)
    inside = np.isin(pixels[..., 3], (115, 255))
    assert inside.all()
    solid = pixels[..., 3] == 255  # what is half transparent is stored with rounded colours
    expected = np.array(colours(3), np.uint8)[labels]
    assert np.array_equal(pixels[solid][:, :3], expected[solid])
    edge = labels[:, 1:] != labels[:, :-1]
    assert solid[:, 1:][edge].all()
    assert solid[:, :-1][edge].all()
    for _ in range(8):
        browser.press("Tab")
        if browser.value("document.activeElement.type") == "checkbox":
            break
    browser.press(" ")  # the largest goes
    left = np.array(browser.value(PAINTED)["data"], np.uint8).reshape(*labels.shape, 4)[..., 3] > 0
    assert np.array_equal(left, labels != mask_nets.CLASSES.index(ordered[0]))
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert [said for said in browser.complaints() if "getImageData" not in said] == []  # the test's own


def test_the_map_of_labels_is_saved(masks_server, browser, masker, tmp_path):
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(masks_server.url)
    browser.wait_for("document.getElementById('name').textContent === 'winner'")
    choose(browser, masker.photos[1])
    browser.wait_for("!document.getElementById('actions').hidden")
    browser.value("document.querySelector('#actions button').click()")
    saved = tmp_path / f"{masker.photos[1].stem}-mask.png"
    deadline = time.monotonic() + 20
    while not saved.is_file() or not saved.stat().st_size:
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.05)
    with load(masker.path) as model:
        (found,) = model.segment(masker.photos[1])
    assert np.array_equal(np.asarray(Image.open(saved)), found.labels())
