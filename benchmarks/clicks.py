"""How long does a person wait for the mask after a click, once the photo was encoded?

    python benchmarks/clicks.py ARTIFACT PHOTO [PHOTO ...] [--clicks 200] [--only PART ...]

    http      clicks one after another over one connection: from the request to all of its answer
    meanwhile the same while somebody else sends a new photo whenever the last one is encoded
    browser   the page in Chromium: from the button to the frame after the mask was painted (needs Chromium)

Clicks are spread evenly over the photos, which keep the size that they are given in. The first of each photo
is not counted: it makes what later ones use. ARTIFACT is of `--task promptable`. The server runs on this
machine, and the client shares its cores. The aim is 100 ms at the 95th percentile in every part. The last
line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.hardware import facts, one_line
from vitrail.images.decode import decode
from vitrail.tasks.promptable import SPREAD
from vitrail.traffic.process import Server

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PARTS = ("http", "meanwhile", "browser")
AIM_MS = 100.0
PATIENCE_S = 60.0


def main() -> int:
    """Run the parts; 1 if one of them misses the aim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--clicks", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    photos = [(path, path.read_bytes(), decode(path).size) for path in args.photos]
    found: dict[str, Any] = {}
    with Server(args.artifact) as server:
        server.settle()
        for part in args.only:
            run = {"http": over_http, "meanwhile": meanwhile, "browser": in_browser}[part]
            found[part] = run(server.port, photos, max(args.clicks // len(photos), 2))
            tell(part, found[part])
    said = {
        "benchmark": "clicks",
        "machine": one_line(facts()),
        "python": platform.python_version(),
        "megapixels": [round(width * height / 1e6, 2) for _, _, (width, height) in photos],
        **found,
    }
    print(json.dumps(said))
    return int(any(part["p95_ms"] > AIM_MS for part in found.values()))


def tell(part: str, figures: dict[str, Any]) -> None:
    """One line for people."""
    said = ", ".join(
        f"{name.removesuffix('_ms')} {value:.1f}" for name, value in figures.items() if name[1].isdigit()
    )
    print(f"{part:9}  {said} ms of {figures['clicks']} clicks; a photo {figures['photo_ms']:.0f} ms")


def places(size: tuple[int, int], count: int) -> list[tuple[float, float]]:
    """Pixels spread over a photo (width, height)."""
    return [
        tuple(round((0.5 + number * step) % 1.0 * side, 1) for step, side in zip(SPREAD, size, strict=True))
        for number in range(count)
    ]  # type: ignore[misc]


def figures(taken_ms: list[float], photo_ms: list[float], **more: float) -> dict[str, Any]:
    """Percentiles of clicks, and the median of a photo."""
    p50, p95, p99 = np.percentile(taken_ms, [50, 95, 99], method="inverted_cdf")
    return {
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "clicks": len(taken_ms),
        "photo_ms": float(np.median(photo_ms)),
        **more,
    }


# --- over HTTP --------------------------------------------------------------------------------------


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def ask(self, body: bytes, kind: str) -> tuple[dict[str, Any], float]:
        """The answer, and the ms until all of it was there."""
        begin = time.perf_counter()
        self._connection.request("POST", "/v1/segment", body, {"Content-Type": kind})
        response = self._connection.getresponse()
        data = response.read()
        taken = 1e3 * (time.perf_counter() - begin)
        if response.status != 200:
            raise SystemExit(f"the server answered {response.status}: {data[:300]!r}")
        return json.loads(data), taken


def over_http(port: int, photos: list[tuple[Path, bytes, tuple[int, int]]], count: int) -> dict[str, Any]:
    """Clicks of one person."""
    client, clicks, encoded, engine, making = Client(port), [], [], [], []
    for _, data, size in photos:
        answer, taken = client.ask(data, "application/octet-stream")
        encoded.append(taken)
        image = answer["results"][0]["image_id"]
        for number, at in enumerate(places(size, count + 1)):
            asked = json.dumps({"image_id": image, "points": [[*at, 1]]}).encode()
            answer, taken = client.ask(asked, "application/json")
            if number:
                clicks.append(taken)
                engine.append(answer["timing_ms"]["run"])
                making.append(answer["timing_ms"]["finish"])
    return figures(clicks, encoded, engine_ms=float(np.median(engine)), mask_ms=float(np.median(making)))


def meanwhile(port: int, photos: list[tuple[Path, bytes, tuple[int, int]]], count: int) -> dict[str, Any]:
    """Clicks of one person while another sends photos."""
    ended = threading.Event()
    encoded: list[float] = []

    def others() -> None:
        client, rng = Client(port), np.random.default_rng(0)
        while not ended.is_set():
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(file, "JPEG")
            encoded.append(client.ask(file.getvalue(), "image/jpeg")[1])

    thread = threading.Thread(target=others)
    thread.start()
    try:
        found = over_http(port, photos, count)
    finally:
        ended.set()
        thread.join()
    return {**found, "photo_ms": float(np.median(encoded)), "photos": len(encoded)}


# --- on the page ------------------------------------------------------------------------------------


def in_browser(port: int, photos: list[tuple[Path, bytes, tuple[int, int]]], count: int) -> dict[str, Any]:
    """Clicks with the mouse of a headless Chromium."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        raise SystemExit("There is no Chromium here: leave browser out of --only.")
    clicks, encoded = [], []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(Path(folder)) as browser:
        for path, _, size in photos:
            browser.open(f"http://127.0.0.1:{port}", 1200, 1400)
            browser.wait_for("document.getElementById('name').textContent === 'model'")
            root = browser.call("DOM.getDocument")["root"]["nodeId"]
            node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
            begin = time.perf_counter()
            browser.call("DOM.setFileInputFiles", files=[str(path.absolute())], nodeId=node)
            browser.wait_for("!document.getElementById('tools').hidden")
            encoded.append(1e3 * (time.perf_counter() - begin))
            for number, at in enumerate(places(size, count + 1)):
                taken = clicked(browser, at, size)
                if number:
                    clicks.append(taken)
    return figures(clicks, encoded)


def clicked(browser: Any, at: tuple[float, float], size: tuple[int, int]) -> float:
    """One click on a cleared photo; ms until its mask was painted, as the page says."""
    browser.value(
        "document.getElementById('clear').click(); delete document.getElementById('timing').dataset.ms"
    )
    left, top, width, height = browser.value(
        "(() => { const r = document.getElementById('over').getBoundingClientRect();"
        " return [r.left, r.top, r.width, r.height]; })()"
    )
    browser.click(left + at[0] / size[0] * width, top + at[1] / size[1] * height)
    return float(browser.wait_for("document.getElementById('timing').dataset.ms"))


if __name__ == "__main__":
    sys.exit(main())
