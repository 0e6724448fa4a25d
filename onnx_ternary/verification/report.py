"""What verification found: one record per product, one per output, and their verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np

from onnx_ternary.errors import MAX_NAME, visible


class Reference(str, Enum):
    """What a product's output was held against; the value is what reports say."""

    NOTHING = ""
    ORIGINAL = "original product"
    INT8_RULE = "numpy reference of the int8 rule"
    INT8_RULE_AND_ORIGINAL = "numpy reference of the int8 rule and original product"
    UINT8_RULE = "numpy reference of the uint8 rule"
    UINT8_RULE_AND_ORIGINAL = "numpy reference of the uint8 rule and original product"

    __str__ = str.__str__

    @classmethod
    def of(cls, activation: str, *, original_rounds: bool) -> Reference:
        """What a product is held against.

        Args:
            activation: of the op.
            original_rounds: whether the original quantizes by itself, so that its product follows
                the same rule.
        """
        if activation == "float":
            return cls.ORIGINAL
        return cls[f"{activation.upper()}_RULE" + ("_AND_ORIGINAL" if original_rounds else "")]

    @property
    def is_rule(self) -> bool:
        """Whether it is the numpy reference of a quantization rule."""
        return self not in (Reference.NOTHING, Reference.ORIGINAL)


