"""`python -m vitrail.traffic.child PARENT ARGUMENTS...`: `vitrail serve` that ends with its parent."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

PARENT_CHECK_S = 0.5


def main() -> None:
    """Serve until told to end, or until nobody is left to tell."""
    parent = int(sys.argv[1])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = ["vitrail", "serve", *sys.argv[2:]]
    runpy.run_module("vitrail", run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
