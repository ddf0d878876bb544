"""A headless Chromium, driven over the pipes of its debugging protocol; no library is needed for that."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 30.0


class Browser:
    """One page of one browser."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def settle() -> None:
            # Chromium reads file descriptor 3 and writes 4; neither may be overwritten before it is copied.
            high = os.dup(to_browser), os.dup(from_browser)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={folder}", "about:blank"),
            ],
            preexec_fn=settle,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._ids, self._rest, self.events = itertools.count(1), b"", []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self._next(deadline)
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def wait_for(self, expression: str) -> Any:
        """The value of a JavaScript expression once it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"never: {expression}\n{self.complaints()}"
            time.sleep(0.05)
        return value

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """The parameters of the next event of this name."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [event for event in self.events if event.get("method") == name]):
            self.events.append(self._next(deadline))
        return found[-1]["params"]

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Go to an address, in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=url)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, down and up; `shift` is held meanwhile."""
        codes = {
            "Backspace": 8,
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        common["modifiers"] = 8 if shift else 0
        text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ") else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, x: float, y: float, *, button: str = "left", shift: bool = False) -> None:
        """A click at a place of the window."""
        self._mouse("mousePressed", (x, y), button, shift)
        self._mouse("mouseReleased", (x, y), button, shift)

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """The left button held from one place to another."""
        self._mouse("mousePressed", begin)
        for share in (0.3, 0.7, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(begin, end, strict=True))
            self._mouse("mouseMoved", (x, y))
        self._mouse("mouseReleased", end)

    def _mouse(self, what: str, at: tuple[float, float], button: str = "left", shift: bool = False) -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type=what,
            x=at[0],
            y=at[1],
            button=button,
            buttons={"left": 1, "right": 2}[button] if what != "mouseReleased" else 0,
            clickCount=1,
            modifiers=8 if shift else 0,
        )

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """What the page's console said, and what was blocked."""
        said = []
        for event in self.events:
            if event.get("method") == "Log.entryAdded":
                said.append(event["params"]["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                said.append(str(event["params"]["exceptionDetails"]))
        return said

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)
