"""Calls of local functions that give weights: which are written out, and what is left of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import verify
from onnx_ternary.conversion.convert import convert
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.graph_passes import parameters
from onnx_ternary.op.nodes import op_nodes, read_attributes
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.activations import absmax
from tests.catalogue.case import F32, Array, K, matmul, node, ternary
from tests.catalogue.functions import (
    BRANCHES,
    CONDITION,
    SQUARE,
    ZERO,
    branching,
    call,
    calling,
    constant,
    doubling,
    function,
)
from tests.catalogue.straight_through import absmean
from tests.support.checks import dense, feeds_of, run

ALL = OptimizeOptions(min_elements=0)
LINEAR = function([matmul()], inputs=("x", "w"))
FLOATS = np.random.default_rng(3).standard_normal((K, K)).astype(F32)


def written_out(labels: str) -> str:
    return f"calls of local functions were written out, for the weights they give: {labels}"


def bit_linear() -> onnx.FunctionProto:
    """BitNet's training code as one function: both operands are quantized inside."""
    quantization, constants = absmax()
    constants |= {"minus_one": np.array(-1, F32), "one": np.array(1, F32)}
    made = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(each))
        for name, each in constants.items()
    ]
    body = [*made, *absmean("v", "w"), *quantization, node("Div", ["q", "s"], "h"), matmul("h")]
    return function(body, name="BitLinear", inputs=("x", "v"))


def three_layers(weights: list[Array], **kwargs: str) -> onnx.ModelProto:
    names = ["x", "a", "b", "y"]
    calls = [
        call(f"{names[at]} w{at}", names[at + 1], label=f"layer{at}", **kwargs) for at in range(3)
    ]
    return calling([LINEAR], calls, {f"w{at}": each for at, each in enumerate(weights)})


def same_answers(original: onnx.ModelProto, converted: onnx.ModelProto) -> None:
    feeds = feeds_of(original, whole_numbers=True)
    expected, found = run(original, feeds), run(converted, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_only_calls_of_ternary_weights_are_written_out() -> None:
    made = three_layers([SQUARE, FLOATS, ternary(K, K, scale=0.25, seed=1)])
    result = optimize(made, ALL)
    proto = result.to_proto()
    assert [each.op_type for each in proto.graph.node] == [
        "TernaryIndexedMatMul",
        "Linear",
        "TernaryIndexedMatMul",
    ]
    assert [row.node for row in result.report.rewrites] == ["layer0/product", "layer2/product"]
    assert [row.weight for row in result.report.rewrites] == ["w0", "w2"]
    first, _ = op_nodes(result.model)
    np.testing.assert_array_equal(dense(first), SQUARE)
    assert result.report.notes == (written_out("'layer0', 'layer2'"),)
    (kept,) = result.report.rejections
    assert kept.reason == (
        "weight 'w' is an input of local function local::Linear, and no call that is left gives a "
        f"ternary one ('layer1' gives 'w1'): weight has {K} distinct magnitudes in column 0, "
        "expected 1"
    )
    same_answers(made, proto)
    report = verify(made, proto)
    assert [check.status for check in report.products] == ["passed", "passed"]
    assert report.passed and report.num_nested_products == 0


def test_function_goes_with_its_last_call() -> None:
    proto = optimize(three_layers([SQUARE] * 3), ALL).to_proto()
    assert [each.name for each in proto.functions] == ["TernaryIndexedMatMul"]


def test_float_calls_are_left_as_they_are() -> None:
    made = three_layers([FLOATS] * 3)
    result = optimize(made, ALL)
    assert result.report.rewrites == () == result.report.notes
    assert [each.op_type for each in result.to_proto().graph.node] == ["Linear"] * 3
    assert [each.name for each in result.to_proto().functions] == ["Linear"]


def test_names_choose_calls() -> None:
    made = three_layers([SQUARE] * 3)
    options = OptimizeOptions(min_elements=0, exclude=("layer1/*",))
    result = optimize(made, options)
    assert [row.node for row in result.report.rewrites] == ["layer0/product", "layer2/product"]


def test_both_operands_are_quantized_in_the_function() -> None:
    rng = np.random.default_rng(1)
    weights = {f"w{at}": (rng.standard_normal((K, K)) * 0.02).astype(F32) for at in range(2)}
    calls = [
        call("x w0", "h", name="BitLinear", label="first"),
        call("h w1", "y", name="BitLinear", label="second"),
    ]
    made = calling([bit_linear()], calls, weights)
    result = optimize(made, ALL)
    assert {read_attributes(each).activation for each in op_nodes(result.model)} == {"int8"}
    assert [row.weight for row in result.report.rewrites] == ["w0", "w1"]
    report = verify(made, result.to_proto())
    assert [check.status for check in report.products] == ["passed"] * 2
    assert report.passed


def test_inner_values_of_written_out_calls_are_compared() -> None:
    """X and Y of the product are values of the function, not of the call."""
    body = [node("Relu", ["x"], "h"), matmul("h", "w", "p"), node("Neg", ["p"], "y")]
    made = calling([function(body, inputs=("x", "w"))], [call("x weight")], {"weight": ternary()})
    proto = optimize(made, ALL).to_proto()
    (check,) = verify(made, proto).products
    assert (check.status, check.output) == ("passed", "y/p")
    (check,) = verify(made, proto, products_only=True).products
    assert check.status == "passed"
    (scale,) = (each for each in proto.graph.initializer if each.name.endswith(".scale"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * F32(1.01), scale.name))
    (check,) = verify(made, proto).products
    assert check.status == "failed"


def test_call_inside_a_function_is_written_out_there() -> None:
    """The weight is a constant of the caller, which is called twice and stays."""
    block = function(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(SQUARE)),
            call("a c", label="inner"),
        ],
        name="Block",
        inputs=("a",),
    )
    calls = [call("x", "h", name="Block", label="b0"), call("h", "y", name="Block", label="b1")]
    made = calling([LINEAR, block], calls)
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    assert (row.node, row.graph) == ("inner/product", "function local::Block")
    assert [each.op_type for each in result.to_proto().graph.node] == ["Block", "Block"]
    same_answers(made, result.to_proto())
    assert verify(made, result.to_proto()).passed


