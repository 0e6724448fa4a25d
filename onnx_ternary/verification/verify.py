"""Whether a converted model gives the original's answers.

Each rewritten product is judged on its own, by the op's derived error bound: the original graph
runs with optimizations off and the product's input and output exposed, and the converted node runs
on that input. End to end, where no bound survives normalization and rounding, the differences of
the outputs are measured against stated tolerances.

Where the whole original does not run, products are taken out of it and run alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_ternary import runtime
from onnx_ternary.errors import ModelError, NotComparedError, RequirementError
from onnx_ternary.op.nodes import METADATA_OPTIONS
from onnx_ternary.options import VerificationOptions
from onnx_ternary.verification.body import Bodies, run_without_library
from onnx_ternary.verification.inlined import with_inlined_calls
from onnx_ternary.verification.inputs import (
    ChosenInputs,
    InputOptions,
    Inputs,
    InputsError,
    choose_inputs,
)
from onnx_ternary.verification.loaded_model import LoadedModel, Model, Tries
from onnx_ternary.verification.original import (
    ROUNDING_OPS,
    with_float_sums,
    with_separate_activations,
    with_unsigned_weights,
)
from onnx_ternary.verification.outputs import compare_outputs
from onnx_ternary.verification.places import (
    blockwise_products,
    find_scopes,
    is_product,
    nested_nodes,
)
from onnx_ternary.verification.products import (
    Comparison,
    Progress,
    check_alone,
    check_in_place,
)
from onnx_ternary.verification.reach import Reach, Run, find_reach, overflowing
from onnx_ternary.verification.report import OutputCheck, ProductCheck, VerificationReport
from onnx_ternary.verification.settings import (
    DEFAULT_MAX_EXPOSED_BYTES,
    DEFAULT_MAX_ROWS,
    VerifySettings,
)
from onnx_ternary.verification.verdicts import outputs_without_verdict

# In front of a MatMul, or as one, optimized to a product of 8-bit activations.
_ROUNDED_WHEN_OPTIMIZED = frozenset(("DequantizeLinear", "MatMulNBits"))
# Verification holds the original in memory, its products' inputs and outputs beside it.
MAX_VERIFIED_BYTES = 2_000_000_000


def verify(
    original: Model,
    converted: Model,
    options: VerificationOptions | None = None,
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    weight_tolerance: float | None = None,
    max_rows: int = DEFAULT_MAX_ROWS,
    max_exposed_bytes: int = DEFAULT_MAX_EXPOSED_BYTES,
    products_only: bool = False,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare a converted model with its original, product by product and end to end.

    Where the whole original does not run (an operator of another domain, no generated inputs that
    fit), each product runs alone, as with ``products_only``, and the report says why. Memory grows
    with the original, unless ``products_only``.

    Args:
        original: the model before conversion: a path, a serialized model or a model in memory.
        converted: the model after it.
        options: None for the defaults.
        inputs: arrays by input name, or an .npz file of them (other arrays in the file are
            ignored); None generates them.
        seed: of generated inputs.
        tolerance: largest difference of a float output relative to its largest magnitude. None
            takes DEFAULT_TOLERANCES, and gives no verdict on outputs behind an operator that may
            turn a rounding error into another value, of models that quantize activations, or whose
            weights were changed (`weight_tolerance`).
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale;
            None reads what the converted model's metadata says.
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
        NotComparedError: if neither the whole original nor any of its products runs.
        ModelError: if a model cannot be read, the converted one does not run, or the original does
            not on inputs that were given.
        InputsError: if `inputs` do not fit the original's inputs, or are given where none are used.
        RequirementError: if `options` require what cannot be done.
        LibraryError: if the library is missing or onnxruntime is too old.
        IndexFormatError: if a converted node's index breaks its format.
    """
    settings = VerifySettings(
        options or VerificationOptions(),
        inputs,
        seed,
        tolerance,
        weight_tolerance,
        max_rows,
        max_exposed_bytes,
        products_only,
        custom_op_libraries,
        progress,
    )
    return compare_models(original, converted, settings)


def compare_models(
    original: Model, converted: Model, settings: VerifySettings
) -> VerificationReport:
    """Compare two models as `verify` does.

    Args:
        original: the model before conversion.
        converted: the model after it.
        settings: how.

    Raises:
        OnnxTernaryError: as `verify`.
    """
    libraries = tuple(map(runtime.find_library, settings.custom_op_libraries))
    before = LoadedModel.load(original, "original", libraries)
    after = LoadedModel.load(converted, "converted", libraries)
    if settings.products_only and settings.inputs is not None:
        raise InputsError("Products are compared alone, on random activations: give no inputs.")
    if settings.products_only and settings.options.require_whole:
        raise RequirementError("Products alone and a comparison of the whole exclude each other.")
    exact, num_rounding = with_float_sums(before)
    comparison = _comparison(exact, after, settings)
    if settings.products_only:
        return _alone(comparison, "it was not asked for", strict=True)
    tries = Tries(before)
    try:
        chosen = choose_inputs(
            before.proto,
            InputOptions(settings.inputs, settings.seed, settings.options.shapes),
            tries.refusal,
        )
        expected = tries.outputs(chosen.feeds)
    except ModelError as error:
        if settings.inputs is not None:
            raise
        if settings.options.require_whole:
            raise RequirementError(
                f"The whole models were not compared, but that is required: {error}"
            ) from error
        report = _alone(comparison, str(error), strict=False)
        if report.products and report.num_unjudged == len(report.products):
            raise NotComparedError(str(error)) from error
        return report
    whole = _Whole(before, comparison, num_rounding, settings.tolerance, tries.outputs)
    return whole.report(chosen, expected)


