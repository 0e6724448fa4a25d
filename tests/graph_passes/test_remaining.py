"""Float products handed to onnxruntime's own quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.model_files.load import load
from onnx_ternary.options import RemainingChoice
from tests.catalogue.case import matmul, model, node, ternary

pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")

K, N = 96, 80


def two_products() -> onnx.ModelProto:
    """A ternary product, then a float one."""
    weight = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    return model(
        [matmul("x", "w", "h", "ternary"), matmul("h", "v", "y", "float")],
        {"w": ternary(64, K), "v": weight},
        x_shape=("batch", 64),
    )


def tied() -> onnx.ModelProto:
    """A float table read by rows, and the head that multiplies by its transpose."""
    table = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    nodes = [
        node("Transpose", ["v"], "turned", perm=[1, 0]),
        matmul("x", "turned", "h", "float"),
        node("Gather", ["v", "rows"], "z"),
        node("Slice", ["z", "zero", "columns", "one"], "short"),
        node("Add", ["h", "short"], "y"),
    ]
    constants = {
        "v": table,
        "rows": np.array([1], np.int64),
        "zero": np.array([0], np.int64),
        "columns": np.array([N], np.int64),
        "one": np.array([1], np.int64),
    }
    return model(nodes, constants, x_shape=("batch", K))


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = onnx_ternary.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize(("choice", "bits", "limit"), [("int8", 8, 2e-2), ("int4", 4, 2e-1)])
def test_float_products_are_quantized_as_onnxruntime_does(
    choice: RemainingChoice, bits: int, limit: float
) -> None:
    original = two_products()
    result = onnx_ternary.optimize(original, OptimizeOptions(remaining=choice))
    proto = result.to_proto()
    (product,) = (each for each in proto.graph.node if each.op_type == "MatMulNBits")
    assert (product.name, product.output[0]) == ("float", "y")
    assert "v" not in {each.name for each in proto.graph.initializer}
    (kept,) = result.report.rejections
    assert f"quantized by onnxruntime to {choice}" in kept.reason
    assert [row.status for row in result.report.rows()] == ["rewritten", "quantized"]
    note = f"--remaining {choice}: 1 of 1 products that were not rewritten are quantized"
    assert any(each.startswith(note) for each in result.report.notes)
    assert result.report.requantised == ("float",)
    assert [row.node for row in result.report.rewrites] == ["ternary"]

    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    expected, found = run(original, x), run(proto, x)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < difference <= limit

    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=bits)
    weight = numpy_helper.to_array(original.graph.initializer[1])
    tensors = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    theirs = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    for name, array in zip(product.input[1:], theirs, strict=True):
        np.testing.assert_array_equal(tensors[name].reshape(-1), array.reshape(-1))


def test_columns_are_quantized_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_ternary.graph_passes.rewrite import remaining

    options = OptimizeOptions(remaining="int4")
    whole = onnx_ternary.optimize(two_products(), options).to_proto()
    monkeypatch.setattr(remaining, "_COLUMNS_AT_ONCE", 7)
    assert onnx_ternary.optimize(two_products(), options).to_proto() == whole


def test_a_tied_table_stays_for_its_other_user() -> None:
    original = tied()
    proto = onnx_ternary.optimize(original, OptimizeOptions(remaining="int8")).to_proto()
    assert "v" in {each.name for each in proto.graph.initializer}
    assert "Transpose" not in {each.op_type for each in proto.graph.node}
    x = np.random.default_rng(1).standard_normal((1, K)).astype(np.float32)
    expected, found = run(original, x), run(proto, x)
    assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()


def turned_table(*, also: str = "") -> onnx.ModelProto:
    """A head's float weight, and a Transpose of it in front of the embedding's Gather."""
    v = np.random.default_rng(2).standard_normal((K, N)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "v"], "y"),
        node("Transpose", ["v"], "table", perm=[1, 0]),
        node("Gather", ["table", "ids"], "rows"),
    ]
    constants = {"v": v, "ids": np.array([3, 0, N - 1])}
    if also == "reader":
        nodes.append(node("ReduceMax", ["v"], "largest"))
    others = {"": [], "reader": ["largest"], "output": ["table"]}
    return model(nodes, constants, x_shape=("batch", K), outputs=["y", "rows", *others[also]])


@pytest.mark.parametrize("external", [False, True])
def test_a_turned_table_is_stored_as_the_gather_reads_it(tmp_path: Path, external: bool) -> None:
    """Two copies otherwise: the file's, and the one onnxruntime makes of the Transpose."""
    original = turned_table()
    source: Any = original
    if external:
        source = tmp_path / "model.onnx"
        onnx.save(turned_table(), source, save_as_external_data=True, size_threshold=0)
    result = onnx_ternary.optimize(source, OptimizeOptions(remaining="int8"))
    result.save(tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx")
    assert [each.op_type for each in proto.graph.node] == ["MatMulNBits", "Gather"]
    tables = {each.name: each for each in proto.graph.initializer}
    assert "v" not in tables
    gather = proto.graph.node[1]
    v = numpy_helper.to_array(original.graph.initializer[0])
    np.testing.assert_array_equal(numpy_helper.to_array(tables[gather.input[0]]), v.T)
    x = np.zeros((1, K), np.float32)
    for whole in (original, proto):
        session = ort.InferenceSession(whole.SerializeToString())
        np.testing.assert_array_equal(session.run(["rows"], {"x": x})[0], v.T[[3, 0, N - 1]])


@pytest.mark.parametrize("also", ["reader", "output"])
def test_a_turned_table_with_other_readers_stays(also: str) -> None:
    proto = onnx_ternary.optimize(
        turned_table(also=also), OptimizeOptions(remaining="int8")
    ).to_proto()
    assert "Transpose" in {each.op_type for each in proto.graph.node}
    assert "v" in {each.name for each in proto.graph.initializer}


def gemm(c_shape: tuple[int, ...] | None, **attributes: float) -> onnx.ModelProto:
    """One Gemm with float weights."""
    rng = np.random.default_rng(0)
    shape = (N, K) if attributes.get("transB") else (K, N)
    constants = {"v": rng.standard_normal(shape).astype(np.float32)}
    if c_shape is not None:
        constants["c"] = rng.standard_normal(c_shape).astype(np.float32)
    return model(
        [node("Gemm", ["x", *constants], "y", **attributes)],
        constants,
        x_shape=(3, 3 if attributes.get("transA") else K),
    )


@pytest.mark.parametrize("c_shape", [None, (N,), (1, N), (3, 1), (3, N), ()])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_quantized_too(c_shape: tuple[int, ...] | None, transposed: int) -> None:
    original = gemm(c_shape, transB=transposed)
    result = onnx_ternary.optimize(original, OptimizeOptions(remaining="int8"))
    assert result.report.requantised == ("Gemm_y",)
    proto = result.to_proto()
    kinds = ["MatMulNBits"] if c_shape is None else ["MatMulNBits", "Add"]
    assert [each.op_type for each in proto.graph.node] == kinds
    onnx.checker.check_model(proto)
    x = np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)
    expected, found = run(original, x), run(proto, x)
    assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"transA": 1}, "its activations are transposed (transA)"),
        ({"alpha": 0.5}, "alpha is 0.5, expected 1"),
        ({"beta": 2.0}, "beta is 2, expected 1"),
    ],
)
def test_a_gemm_that_does_more_stays_and_says_why(
    attributes: dict[str, float], reason: str
) -> None:
    if attributes.get("transA"):
        original = gemm((N,), transA=1)
        original.graph.input[0].type.tensor_type.shape.dim[0].dim_value = K
    else:
        original = gemm((N,), **attributes)
    report = onnx_ternary.optimize(original, OptimizeOptions(remaining="int8")).report
    assert report.requantised == ()
    (kept,) = report.rejections
    assert kept.reason.endswith(f"not quantized by --remaining: {reason}")
    assert any(each.startswith("--remaining int8: 0 of 1") for each in report.notes)


@pytest.mark.parametrize(
    "options", [OptimizeOptions(), OptimizeOptions(remaining="int8", exclude=("float",))]
)
def test_float_products_stay_unless_asked_for(options: OptimizeOptions) -> None:
    result = onnx_ternary.optimize(two_products(), options)
    assert "MatMulNBits" not in {each.op_type for each in result.model.graph}
    assert result.report.requantised == ()


def test_convert_writes_and_verifies_what_only_the_quantizer_changed(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(tied(), path)
    done = onnx_ternary.convert(path, out, OptimizeOptions(remaining="int8"))
    assert any(each.op_type == "MatMulNBits" for each in load(out).model.graph)
    assert done.verification is not None
    assert done.verification.passed
    assert all(check.tolerance is None for check in done.verification.outputs)
    assert any("--remaining" in note for note in done.verification.notes)
    ort.InferenceSession(out, providers=["CPUExecutionProvider"])
