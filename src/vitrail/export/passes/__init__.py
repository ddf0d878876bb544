"""Changes of an exported ONNX model that make it quicker: pure functions on graphs."""
