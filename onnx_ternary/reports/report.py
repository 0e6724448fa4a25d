"""What a conversion did: dataclasses with a JSON form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from onnx_ternary.schema import OP_TYPE, Activation, Alphabet, IndexFormat, Storage


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One product that became a `TernaryIndexedMatMul` node.

    Attributes:
        node: name of the product, and of the new node.
        op_type: of the product.
        pattern: op types of everything replaced, ``Mul -> MatMul -> Add``.
        graph: ``main graph``, or the node and attribute whose body it is in.
        input: name of the value the new node reads.
        output: name of the value it produces, as in the original model.
        weight: name of the tensor the weight came from.
        K: reduction length.
        N: output columns.
        dtype: of the activations, ``float``, ``float16`` or ``bfloat16``.
        index_format: of the new index.
        storage: of the new index.
        alphabet: of the new index.
        scale: ``tensor``, ``column``, or ``group of 128``, with `` and row`` behind where a Mul in
            front multiplies the input by a scale per row of the weight.
        activation: ``float`` or ``int8``.
        bytes_before: size of the tensors the weight came from: floats, or codes, scales and zero
            points.
        bytes_after: size of codes, segment offsets and scales.
        shares_index_with: the node whose index this one uses too, or None.
        max_relative_change: largest change made to a weight, relative to its scale.
    """

    node: str
    op_type: str
    pattern: str
    graph: str
    input: str
    output: str
    weight: str
    K: int
    N: int
    dtype: str
    index_format: IndexFormat
    storage: Storage
    alphabet: Alphabet
    scale: str
    activation: Activation
    bytes_before: int
    bytes_after: int
    shares_index_with: str | None
    max_relative_change: float


