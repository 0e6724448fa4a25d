"""Constants of one element that have axes of their own, and results whose rank nothing else tells.

A constant with more axes than X gives them to the result, so it is neither absorbed nor read as
part of the quantization of X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.activations import absmax
from tests.catalogue.case import K, N, matmul, model, node, ternary
from tests.support.checks import run

ALL = OptimizeOptions(min_elements=0)
Array = NDArray[Any]
LIBRARY = pytest.mark.parametrize("library", [False, True])


def feeds(shape: Sequence[int]) -> dict[str, Array]:
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


def check_answers(made: onnx.ModelProto, given: dict[str, Array], library: bool) -> list[str]:
    """Compare shapes exactly and numbers loosely; return the activations of what was rewritten."""
    result = optimize(made, ALL)
    want, found = run(made, given), run(result.to_proto(), given, library=library)
    assert found["y"].shape == want["y"].shape
    np.testing.assert_allclose(found["y"], want["y"], rtol=1e-4, atol=1e-4)
    return [row.activation for row in result.report.rewrites]


def quantized(
    wide: str, rank: int, *, x_shape: Sequence[int | str], scale: str = "reciprocal"
) -> onnx.ModelProto:
    """Case 1 of activation_quantization.py; the constant ``wide`` has ``rank`` axes."""
    nodes, constants = absmax(bound="Max", scale=scale, clip=None)
    (rounded,) = (each for each in nodes if each.op_type == "Round")
    limited = rounded.output[0]
    rounded.output[0] = "rounded"
    bounds = {"lowest": np.array(-128, np.float32), "highest": np.array(127, np.float32)}
    nodes += [
        node("Max", ["rounded", "lowest"], "at_least"),
        node("Min", ["at_least", "highest"], limited),
        node("Div", [limited, "s"], "d"),
        node("Mul", ["d", "factor"], "doubled"),
        matmul("doubled"),
    ]
    constants |= {**bounds, "factor": np.array(2, np.float32), "w": ternary()}
    constants[wide] = constants[wide].reshape((1,) * rank)
    return model(nodes, constants, x_shape=x_shape)


@LIBRARY
@pytest.mark.parametrize("scale", ["reciprocal", "one over", "division"])
@pytest.mark.parametrize("wide", ["epsilon", "qmax", "one", "lowest", "highest", "factor"])
def test_wide_constant_of_quantized_activations(wide: str, scale: str, library: bool) -> None:
    if wide == "one" and scale != "one over":
        pytest.skip("only one form has this constant")
    given = feeds((3, K))
    narrow = quantized(wide, 2, x_shape=("batch", K), scale=scale)
    assert check_answers(narrow, given, library) == ["int8"]
    made = quantized(wide, 3, x_shape=("batch", K), scale=scale)
    assert check_answers(made, given, library) == ["float"]


@LIBRARY
def test_wide_factor_of_dynamically_quantized_activations(library: bool) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("DequantizeLinear", ["q", "scale", "zero"], "d"),
        node("Mul", ["d", "factor"], "scaled"),
        matmul("scaled"),
    ]
    constants = {"factor": np.full((1, 1, 1), 2, np.float32), "w": ternary()}
    made = model(nodes, constants)
    assert check_answers(made, feeds((3, K)), library) == ["float"]


@LIBRARY
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("place", ["before", "after", "bias"])
@pytest.mark.parametrize("known", [True, False])
def test_wide_constant_around_a_product(
    shape: tuple[int, ...], place: str, known: bool, library: bool
) -> None:
    operands = {"before": ("x", "x2"), "after": ("p", "y"), "bias": ("p", "y")}[place]
    step = node("Add" if place == "bias" else "Mul", [operands[0], "c"], operands[1])
    product = matmul("x2") if place == "before" else matmul(y="p")
    nodes = [step, product] if place == "before" else [product, step]
    constants = {"c": np.full(shape, 2, np.float32), "w": ternary()}
    made = model(nodes, constants, x_shape=("batch", K) if known else None)
    assert check_answers(made, feeds((3, K)), library) == ["float"]
    absorbed = "Mul" not in {each.op_type for each in optimize(made, ALL).model.graph}
    if place != "bias":
        # Of unknown rank, x may be a scalar, a product's operands and results are none.
        limit = 2 if known else 0 if place == "before" else 1
        assert absorbed == (len(shape) <= limit)


@LIBRARY
def test_constant_in_front_gives_a_scalar_its_axis(library: bool) -> None:
    nodes = [node("Mul", ["x", "c"], "x2"), matmul("x2")]
    constants = {"c": np.full((1,), 2, np.float32), "w": np.ones((1, N), np.float32)}
    made = model(nodes, constants, x_shape=None)
    assert check_answers(made, feeds(()), library) == ["float"]


def in_scan(product: onnx.NodeProto) -> onnx.ModelProto:
    """A product in the body of a Scan whose state has no known shape."""
    unknown = [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in "siop"]
    state, step, out, seen = unknown
    body = helper.make_graph(
        [product, node("Identity", ["o"], "p")], "body", [state, step], [out, seen]
    )
    graph = helper.make_graph(
        [
            node("Reshape", ["x", "shape"], "start"),
            helper.make_node(
                "Scan", ["start", "steps"], ["end", "y"], body=body, num_scan_inputs=1
            ),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["count"]),
            helper.make_tensor_value_info("steps", TensorProto.FLOAT, ["time", 1]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(ternary(K, K), "w"),
            numpy_helper.from_array(np.ones((1, K), np.float32), "row"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@LIBRARY
@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"transA": 1}])
@pytest.mark.parametrize("addend", [None, "row", "i"])
def test_gemm_tells_the_rank_of_its_result(
    attributes: dict[str, int], addend: str | None, library: bool
) -> None:
    inputs = ["s", "w", *([addend] if addend else [])]
    made = in_scan(helper.make_node("Gemm", inputs, ["o"], **attributes))
    given = {
        "x": np.random.default_rng(4).standard_normal(K * K).astype(np.float32) / K,
        "steps": np.ones((2, 1), np.float32),
        "shape": np.array([K, K]),
    }
    if ort.__version__.startswith("1.17."):
        pytest.skip("onnxruntime 1.17 runs no Scan whose body gives a result of unknown shape")
    assert check_answers(made, given, library) == ["float"]
