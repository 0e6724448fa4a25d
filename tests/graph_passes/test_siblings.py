"""Products that share an input, fused into one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.errors import IndexFormatError
from onnx_ternary.op.nodes import check_indices, op_nodes
from tests.catalogue.case import column_scales, matmul, model, node, ternary

FUSED = OptimizeOptions(fuse_siblings=True)


def siblings(
    columns: tuple[int, ...],
    *,
    K: int = 160,
    biased: tuple[int, ...] = (),
    opset: int = 17,
    group_size: int = 0,
) -> onnx.ModelProto:
    """Products of one x with so many columns each; those in ``biased`` have a bias."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], {}
    for number, N in enumerate(columns):
        groups = -(-K // group_size) if group_size else 0
        scale = rng.uniform(0.5, 1.5, (groups, N)) if groups else column_scales(N)
        if number % 2 and not groups:
            scale = np.float32(0.25)
        tensors[f"w{number}"] = ternary(K, N, scale=scale, group_size=group_size, seed=number)
        output = f"p{number}" if number in biased else f"y{number}"
        nodes.append(matmul("x", f"w{number}", output, f"product{number}"))
        if number in biased:
            tensors[f"b{number}"] = rng.standard_normal(N).astype(np.float32)
            nodes.append(node("Add", [output, f"b{number}"], f"y{number}"))
    nodes.append(node("Concat", [f"y{each}" for each in range(len(columns))], "y", axis=-1))
    return model(nodes, tensors, x_shape=("batch", K), opset=opset)


def run(proto: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    (y,) = onnx_ternary.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@pytest.mark.parametrize("activation", ["keep", "int8"])
@pytest.mark.parametrize(
    "original",
    [
        siblings((64, 32, 32)),
        siblings((64, 30)),
        siblings((64, 32), biased=(0, 1)),
        siblings((64, 32), opset=12),
        siblings((64, 32), group_size=32),
    ],
    ids=["columns and tensor", "last tile not full", "biases", "opset 12", "groups"],
)
def test_fused_products_give_the_same_bits(
    original: onnx.ModelProto, activation: str, rows: int
) -> None:
    choice = {"activation": activation}
    apart = onnx_ternary.optimize(original, OptimizeOptions(**choice))  # type: ignore[arg-type]
    options = OptimizeOptions(fuse_siblings=True, **choice)  # type: ignore[arg-type]
    fused = onnx_ternary.optimize(original, options)
    assert len(list(op_nodes(fused.model))) == 1
    assert [row.node for row in fused.report.rewrites] == [
        row.node for row in apart.report.rewrites
    ]
    assert any("one call" in note for note in fused.report.notes)
    onnx.checker.check_model(fused.to_proto())
    assert check_indices(fused.model) == ("product0",)
    K = fused.report.rewrites[0].K
    x = np.random.default_rng(1).standard_normal((rows, K)).astype(np.float32)
    np.testing.assert_array_equal(run(fused.to_proto(), x), run(apart.to_proto(), x))


def test_fused_model_runs_without_the_library() -> None:
    original = siblings((64, 32, 32))
    proto = onnx_ternary.optimize(original, FUSED).to_proto()
    x = np.random.default_rng(1).standard_normal((3, 160)).astype(np.float32)
    found, expected = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for each in (proto, original)
    )
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("original", "products"),
    [
        (siblings((30, 30)), 2),
        (siblings((64, 32), biased=(0,)), 2),
        (siblings((30, 64, 30)), 2),
    ],
    ids=["tiles not full", "one bias", "only one may end in part of a tile"],
)
def test_products_that_do_not_fit_stay_apart(original: onnx.ModelProto, products: int) -> None:
    assert len(list(op_nodes(onnx_ternary.optimize(original, FUSED).model))) == products


def test_products_of_other_inputs_and_shared_indices_stay_apart() -> None:
    weight = ternary(64, 64)
    chain = model(
        [matmul("x", "w", "h", "one"), matmul("h", "v", "y", "two")],
        {"w": weight, "v": ternary(64, 64, seed=1)},
        x_shape=("batch", 64),
    )
    shared = model(
        [
            matmul("x", "w", "h", "one"),
            matmul("x", "w", "g", "two"),
            node("Add", ["h", "g"], "y"),
        ],
        {"w": weight},
        x_shape=("batch", 64),
    )
    for original in (chain, shared):
        assert len(list(op_nodes(onnx_ternary.optimize(original, FUSED).model))) == 2


def test_columns_that_come_last_may_be_used_first() -> None:
    """The first product ends in part of a tile, and its user is ahead of the second."""
    original = model(
        [
            matmul("x", "w", "a", "one"),
            node("Relu", ["a"], "b"),
            matmul("x", "v", "c", "two"),
            node("Concat", ["b", "c"], "y", axis=-1),
        ],
        {"w": ternary(160, 33), "v": ternary(160, 32, seed=1)},
        x_shape=("batch", 160),
    )
    fused = onnx_ternary.optimize(original, FUSED)
    assert len(list(op_nodes(fused.model))) == 1
    onnx.checker.check_model(fused.to_proto())
    x = np.random.default_rng(1).standard_normal((3, 160)).astype(np.float32)
    np.testing.assert_array_equal(
        run(fused.to_proto(), x), run(onnx_ternary.optimize(original).to_proto(), x)
    )


def test_converted_before_without_fusing_is_said() -> None:
    once = onnx_ternary.optimize(siblings((64, 32))).to_proto()
    (note,) = onnx_ternary.optimize(once, FUSED).report.notes
    assert "convert the original with fuse_siblings" in note
    assert not onnx_ternary.optimize(once).report.notes


def test_damaged_product_is_not_fused_with_new_ones() -> None:
    once = onnx_ternary.optimize(siblings((64, 32)), OptimizeOptions(exclude=("product1",)))
    proto = once.to_proto()
    (codes,) = (each for each in proto.graph.initializer if each.name.endswith(".codes"))
    damaged = onnx.numpy_helper.to_array(codes).copy()
    damaged.flat[0] ^= 1
    codes.CopyFrom(onnx.numpy_helper.from_array(damaged, codes.name))
    with pytest.raises(IndexFormatError, match="digest differs"):
        onnx_ternary.optimize(proto, FUSED)


def test_fused_model_is_verified_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(siblings((64, 32, 32)), path)
    verification = onnx_ternary.convert(path, tmp_path / "out.onnx", FUSED).verification
    assert verification is not None
    assert verification.passed
    assert [each.status for each in verification.products] == ["end to end only"]
