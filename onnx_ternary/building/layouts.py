"""How checkpoints store ternary matrices, and their levels and scales.

1. uint8, four levels per byte, of ``quant_method: bitnet``: row r of quarter i of the N rows is in
   bits 2i and 2i + 1 of byte row r, as level + 1. A tensor NAME_scale stands beside it; BitLinear
   divides its result by the scale, AutoBitLinear multiplies.
2. Float masters of AutoBitLinear in mode ``online``: s = max(mean |w|, 1e-5), levels
   round(w / s) clipped to -1..1, scale s.
3. Float16, bfloat16 or float32 that are ternary or binary as they are: one magnitude for the
   matrix, per row of the stored (N, K) matrix, or per row and group of inputs. Nothing is rounded.

Source of 1 and 2: transformers/integrations/bitnet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.config import Quantization
from onnx_ternary.building.source import Source
from onnx_ternary.errors import ModelError
from onnx_ternary.index.levels import NotTernary, TernaryWeight, alphabet_of, ternarize

_SMALLEST_MEAN = np.float32(1e-5)
_PROBED_ROWS = 64


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A matrix that is not ternary, and why."""

    reason: str


def read_matrix(
    checkpoint: Source, name: str, quantization: Quantization | None
) -> TernaryWeight | FloatMatrix:
    """Levels and scales of a weight.

    Args:
        checkpoint: where it is.
        name: of a tensor (N, K), or (N / 4, K) where it is packed.
        quantization: of the checkpoint.

    Raises:
        ModelError: if there is no such tensor, or it breaks its layout.
    """
    quantized = quantization if quantization and quantization.applies_to(name) else None
    if checkpoint.dtype(name) == np.uint8:
        return _packed(checkpoint, name, quantized)
    if quantized and quantized.mode == "online" and quantized.linear_class == "autobitlinear":
        return _rounded_by_mean(checkpoint.read(name), name)
    # Most float matrices show it in a few rows and need not be read.
    for rows in (_PROBED_ROWS, None):
        found = ternarize(checkpoint.read(name, 0, rows).T)
        if isinstance(found, NotTernary):
            return FloatMatrix(found.reason)
    assert isinstance(found, TernaryWeight)
    if not found.levels.any():
        return FloatMatrix("is all zeros")
    return found


def unpack_levels(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Levels (K, N) of layout 1; the unused code 3 becomes 2."""
    # Turned while there are four levels per byte: it is what takes longest.
    turned = np.ascontiguousarray(packed.T)
    quarters = [((turned >> np.uint8(2 * i)) & np.uint8(3)).view(np.int8) for i in range(4)]
    levels: NDArray[np.int8] = np.concatenate(quarters, axis=1)
    levels -= 1
    return levels


def _packed(checkpoint: Source, name: str, quantized: Quantization | None) -> TernaryWeight:
    if quantized is None:
        raise ModelError(
            f"Tensor '{name}' is packed uint8, but quantization_config in config.json does not say "
            "quant_method bitnet, or leaves this module out."
        )
    packed = checkpoint.read(name)
    if packed.ndim != 2:
        raise ModelError(f"Tensor '{name}' has shape {packed.shape}, expected (N / 4, K).")
    levels = unpack_levels(packed)
    if levels.max() > 1:
        raise ModelError(
            f"Tensor '{name}' holds the code 3, which no level has; the file is damaged or packed "
            "another way."
        )
    scale = _stored_scale(checkpoint, f"{name}_scale", levels.shape[1])
    if quantized.linear_class == "bitlinear":
        scale = np.float32(1) / scale
    return TernaryWeight(levels, scale, 0, alphabet_of(levels), 0.0)


def _stored_scale(checkpoint: Source, name: str, num_columns: int) -> NDArray[np.float32]:
    """One scale, (), or one per column, (N,)."""
    scale = checkpoint.read(name).astype(np.float32).reshape(-1)
    if scale.size not in (1, num_columns):
        raise ModelError(f"Tensor '{name}' has {scale.size} scales, expected 1 or {num_columns}.")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(f"Tensor '{name}' holds a scale that is not finite and positive.")
    return scale.reshape(()) if scale.size == 1 else scale


def _rounded_by_mean(masters: NDArray[Any], name: str) -> TernaryWeight:
    if masters.ndim != 2:
        raise ModelError(f"Tensor '{name}' has shape {masters.shape}, expected (N, K).")
    values = masters.astype(np.float32, copy=False)
    mean = np.float32(np.abs(values).mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise ModelError(f"Tensor '{name}' holds a weight that is not finite.")
    scale = np.maximum(mean, _SMALLEST_MEAN)
    relative = values * (np.float32(1) / scale)
    levels = np.clip(np.rint(relative), -1, 1).astype(np.int8)
    change = float(np.abs(relative - levels).max())
    levels = np.ascontiguousarray(levels.T)
    return TernaryWeight(levels, np.asarray(scale), 0, alphabet_of(levels), change)
