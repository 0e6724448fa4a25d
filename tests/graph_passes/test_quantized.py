"""What conversion of quantized weights leaves behind, and what the user can choose."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import Report
from onnx_ternary.schema import OP_TYPE
from tests.catalogue import dequantize, matmul_nbits
from tests.catalogue.case import F32, K, N, changed, matmul, model, node
from tests.catalogue.dequantize import codes, per_tensor, qcdq
from tests.catalogue.matmul_nbits import nbits

HITS = {**dequantize.HITS, **matmul_nbits.HITS}
ALL = OptimizeOptions(min_elements=0)


@pytest.mark.parametrize("name", HITS)
def test_no_quantized_weight_is_left(name: str) -> None:
    case = HITS[name]()
    converted = optimize(case.model, ALL).model
    used = {value for node in converted.graph for value in node.inputs}
    assert set(converted.graph.initializers.values()) <= used
    kinds = Counter(node.op_type for node in converted.graph)
    kept = {"QuantizeLinear": 1, "DequantizeLinear": 1} if name.endswith("static_qdq") else {}
    for op_type in ("Clip", "QuantizeLinear", "DequantizeLinear", "MatMulNBits"):
        assert kinds[op_type] == kept.get(op_type, 0)


def test_bytes_before_are_those_of_codes_and_scales() -> None:
    (row,) = optimize(per_tensor(codes(), 0).model, ALL).report.rewrites
    assert (row.weight, row.bytes_before) == ("codes", K * N + 4 + 1)
    (row,) = optimize(nbits().model, ALL).report.rewrites
    assert (row.weight, row.bytes_before) == ("B", K * N // 4 + 4 * 3 * N + N)


def test_small_codes_pay_as_soon_as_the_floats_would() -> None:
    def report(rows: int, columns: int) -> Report:
        stored = codes(rows, columns)
        made = model(
            [node("DequantizeLinear", ["codes", "scale"], "w"), matmul()],
            {"codes": stored, "scale": np.array(0.25, F32)},
            x_shape=("batch", rows),
        )
        return optimize(made, OptimizeOptions(min_elements=1)).report

    (row,) = report(32, 40).rewrites
    assert row.bytes_before < row.bytes_after < 32 * 40 * 4
    (kept,) = report(3, 40).rejections
    assert kept.reason == (
        "the index of weight 'codes' would take 1288 bytes, the weight takes 480"
    )


def test_tolerance_admits_codes_that_are_nearly_ternary() -> None:
    made = per_tensor(codes(levels=(-10, 0, 9))).model
    assert not optimize(made, ALL).report.rewrites
    (row,) = optimize(made, OptimizeOptions(min_elements=0, tolerance=0.1)).report.rewrites
    assert 0.05 < row.max_relative_change < 0.1


def test_no_tolerance_admits_what_a_4_bit_quantizer_makes_of_ternary_weights() -> None:
    # Their mean magnitude, 7.5, is not the 8 of the weights that were quantized.
    for made in (
        per_tensor(codes(levels=(-8, 0, 7))).model,
        nbits(4, stored=(0, 8, 15), zero=None).model,
    ):
        options = OptimizeOptions(min_elements=0, tolerance=0.2)
        (kept,) = optimize(made, options).report.rejections
        assert "-8, 0 and 7" in kept.reason
        assert "build the model in float32 or with 2 bits" in kept.reason


def test_equal_scales_of_blocks_are_one_scale() -> None:
    made = nbits().model
    (scales,) = (each for each in made.graph.initializer if each.name == "scales")
    scales.CopyFrom(numpy_helper.from_array(np.full(scales.dims, 0.5, F32), "scales"))
    (row,) = optimize(made, ALL).report.rewrites
    assert row.scale == "tensor"


def test_accuracy_level_is_noted_once() -> None:
    first = nbits(accuracy_level=4).model
    second = onnx.compose.add_prefix(nbits(accuracy_level=4).model, "second_")
    second.graph.input[0].name = second.graph.node[0].input[0] = "x"
    made = first
    for field in ("node", "initializer", "output"):
        getattr(made.graph, field).extend(getattr(second.graph, field))
    expected = (
        "the original lets ONNX Runtime round activations to int8 (accuracy_level = 4), the "
        "converted model does not: 'product', 'second_product'"
    )
    assert expected in optimize(made, ALL).report.notes
    rounded = optimize(made, OptimizeOptions(min_elements=0, activation="int8"))
    assert expected not in rounded.report.notes


def test_dequantized_weight_of_both_branches() -> None:
    """The DequantizeLinear is in the main graph, the products are in the branches."""
    branches = {
        branch: helper.make_graph(
            [matmul("x", "w", f"y_{branch}", branch)],
            branch,
            [],
            [helper.make_tensor_value_info(f"y_{branch}", TensorProto.FLOAT, None)],
        )
        for branch in ("then_branch", "else_branch")
    }
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w"),
            node("ReduceMax", ["x"], "top", keepdims=0),
            node("Greater", ["top", "zero"], "positive"),
            helper.make_node("If", ["positive"], ["y"], name="choice", **branches),
        ],
        {"codes": codes(), "scale": np.array(0.25, F32), "zero": np.array(0, F32)},
    )
    result = optimize(made, ALL)
    assert [row.node for row in result.report.rewrites] == ["else_branch", "then_branch"]
    assert "DequantizeLinear" not in {each.op_type for each in result.model.graph}
    assert "codes" not in result.model.graph.initializers


def test_weight_used_by_another_kind_of_product_stays() -> None:
    made = qcdq(from_float=False).model
    made.graph.node.append(node("Relu", ["w"], "z"))
    made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (K, N)))
    result = optimize(made, ALL)
    assert [each.op_type for each in result.model.graph if each.op_type != "Relu"] == [
        "Clip",
        "DequantizeLinear",
        OP_TYPE,
    ]
    (note,) = result.report.notes
    assert note.startswith("weight 'codes' kept as well: used by Clip")


def test_damaged_codes_are_named() -> None:
    made = ir.from_proto(nbits(weight_change=lambda each: changed(each, 3, 7, 3)).model)
    (kept,) = optimize(made, ALL).report.rejections
    assert (kept.weight, kept.op_type) == ("B", "MatMulNBits")
    assert "column 7" in kept.reason
