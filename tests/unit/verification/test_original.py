"""The original as verification runs it: the same numbers, with products that can be looked at."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.original import (
    original_product,
    product_piece,
    with_float_sums,
    with_separate_activations,
    with_unsigned_weights,
)
from onnx_ternary.verification.places import Place, Scope

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


def loaded(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.generic]],
    x: tuple[int, list[int]] = (TensorProto.FLOAT, [2, 4]),
    y: int = TensorProto.FLOAT,
) -> LoadedModel:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    return LoadedModel.load(proto, "original", ())


def answer(model: LoadedModel, x: NDArray[np.generic]) -> NDArray[np.generic]:
    session = model.session(model.proto, optimized=False, with_op=False)
    return model.run_session(session, {"x": x}, ["y"])["y"]


def test_unsigned_weights_give_the_same_integers() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (4, 3)).astype(np.int8)
    zero = np.array(-3, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w", "", "zero"], ["y"])
    shape = (TensorProto.UINT8, [2, 4])
    model = loaded([node], {"w": weight, "zero": zero}, shape, TensorProto.INT32)
    x = rng.integers(0, 256, (2, 4)).astype(np.uint8)
    changed = with_unsigned_weights(model)
    (read,) = (each for each in changed.proto.graph.node if each.op_type == "MatMulInteger")
    types = {each.name: each.data_type for each in changed.proto.graph.initializer}
    assert types[read.input[1]] == TensorProto.UINT8
    expected = x.astype(np.int32) @ (weight.astype(np.int32) + 3)
    assert np.array_equal(answer(changed, x), expected)


def test_small_signed_weights_stay() -> None:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = loaded([node], {"w": np.ones((4, 3), np.int8)}, (TensorProto.UINT8, [2, 4]))
    assert with_unsigned_weights(model) is model


@pytest.mark.parametrize(
    ("activation", "attributes"), [("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.25})]
)
def test_a_fused_gemm_is_a_gemm_and_its_activation(
    activation: str, attributes: dict[str, float]
) -> None:
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
    }
    node = helper.make_node(
        "FusedGemm",
        ["x", "w", "b"],
        ["y"],
        domain="com.microsoft",
        transB=1,
        activation=activation,
        **attributes,
    )
    model = loaded([node], weights)
    separate = with_separate_activations(model)
    assert [each.op_type for each in separate.proto.graph.node] == ["Gemm", activation]
    x = rng.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(answer(separate, x), answer(model, x), rtol=1e-6, atol=1e-6)


def test_a_model_without_fused_gemm_is_not_copied() -> None:
    model = loaded([helper.make_node("Relu", ["x"], ["y"])], {})
    assert with_separate_activations(model) is model


def test_sums_of_blocks_are_asked_for_in_float() -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", accuracy_level=4
    )
    model = loaded([node], {})
    changed, count = with_float_sums(model)
    assert count == 1
    levels = [model.proto.graph.node[0].attribute[0].i, changed.proto.graph.node[0].attribute[0].i]
    assert levels == [4, 1]
    assert with_float_sums(changed) == (changed, 0)


def test_a_product_is_taken_out_with_what_makes_its_weight() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Mul", ["levels", "scale"], ["w"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    weights = {"levels": np.ones((4, 3), np.float32), "scale": np.array(0.5, np.float32)}
    graph = loaded(nodes, weights).proto.graph
    piece = product_piece(Scope(graph, graph), Place("h", "y"), np.ones((2, 4), np.float32))
    assert piece is not None
    assert [node.op_type for node in piece.nodes] == ["Mul", "MatMul"]
    assert sorted(tensor.name for tensor in piece.constants) == ["levels", "scale"]
    assert list(piece.feeds) == ["h"]


def test_a_weight_that_depends_on_another_input_does_not_stand_alone() -> None:
    nodes = [
        helper.make_node("Mul", ["levels", "x"], ["w"]),
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    graph = loaded(nodes, {"levels": np.ones((4, 4), np.float32)}).proto.graph
    assert original_product(Scope(graph, graph), Place("h", "y")) is None
