"""One node for the kernel tests: what it stands for, and how far a kernel may be off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.native import kernels, layer, packers
from onnx_ternary.schema import OpAttributes

U = 2.0**-24
LIST = kernels.list_kernels()
BUILT = LIST["kernels"]
SUPPORTED = [kernel for kernel in BUILT if kernel["supported"]]
BY_NAME = {kernel["name"]: kernel for kernel in BUILT}


@dataclass(frozen=True)
class Node:
    """One node with what it stands for."""

    attributes: OpAttributes
    levels: NDArray[np.int8]  # (K, N)
    codes: NDArray[Any]
    aux: NDArray[np.uint32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def run(
        self, x: NDArray[np.float32], kernel: str | None, num_parts: int = 1
    ) -> tuple[NDArray[np.float32], str]:
        return layer.run(
            self.attributes,
            self.codes,
            self.aux,
            self.scale,
            self.bias,
            x,
            kernel=kernel,
            num_parts=num_parts,
        )

    def row_scales(self) -> NDArray[np.float64]:
        """Scale of every weight, (K, N)."""
        scale = self.scale.astype(np.float64)
        if scale.ndim == 2:
            return np.repeat(scale, self.attributes.group_size, axis=0)[: self.attributes.K]
        return np.broadcast_to(scale, self.levels.shape)

    def bound(self, x: NDArray[np.float32], kernel: str) -> NDArray[np.float64]:
        """The bound of docs/op_spec.md on a float kernel's error, (M, N)."""
        weights = self.levels * self.row_scales()
        bias = np.abs(self.bias.astype(np.float64))
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(weights) + bias
        attributes = self.attributes
        depth = layer.addition_depth(
            attributes, self.codes, self.aux, self.scale, self.bias, kernel
        )
        # Padding adds zeros, which does not round.
        steps = min(depth, attributes.K) + attributes.num_groups + 3
        bound = steps * U / (1 - steps * U) * magnitude + magnitude * U
        if BY_NAME[kernel]["fixed_point"]:
            absmax = np.max(np.abs(x), axis=1, keepdims=True).astype(np.float64)
            bound += np.abs(weights).sum(axis=0) * absmax * 2.0**-22.99
        return bound + 2.0**-149 * (attributes.K + 1)


def make_node(
    rng: np.random.Generator,
    index_format: str,
    activation: str,
    K: int,
    N: int,
    *,
    alphabet: str = "ternary",
    storage: str | None = None,
    block_size: int = 128,
    block_width: int = 4,
    algorithm: str = "rsr++",
    scale_kind: str = "column",
    num_group_blocks: int = 1,
    with_bias: bool = True,
    rule: str = "absmax_division",
    levels: NDArray[np.int8] | None = None,
) -> Node:
    choices = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}[alphabet]
    if levels is None:
        levels = rng.choice(np.array(choices, np.int8), (K, N))
    packed = index_format == "packed"
    group_size = (block_size if packed else 24) * num_group_blocks if scale_kind == "group" else 0
    integer = activation == "int8"
    attributes = OpAttributes(
        K=K,
        N=N,
        index_format=index_format,  # type: ignore[arg-type]  # drawn from the schema's values
        storage=storage or ("2bit" if packed else "planes"),  # type: ignore[arg-type]
        alphabet=alphabet,  # type: ignore[arg-type]
        block_size=block_size if packed else 0,
        block_width=0 if packed else block_width,
        algorithm="auto" if packed else algorithm,  # type: ignore[arg-type]
        group_size=group_size,
        activation=activation,  # type: ignore[arg-type]
        activation_rule=rule if integer else "none",  # type: ignore[arg-type]
        activation_epsilon=1e-5 if integer else 0.0,
        activation_qmin=-128 if integer else 0,
        activation_qmax=127 if integer else 0,
    )
    if packed:
        codes: NDArray[Any] = packers.pack(
            levels, storage=attributes.storage, alphabet=attributes.alphabet, block_size=block_size
        )
        aux = np.zeros(1, np.uint32)
    else:
        codes, aux = packers.pack_rsr(
            levels,
            storage=attributes.storage,
            alphabet=attributes.alphabet,
            block_width=block_width,
            group_size=group_size,
        )
    shape: tuple[int, ...] = {"tensor": (), "column": (N,)}.get(
        scale_kind, (attributes.num_groups, N)
    )
    scale = rng.uniform(0.01, 2.0, shape).astype(np.float32)
    bias = rng.normal(size=N).astype(np.float32) if with_bias else np.zeros((), np.float32)
    return Node(attributes, levels, codes, aux, np.asarray(scale, np.float32), bias)


def quantized(node: Node, x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """q (M, K) and s (M, 1) of the int8 rule."""
    attributes = node.attributes
    absmax = np.maximum(np.max(np.abs(x), axis=1), np.float32(attributes.activation_epsilon))
    qmax = np.float32(attributes.activation_qmax)
    if attributes.activation_rule == "absmax_division":
        s = qmax / absmax
    else:
        s = (np.float32(1) / absmax) * qmax
    rounded = np.rint(x * s[:, None])
    q = np.clip(rounded, attributes.activation_qmin, attributes.activation_qmax)
    return q.astype(np.int64), s[:, None].astype(np.float32)


def check_int8(node: Node, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    """Exact sums, then the operations docs/op_spec.md names in float32: the same bits.

    With scales per group kernels add weighted integers of groups, or of lanes of them, in float32
    or better, in any order.
    """
    q, s = quantized(node, x)
    levels = node.levels.astype(np.int64)
    if node.scale.ndim < 2:
        with np.errstate(over="ignore"):
            expected = (q @ levels).astype(np.float32) / s * node.scale + node.bias
        np.testing.assert_array_equal(y, expected)
        return
    size = node.attributes.group_size
    exact = np.zeros((x.shape[0], node.attributes.N)) + node.bias
    magnitude = np.abs(exact)
    for group, scale in enumerate(node.scale.astype(np.float64)):
        part = slice(group * size, (group + 1) * size)
        exact += (q[:, part] @ levels[part]) * scale / s
        magnitude += (np.abs(q[:, part]) @ np.abs(levels[part])) * scale / s
    steps = -(-node.attributes.K // 128) + node.attributes.num_groups + 5
    within = np.abs(y - exact) <= steps * U / (1 - steps * U) * magnitude + 2.0**-149
    # Terms that leave float32's range may meet as infinities.
    assert within[magnitude <= np.finfo(np.float32).max].all()
