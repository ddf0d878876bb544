"""Write src/vitrail/runtimes/matmul*.onnx: one product of two free inputs each, for ONNX Runtime's peaks."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

FOLDER = Path(__file__).resolve().parents[1] / "src/vitrail/runtimes"
INT8 = ("MatMulInteger", (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32))
KINDS = {"matmul.onnx": ("MatMul", (TensorProto.FLOAT,) * 3), "matmul-int8.onnx": INT8}


def main() -> None:
    """Build, check and save the models."""
    for file, (operator, types) in KINDS.items():
        matrix = [
            helper.make_tensor_value_info(name, kind, ["n", "n"])
            for name, kind in zip("abc", types, strict=True)
        ]
        node = helper.make_node(operator, ["a", "b"], ["c"])
        graph = helper.make_graph([node], "matmul", matrix[:2], matrix[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, FOLDER / file)


if __name__ == "__main__":
    main()
