"""Straight-through estimators: what changes by how much, and who says so."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir import Model

from onnx_ternary import verify
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.index.levels import NEARLY, unit
from onnx_ternary.op.nodes import CHANGE_KEY, op_nodes
from onnx_ternary.options import OptimizeOptions
from tests.catalogue import straight_through as forms
from tests.catalogue.case import F32
from tests.support.checks import ALL, dense, feeds_of, options_of, run

WEIGHTS = [name for name in forms.HITS if "activations" not in name and "dynamic" not in name]
QUANTIZED = [name for name in forms.HITS if name not in WEIGHTS and "float16" not in name]


def changes(model: Model) -> list[float]:
    return [float(node.metadata_props.get(CHANGE_KEY, "0")) for node in op_nodes(model)]


@pytest.mark.parametrize("order", forms.ORDERS)
def test_weight_is_that_of_the_quantizer(order: str) -> None:
    made = forms.weight(order).model
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    (node,) = op_nodes(result.model)
    made.graph.output.add(name="q")
    made.graph.output.add(name="w")
    values = run(made, feeds_of(made, whole_numbers=False))
    scale = np.abs(values["q"]).max()
    np.testing.assert_array_equal(dense(node), values["q"])
    change = float((np.abs(values["w"].astype(float) - values["q"]) / scale).max())
    assert 0 < change <= 4 * unit(np.dtype(F32))
    assert row.max_relative_change == pytest.approx(change, rel=1e-12)
    assert changes(result.model) == [row.max_relative_change]
    assert result.report.notes == (
        f"the largest change of a weight is {change:.3g} of its scale: 'v' of 'product'",
    )


@pytest.mark.parametrize("name", [*WEIGHTS, *QUANTIZED])
def test_verification_passes_without_a_tolerance(name: str) -> None:
    if "bfloat16" in name:
        pytest.skip("onnxruntime's CPU provider multiplies no bfloat16 matrices")
    case = forms.HITS[name]()
    report = verify(case.model, optimize(case.model, options_of(case)).to_proto())
    assert report.passed, report.summary()
    assert [check.status for check in report.products] == ["passed"]


def test_rounding_of_bfloat16_is_in_the_report() -> None:
    (row,) = optimize(forms.bfloat16_weight(forms.ORDERS[3]).model, ALL).report.rewrites
    assert unit(np.dtype(F32)) < row.max_relative_change <= NEARLY * 2.0**-8


def test_sum_that_kept_little_of_the_quantizer_stays() -> None:
    """A master weight of millions of scales: the sum is another number."""
    v = forms.master()
    v[3, 2] = 1e5
    made = forms.weight(v=v).model
    # The mean follows the outlier; a given one does not.
    for node in made.graph.node:
        node.input[:] = ["mean" if name == "q_mean" else name for name in node.input]
    made.graph.initializer.add().CopyFrom(forms.onnx.numpy_helper.from_array(F32(0.017), "mean"))
    result = optimize(made, ALL)
    assert result.report.rewrites == ()
    (kept,) = result.report.rejections
    assert "distinct magnitudes" in kept.reason


def test_tolerance_that_is_named_takes_the_folded_form() -> None:
    made = forms.weight().model
    made.graph.output.add(name="w")
    folded = run(made, feeds_of(made, whole_numbers=False))["w"]
    made = forms.model([forms.matmul()], {"w": folded})
    (kept,) = optimize(made, ALL).report.rejections
    before, _, text = kept.reason.partition("; rounding apart it is ternary: --tolerance ")
    assert "distinct magnitudes" in before
    tolerance = float(text.removesuffix(" takes it"))
    (row,) = optimize(made, OptimizeOptions(min_elements=0, tolerance=tolerance)).report.rewrites
    assert 0.9 * tolerance < row.max_relative_change <= tolerance


def test_activations_are_noted() -> None:
    case = forms.activations()
    (note,) = optimize(case.model, options_of(case)).report.notes
    assert note == (
        "x + (quantize(x) - x) on the activations is taken for quantize(x), without the rounding "
        "of that sum and difference: 'product'"
    )
    (row,) = optimize(forms.rounding_estimated().model, ALL).report.rewrites
    assert row.activation == "int8"


def test_estimator_stays_where_fusing_is_switched_off() -> None:
    case = forms.activations()
    options = OptimizeOptions(min_elements=0, fuse_activation=False)
    result = optimize(case.model, options)
    assert [row.activation for row in result.report.rewrites] == ["float"]
    assert {"Add", "Sub", "Round"} <= {node.op_type for node in result.model.graph}
