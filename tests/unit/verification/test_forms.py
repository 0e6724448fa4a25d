"""Verification finds the products of every form in the original, and judges them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_ternary import get_library_path, verify
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import LibraryError
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.verification.inputs import InputsError
from tests.catalogue import cones, conv, einsum, functions, gemm, row_scales
from tests.catalogue import matmul as matmuls
from tests.catalogue.case import F32, K, matmul, model, node, ternary
from tests.support.checks import options_of, skip_where_too_new

OPERANDS = ("left_operand", "fused_matmul", "transpose_matmul", "one_matrix")
HITS = {
    **cones.HITS,
    **{name: made for name, made in matmuls.HITS.items() if name.startswith(OPERANDS)},
    **einsum.HITS,
    **{name: made for name, made in gemm.HITS.items() if name.startswith("fused_gemm")},
    **conv.HITS,
    **functions.HITS,
    **row_scales.HITS,
}
del HITS["fused_gemm_runtime_c"]  # sums without C are no value of the original
del HITS["cone_bfloat16"]  # onnxruntime's CPU provider multiplies no bfloat16 matrices

try:
    get_library_path()
except LibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


def converted(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    case = HITS[name]()
    return case.model, optimize(case.model, options_of(case)).to_proto()


@pytest.mark.parametrize("name", HITS)
def test_products_are_judged_on_their_own(name: str) -> None:
    original, other = converted(name)
    skip_where_too_new(original)
    if original.graph.input[0].type.tensor_type.HasField("shape"):
        inputs = None
    else:
        inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 48)).astype(np.float32)}
    report = verify(original, other, inputs=inputs)
    assert report.passed, report.summary()
    statuses = {check.status for check in report.products}
    assert statuses == {"passed"}
    assert report.scope == "whole"
    assert report.num_nested_products == 0


@pytest.mark.parametrize(
    "name",
    ["left_operand", "einsum_permuted", "cone_quantized", "function_called_twice", "function_cone"],
)
def test_wrong_weight_is_found(name: str) -> None:
    original, other = converted(name)
    tensors = [*other.graph.initializer]
    tensors += [
        node.attribute[0].t
        for function in other.functions
        for node in function.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    (codes,) = (each for each in tensors if each.name.endswith(".codes"))
    array = onnx.numpy_helper.to_array(codes).copy()
    flat = array.reshape(-1)
    flat[0] = (flat[0] & 0xFC) | (((flat[0] & 3) + 1) % 3)
    codes.CopyFrom(onnx.numpy_helper.from_array(array, codes.name))
    for products_only in (False, True):
        report = verify(original, other, products_only=products_only)
        assert [check.status for check in report.products] == ["failed"]


def test_products_that_stay_are_not_optimized_away() -> None:
    """onnxruntime turns them into MatMulNBits, whose int8 activations are off by half a percent."""
    generator = np.random.default_rng(0)
    stays = generator.integers(-7, 8, (K, K)).astype(np.int8)
    made = model(
        [
            matmul("x", "w", "h", "first"),
            node("DequantizeLinear", ["codes", "scale"], "v"),
            matmul("h", "v", "y", "second"),
        ],
        {"w": ternary(K, K), "codes": stays, "scale": np.array(0.1, F32)},
    )
    result = optimize(made, OptimizeOptions(min_elements=0))
    assert [row.node for row in result.report.rewrites] == ["first"]
    assert verify(made, result.to_proto()).passed


@pytest.mark.parametrize("name", HITS)
def test_products_are_judged_without_the_whole_model(name: str) -> None:
    original, other = converted(name)
    skip_where_too_new(original)
    report = verify(original, other, products_only=True)
    assert report.passed, report.summary()
    assert report.outputs == ()
    statuses = {check.status for check in report.products}
    assert statuses == {"passed"}
    assert report.num_unjudged == 0


def test_fused_products_do_not_run_alone() -> None:
    made = model(
        [
            matmul("x", "w", "a", "first"),
            matmul("x", "v", "b", "second"),
            node("Add", ["a", "b"], "y"),
        ],
        {"w": ternary(K, 32), "v": ternary(K, 32, seed=1)},
    )
    fused = optimize(made, OptimizeOptions(min_elements=0, fuse_siblings=True)).to_proto()
    report = verify(made, fused, products_only=True)
    assert [check.status for check in report.products] == ["end to end only"]
    assert report.num_unjudged == 1


def test_products_that_do_not_run_alone_fail(tmp_path: Path) -> None:
    made = model([matmul("x", "w", "y", "first")], {"w": ternary(K, 32)})
    other = optimize(made, OptimizeOptions(min_elements=0)).to_proto()
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert verify(path, other, products_only=True).passed
    (tmp_path / "weights").write_bytes(b"")
    report = verify(path, other, products_only=True)
    assert not report.passed
    (check,) = report.products
    assert "do not run" in check.reason


def test_products_alone_take_no_inputs() -> None:
    original, other = converted("left_operand")
    with pytest.raises(InputsError, match="give no inputs"):
        verify(original, other, inputs={"x": np.zeros((2, K), F32)}, products_only=True)