def _comparison(exact: LoadedModel, after: LoadedModel, settings: VerifySettings) -> Comparison:
    """How products are compared; ``exact`` is the original with sums in float32."""
    exact = with_inlined_calls(with_separate_activations(with_unsigned_weights(exact)), after)
    allowed = settings.weight_tolerance
    return Comparison(
        exact,
        after,
        find_scopes(exact.proto, after.proto),
        weight_tolerance=_recorded_tolerance(after) if allowed is None else allowed,
        max_rows=settings.max_rows,
        max_exposed_bytes=settings.max_exposed_bytes,
        seed=settings.seed,
        bodies=Bodies.of(after.proto),
        progress=settings.progress,
    )


def _recorded_tolerance(model: LoadedModel) -> float:
    """What conversion was allowed to change a weight by, as it wrote into the model."""
    for each in model.proto.metadata_props:
        if each.key == METADATA_OPTIONS:
            try:
                return float(json.loads(each.value).get("tolerance", 0.0))
            except (ValueError, TypeError, AttributeError):
                return 0.0
    return 0.0


def _output_names(model: LoadedModel) -> list[str]:
    return [value.name for value in model.proto.graph.output]


def _alone(comparison: Comparison, why: str, *, strict: bool) -> VerificationReport:
    """Each product alone, on random activations."""
    checks = check_alone(comparison, strict=strict)
    notes = ["each product ran alone, on random activations; outputs were not compared"]
    if not strict:
        notes.append(
            f"the whole models were not compared: {why} To compare them, give inputs that fit "
            "(--inputs, --shape) or the library of the operators (--library)"
        )
    return VerificationReport(
        tuple(checks),
        (),
        _num_nested(comparison),
        {},
        tuple(notes),
        scope="products",
        not_whole=why,
    )


def _num_nested(comparison: Comparison) -> int:
    """Products in subgraphs and functions that the original does not have."""
    nested = sum(map(is_product, nested_nodes(comparison.after.proto)))
    return nested - sum(
        len(scope.products)
        for scope in comparison.scopes
        if scope.function is not None or scope.is_subgraph
    )


