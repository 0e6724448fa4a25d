"""What every rule ends with: checks of the weight, absorbed scales and biases, the record.

Activations that the graph quantizes become the op's (activation_quantization.py).

Let P = X @ W. Absorbed, where the value between has no other use and is no graph output:

1. before: ``Mul(X, c)`` or ``Div(X, c)``, c a scalar (not with int8 activations, whose epsilon
   or range would then see another X);
2. after: ``Mul(P, c)`` or ``Div(P, c)``, c a scalar or one number per column; a bias absorbed so
   far is scaled too;
3. after: ``Add(P, b)``, b a scalar or one number per column, if there is no bias yet.

Where the product's result is transposed (a weight on the left) or its columns are several axes
(Einsum), 2 and 3 take scalars only. Nothing behind is absorbed where the product's own operator
ends with an activation (FusedGemm).

Factors must be finite and positive, and the scale they lead to a normal float32; other ones stay
where they are. Factors are multiplied in float64, so scale and bias are rounded once.

Where W has a scale per row besides (index/rows.py), ``X @ W = (X * r) @ W'``: a Mul of X by r goes
in front of the op. Activations are then not fused, because what the graph quantizes is X without r;
bfloat16 is refused, for which onnxruntime's CPU provider has no Mul, and products of integers are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.index.levels import NotTernary, TernaryWeight

from ..constants.constant import call_attribute
from ..match import Context, Rejection, TernaryMatMul
from .activation_quantization import ONE, NotFused, Quantized, Term, limits, read
from .product import Product, check_weight, is_finite_bias, per_column, small_constant

_TINY = float(np.finfo(np.float32).tiny)
_ROW_NOTE = "the weight has a scale per row besides, by which a Mul in front multiplies the input"


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
        return Rejection(node, levels.reason, weight.name, not_ternary=True)
    if _scaled(levels.scale, product.factor) is None:
        return Rejection(
            node, f"alpha takes the scale of weight '{weight.name}' out of float32", weight.name
        )
    if levels.row_scale is not None and (reason := _no_row_scale(product, required)):
        return Rejection(node, reason, weight.name)
    if required is not None or context.options.fuse_activation:
        found = required or read(product.x, weight.dtype, context)
        if isinstance(found, Quantized) and levels.row_scale is not None:
            found = NotFused(f"weight '{weight.name}' has a scale per row, which comes behind that")
        elif isinstance(found, Quantized):
            found = fuse(product, found, levels, context)
        if isinstance(found, NotFused):
            if required is not None:
                reason = f"its activations are integers, and {found.reason}"
                return Rejection(node, reason, weight.name)
            note = f"the graph goes on quantizing the activations, because {found.reason}"
            product.note = f"{product.note}; {note}" if product.note else note
    if product.quantized is None:
        _absorb_before(product, context, levels.scale)
    _absorb_after(product, levels.scale, context)
    scale = _scaled(levels.scale, product.factor)
    assert scale is not None  # kept true by every absorption
    if levels.row_scale is not None:
        product.note = "; ".join(filter(None, (product.note, _ROW_NOTE)))
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
        then=product.then,
        split_x=product.split_x,
        split_y=product.split_y,
        note=product.note,
        activation=None if product.quantized is None else product.quantized.attributes,
    )


def _no_row_scale(product: Product, required: Quantized | None) -> str:
    """Why a weight with a scale per row is refused; empty if a Mul of X can take the scale."""
    name = product.weight.name
    if required is not None:
        return (
            f"weight '{name}' is ternary with a scale per row, and its activations are integers, "
            "which such scales cannot be multiplied into"
        )
    if product.weight.dtype == ir.DataType.BFLOAT16:
        return (
            f"weight '{name}' is ternary with a scale per row, and bfloat16, for which ONNX "
            "Runtime's CPU provider has no Mul; convert the model to float32 or float16"
        )
    return ""


def fuse(
    product: Product, quantized: Quantized, levels: TernaryWeight, context: Context
) -> NotFused | None:
    """Let the op quantize ``product``'s activations, or say why it cannot; then nothing changes.

    Where the product's operand is whole numbers, the Casts, Muls and Divs behind it up to the one
    that brings the activations' scale back are absorbed.
    """
    node, weight = product.node, product.weight
    if product.perm_x is not None or product.perm_y is not None:
        return NotFused(f"{node.op_type} '{node.name}' takes them transposed")
    if product.split_x or product.split_y:
        return NotFused(f"{node.op_type} '{node.name}' multiplies more axes than two")
    if reason := limits(quantized, weight.shape[0], levels.group_size):
        return NotFused(reason)
    term, after = quantized.term, list[ir.Node]()
    if term.power != 1 and (product.bias is not None or product.addend is not None):
        return NotFused(f"{node.op_type} '{node.name}' adds a bias to the sums of integers")
    if term.power != 1 and product.then is not None:
        return NotFused(f"{node.op_type} '{node.name}' takes {product.then.op_type} of those sums")
    value = node.outputs[0]
    while term.power != 1:
        user = _private(value, node.graph)
        factor = None if user is None else _unit_factor(user, value, product, quantized, context)
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
    product.note = "; ".join(filter(None, (product.note, quantized.note)))
    return None


def _unit_factor(
    node: ir.Node, value: ir.Value, product: Product, quantized: Quantized, context: Context
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
    factor = quantized.units(other, product.num_columns, product.rank, context)
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


def _factor(
    node: ir.Node, value: ir.Value, num_columns: int, rank: int | None, context: Context
) -> NDArray[np.float64] | None:
    """The positive factor (), or (N,), that a Mul or Div applies to ``value``."""
    if node.inputs[0] is value:
        other = node.inputs[1]
    elif node.op_type == "Mul":
        other = node.inputs[0]
    else:
        return None
    constant = None if other is value else small_constant(other, num_columns, context)
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
            factor = None if x is None else _factor(node, x, 1, rank, context)
            if x is not None and factor is not None:
                break
        else:
            return
        if _scaled(scale, product.factor * factor) is None:
            return
        product.factor = product.factor * factor
        product.x = x
        product.before.insert(0, node)


def _absorb_after(product: Product, scale: NDArray[np.float32], context: Context) -> None:
    # Behind a Transpose the columns lie elsewhere; one number for all of them fits anywhere.
    N = 1 if product.perm_y or product.split_y else product.num_columns
    while product.addend is None and product.then is None:
        value = product.output
        node = _private(value, product.node.graph)
        if node is None:
            return
        if _is_scale(node):
            factor = _factor(node, value, N, product.rank, context)
            if factor is None or _scaled(scale, product.factor * factor) is None:
                return
            if product.bias is not None:
                bias = product.bias * factor
                if not is_finite_bias(bias):
                    return
                product.bias, product.bias_value = bias, None
            product.factor = product.factor * factor
        elif node.domain == "" and node.op_type == "Add" and product.bias is None:
            other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            constant = None if other is value else small_constant(other, N, context)
            if constant is None or not product.set_bias(constant):
                return
        else:
            return
        product.after.append(node)
