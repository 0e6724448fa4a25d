"""The decoder in numpy, straight from the checkpoint: what a built model is compared with.

Float64 throughout, one matrix in memory at a time. Nothing here looks at the built model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.config import DecoderConfig, Pooling
from onnx_ternary.building.layouts import read_matrix
from onnx_ternary.building.source import Source
from onnx_ternary.building.weights import HEAD, NORM, TABLE, input_norm, layer_gains, layer_products
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.options import INT8_RULE

Array: TypeAlias = NDArray[np.float64]
Rounding = Literal["none", "float16", "int8"]
_COLUMNS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Reference:
    """A forward pass over the first layers of a checkpoint.

    Attributes:
        checkpoint: where the weights are.
        config: of the decoder.
        layers: how many of the first layers.
        rounding: what happens to the input of every ternary product.
    """

    checkpoint: Source
    config: DecoderConfig
    layers: int
    rounding: Callable[[str], Rounding]

    def hidden(self, tokens: NDArray[np.int64]) -> Array:
        """What goes into the head, (length, hidden), of one sequence (length,)."""
        residual = np.stack(
            [self.checkpoint.read(TABLE, int(each), int(each) + 1)[0] for each in tokens]
        ).astype(np.float64)
        for layer in range(self.layers):
            x = self._norm(residual, f"model.layers.{layer}.input_layernorm.weight")
            residual = residual + self._attention(x, layer)
            x = self._norm(residual, f"model.layers.{layer}.post_attention_layernorm.weight")
            residual = residual + self._feed_forward(x, layer)
        return self._norm(residual, NORM)

    def _norm(self, x: Array, gain: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        weight = self.checkpoint.read(gain).astype(np.float64)
        normed: Array = x / np.sqrt(mean_square + self.config.epsilon) * weight
        return normed

    def _product(self, x: Array, name: str) -> Array:
        if self.config.input_norms:
            x = self._norm(x, input_norm(name))
        found = read_matrix(self.checkpoint, name, self.config.quantization)
        rounded = round_rows(x, self.rounding(name))
        if not isinstance(found, TernaryWeight):
            plain: Array = x @ self.checkpoint.read(name).astype(np.float64).T
            return plain
        columns = [
            rounded @ dense_columns(found, slice(start, start + _COLUMNS_AT_ONCE))
            for start in range(0, found.levels.shape[1], _COLUMNS_AT_ONCE)
        ]
        return np.concatenate(columns, axis=-1)

    def _attention(self, x: Array, layer: int) -> Array:
        config = self.config
        prefix = f"model.layers.{layer}.self_attn"
        q, k, v, o = (
            name for name in layer_products(config, layer) if name.startswith(f"{prefix}.")
        )
        query, key, value = (
            self._product(x, name).reshape(len(x), -1, config.head_dim) for name in (q, k, v)
        )
        if config.head_norms:
            query = self._norm(query, f"{prefix}.q_norm.weight")
            key = self._norm(key, f"{prefix}.k_norm.weight")
        query, key = self._rotated(query), self._rotated(key)
        key, value = (np.repeat(each, config.heads // config.kv_heads, 1) for each in (key, value))
        scores = np.einsum("ihd,jhd->hij", query, key) / np.sqrt(config.head_dim)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", weights, value).reshape(len(x), -1)
        if (gain := f"{prefix}.attn_sub_norm.weight") in layer_gains(config, layer):
            mixed = self._norm(mixed, gain)
        return self._product(mixed, o)

    def _rotated(self, x: Array) -> Array:
        """Rotate the halves of every head against each other by its position's angles."""
        tables = self.config.rope.tables(self.config.head_dim, len(x))
        cosines, sines = (each.astype(np.float64)[:, None, :] for each in tables)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate(
            [first * cosines - second * sines, second * cosines + first * sines], axis=-1
        )

    def _feed_forward(self, x: Array, layer: int) -> Array:
        prefix = f"model.layers.{layer}.mlp"
        gate = self._product(x, f"{prefix}.gate_proj.weight")
        up = self._product(x, f"{prefix}.up_proj.weight")
        if self.config.gate == "relu2":
            y = np.maximum(gate, 0) ** 2 * up
        else:
            y = gate / (1 + np.exp(-gate)) * up
        if self.config.sub_norms:
            y = self._norm(y, f"{prefix}.ffn_sub_norm.weight")
        return self._product(y, f"{prefix}.down_proj.weight")

    def logits(self, hidden: Array) -> Iterator[Array]:
        """The head's product with (length, hidden), some columns at a time."""
        for rows in self.checkpoint.rows(TABLE if self.config.tied else HEAD):
            yield hidden @ rows.astype(np.float64).T


def pooled(hidden: Array, pooling: Pooling) -> Array:
    """The embedding (hidden,) of one text's hidden states (length, hidden)."""
    found: Array = hidden[-1] if pooling.mode == "last" else hidden.mean(axis=0)
    return found / np.linalg.norm(found) if pooling.normalize else found


def round_rows(x: Array, rounding: Rounding) -> Array:
    """Rows as a product sees them: as they are, in float16's 11 bits, or in int8's 8."""
    if rounding == "none":
        return x
    if rounding == "float16":
        mantissa, exponent = np.frexp(x)
        halved: Array = np.ldexp(np.rint(mantissa * 2.0**11) * 2.0**-11, exponent)
        return halved
    epsilon, highest = INT8_RULE["activation_epsilon"], INT8_RULE["activation_qmax"]
    scale = highest / np.maximum(np.abs(x).max(axis=-1, keepdims=True), epsilon)
    rounded: Array = np.clip(np.rint(x * scale), INT8_RULE["activation_qmin"], highest) / scale
    return rounded


def dense_columns(weight: TernaryWeight, columns: slice) -> Array:
    """Some columns of levels * scale, (K, columns)."""
    scale: NDArray[Any] = weight.scale.astype(np.float64)
    if weight.group_size:
        scale = np.repeat(scale[:, columns], weight.group_size, axis=0)[: weight.levels.shape[0]]
    elif scale.ndim:
        scale = scale[columns]
    dense: Array = weight.levels[:, columns] * scale
    return dense
