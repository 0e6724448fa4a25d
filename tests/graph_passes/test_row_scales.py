"""Weights with a scale per row: one Mul in front, what the report says, what verification sees."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_ternary import verify
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.nodes import CHANGE_KEY, op_nodes
from onnx_ternary.options import OptimizeOptions
from tests.catalogue import row_scales as forms
from tests.catalogue.case import K, N, matmul, model, node, simple
from tests.support.checks import ALL, dense, feeds_of, options_of, run

NOTE = "the weight has a scale per row besides, by which a Mul in front multiplies the input"


def test_one_mul_stands_in_front() -> None:
    weight = forms.folded()
    result = optimize(simple(weight), ALL)
    scaling, product = result.model.graph
    assert (scaling.op_type, scaling.name) == ("Mul", "product.scale_rows")
    assert scaling.inputs[0] is result.model.graph.inputs[0]
    scale = scaling.inputs[1]
    assert scale is not None and scale.const_value is not None
    rows = scale.const_value.numpy()
    assert (rows.shape, rows.dtype) == ((K,), np.float32)
    assert rows[forms.BLANK_ROW] == 1
    np.testing.assert_array_equal(rows[:, None] * dense(product), weight)
    (row,) = result.report.rewrites
    assert row.scale == "tensor and row"
    assert row.max_relative_change == 0
    assert row.bytes_after == sum(
        value.const_value.nbytes
        for value in (scale, *product.inputs[1:4])
        if value is not None and value.const_value is not None
    )
    assert result.report.notes == (f"{NOTE}: 'product'",)


def test_change_is_reported() -> None:
    result = optimize(simple(forms.folded(forms.column_scales())), ALL)
    (row,) = result.report.rewrites
    assert row.scale == "column and row"
    assert 0 < row.max_relative_change <= 4.1 * 2.0**-24
    (product,) = op_nodes(result.model)
    assert float(product.metadata_props[CHANGE_KEY]) == row.max_relative_change
    assert any("the largest change of a weight is" in note for note in result.report.notes)


def test_activations_the_graph_quantizes_stay_in_the_graph() -> None:
    made, reason = forms.KEPT["row_scale_behind_quantization"]()
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    assert row.activation == "float"
    assert result.report.notes == (
        f"the graph goes on quantizing the activations, because {reason}; {NOTE}: 'product'",
    )
    assert [each.op_type for each in result.model.graph].count("Round") == 1
    assert verify(made, result.to_proto()).products_passed


def test_products_that_share_a_weight_share_the_factor() -> None:
    case = forms.HITS["row_scale_shared"]()
    first, second = op_nodes(optimize(case.model, options_of(case)).model)
    scales = [each.inputs[0].producer().inputs[1] for each in (first, second)]  # type: ignore[union-attr]
    assert scales[0] is scales[1] and first.inputs[1] is second.inputs[1]


def test_table_of_a_gather_stays() -> None:
    """The embedding a head is tied to: rows of the index alone would lack the factor."""
    made = model(
        [
            matmul(),
            node("Transpose", ["w"], "table", perm=[1, 0]),
            node("Gather", ["table", "ids"], "rows"),
        ],
        {"w": forms.folded(), "ids": np.arange(3)},
        outputs=["y", "rows"],
    )
    result = optimize(made, ALL)
    assert [row.op_type for row in result.report.rewrites] == ["MatMul"]
    assert any("weight 'w' kept as well" in note for note in result.report.notes)
    feeds = feeds_of(made, whole_numbers=False)
    np.testing.assert_array_equal(run(result.to_proto(), feeds)["rows"], run(made, feeds)["rows"])


def damaged(converted: onnx.ModelProto, row: int, factor: float) -> onnx.ModelProto:
    """The model with one factor changed."""
    (tensor,) = (each for each in converted.graph.initializer if each.name.endswith("row_scale"))
    array = numpy_helper.to_array(tensor).copy()
    array[row] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return converted


@pytest.mark.parametrize("half", [False, True])
def test_verification_sees_a_wrong_factor(half: bool) -> None:
    made = (forms.half(forms.folded()) if half else forms.gemm()).model
    converted = optimize(made, ALL).to_proto()
    assert verify(made, converted, products_only=True).passed
    factor = 1 + (2.0**-4 if half else 2.0**-11)
    report = verify(made, damaged(converted, 9, factor), products_only=True)
    (check,) = report.products
    assert check.status == "failed"


def test_scale_of_another_shape_is_told() -> None:
    made = simple(forms.folded())
    converted = optimize(made, ALL).to_proto()
    (tensor,) = (each for each in converted.graph.initializer if each.name.endswith("row_scale"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), tensor.name))
    (check,) = verify(made, converted, products_only=True).products
    assert check.status == "failed"
    assert check.reason == (
        "the scale of the weight's rows is float32 of shape (1,), expected float32 of shape (48,)"
    )


def test_user_may_ask_for_eight_bits() -> None:
    made = simple(forms.folded())
    result = optimize(made, OptimizeOptions(min_elements=0, activation="int8"))
    (row,) = result.report.rewrites
    assert (row.activation, row.scale) == ("int8", "tensor and row")
    assert verify(made, result.to_proto()).products_passed
    assert N == row.N
