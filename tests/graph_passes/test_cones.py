"""Constant expressions: what is evaluated, how often, and what of them is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import helper

from onnx_ternary.cli import main
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.graph_passes.constants import cones
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import F32, K, matmul, model
from tests.catalogue.cones import (
    HITS,
    NEAR_MISSES,
    QUANTIZATION_CONSTANTS,
    broken_cone,
    quantization,
)
from tests.catalogue.functions import in_function

ALL = OptimizeOptions(min_elements=0)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The onnxruntime sessions that are created."""
    created: list[Any] = []
    original = ort.InferenceSession

    def create(*args: Any, **kwargs: Any) -> Any:
        created.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", create)
    return created


def test_cone_disappears() -> None:
    for name in ("cone_quantized", "cone_quantized_scale_behind", "cone_packed_by_scatter"):
        result = optimize(HITS[name]().model, ALL)
        (left,) = result.model.graph
        assert left.op_type == "TernaryIndexedMatMul"
        assert len(result.model.graph.initializers) == 4, name


def test_used_part_of_a_cone_stays() -> None:
    result = optimize(HITS["cone_used_elsewhere"]().model, ALL)
    kinds = [node.op_type for node in result.model.graph]
    assert kinds == ["Abs", "ReduceMean", "Clip", "TernaryIndexedMatMul"]
    assert {"v", "epsilon"} < set(result.model.graph.initializers)
    assert "one" not in result.model.graph.initializers
    assert result.report.notes == ("weight 'v' kept as well: used by Abs 'Abs_abs'",)


def test_cone_is_named_for_its_largest_constant() -> None:
    (row,) = optimize(HITS["cone_packed_by_scatter"]().model, ALL).report.rewrites
    assert row.weight == "packed"
    (row,) = optimize(HITS["cone_quantized"]().model, ALL).report.rewrites
    assert row.weight == "v"
    assert row.bytes_before == 48 * 20 * 4 + 3 * 4


def test_cone_of_a_refused_product_stays_as_it_is() -> None:
    weight = np.random.default_rng(0).standard_normal((K, K)).astype(F32)
    nodes = [helper.make_node("Abs", ["v"], ["w"], name="abs"), matmul()]
    original = model(nodes, {"v": weight})
    result = optimize(original, ALL)
    assert result.report.rewrites == ()
    assert result.to_proto() == ir.to_proto(ir.from_proto(original))


@pytest.mark.parametrize("name", ["cone_quantized", "cone_shared", "cone_in_branches"])
def test_each_weight_is_evaluated_once(name: str, sessions: list[Any]) -> None:
    optimize(HITS[name]().model, ALL)
    # Scales behind a product are expressions of their own; here there are none.
    assert len(sessions) == (2 if name == "cone_in_branches" else 1)


@pytest.mark.parametrize(("kept_bytes", "num_sessions"), [(0, 3), (1 << 26, 2)])
def test_large_results_are_let_go(
    kept_bytes: int, num_sessions: int, sessions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one large weight is evaluated again where it is used again."""
    monkeypatch.setattr(cones, "KEPT_BYTES", kept_bytes)
    rows = 256
    generator = np.random.default_rng(0)
    made = model(
        [
            *quantization("v0", "w0", prefix="a"),
            *quantization("v1", "w1", prefix="b"),
            matmul("x", "w0", "h0", "first"),
            matmul("h0", "w1", "h1", "second"),
            matmul("h1", "w0", "y", "third"),
        ],
        {
            "v0": generator.standard_normal((rows, rows)).astype(F32),
            "v1": generator.standard_normal((rows, rows)).astype(F32),
            **QUANTIZATION_CONSTANTS,
        },
        x_shape=("batch", rows),
    )
    report = optimize(made, ALL).report
    assert [row.shares_index_with for row in report.rewrites] == [None, None, "first"]
    assert len(sessions) == num_sessions


def test_nothing_is_evaluated_without_folding(sessions: list[Any]) -> None:
    options = OptimizeOptions(min_elements=0, fold=False)
    for name in HITS:
        optimize(HITS[name]().model, options)
    assert not sessions


def test_too_large_is_not_evaluated(sessions: list[Any]) -> None:
    optimize(NEAR_MISSES["cone_huge"]().model, ALL)
    assert len(sessions) <= 1  # the shape, which is computed


def test_onnxruntime_says_why_a_cone_fails() -> None:
    (kept,) = optimize(broken_cone(), ALL).report.rejections
    start = (
        "weight 'w' is the end of a constant expression that is not evaluated: onnxruntime "
        f"{ort.__version__} says: "
    )
    assert kept.reason.startswith(start)
    assert "Reshape" in kept.reason[len(start) :]


def test_deep_models_do_not_recurse() -> None:
    """Two thousand nodes between the input and the weight's product, and before the weight."""
    depth = 2_000
    nodes = [
        helper.make_node("Neg", [f"{kind}{i}"], [f"{kind}{i + 1}"], name=f"{kind}{i}")
        for kind in "ab"
        for i in range(depth)
    ]
    start = helper.make_node("Identity", ["x"], ["a0"], name="start")
    made = helper.make_graph(
        [start, *nodes, matmul(f"a{depth}", f"b{depth}")],
        "graph",
        [helper.make_tensor_value_info("x", 1, ("batch", K))],
        [helper.make_tensor_value_info("y", 1, None)],
        [helper.make_tensor("b0", 1, (K, 4), np.ones(K * 4, F32))],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = optimize(proto, ALL)
    assert len(result.report.rewrites) == 1
    assert len(result.model.graph) == depth + 2


@pytest.mark.parametrize("fold", [True, False])
def test_option_of_the_command_line(fold: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(HITS["cone_quantized"]().model, path)
    option = "--fold" if fold else "--no-fold"
    result = CliRunner().invoke(
        main, ["inspect", str(path), "--min-elements", "0", option, "--json"]
    )
    assert result.exit_code == 0
    assert ("folding is switched off" in result.output) is not fold


def test_inlined_function_is_rewritten() -> None:
    """What the refusal of products in local functions advises."""
    inlined = onnx.inliner.inline_local_functions(in_function())
    assert len(optimize(inlined, ALL).report.rewrites) == 1


def test_cones_of_a_model_that_was_partly_converted() -> None:
    original = HITS["cone_split"]().model
    options = OptimizeOptions(min_elements=0, exclude=("product_k",))
    once = optimize(original, options)
    assert len(once.report.rewrites) == 2
    again = optimize(once.to_proto(), ALL)
    assert [row.node for row in again.report.rewrites] == ["product_k"]
    assert {node.op_type for node in again.model.graph} == {"Concat", "TernaryIndexedMatMul"}
