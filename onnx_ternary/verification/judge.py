"""Numbers against bounds: one product, and one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnx_ternary import _onnxruntime as ort
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.op import activations, bounds
from onnx_ternary.schema import OpAttributes
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.original import (
    INTEGER_PRODUCTS,
    MIN_ROWS,
    ROUNDING_OPS,
    original_op_types,
    run_original_product,
)
from onnx_ternary.verification.places import Place, Scope, node_attributes, node_name
from onnx_ternary.verification.report import OutputCheck, ProductCheck, Reference

# Operations of the original behind its MatMul: alpha, scale, bias and their conversions.
_EXTRA_ROUNDINGS = 8
_COLUMNS_AT_ONCE = 1024
# Rows compared are cut where the bounds would take more multiplications than this (seconds).
_PRODUCT_WORK = 1 << 31
# Nonzero inputs of a probe row. A bound grows with them and with the length of the sums, a wrong
# weight moves the result by at least its scale: 64 suffice up to K = 100000 and more.
_PROBE_NONZEROS = 64


def _probe(K: int, rank: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Rows (1, .., R, K) that hold each input once, magnitudes in [1, 2); None for rank 1."""
    if rank < 2:
        return None
    num_rows = -(-K // _PROBE_NONZEROS)
    rng = np.random.default_rng(0)
    values = (1 + rng.random(K)) * rng.choice((-1, 1), K)
    probe = np.zeros((num_rows, K), dtype)
    probe[np.arange(K) % num_rows, np.arange(K)] = values
    shaped: NDArray[Any] = probe.reshape((1,) * (rank - 2) + probe.shape)
    return shaped


def check_product(
    before: LoadedModel,
    after: LoadedModel,
    scope: Scope,
    node: NodeProto,
    place: Place,
    x: NDArray[Any],
    y: NDArray[Any],
    weight_tolerance: float,
    max_rows: int,
) -> ProductCheck:
    """One product, converted against original, on X and on a sparse probe.

    Args:
        before: the original.
        after: the converted model.
        scope: the graph or local function both products stand in.
        node: the converted product.
        place: where the product stands in the original.
        x: what the original's values are at the place's source.
        y: the same at its target.
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.
        max_rows: rows compared, at most.

    Raises:
        ModelError: if a constant of the node cannot be read, or onnxruntime cannot run the node.
        IndexFormatError: if the node's index breaks its format.
    """
    x, y = place.x_of(x), place.y_of(y)
    attributes = node_attributes(node)
    K, N = attributes.K, attributes.N
    name = node_name(node)
    tensors = after.constants(scope.after, node.input[1:], name)
    codes, aux, scale, bias = tensors
    validate_index(attributes, codes, aux, scale, bias, node=name)

    def failed(reason: str) -> ProductCheck:
        return ProductCheck(name, node.output[0], (K, N), "failed", reason=reason)

    if x.ndim == 0 or x.shape[-1] != K or y.shape != (*x.shape[:-1], N):
        return failed(
            f"the original multiplies {x.shape} to {y.shape}, the converted node takes (..., {K}) "
            f"to (..., {N})"
        )
    if x.dtype != y.dtype or x.dtype not in (np.float32, np.float16):
        return failed(
            f"the original has dtypes {x.dtype} and {y.dtype}, expected float32 or float16"
        )
    if x.dtype == np.float16:
        # ONNX Runtime computes around float16 operators it lacks in float32, and may hand the
        # product an x that was never rounded; on its own the product gets the x seen here.
        alone = run_original_product(before, scope.before, place, x)
        y = y if alone is None else alone
    session = _node_session(after, node, tensors, x.dtype)
    found = after.run_session(session, {"X": x}, ["Y"])["Y"]
    num_rows = x.size // K
    num_chosen = min(num_rows, max_rows, max(MIN_ROWS, _PRODUCT_WORK // (K * N)))
    chosen = np.unique(np.linspace(0, num_rows - 1, num_chosen).round().astype(int))
    rows = x.reshape(-1, K)[chosen]
    found, y = found.reshape(-1, N)[chosen], y.reshape(-1, N)[chosen]
    levels = decode_index(attributes, codes, aux, node=name)
    integer = attributes.activation != "float"
    op_types = original_op_types(before, scope.before, place) if integer else frozenset()
    rounds, exact_sums = bool(op_types & ROUNDING_OPS), bool(op_types & INTEGER_PRODUCTS.keys())
    quantized = _QuantizedRows.of(x.reshape(-1, K), chosen, attributes) if integer else None
    compared = [_ComparedRows(rows, found, y, quantized)]
    num_probes = 0
    probe = _probe(K, x.ndim, x.dtype)
    probed = None if probe is None else run_original_product(before, scope.before, place, probe)
    if probe is not None and probed is not None and probed.shape == (*probe.shape[:-1], N):
        rows, probed = probe.reshape(-1, K), probed.reshape(-1, N)
        num_probes = len(rows)
        answered, quantized = None, None
        # A float original shows the weights, whatever rule the op was asked to follow.
        if rounds or not integer:
            answered = after.run_session(session, {"X": probe}, ["Y"])["Y"].reshape(-1, N)
        if rounds:
            quantized = _QuantizedRows.of(rows, np.arange(num_probes), attributes)
        compared.append(_ComparedRows(rows, answered, probed, quantized))
    row_names = [*chosen, *range(num_probes)]

    worst_ratio, max_error, difference, is_probe = 0.0, 0.0, 0.0, False
    worst: tuple[tuple[int, int] | None, float, float] = (None, 0.0, 0.0)
    for start in range(0, N, _COLUMNS_AT_ONCE):
        columns = slice(start, min(N, start + _COLUMNS_AT_ONCE))
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
        difference = max(difference, float(np.max(gap, initial=0, where=np.isfinite(gap))))
        max_error = max(max_error, float(np.max(error, initial=0, where=np.isfinite(error))))
        if ratio.size and (ratio.max() > worst_ratio or worst[0] is None):
            row, column = np.unravel_index(np.argmax(ratio), ratio.shape)
            worst_ratio = float(ratio[row, column])
            is_probe = bool(row >= len(chosen))
            worst = (
                (int(row_names[row]), start + int(column)),
                float(wanted[row, column]),
                float(values[row, column]),
            )
    return ProductCheck(
        node=name,
        output=node.output[0],
        shape=(K, N),
        status="passed" if worst_ratio <= 1 else "failed",
        dtype=x.dtype.name,
        compared_with=Reference.of(attributes.activation, original_rounds=rounds),
        rows=len(chosen),
        probe_rows=num_probes,
        worst_is_probe=is_probe,
        max_abs_error=max_error,
        worst_error_over_bound=worst_ratio,
        worst_index=worst[0],
        worst_expected=worst[1],
        worst_found=worst[2],
        max_difference_from_original=difference / (_largest(y) or 1.0),
    )


@dataclass(frozen=True, slots=True)
class _QuantizedRows:
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
    def of(cls, x: NDArray[Any], chosen: NDArray[Any], attributes: OpAttributes) -> _QuantizedRows:
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
            # Weights of level 0 may change by as much as the others.
            weights = np.maximum(weights, np.broadcast_to(scale, weights.shape))
            bound += weight_tolerance * (np.abs(x.astype(np.float64)) @ weights)
        return bound

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
        self, x: NDArray[Any], rows: _QuantizedRows
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
        rows: _QuantizedRows,
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
            # Weights of level 0 may change by as much as the others.
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
class _ComparedRows:
    """Rows of X, what the op and the original make of them, and how they are quantized.

    Attributes:
        x: (M, K).
        found: (M, N) of the op; None to judge the weights alone, by their product in float64.
        originals: (M, N) of the original's product.
        quantized: the rows as the op quantizes them; None where it does not.
    """

    x: NDArray[Any]
    found: NDArray[Any] | None
    originals: NDArray[Any]
    quantized: _QuantizedRows | None

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
            return values, originals, originals, *_compare(values, originals, bound)
        wanted, bound = part.quantized_expected(self.x, self.quantized)
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


def _compare(
    found: NDArray[np.float64], expected: NDArray[np.float64], bound: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors and their ratio to the bound; inf where NaN, inf or an exact value is missed."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(found - expected))
        ratio = np.where(same | np.isposinf(bound), 0.0, error / bound)
    return error, np.where(np.isnan(ratio), np.inf, ratio)


def _largest(values: NDArray[Any]) -> float:
    """The largest finite magnitude, 0 if there is none."""
    magnitudes = np.abs(values.astype(np.float64))
    return float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes)))


def _node_session(
    after: LoadedModel, node: NodeProto, tensors: Sequence[NDArray[Any]], x_dtype: np.dtype[Any]
) -> ort.InferenceSession:
    """The converted node alone, X to Y, through the library."""
    alone = NodeProto()
    alone.CopyFrom(node)
    names = ["codes", "aux", "scale", "bias"]
    alone.input[:] = ["X", *names]
    alone.output[:] = ["Y"]
    dtype = helper.np_dtype_to_tensor_dtype(x_dtype)
    graph = helper.make_graph(
        [alone],
        "product",
        [helper.make_tensor_value_info("X", dtype, None)],
        [onnx.ValueInfoProto(name="Y")],
        [
            numpy_helper.from_array(np.asarray(tensor), name)
            for name, tensor in zip(names, tensors, strict=True)
        ],
    )
    model = helper.make_model(
        graph, opset_imports=after.proto.opset_import, ir_version=after.proto.ir_version
    )
    return after.session(model, optimized=True)


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
        largest = _largest(expected)
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
