"""Models of one `TernaryIndexedGather` node, whose index is that of a product's node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.op.body_nodes import NoBody
from onnx_ternary.op.gather import GatherVariant, make_gather_body
from onnx_ternary.schema import (
    DOMAIN,
    DOMAIN_VERSION,
    GATHER_INPUT_NAMES,
    GATHER_TYPE,
    OpAttributes,
)
from tests.support.single_node import ELEMENT_TYPES, Node

NODE_NAME = "/model/embed_tokens"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def packed_variants(K: int, N: int) -> list[OpAttributes]:
    """Every storage with every alphabet it holds, some with scale groups."""
    packed = OpAttributes(K=K, N=N)
    return [
        packed,
        replace(packed, group_size=128),
        replace(packed, block_size=16, group_size=48),
        replace(packed, alphabet="binary_pm"),
        replace(packed, alphabet="binary_01", block_size=32),
        replace(packed, storage="dense"),
        replace(packed, storage="dense", block_size=16, group_size=16),
        replace(packed, storage="dense", block_size=64, alphabet="binary_pm"),
        replace(packed, storage="1bit", alphabet="binary_pm", group_size=128),
        replace(packed, storage="1bit", alphabet="binary_pm"),
        replace(packed, storage="1bit", alphabet="binary_01", block_size=32, group_size=32),
    ]


def table(node: Node, dtype: str) -> NDArray[Any]:
    """The rows (N, K) that a node stands for, in its type."""
    scale = node.scale
    if node.attributes.group_size:
        scale = np.repeat(scale, node.attributes.group_size, axis=0)[: node.attributes.K]
    rows: NDArray[Any] = (node.levels * scale).T.astype(DTYPES[dtype])
    return rows


def make_gather_model(
    node: Node,
    *,
    dtype: str = "float32",
    index_type: int = TensorProto.INT64,
    shape: Sequence[int | str] | None = ("rows",),
    attributes: dict[str, Any] | None = None,
    drop_attribute: str | None = None,
    graph_inputs: Sequence[str] = (),
    opset: int = 17,
    body: bool = False,
) -> onnx.ModelProto:
    """indices -> node -> Y; half precision has a Cast behind it, so that Y is float32.

    Args:
        node: attributes and tensors.
        dtype: of the node's Y.
        index_type: onnx.TensorProto type of the indices.
        shape: of the indices.
        attributes: written over the node's own.
        drop_attribute: left out of the node.
        graph_inputs: constant inputs that are graph inputs too.
        opset: of ai.onnx.
        body: whether the model has the function body.
    """
    written = {**node.attributes.to_gather_dict(), **(attributes or {})}
    if drop_attribute:
        del written[drop_attribute]
    half = dtype != "float32"
    nodes = [
        helper.make_node(
            GATHER_TYPE,
            GATHER_INPUT_NAMES,
            ["Y_half" if half else "Y"],
            name=NODE_NAME,
            domain=DOMAIN,
            **written,
        )
    ]
    if half:
        nodes.append(helper.make_node("Cast", ["Y_half"], ["Y"], to=TensorProto.FLOAT))
    tensors = [
        numpy_helper.from_array(node.codes, "codes"),
        numpy_helper.from_array(node.scale, "scale"),
        helper.make_tensor("like", ELEMENT_TYPES[dtype], (), [0.0]),
    ]
    inputs = [helper.make_tensor_value_info("indices", index_type, shape)]
    inputs += [
        helper.make_tensor_value_info(each.name, each.data_type, each.dims)
        for each in tensors
        if each.name in graph_inputs
    ]
    output_shape = None if shape is None else [*shape, node.attributes.K]
    functions = []
    if body:
        variant = GatherVariant.of(node.attributes, y_dtype=ELEMENT_TYPES[dtype], opset=opset)
        function = make_gather_body([variant], opset, 8)
        assert not isinstance(function, NoBody), function.reason
        functions.append(function)
    return helper.make_model(
        helper.make_graph(
            nodes,
            "single_gather",
            inputs,
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, output_shape)],
            initializer=tensors,
        ),
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
        ],
        functions=functions,
        ir_version=8,
    )