@dataclass(frozen=True, slots=True)
class ProductCheck:
    """One rewritten product.

    Attributes:
        node: name of the converted node, its output's where it has none.
        output: name of the value that was compared.
        shape: (K, N) of the weight.
        status: "passed", "failed", or "end to end only" where the original has no such value.
        dtype: of the activations; empty if the product was not judged on its own.
        compared_with: what the op's output was held against.
        reason: why the product was not judged on its own; empty if it was.
        rows: rows of X compared, evenly taken.
        probe_rows: sparse rows compared besides, which show a single wrong weight however long the
            sums are; 0 where the original's product cannot be run on its own.
        ran_without_library: whether the same rows also ran through the model's function body, as
            one product of each kind does.
        worst_is_probe: whether worst_index counts rows of the probe.
        worst_is_without_library: whether that element comes from the function body.
        max_abs_error: largest difference of a finite element.
        worst_error_over_bound: largest ratio of error and bound; above 1 fails.
        worst_index: (row, column) of that element.
        worst_expected: the value it should have.
        worst_found: the value it has.
        max_difference_from_original: largest difference from the original's product relative to
            its largest magnitude; where activations are quantized it is no error.
    """

    node: str
    output: str
    shape: tuple[int, int]
    status: Literal["passed", "failed", "end to end only"]
    dtype: str = ""
    compared_with: Reference = Reference.NOTHING
    reason: str = ""
    rows: int = 0
    probe_rows: int = 0
    ran_without_library: bool = False
    worst_is_probe: bool = False
    worst_is_without_library: bool = False
    max_abs_error: float = 0.0
    worst_error_over_bound: float = 0.0
    worst_index: tuple[int, int] | None = None
    worst_expected: float = 0.0
    worst_found: float = 0.0
    max_difference_from_original: float = 0.0


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of the model, original against converted.

    Attributes:
        name: of the output.
        node: the converted graph's node that makes it.
        dtype: of the original's output.
        shape: of the original's output.
        max_abs_difference: largest difference; inf where only one is NaN or the shapes differ.
        max_relative_difference: the largest difference divided by the original's largest magnitude.
        tolerance: for max_relative_difference; None where it is reported only.
        worst_index: where the largest difference is.
        top1_agreement: share of equal argmax along the last axis, for float outputs of rank >= 2.
        passed: whether it is within its tolerance.
        why_no_verdict: why it has no tolerance, where one operator is to blame.
    """

    name: str
    node: str
    dtype: str
    shape: tuple[int, ...]
    max_abs_difference: float
    max_relative_difference: float
    tolerance: float | None
    worst_index: tuple[int, ...] | None
    top1_agreement: float | None
    passed: bool
    why_no_verdict: str = ""


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        products: one per TernaryIndexedMatMul node of the converted model; products of a function
            are judged on what its first call is given, products of subgraphs on random activations.
        outputs: one per output of the model; empty where whole models were not compared.
        num_nested_products: converted nodes in places that the original does not have, covered end
            to end only.
        inputs: shape and dtype of each input used, "generated, seed 0: float32 (2, 64)".
        notes: what the reader has to know to read the numbers.
        scope: "whole" where both models ran as a whole, "products" where each product ran alone.
        not_whole: why whole models were not compared; empty where they were.
        without_library: the outputs once more, of the converted model in a session without the
            library, where its function body computes; empty where that did not run.
    """

    products: tuple[ProductCheck, ...]
    outputs: tuple[OutputCheck, ...]
    num_nested_products: int
    inputs: Mapping[str, str]
    notes: tuple[str, ...]
    scope: Literal["whole", "products"] = "whole"
    not_whole: str = ""
    without_library: tuple[OutputCheck, ...] = ()

    @property
    def products_passed(self) -> bool:
        """Whether no product is outside its bound."""
        return all(product.status != "failed" for product in self.products)

    @property
    def outputs_passed(self) -> bool:
        """Whether every output that has a tolerance is within it."""
        return all(output.passed for output in (*self.outputs, *self.without_library))

    @property
    def num_unjudged(self) -> int:
        """Products that were not compared on their own."""
        alone = sum(product.status == "end to end only" for product in self.products)
        return alone + self.num_nested_products

    @property
    def passed(self) -> bool:
        """Whether products and outputs passed."""
        return self.products_passed and self.outputs_passed

    @property
    def worst_product(self) -> ProductCheck | None:
        """The product closest to or farthest beyond its bound."""
        judged = [product for product in self.products if product.rows]
        return max(judged, key=lambda check: check.worst_error_over_bound, default=None)

    @property
    def worst_output(self) -> OutputCheck | None:
        """The output with the largest relative difference."""
        return max(self.outputs, key=lambda check: check.max_relative_difference, default=None)

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return visible(f"<VerificationReport: {verdict}, {self.summary()}>")

    def summary(self) -> str:
        """The verdict in a sentence or two, naming the worst product and output."""
        judged = sum(product.status != "end to end only" for product in self.products)
        failed = sum(product.status == "failed" for product in self.products)
        parts = [f"{judged - failed} of {judged} products within their bounds"]
        product, output = self.worst_product, self.worst_output
        if product is not None:
            where = (
                f"probe {product.worst_index}" if product.worst_is_probe else product.worst_index
            )
            without = " without the library" if product.worst_is_without_library else ""
            parts.append(
                f"worst: {visible(product.node, MAX_NAME)} at {where}{without}, "
                f"{product.worst_error_over_bound:.3g} of its bound"
            )
        if output is not None:
            limit = (
                f"no verdict: {output.why_no_verdict}" if output.why_no_verdict else "no tolerance"
            )
            if output.tolerance is not None:
                limit = f"limit {output.tolerance:g}"
            parts.append(
                f"outputs differ by at most {output.max_relative_difference:.3g} relative "
                f"({limit}): {visible(output.name, MAX_NAME)} at {output.worst_index}, made by "
                f"{visible(output.node, MAX_NAME)}"
            )
        elif self.scope == "products":
            parts.append("outputs were not compared")
        parts += [
            f"without the library output {visible(check.name, MAX_NAME)} differs by "
            f"{check.max_relative_difference:.3g} relative (or in its shape, expected "
            f"{check.shape})"
            for check in self.without_library
            if not check.passed
        ]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON, which has no inf and NaN: these become strings."""
        return {
            "passed": self.passed,
            "scope": self.scope,
            "not_whole": self.not_whole,
            "products_passed": self.products_passed,
            "outputs_passed": self.outputs_passed,
            "products": [_for_json(product) for product in self.products],
            "outputs": [_for_json(output) for output in self.outputs],
            "without_library": [_for_json(output) for output in self.without_library],
            "num_nested_products": self.num_nested_products,
            "inputs": dict(self.inputs),
            "notes": list(self.notes),
        }


def _for_json(check: ProductCheck | OutputCheck) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(check).items()}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
