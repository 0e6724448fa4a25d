"""ONNX Runtime's MatMulNBits with ternary codes.

    MatMulNBits(X, B, scales, zero_points, g_idx, bias) [-> Mul|Div ...] [-> Add]
      =>   TernaryIndexedMatMul [-> Add]

with W[k, n] = (code(B, n, k) - zero_points[n, k / block_size]) * scales[n, k / block_size].

1. bits = 2, 4 or 8, codes lowest bits first. B is (N, num_blocks, block_size * bits / 8) uint8; the
   last block is padded where block_size does not divide K.
2. zero_points absent (2^(bits - 1)), uint8 packed like the codes, or numbers of X's type.
3. One scale per block stays one scale per block, group_size = block_size, unless the scales of all
   blocks of a column are equal: then there is one scale per column, or one for the matrix.
4. A constant bias is the op's; another one is added behind it.
5. accuracy_level = 4 lets ONNX Runtime round X to int8; the op does not, and the report says so.

Refused: g_idx, prepacked B, more than three codes around the zero point (1.5 with codes 0, 1 and 2
is no ternary weight), and levels -8, 0 and 7, whatever the tolerance is.
Subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constants.constant import Constant, NotConstant
from ..constants.dequantize import Dequantized
from ..match import Addend, Context, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, small_constant

_BITS = (2, 4, 8)
_INT8_ACCURACY = 4
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class MatMulNBits:
    """``MatMulNBits(X, B, scales, zero_points, g_idx, bias)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("com.microsoft", "MatMulNBits")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        x, b, _, _, g_idx, bias = (*node.inputs, *[None] * 6)[:6]
        if x is None or b is None:
            return Rejection(node, "an operand is missing")
        name = b.name or ""
        if g_idx is not None:
            return Rejection(
                node,
                f"weight '{name}' has its rows in groups of another order (g_idx), which this "
                "version does not handle",
                name,
            )
        if node.attributes.get_int("weight_prepacked", 0):
            return Rejection(
                node, f"weight '{name}' is packed for another device (weight_prepacked)", name
            )
        weight = _weight(node, context)
        if isinstance(weight, str):
            return Rejection(node, weight, name)
        rank = None if x.shape is None else len(x.shape)
        product = Product(node, x, weight, rank)
        if bias is not None:
            constant = small_constant(bias, product.num_columns, context)
            if constant is None or not product.set_bias(constant):
                product.addend = Addend(bias, 1.0)  # case 4
        rounds = node.attributes.get_int("accuracy_level", 0) == _INT8_ACCURACY
        if rounds and context.options.activation == "keep":  # case 5
            product.note = (
                "the original lets ONNX Runtime round activations to int8 (accuracy_level = 4), "
                "the converted model does not"
            )
        return finish(product, context)


def _weight(node: ir.Node, context: Context) -> Constant | str:
    """W (K, N), or why the node is refused."""
    sizes: dict[str, int] = {}
    for name, default in (("K", None), ("N", None), ("bits", 4), ("block_size", None)):
        size = node.attributes.get_int(name, default)
        if size is None or size < 1:
            return f"attribute {name} is missing or not positive"
        sizes[name] = size
    K, N, bits, block_size = sizes.values()
    if bits not in _BITS:
        return f"bits = {bits}; 2, 4 and 8 are handled"
    operands: list[Constant | None] = []
    for value in (*node.inputs, *[None] * 4)[1:4]:
        found = None if value is None else context.resolve(value)
        if isinstance(found, NotConstant):
            what = "no constant weight" if found.at_run_time else "weight"
            return f"{what}: {found.reason}" if found.at_run_time else f"{what} {found.reason}"
        operands.append(found)
    codes = operands[0]
    if codes is None:
        return "an operand is missing"
    expected = (N, -(-K // block_size), block_size * bits // 8)
    if codes.dtype != ir.DataType.UINT8 or codes.shape != expected:
        return (
            f"weight '{codes.name}' is {codes.dtype.name.lower()} of shape {codes.shape}, expected "
            f"uint8 of shape {expected}"
        )
    return block_weight(operands, K=K, N=N, bits=bits, block_size=block_size)


def block_weight(
    operands: Sequence[Constant | None], *, K: int, N: int, bits: int, block_size: int
) -> Constant | str:
    """W (K, N) of codes with a scale and zero point per block, or why there is none.

    Args:
        operands: codes, uint8 of which each row of W's transpose takes as many; scales, N rows of
            them; zero points, which may be missing (case 2).
        K: rows of W.
        N: columns of W.
        bits: of a code.
        block_size: rows a scale.
    """
    codes, scale, zero_point = operands
    if codes is None or scale is None:
        return "an operand is missing"
    num_blocks = -(-K // block_size)
    if scale.dtype not in _FLOATS or scale.size != N * num_blocks:
        return (
            f"scales '{scale.name}' are {scale.dtype.name.lower()} of shape {scale.shape}, "
            f"expected {N} x {num_blocks} floats"
        )
    zeros = _zero_points(zero_point, scale.dtype, N, num_blocks, bits)
    if isinstance(zeros, str):
        return zeros
    parts = [each for each in operands if each is not None]
    return Constant(
        root=codes.root,
        nodes=codes.nodes,
        key=(("MatMulNBits", tuple(each.key for each in parts), K, N, bits, block_size),),
        shape=(K, N),
        dtype=scale.dtype,
        stored_bytes=sum(each.stored_bytes for each in parts),
        evaluate=Dequantized(
            codes=lambda: _unpack(codes.numpy(), bits)[:, :K].T,
            scale=lambda: scale.numpy().astype(np.float32).reshape(N, num_blocks).T,
            zero_point=zeros,
            blocks=(block_size, 1),
            dtypes=(scale.dtype.numpy(),),
        ),
    )


def _zero_points(
    zero_point: Constant | None, dtype: ir.DataType, N: int, num_blocks: int, bits: int
) -> Callable[[], NDArray[np.float64]] | str:
    """Compute zero points, one or (num_blocks, N); or why they are refused (case 2)."""
    if zero_point is None:
        return lambda: np.full((1, 1), 2.0 ** (bits - 1))
    if zero_point.dtype == ir.DataType.UINT8:
        row_bytes = -(-num_blocks * bits // 8)
        if zero_point.size == N * row_bytes:
            return lambda: _unpack(zero_point.numpy().reshape(N, row_bytes), bits)[
                :, :num_blocks
            ].T.astype(np.float64)
        expected = f"{N} x {row_bytes} bytes"
    else:
        if zero_point.dtype == dtype and zero_point.size == N * num_blocks:
            return lambda: zero_point.numpy().astype(np.float64).reshape(N, num_blocks).T
        expected = f"{N} x {num_blocks} numbers of type {dtype.name.lower()}"
    return (
        f"zero points '{zero_point.name}' are {zero_point.dtype.name.lower()} of shape "
        f"{zero_point.shape}, expected {expected}"
    )


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes, one per byte, of (N, ...) bytes that hold 8 / bits each, lowest bits first."""
    N = packed.shape[0]
    if bits == 8:
        return packed.reshape(N, -1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed.reshape(N, -1, 1) >> shifts) & np.uint8(2**bits - 1)
    unpacked: NDArray[np.uint8] = codes.reshape(N, -1)
    return unpacked


RULES = (MatMulNBits(),)
