"""Converted models that `onnx.compose` merges: they run, and through the op."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, compose, helper, numpy_helper

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.schema import OP_TYPE, OP_TYPES
from tests.catalogue.table import tied_head

ALL = OptimizeOptions(min_elements=0)
IO_MAP = [("h", "g")]
X = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


def part(name: str, x: str, y: str, K: int, N: int, seed: int) -> ModelProto:
    """One product; the same numbers for the same seed."""
    w = np.random.default_rng(seed).integers(-1, 2, (K, N)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [x, f"{name}_w"], [y], name=name)],
        name,
        [helper.make_tensor_value_info(x, 1, ("m", K))],
        [helper.make_tensor_value_info(y, 1, ("m", N))],
        [numpy_helper.from_array(w, f"{name}_w")],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


PARTS = (part("one", "x", "h", 64, 64, 7), part("two", "g", "y", 64, 64, 7))


def converted(options: OptimizeOptions = ALL) -> list[ModelProto]:
    return [onnx_ternary.optimize(each, options).to_proto() for each in PARTS]


def expected() -> np.ndarray:
    return answers(compose.merge_models(*PARTS, io_map=IO_MAP), with_op=False)


def answers(model: ModelProto, *, with_op: bool) -> np.ndarray:
    content = model.SerializeToString()
    session = (
        onnx_ternary.InferenceSession(content)
        if with_op
        else ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: X})
    return np.asarray(y)


def op_types(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (
        onnx_ternary.optimize(PARTS[0], ALL).to_proto().SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("with_op", [True, False])
def test_merged_without_prefixes(with_op: bool) -> None:
    """Equal weights, so that nothing but names tells the shared constants apart."""
    one, two = converted()
    del two.functions[:]  # onnx.compose takes no two functions of one name
    merged = compose.merge_models(one, two, io_map=IO_MAP)
    assert op_types(merged) == [OP_TYPE, OP_TYPE]
    # Sums of integers below 2 ** 24 times a float: both orders round alike within the bound.
    np.testing.assert_allclose(answers(merged, with_op=with_op), expected(), rtol=1e-5, atol=1e-4)


def merged_with_prefixes() -> ModelProto:
    return compose.merge_models(*converted(), io_map=IO_MAP, prefix1="a_", prefix2="b_")


def test_merged_with_prefixes_is_restored(tmp_path: Path) -> None:
    merged = merged_with_prefixes()
    assert op_types(merged) == [f"a_{OP_TYPE}", f"b_{OP_TYPE}"]
    onnx.save(merged, tmp_path / "merged.onnx")
    done = onnx_ternary.convert(tmp_path / "merged.onnx", tmp_path / "restored.onnx")
    assert done.report.restored == ("a_one", "b_two")
    assert done.report.already_converted == ("a_one", "b_two")
    assert done.report.has_function_body
    assert done.report.changed
    assert any(f"'a_{OP_TYPE}'" in note for note in done.report.notes)
    assert done.verification is not None
    assert done.verification.passed
    restored = onnx.load(tmp_path / "restored.onnx")
    assert op_types(restored) == [OP_TYPE, OP_TYPE]
    assert [function.name for function in restored.functions] == [OP_TYPE]
    for with_op in (True, False):
        np.testing.assert_allclose(
            answers(restored, with_op=with_op), expected(), rtol=1e-5, atol=1e-4
        )
    again = onnx_ternary.optimize(restored, ALL).report
    assert not again.changed
    assert again.already_converted == ("a_one", "b_two")


def test_tied_embeddings_merged_with_prefixes_are_restored() -> None:
    """Both operators of a model, whose gather reads the product's index."""
    one = onnx_ternary.optimize(tied_head()).to_proto()
    prefixed = compose.add_prefix(one, "a_")
    assert op_types(prefixed) == ["a_TernaryIndexedGather", "a_TernaryIndexedMatMul"]
    result = onnx_ternary.optimize(prefixed)
    assert set(result.report.restored) == {"a_embed", "a_head"}
    restored = result.to_proto()
    assert op_types(restored) == ["TernaryIndexedGather", "TernaryIndexedMatMul"]
    assert {each.name for each in restored.functions} == set(OP_TYPES)
    assert onnx_ternary.verify(prefixed, restored).passed


def test_a_function_that_is_only_named_like_the_op_stays() -> None:
    merged = merged_with_prefixes()
    (other,) = (each for each in merged.functions if each.name.startswith("a_"))
    subtracted = next(node for node in other.node if node.op_type == "Sub")
    subtracted.op_type = "Add"
    before = answers(merged, with_op=False)
    result = onnx_ternary.optimize(merged, ALL)
    assert result.report.restored == ("b_two",)
    assert result.report.rejections == ()
    assert any("merge the originals" in note for note in result.report.notes)
    after = result.to_proto()
    assert op_types(after) == [f"a_{OP_TYPE}", OP_TYPE]
    np.testing.assert_allclose(answers(after, with_op=True), before, rtol=1e-5, atol=1e-3)
