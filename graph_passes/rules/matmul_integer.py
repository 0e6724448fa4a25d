"""Products of integers whose activations the graph quantizes on the way.

    DynamicQuantizeLinear(X) -> MatMulInteger(q, W) -> Cast -> Mul(x_scale * w_scale) [-> Add]
    DynamicQuantizeLinear(X) -> MatMulIntegerToFloat(q, W, x_scale, w_scale)
    DynamicQuantizeMatMul(X, W, w_scale)
    X -> absmax int8 -> MatMulInteger(q, W) -> Cast -> Div(s), or Mul
      =>   TernaryIndexedMatMul(X)

1. The quantization of X is one activation_quantization.py reads: what ONNX Runtime's
   `quantize_dynamic` writes, also after its extended optimizations fused it, or per-token absmax.
2. W (K, N) constant, int8 or uint8, with one zero point or one per column, none in the middle of
   two levels; ternary as codes.py says (``-127, 0, 127`` is). MatMulInteger of onnxruntime may
   saturate such sums on processors without VNNI; the op's are exact.
3. Behind MatMulInteger: Cast to float32, then Mul and Div by x_scale and by constants, in any order
   and also multiplied together before. An Add of a bias, and more scales, as everywhere.
4. The zero point of q is DynamicQuantizeLinear's; absmax has none.
Refused: any other quantization of X (static, at run time), W on the left. Subgraphs, functions and
shared weights: as matmul.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constants.constant import Constant, NotConstant
from ..constants.dequantize import Dequantized, integers
from ..match import Addend, Context, Rejection, TernaryMatMul
from .activation_quantization import (
    ONE,
    NotFused,
    Quantized,
    dynamic_quantization,
    dynamic_quantizer,
    positive,
    read,
)
from .finish import finish
from .product import Product, constant_weight, small_constant

_MICROSOFT = "com.microsoft"
_INT8 = (ir.DataType.INT8, ir.DataType.UINT8)


class MatMulInteger:
    """``(q - x_zero) @ (W - w_zero)`` as int32."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "MatMulInteger")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        return _match(node, context, x_zero=2, w_zero=3)


class MatMulIntegerToFloat:
    """MatMulInteger multiplied by both scales, as float32; ONNX Runtime's fusion."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {(_MICROSOFT, "MatMulIntegerToFloat")}
    )

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        return _match(node, context, x_scale=2, w_scale=3, x_zero=4, w_zero=5, bias=6)


class DynamicQuantizeMatMul:
    """DynamicQuantizeLinear and MatMulIntegerToFloat in one; ONNX Runtime's fusion."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {(_MICROSOFT, "DynamicQuantizeMatMul")}
    )

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        return _match(node, context, w_scale=2, w_zero=3, bias=4)


def _match(node: ir.Node, context: Context, **inputs: int) -> TernaryMatMul | Rejection:
    """``inputs``: where the operator has its scales, zero points and bias."""
    codes = constant_weight(node, context)
    if isinstance(codes, Rejection):
        return codes
    if not context.options.fuse_activation:
        return Rejection(
            node, "its activations are integers, and fuse_activation is off", codes.name
        )
    operands = {name: _input(node, at) for name, at in inputs.items()}
    quantized = _activations(node, operands, context)
    if isinstance(quantized, NotFused):
        return Rejection(node, f"its activations are integers, and {quantized.reason}", codes.name)
    x = quantized.source
    rank = None if x.shape is None else len(x.shape)
    weight = _weight(codes, operands.get("w_zero"), context)
    if isinstance(weight, str):
        return Rejection(node, weight, codes.name)
    product = Product(node, x, weight, rank)
    N = weight.shape[-1]
    if (scale := operands.get("w_scale")) is not None:
        constant = context.resolve(scale)
        numbers = positive(constant, N, rank) if isinstance(constant, Constant) else None
        if numbers is None:
            return Rejection(
                node, f"the weight's scale '{scale.name}' is not a positive constant", codes.name
            )
        product.factor = numbers
    if (bias := operands.get("bias")) is not None:
        addend = small_constant(bias, N, context)
        if addend is None or not product.set_bias(addend):
            product.addend = Addend(bias, 1.0)
    return finish(product, context, quantized)