@dataclass(frozen=True, slots=True)
class Kept:
    """One product that stayed as it is.

    Attributes:
        node: its name.
        op_type: of the product.
        graph: as `Rewrite.graph`, or ``function domain::name``.
        weight: name of its constant operand, or an empty string.
        reason: why it stayed.
        weight_shape: of the tensor of that name as the model stores it; None if there is none.
        weight_bytes: its size; 0 if there is none.
        not_ternary: whether its weight was read, and is neither ternary nor binary.
    """

    node: str
    op_type: str
    graph: str
    weight: str
    reason: str
    weight_shape: tuple[int, ...] | None = None
    weight_bytes: int = 0
    not_ternary: bool = False


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """One node of the operators the model came with.

    Attributes:
        node: its name.
        op_type: of the node.
        K: reduction length; 0 where its attributes are damaged, and so on.
        N: output columns.
        index_format: of the index.
        storage: of the index.
        alphabet: of the index.
        scale: as `Rewrite.scale`.
        num_bytes: size of codes, segment offsets and scale.
    """

    node: str
    op_type: str = OP_TYPE
    K: int = 0
    N: int = 0
    index_format: str = ""
    storage: str = ""
    alphabet: str = ""
    scale: str = ""
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One product as a reader sees it, whatever became of it.

    Attributes:
        node: its name.
        pattern: op types of everything replaced, or of the product.
        shape: of its weight, ``64 x 512`` for K x N, ``stored 512 x 64`` where it stays; empty if
            unknown.
        weights: alphabet and scales, ``ternary, scale tensor``; empty if it stays.
        bytes_before: size of its weight; 0 if unknown.
        bytes_after: size afterwards.
        status: what became of it.
        reason: why it is not rewritten, or whose index it shares; may be empty.
    """

    node: str
    pattern: str
    shape: str = ""
    weights: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    status: Literal["rewritten", "stays", "quantized", "already converted"] = "rewritten"
    reason: str = ""

    @property
    def result(self) -> str:
        """Status and reason."""
        return f"{self.status}: {self.reason}" if self.reason else self.status


FEW_ALIKE = 3
"""So many rows that stay for one reason are told one by one."""


def alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in the order of their first, where those that stay for one reason are together.

    Names and numbers in a reason make no difference, the operator does. Other rows are alone.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for at, row in enumerate(rows):
        kind = (str(at), "")
        if row.status == "stays":
            kind = (f"stays {row.pattern}", re.sub(r"'[^']*'|[0-9.]+", "", row.reason))
        groups.setdefault(kind, []).append(row)
    return [*groups.values()]


@dataclass(frozen=True, slots=True)
class Report:
    """What `optimize` did to a model.

    Attributes:
        rewrites: products that were replaced, in graph order.
        rejections: products that stayed, with their reasons, in graph order.
        requantised: names of the rejections that onnxruntime's own quantizer was given
            (`OptimizeOptions.remaining`).
        already_converted: names of the `TernaryIndexedMatMul` nodes the model came with.
        indices: the same nodes with their sizes.
        restored: names of those of them that called the operator by a name with a prefix, as
            `onnx.compose` leaves it.
        unmatched: patterns of `OptimizeOptions.include` and ``exclude`` that no product or weight
            matches.
        notes: what else a user should know (a weight kept, a function body left out).
        bytes_before: all constant tensors of the original model.
        bytes_after: all constant tensors of the result.
        has_function_body: whether the result runs without the library.
        options: `OptimizeOptions.to_dict()`.
        versions: of this package and of what it used, by name.
        machine: where it was made: ``cpu``, its ``features`` that kernels ask for, ``system``.
    """

    rewrites: tuple[Rewrite, ...] = ()
    rejections: tuple[Kept, ...] = ()
    requantised: tuple[str, ...] = ()
    already_converted: tuple[str, ...] = ()
    indices: tuple[StoredIndex, ...] = ()
    restored: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0
    has_function_body: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the result is another model than the original."""
        return bool(self.rewrites or self.requantised or self.restored)

    def nothing_ternary(self) -> str:
        """One sentence for a model no product of which has a ternary weight; else empty."""
        if self.rewrites or self.already_converted:
            return ""
        read = [kept for kept in self.rejections if kept.not_ternary]
        if not read:
            return ""
        number = f"{len(self.rejections)} product{'s' if len(self.rejections) > 1 else ''}"
        if any(kept.weight and not kept.not_ternary for kept in self.rejections):
            return f"{len(read)} of {number} have a weight that is neither ternary nor binary."
        return f"No weight of this model is ternary or binary: {number} looked at."

    def total(self) -> str:
        """All of it in a few words."""
        products = len(self.rewrites) + len(self.rejections)
        total = f"{len(self.rewrites)} of {products} products rewritten"
        if self.requantised:
            total += f", {len(self.requantised)} quantized by onnxruntime"
        if self.already_converted:
            total += f", {len(self.already_converted)} converted before"
        return total

    def __repr__(self) -> str:
        sizes = f"{format_size(self.bytes_before)} -> {format_size(self.bytes_after)}"
        return f"<Report: {self.total()}, constants {sizes}>"

    @property
    def weight_bytes_before(self) -> int:
        """Bytes of the rewritten weights, shared ones counted once."""
        return sum({row.weight: row.bytes_before for row in self.rewrites}.values())

    @property
    def weight_bytes_after(self) -> int:
        """Bytes of the new indices, shared ones counted once."""
        return sum(row.bytes_after for row in self.rewrites if row.shares_index_with is None)

    def rows(self) -> list[Row]:
        """Every product: rewritten, left as it is, or converted before."""
        rows = [
            Row(
                rewrite.node,
                rewrite.pattern,
                f"{rewrite.K} x {rewrite.N}",
                f"{rewrite.alphabet}, scale {rewrite.scale}",
                rewrite.bytes_before,
                rewrite.bytes_after,
                reason=f"shares the index of {rewrite.shares_index_with}"
                if rewrite.shares_index_with
                else "",
            )
            for rewrite in self.rewrites
        ]
        rows += [
            Row(
                kept.node,
                kept.op_type,
                f"stored {' x '.join(map(str, kept.weight_shape))}" if kept.weight_shape else "",
                bytes_before=kept.weight_bytes,
                bytes_after=kept.weight_bytes,
                status="quantized" if kept.node in self.requantised else "stays",
                reason=kept.reason,
            )
            for kept in self.rejections
        ]
        rows += [
            Row(
                index.node,
                index.op_type,
                f"{index.K} x {index.N}" if index.K else "",
                f"{index.alphabet}, scale {index.scale}" if index.K else "",
                bytes_after=index.num_bytes,
                status="already converted",
            )
            for index in self.indices
        ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types: lists, dicts, strings, numbers, booleans and None.

        Keys are the attributes of this class, `weight_bytes_before` and `weight_bytes_after`;
        ``rewrites``, ``rejections`` and ``indices`` hold one dict per node with the attributes of
        `Rewrite`, `Kept` and `StoredIndex`.
        """
        return {
            "rewrites": [asdict(row) for row in self.rewrites],
            "rejections": [asdict(row) for row in self.rejections],
            "requantised": list(self.requantised),
            "already_converted": list(self.already_converted),
            "indices": [asdict(row) for row in self.indices],
            "restored": list(self.restored),
            "unmatched": list(self.unmatched),
            "notes": list(self.notes),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "weight_bytes_before": self.weight_bytes_before,
            "weight_bytes_after": self.weight_bytes_after,
            "has_function_body": self.has_function_body,
            "options": dict(self.options),
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }


def format_size(num_bytes: int) -> str:
    """A size in the unit that gives three significant digits, powers of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        # 999.5 would be rounded to 1e+03.
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 999.5 else f"{size:.0f} GB"
