"""What rules read of a product: its operands, and the constants beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_K, MAX_N

from ..constants.constant import Constant, NotConstant
from ..match import Addend, Context, Elementwise, Rejection
from .activation_quantization import Quantized

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(slots=True)
class Product:
    """``alpha * X @ W (+ bias)`` as a rule read it from one node, and what gets absorbed."""

    node: ir.Node
    x: ir.Value
    weight: Constant
    rank: int | None
    perm_x: tuple[int, ...] | None = None
    perm_y: tuple[int, ...] | None = None
    split_x: tuple[int, ...] = ()
    split_y: tuple[int, ...] = ()
    factor: NDArray[np.float64] = field(default_factory=lambda: np.ones((), np.float64))
    bias: NDArray[np.float64] | None = None
    bias_value: ir.Value | None = None
    addend: Addend | None = None
    then: Elementwise | None = None
    before: list[ir.Node] = field(default_factory=list)
    after: list[ir.Node] = field(default_factory=list)
    note: str = ""
    quantized: Quantized | None = None

    @property
    def num_columns(self) -> int:
        """N."""
        return self.weight.shape[1]

    def set_bias(self, constant: Constant, factor: float = 1.0) -> bool:
        """Take ``factor * constant`` as the bias, if it is one; else change nothing."""
        N = self.num_columns
        numbers = per_column(constant, N, self.rank)
        if numbers is None or not is_finite_bias(numbers * factor):
            return False
        self.bias = np.broadcast_to(numbers * factor, (N,))
        root = constant.root
        unchanged = factor == 1.0 and constant.dtype == ir.DataType.FLOAT and not constant.nodes
        if unchanged and constant.shape == (N,) and root.graph is self.node.graph:
            self.bias_value = root if root.is_initializer() else None
        return True

    @property
    def output(self) -> ir.Value:
        """What the last node absorbed so far produces."""
        return (self.after[-1] if self.after else self.node).outputs[0]


def _operands(node: ir.Node, index: int) -> tuple[ir.Value | None, ir.Value | None]:
    if len(node.inputs) <= index:
        return None, None
    return node.inputs[0], node.inputs[index]


def constant_weight(node: ir.Node, context: Context, index: int = 1) -> Constant | Rejection:
    """The constant right operand of a product, or why there is none."""
    left, right = _operands(node, index)
    if left is None or right is None:
        return Rejection(node, "an operand is missing")
    weight = context.resolve(right)
    other = context.resolve(left)
    if isinstance(weight, Constant):
        if isinstance(other, Constant):
            return Rejection(
                node, f"both operands ('{other.name}', '{weight.name}') are constant", weight.name
            )
        return weight
    if isinstance(other, Constant):
        return Rejection(
            node,
            f"weight '{other.name}' is the left operand, which this version does not handle",
            other.name,
        )
    if not weight.at_run_time:
        return Rejection(node, f"weight {weight.reason}", right.name or "")
    if not other.at_run_time:
        return Rejection(
            node, f"weight {other.reason}, and it is the left operand", left.name or ""
        )
    return Rejection(node, f"no constant weight: {weight.reason}")


def left_weight(node: ir.Node, context: Context) -> Constant | None:
    """The constant left operand of a product whose right operand is computed at run time."""
    left, right = _operands(node, 1)
    if left is None or right is None:
        return None
    weight, other = context.resolve(left), context.resolve(right)
    if isinstance(weight, Constant) and isinstance(other, NotConstant):
        return weight
    return None


def check_weight(product: Product, context: Context) -> str | None:
    """Why a weight is refused before its numbers are read; None if it is not."""
    x, weight = product.x, product.weight
    name = weight.name
    if len(weight.shape) != 2:
        return f"weight '{name}' has rank {len(weight.shape)}, expected 2"
    if weight.dtype == ir.DataType.DOUBLE:
        return f"weight '{name}' is float64; convert the model to float32 first"
    if weight.dtype not in _DTYPES:
        return f"weight '{name}' is {weight.dtype.name.lower()}: an integer product"
    if x.dtype is not None and x.dtype != weight.dtype:
        return (
            f"input '{x.name}' is {x.dtype.name.lower()}, but weight '{name}' is "
            f"{weight.dtype.name.lower()}"
        )
    K, N = weight.shape
    axis = -1 if product.perm_x is None else product.perm_x[-1]
    length = x.shape[axis] if x.shape and not product.split_x else None
    if isinstance(length, int) and length != K:
        kind = "columns" if product.perm_x is None else "rows"
        other = "rows" if product.perm_y is None else "columns"
        return f"input '{x.name}' has {length} {kind}, but weight '{name}' has {K} {other}"
    if K == 0 or N == 0:
        return f"weight '{name}' has shape ({K}, {N}): no elements"
    if K > MAX_K or N > MAX_N:
        return f"weight '{name}' has shape ({K}, {N}), larger than ({MAX_K}, {MAX_N})"
    if weight.size < context.options.min_elements:
        return (
            f"weight '{name}' has {weight.size} elements, fewer than min_elements = "
            f"{context.options.min_elements}"
        )
    return None


def small_constant(value: ir.Value | None, num_columns: int, context: Context) -> Constant | None:
    """A finite constant of one element or ``num_columns`` elements; None for everything else."""
    if value is None:
        return None
    constant = context.resolve(value)
    if isinstance(constant, NotConstant) or constant.size not in (1, num_columns):
        return None
    return constant if bool(np.isfinite(constant.numpy().astype(np.float64)).all()) else None


def per_column(
    constant: Constant, num_columns: int, rank: int | None
) -> NDArray[np.float64] | None:
    """``constant`` as () or (N,), if adding or multiplying it acts per column and keeps the shape.

    Args:
        constant: as `small_constant` returns it.
        num_columns: N.
        rank: of the value it is combined with, None if unknown (then at least 1, the rank of the
            operands and the result of a product).
    """
    shape = constant.shape
    if len(shape) > (1 if rank is None else rank):
        return None
    if shape and any(dim != 1 for dim in shape[:-1]):
        return None
    numbers = constant.numpy().astype(np.float64).reshape(-1)
    return numbers.reshape(()) if numbers.size == 1 else numbers


def is_finite_bias(bias: NDArray[np.float64]) -> bool:
    """Whether a bias stays finite in float32."""
    return bool((np.abs(bias) <= float(np.finfo(np.float32).max)).all())
