"""A promptable artifact made by hand in ONNX: what looks like the clicked place, and lies near, is inside.

Of each point its colour and distance count, inside points for and outside points against; a box adds to what
lies within. So every answer depends on the photo and on the prompt, which random weights do not promise.
Shapes: S the square, E = 3 colours, h = S / 2 tokens, N points.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import artifacts
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vitrail.artifact import Artifact, write
from vitrail.images.decode import decode
from vitrail.predict import Predictor
from vitrail.runtimes.chain import load_graphs
from vitrail.tasks.mask_parity import MASK_BOUNDS
from vitrail.tasks.promptable import Promptable
from vitrail.vocabulary import Accuracy, Export, Preprocess, Target, Workload

SIDE, TOKENS = 64, 32
OFFSETS = np.array([0.25, 0.15, 0.3, 0.5], np.float32)
IOUS = np.array([0.9, 0.7, 0.95, 0.8], np.float32)
NEAR, COLOUR, POINT, BOX, STEEP = 900.0, 0.7, 8.0, 0.4, 10.0
PREPROCESS = Preprocess(image_size=SIDE, crop=1.0, crop_mode="letterbox", interpolation="bilinear")
TASK = Promptable(preprocess=PREPROCESS, masks=3, width=3, tokens=TOKENS, mask_side=TOKENS)

_AT = (np.arange(TOKENS, dtype=np.float32) + 0.5) * (SIDE / TOKENS)
GRID_hh2 = np.stack(np.meshgrid(_AT, _AT), axis=-1)
"""(x, y) of each token's middle in the square."""


