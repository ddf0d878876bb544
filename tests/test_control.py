"""Accuracy control on small graphs: what is reverted, what is found first, and when the search ends."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_toys import CLASSES, WIDTH, attention, constants, convolutions, graph_model, photos, pooled, weights
from onnx import helper, numpy_helper
from test_quantize import relative, run

from vitrail.export.passes.control import LARGEST_OF_THE_LAST, control, spare_the_last
from vitrail.export.passes.costs import costs
from vitrail.export.passes.quantize import quantised_nodes, quantize
from vitrail.export.passes.revert import revert

pytest.importorskip("nncf")

GRAPHS = [(convolutions, (3, 8, 8)), (attention, (6, WIDTH)), (pooled, (6, WIDTH))]


def inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"images": weights(50, 4, *shape)}


def with_an_outlier() -> onnx.ModelProto:
    """`convolutions` with one channel before `pointwise` a thousand times the others, and not used."""
    model = convolutions()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            values[0] *= 1000
        if tensor.name == "w2":
            values[:, 0] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(("least", "spared"), [(1.0, ()), (0.001, ("head",))])
def test_a_last_layer_that_int8_alone_breaks_stays_as_it_was(least, spared) -> None:
    """A head divides features by their spread; those that hardly vary vanish in the others' range."""
    spread = np.linspace(1.0, least, WIDTH).astype(np.float32) ** 2
    nodes = [
        helper.make_node("Relu", ["images"], ["flat"], name="relu"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"], name="head", transB=1),
    ]
    tensors = {"w": weights(0, CLASSES, WIDTH) / spread, "b": weights(1, CLASSES)}
    model = graph_model(nodes, tensors, ["B", WIDTH], ["B", CLASSES])
    given = [{"images": arrays["images"] * spread} for arrays in photos((WIDTH,), 40)]
    quantised = quantize(model, given)
    (cost,) = costs(model, quantised, given, ["head"]).values()
    assert (cost > LARGEST_OF_THE_LAST) == bool(spared)
    found, names = spare_the_last(model, quantised, given)
    assert names == spared
    assert quantised_nodes(quantised) == ("head",)
    assert quantised_nodes(found) == (() if spared else ("head",))


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_with_all_layers_reverted_the_function_is_the_float_one(make, shape) -> None:
    model = make()
    quantised = quantize(model, photos(shape))
    reverted = revert(model, quantised, quantised_nodes(quantised))
    assert quantised_nodes(reverted) == ()
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in reverted.graph.node}
    arrays = inputs(shape)["images"]
    np.testing.assert_allclose(run(reverted, arrays), run(model, arrays), rtol=1e-5, atol=1e-5)


def test_reverting_nothing_changes_nothing() -> None:
    quantised = quantize(convolutions(), photos((3, 8, 8)))
    arrays = inputs((3, 8, 8))["images"]
    assert quantised_nodes(revert(convolutions(), quantised, ())) == quantised_nodes(quantised)
    np.testing.assert_array_equal(run(revert(convolutions(), quantised, ()), arrays), run(quantised, arrays))


def test_one_reverted_layer_has_its_own_weights_and_bias_again() -> None:
    model = convolutions()
    reverted = revert(model, quantize(model, photos((3, 8, 8))), ["depthwise"])
    assert quantised_nodes(reverted) == ("stem", "pointwise", "head")
    node = next(node for node in reverted.graph.node if node.name == "depthwise")
    assert node.input[0] == "r0"
    for name, original in zip(node.input[1:], ("w1", "b1"), strict=True):
        np.testing.assert_array_equal(constants(reverted)[name], constants(model)[original])
    onnx.checker.check_model(reverted, full_check=True)


@pytest.mark.parametrize(("make", "shape"), GRAPHS)
def test_the_cost_of_a_layer_is_the_error_with_it_alone_in_int8(make, shape) -> None:
    model = make()
    quantised = quantize(model, photos(shape))
    found = costs(model, quantised, [inputs(shape)])
    layers = quantised_nodes(quantised)
    assert tuple(found) == layers
    arrays = inputs(shape)["images"]
    last = revert(model, quantised, set(layers) - {layers[-1]})
    if not any(node.op_type == "Add" for node in model.graph.node):  # sums have pairs of their own
        assert found[layers[-1]] == pytest.approx(relative(run(last, arrays), run(model, arrays)), rel=0.01)
    assert all(0 < cost < 0.5 for cost in found.values())


def test_the_broken_layer_is_found_first_and_alone() -> None:
    """One scale for all channels rounds those that `pointwise` uses to nothing."""
    model = with_an_outlier()
    quantised = quantize(model, photos((3, 8, 8)))
    arrays = inputs((3, 8, 8))["images"]
    expected = run(model, arrays)

    def drop(candidate: onnx.ModelProto) -> float:
        return relative(run(candidate, arrays), expected)

    result = control(model, quantised, [inputs((3, 8, 8))], drop, 0.2)
    assert drop(quantised) > 0.3
    assert (result.kept, result.holds) == (("pointwise",), True)
    assert quantised_nodes(result.model) == ("stem", "depthwise", "head")


@pytest.mark.parametrize("needed", range(6))
def test_the_fewest_layers_that_hold_are_kept(needed) -> None:
    model = convolutions()
    quantised = quantize(model, photos((3, 8, 8)))

    def drop(candidate: onnx.ModelProto) -> float:
        return 0.01 * (needed - (4 - len(quantised_nodes(candidate))))

    result = control(model, quantised, [inputs((3, 8, 8))], drop, 0.0)
    kept = 4 - len(quantised_nodes(result.model))
    assert kept == len(result.kept)
    assert result.drop == pytest.approx(0.01 * (needed - kept))
    assert dict(result.tried)[0] == pytest.approx(0.01 * needed)
    assert (result.holds, kept) == ((True, needed) if needed < 4 else (False, 3))
