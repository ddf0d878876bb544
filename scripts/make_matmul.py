"""Write src/vitrail/runtimes/matmul.onnx: one MatMul with two free inputs, for ONNX Runtime's peak."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

TARGET = Path(__file__).resolve().parents[1] / "src/vitrail/runtimes/matmul.onnx"


def main() -> None:
    """Build, check and save the model."""
    matrix = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in "abc"]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "matmul", matrix[:2], matrix[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, TARGET)


if __name__ == "__main__":
    main()
