"""One converted product while it is compared: what it is given, what answers, what is judged.

Sessions of many products are shared, so the comparison goes in steps: the original's products run,
then the converted ones, then every product is judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto, TensorProto, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.schema import OpAttributes
from onnx_ternary.verification.body import Bodies
from onnx_ternary.verification.judge import (
    ComparedRows,
    QuantizedRows,
    find_worst,
    largest_magnitude,
)
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.original import (
    INTEGER_PRODUCTS,
    MIN_ROWS,
    ROUNDING_OPS,
    original_functions,
    original_op_types,
    product_piece,
)
from onnx_ternary.verification.pieces import Answer, Piece, batches, run_pieces
from onnx_ternary.verification.places import Place, Scope, node_name, weight_change
from onnx_ternary.verification.report import ProductCheck, Reference

# Rows compared are cut where the bounds would take more multiplications than this (seconds).
_PRODUCT_WORK = 1 << 31
# Nonzero inputs of a probe row. A bound grows with them and with the length of the sums, a wrong
# weight moves the result by at least its scale: 64 suffice up to K = 100000 and more.
_PROBE_NONZEROS = 64
_TENSORS = ("codes", "aux", "scale", "bias")


@dataclass(slots=True)
class Trial:
    """A product on its activations.

    Attributes:
        scope: the graph both products stand in.
        node: the converted product.
        given: (.., K), what the original's product is given.
        y: (.., N), what the original makes of it.
        attributes: of the node.
        tensors: its codes, aux, scale and bias.
        row_scale: (K,), what a Mul in front of the node multiplies `given` by; None without one.
        problem: why it fails without being run; empty if it does not.
        probe: sparse rows (.., R, K) besides; None where X is a vector.
        probed: what the original makes of them; None where it does not run on them.
        found: what the op makes of `x`.
        answered: what it makes of the probe; None where the original alone tells.
        by_body: what the function body makes of x; None where it did not run.
    """

    scope: Scope
    node: NodeProto
    given: NDArray[Any]
    y: NDArray[Any]
    attributes: OpAttributes
    tensors: Sequence[NDArray[Any]]
    rounds: bool
    exact_sums: bool
    row_scale: NDArray[Any] | None = None
    problem: str = ""
    probe: NDArray[Any] | None = None
    probed: NDArray[Any] | None = None
    found: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    answered: NDArray[Any] | None = None
    by_body: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        before: LoadedModel,
        after: LoadedModel,
        scope: Scope,
        node: NodeProto,
        x: NDArray[Any],
        y: NDArray[Any],
    ) -> Trial:
        """A product on the original's values at its place.

        Raises:
            ModelError: if a constant of the node cannot be read.
            IndexFormatError: if the node's index breaks its format.
        """
        place, attributes = scope.places[id(node)], scope.attributes[id(node)]
        tensors = after.constants(scope.constants, node.input[1:], node_name(node))
        validate_index(attributes, *tensors, node=node_name(node))
        integer = attributes.activation != "float"
        op_types = original_op_types(before, scope, place) if integer else frozenset()
        trial = cls(
            scope,
            node,
            place.x_of(x),
            place.y_of(y),
            attributes,
            tensors,
            rounds=bool(op_types & ROUNDING_OPS),
            exact_sums=bool(op_types & INTEGER_PRODUCTS.keys()),
        )
        if place.row_scale:
            (trial.row_scale,) = after.constants(
                scope.constants, [place.row_scale], node_name(node)
            )
        trial.problem = trial._why_incomparable()
        if not trial.problem:
            trial.probe = _probe(attributes.K, trial.given.ndim, trial.given.dtype)
        return trial

    @property
    def x(self) -> NDArray[Any]:
        """What the converted node is given, (.., K)."""
        return self._scaled(self.given)

    def _scaled(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self.row_scale is None:
            return rows
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            scaled: NDArray[Any] = rows * self.row_scale
        return scaled

    @property
    def place(self) -> Place:
        """Where the product stands in the original."""
        return self.scope.places[id(self.node)]

    @property
    def num_bytes(self) -> int:
        """Roughly what sessions of both products hold."""
        weight = 4 * self.attributes.K * self.attributes.N
        return weight + 2 * (self.given.nbytes + self.y.nbytes)

    def _why_incomparable(self) -> str:
        x, y, K, N = self.given, self.y, self.attributes.K, self.attributes.N
        if x.ndim == 0 or x.shape[-1] != K or y.shape != (*x.shape[:-1], N):
            return (
                f"the original multiplies {x.shape} to {y.shape}, the converted node takes "
                f"(..., {K}) to (..., {N})"
            )
        if x.dtype != y.dtype or x.dtype not in (np.float32, np.float16):
            return f"the original has dtypes {x.dtype} and {y.dtype}, expected float32 or float16"
        scale = self.row_scale
        if scale is not None and (scale.shape, scale.dtype) != ((K,), x.dtype):
            return (
                f"the scale of the weight's rows is {scale.dtype.name} of shape {scale.shape}, "
                f"expected {x.dtype.name} of shape ({K},)"
            )
        return ""

    def take_probed(self, answer: NDArray[Any] | None) -> None:
        """What the original makes of the probe, if it can be compared."""
        if answer is None or self.probe is None:
            return
        if answer.shape == (*self.probe.shape[:-1], self.attributes.N):
            self.probed = answer

    def converted_piece(self) -> Piece:
        """The converted node on x, and on the probe where the op has to answer it."""
        feeds, nodes = {"X": self.x}, [self._node("X", "Y")]
        # A float original shows the weights, whatever rule the op was asked to follow.
        asked = self.rounds or self.attributes.activation == "float"
        if self.probe is not None and self.probed is not None and asked:
            feeds["P"] = self._scaled(self.probe)
            nodes.append(self._node("P", "Q"))
        outputs = [node.output[0] for node in nodes]
        return Piece(nodes, self._constants(), feeds, outputs)

    def body_piece(self) -> Piece:
        """The converted node on x, for a session in which its function computes."""
        return Piece([self._node("X", "Y")], self._constants(), {"X": self.x}, ["Y"])

    def _node(self, source: str, target: str) -> NodeProto:
        alone = NodeProto()
        alone.CopyFrom(self.node)
        alone.input[:] = [source, *_TENSORS]
        alone.output[:] = [target]
        return alone

    def _constants(self) -> list[TensorProto]:
        return [
            numpy_helper.from_array(np.asarray(tensor), name)
            for name, tensor in zip(_TENSORS, self.tensors, strict=True)
        ]

    def judged(self, max_rows: int, weight_tolerance: float) -> ProductCheck:
        """Answers against bounds, on rows evenly taken and on the probe."""
        attributes, name = self.attributes, node_name(self.node)
        K, N = attributes.K, attributes.N
        if self.problem:
            return ProductCheck(name, self.node.output[0], (K, N), "failed", reason=self.problem)
        x, y = self.x.reshape(-1, K), self.y.reshape(-1, N)
        given = self.given.reshape(-1, K)
        most = min(len(x), max_rows, max(MIN_ROWS, _PRODUCT_WORK // (K * N)))
        chosen = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
        integer = attributes.activation != "float"
        quantized = QuantizedRows.of(x, chosen, attributes) if integer else None
        found = self.found.reshape(-1, N)[chosen]
        off = self._roundings(given[chosen])
        compared = [ComparedRows(x[chosen], found, y[chosen], quantized, x_error=off)]
        places = [("rows", int(row)) for row in chosen]
        if self.by_body is not None:
            found = self.by_body.reshape(-1, N)[chosen]
            compared.append(dataclasses.replace(compared[0], found=found, is_body=True))
            places += [("body", int(row)) for row in chosen]
        num_probes = 0
        if self.probe is not None and self.probed is not None:
            compared.append(self._compared_probe())
            num_probes = len(compared[-1].x)
            places += [("probe", row) for row in range(num_probes)]
        codes, aux, scale, bias = self.tensors
        levels = decode_index(attributes, codes, aux, node=name)
        worst = find_worst(
            (attributes, levels, scale, bias),
            compared,
            self.rounds,
            self.exact_sums,
            max(weight_tolerance, weight_change(self.node)),
        )
        kind, row = places[worst.row] if worst.row is not None else ("rows", 0)
        return ProductCheck(
            node=name,
            output=self.node.output[0],
            shape=(K, N),
            status="passed" if worst.ratio <= 1 else "failed",
            dtype=x.dtype.name,
            compared_with=Reference.of(attributes.activation, original_rounds=self.rounds),
            rows=len(chosen),
            probe_rows=num_probes,
            ran_without_library=self.by_body is not None,
            worst_is_probe=kind == "probe",
            worst_is_without_library=kind == "body",
            max_abs_error=worst.max_error,
            worst_error_over_bound=worst.ratio,
            worst_index=None if worst.row is None else (row, worst.column),
            worst_expected=worst.expected,
            worst_found=worst.found,
            max_difference_from_original=worst.difference / (largest_magnitude(y[chosen]) or 1.0),
        )

    def _compared_probe(self) -> ComparedRows:
        assert self.probe is not None
        assert self.probed is not None
        given = self.probe.reshape(-1, self.attributes.K)
        rows, off = self._scaled(given), self._roundings(given)
        probed = self.probed.reshape(-1, self.attributes.N)
        answered = self.answered
        if answered is not None:
            answered = answered.reshape(-1, self.attributes.N)
        quantized = None
        if self.rounds:
            quantized = QuantizedRows.of(rows, np.arange(len(rows)), self.attributes)
        return ComparedRows(rows, answered, probed, quantized, x_error=off)

    def _roundings(self, given: NDArray[Any]) -> NDArray[np.float64] | None:
        """What each x is off because its scale was multiplied in before the product."""
        if self.row_scale is None:
            return None
        exact = given.astype(np.float64) * self.row_scale.astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.abs(self._scaled(given).astype(np.float64) - exact)


@lru_cache(maxsize=4)  # products in a row often have the same shape
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


def run_trials(
    before: LoadedModel, after: LoadedModel, trials: Sequence[Trial], bodies: Bodies
) -> None:
    """Run the products of both models and leave their answers in the trials.

    Raises:
        ModelError: if onnxruntime cannot run a converted node.
    """
    running = [trial for trial in trials if not trial.problem]
    for batch in batches(running, [trial.num_bytes for trial in running]):
        # ONNX Runtime computes around float16 operators it lacks in float32, and may hand a
        # product an x that was never rounded; on its own the product gets the x seen here.
        half = [trial for trial in batch if trial.given.dtype == np.float16]
        for trial, answer in zip(
            half, _originals(before, half, [t.given for t in half]), strict=True
        ):
            if answer is not None and answer.shape == trial.y.shape:
                trial.y = answer
        probes = [trial.probe for trial in batch]
        for trial, answer in zip(batch, _originals(before, batch, probes), strict=True):
            trial.take_probed(answer)
        pieces = [trial.converted_piece() for trial in batch]
        for trial, found in zip(batch, run_pieces(after, pieces, optimized=True), strict=True):
            values = _required(found)
            trial.found = values[0]
            trial.answered = values[1] if len(values) > 1 else None
        for trial in batch:
            function = bodies.take(trial.attributes, trial.tensors, trial.given.dtype)
            if function is not None:
                trial.by_body = run_body(after, trial, function)


def _originals(
    before: LoadedModel, trials: Sequence[Trial], xs: Sequence[NDArray[Any] | None]
) -> list[NDArray[Any] | None]:
    """The original's products on other activations; None where one does not stand alone."""
    pieces = [
        None if x is None else product_piece(trial.scope, trial.place, x)
        for trial, x in zip(trials, xs, strict=True)
    ]
    found = [piece for piece in pieces if piece is not None]
    functions = original_functions(before, found)
    answers = iter(run_pieces(before, found, optimized=False, functions=functions))
    results: list[NDArray[Any] | None] = []
    for trial, piece in zip(trials, pieces, strict=True):
        answer = ModelError("") if piece is None else next(answers)
        results.append(None if isinstance(answer, ModelError) else trial.place.y_of(answer[0]))
    return results


def run_body(after: LoadedModel, trial: Trial, function: FunctionProto) -> NDArray[Any]:
    """What the function body makes of a trial's x.

    Raises:
        ModelError: if onnxruntime cannot run it.
    """
    (answer,) = run_pieces(
        after, [trial.body_piece()], optimized=False, with_op=False, functions=[function]
    )
    return _required(answer)[0]


def _required(answer: Answer) -> tuple[NDArray[Any], ...]:
    if isinstance(answer, ModelError):
        raise answer
    return answer