@dataclass(frozen=True, slots=True)
class _Whole:
    """Both models as a whole.

    Attributes:
        before: the original as it is.
        comparison: what products are compared by.
        num_rounding: MatMulNBits nodes of the original that may round their inputs.
        tolerance: of outputs, as the caller gave it.
        run: what the original gives for inputs.
    """

    before: LoadedModel
    comparison: Comparison
    num_rounding: int
    tolerance: float | None
    run: Run

    def report(self, chosen: ChosenInputs, expected: Mapping[str, Any]) -> VerificationReport:
        """Products on the values they have, outputs against tolerances."""
        first, found = expected, self._found(chosen.feeds)
        products = check_in_place(self.comparison, chosen.feeds)
        rounding = list(self._rounding_notes())
        num_nested = _num_nested(self.comparison)
        no_verdict = self._no_verdict(expected, bool(rounding))
        half = any(check.dtype == "float16" for check in products)
        outputs: list[OutputCheck] = []
        other_notes: list[str] = []
        for suffix, feeds in _variants(chosen):
            if suffix:
                try:
                    expected = self.before.run(feeds, _output_names(self.before), optimized=False)
                except ModelError:
                    other_notes.append(
                        f"the original does not run on inputs of this shape{suffix}: that branch "
                        "was not compared end to end"
                    )
                    continue
                found = self._found(feeds)
            outputs += self._compared(expected, found, no_verdict, half, suffix)
        body, note = run_without_library(
            self.comparison.after,
            chosen.feeds,
            _output_names(self.comparison.after),
            optimized=self._optimized,
        )
        without_library: list[OutputCheck] = []
        if body is not None:
            without_library = self._compared(first, body, no_verdict, half, "")
        reach = find_reach(self.run, chosen.feeds) if half else None
        if reach is not None:
            outputs += self._overflowing(reach, no_verdict)
            if body is not None:
                without_library += self._overflowing(reach, no_verdict, with_op=False)
            other_notes.append(
                f"inputs {reach.factor} times as large, which the original takes without overflow, "
                "were compared too: whether every output is finite"
            )
        notes = [
            *rounding,
            *_grouped(no_verdict),
            *self._product_notes(products, num_nested, bool(no_verdict)),
            *other_notes,
            *filter(None, [note]),
        ]
        return VerificationReport(
            tuple(products),
            tuple(outputs),
            num_nested,
            chosen.described,
            tuple(notes),
            without_library=tuple(without_library),
        )

    def _compared(
        self,
        expected: Mapping[str, Any],
        found: Mapping[str, Any],
        no_verdict: Mapping[str, str],
        half: bool,
        suffix: str,
    ) -> list[OutputCheck]:
        graph = self.comparison.after.proto.graph
        return compare_outputs(
            expected,
            found,
            makers={name: node.name or node.op_type for node in graph.node for name in node.output},
            tolerance=self.tolerance,
            undecided=no_verdict,
            half=half,
            suffix=suffix,
        )

    def _overflowing(
        self, reach: Reach, no_verdict: Mapping[str, str], *, with_op: bool = True
    ) -> Sequence[OutputCheck]:
        after = self.comparison.after
        session = after.session(None, optimized=self._optimized, with_op=with_op)
        found = after.run_values(session, reach.feeds, _output_names(after))
        makers = {name: each.name for each in after.proto.graph.node for name in each.output}
        random = [name for name, reason in no_verdict.items() if reason]
        return overflowing(reach, found, makers, random)

    def _found(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        after = self.comparison.after
        return after.run(feeds, _output_names(after), optimized=self._optimized)

    @property
    def _optimized(self) -> bool:
        """Whether onnxruntime may optimize: not if it then rounds activations of other products."""
        after = self.comparison.after.proto
        return not any(
            node.op_type in _ROUNDED_WHEN_OPTIMIZED
            for node in (*after.graph.node, *nested_nodes(after))
        )

    def _rounding_notes(self) -> Iterator[str]:
        """Why no output of the model can be held to a tolerance, where that is so."""
        before, after = self.before.proto, self.comparison.after.proto
        if self.num_rounding:
            yield (
                f"{self.num_rounding} MatMulNBits nodes of the original may round their inputs to "
                "int8 (accuracy_level = 4): the products are compared with what onnxruntime "
                "computes in float32 (accuracy_level = 1) from the same weights"
            )
        requantized = blockwise_products(after) - blockwise_products(before)
        if requantized:
            yield (
                f"{len(requantized)} products were quantized by onnxruntime (--remaining), so the "
                "outputs are reported without a verdict"
            )
        kinds = [each for scope in self.comparison.scopes for each in scope.attributes.values()]
        if (
            self.num_rounding > 0
            or bool(requantized)
            or any(attributes.activation != "float" for attributes in kinds)
            or any(
                node.op_type in ROUNDING_OPS for node in (*before.graph.node, *nested_nodes(before))
            )
        ):
            yield (
                "activations are quantized or rounded: a value that rounds the other way moves the "
                "outputs far more than the products' errors"
            )
        if self.comparison.weight_tolerance:
            yield (
                f"weights were changed by up to {self.comparison.weight_tolerance:g} of their "
                "scale, so the outputs are reported without a verdict"
            )

    def _no_verdict(self, expected: Mapping[str, Any], rounds: bool) -> dict[str, str]:
        """Outputs without a verdict, and why."""
        if self.tolerance is not None:
            return {}
        if rounds:
            return dict.fromkeys(expected, "")
        return outputs_without_verdict(self.comparison.after.proto)

    def _product_notes(
        self, products: Sequence[ProductCheck], num_nested: int, no_verdict: bool
    ) -> Iterator[str]:
        if num_nested:
            yield f"{num_nested} products in subgraphs are covered end to end only"
        num_inside = sum(
            len(scope.products) for scope in self.comparison.scopes if scope.is_subgraph
        )
        if num_inside:
            yield f"{num_inside} products in subgraphs ran alone, on random activations"
        if any(check.compared_with.is_rule for check in products):
            yield (
                "products with quantized activations are held against the numpy reference of the "
                "quantization rule, on the original's inputs, and against the original's product "
                "where the original quantizes by itself"
            )
        unjudged = num_nested + sum(check.status == "end to end only" for check in products)
        if unjudged and no_verdict:
            yield (
                f"{unjudged} products have no verdict: neither they nor the outputs behind them "
                "can be held to a bound"
            )


def _variants(chosen: ChosenInputs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The inputs, then inputs that take other branches, each with what to call them."""
    yield "", chosen.feeds
    for feeds in chosen.others:
        changed = [
            f"{name} = {bool(array.flat[0])}"
            for name, array in feeds.items()
            if array is not chosen.feeds[name] and array.size
        ]
        yield f" with {', '.join(changed)}", feeds


def _grouped(no_verdict: Mapping[str, str]) -> Iterator[str]:
    """One note a reason."""
    for reason in dict.fromkeys(filter(None, no_verdict.values())):
        names = [name for name, each in no_verdict.items() if each == reason]
        shown = ", ".join(f"'{name}'" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"no verdict on {shown}{more}: {reason}"
