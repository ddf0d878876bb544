"""The child's side of sandbox.py: `python -m vitrail.measure.child PARENT`, JSON lines on stdin and stdout.

The first line names a function and its payload. If it returns an object with methods rather than JSON,
each further line calls one of them. Anything that libraries print goes to stderr, never into the protocol.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from typing import IO, Any

from vitrail.errors import VitrailError
from vitrail.privacy import quiet_process

PARENT_CHECK_S = 0.5


def main() -> None:
    """Serve the protocol until stdin ends."""
    # Passed by the parent: read here, it could already be the process that adopted an orphan.
    parent = int(sys.argv[1])
    quiet_process()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    session: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "function" in message:
                result = _resolve(message["function"])(message["payload"])
                if not isinstance(result, dict | list | str | int | float | None):
                    session, result = result, None
            else:
                result = getattr(session, message["method"])(**message["arguments"])
        except Exception as error:
            traceback.print_exc()
            _answer(answers, {"error": _clause(error)})
        else:
            _answer(answers, {"result": result})


def _resolve(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _answer(stream: IO[str], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _clause(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, VitrailError):
        return text
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    main()
