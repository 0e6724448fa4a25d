"""Gathers of a table that a product multiplies by: one packed copy serves both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary
from onnx_ternary.conversion.optimize import OptimizeResult, optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.exporting.export import export
from onnx_ternary.op.nodes import check_indices
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.verification import gathers
from onnx_ternary.verification.function_check import check_function_body
from onnx_ternary.verification.verify import verify
from tests.catalogue.matmul_nbits import FEW_BITS
from tests.catalogue.table import (
    BLOCKS,
    GATHER,
    HEAD,
    NEAR_MISSES,
    ROWS,
    TIED,
    TRANSPOSE,
    WIDTH,
    grouped_head,
    model,
    scaled_head,
    table,
    tied_head,
    weight,
)

IDS = np.array([[0, 5, -1], [ROWS - 1, -ROWS, 7]])
node = helper.make_node


def answers(
    proto: onnx.ModelProto, *, library: bool = True, optimized: bool = True
) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        onnx_ternary.register(options)
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values: list[NDArray[Any]] = session.run(None, {"ids": IDS})
    return values


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in proto.graph.node]


def converted(proto: onnx.ModelProto, **options: Any) -> tuple[OptimizeResult, onnx.ModelProto]:
    result = optimize(proto, OptimizeOptions(**options))
    return result, result.to_proto()


def assert_one_copy(original: onnx.ModelProto) -> OptimizeResult:
    """Both nodes read one index, nothing of the table is left, and every answer is right."""
    result, proto = converted(original)
    onnx.checker.check_model(proto)
    gather, product = (
        next(each for each in proto.graph.node if each.op_type == name)
        for name in ("TernaryIndexedGather", "TernaryIndexedMatMul")
    )
    assert gather.input[1] == product.input[1]
    assert gather.name == "embed"
    old_table = max(original.graph.initializer, key=lambda each: len(each.raw_data))
    assert old_table.name not in {each.name for each in proto.graph.initializer}
    large = [each for each in proto.graph.initializer if each.data_type == TensorProto.UINT8]
    assert [each.name for each in large] == [gather.input[1]]
    assert check_indices(result.model) == ("embed", "head")
    expected = answers(original, optimized=False)
    for library in (True, False):
        for optimized in (True, False):
            found = answers(proto, library=library, optimized=optimized)
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1].shape == expected[1].shape
    report = verify(original, proto)
    assert report.passed
    checks = {each.node: each for each in report.products}
    assert checks["embed"].status == "passed"
    assert checks["embed"].rows == ROWS
    assert checks["embed"].ran_without_library
    assert checks["embed"].max_abs_error == 0.0
    return result


@pytest.mark.parametrize("name", TIED)
def test_tied_table_is_stored_once(name: str) -> None:
    result = assert_one_copy(TIED[name]())
    row = next(each for each in result.report.rewrites if each.node == "embed")
    assert (row.pattern, row.shares_index_with) == ("Gather", "head")
    assert result.report.bytes_after < len(TIED[name]().SerializeToString()) / 3


@pytest.mark.skipif(not FEW_BITS, reason="this onnxruntime has no 2-bit blocks")
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_stored_once(name: str) -> None:
    result = assert_one_copy(BLOCKS[name]())
    storages = {each.storage for each in result.report.rewrites}
    assert storages == {"1bit" if name == "2bit_binary" else "2bit"}


def test_a_converted_table_is_left_alone_and_named() -> None:
    again = optimize(converted(tied_head())[1]).report
    assert not again.rewrites
    assert [(row.node, row.pattern) for row in again.rows()] == [
        ("embed", "TernaryIndexedGather"),
        ("head", "TernaryIndexedMatMul"),
    ]


def test_rows_leave_out_a_factor_of_the_product() -> None:
    _, proto = converted(scaled_head())
    gather, product = proto.graph.node
    scales = {each.name: each for each in proto.graph.initializer}
    assert numpy_helper.to_array(scales[gather.input[2]]) == 0.25
    assert numpy_helper.to_array(scales[product.input[3]]) == 0.25 * 0.125


def test_binary_table_beside_a_ternary_product_is_stored_as_it_is() -> None:
    """One function body serves the model, so the shared index is stored again with 2 bits."""
    other = node("MatMul", ["e", "v"], ["z"], "other")
    constants = {"t": table(levels=(-1, 1)), "v": weight(seed=3)}
    original = model(
        [GATHER, TRANSPOSE, HEAD, other],
        constants,
        outputs={"e": WIDTH, "y": ROWS, "z": ROWS},
    )
    result, proto = converted(original)
    assert check_indices(result.model) == ("embed", "head", "other")
    assert {each.storage for each in result.report.rewrites} == {"2bit"}
    for library in (True, False):
        np.testing.assert_array_equal(
            answers(proto, library=library)[0], answers(original, optimized=False)[0]
        )
    assert verify(original, proto).passed


def test_weights_within_the_tolerance_are_held_to_it() -> None:
    rough = table()
    rough[3, 5] *= np.float32(1.001)
    original = model([GATHER, TRANSPOSE, HEAD], {"t": rough})
    _, proto = converted(original, tolerance=0.01)
    assert "TernaryIndexedGather" in op_types(proto)
    report = verify(original, proto)
    assert report.passed
    assert 0 < next(c for c in report.products if c.node == "embed").worst_error_over_bound <= 1
    failed = verify(original, proto, weight_tolerance=1e-5)
    assert {c.node for c in failed.products if c.status == "failed"} >= {"embed"}


@pytest.mark.parametrize(
    ("original", "options"),
    [
        *((made, {}) for made in NEAR_MISSES.values()),
        (tied_head, {"exclude": ("embed",)}),
        (tied_head, {"exclude": ("head",)}),
        (tied_head, {"index_format": "rsr"}),
    ],
    ids=[*NEAR_MISSES, "excluded", "product-excluded", "rsr"],
)
def test_other_gathers_stay(
    original: Callable[[], onnx.ModelProto], options: Mapping[str, Any]
) -> None:
    before = original()
    result, proto = converted(before, min_elements=0, **options)
    assert "Gather" in op_types(proto)
    assert "TernaryIndexedGather" not in op_types(proto)
    assert all(each.node != "embed" for each in result.report.rewrites)
    np.testing.assert_array_equal(answers(proto)[0], answers(before, optimized=False)[0])


def test_gather_without_a_body_for_its_opset_stays_and_it_is_said() -> None:
    old = model([GATHER, TRANSPOSE, HEAD], {"t": table()}, opset=11)
    result, proto = converted(old)
    assert "Gather" in op_types(proto)
    assert any("at opset 11" in note and "'embed'" in note for note in result.report.notes)
    _, without_body = converted(old, function_body=False)
    assert op_types(without_body) == ["TernaryIndexedGather", "TernaryIndexedMatMul"]
    np.testing.assert_array_equal(answers(without_body)[0], answers(old, optimized=False)[0])


def test_table_of_another_graph_stays() -> None:
    """ONNX Runtime 1.17 gives an operator constants of its own graph only."""
    branch = helper.make_graph(
        [TRANSPOSE, HEAD],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    nodes = [
        GATHER,
        node("If", ["flag"], ["y_out"], then_branch=branch, else_branch=branch),
    ]
    original = model(nodes, {"t": table(), "flag": np.array(True)}, outputs={"e": WIDTH})
    original.graph.output.append(helper.make_tensor_value_info("y_out", TensorProto.FLOAT, None))
    _, proto = converted(original)
    assert op_types(proto) == ["Gather", "If"]


def check_some_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a large table: some rows with the operator, fewer of them with its definition."""
    monkeypatch.setattr(gathers, "_MAX_ELEMENTS", 12 * WIDTH)
    monkeypatch.setattr(gathers, "_MAX_BODY_ELEMENTS", 5 * WIDTH)


