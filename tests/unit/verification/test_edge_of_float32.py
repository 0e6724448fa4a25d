"""Verification where the terms of a sum leave float32: the exact sum decides, and it can fail."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnx_ternary
from onnx_ternary.verification.report import VerificationReport
from tests.catalogue.case import Array, matmul, ternary

K, N = 64, 64


def verified(x: Array, change: float = 1.0) -> VerificationReport:
    """The converted product of a ternary weight with its scale changed, against the original."""
    graph = helper.make_graph(
        [matmul("x", "w")],
        "graph",
        [helper.make_tensor_value_info("x", 1, ("m", K))],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(ternary(K, N), "w")],
    )
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    converted = onnx_ternary.optimize(original).to_proto()
    (tensor,) = (each for each in converted.graph.initializer if each.name.endswith(".scale"))
    scale = numpy_helper.to_array(tensor) * np.float32(change)
    tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    return onnx_ternary.verify(original, converted, inputs={"x": x})


def cancelling() -> Array:
    """Magnitudes of 2e38 whose sums leave float32 on the way to what they are."""
    x = np.random.default_rng(5).choice([-2e38, 2e38], (4, K)).astype(np.float32)
    x[:, ::3] = 1
    return x


def original_overflows(x: Array) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        y = x @ ternary(K, N)
    exact = x.astype(np.float64) @ ternary(K, N)
    return bool((~np.isfinite(y) & (np.abs(exact) < 3e38)).any())


def test_finite_sums_of_terms_that_leave_float32_pass() -> None:
    x = cancelling()
    assert original_overflows(x)
    report = verified(x)
    assert all(each.status == "passed" for each in report.products), report


@pytest.mark.parametrize("change", [1.001, 0.999, 0.0])
def test_another_scale_fails_there(change: float) -> None:
    report = verified(cancelling(), change)
    assert [each.status for each in report.products] == ["failed"]


def test_rows_with_infinities_follow_the_original() -> None:
    x = np.ones((2, K), np.float32)
    x[0, 3], x[1, 5] = np.inf, np.nan
    assert all(each.status == "passed" for each in verified(x).products)
