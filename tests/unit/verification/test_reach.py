"""Float16 models overflow where their originals do, and verification looks for more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import runtime
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import OP_TYPE
from onnx_ternary.verification.reach import find_reach, magnified
from onnx_ternary.verification.verify import verify

K, N = 64, 256
Step = tuple[str, dict[str, Any]]
RELU_SQUARED: list[Step] = [("Relu", {}), ("Square", {})]
CHAINS: dict[str, list[Step]] = {
    "nothing": [],
    "relu_squared": RELU_SQUARED,
    "add": [*RELU_SQUARED, ("Double", {})],
    "rms_norm": [*RELU_SQUARED, ("Square", {}), ("MeanSquare", {})],
    # onnxruntime has float16 kernels for these, and does not use them between MatMuls.
    "reshape": [*RELU_SQUARED, ("Reshape", {})],
    "layer_norm": [*RELU_SQUARED, ("LayerNormalization", {"axis": -1})],
}
LEVELS = {
    "optimized": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "as it is": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def chain(steps: list[Step]) -> onnx.ModelProto:
    """MatMul, the steps, MatMul, all float16."""
    rng = np.random.default_rng(17)
    up = rng.integers(-1, 2, (K, N)) * 8
    down = rng.integers(-1, 2, (N, K)) * 2.0**-11
    nodes = [helper.make_node("MatMul", ["x", "up"], ["v0"], name="up")]
    for op_type, attributes in steps:
        v, out = nodes[-1].output[0], f"v{len(nodes)}"
        inputs = {"Square": [v, v], "Double": [v, v], "Reshape": [v, "shape"]}.get(op_type, [v])
        if op_type == "LayerNormalization":
            inputs = [v, "ones"]
        if op_type == "MeanSquare":  # what RMSNorm divides by
            nodes.append(helper.make_node("ReduceMean", [v], [f"{v}.mean"], axes=[-1]))
            nodes.append(helper.make_node("Sqrt", [f"{v}.mean"], [f"{v}.root"]))
            op_type, inputs = "Div", [nodes[-3].input[0], f"{v}.root"]
        op_type = {"Square": "Mul", "Double": "Add"}.get(op_type, op_type)
        nodes.append(helper.make_node(op_type, inputs, [out], **attributes))
    nodes.append(helper.make_node("MatMul", [nodes[-1].output[0], "down"], ["y"], name="down"))
    arrays = {
        "up": up.astype(np.float16),
        "down": down.astype(np.float16),
        "ones": np.ones(N, np.float16),
        "shape": np.array([1, -1, N]),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(
    model: onnx.ModelProto, x: NDArray[Any], level: str, library: bool
) -> NDArray[np.float64]:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 4
    make = runtime.InferenceSession if library else ort.InferenceSession
    session = make(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y: NDArray[Any] = session.run(None, {"x": x})[0]
    return y.astype(np.float64)


@pytest.mark.parametrize("library", [True, False], ids=["library", "function body"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CHAINS)
def test_nothing_overflows_that_does_not_in_the_original(
    name: str, level: str, library: bool
) -> None:
    model = chain(CHAINS[name])
    converted = optimize(model, OptimizeOptions(min_elements=0)).to_proto()
    assert [each.op_type for each in converted.graph.node].count(OP_TYPE) == 2
    x = np.random.default_rng(3).standard_normal((4, K))
    compared = 0
    for exponent in range(17):
        with np.errstate(over="ignore"):
            magnified_x = (x * 2.0**exponent).astype(np.float16)
        # onnxruntime up to 1.20 runs more in float16 where any custom operators are registered.
        expected = answer(model, magnified_x, level, library)
        if not np.isfinite(magnified_x).all() or not np.isfinite(expected).all():
            break
        found = answer(converted, magnified_x, level, library)
        assert np.isfinite(found).all(), f"2^{exponent}"
        gap = np.abs(found - expected).max()
        assert gap <= 2.0**-8 * np.abs(expected).max(), f"2^{exponent}"
        compared += 1
    assert compared >= 2


def test_squares_beyond_float16_are_among_them() -> None:
    model = chain(RELU_SQUARED)
    x = (np.random.default_rng(3).standard_normal((4, K)) * 4).astype(np.float16)
    up = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    assert np.maximum(x.astype(np.float64) @ up, 0).max() ** 2 > 65504
    assert np.isfinite(answer(model, x, "optimized", library=False)).all()


def through_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a product whose X is infinite from where float16 is."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    at, node = next((at, n) for at, n in enumerate(rounded.graph.node) if n.name == "down")
    x = node.input[0]
    steps = [  # x + exp(relu(x - largest)) - 1, in float32 as everything here
        helper.make_node("Sub", [x, "largest"], ["above"]),
        helper.make_node("Relu", ["above"], ["excess"]),
        helper.make_node("Exp", ["excess"], ["grown"]),
        helper.make_node("Sub", ["grown", "one"], ["added"]),
        helper.make_node("Add", [x, "added"], ["rounded"]),
    ]
    node.input[0] = "rounded"
    for step in reversed(steps):
        rounded.graph.node.insert(at, step)
    for name, value in (("largest", 65504), ("one", 1)):
        tensor = numpy_helper.from_array(np.array(value, np.float16), name)
        rounded.graph.initializer.append(tensor)
    return rounded


def test_verification_takes_inputs_as_large_as_the_original_does() -> None:
    model = chain(RELU_SQUARED)
    converted = optimize(model, OptimizeOptions(min_elements=0)).to_proto()
    report = verify(model, converted)
    assert report.passed
    assert any("times as large" in note for note in report.notes)


def test_verification_notices_an_overflow_of_large_inputs() -> None:
    model = chain(RELU_SQUARED)
    converted = optimize(model, OptimizeOptions(min_elements=0)).to_proto()
    report = verify(model, through_float16(converted))
    assert report.products_passed
    assert not report.outputs_passed
    failed = [check for check in report.outputs if not check.passed]
    assert [check.name.split(" with inputs ")[0] for check in failed] == ["y"]
    assert "times as large" in failed[0].name


def test_reach_is_half_of_the_largest_power_that_is_finite() -> None:
    feeds = {"x": np.ones(3, np.float16), "ids": np.arange(3)}
    seen = []

    def run(given: Any) -> dict[str, Any]:
        seen.append(given["x"].max())
        return {"y": np.where(given["x"] > 100, np.inf, given["x"])}

    reach = find_reach(run, feeds)
    assert reach is not None
    assert reach.factor == 32
    np.testing.assert_array_equal(reach.expected["y"], np.full(3, 32))
    assert reach.feeds["ids"] is feeds["ids"]
    assert len(seen) <= 6


def test_no_reach_without_floats_or_room() -> None:
    never = lambda given: {"y": np.array([np.inf])}  # noqa: E731
    assert find_reach(never, {"x": np.ones(3, np.float16)}) is None
    assert find_reach(lambda given: dict(given), {"ids": np.arange(3)}) is None
    assert find_reach(lambda given: dict(given), {"x": np.zeros(3, np.float16)}) is None


def test_reach_of_the_smallest_numbers_is_bounded() -> None:
    reach = find_reach(lambda given: dict(given), {"x": np.full(3, 5e-324)})
    assert reach is not None
    assert reach.factor == 2**39


def test_magnified_inputs_keep_their_types() -> None:
    feeds = {"x": np.full(2, 2.0**-20, np.float16), "mask": np.ones(2, np.int64)}
    large = magnified(feeds, 1 << 30)
    assert large["x"].dtype == np.float16
    np.testing.assert_array_equal(large["x"], np.full(2, 2.0**10, np.float16))