def test_calls_of_several_levels_at_once() -> None:
    """A call in a function whose own calls are written out too gives the other weight."""
    body = [
        constant(ternary(K, K, scale=0.25, seed=5), "v"),
        call("x v", "h", label="first"),
        call("h w", "y", label="second"),
    ]
    inner = function(body, name="Inner", inputs=("x", "w"))
    outer = function([constant(SQUARE, "c"), call("x c", name="Inner", label="in")], name="Outer")
    made = calling([LINEAR, inner, outer], [call("x", name="Outer")])
    result = optimize(made, ALL)
    assert len(result.report.rewrites) == 2
    same_answers(made, result.to_proto())
    report = verify(made, result.to_proto())
    assert report.passed, report.summary()
    assert len(report.products) == 2


def test_calls_in_branches() -> None:
    branches = branching({each: call(f"x w_{each}", f"y_{each}", label=each) for each in BRANCHES})
    weights = {f"w_{each}": ternary(seed=at) for at, each in enumerate(BRANCHES)}
    made = calling([LINEAR], [*CONDITION, branches], {"zero": ZERO, **weights})
    result = optimize(made, ALL)
    assert len(result.report.rewrites) == 2
    assert all("Linear" not in row.graph for row in result.report.rewrites)
    same_answers(made, result.to_proto())
    assert verify(made, result.to_proto()).passed


@pytest.mark.parametrize("outputs", [["y", "more"], ["y", ""], ["y", "more", ""]])
def test_a_call_of_more_results_than_there_are_stays(outputs: list[str]) -> None:
    made = calling([LINEAR], [call("x w0", "y")], {"w0": SQUARE})
    made.graph.node[0].output[:] = outputs
    assert optimize(made, ALL).report.rewrites == ()


def test_functions_that_call_each_other_end() -> None:
    first = function([call("x w", "y", name="Second")], name="Linear", inputs=("x", "w"))
    second = function([call("x w", "y")], name="Second", inputs=("x", "w"))
    made = calling([LINEAR], [call("x w0", "y")], {"w0": SQUARE})
    del made.functions[:]
    made.functions.extend([first, second])
    assert parameters.inline_ternary_calls(ir.from_proto(made), ALL).labels == []


def test_weight_at_run_time_stays() -> None:
    made = calling([LINEAR], [call("x v")])
    made.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, (K, K)))
    result = optimize(made, ALL)
    assert result.report.rewrites == ()
    assert [each.op_type for each in result.to_proto().graph.node] == ["Linear"]


def test_calls_that_double_at_every_level_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = doubling(14)
    written: list[int] = []
    original = parameters.inline_calls

    def counted(model: onnx.ModelProto, keys: list[object]) -> None:
        written.append(len(keys))
        original(model, keys)  # type: ignore[arg-type] # handed on

    monkeypatch.setattr(parameters, "inline_calls", counted)
    monkeypatch.setattr(parameters, "MAX_NODES", 500)
    result = optimize(made, ALL)
    assert sum(written) <= 500
    assert result.report.rewrites == ()
    (kept,) = result.report.rejections
    assert "inline the model's functions first" in kept.reason


def test_external_weights(tmp_path: Path) -> None:
    made = three_layers([SQUARE, FLOATS, SQUARE])
    source, target = tmp_path / "m.onnx", tmp_path / "o.onnx"
    stored = three_layers([SQUARE, FLOATS, SQUARE])
    onnx.save(stored, source, save_as_external_data=True, location="m.bin", size_threshold=0)
    done = convert(source, target, ALL)
    assert [row.node for row in done.report.rewrites] == ["layer0/product", "layer2/product"]
    assert done.verification is not None and done.verification.passed
    same_answers(made, onnx.load(target))
