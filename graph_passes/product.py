"""What MatMul and Gemm have in common: checks of the weight, absorbed scales and biases.

Activations that the graph quantizes become the op's (activation_quantization.py).

Let P = X @ W. Absorbed, where the value between has no other use and is no graph output:

1. before: ``Mul(X, c)`` or ``Div(X, c)``, c a scalar (not with int8 activations, whose epsilon
   or range would then see another X);
2. after: ``Mul(P, c)`` or ``Div(P, c)``, c a scalar or one number a column; a bias absorbed so
   far is scaled too;
3. after: ``Add(P, b)``, b a scalar or one number a column, if there is no bias yet.

Where the product's result is transposed (a weight on the left), 2 and 3 take scalars only.

Factors must be finite and positive, and the scale they lead to a normal float32; other ones stay
where they are. Factors are multiplied in float64, so scale and bias are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_K, MAX_N
from onnx_ternary.ternary import NotTernary, TernaryWeight

from .activation_quantization import ONE, NotFused, Quantized, Term, limits, read
from .match import Addend, Context, Rejection, TernaryMatMul
from .weights import Constant, NotConstant, call_attribute, resolve

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(slots=True)
class Product:
    """``alpha * X @ W (+ bias)`` as a rule read it from one node, and what gets absorbed."""

    node: ir.Node
    x: ir.Value
    weight: Constant
    rank: int | None
    perm_x: tuple[int, ...] | None = None
    perm_y: tuple[int, ...] | None = None
    factor: NDArray[np.float64] = field(default_factory=lambda: np.ones((), np.float64))
    bias: NDArray[np.float64] | None = None
    bias_value: ir.Value | None = None
    addend: Addend | None = None
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


def left_weight(node: ir.Node) -> Constant | None:
    """The constant left operand of a product whose right operand is computed at run time."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return None
    weight, other = resolve(left), resolve(right)
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
    length = x.shape[axis] if x.shape else None
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


def finish(
    product: Product, context: Context, required: Quantized | None = None
) -> TernaryMatMul | Rejection:
    """Read the weight, absorb what surrounds the product, and make the record.

    Args:
        product: what a rule read.
        context: the options, and the last weight read.
        required: how the activations are quantized, where the op has to do it because the product
            is one of integers; `product.x` is what they come from.
    """
    node, weight = product.node, product.weight
    if reason := check_weight(product, context):
        return Rejection(node, reason, weight.name)
    levels = context.ternarize(weight)
    if isinstance(levels, NotTernary):
        reason = levels.reason
        if not reason.startswith("weight "):
            reason = f"weight {reason}"
        return Rejection(node, reason, weight.name)
    if _scaled(levels.scale, product.factor) is None:
        return Rejection(
            node, f"alpha takes the scale of weight '{weight.name}' out of float32", weight.name
        )
    if required is not None or context.options.fuse_activation:
        found = required or read(product.x, weight.dtype)
        if isinstance(found, Quantized):
            found = fuse(product, found, levels)
        if isinstance(found, NotFused):
            if required is not None:
                reason = f"its activations are integers, and {found.reason}"
                return Rejection(node, reason, weight.name)
            note = f"the graph goes on quantizing the activations, because {found.reason}"
            product.note = f"{product.note}; {note}" if product.note else note
    if product.quantized is None:
        _absorb_before(product, context, levels.scale)
    _absorb_after(product, levels.scale)
    scale = _scaled(levels.scale, product.factor)
    assert scale is not None  # kept true by every absorption
    nodes = [*product.before, node, *product.after]
    pattern = " -> ".join(each.op_type for each in nodes)
    if product.quantized is not None:
        pattern = f"{product.quantized.attributes['activation']} activations -> {pattern}"
    return TernaryMatMul(
        product=node,
        absorbed=(*product.before, *product.after),
        pattern=pattern,
        x=product.x,
        rank=product.rank,
        perm_x=product.perm_x,
        perm_y=product.perm_y,
        weight=weight,
        levels=levels,
        scale=scale,
        bias=None if product.bias is None else product.bias.astype(np.float32),
        bias_value=product.bias_value,
        addend=product.addend,
        output=product.output,
        note=product.note,
        activation=None if product.quantized is None else product.quantized.attributes,
    )


def fuse(product: Product, quantized: Quantized, levels: TernaryWeight) -> NotFused | None:
    """Let the op quantize ``product``'s activations, or say why it cannot; then nothing changes.

    Where the product's operand is whole numbers, the Casts, Muls and Divs behind it up to the one
    that brings the activations' scale back are absorbed.
    """
    node, weight = product.node, product.weight
    if product.perm_x is not None or product.perm_y is not None:
        return NotFused(f"{node.op_type} '{node.name}' takes them transposed")
    if reason := limits(quantized, weight.shape[0], levels.group_size):
        return NotFused(reason)
    term, after = quantized.term, list[ir.Node]()
    if term.power != 1 and (product.bias is not None or product.addend is not None):
        return NotFused(f"{node.op_type} '{node.name}' adds a bias to the sums of integers")
    value = node.outputs[0]
    while term.power != 1:
        user = _private(value, node.graph)
        factor = None if user is None else _unit_factor(user, value, product, quantized)
        if user is None or factor is None:
            return NotFused(f"'{value.name}' is not multiplied by the activations' scale alone")
        term = term.times(factor)
        after.append(user)
        value = user.outputs[0]
    scaled = product.factor * term.factor
    if _scaled(levels.scale, scaled) is None:
        return NotFused("the scales behind the product take that of the weight out of float32")
    product.factor = scaled
    product.after = after
    product.x = quantized.source
    product.quantized = quantized
    return None


def _unit_factor(
    node: ir.Node, value: ir.Value, product: Product, quantized: Quantized
) -> Term | None:
    """What a Cast, Mul or Div does to the sums, if no more than scale them."""
    if node.domain != "" or call_attribute(node):
        return None
    if node.op_type == "Cast":
        return ONE if node.attributes.get_int("to", 0) == int(product.weight.dtype) else None
    if not _is_scale(node) or (node.op_type == "Div" and node.inputs[0] is not value):
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is value:
        return None
    factor = quantized.units(other, product.num_columns, product.rank)
    return factor.inverse() if factor is not None and node.op_type == "Div" else factor


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
            # Unknown, x may be a scalar that the constant gives an axis.
            rank = 0 if x is None or x.shape is None else len(x.shape)
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
    # Behind a Transpose the columns lie elsewhere; one number for all of them fits anywhere.
    N = product.num_columns if product.perm_y is None else 1
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
