"""TernaryIndexedMatMul: float32-accurate, and with int8 activations (BitNet W1.58A8)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from onnx import helper

from onnx_ternary.index import build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.options import INT8_RULE
from onnx_ternary.schema import Alphabet, Storage
from peers import Layer, onnx_peer, serialize

FLOAT, INT8 = "onnx-ternary float", "onnx-ternary int8"


def model(
    layer: Layer,
    *,
    int8: bool = False,
    storage: Storage = "2bit",
    alphabet: Alphabet = "ternary",
    group_size: int = 0,
) -> bytes:
    """The op in its default format, packed; scales (K / group_size, N) with groups."""
    weight = TernaryWeight(layer.levels, layer.scale, group_size, alphabet, 0.0)
    index = build_index(weight, storage=storage)
    attributes = replace(index.attributes, **INT8_RULE) if int8 else index.attributes
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
    return serialize([node], layer, constants)


PEERS = (
    onnx_peer(FLOAT, model, max_error=1e-5, quantizes=False, bits=2),
    onnx_peer(INT8, partial(model, int8=True), max_error=2e-2, quantizes=True, bits=2),
)
