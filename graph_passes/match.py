"""What a rule sees and what it answers. Nothing here, and no rule, changes the graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.index.levels import NotTernary, TernaryWeight
from onnx_ternary.options import OptimizeOptions

from .constants.ahead import Ahead
from .constants.constant import Constant, Folder, NotConstant
from .constants.resolve import resolve


@dataclass(frozen=True, slots=True)
class Rejection:
    """A product that stays as it is.

    Attributes:
        node: the product.
        reason: in words a person would use, naming tensors.
        weight: name of the constant operand, where there is one.
        not_ternary: whether the weight was read, and is neither ternary nor binary.
    """

    node: ir.Node
    reason: str
    weight: str = ""
    not_ternary: bool = False


@dataclass(frozen=True, slots=True)
class Addend:
    """A term that cannot become the op's bias: ``factor * value`` is added after it."""

    value: ir.Value
    factor: float


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A standard operator of one operand that the product's own operator ends with."""

    op_type: str
    attributes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TernaryMatMul:
    """A product with a ternary weight, ready to be replaced.

    Attributes:
        product: the MatMul or Gemm; the new node takes its name.
        absorbed: the other nodes the new node stands for.
        pattern: op types of what is replaced, first to last: ``Mul -> MatMul -> Add``.
        x: the activations, (..., K) once they are permuted.
        rank: of x, where the product's operator tells it, also if the model does not; or None.
        perm_x: of a Transpose of x that goes in front, or None.
        perm_y: of a Transpose of the result, (..., N), that goes behind, or None.
        split_x: lengths of the last axes of x, once they are permuted, that are one axis of length
            K for the op: a Reshape goes in front. Empty: x ends in that axis.
        split_y: lengths of the axes that the result's last axis, of length N, stands for: a Reshape
            goes behind, before perm_y. Empty: it stays.
        weight: the constant operand as (K, N).
        levels: its levels; ``levels.scale`` does not hold the absorbed factors.
        scale: float32 (), (N,) or (num_groups, N), absorbed factors included.
        bias: float32 (N,), or None.
        bias_value: an initializer of the product's graph that holds exactly `bias`, or None.
        addend: a term that stays an Add.
        then: what the product's operator does to the sums, which goes behind; or None.
        output: the value the last replaced node produces; its name is kept.
        note: what the user should know, said of all such nodes at once; or an empty string.
        activation: the op's activation attributes, where the model quantizes X itself.
    """

    product: ir.Node
    absorbed: tuple[ir.Node, ...]
    pattern: str
    x: ir.Value
    rank: int | None
    perm_x: tuple[int, ...] | None
    perm_y: tuple[int, ...] | None
    weight: Constant
    levels: TernaryWeight
    scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    bias_value: ir.Value | None
    addend: Addend | None
    output: ir.Value
    then: Elementwise | None = None
    split_x: tuple[int, ...] = ()
    split_y: tuple[int, ...] = ()
    note: str = ""
    activation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A gather of rows of a constant.

    Attributes:
        node: the gather.
        indices: the rows it asks for.
        weight: the table's transpose, (K, N), as a product has it.
    """

    node: ir.Node
    indices: ir.Value
    weight: Constant


class Context:
    """What rules share while one model is converted: options, opset, constants, the last weight.

    Consecutive users of a shared weight (its key is the same) do not read it again; keeping more
    than one matrix would cost memory. The next few are being read meanwhile (constants/ahead.py).
    """

    def __init__(self, options: OptimizeOptions, opset: int, ahead: Ahead, folder: Folder) -> None:
        self.options = options
        self.opset = opset
        self._folder = folder
        self._ahead = ahead
        self._last: tuple[Hashable, TernaryWeight | NotTernary] | None = None

    def resolve(self, value: ir.Value) -> Constant | NotConstant:
        """The constant ``value`` comes from, constant expressions included."""
        return resolve(value, self._folder)

    def read_ahead(self, products: Sequence[ir.Node]) -> None:
        """Start on the weights of the products rules are asked about next."""
        self._ahead.start(products, None if self._last is None else self._last[0])

    def ternarize(self, weight: Constant) -> TernaryWeight | NotTernary:
        """Levels and scales of a (K, N) constant, or why it has none."""
        if self._last is None or self._last[0] != weight.key:
            self._last = None
            found = self._ahead.take(weight) or weight.ternarize(self.options.tolerance)
            weight.release()
            self._last = (weight.key, found)
        return self._last[1]


class Rule(Protocol):
    """One source pattern. Stateless; named for what it matches."""

    op_types: ClassVar[frozenset[tuple[str, str]]]
    """(domain, op_type) of the products it is asked about."""

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """A record of what to replace, a refusal with its reason, or None: another rule's kind."""
        ...
