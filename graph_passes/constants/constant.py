"""What a constant operand is, before and after its numbers are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError
from onnx_ternary.index.levels import NotTernary, TernaryWeight, ternarize
from onnx_ternary.index.rows import ternarize_rows
from onnx_ternary.model_files.tensors import release

INLINE = "inline the model's functions first (onnx.inliner.inline_local_functions)"
"""What helps where every call of a local function gives a weight or an attribute of its own."""


class Reader(Protocol):
    """What computes a constant's numbers, also behind a Transpose, Reshape or Cast."""

    def __call__(self) -> NDArray[Any]:
        """The numbers; may be a view of a mapped file."""
        ...

    def transposed(self, perm: tuple[int, ...]) -> Reader:
        """The reader of the constant behind a Transpose."""
        ...

    def matrix(self) -> Reader:
        """The reader of the first two axes; all other axes have one element each."""
        ...

    def cast(self, dtype: np.dtype[Any]) -> Reader:
        """The reader of the constant behind a Cast to a float type."""
        ...

    def ternarize(self) -> TernaryWeight | NotTernary | None:
        """Levels and scales of a matrix that is stored as codes; None for plain numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """The `Reader` of plain numbers, which have no codes to keep.

    Attributes:
        read: computes them.
    """

    read: Callable[[], NDArray[Any]]

    def __call__(self) -> NDArray[Any]:
        """The numbers; may be a view of a mapped file."""
        return self.read()

    def transposed(self, perm: tuple[int, ...]) -> Numbers:
        """The reader of the constant behind a Transpose."""
        return Numbers(lambda: self.read().transpose(perm))

    def matrix(self) -> Numbers:
        """The reader of the first two axes; all other axes have one element each."""

        def flat() -> NDArray[Any]:
            numbers = self.read()
            return numbers.reshape(numbers.shape[:2])

        return Numbers(flat)

    def cast(self, dtype: np.dtype[Any]) -> Numbers:
        """The reader of the constant behind a Cast to a float type."""

        def converted() -> NDArray[Any]:
            with np.errstate(over="ignore", invalid="ignore"):
                return self.read().astype(dtype)

        return Numbers(converted)

    def ternarize(self) -> None:
        """The levels of codes: None, as plain numbers have no codes."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant operand.

    Attributes:
        root: the initializer, or the Constant node's output, the numbers come from.
        nodes: nodes between ``root`` and the operand, first to last.
        key: equal for operands that are sure to hold the same numbers.
        shape: of the operand.
        dtype: of the operand.
        stored_bytes: size of the tensors that hold the numbers.
        evaluate: computes the operand; may return a view of a mapped file.
    """

    root: ir.Value
    nodes: tuple[ir.Node, ...]
    key: Hashable
    shape: tuple[int, ...]
    dtype: ir.DataType
    stored_bytes: int
    evaluate: Reader

    @property
    def name(self) -> str:
        """Name of the tensor that holds the numbers."""
        return self.root.name or ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> NDArray[Any]:
        """The operand's elements, of `shape`.

        Raises:
            ModelError: if the tensor's data cannot be read (missing or damaged external data, or
                a wrong number of bytes).
        """
        try:
            array = self.evaluate()
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"Tensor '{self.name}' cannot be read: {error}") from error
        if array.shape != self.shape:
            raise ModelError(
                f"Tensor '{self.name}' has {array.shape} elements where {self.shape} were declared."
            )
        return array

    def transposed(self) -> Constant:
        """The transpose of a rank 2 constant; twice transposed is itself."""
        return self.permuted((1, 0))

    def permuted(self, perm: tuple[int, ...]) -> Constant:
        """The constant behind a Transpose; transposed back it has its old key."""
        if perm == tuple(range(len(perm))):
            return self
        *rest, last = self.key if isinstance(self.key, tuple) else (self.key,)
        undoes = isinstance(last, tuple) and last[0] == "transpose"
        if undoes and tuple(last[1][axis] for axis in perm) == tuple(range(len(perm))):
            key: Hashable = tuple(rest)
        else:
            key = (*rest, last, ("transpose", perm))
        return replace(
            self,
            key=key,
            shape=tuple(self.shape[axis] for axis in perm),
            evaluate=self.evaluate.transposed(perm),
        )

    def matrix(self) -> Constant:
        """The first two axes of a constant whose other axes have one element each."""
        return replace(
            self,
            key=(*(self.key if isinstance(self.key, tuple) else (self.key,)), ("matrix",)),
            shape=self.shape[:2],
            evaluate=self.evaluate.matrix(),
        )

    def joined(self, num_row_axes: int) -> Constant:
        """The matrix whose rows are the first axes together and whose columns are the others."""
        rows, columns = self.shape[:num_row_axes], self.shape[num_row_axes:]
        if len(rows) == len(columns) == 1:
            return self
        shape = (math.prod(rows), math.prod(columns))
        return replace(
            self,
            key=(*(self.key if isinstance(self.key, tuple) else (self.key,)), ("joined", shape)),
            shape=shape,
            evaluate=Numbers(lambda: self.evaluate().reshape(shape)),
        )

    def last_matrix(self) -> Constant:
        """The last two axes of a constant whose other axes have one element each."""
        rank = len(self.shape)
        return self.permuted((rank - 2, rank - 1, *range(rank - 2))).matrix()

    def ternarize(self, tolerance: float) -> TernaryWeight | NotTernary:
        """Levels and scales of a (K, N) constant, or why it has none.

        Weights that are stored as codes keep the scales they have.

        Raises:
            ModelError: as `numpy`.
        """
        try:
            found = self.evaluate.ternarize()
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"Tensor '{self.name}' cannot be read: {error}") from error
        if isinstance(found, TernaryWeight) or (
            found is not None and (found.final or not (tolerance or found.has_row_scales))
        ):
            return found
        numbers = self.numpy()
        if found is None or tolerance:
            found = ternarize(numbers, tolerance=tolerance)
        if isinstance(found, TernaryWeight) or self.dtype == ir.DataType.DOUBLE:
            return found
        return ternarize_rows(numbers) or found

    def release(self) -> None:
        """Let go of the mapped file, if the tensor is external."""
        release(self.root.const_value)


@dataclass(frozen=True, slots=True)
class NotConstant:
    """Why an operand is not a usable constant.

    Attributes:
        reason: in words, naming the tensor.
        at_run_time: True if it is an ordinary activation, False if it looks like a constant.
    """

    reason: str
    at_run_time: bool


class Folder(Protocol):
    """Constant expressions of one model (cones.py).

    Attributes:
        resolved: what `resolve.resolve` found, by the value's id, with the value.
    """

    resolved: dict[int, tuple[ir.Value, Constant | NotConstant]]

    def resolve(self, value: ir.Value) -> Constant | NotConstant:
        """The constant expression that ends in ``value``, or why there is none."""
        ...

    def status(self, value: ir.Value) -> NotConstant | None:
        """Why ``value`` is not the end of a constant expression, without evaluating it."""
        ...


def call_attribute(node: ir.Node) -> str:
    """The name of a node whose attribute the calls of its local function give; else empty."""
    for name, attr in node.attributes.items():
        if attr.is_ref():
            return (
                f"{node.op_type} '{node.name or node.op_type}', whose attribute {name} is given by "
                f"every call of its local function; {INLINE}"
            )
    return ""