def _input(node: ir.Node, at: int) -> ir.Value | None:
    return node.inputs[at] if len(node.inputs) > at else None


def _activations(
    node: ir.Node, operands: dict[str, ir.Value | None], context: Context
) -> Quantized | NotFused:
    x = node.inputs[0]
    assert x is not None  # constant_weight refuses it
    if node.op_type == "DynamicQuantizeMatMul":
        return replace(dynamic_quantization(x), term=replace(ONE, power=1))
    found: Quantized | NotFused | None
    if (quantizer := dynamic_quantizer(x)) is not None:
        assert quantizer.inputs[0] is not None
        found = dynamic_quantization(quantizer.inputs[0], quantizer.outputs[1])
    else:
        found = read(x, ir.DataType.FLOAT, context)
    if found is None:
        maker = x.producer()
        origin = "are given" if maker is None else f"come from {maker.op_type} '{maker.name}'"
        return NotFused(f"'{x.name}' {origin}; DynamicQuantizeLinear or absmax would be handled")
    if isinstance(found, NotFused):
        return found
    zero = operands.get("x_zero")
    if quantizer is not None:
        if zero is not quantizer.outputs[2]:
            return NotFused(f"the zero point of '{x.name}' is not the one it is quantized with")
    elif zero is not None:  # case 4
        constant = context.resolve(zero)
        if not isinstance(constant, Constant) or constant.numpy().any():
            return NotFused(f"the zero point '{zero.name}' of '{x.name}' is not 0")
    if (scale := operands.get("x_scale")) is not None:
        term = found.units(scale, 1, None, context)
        if term is None:
            return NotFused(f"'{scale.name}' is not the scale '{x.name}' is quantized with")
        found = replace(found, term=found.term.times(term))
    return found


def _weight(codes: Constant, zero: ir.Value | None, context: Context) -> Constant | str:
    """W (K, N) as float32 levels, or why it is refused (case 2)."""
    if codes.dtype not in _INT8 or len(codes.shape) != 2:
        return (
            f"weight '{codes.name}' is {codes.dtype.name.lower()} of shape {codes.shape}, expected "
            "int8 or uint8 of rank 2"
        )
    zeros = None if zero is None else context.resolve(zero)
    if isinstance(zeros, NotConstant):
        return f"weight {zeros.reason}"
    if zeros is not None and (
        zeros.size not in (1, codes.shape[1])
        or any(dim != 1 for dim in zeros.shape[:-1])
        or len(zeros.shape) > len(codes.shape)
    ):
        return (
            f"zero points '{zeros.name}' of weight '{codes.name}' have shape {zeros.shape}, "
            f"expected one or one per column ({codes.shape[1]})"
        )
    rows = max(codes.shape[0], 1)
    columns = max(codes.shape[1], 1) if zeros is None or zeros.size == 1 else 1

    def zero_points() -> NDArray[np.float64]:
        if zeros is None:
            return np.zeros((1, 1))
        numbers: NDArray[Any] = zeros.numpy()
        return numbers.astype(np.float64).reshape(1, -1)

    scales = 1 if columns != 1 else codes.shape[1]
    return replace(
        codes,
        key=(("MatMulInteger", codes.key, None if zeros is None else zeros.key),),
        dtype=ir.DataType.FLOAT,
        evaluate=Dequantized(
            codes=integers(codes),
            scale=lambda: np.ones((1, scales), np.float32),
            zero_point=zero_points,
            blocks=(rows, columns),
            dtypes=(ir.DataType.FLOAT.numpy(),),
        ),
    )


RULES = (MatMulInteger(), MatMulIntegerToFloat(), DynamicQuantizeMatMul())
