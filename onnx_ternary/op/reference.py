"""What `TernaryIndexedMatMul` computes, executable in numpy, and how far a kernel may be off.

The op's documentation is docs/op_spec.md, the layouts are those of docs/index_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.index import decode_index, rsr, validate_index
from onnx_ternary.schema import Algorithm, OpAttributes

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Largest relative rounding error, half the distance of denormals, largest finite number.
_ROUNDING: dict[np.dtype[Any], tuple[float, float, float]] = {
    np.dtype(np.float16): (2.0**-11, 2.0**-25, 65504.0),
    _BFLOAT16: (2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127),
    # A float32 result is rounded by its last operation, which gamma counts.
    np.dtype(np.float32): (0.0, 0.0, float(np.finfo(np.float32).max)),
}
_DENORMAL_STEP = 2.0**-149
_COLUMNS_ELEMENTS = 1 << 22


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
    _require_rounding(x.dtype)
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
    scales = _group_scales(scale, (attributes.K, attributes.N))
    y: NDArray[np.float64] = np.sum(sums * scales[:, None, :], axis=0)
    if not finite.all():
        # As MatMul: every weight takes part, so that 0 * inf gives NaN. Segmented sums leave the
        # weights of level 0 out, and matrix libraries may.
        levels = decode_index(attributes, codes, aux)
        group = np.arange(attributes.K) // (attributes.group_size or attributes.K)
        weights = levels * _group_scales(scale, levels.shape)[group]
        y[~finite] = np.einsum("mk,kn->mn", rows[~finite].astype(np.float64), weights)
    return y


def quantize_rows(
    x: NDArray[np.float32], attributes: OpAttributes
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The int8 activation rule of docs/op_spec.md, every operation rounded to float32.

    Args:
        x: (M, K) float32.
        attributes: activation_rule, activation_epsilon, activation_qmin, activation_qmax are used.

    Returns:
        q (M, K) int8 and s (M,) float32, where q is about x * s. A row with NaN or inf has q = 0
        and s = NaN.
    """
    epsilon = np.float32(attributes.activation_epsilon)
    qmax = np.float32(attributes.activation_qmax)
    absmax = np.maximum(np.max(np.abs(x), axis=1, initial=0), epsilon)
    finite = np.isfinite(absmax)
    absmax = np.where(finite, absmax, np.float32(1))
    if attributes.activation_rule == "absmax_division":
        s = qmax / absmax
    else:
        s = (np.float32(1) / absmax) * qmax
    scaled = np.where(finite[:, None], x, np.float32(0)) * s[:, None]
    q = np.clip(np.rint(scaled), attributes.activation_qmin, attributes.activation_qmax)
    return q.astype(np.int8), np.where(finite, s, np.float32(np.nan))


def quantize_tensor(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], np.float32]:
    """The uint8 activation rule of docs/op_spec.md, DynamicQuantizeLinear's, in float32.

    Args:
        x: float32 of any shape, all of the tensor.

    Returns:
        q - x_zero_point, of x's shape and within -255..255, and x_scale. Where x has NaN or inf,
        or its range overflows, they are 0 and not finite.
    """
    lowest = np.min(x, initial=np.float32(0))
    highest = np.max(x, initial=np.float32(0))
    with np.errstate(over="ignore", invalid="ignore"):
        x_scale = (highest - lowest) / np.float32(255) if lowest != highest else np.float32(1)
    if not (np.isfinite(x_scale) and x_scale > 0):
        # A scale of 0, from a range of denormals, makes every product 0, whatever q is.
        return np.zeros(x.shape, np.int64), x_scale if x_scale == 0 else np.float32(np.nan)
    zero_point = np.rint(np.clip(np.float32(0) - lowest / x_scale, 0, 255))
    q = np.clip(np.rint(x / x_scale) + zero_point, 0, 255)
    return (q - zero_point).astype(np.int64), x_scale


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
            for columns, part in _float64_columns(levels[rows]):
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


def gamma(num_roundings: int) -> float:
    """Bound on the relative error of `num_roundings` float32 operations, gamma of docs/op_spec."""
    accumulated = num_roundings * 2.0**-24
    return accumulated / (1 - accumulated) if accumulated < 1 else np.inf


