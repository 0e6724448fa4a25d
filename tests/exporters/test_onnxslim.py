"""onnxslim on a converted model: it runs with and without the library, with the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.schema import OP_TYPE
from tests.support.two_products import two_products

onnxslim: Any = pytest.importorskip(
    "onnxslim", reason="onnxslim is not installed; pip install '.[exporters]' does it"
)


@pytest.mark.parametrize("activation", ["keep", "int8"])
def test_converted_model_behind_onnxslim(activation: Any) -> None:
    options = OptimizeOptions(activation=activation, min_elements=0)
    converted = onnx_ternary.optimize(two_products(), options).to_proto()
    slim: onnx.ModelProto = onnxslim.slim(converted)
    assert OP_TYPE in [node.op_type for node in slim.graph.node]
    plain = ort.InferenceSession(slim.SerializeToString(), providers=["CPUExecutionProvider"])
    x = plain.get_inputs()[0]
    shape = [size if isinstance(size, int) else 3 for size in x.shape]
    feeds = {x.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    before = ort.InferenceSession(
        converted.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, feeds)
    np.testing.assert_array_equal(plain.run(None, feeds)[0], before[0])
    with_op = onnx_ternary.InferenceSession(slim.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(with_op[0], before[0], rtol=1e-4, atol=1e-4)
