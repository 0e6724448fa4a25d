"""Nodes that run without a session, and the kernels every processor has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.native import layer
from tests.support.single_node import Node, attribute_variants

VARIANTS = attribute_variants(100, 13)
SCALAR_KERNELS = [
    "packed_reference_float_scalar",
    "packed_reference_int8_scalar",
    "rsr_reference_float_scalar",
    "rsr_reference_int8_scalar",
    "rsr_gemv_float_scalar",
    "rsr_gemv_int8_scalar",
]


def run(node: Node, x: NDArray[np.float32], **options: Any) -> tuple[NDArray[np.float32], str]:
    codes, aux, scale, bias = node.tensors
    return layer.run(node.attributes, codes, aux, scale, bias, x, **options)
