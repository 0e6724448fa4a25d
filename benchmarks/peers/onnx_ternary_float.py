"""TernaryIndexedMatMul, packed, float32-accurate."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_ternary.index import build_index
from onnx_ternary.schema import OpAttributes
from onnx_ternary.ternary import TernaryWeight
from peers import Layer, serialise

NAME = "onnx-ternary float"
MAX_ERROR = 1e-5


def model(layer: Layer) -> bytes:
    """The op with float activations."""
    return with_attributes(layer)


def with_attributes(layer: Layer, **changes: object) -> bytes:
    """The op with some attributes changed."""
    weight = TernaryWeight(layer.levels, layer.scale, 0, "ternary", 0.0)
    index = build_index(weight)
    attributes = OpAttributes(**{**index.attributes.to_dict(), **changes})
    constants = {
        "codes": index.codes,
        "aux": index.aux,
        "scale": index.scale,
        "bias": np.zeros((), np.float32),
    }
    node = helper.make_node(
        "TernaryIndexedMatMul",
        ["X", *constants],
        ["Y"],
        domain="onnx_ternary",
        **attributes.to_dict(),
    )
    return serialise([node], layer, constants)
