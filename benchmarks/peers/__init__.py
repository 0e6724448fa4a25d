"""The competitors of a ternary product, one file each; see `Peer`.

A file has ``PEERS``, a tuple: variants of one competitor (bits, options) stand together. A new file
is one more row in `all_peers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnx_ternary

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Y (M, N) float32 of X (M, K) float32."""


class UnavailableError(Exception):
    """A competitor that cannot run here: what is missing."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A ternary weight: levels (K, N) int8 and one scale per column (N,) float32."""

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]

    @classmethod
    def random(cls, K: int, N: int, seed: int = 0) -> Layer:
        """40 % zeros, the rest +1 and -1 in equal shares; scales in [0.5, 1.5)."""
        rng = np.random.default_rng(seed)
        levels = np.array([-1, -1, -1, 0, 0, 0, 0, 1, 1, 1], np.int8)[
            rng.integers(0, 10, (K, N), np.int8)
        ]
        return cls(levels, rng.uniform(0.5, 1.5, N).astype(np.float32))

    @property
    def dense(self) -> NDArray[np.float32]:
        """The weight, (K, N) float32."""
        return self.levels * self.scale


@dataclass(frozen=True, slots=True)
class Peer:
    """A competitor.

    Attributes:
        name: as results show it.
        max_error: largest difference from the float64 product, relative to the largest output,
            that is still right for it.
        quantizes: whether it rounds activations to 8 bits.
        prepare: makes a layer ready for so many threads, in so many copies that share no memory;
            raises `UnavailableError`.
        model: the serialized ONNX model of a layer, where there is one.
        weight_bytes: what a product of one row reads of the weight of a layer, about.
    """

    name: str
    max_error: float
    quantizes: bool
    prepare: Callable[[Layer, int, int], list[Run]]
    weight_bytes: Callable[[Layer], int]
    model: Callable[[Layer], bytes] | None = None


def bits_of(bits: float) -> Callable[[Layer], int]:
    """Bytes of a layer of so many bits per weight."""
    return lambda layer: int(layer.levels.size * bits / 8)


_shared_threads: list[int] = []


def share_threads(threads: int) -> None:
    """Give all sessions of this process one pool of so many threads; before the first session.

    With a pool each, the threads of one candidate still spin while the next is timed.
    """
    if hasattr(ort, "set_global_thread_pool_sizes"):
        ort.set_global_thread_pool_sizes(threads, 1)
        _shared_threads.append(threads)


def onnx_peer(
    name: str,
    model: Callable[[Layer], bytes],
    *,
    max_error: float,
    quantizes: bool,
    bits: float,
    config: Mapping[str, str] | None = None,
) -> Peer:
    """A competitor that is an ONNX model, with session configuration entries."""

    def prepare(layer: Layer, threads: int, copies: int) -> list[Run]:
        options = ort.SessionOptions()
        if threads in _shared_threads:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        serialized = model(layer)

        def one() -> Run:
            session = onnx_ternary.InferenceSession(serialized, options)
            return lambda x: np.asarray(session.run(None, {"X": x})[0])

        return [one() for _ in range(copies)]

    return Peer(name, max_error, quantizes, prepare, bits_of(bits), model)


def serialize(
    nodes: list[NodeProto],
    layer: Layer,
    constants: Mapping[str, NDArray[np.generic]],
    *,
    opset: int = 17,
    ir_version: int = 8,
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
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("onnx_ternary", 1),
    ]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return bytes(proto.SerializeToString())


def all_peers() -> tuple[Peer, ...]:
    """Every competitor, onnxruntime's own first, ours last."""
    files = (
        "matmul_float32",
        "matmul_nbits",
        "dynamic_quantize_matmul",
        "matmul_integer",
        "dequantize_int2",
        "onnxsim_ternary",
        "numpy_float32",
        "torch_float32",
        "ggml",
        "onnx_ternary_op",
    )
    return tuple(peer for file in files for peer in import_module(f"peers.{file}").PEERS)
