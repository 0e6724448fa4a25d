"""Conversion in memory: what is rewritten, what stays, and what is said about it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.graph_passes.rules import catalogue
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import DOMAIN, OP_TYPE
from tests.catalogue.case import K, N, matmul, model, node, simple, ternary
from tests.catalogue.functions import in_function
from tests.support.two_products import ALL, assert_same_answers, two_products


def test_model_is_stamped() -> None:
    options = OptimizeOptions(exclude=("nothing",))
    metadata = optimize(two_products(), options).model.metadata_props
    assert json.loads(metadata["onnx_ternary.options"]) == options.to_dict()
    assert metadata["onnx_ternary.version"]


def test_nothing_to_rewrite_changes_nothing() -> None:
    original = simple(np.linspace(0, 1, K * N, dtype=np.float32).reshape(K, N))
    result = optimize(original, ALL)
    assert result.report.rewrites == ()
    assert result.to_proto() == ir.to_proto(ir.from_proto(original))
    assert not result.report.has_function_body


def test_progress_names_every_product() -> None:
    seen: list[tuple[str, int, int]] = []
    optimize(two_products(), progress=lambda *args: seen.append(args))
    assert seen == [("first", 0, 2), ("second", 1, 2)]


@pytest.mark.parametrize("glob", ["fir*", "w"])
def test_globs_name_nodes_and_weights(glob: str) -> None:
    assert optimize(two_products(), OptimizeOptions(exclude=(glob,))).report.rewrites == ()
    included = optimize(two_products(), OptimizeOptions(include=(glob,))).report
    assert [row.node for row in included.rewrites] == ["first"]
    assert [row.reason for row in included.rejections] == ["not among the nodes to include"]


def test_names_of_the_table_choose() -> None:
    unnamed = two_products()
    for each in unnamed.graph.node:
        each.ClearField("name")
    output = unnamed.graph.node[0].output[0]
    report = optimize(unnamed, OptimizeOptions(exclude=(output,))).report
    assert report.rewrites == ()
    assert (report.rejections[0].node, report.rejections[0].reason) == (
        output,
        f"excluded by '{output}'",
    )
    assert report.unmatched == ()


@pytest.mark.parametrize("name", ["/layers.0/attn[q]/MatMul", "a*?", "[!f]"])
def test_exact_names_choose_whatever_they_hold(name: str) -> None:
    named = two_products()
    named.graph.node[0].name = name
    report = optimize(named, OptimizeOptions(include=(name,))).report
    assert name in [row.node for row in report.rewrites]
    assert report.unmatched == ()


def test_patterns_that_choose_nothing_are_named() -> None:
    options = OptimizeOptions(include=("f*", "gone"), exclude=("lm_head", "second", "x[1]"))
    report = optimize(two_products(), options).report
    assert report.unmatched == ("gone", "lm_head", "x[1]")
    again = optimize(optimize(two_products()).to_proto(), OptimizeOptions(exclude=("first", "no")))
    assert again.report.unmatched == ("no",)
    old = two_products()
    old.ir_version = 3  # nothing of it is converted, names are names
    assert optimize(old, OptimizeOptions(exclude=("first", "no"))).report.unmatched == ("no",)


def test_models_in_memory_give_the_same() -> None:
    proto = two_products()
    expected = optimize(proto).to_proto()
    for given in (proto.SerializeToString(), ir.from_proto(proto)):
        assert optimize(given).to_proto() == expected
    with pytest.raises(ModelError, match="not an ONNX model"):
        optimize(b"this is not a model")


def test_tolerance_admits_and_reports_the_change() -> None:
    weight = ternary()
    weight[2, 2] *= 1.001
    assert optimize(simple(weight), ALL).report.rewrites == ()
    report = optimize(simple(weight), OptimizeOptions(min_elements=0, tolerance=0.01)).report
    (row,) = report.rewrites
    assert 0 < row.max_relative_change < 0.01
    change = f"{row.max_relative_change:.3g}"
    assert report.notes == (
        f"the largest change of a weight is {change} of its scale: 'w' of 'product'",
    )


def test_what_the_tolerance_does_not_admit_is_a_sentence() -> None:
    weight = ternary() * np.float32(1)
    weight[:, 0] = np.linspace(0.6, 1, K)
    options = OptimizeOptions(min_elements=0, tolerance=0.01)
    (kept,) = optimize(simple(weight), options).report.rejections
    assert kept.reason.startswith("weights of column 0 lie ")


def test_every_kind_of_product_is_reported() -> None:
    """A node a kind, on operands that are given at run time."""
    kinds = sorted(frozenset().union(*(rule.op_types for rule in catalogue.RULES)))
    nodes = [
        helper.make_node(op_type, ["x", "v"], [f"y{at}"], name=f"{domain}.{op_type}", domain=domain)
        for at, (domain, op_type) in enumerate(kinds)
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, 1, (K, K)) for name in ("x", "v")],
        [helper.make_tensor_value_info(f"y{at}", 1, None) for at in range(len(kinds))],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    report = optimize(helper.make_model(made, opset_imports=imports, ir_version=8), ALL).report
    assert [row.node for row in report.rejections] == [node.name for node in nodes]
    assert all(row.reason for row in report.rejections)


def test_one_body_for_binary_and_ternary_weights() -> None:
    mixed = model(
        [matmul("x", "a", "h", "first"), matmul("h", "b", "i", "second"), matmul("i", "c", "y")],
        {
            "a": ternary(K, K, levels=(-1, 1)),
            "b": ternary(K, K, levels=(0, 1)),
            "c": ternary(K, N),
        },
    )
    result = optimize(mixed, ALL)
    assert result.report.has_function_body
    assert [row.storage for row in result.report.rewrites] == ["2bit"] * 3
    assert [row.alphabet for row in result.report.rewrites] == ["binary_pm", "binary_01", "ternary"]
    (note,) = result.report.notes
    assert "'first', 'second'" in note
    assert_same_answers(mixed, result.to_proto())

    rsr = optimize(mixed, OptimizeOptions(min_elements=0, index_format="rsr"))
    assert rsr.report.has_function_body
    assert [row.alphabet for row in rsr.report.rewrites] == ["ternary"] * 3
    assert_same_answers(mixed, rsr.to_proto())

    bare = optimize(mixed, OptimizeOptions(min_elements=0, function_body=False))
    assert [row.storage for row in bare.report.rewrites] == ["1bit", "1bit", "2bit"]


def test_no_function_body_is_noted() -> None:
    report = optimize(two_products(), OptimizeOptions(function_body=False)).report
    assert report.notes == (
        "no function body, so the model needs the library to run: not asked for",
    )
    old = optimize(simple(ternary(), opset=9), ALL)
    assert not old.report.has_function_body
    (note,) = old.report.notes
    assert "the model's opset is 9" in note
    onnx.checker.check_model(old.to_proto())


def test_products_in_and_beside_functions() -> None:
    original = in_function()
    converted = model(
        [*original.graph.node[:], matmul("x", "w", "z", "outer")],
        {"w": ternary()},
        outputs=("y", "z"),
        functions=list(original.functions),
        opsets=[each for each in original.opset_import if each.domain],
    )
    result = optimize(converted, ALL)
    proto = result.to_proto()
    assert [(each.domain, each.name) for each in proto.functions] == [
        ("local", "Linear"),
        (DOMAIN, OP_TYPE),
    ]
    graphs = [row.graph for row in result.report.rewrites]
    assert graphs == ["main graph", "function local::Linear"]
    assert_same_answers(converted, proto)


def test_index_names_are_unique() -> None:
    taken = model(
        [matmul("x", "w", "h"), node("Add", ["h", "w.codes"], "y")],
        {"w": ternary(), "w.codes": np.ones((1, 1, N), np.float32)},
    )
    result = optimize(taken, ALL)
    assert {"w.codes", "w.codes_2"} <= set(result.model.graph.initializers)
    assert_same_answers(taken, result.to_proto())


def test_new_products_next_to_old_ones() -> None:
    first = optimize(two_products(), OptimizeOptions(exclude=("second",))).to_proto()
    for each in first.graph.initializer:
        if each.name == "v":
            each.CopyFrom(onnx.numpy_helper.from_array(ternary(64, 64, seed=2), "v"))
    second = optimize(first, ALL)
    assert second.report.already_converted == ("first",)
    assert [row.node for row in second.report.rewrites] == ["second"]
    assert second.report.has_function_body
    assert_same_answers(first, second.to_proto())
