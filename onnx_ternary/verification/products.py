"""Every converted product against the original's: on the model's own values, or alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.body import Bodies
from onnx_ternary.verification.gathers import check_gathers
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.original import original_product, run_alone, run_exposed
from onnx_ternary.verification.pieces import BATCH_BYTES
from onnx_ternary.verification.places import Scope, node_name
from onnx_ternary.verification.report import ProductCheck
from onnx_ternary.verification.trial import Trial, run_trials

# What onnxruntime says of operators that it does not know, or has no kernel for.
_UNKNOWN_OPERATOR = ("is not a registered function/op", "No Op registered", "NOT_IMPLEMENTED")

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models, and how their products are compared.

    Attributes:
        before: the original, its sums in float32 and exact.
        after: the converted model.
        scopes: where products stand.
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.
        max_rows: rows a product is compared on at most.
        max_exposed_bytes: intermediate values held at once, roughly.
        seed: of random activations.
        bodies: which products also run without the library.
        progress: called for every product.
    """

    before: LoadedModel
    after: LoadedModel
    scopes: Sequence[Scope]
    weight_tolerance: float
    max_rows: int
    max_exposed_bytes: int
    seed: int
    bodies: Bodies
    progress: Progress | None

    @property
    def num_products(self) -> int:
        """The number of products in all scopes."""
        return sum(len(scope.products) for scope in self.scopes)


class _Checks:
    """Products on their way to a check, in order; products that wait share sessions."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._waiting: list[Trial | ProductCheck] = []
        self._num_bytes = 0
        self.done: list[ProductCheck] = []

    def add(self, scope: Scope, node: NodeProto, x: NDArray[Any], y: NDArray[Any]) -> None:
        """A product, on what the original's values at its place are."""
        trial = Trial.of(self._comparison.before, self._comparison.after, scope, node, x, y)
        self._waiting.append(trial)
        self._num_bytes += trial.num_bytes
        if self._num_bytes > BATCH_BYTES:
            self.flush()

    def add_alone(
        self, scope: Scope, node: NodeProto, rng: np.random.Generator, *, strict: bool
    ) -> None:
        """A product on random activations, if it can be taken out of the original."""
        pair = _alone(self._comparison, scope, node, rng, strict)
        if isinstance(pair, ProductCheck):
            self._waiting.append(pair)
        else:
            self.add(scope, node, *pair)

    def flush(self) -> list[ProductCheck]:
        """Run and judge what waits; everything that was checked so far."""
        comparison, waiting = self._comparison, self._waiting
        self._waiting, self._num_bytes = [], 0
        trials = [each for each in waiting if isinstance(each, Trial)]
        run_trials(comparison.before, comparison.after, trials, comparison.bodies)
        for each in waiting:
            if comparison.progress is not None:
                name = node_name(each.node) if isinstance(each, Trial) else each.node
                comparison.progress(name, len(self.done) + 1, comparison.num_products)
            if isinstance(each, Trial):
                each = each.judged(comparison.max_rows, comparison.weight_tolerance)
            self.done.append(each)
        return self.done


def check_alone(comparison: Comparison, *, strict: bool) -> list[ProductCheck]:
    """Each product alone, on random activations.

    Args:
        comparison: the models.
        strict: whether a product fails that can be taken out of the original but does not run.
    """
    rng = np.random.default_rng(comparison.seed)
    checks = _Checks(comparison)
    for scope in comparison.scopes:
        for node in scope.products:
            checks.add_alone(scope, node, rng, strict=strict)
    return [*checks.flush(), *_gathers(comparison)]


def _gathers(comparison: Comparison) -> list[ProductCheck]:
    return check_gathers(
        comparison.before, comparison.after, comparison.scopes, comparison.weight_tolerance
    )


def _alone(
    comparison: Comparison,
    scope: Scope,
    node: NodeProto,
    rng: np.random.Generator,
    strict: bool,
) -> tuple[NDArray[Any], NDArray[Any]] | ProductCheck:
    """Random numbers at a product's place and what the original makes of them, or why not."""
    place, attributes = scope.places[id(node)], scope.attributes[id(node)]
    between = f"the original's nodes from '{place.source}' to '{place.target}'"
    named = (node_name(node), node.output[0], (attributes.K, attributes.N))
    missing = [name for name in (place.source, place.target) if name not in scope.known]
    if missing:
        reason = f"the original has no tensor '{missing[0]}' to compare with"
        return ProductCheck(*named, "end to end only", reason=reason)
    if original_product(scope, place) is None:
        reason = f"{between} cannot be taken out alone"
        return ProductCheck(*named, "end to end only", reason=reason)
    try:
        return run_alone(comparison.before, scope, place, attributes.K, rng)
    except ModelError as error:
        reason = f"{between} do not run on (M, {attributes.K}): {error}"
        fails = strict and not any(text in str(error) for text in _UNKNOWN_OPERATOR)
        return ProductCheck(*named, "failed" if fails else "end to end only", reason=reason)


def check_in_place(comparison: Comparison, feeds: Mapping[str, NDArray[Any]]) -> list[ProductCheck]:
    """Each product on the values it has in the original, where these can be had; alone else.

    Subgraphs may run many times or not at all, so their products always run alone.
    """
    rng = np.random.default_rng(comparison.seed)
    num_rows = max(map(_num_rows, feeds.values()), default=1)
    checks = _Checks(comparison)
    for scope in comparison.scopes:
        for batch in _batches(scope, num_rows, comparison.max_exposed_bytes):
            values = _values(comparison, scope, batch, feeds)
            for node in batch:
                place = scope.places[id(node)]
                if place.source in values and place.target in values:
                    checks.add(scope, node, values[place.source], values[place.target])
                else:
                    checks.add_alone(scope, node, rng, strict=False)
            checks.flush()
    return [*checks.flush(), *_gathers(comparison)]


def _values(
    comparison: Comparison,
    scope: Scope,
    nodes: Sequence[NodeProto],
    feeds: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """What the original's values around some products are; none where they cannot be had."""
    if scope.is_subgraph:
        return {}
    places = [scope.places[id(node)] for node in nodes]
    names = dict.fromkeys(
        name for place in places for name in (place.source, place.target) if name in scope.known
    )
    values = {} if scope.function else dict(feeds)
    wanted = [name for name in names if name not in values]
    try:
        values.update(run_exposed(comparison.before, scope.function, feeds, wanted))
    except ModelError:  # what the model hides may be of no type that outputs can have
        return {}
    return values


def _num_rows(feed: NDArray[Any]) -> int:
    """Rows of X this input may lead to: one a character, a token or a vector."""
    if feed.dtype.kind in "OSU":
        return sum(map(len, feed.flat))
    return int(feed.size if feed.dtype.kind in "iu" else np.prod(feed.shape[:-1]))


def _batches(scope: Scope, rows: int, max_bytes: int) -> Iterator[Sequence[NodeProto]]:
    """Runs of nodes whose inputs and outputs take about max_bytes together, one node at least."""
    batch: list[NodeProto] = []
    num_bytes = 0
    for node in scope.products:
        attributes = scope.attributes[id(node)]
        needed = 4 * max(rows, 1) * (attributes.K + attributes.N)
        if batch and num_bytes + needed > max_bytes:
            yield batch
            batch, num_bytes = [], 0
        batch.append(node)
        num_bytes += needed
    if batch:
        yield batch