def float_error_bound(
    x: NDArray[Any],
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    group_size: int,
    bias: NDArray[np.float32],
    *,
    addition_depth: int,
    fixed_point: bool,
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = float`, docs/op_spec.md.

    With u = 2^-24 and gamma(n) = n u / (1 - n u), a term scale * level * x passes at most T =
    `addition_depth` additions within its group, the multiplication by the scale, one addition a
    group and the one of the bias, so it is off by at most gamma(T + G + 2) of its magnitude; one
    more rounding is left for a conversion (fixed point to float32). Summed over the terms, with
    A = sum |scale * level * x|:

        gamma(T + G + 3) * (A + |bias|)

    Additions in float32 are exact where they give denormals; multiplications are not. There are
    at most K + G of them, by a scale or from fixed point to float32 before that, each off by at
    most half a denormal step. Hence (K + G) * (1 + max scale) * 2^-149, which leaves room for the
    additions after them.

    A fixed-point kernel first rounds each activation by at most absmax * 2^-22.99, absmax that of
    the row, and each column takes scale * nonzeros of that.

    Rounding to float16 or bfloat16 adds half a unit in the last place of the result, whose
    magnitude is at most |exact| plus the above, or half a denormal step. Where that exceeds the
    largest number of the dtype, the result may overflow and the bound is inf. What the float64
    arithmetic here is off is added.

    Args:
        x: (..., K) activations.
        levels: (K, N) int8.
        scale: (), (N,) or (num_groups, N).
        group_size: rows a scale group, or 0.
        bias: (N,) or a scalar zero.
        addition_depth: T, the kernel's longest chain of float32 additions.
        fixed_point: whether the kernel rounds activations to fixed point.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (..., N) float64; NaN in rows with NaN or inf, which follow IEEE 754 and compare as such.

    Raises:
        ValueError: if `dtype` is another one.
    """
    K, N = levels.shape
    rows = x.reshape(-1, K).astype(np.float64)
    finite: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    rows = np.where(finite[:, None], rows, 0)
    group_scales = _group_scales(scale, levels.shape)
    num_groups = group_scales.shape[0]
    group_rows = group_size or K

    exact = np.zeros((rows.shape[0], N)) + bias
    magnitude = np.zeros((rows.shape[0], N)) + np.abs(bias)
    scaled_nonzeros = np.zeros(N)
    for g in range(num_groups):
        group = slice(g * group_rows, (g + 1) * group_rows)
        part, size = rows[:, group], np.abs(rows[:, group])
        for columns, signs in _float64_columns(levels[group]):
            exact[:, columns] += (part @ signs) * group_scales[g, columns]
            magnitude[:, columns] += (size @ np.abs(signs)) * group_scales[g, columns]
        scaled_nonzeros += np.count_nonzero(levels[group], axis=0) * group_scales[g]

    bound = gamma(addition_depth + num_groups + 3) * magnitude
    bound += (K + num_groups) * (1 + group_scales.max(axis=0)) * _DENORMAL_STEP
    if fixed_point:
        absmax = np.max(np.abs(rows), axis=1, initial=0)
        bound += absmax[:, None] * scaled_nonzeros * 2.0**-22.99
    bound += (K + num_groups + 3) * 2.0**-53 * magnitude
    bound = _with_output_rounding(exact, bound, dtype)
    bound[~finite] = np.nan
    return bound.reshape(*x.shape[:-1], N)


def int8_error_bound(
    x: NDArray[Any],
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    group_size: int,
    bias: NDArray[np.float32],
    attributes: OpAttributes,
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = int8`, exact being what q, s and scale give.

    q, s and integer sums are exact. With one scale a column the sum is converted to float32,
    divided by s and multiplied by the scale, and the bias is added: gamma(5) of
    |sum / s * scale| + |bias|, one more than that for kernels that multiply by 1 / s.

    With scales per group kernels add weighted integers in float32: sums of groups, or of parts of
    them in spans of 128 inputs. A term scale * level * q passes at most an addition a span and a
    group, two among the lanes of a column, a conversion, the multiplications by the scale and by
    1 / s, and the addition of the bias. With A = sum |scale * level * q| / s:

        gamma(ceil(K / 128) + G + 5) * (A + |bias|)

    A product that is a denormal is off by half a denormal step. Rounding to Y's dtype as in
    `float_error_bound`.

    Args:
        x: (..., K) activations.
        levels: (K, N) int8.
        scale: (), (N,) or (num_groups, N).
        group_size: rows a scale group, or 0.
        bias: (N,) or a scalar zero.
        attributes: the activation rule.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (..., N) float64; NaN in rows with NaN or inf, whose results are NaN.

    Raises:
        ValueError: if `dtype` is another one.
    """
    K, N = levels.shape
    q, s = quantize_rows(x.reshape(-1, K).astype(np.float32), attributes)
    group_scales = _group_scales(scale, levels.shape)
    num_groups = group_scales.shape[0]
    group_rows = group_size or K

    exact = np.zeros((q.shape[0], N)) + bias
    magnitude = np.abs(exact)
    for g in range(num_groups):
        group = slice(g * group_rows, (g + 1) * group_rows)
        part = q[:, group].astype(np.float64)
        size = np.abs(part)
        for columns, signs in _float64_columns(levels[group]):
            factor = group_scales[g, columns] / s[:, None].astype(np.float64)
            term = (part @ signs) * factor
            exact[:, columns] += term
            magnitude[:, columns] += (size @ np.abs(signs)) * factor if group_size else np.abs(term)

    roundings = (-(-K // 128) if group_size else 0) + num_groups + (5 if group_size else 4)
    bound = gamma(roundings) * magnitude + num_groups * _DENORMAL_STEP
    bound += roundings * 2.0**-53 * magnitude
    bound = _with_output_rounding(exact, bound, dtype)
    return bound.reshape(*x.shape[:-1], N)


def uint8_error_bound(
    centred: NDArray[np.int64],
    x_scale: np.float32,
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = uint8`, exact being what q and the scales give.

    The integer sums are exact. A sum is converted to float32, x_scale multiplied by scale, both
    multiplied, and the bias added: gamma(4) of |sum * x_scale * scale| + |bias|. The product of the
    scales may be off by half a denormal step, as often as the sum says, and the last product by
    another.

    Args:
        centred: (M, K) as `quantize_tensor` returns it, some rows or all of them.
        x_scale: as well.
        levels: (K, N) int8.
        scale: () or (N,).
        bias: (N,) or a scalar zero.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (M, N) float64; NaN where x_scale is not finite, and so is every result.

    Raises:
        ValueError: if `dtype` is another one.
    """
    sums = np.empty((centred.shape[0], levels.shape[1]))
    for columns, signs in _float64_columns(levels):
        sums[:, columns] = centred.astype(np.float64) @ signs
    products = sums * (np.float64(x_scale) * scale.astype(np.float64))
    magnitude = np.abs(products) + np.abs(bias)
    bound = (gamma(4) + 4 * 2.0**-53) * magnitude + (np.abs(sums) + 1) * _DENORMAL_STEP
    return _with_output_rounding(products + bias, bound, dtype)


def _float64_columns(levels: NDArray[np.int8]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Levels a few columns at a time, so that a large matrix is never in memory as float64."""
    step = max(1, _COLUMNS_ELEMENTS // levels.shape[0])
    for start in range(0, levels.shape[1], step):
        columns = slice(start, start + step)
        yield columns, levels[:, columns].astype(np.float64)


def _group_scales(scale: NDArray[np.float32], weight_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Scales (num_groups, N) float64."""
    full = scale if scale.ndim == 2 else np.broadcast_to(scale, (1, weight_shape[1]))
    return full.astype(np.float64)


def _require_rounding(dtype: Any) -> tuple[float, float, float]:
    found = _ROUNDING.get(np.dtype(dtype))
    if found is None:
        raise ValueError(f"dtype is {np.dtype(dtype)}, expected float32, float16 or bfloat16")
    return found


def _with_output_rounding(
    exact: NDArray[np.float64], bound: NDArray[np.float64], dtype: Any
) -> NDArray[np.float64]:
    relative, absolute, largest = _require_rounding(dtype)
    reach = np.abs(exact) + bound
    rounded = bound + np.maximum(reach * relative, absolute)
    return np.where(reach > largest, np.inf, rounded)
