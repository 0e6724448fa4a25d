"""The competitors of a ternary product, one file each; see `PEERS`.

A peer has a ``NAME``, a ``MAX_ERROR`` (largest difference relative to the largest output that is
still right for it) and ``model(layer)``, the serialised ONNX model of ``Y = X @ W``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True, slots=True)
class Layer:
    """A ternary weight: levels (K, N) int8 and one scale a column (N,) float32."""

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]

    @classmethod
    def random(cls, K: int, N: int, seed: int = 0) -> Layer:
        """40 % zeros, the rest +1 and -1 in equal shares; scales in [0.5, 1.5)."""
        rng = np.random.default_rng(seed)
        levels = rng.choice(np.array([-1, 0, 1], np.int8), (K, N), p=[0.3, 0.4, 0.3])
        return cls(levels, rng.uniform(0.5, 1.5, N).astype(np.float32))


class Peer(Protocol):
    """What a module in this folder offers."""

    NAME: str
    MAX_ERROR: float

    def model(self, layer: Layer) -> bytes:
        """The serialised model; inputs X (M, K) float32, outputs Y (M, N) float32."""
        ...


def serialise(
    nodes: list[NodeProto], layer: Layer, constants: dict[str, NDArray[np.generic]]
) -> bytes:
    """A model of these nodes with input X, output Y and the constants as initializers."""
    K, N = layer.levels.shape
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["M", K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("onnx_ternary", 1),
    ]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(proto.SerializeToString())
