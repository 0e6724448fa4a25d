"""Whether a converted model gives the original's answers.

Each rewritten product is judged on its own, by the op's derived error bound: the original graph
runs with optimizations off and the product's input and output exposed, and the converted node runs
on that input. End to end, where no bound survives normalization and rounding, the differences of
the outputs are measured against stated tolerances.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_ternary import runtime
from onnx_ternary.errors import ModelError
from onnx_ternary.verification.inputs import Inputs, InputsError, verification_inputs
from onnx_ternary.verification.judge import check_output, check_product
from onnx_ternary.verification.loaded_model import LoadedModel, Model
from onnx_ternary.verification.original import (
    ROUNDING_OPS,
    original_product,
    run_alone,
    run_exposed,
    with_float_sums,
    with_unsigned_weights,
)
from onnx_ternary.verification.places import (
    Scope,
    blockwise_products,
    find_places,
    find_scopes,
    is_product,
    nested_nodes,
    node_attributes,
    node_name,
)
from onnx_ternary.verification.report import ProductCheck, VerificationReport

Progress: TypeAlias = Callable[[str, int, int], None]
# Largest difference of an output relative to its largest magnitude. Models with float16 products
# get that of float16, whatever their outputs are.
DEFAULT_TOLERANCES: Mapping[str, float] = {
    "float64": 1e-5,
    "float32": 1e-5,
    "float16": 1e-2,
}
# In front of a MatMul, or as one, optimized to a product of 8-bit activations.
_ROUNDED_WHEN_OPTIMIZED = frozenset(("DequantizeLinear", "MatMulNBits"))
# Verification holds the original in memory, its products' inputs and outputs beside it.
MAX_VERIFIED_BYTES = 2_000_000_000


def verify(
    original: Model,
    converted: Model,
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    weight_tolerance: float = 0.0,
    max_rows: int = 256,
    max_exposed_bytes: int = 1 << 28,
    products_only: bool = False,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> VerificationReport:
    """Compares a converted model with its original, product by product and end to end.

    Memory grows with the original, unless ``products_only``.

    Args:
        original: the model before conversion: a path, a serialized model or a model in memory.
        converted: the model after it.
        inputs: arrays by input name, or an .npz file of them (other arrays in the file are
            ignored); None generates them.
        seed: of generated inputs.
        tolerance: largest difference of a float output relative to its largest magnitude. None
            takes DEFAULT_TOLERANCES, and gives no verdict on outputs of models that quantize
            activations or whose weights were changed (`weight_tolerance`).
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.
        max_rows: rows a product is compared on at most, fewer where it is large; all are run.
        max_exposed_bytes: intermediate values held at once, roughly.
        products_only: run each product alone, on random activations, and no whole model: memory is
            that of the largest product, where float weights are external data. Outputs are not
            compared. A product that cannot be taken out of the original has no verdict; one that
            can but does not run has failed.
        custom_op_libraries: other libraries whose operators the models use, as
            `runtime.find_library` takes them.
        progress: called with the product's name, its number and how many there are.

    Returns:
        The report; a difference is not an error, look at `passed`.

    Raises:
        ModelError: if a model cannot be read or run.
        InputsError: if `inputs` do not fit the original's inputs, or are given where none are used.
        LibraryError: if the library is missing or onnxruntime is too old.
        IndexFormatError: if a converted node's index breaks its format.
    """
    libraries = tuple(map(runtime.find_library, custom_op_libraries))
    before = LoadedModel.load(original, "original", libraries)
    after = LoadedModel.load(converted, "converted", libraries)
    notes: list[str] = []
    if products_only:
        if inputs is not None:
            raise InputsError("Products are compared alone, on random activations: give no inputs.")
        return _verify_products(before, after, seed, weight_tolerance, max_rows, progress)
    feeds, used = verification_inputs(before.proto, inputs, seed, before.refusal)
    exact, num_rounding = with_float_sums(before)
    exact = with_unsigned_weights(exact)
    scopes = find_scopes(exact.proto, after.proto)
    nodes = [node for scope in scopes for node in scope.products]
    num_nested = _num_nested(after, scopes)
    if num_nested:
        notes.append(f"{num_nested} products in subgraphs are covered end to end only")

    output_names = [value.name for value in before.proto.graph.output]
    expected = before.run(feeds, output_names, optimized=False)
    # As users run it, unless onnxruntime then rounds activations of products that stayed.
    kept_codes = any(
        node.op_type in _ROUNDED_WHEN_OPTIMIZED
        for node in (*after.proto.graph.node, *nested_nodes(after.proto))
    )
    found = after.run(
        feeds, [value.name for value in after.proto.graph.output], optimized=not kept_codes
    )
    products = _check_products(
        exact,
        after,
        scopes,
        feeds,
        weight_tolerance=weight_tolerance,
        max_rows=max_rows,
        max_exposed_bytes=max_exposed_bytes,
        progress=progress,
    )

    if num_rounding:
        notes.append(
            f"{num_rounding} MatMulNBits nodes of the original may round their inputs to int8 "
            "(accuracy_level = 4): the products are compared with what onnxruntime computes in "
            "float32 (accuracy_level = 1) from the same weights"
        )
    requantised = blockwise_products(after.proto) - blockwise_products(before.proto)
    if requantised:
        notes.append(
            f"{len(requantised)} products were quantized by onnxruntime (--remaining), so the "
            "outputs are reported without a verdict"
        )
    quantizes = (
        num_rounding > 0
        or bool(requantised)
        or any(node_attributes(node).activation != "float" for node in nodes)
        or any(
            node.op_type in ROUNDING_OPS
            for node in (*before.proto.graph.node, *nested_nodes(before.proto))
        )
    )
    if quantizes:
        notes.append(
            "activations are quantized or rounded: a value that rounds the other way moves the "
            "outputs far more than the products' errors"
        )
    if weight_tolerance:
        notes.append(
            f"weights were changed by up to {weight_tolerance:g} of their scale, so the outputs "
            "are reported without a verdict"
        )
    if any(check.compared_with.is_rule for check in products):
        notes.append(
            "products with quantized activations are held against the numpy reference of the "
            "quantization rule, on the original's inputs, and against the original's product where "
            "the original quantizes by itself"
        )
    unjudged = num_nested + sum(check.status == "end to end only" for check in products)
    if unjudged and tolerance is None and (quantizes or weight_tolerance):
        notes.append(
            f"{unjudged} products have no verdict: neither they nor the outputs behind them can be "
            "held to a bound"
        )
    makers = {
        name: node.name or node.op_type for node in after.proto.graph.node for name in node.output
    }
    half = any(check.dtype == "float16" for check in products)
    outputs = []
    for name in output_names:
        if name not in found:
            raise ModelError(
                f"The converted model has no output '{name}', which the original has; convert the "
                "model again with 'onnx-ternary optimize'."
            )
        limit = tolerance
        if limit is None and not quantizes and not weight_tolerance:
            coarsest = "float16" if half else expected[name].dtype.name
            limit = DEFAULT_TOLERANCES.get(coarsest)
        outputs.append(check_output(name, makers.get(name, ""), expected[name], found[name], limit))
    return VerificationReport(tuple(products), tuple(outputs), num_nested, used, tuple(notes))


def _verify_products(
    before: LoadedModel,
    after: LoadedModel,
    seed: int,
    weight_tolerance: float,
    max_rows: int,
    progress: Progress | None,
) -> VerificationReport:
    """Each product alone, on random activations."""
    exact = with_unsigned_weights(with_float_sums(before)[0])
    scopes = find_scopes(exact.proto, after.proto)
    total = sum(len(scope.products) for scope in scopes)
    rng = np.random.default_rng(seed)
    checks: list[ProductCheck] = []
    for scope in scopes:
        nodes = scope.products
        places = find_places(scope.after, nodes, scope.known)
        for node in nodes:
            if progress is not None:
                progress(node_name(node), len(checks) + 1, total)
            place, attributes = places[id(node)], node_attributes(node)
            between = f"the original's nodes from '{place.source}' to '{place.target}'"
            named = (node_name(node), node.output[0], (attributes.K, attributes.N))
            if original_product(scope.before, place) is None:
                reason = f"{between} cannot be taken out alone"
                checks.append(ProductCheck(*named, "end to end only", reason=reason))
                continue
            try:
                pair = run_alone(exact, scope.before, place, attributes.K, rng)
            except ModelError as error:
                reason = f"{between} do not run on (M, {attributes.K}): {error}"
                checks.append(ProductCheck(*named, "failed", reason=reason))
                continue
            checks.append(
                check_product(exact, after, scope, node, place, *pair, weight_tolerance, max_rows)
            )
    notes = ("each product ran alone, on random activations; outputs were not compared",)
    return VerificationReport(tuple(checks), (), _num_nested(after, scopes), {}, notes)


def _num_nested(after: LoadedModel, scopes: Sequence[Scope]) -> int:
    """Products in subgraphs, and in functions that the original does not have."""
    return sum(map(is_product, nested_nodes(after.proto))) - sum(
        len(scope.products) for scope in scopes if scope.function
    )


def _check_products(
    before: LoadedModel,
    after: LoadedModel,
    scopes: Sequence[Scope],
    feeds: Mapping[str, NDArray[Any]],
    *,
    weight_tolerance: float,
    max_rows: int,
    max_exposed_bytes: int,
    progress: Progress | None,
) -> list[ProductCheck]:
    rows = max(map(_num_rows, feeds.values()), default=1)
    total = sum(len(scope.products) for scope in scopes)
    checks: list[ProductCheck] = []
    batches = (
        (scope, batch)
        for scope in scopes
        for batch in _batches(scope.products, rows, max_exposed_bytes)
    )
    for scope, batch in batches:
        known = scope.known
        places = find_places(scope.after, batch, known)
        names = dict.fromkeys(
            name
            for node in batch
            for name in (places[id(node)].source, places[id(node)].target)
            if name in known
        )
        values = {} if scope.function else dict(feeds)
        wanted = [name for name in names if name not in values]
        values.update(run_exposed(before, scope.function, feeds, wanted))
        for node in batch:
            if progress is not None:
                progress(node_name(node), len(checks) + 1, total)
            place = places[id(node)]
            missing = [n for n in (place.source, place.target) if n not in values]
            if missing:
                attributes = node_attributes(node)
                checks.append(
                    ProductCheck(
                        node_name(node),
                        node.output[0],
                        (attributes.K, attributes.N),
                        "end to end only",
                        reason=(
                            f"local function {scope.function[0]}::{scope.function[1]} is called in "
                            "subgraphs only"
                            if scope.function and missing[0] in known
                            else f"the original has no tensor '{missing[0]}' to compare with"
                        ),
                    )
                )
                continue
            x, y = values[place.source], values[place.target]
            checks.append(
                check_product(before, after, scope, node, place, x, y, weight_tolerance, max_rows)
            )
    return checks


def _num_rows(feed: NDArray[Any]) -> int:
    """Rows of X this input may lead to: one a character, a token or a vector."""
    if feed.dtype.kind in "OSU":
        return sum(map(len, feed.flat))
    return int(feed.size if feed.dtype.kind in "iu" else np.prod(feed.shape[:-1]))


def _batches(
    nodes: Sequence[NodeProto], rows: int, max_bytes: int
) -> Iterator[Sequence[NodeProto]]:
    """Runs of nodes whose inputs and outputs take about max_bytes together, one node at least."""
    batch: list[NodeProto] = []
    num_bytes = 0
    for node in nodes:
        attributes = node_attributes(node)
        needed = 4 * max(rows, 1) * (attributes.K + attributes.N)
        if batch and num_bytes + needed > max_bytes:
            yield batch
            batch, num_bytes = [], 0
        batch.append(node)
        num_bytes += needed
    if batch:
        yield batch
