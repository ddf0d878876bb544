"""int8 for ExecuTorch: an exported program -> the same between quantisers, calibrated on photos (PT2E).

Weights get a scale for each channel, activations one range a tensor: the extremes over all photos, as for the
other engines (docs/decisions/int8.md). XNNPACK's own quantiser chooses the operators.

Source: torchao.quantization.pt2e 0.18.0 and executorch.backends.xnnpack.quantizer 1.5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from vitrail.errors import InputError
from vitrail.words import first_line

__all__ = ["quantised"]

aten = torch.ops.aten
CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default)
LAYERS = (aten.conv2d.default, aten.linear.default)


def quantised(exported: ExportedProgram, photos: Sequence[np.ndarray]) -> nn.Module:
    """The program's module with int8 weights and quantisers; it still computes in floating point.

    Args:
        photos: inputs of exactly the program's shape.

    Raises:
        InputError: no photos, or the quantiser cannot take this model.
    """
    if not photos:
        raise InputError("int8 needs photos to be calibrated on: give --images, --data or --calibration.")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    try:
        watched = prepare_pt2e(exported.module(), _quantiser())
        for images in photos:
            watched(torch.from_numpy(np.ascontiguousarray(images)))
        return convert_pt2e(watched)
    except Exception as error:
        raise InputError(
            f"ExecuTorch's quantiser cannot take this model ({first_line(error)}): name another engine."
        ) from error


def _quantiser() -> Any:
    """XNNPACK's, which also knows layers that end in a clamp (ReLU6).

    By itself it measures the range before the clamp, though XNNPACK computes the two as one: most of the 256
    levels of EfficientNet-Lite0 would lie where nothing comes out.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    class Quantiser(XNNPACKQuantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            clamps = {node: node.target for node in model.graph.nodes if _ends_layer(node)}
            for node in clamps:
                node.target = aten.relu.default  # what it looks for
            try:
                return super().annotate(model)
            finally:
                for node, target in clamps.items():
                    node.target = target

    return Quantiser().set_global(_configuration())


def _ends_layer(node: torch.fx.Node) -> bool:
    """Whether a node is a clamp that XNNPACK computes as part of the layer before it."""
    return node.op == "call_function" and node.target in CLAMPS and node.all_input_nodes[0].target in LAYERS


def _configuration() -> Any:
    """XNNPACK's own for static int8, but extremes instead of histograms, which take longer than the model."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec

    usual = get_symmetric_quantization_config(is_per_channel=True)
    activations = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
    )
    return QuantizationConfig(activations, activations, usual.weight, usual.bias)
