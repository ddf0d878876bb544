"""uint8: the model takes pixels as Pillow gives them, and scales them itself.

The input becomes uint8 (B, S, S, 3) instead of normalised float32 (B, 3, S, S): a quarter of the bytes, and
no arithmetic on the host. In the graph the pixels are transposed and cast; the normalisation
(x / 255 - mean) / std disappears in the convolutions that read the image: 1 / (255 std) into their weights
and the mean

- without padding into their bias;
- with zero padding into a subtraction before, as the border must stay the zero of normalised pixels.

Where something else reads the image, it is normalised by a multiplication and an addition.
"""

from __future__ import annotations

import numpy as np
import onnx

from vitrail.export.passes.edit import Editor, attributes
from vitrail.vocabulary import Preprocess

__all__ = ["apply"]


def apply(model: onnx.ModelProto, preprocess: Preprocess) -> int:
    """Rewrite the model in place; 0: its one float32 image input was not found, 1: done.

    The input keeps its name and its batch.
    """
    (image, *others) = model.graph.input
    tensor = image.type.tensor_type
    sides = tensor.shape.dim
    if others or tensor.elem_type != onnx.TensorProto.FLOAT or len(sides) != 4 or sides[1].dim_value != 3:
        return 0
    editor = Editor(model)
    std, mean = (np.array(values, np.float64) for values in (preprocess.std, preprocess.mean))
    scale, shift = 1.0 / (255.0 * std), mean / std
    readers = list(editor.consumers[image.name])
    pixels = _chain(editor, image.name, "Transpose", perm=[0, 3, 1, 2])
    pixels = _chain(editor, pixels, "Cast", to=onnx.TensorProto.FLOAT)
    if all(_foldable(editor, node, image.name) for node in readers):
        convolutions = [node for node in readers if node.op_type == "Conv"]
        if any(any(attributes(node).get("pads", ())) for node in convolutions):
            pixels = _chain(editor, pixels, "Sub", _channels(255.0 * mean))
            shift = np.zeros(3)
        for node in convolutions:
            _fold(editor, node, scale, shift)
    else:
        pixels = _chain(editor, pixels, "Mul", _channels(scale))
        pixels = _chain(editor, pixels, "Sub", _channels(shift))
    for node in readers:
        editor.set_input(node, list(node.input).index(image.name), pixels)
    tensor.elem_type = onnx.TensorProto.UINT8
    height, width = (int(side.dim_value) for side in sides[2:])
    for side, size in zip(sides[1:], (height, width, 3), strict=False):
        side.dim_value = size
    editor.finish()
    return 1


def _chain(editor: Editor, value: str, op_type: str, *constants: np.ndarray, **attributes: object) -> str:
    """The name of what an operation makes of `value`."""
    output = editor.name(f"pixels_{op_type.lower()}")
    inputs = [value, *(editor.add_constant(f"{output}_by", each) for each in constants)]
    editor.add(op_type, inputs, output, **attributes)
    return output


def _channels(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, 3, 1, 1)


def _foldable(editor: Editor, node: onnx.NodeProto, image: str) -> bool:
    """A convolution over all three colours with weights at hand, or one that only asks for the shape."""
    if node.op_type == "Shape":
        return True
    if (
        node.op_type != "Conv"
        or node.input[0] != image
        or attributes(node).get("auto_pad", b"NOTSET") != b"NOTSET"
    ):
        return False
    weights = [editor.constant(name) for name in node.input[1:]]
    return attributes(node).get("group", 1) == 1 and all(each is not None for each in weights)


def _fold(editor: Editor, node: onnx.NodeProto, scale: np.ndarray, shift: np.ndarray) -> None:
    """conv(x * scale - shift) as conv(x), shift only where there is no padding."""
    weights = editor.constant(node.input[1])
    assert weights is not None
    wide = weights.astype(np.float64)
    editor.set_input(
        node, 1, editor.add_constant("pixel_weights", (wide * scale[:, None, None]).astype(np.float32))
    )
    if not shift.any():
        return
    old = editor.constant(node.input[2]) if len(node.input) == 3 else None
    bias = (0.0 if old is None else old.astype(np.float64)) - (wide * shift[:, None, None]).sum((1, 2, 3))
    editor.set_input(node, 2, editor.add_constant("pixel_bias", bias.astype(np.float32)))