def numpy_outputs(images: np.ndarray, points: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Both graphs without an engine: images (B, 3, S, S), points (B, N, 2), labels (B, N) -> masks, ious."""
    count = len(images)
    maps = images.astype(np.float64).reshape(count, 3, TOKENS, 2, TOKENS, 2).mean(axis=(3, 5))
    masks, ious = [], []
    for colours_3hh, at_N2, kinds_N in zip(maps, points, labels, strict=True):
        total = np.zeros((TOKENS, TOKENS))
        upper, lower = np.zeros_like(total), np.zeros_like(total)
        for at, kind in zip(at_N2, kinds_N, strict=True):
            apart = ((GRID_hh2 - at) ** 2).sum(-1)
            weight = np.exp(-(apart - apart.min()) / POINT)
            colour = (colours_3hh * weight / weight.sum()).sum((1, 2))
            unlike = ((colours_3hh - colour[:, None, None]) ** 2).sum(0)
            total += {1: 1, 0: -1}.get(int(kind), 0) * np.exp(-COLOUR * unlike - apart / NEAR)
            upper += (kind == 2) * (at <= GRID_hh2).all(-1)
            lower += (kind == 3) * (at >= GRID_hh2).all(-1)
        total += BOX * upper * lower
        masks.append(STEEP * (total - OFFSETS[:, None, None]))
        ious.append(IOUS + 0.1 * total.mean())
    return {"masks": np.array(masks, np.float32), "ious": np.array(ious, np.float32)}


def _graph(name: str, nodes: list, inputs: list, outputs: list, constants: dict) -> onnx.ModelProto:
    initial = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def encoder() -> onnx.ModelProto:
    """images (B, 3, S, S) -> embeddings (B, 3, h, h): each the mean of four pixels."""
    pool = helper.make_node("AveragePool", ["images"], ["embeddings"], kernel_shape=[2, 2], strides=[2, 2])
    spec = helper.make_tensor_value_info
    return _graph(
        "encode",
        [pool],
        [spec("images", TensorProto.FLOAT, ["B", 3, SIDE, SIDE])],
        [spec("embeddings", TensorProto.FLOAT, ["B", 3, TOKENS, TOKENS])],
        {},
    )


def decoder() -> onnx.ModelProto:
    """embeddings, points (B, N, 2), labels (B, N) -> masks (B, 4, h, h), ious (B, 4)."""
    f = np.float32
    constants = {
        "grid": GRID_hh2[None, None].astype(f),
        "flat": np.array([0, 0, TOKENS * TOKENS]),
        "square": np.array([0, 0, TOKENS, TOKENS]),
        **{f"axis_{n}": np.array([n]) for n in (1, 2, 3)},
        "last": np.array([-1]),
        "axes_12": np.array([1, 2]),
        **{f"label_{n}": np.array(n, np.int64) for n in range(4)},
        "point": np.array(-1 / POINT, f),
        "near": np.array(-1 / NEAR, f),
        "colour": np.array(-COLOUR, f),
        "box": np.array(BOX, f),
        "steep": np.array(STEEP, f),
        "tenth": np.array(0.1, f),
        "offsets": OFFSETS[None, :, None, None],
        "expected": IOUS[None],
    }
    nodes: list[onnx.NodeProto] = []

    def do(operator: str, *given: str, to: str = "", **attributes: object) -> str:
        to = to or f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(given), [to], **attributes))
        return to

    def square(given: str) -> str:
        return do("Mul", given, given)

    def number_of(given: str) -> str:
        nodes.append(helper.make_node("Cast", [given], [f"number_{len(nodes)}"], to=TensorProto.FLOAT))
        return nodes[-1].output[0]

    at = do("Unsqueeze", do("Unsqueeze", "points", "axis_2"), "axis_2")  # (B, N, 1, 1, 2)
    apart = do("ReduceSum", square(do("Sub", "grid", at)), "last", keepdims=0)
    weight = do("Softmax", do("Reshape", do("Mul", apart, "point"), "flat"), axis=-1)  # (B, N, h²)
    flat = do("Reshape", "embeddings", "flat")  # (B, 3, h²)
    colour = do("MatMul", weight, do("Transpose", flat, perm=[0, 2, 1]))  # (B, N, 3)
    unlike = square(do("Sub", do("Unsqueeze", flat, "axis_1"), do("Unsqueeze", colour, "axis_3")))
    unlike = do("Reshape", do("ReduceSum", unlike, "axis_2", keepdims=0), "square")  # (B, N, h, h)
    like = do("Exp", do("Add", do("Mul", unlike, "colour"), do("Mul", apart, "near")))

    def kind(number: int) -> str:
        same = number_of(do("Equal", "labels", f"label_{number}"))
        return do("Unsqueeze", do("Unsqueeze", same, "axis_2"), "axis_3")  # (B, N, 1, 1)

    def within(operator: str, number: int) -> str:
        both = do("ReduceMin", number_of(do(operator, "grid", at)), "last", keepdims=0)
        return do("ReduceSum", do("Mul", both, kind(number)), "axis_1", keepdims=0)

    signs = do("Sub", kind(1), kind(0))
    score = do("ReduceSum", do("Mul", like, signs), "axis_1", keepdims=0)  # (B, h, h)
    box = do("Mul", do("Mul", within("GreaterOrEqual", 2), within("LessOrEqual", 3)), "box")
    total = do("Add", score, box)
    do("Mul", do("Sub", do("Unsqueeze", total, "axis_1"), "offsets"), "steep", to="masks")
    mean = do("Unsqueeze", do("ReduceMean", total, "axes_12", keepdims=0), "axis_1")
    do("Add", "expected", do("Mul", mean, "tenth"), to="ious")
    spec = helper.make_tensor_value_info
    return _graph(
        "prompt",
        nodes,
        [
            spec("embeddings", TensorProto.FLOAT, ["B", 3, TOKENS, TOKENS]),
            spec("points", TensorProto.FLOAT, ["B", "N", 2]),
            spec("labels", TensorProto.INT64, ["B", "N"]),
        ],
        [
            spec("masks", TensorProto.FLOAT, ["B", 4, TOKENS, TOKENS]),
            spec("ious", TensorProto.FLOAT, ["B", 4]),
        ],
        constants,
    )


def photo(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    """A smooth photo (H, W) of many colours."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def make_artifact(folder: Path) -> Artifact:
    """Write both graphs for ONNX Runtime to `folder/winner`; the fp32 outputs are NumPy's."""
    bundle = artifacts.make_bundle(folder)
    made = folder / "graphs"
    for stage, model in zip(TASK.stages, (encoder(), decoder()), strict=True):
        (made / stage).mkdir(parents=True)
        onnx.save(model, made / stage / "model.onnx")
    graphs = TASK.graphs("model.onnx")
    target = Target(runtime="onnxruntime", precision="fp32")
    inputs = TASK.prepare([decode(path) for path in bundle.photos])
    with Predictor(load_graphs(made, graphs, target, sizes={"B": 1}, threads=1), TASK) as predictor:
        own, facts = predictor.run(inputs), predictor.runner.facts
    candidate = replace(bundle.variant.candidate, task="promptable", preprocess=PREPROCESS, accuracy=None)
    return write(
        folder / "winner",
        replace(
            bundle,
            task=TASK,
            variant=replace(bundle.variant, candidate=candidate, image_size=SIDE, runtime="onnxruntime"),
            export=Export(
                folder=str(made), files=tuple(f"{stage}/model.onnx" for stage in TASK.stages), graphs=graphs
            ),
            fp32_outputs=numpy_outputs(**inputs),
            own_outputs=own,
            bounds=MASK_BOUNDS["fp32"],
            evidence=replace(
                bundle.evidence,
                facts=facts,
                workload=Workload(batch_size=1, threads=1),
                accuracy=Accuracy(value=88.5, provenance="measured", source="three drawn photos"),
            ),
        ),
    )
