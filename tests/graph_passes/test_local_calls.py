"""Nodes that call a local function named like an operator: the function says what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model, node, ternary
from tests.support.checks import feeds_of, run

ALL = OptimizeOptions(min_elements=0)
Array = NDArray[Any]


def negating(domain: str, name: str, num_inputs: int) -> onnx.FunctionProto:
    """A function that turns the sign of its first input."""
    inputs = [f"in{at}" for at in range(num_inputs)]
    return helper.make_function(
        domain,
        name,
        inputs,
        ["out"],
        [node("Neg", inputs[:1], "out")],
        [helper.make_opsetid("", 17)],
    )


def with_function(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], *functions: onnx.FunctionProto
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(each.domain, 1) for each in functions]
    return model(nodes, constants, functions=functions, opsets=opsets)


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas"])
def test_local_function_named_quant_is_evaluated_as_it_is_written(
    domain: str, library: bool
) -> None:
    numbers = {"scale": 2.0, "zero": 0.0, "bits": 2.0}
    constants = {"v": ternary(), **{key: np.array(n, np.float32) for key, n in numbers.items()}}
    quant = helper.make_node("Quant", ["v", *numbers], ["w"], domain=domain, narrow=1, signed=1)
    made = with_function([quant, matmul()], constants, negating(domain, "Quant", 4))
    result = optimize(made, ALL)
    assert len(result.report.rewrites) == 1
    feeds = feeds_of(made, whole_numbers=True)
    want, found = run(made, feeds), run(result.to_proto(), feeds, library=library)
    np.testing.assert_array_equal(found["y"], want["y"])


def test_local_function_named_like_a_product_stays() -> None:
    function = negating("com.microsoft", "FusedMatMul", 2)
    product = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    made = with_function([product], {"w": ternary()}, function)
    result = optimize(made, ALL)
    assert not result.report.rewrites
    assert [(each.domain, each.op_type) for each in result.model.graph] == [
        ("com.microsoft", "FusedMatMul")
    ]


def test_functions_called_by_functions_keep_their_domains() -> None:
    inner = negating("qonnx.custom_op.general", "Quant", 1)
    outer = helper.make_function(
        "local",
        "outer",
        ["in"],
        ["out"],
        [helper.make_node("Quant", ["in"], ["out"], domain=inner.domain)],
        [helper.make_opsetid("", 17), helper.make_opsetid(inner.domain, 1)],
    )
    call = helper.make_node("outer", ["v"], ["w"], domain="local")
    made = with_function([call, matmul()], {"v": ternary()}, inner, outer)
    result = optimize(made, ALL)
    assert len(result.report.rewrites) == 1
    domains = {each.domain for function in result.to_proto().functions for each in function.node}
    assert inner.domain in domains
    assert not any(domain.startswith("local function") for domain in domains)
    feeds = feeds_of(made, whole_numbers=True)
    np.testing.assert_array_equal(run(result.to_proto(), feeds)["y"], run(made, feeds)["y"])
