"""An image that serves the artifact with `vitrail serve`: not as root, on a read-only file system."""

from __future__ import annotations

import shutil
from pathlib import Path

from vitrail.artifact import open_artifact
from vitrail.errors import InputError
from vitrail.install import extras_of
from vitrail.package.order import Order
from vitrail.package.pages import copy_file, write_page
from vitrail.package.wheel import add_wheel
from vitrail.runtimes import RUNTIMES
from vitrail.words import shown

__all__ = ["write"]

PYTHON = "3.12-slim"
PORT = 8000
USER = 10001


def write(folder: Path, order: Order) -> tuple[str, ...]:
    """Write the build context; notes for the person.

    Raises:
        InputError: an engine that could not run in the image.
    """
    engine = RUNTIMES[order.artifact.manifest.variant.runtime]
    if order.instead_of_docker:
        lacking = (
            "does not run on Linux, which an image of Docker is"
            if engine.platforms
            else "takes CUDA, which this image would not have"
        )
        raise InputError(f"{engine.label} {lacking}: {order.instead_of_docker}.")
    shutil.copytree(order.artifact.path, folder / "artifact")
    open_artifact(folder / "artifact")
    version, note = add_wheel(folder, order.wheel)
    copy_file("healthcheck.py", folder / "healthcheck.py")
    facts = {
        "name": order.name,
        "image": order.name.lower(),
        "artifact": shown(order.artifact.manifest.name),
        "license": shown(order.artifact.manifest.variant.candidate.weights.license),
        "classify": order.labels is not None,
        "python": PYTHON,
        "port": PORT,
        "user": USER,
        "version": version,
        "extras": ",".join(["serve", *extras_of(engine.install)]),
        "torch": engine.loads == "PyTorch",
        "threads": order.threads,
    }
    write_page(folder / "Dockerfile", "docker/Dockerfile", facts)
    write_page(folder / "README.md", "docker/README.md", facts)
    write_page(folder / ".dockerignore", "docker/dockerignore", facts)
    return () if note is None else (note,)
