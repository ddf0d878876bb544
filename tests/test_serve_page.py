"""The server's page in a real browser: by keyboard, on a desk and on a phone. About 8 s."""

from __future__ import annotations

import artifacts
import pytest
from browser import CHROMIUM, Browser

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
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
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
