"""What `TernaryIndexedMatMul` computes, executable in numpy.

The op's documentation is docs/op_spec.md, the layouts are those of docs/index_format.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.index import decode_index, rsr, validate_index
from onnx_ternary.op.activations import quantize_rows, quantize_tensor
from onnx_ternary.op.bounds import float64_columns, require_rounding, spread_scales
from onnx_ternary.schema import Algorithm, OpAttributes


def ternary_indexed_matmul(
    x: NDArray[Any],
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    attributes: OpAttributes,
) -> NDArray[Any]:
    """``Y = X @ W + bias`` from the index, as docs/op_spec.md says.

    `packed` decodes the levels and multiplies. `rsr` executes arXiv 2411.06360: `_segmented_sums`
    and `_block_product` hold the paper's names. The float path computes in float64 and rounds once;
    the int8 and uint8 paths are exact in integers and round each float32 operation in the order
    written.

    Args:
        x: (..., K) float32, float16 or bfloat16, rank at least 1.
        codes: index tensor, docs/index_format.md section 1.
        aux: index tensor.
        scale: (), (N,) or (num_groups, N).
        bias: (N,) or a scalar zero.
        attributes: of the node.

    Returns:
        (..., N) in x's dtype.

    Raises:
        IndexFormatError: if the constant inputs are not valid.
        ValueError: if x has another dtype or does not end in K.
    """
    require_rounding(x.dtype)
    if x.ndim == 0 or x.shape[-1] != attributes.K:
        raise ValueError(f"x has shape {x.shape}, expected (..., {attributes.K})")
    validate_index(attributes, codes, aux, scale, bias)
    rows = x.reshape(-1, attributes.K).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if attributes.activation == "int8":
            quantized, row_scale = quantize_rows(rows, attributes)
            sums = _level_sums(quantized.astype(np.int64), codes, aux, attributes)
            group_scale = scale[:, None, :] if attributes.group_size else scale
            terms = sums.astype(np.float32) / row_scale[:, None] * group_scale
            y32 = terms[0]
            for term in terms[1:]:
                y32 = y32 + term
            y: NDArray[Any] = y32 + bias
        elif attributes.activation == "uint8":
            centred, x_scale = quantize_tensor(rows)
            sums = _level_sums(centred, codes, aux, attributes)[0]
            y = sums.astype(np.float32) * (x_scale * scale) + bias
        else:
            y = _float_product(rows, codes, aux, scale, attributes) + bias
        return y.astype(x.dtype).reshape(*x.shape[:-1], attributes.N)


def _float_product(
    rows: NDArray[np.float32],
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    attributes: OpAttributes,
) -> NDArray[np.float64]:
    finite: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    ordinary = np.where(finite[:, None], rows, 0).astype(np.float64)
    sums = _level_sums(ordinary, codes, aux, attributes)
    scales = spread_scales(scale, (attributes.K, attributes.N))
    y: NDArray[np.float64] = np.sum(sums * scales[:, None, :], axis=0)
    if not finite.all():
        # As MatMul: every weight takes part, so that 0 * inf gives NaN. Segmented sums leave the
        # weights of level 0 out, and matrix libraries may.
        levels = decode_index(attributes, codes, aux)
        group = np.arange(attributes.K) // (attributes.group_size or attributes.K)
        weights = levels * spread_scales(scale, levels.shape)[group]
        y[~finite] = np.einsum("mk,kn->mn", rows[~finite].astype(np.float64), weights)
    return y


def _level_sums(
    values: NDArray[Any], codes: NDArray[Any], aux: NDArray[np.uint32], attributes: OpAttributes
) -> NDArray[Any]:
    """Sums of level * value, (num_groups, M, N), of values (M, K) float64 or int64."""
    K, N = attributes.K, attributes.N
    group_rows = attributes.group_size or K
    groups = [slice(start, start + group_rows) for start in range(0, K, group_rows)]
    if attributes.index_format == "packed":
        # Sums of quantized products stay below 2^31, so they are exact in float64 too.
        levels = decode_index(attributes, codes, aux)
        real = values.astype(np.float64)
        sums = np.empty((len(groups), values.shape[0], N))
        for g, rows in enumerate(groups):
            for columns, part in float64_columns(levels[rows]):
                sums[g, :, columns] = real[:, rows] @ part
        return sums.astype(values.dtype)
    blocks = [
        np.stack(
            [
                _block(values, codes[:, block], aux[:, block, g], rows, attributes)
                for g, rows in enumerate(groups)
            ]
        )
        for block in range(codes.shape[1])
    ]
    return np.concatenate(blocks, axis=-1)[..., :N]


def _block(
    values: NDArray[Any],
    permutations: NDArray[Any],
    offsets: NDArray[np.uint32],
    rows: slice,
    attributes: OpAttributes,
) -> NDArray[Any]:
    """One column block and group: (M, block_width) from permutations (num_planes, K)."""
    products = [
        _block_product(
            _segmented_sums(values, permutation[rows], segmentation.astype(np.int64)),
            rsr.base(attributes.storage),
            attributes.block_width,
            attributes.algorithm,
        )
        for permutation, segmentation in zip(permutations, offsets, strict=True)
    ]
    result: NDArray[Any] = products[0]
    if attributes.storage == "planes" and attributes.alphabet == "ternary":
        result = products[0] - products[1]
    elif attributes.alphabet == "binary_pm":
        # level = 2 digit - 1
        result = 2 * products[0] - values[:, rows].sum(axis=1, keepdims=True)
    return result


def _segmented_sums(
    v: NDArray[Any], sigma: NDArray[Any], segmentation: NDArray[np.int64]
) -> NDArray[Any]:
    """The paper's segmented sum SS_{L, sigma}(v), definition 4.1, of each row of v.

    Args:
        v: (M, K) activations.
        sigma: the binary row order of a column block: the rows, sorted by pattern.
        segmentation: the full segmentation L, (num_patterns + 1,): pattern p owns the entries
            L[p] to L[p + 1] of sigma.

    Returns:
        u (M, num_patterns), u[:, p] the sum of the activations whose rows have pattern p.
    """
    ordered = v[:, sigma]
    starts = segmentation[:-1] - segmentation[0]
    filled = segmentation[1:] > segmentation[:-1]
    u = np.zeros((v.shape[0], starts.size), v.dtype)
    if v.shape[0]:
        u[:, filled] = np.add.reduceat(ordered, starts[filled], axis=1)
    return u


def _block_product(
    u: NDArray[Any], base: int, block_width: int, algorithm: Algorithm
) -> NDArray[Any]:
    """The product of the segmented sums u with the patterns, (M, block_width).

    "rsr" multiplies by the paper's Bin_[k], the (2^k, k) matrix of all patterns in order. "rsr++"
    folds (the paper's algorithm 3): the last column is the sum of every second element of u, the
    columns before it are those of the pairwise sums. Base 3 takes digits -1, 0, 1 and triples.
    """
    if algorithm == "rsr":
        bin_k = np.indices((base,) * block_width).reshape(block_width, -1).T
        digits = bin_k - 1 if base == 3 else bin_k
        product: NDArray[Any] = u @ digits.astype(u.dtype)
        return product
    r = np.empty((u.shape[0], block_width), u.dtype)
    x = u
    for column in range(block_width - 1, -1, -1):
        by_digit = x.reshape(u.shape[0], x.shape[1] // base, base)
        r[:, column] = by_digit[..., -1].sum(axis=1)
        if base == 3:
            r[:, column] -= by_digit[..., 0].sum(axis=1)
        x = by_digit.sum(axis=-1)
    return r
