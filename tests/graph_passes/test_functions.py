"""What conversion leaves in local functions, and how it is checked there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnx_ternary.cli import main
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.nodes import DIGEST_KEY, check_indices, op_nodes, read_attributes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import DOMAIN, OP_TYPE
from tests.catalogue.activations import dynamic
from tests.catalogue.case import K, matmul, node, ternary
from tests.catalogue.functions import HITS, SQUARE, call, calling, constant, function
from tests.support.checks import dense, feeds_of, run

ALL = OptimizeOptions(min_elements=0)


def test_one_index_serves_all_calls() -> None:
    proto = optimize(HITS["function_called_twice"]().model, ALL).to_proto()
    assert [node.op_type for node in proto.graph.node] == ["Linear", "Linear"]
    assert not proto.graph.initializer
    linear, body = proto.functions
    kinds = [node.op_type for node in linear.node]
    assert kinds == ["Constant"] * 4 + [OP_TYPE]
    assert {each.domain: each.version for each in linear.opset_import} == {
        "": 17,
        "local": 1,
        DOMAIN: 1,
    }
    assert (body.domain, body.name) == (DOMAIN, OP_TYPE)


def test_shared_weight_is_stored_once_a_function() -> None:
    result = optimize(HITS["function_shared_weight"]().model, ALL)
    first, second = op_nodes(result.model)
    assert first.inputs[1] is second.inputs[1]
    assert [row.shares_index_with for row in result.report.rewrites] == [None, "first"]


def test_binary_weight_beside_a_ternary_one_is_stored_again() -> None:
    """One function body has to serve both storages."""
    binary = ternary(K, K, levels=(-1, 1), scale=0.5)
    made = calling(
        [function([constant(binary, "w"), matmul("x", "w", "y", "binary")])],
        [matmul("x", "v", "h", "ternary"), call("h")],
        {"v": SQUARE},
    )
    result = optimize(made, ALL)
    assert "binary weights of 'binary' are stored as ternary ones" in result.report.notes[0]
    assert {read_attributes(node).storage for node in op_nodes(result.model)} == {"2bit"}
    *_, in_function = op_nodes(result.model)
    np.testing.assert_array_equal(dense(in_function), binary.astype(np.float64))
    feeds = feeds_of(made, whole_numbers=True)
    np.testing.assert_array_equal(run(result.to_proto(), feeds)["y"], run(made, feeds)["y"])


def test_function_of_a_converted_model_is_converted_later() -> None:
    """Types inside functions are lost in files of IR version 8."""
    made = HITS["function_nested"]().model
    once = optimize(made, OptimizeOptions(min_elements=0, exclude=("outer",)))
    again = optimize(once.to_proto(), ALL)
    assert [row.node for row in again.report.rewrites] == ["outer"]
    assert again.report.has_function_body
    feeds = feeds_of(made, whole_numbers=True)
    np.testing.assert_array_equal(run(again.to_proto(), feeds)["y"], run(made, feeds)["y"])


@pytest.mark.parametrize("damaged", [False, True])
def test_deep_inspection_reads_functions(damaged: bool, tmp_path: Path) -> None:
    proto = optimize(HITS["in_function"]().model, ALL).to_proto()
    assert check_indices(ir.from_proto(proto)) == ("product",)
    (node,) = (each for each in proto.functions[0].node if each.op_type == OP_TYPE)
    assert DIGEST_KEY in {each.key for each in node.metadata_props}
    if damaged:
        (codes,) = (each for each in proto.functions[0].node if each.output[0] == "w.codes")
        array = numpy_helper.to_array(codes.attribute[0].t).copy()
        array.reshape(-1)[0] ^= 1
        codes.attribute[0].t.CopyFrom(numpy_helper.from_array(array))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    result = CliRunner().invoke(main, ["inspect", str(path), "--deep"])
    assert result.exit_code == (1 if damaged else 0)
    assert ("digest differ" in result.output) is damaged
    assert ("1 indices checked" in result.output) is not damaged


@pytest.mark.parametrize("converted_before", [False, True])
def test_products_of_functions_stay_where_no_body_can_serve_all(converted_before: bool) -> None:
    """ONNX Runtime finds the op's type inside functions through its body only."""
    quantizing = [
        *dynamic(),
        node("DequantizeLinear", ["q", "x_scale", "zero"], "back"),
        matmul("back", "v", "h", "quantized"),
    ]
    made = calling(
        [function([constant(SQUARE, "w"), matmul("x", "w", "y", "in_function")])],
        [*quantizing, matmul("h", "u", "g", "float"), call("g")],
        {"v": SQUARE, "u": SQUARE},
    )
    if converted_before:
        first = OptimizeOptions(min_elements=0, exclude=("in_function",))
        made = optimize(made, first).to_proto()
    result = optimize(made, ALL)
    kept = result.report.rejections[-1]
    assert kept.node == "in_function"
    assert "it is inside local function local::Linear" in kept.reason
    assert "there would be none: the nodes would need 2 functions under one name" in kept.reason
    run(result.to_proto(), feeds_of(made, whole_numbers=False), library=True)


def test_products_of_functions_share_the_body_of_binary_and_ternary_weights() -> None:
    """One storage for all is seen to later, so two storages are no reason against a body."""
    binary = ternary(K, K, levels=(-1, 1), scale=0.5)
    made = calling(
        [function([constant(SQUARE, "w"), matmul("x", "w", "y", "in_function")])],
        [matmul("x", "v", "h", "binary"), call("h")],
        {"v": binary},
    )
    result = optimize(made, ALL)
    assert not result.report.rejections
    assert result.report.has_function_body
