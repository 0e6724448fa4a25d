"""Initializers that a tool before us left unread are gone after a conversion."""

from __future__ import annotations

import numpy as np
import onnx

import onnx_ternary
from tests.catalogue.case import column_scales, matmul, model, ternary

DEAD = "left_behind"


def with_dead_initializer(*, annotated: bool = False) -> onnx.ModelProto:
    tensors = {"w": ternary(128, 64, scale=column_scales(64)), DEAD: np.zeros(1000, np.float32)}
    proto = model([matmul("x", "w", "y", "product")], tensors, x_shape=("batch", 128))
    if annotated:
        entry = onnx.StringStringEntryProto(key="SCALE_TENSOR", value=DEAD)
        proto.graph.quantization_annotation.add(
            tensor_name="x", quant_parameter_tensor_names=[entry]
        )
    return proto


def names(proto: onnx.ModelProto) -> set[str]:
    return {initializer.name for initializer in proto.graph.initializer}


def test_unread_initializer_is_removed_and_named() -> None:
    result = onnx_ternary.optimize(with_dead_initializer())
    assert DEAD not in names(result.to_proto())
    assert any(DEAD in note and "4,000 bytes" in note for note in result.report.notes)


def test_initializer_an_annotation_names_stays() -> None:
    assert DEAD in names(onnx_ternary.optimize(with_dead_initializer(annotated=True)).to_proto())


def test_initializer_a_subgraph_reads_stays() -> None:
    proto = with_dead_initializer()
    branches = {
        name: onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", [DEAD], [f"{name}_out"])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, [1000])],
        )
        for name in ("then_branch", "else_branch")
    }
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "which"))
    proto.graph.node.append(onnx.helper.make_node("If", ["which"], ["z"], **branches))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1000])
    )
    assert DEAD in names(onnx_ternary.optimize(proto).to_proto())