@pytest.mark.parametrize("sampled", [False, True])
def test_damaged_rows_fail_the_verification(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tied_head()
    _, proto = converted(original)
    if sampled:  # row 13 among them
        check_some_of_the_rows(monkeypatch)
    assert verify(original, proto).passed
    gather = proto.graph.node[0]
    codes = next(each for each in proto.graph.initializer if each.name == gather.input[1])
    hurt = numpy_helper.to_array(codes).copy()
    hurt[3, 0, 1, 0] ^= 1  # of row 13
    other = numpy_helper.from_array(hurt, "other.codes")
    proto.graph.initializer.append(other)
    gather.input[1] = other.name
    report = verify(original, proto)
    assert not report.products_passed
    (failed,) = (each for each in report.products if each.status == "failed")
    assert failed.node == "embed"
    assert failed.worst_index == (13, failed.worst_index[1] if failed.worst_index else -1)


def test_another_definition_of_the_rows_is_noticed() -> None:
    _, proto = converted(tied_head())
    assert check_function_body(proto) == 2
    function = next(each for each in proto.functions if each.name == "TernaryIndexedGather")
    function.node[-1].output[0] = "before"
    function.node.append(node("Neg", ["before"], ["Y"]))
    with pytest.raises(ModelError, match="operator defines: rows of 'embed' are others"):
        check_function_body(proto)
    report = verify(tied_head(), proto)
    (failed,) = (each for each in report.products if each.status == "failed")
    assert (failed.node, failed.worst_is_without_library) == ("embed", True)


@pytest.mark.parametrize("form", ["float", "matmulnbits", "qdq"])
def test_exported_rows_are_the_same(form: Any) -> None:
    original = grouped_head() if form != "qdq" else tied_head()
    result, _ = converted(original)
    # onnxruntime 1.17.3 to 1.23.2 refuse MatMulNBits of 2 bits.
    exported = export(result.to_proto(), to=form, bits=2 if FEW_BITS else 4)
    proto = exported.to_proto()
    onnx.checker.check_model(proto)
    assert exported.products[0].operator == "Gather"
    assert not proto.functions
    np.testing.assert_array_equal(
        answers(proto, library=False)[0], answers(original, optimized=False)[0]
    )
