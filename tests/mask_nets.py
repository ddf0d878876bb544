"""Small ONNX segmenters made without PyTorch, and photos with true masks that they can find.

A photo is dark noise with a red disc and a green bar. The net scores each pixel's colour, at half the size,
through two convolutions: `classes` of ("ground", "disc", "bar"), or one map of the disc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = 32
CLASSES = ("ground", "disc", "bar")
SAID = {
    "image_size": SIZE,
    "crop": 1.0,
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "range": 1,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
TOML = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in SAID.items())


def photo(seed: int, size: tuple[int, int] = (60, 90)) -> tuple[Image.Image, np.ndarray]:
    """A photo (H, W) and its labels."""
    rng = np.random.default_rng(seed)
    height, width = size
    pixels = rng.integers(0, 70, (height, width, 3)).astype(np.uint8)
    labels = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    middle = rng.uniform(0.3, 0.7, 2) * size
    radius = rng.uniform(0.15, 0.25) * min(size)
    labels[np.hypot(rows - middle[0], columns - middle[1]) < radius] = 1
    labels[: int(rng.uniform(0.1, 0.2) * height)] = 2
    pixels[labels == 1] = (220, 30, 30)
    pixels[labels == 2] = (20, 210, 40)
    return Image.fromarray(pixels), labels


def write_photos(folder: Path, count: int, *, masks: str = "", first: int = 0) -> Path:
    """Photos in `folder`, with `masks` in photos/ and masks/: `classes`, or `inside` (the disc)."""
    photos = folder / "photos" if masks else folder
    photos.mkdir(parents=True)
    if masks:
        (folder / "masks").mkdir()
    for number in range(first, first + count):
        image, labels = photo(number, (60 + number % 3, 90))
        image.save(photos / f"{number:02d}.png" if not masks else photos / f"{number:02d}.jpg", quality=95)
        if masks:
            values = labels if masks == "classes" else ((labels == 1) * 255).astype(np.uint8)
            Image.fromarray(values).save(folder / "masks" / f"{number:02d}.png")
    return folder


def net(
    *,
    classes: int = len(CLASSES),
    ending: tuple[str, ...] = (),
    maps: str = "NCHW",
    batch: int | str = "N",
    swap: bool = False,
) -> onnx.ModelProto:
    """images (B, 3, 32, 32) -> maps (B, K, 16, 16); `ending`: operators after the scores.

    `swap`: classes 1 and 2 change places, as damage.
    """
    rng = np.random.default_rng(0)
    # Red less green, green less red, and a constant; mixed into 12 channels and back, so that there is work.
    colours = np.array([[0, 0, 0], [1.5, -1.5, 0], [-1.5, 1.5, 0]], np.float32)
    if classes == 1:
        colours = colours[1:2]
    if swap:
        colours = colours[::-1] if classes == 1 else colours[[0, 2, 1]]
        colours = -colours if classes == 1 else colours
    mix = np.linalg.qr(rng.standard_normal((12, 12)))[0].astype(np.float32)
    lift = np.concatenate([colours, np.zeros((12 - len(colours), 3), np.float32)])
    first = np.zeros((12, 3, 3, 3), np.float32)
    first[:, :, 1, 1] = mix @ lift
    second = mix.T[:classes].reshape(classes, 12, 1, 1).copy()
    bias = np.array([1.0, -1.0, -1.0], np.float32)[:classes] if classes > 1 else np.array([-2.0], np.float32)
    constants = {"a": first, "za": np.zeros(12, np.float32), "b": second, "zb": bias}
    nodes = [
        helper.make_node("Conv", ["pixels", "a", "za"], ["mixed"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["mixed"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["half", "b", "zb"], ["scores"], kernel_shape=[1, 1]),
    ]
    name, shape = "scores", ["N", classes, 16, 16]
    kind = TensorProto.FLOAT
    if maps == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["turned"], perm=[0, 2, 3, 1]))
        name, shape = "turned", ["N", 16, 16, classes]
    elif maps == "NHW":
        constants["axis"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Squeeze", [name, "axis"], ["flat"]))
        name, shape = "flat", ["N", 16, 16]
    axis = 3 if maps == "NHWC" else 1
    for number, operator in enumerate(ending):
        extra = {"axis": axis} if operator in ("Softmax", "ArgMax") else {}
        if operator == "ArgMax":
            extra["keepdims"], kind, shape = 0, TensorProto.INT64, ["N", 16, 16]
        nodes.append(helper.make_node(operator, [name], [f"step_{number}"], **extra))
        name = f"step_{number}"
    nodes[-1].output[0] = "answer"
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("answer", kind, [batch, *shape[1:]])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def saved(model: onnx.ModelProto, folder: Path, classes: tuple[str, ...] = CLASSES) -> list[str]:
    """The options that name it, its labels and its preprocessing, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "net.onnx")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "prepared.toml").write_text(TOML)
    return [
        "--task", "segment", "--onnx", str(folder / "net.onnx"), "--labels", str(folder / "labels.txt"),
        "--preprocess", str(folder / "prepared.toml"),
    ]  # fmt: skip
