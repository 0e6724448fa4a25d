"""Numbers against bounds: one product, and one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.op import activations, bounds
from onnx_ternary.schema import OpAttributes
from onnx_ternary.verification.report import OutputCheck

# Operations of the original behind its MatMul: alpha, scale, bias and their conversions.
_EXTRA_ROUNDINGS = 8
_COLUMNS_AT_ONCE = 1024


@dataclass(slots=True)
class Worst:
    """The element farthest beyond or closest to its bound, and the largest differences.

    Attributes:
        row: of all rows compared, one behind the other; None where there is no element.
    """

    ratio: float = 0.0
    max_error: float = 0.0
    difference: float = 0.0
    row: int | None = None
    column: int = 0
    expected: float = 0.0
    found: float = 0.0


def find_worst(
    weight: tuple[OpAttributes, NDArray[np.int8], NDArray[Any], NDArray[Any]],
    compared: Sequence[ComparedRows],
    rounds: bool,
    exact_sums: bool,
    weight_tolerance: float,
) -> Worst:
    """The element that is closest to or farthest beyond its bound.

    Args:
        weight: attributes, levels (K, N), scale and bias of the converted node.
        compared: rows, as the op and as the original compute them.
        rounds: whether the original quantizes its activations itself.
        exact_sums: whether its sums are of integers.
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.
    """
    attributes, levels, scale, bias = weight
    worst = Worst()
    for start in range(0, attributes.N, _COLUMNS_AT_ONCE):
        columns = slice(start, min(attributes.N, start + _COLUMNS_AT_ONCE))
        part = _Columns(
            attributes,
            levels[:, columns],
            scale[..., columns] if scale.ndim else scale,
            bias[columns] if bias.ndim else bias,
        )
        judged = [
            each.judge(part, columns, rounds, exact_sums, weight_tolerance) for each in compared
        ]
        values, originals, wanted, error, ratio = map(np.concatenate, zip(*judged, strict=True))
        with np.errstate(invalid="ignore"):
            gap = np.abs(values - originals)
        difference = float(np.max(gap, initial=0, where=np.isfinite(gap)))
        worst.difference = max(worst.difference, difference)
        max_error = float(np.max(error, initial=0, where=np.isfinite(error)))
        worst.max_error = max(worst.max_error, max_error)
        if ratio.size and (ratio.max() > worst.ratio or worst.row is None):
            row, column = np.unravel_index(np.argmax(ratio), ratio.shape)
            worst.ratio = float(ratio[row, column])
            worst.row, worst.column = int(row), start + int(column)
            worst.expected = float(wanted[row, column])
            worst.found = float(values[row, column])
    return worst


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows as the op quantizes them: about ``integers * factor``.

    Attributes:
        integers: (M, K) float64.
        factor: (M, 1) float64.
        x_scale: of uint8 activations; 0 else.
    """

    integers: NDArray[np.float64]
    factor: NDArray[np.float64]
    x_scale: np.float32

    @classmethod
    def of(cls, x: NDArray[Any], chosen: NDArray[Any], attributes: OpAttributes) -> QuantizedRows:
        """Rows ``chosen`` of x (M, K), which is all that the op is given at once."""
        x = x.astype(np.float32)
        if attributes.activation == "uint8":
            centred, x_scale = activations.quantize_tensor(x)
            factor = np.full((len(chosen), 1), x_scale, np.float64)
            return cls(centred[chosen].astype(np.float64), factor, x_scale)
        q, s = activations.quantize_rows(x[chosen], attributes)
        with np.errstate(divide="ignore"):
            factor = 1 / s[:, None].astype(np.float64)
        return cls(q.astype(np.float64), factor, np.float32(0))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some columns of a weight."""

    attributes: OpAttributes
    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def float_bound(
        self, x: NDArray[Any], originals: NDArray[np.float64], weight_tolerance: float
    ) -> NDArray[np.float64]:
        """Bound on |op - original|: the worst kernel's, and that of the original's operations."""
        group_size, K = self.attributes.group_size, self.attributes.K
        ours = bounds.float_error_bound(
            x,
            self.levels,
            self.scale,
            group_size,
            self.bias,
            addition_depth=K,
            fixed_point=True,
            dtype=x.dtype,
        )
        # The original sums as many terms and has a few roundings more; all terms grow with gamma.
        longest = K + self.attributes.num_groups + 3
        bound = ours * (1 + bounds.gamma(longest + _EXTRA_ROUNDINGS) / bounds.gamma(longest))
        if x.dtype == np.float16:
            # The original rounds between its MatMul, scale and bias too.
            bound += 3 * 2.0**-11 * (np.abs(originals) + np.abs(self.bias)) + 3 * 2.0**-25
        if weight_tolerance:
            scale = self.scale
            if group_size:
                scale = np.repeat(scale, group_size, axis=0)[:K]
            weights = np.abs(self.levels) * scale.astype(np.float64)
            # Weights of level 0 may change by as much as weights of other levels.
            weights = np.maximum(weights, np.broadcast_to(scale, weights.shape))
            bound += weight_tolerance * (np.abs(x.astype(np.float64)) @ weights)
        return bound

    def leaves_float32(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Where terms of rows without NaN and inf may add up to more than float32 holds, (M, N)."""
        size = np.abs(x.astype(np.float64))
        finite = np.isfinite(size).all(axis=1, keepdims=True)
        size = np.where(finite, size, 0)
        before_scale = size @ np.abs(self.levels).astype(np.float64)
        terms = np.maximum(before_scale, self.magnitudes(size) + np.abs(self.bias))
        room = 1 + bounds.gamma(2 * self.attributes.K + self.attributes.num_groups)
        leaves: NDArray[np.bool_] = finite & (terms * room >= np.finfo(np.float32).max)
        return leaves

    def magnitudes(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of magnitudes times magnitudes of weights, in float64."""
        return self._products(x, np.ones((len(x), 1)), np.abs(self.levels))

    def _products(
        self, q: NDArray[np.float64], factor: NDArray[np.float64], levels: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Sums of integers times levels, in activations times weights."""
        step = self.attributes.group_size or self.attributes.K
        scales = np.atleast_2d(self.scale).astype(np.float64)
        products = np.zeros((len(q), levels.shape[1]))
        for group, start in enumerate(range(0, self.attributes.K, step)):
            taken = slice(start, start + step)
            sums = q[:, taken] @ levels[taken].astype(np.float64)
            products += sums * factor * scales[group]
        return products

    def quantized_expected(
        self, x: NDArray[Any], rows: QuantizedRows
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the activation rule gives, and the bound on the op's distance from it."""
        expected = self._products(rows.integers, rows.factor, self.levels) + self.bias
        attributes, scale = self.attributes, self.scale
        if attributes.activation == "uint8":
            integers = rows.integers.astype(np.int64)
            bound = bounds.uint8_error_bound(
                integers, rows.x_scale, self.levels, scale, self.bias, x.dtype
            )
        else:
            bound = bounds.int8_error_bound(
                x, self.levels, scale, attributes.group_size, self.bias, attributes, x.dtype
            )
        return expected, bound

    def original_bound(
        self,
        rows: QuantizedRows,
        dtype: np.dtype[Any],
        *,
        exact_sums: bool,
        weight_tolerance: float,
    ) -> NDArray[np.float64]:
        """Bound on what the original's operations on the same integers are off.

        It sums them, or what they stand for, in float32 unless its product is one of integers. In
        float16 the operands are rounded too.
        """
        terms = self._products(np.abs(rows.integers), rows.factor, np.abs(self.levels))
        terms += np.abs(self.bias)
        roundings = _EXTRA_ROUNDINGS + (0 if exact_sums else self.attributes.K)
        unit = 8 * 2.0**-11 if dtype == np.float16 else 0.0
        bound = (bounds.gamma(roundings) + unit) * terms
        if weight_tolerance:
            # Weights of level 0 may change by as much as weights of other levels.
            every = np.ones_like(self.levels)
            bound += weight_tolerance * self._products(np.abs(rows.integers), rows.factor, every)
        return bound

    def float_expected(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The product of float activations, in float64."""
        x = x.astype(np.float64)
        return self._products(x, np.ones((len(x), 1)), self.levels) + self.bias


_Judged: TypeAlias = tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """Rows of X, what the op and the original make of them, and how they are quantized.

    Attributes:
        x: (M, K).
        found: (M, N) of the op; None to judge the weights alone, by their product in float64.
        originals: (M, N) of the original's product.
        quantized: the rows as the op quantizes them; None where it does not.
        is_body: whether the function body computed them, whose sums are float32.
        x_error: (M, K), what each x is off from what the original's weights multiply; None where
            both are given the same.
    """

    x: NDArray[Any]
    found: NDArray[Any] | None
    originals: NDArray[Any]
    quantized: QuantizedRows | None
    is_body: bool = False
    x_error: NDArray[np.float64] | None = None

    def judge(
        self,
        part: _Columns,
        columns: slice,
        rounds: bool,
        exact_sums: bool,
        weight_tolerance: float,
    ) -> _Judged:
        """Values, the original's, wanted values, errors, and their ratio to the bound."""
        originals = self.originals[:, columns].astype(np.float64)
        if self.found is None:
            values = part.float_expected(self.x)
        else:
            values = self.found[:, columns].astype(np.float64)
        if self.quantized is None:
            bound = part.float_bound(self.x, originals, weight_tolerance)
            if self.x_error is not None:
                bound = bound + part.magnitudes(self.x_error)
            wanted = self._wanted(part, values, originals)
            return values, originals, wanted, *_compare(values, wanted, bound)
        wanted, bound = part.quantized_expected(self.x, self.quantized)
        if self.is_body:
            bound = bound + part.original_bound(
                self.quantized, self.x.dtype, exact_sums=False, weight_tolerance=0.0
            )
        error, ratio = _compare(values, wanted, bound)
        if rounds:
            bound = bound + part.original_bound(
                self.quantized,
                self.x.dtype,
                exact_sums=exact_sums,
                weight_tolerance=weight_tolerance,
            )
            # Where rows have NaN or inf, graphs follow the rule in their own way.
            finite = np.isfinite(self.quantized.factor)
            against_original = _compare(values, originals, bound)[1]
            ratio = np.maximum(ratio, np.where(finite, against_original, 0))
        return values, originals, wanted, error, ratio

    def _wanted(
        self, part: _Columns, values: NDArray[np.float64], originals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The original's values; at the edge of float32 (docs/op_spec.md) those of the exact sum.

        Where terms leave float32 though the inputs are finite, a float32 sum is whatever the order
        of its additions makes of it, and the body's and that of groups may be, as the original's.
        """
        if np.isfinite(values).all() and np.isfinite(originals).all():
            return originals
        edge = part.leaves_float32(self.x)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = part.float_expected(self.x).astype(np.float32).astype(np.float64)
        wanted = np.where(edge & ~np.isfinite(originals), exact, originals)
        if self.is_body or part.attributes.group_size:
            wanted = np.where(edge & ~np.isfinite(values), values, wanted)
        return np.where(values == originals, originals, wanted)


def _compare(
    found: NDArray[np.float64], expected: NDArray[np.float64], bound: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors and their ratio to the bound; inf where NaN, inf or an exact value is missed."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(found - expected))
        ratio = np.where(same | np.isposinf(bound), 0.0, error / bound)
    return error, np.where(np.isnan(ratio), np.inf, ratio)


def largest_magnitude(values: NDArray[Any]) -> float:
    """The largest finite magnitude, 0 if there is none."""
    magnitudes = np.abs(values.astype(np.float64))
    return float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes)))


def check_output(
    name: str,
    node: str,
    expected: NDArray[Any],
    found: NDArray[Any],
    tolerance: float | None,
) -> OutputCheck:
    """One output of the model, original against converted.

    Args:
        name: of the output.
        node: the converted graph's node that makes it.
        expected: the original's.
        found: the converted model's.
        tolerance: largest difference relative to the original's largest magnitude; None gives no
            verdict.
    """
    is_float = expected.dtype.kind == "f"
    common = {"name": name, "node": node, "dtype": expected.dtype.name, "shape": expected.shape}
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return OutputCheck(
            **common,
            max_abs_difference=np.inf,
            max_relative_difference=np.inf,
            tolerance=tolerance,
            worst_index=None,
            top1_agreement=None,
            passed=False,
        )
    if expected.dtype.kind in "fiub":
        wanted, got = expected.astype(np.float64), found.astype(np.float64)
        same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(got - wanted))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        largest = largest_magnitude(expected)
    else:
        gaps = (expected != found).astype(np.float64)
        largest = 1.0
    gap = float(gaps.max(initial=0))
    relative = gap / largest if largest else gap
    worst = tuple(map(int, np.unravel_index(np.argmax(gaps), gaps.shape))) if gaps.size else None
    top1 = None
    if is_float and expected.ndim >= 2 and expected.size:
        top1 = float(np.mean(np.argmax(expected, axis=-1) == np.argmax(found, axis=-1)))
    return OutputCheck(
        **common,
        max_abs_difference=gap,
        max_relative_difference=relative,
        tolerance=tolerance,
        worst_index=worst,
        top1_agreement=top1,
        passed=tolerance is None or relative <= tolerance,
    )
