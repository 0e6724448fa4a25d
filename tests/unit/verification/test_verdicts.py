"""Outputs that no tolerance can be held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.verification.verdicts import outputs_without_verdict
from onnx_ternary.verification.verify import verify
from tests.support.decoders import Graph, ternary


def between(*steps: tuple[str, dict[str, Any], Any], dtype: int = 1) -> ModelProto:
    """x into a product, its result through steps of one or two inputs, into a second product."""
    graph = Graph()
    value = graph.input("x", dtype, ["batch", 64])
    value = graph("MatMul", value, graph.constant(ternary(64, 64, 0) * 0.3))
    for op_type, attributes, operand in steps:
        operands = () if operand is None else (graph.constant(operand),)
        value = graph(op_type, value, *operands, **attributes)
    return graph.model(graph("MatMul", value, graph.constant(ternary(64, 48, 1))))


def converted(model: ModelProto) -> ModelProto:
    return optimize(model, OptimizeOptions(min_elements=0)).to_proto()


ZERO = np.zeros((), np.float32)
TO_FLOAT = ("Cast", {"to": 1}, None)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([("Sign", {}, None)], "Sign 'Sign_1' may turn"),
        ([("GreaterOrEqual", {}, ZERO), TO_FLOAT], "GreaterOrEqual"),
        ([("Cast", {"to": 7}, None), TO_FLOAT], "Cast"),
        ([("RandomNormalLike", {}, None)], "RandomNormalLike 'RandomNormalLike_1' is random"),
        ([("Relu", {}, None), ("Bernoulli", {}, None)], "Bernoulli 'Bernoulli_2' is random"),
    ],
    ids=["sign", "compare", "cast", "noise", "bernoulli"],
)
def test_output_behind_it_has_no_verdict(steps: Any, reason: str) -> None:
    model = between(*steps)
    (output,) = model.graph.output
    (found,) = outputs_without_verdict(converted(model)).items()
    assert found[0] == output.name
    assert reason in found[1]


@pytest.mark.parametrize(
    "steps",
    [
        [("Relu", {}, None), ("Tanh", {}, None)],
        [("RandomNormalLike", {"seed": 3.0}, None)],
        [("Dropout", {}, None)],
    ],
    ids=["continuous", "seeded", "dropout"],
)
def test_output_behind_others_has_one(steps: Any) -> None:
    assert outputs_without_verdict(converted(between(*steps))) == {}


def test_jumps_in_front_of_products_do_not_count() -> None:
    graph = Graph()
    graph.input("x", 1, ["batch", 64])
    signs = graph("Sign", "x")
    product = graph("MatMul", signs, graph.constant(ternary(64, 64, 0)))
    rows = graph("Cast", graph("Shape", product), to=1)
    model = graph.model(product, graph("Sign", rows))
    assert outputs_without_verdict(converted(model)) == {}


def test_dropout_in_training_is_random() -> None:
    graph = Graph()
    graph.input("x", 1, ["batch", 64])
    product = graph("MatMul", "x", graph.constant(ternary(64, 64, 0)))
    training = graph.constant(np.array(True))
    model = graph.model(graph("Dropout", product, graph.constant(np.float32(0.5)), training))
    (reason,) = outputs_without_verdict(converted(model)).values()
    assert "Dropout 'Dropout_1' is random" in reason


def test_jump_inside_a_function_or_a_branch_is_seen() -> None:
    model = between(("Sign", {}, None))
    node = model.graph.node[1]
    opsets = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Sign", ["a"], ["b"], name="inner")]
    model.functions.append(helper.make_function("tests", "Step", ["a"], ["b"], body, opsets))
    node.op_type, node.domain = "Step", "tests"
    model.opset_import.append(helper.make_opsetid("tests", 1))
    (reason,) = outputs_without_verdict(converted(model)).values()
    assert "Sign 'inner'" in reason


@pytest.mark.parametrize("kind", ["Sign", "RandomNormalLike"])
def test_products_still_decide(kind: str) -> None:
    model = between((kind, {}, None))
    other = converted(model)
    report = verify(model, other)
    assert report.passed
    (output,) = report.outputs
    assert output.tolerance is None
    assert kind in output.why_no_verdict
    assert f"no verdict: {kind}" in report.summary()
    (scale,) = (
        t
        for t in other.graph.initializer
        if t.name.startswith("constant_1") and t.name.endswith("scale")
    )
    array = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    scale.CopyFrom(helper.make_tensor(scale.name, array, [], [0.26]))
    assert [check.status for check in verify(model, other).products] == ["passed", "failed"]


def test_a_tolerance_that_is_given_is_held() -> None:
    model = between(("Sign", {}, None))
    (output,) = verify(model, converted(model), tolerance=0.25).outputs
    assert output.tolerance == 0.25
