"""One engine on one exported classifier, for benchmarks that time exports beside eager code and for tests."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vitrail import runtimes
from vitrail.export import onnx, work
from vitrail.vocabulary import Graph, Target, TensorSpec

INPUT, OUTPUT = "images", "scores"


def graph_of(size: int, classes: int, entry: str = work.ONNX_FILE) -> Graph:
    """images (B, 3, size, size) -> scores (B, classes)."""
    return Graph(
        entry=entry,
        inputs=(TensorSpec(name=INPUT, shape=("B", 3, size, size)),),
        outputs=(TensorSpec(name=OUTPUT, shape=("B", classes)),),
    )


def write(model: nn.Module, folder: Path, size: int, classes: int = 1000) -> None:
    """The ONNX file and what each engine builds of it; a compiled reference needs the weights as well."""
    onnx.write_onnx(model, graph_of(size, classes), folder / work.ONNX_FILE)
    for name, engine in runtimes.RUNTIMES.items():
        if engine.builds and not engine.of_module:
            work.build({"folder": str(folder), "runtime": name, "target": str(folder / name)})


def load(
    folder: Path,
    engine: str,
    *,
    size: int,
    batch: int,
    precision: str,
    threads: int,
    classes: int = 1000,
    many: bool = False,
) -> runtimes.Runner:
    """The engine with the files in `folder`; `many` as in `vitrail.load`."""
    row = runtimes.RUNTIMES[engine]
    return runtimes.load(
        folder / engine if row.builds else folder,
        graph_of(size, classes, row.files[0]),
        Target(runtime=engine, precision=precision),
        sizes={"B": batch},
        threads=threads,
        settings=dict(row.sharing) if many else {},
    )
