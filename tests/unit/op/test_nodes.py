"""Digests of the index tensors, as docs/index_format.md section 5 says."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir
import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import IndexFormatError
from onnx_ternary.op.nodes import DIGEST_KEY, check_indices, index_digest, op_nodes
from onnx_ternary.options import OptimizeOptions


@pytest.fixture
def model() -> ir.Model:
    weight = np.random.default_rng(0).integers(-1, 2, (130, 9)).astype(np.float32)
    x = ir.Value(name="x", shape=ir.Shape(["rows", 130]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w], name="product")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["rows", 9])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g"
    )
    return optimize(ir.Model(graph, ir_version=8), OptimizeOptions(min_elements=0)).model


def test_digest_is_what_the_format_says(model: ir.Model) -> None:
    (node,) = op_nodes(model)
    digest = hashlib.sha256()
    for value in node.inputs[1:]:
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy()
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    assert index_digest(node) == digest.hexdigest() == node.metadata_props[DIGEST_KEY]
    assert check_indices(model) == ("product",)


def test_check_names_a_changed_scale(model: ir.Model) -> None:
    (node,) = op_nodes(model)
    scale = node.inputs[3]
    assert scale is not None
    assert scale.const_value is not None
    doubled = scale.const_value.numpy() * np.float32(2)
    scale.const_value = ir.tensor(np.asarray(doubled), name=scale.name)
    with pytest.raises(IndexFormatError, match=r"'product'.*digest differs"):
        check_indices(model)
