"""What MatMul and Gemm have in common: checks of the weight, absorbed scales and biases.

Let P = X @ W. Absorbed, where the value between has no other use and is no graph output:

1. before: ``Mul(X, c)`` or ``Div(X, c)``, c a scalar (not with int8 activations, whose epsilon
   would then see another X);
2. after: ``Mul(P, c)`` or ``Div(P, c)``, c a scalar or one number a column; a bias absorbed so
   far is scaled too;
3. after: ``Add(P, b)``, b a scalar or one number a column, if there is no bias yet.

Factors must be finite and positive, and the scale they lead to a normal float32; other ones stay
where they are. Factors are multiplied in float64, so scale and bias are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_K, MAX_N
from onnx_ternary.ternary import NotTernary

from .match import Addend, Context, Rejection, TernaryMatMul
from .weights import Constant, NotConstant, resolve

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(slots=True)
class Product:
    """``alpha * X @ W (+ bias)`` as a rule read it from one node, and what gets absorbed."""

    node: ir.Node
    x: ir.Value
    weight: Constant
    rank: int | None
    transpose_x: bool = False
    factor: NDArray[np.float64] = field(default_factory=lambda: np.ones((), np.float64))
    bias: NDArray[np.float64] | None = None
    bias_value: ir.Value | None = None
    addend: Addend | None = None
    before: list[ir.Node] = field(default_factory=list)
    after: list[ir.Node] = field(default_factory=list)

    @property
    def num_columns(self) -> int:
        """N."""
        return self.weight.shape[1]

    def set_bias(self, constant: Constant, factor: float = 1.0) -> bool:
        """Take ``factor * constant`` as the bias, if it is one; else change nothing."""
        N = self.num_columns
        numbers = per_column(constant, N, self.rank)
        if numbers is None or not _finite(numbers * factor):
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


def constant_weight(node: ir.Node, index: int = 1) -> Constant | Rejection:
    """The constant right operand of a product, or why there is none."""
    left, right = node.inputs[0], node.inputs[index]
    if left is None or right is None:
        return Rejection(node, "an operand is missing")
    weight = resolve(right)
    other = resolve(left)
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
    columns = x.shape[0 if product.transpose_x else -1] if x.shape else None
    if isinstance(columns, int) and columns != K:
        kind = "rows" if product.transpose_x else "columns"
        return f"input '{x.name}' has {columns} {kind}, but weight '{name}' has {K} rows"
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


def finish(product: Product, context: Context) -> TernaryMatMul | Rejection:
    """Read the weight, absorb what surrounds the product, and make the record."""
    node, weight = product.node, product.weight
    if reason := check_weight(product, context):
        return Rejection(node, reason, weight.name)
    levels = context.ternarise(weight)
    if isinstance(levels, NotTernary):
        reason = levels.reason
        if not reason.startswith("weight "):
            reason = f"weight {reason}"
        return Rejection(node, reason, weight.name)
    if _scaled(levels.scale, product.factor) is None:
        return Rejection(
            node, f"alpha takes the scale of weight '{weight.name}' out of float32", weight.name
        )
    _absorb_before(product, context, levels.scale)
    _absorb_after(product, levels.scale)
    scale = _scaled(levels.scale, product.factor)
    assert scale is not None  # kept true by every absorption
    nodes = [*product.before, node, *product.after]
    return TernaryMatMul(
        product=node,
        absorbed=(*product.before, *product.after),
        pattern=" -> ".join(each.op_type for each in nodes),
        x=product.x,
        transpose_x=product.transpose_x,
        weight=weight,
        levels=levels,
        scale=scale,
        bias=None if product.bias is None else product.bias.astype(np.float32),
        bias_value=product.bias_value,
        addend=product.addend,
        output=product.output,
    )


def _scaled(scale: NDArray[np.float32], factor: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Scale times factor, rounded once; None where that is not a normal positive float32."""
    with np.errstate(over="ignore", under="ignore"):
        result = np.asarray(scale.astype(np.float64) * factor, dtype=np.float32)
    normal = np.isfinite(result) & (result >= _TINY)
    return result if bool(normal.all()) else None


def _private(value: ir.Value, graph: object) -> ir.Node | None:
    """The one user of ``value``, if nobody else can see it."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (use,) = uses
    # A user in a subgraph may run never, or many times.
    return use.node if use.node.graph is graph else None


def _is_scale(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in ("Mul", "Div") and len(node.inputs) == 2


def small_constant(value: ir.Value | None, num_columns: int) -> Constant | None:
    """A finite constant of one element or ``num_columns`` elements; None for everything else."""
    if value is None:
        return None
    constant = resolve(value)
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
        rank: of the value it is combined with, None if unknown (then at least 1).
    """
    shape = constant.shape
    if len(shape) > (1 if rank is None else rank):
        return None
    if shape and any(dim != 1 for dim in shape[:-1]):
        return None
    numbers = constant.numpy().astype(np.float64).reshape(-1)
    return numbers.reshape(()) if numbers.size == 1 else numbers


def _factor(
    node: ir.Node, value: ir.Value, num_columns: int, rank: int | None
) -> NDArray[np.float64] | None:
    """The positive factor (), or (N,), that a Mul or Div applies to ``value``."""
    if node.inputs[0] is value:
        other = node.inputs[1]
    elif node.op_type == "Mul":
        other = node.inputs[0]
    else:
        return None
    constant = None if other is value else small_constant(other, num_columns)
    numbers = None if constant is None else per_column(constant, num_columns, rank)
    if numbers is None or not bool((numbers > 0).all()):
        return None
    return 1.0 / numbers if node.op_type == "Div" else numbers


def _absorb_before(product: Product, context: Context, scale: NDArray[np.float32]) -> None:
    if context.options.activation != "keep":
        return
    while True:
        node = product.x.producer()
        user = product.before[0] if product.before else product.node
        if node is None or not _is_scale(node) or node.graph is not product.node.graph:
            return
        if _private(product.x, product.node.graph) is not user:
            return
        for x in node.inputs:
            rank = None if x is None or x.shape is None else len(x.shape)
            factor = None if x is None else _factor(node, x, 1, rank)
            if x is not None and factor is not None:
                break
        else:
            return
        if _scaled(scale, product.factor * factor) is None:
            return
        product.factor = product.factor * factor
        product.x = x
        product.before.insert(0, node)


def _absorb_after(product: Product, scale: NDArray[np.float32]) -> None:
    N = product.num_columns
    while product.addend is None:
        value = product.output
        node = _private(value, product.node.graph)
        if node is None:
            return
        if _is_scale(node):
            factor = _factor(node, value, N, product.rank)
            if factor is None or _scaled(scale, product.factor * factor) is None:
                return
            if product.bias is not None:
                bias = product.bias * factor
                if not _finite(bias):
                    return
                product.bias, product.bias_value = bias, None
            product.factor = product.factor * factor
        elif node.domain == "" and node.op_type == "Add" and product.bias is None:
            other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            constant = None if other is value else small_constant(other, N)
            if constant is None or not product.set_bias(constant):
                return
        else:
            return
        product.after.append(node)


def _finite(bias: NDArray[np.float64]) -> bool:
    """Whether a bias stays finite in float32."""
    return bool((np.abs(bias) <= float(np.finfo(np.float32).max)).all())
