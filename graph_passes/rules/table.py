"""Gathers that read the table a product multiplies by: an embedding a head is tied to.

    Gather(T, ids), MatMul(X, Transpose(T))
      =>   TernaryIndexedGather(ids, codes, scale), TernaryIndexedMatMul(X, codes, ...)

1. Gather with axis 0 of a constant T (N, K) in a float type, however it is made: stored,
   transposed, cast, dequantized.
2. GatherBlockQuantized with gather_axis 0 and quantize_axis 1 of uint8 codes (N, K * bits / 8) of
   2, 4 or 8 bits, as matmul_nbits.py reads them; B of a MatMulNBits may be a Reshape of them.

Which of them read a weight that has an index is for rewrite/tables.py to find out. In subgraphs as
in the main graph; in local functions they stay.
"""

from __future__ import annotations

import onnx_ir as ir

from ..constants.constant import Constant
from ..match import Context, Table
from .matmul_nbits import block_weight

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_QUANTIZED = ("com.microsoft", "GatherBlockQuantized")
OP_TYPES = frozenset({("", "Gather"), _QUANTIZED})
"""(domain, op_type) of what `match` reads."""


def match(node: ir.Node, context: Context) -> Table | None:
    """What a gather reads; None where it is of no form above."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    data, indices = node.inputs[0], node.inputs[1]
    if (node.domain, node.op_type) == _QUANTIZED:
        weight = _blockwise(node, context)
        return None if weight is None else Table(node, indices, weight)
    axis = node.attributes.get_int("axis", 0)
    found = context.resolve(data)
    if not isinstance(found, Constant) or len(found.shape) != 2 or axis not in (0, -2):
        return None
    if found.dtype not in _FLOATS or not found.size:
        return None
    return Table(node, indices, found.transposed())


def _blockwise(node: ir.Node, context: Context) -> Constant | None:
    """Case 2."""
    attributes = node.attributes
    if attributes.get_int("gather_axis", 0) not in (0, -2):
        return None
    if attributes.get_int("quantize_axis", 1) not in (1, -1):
        return None
    operands: list[Constant | None] = []
    for value in (node.inputs[0], *(*node.inputs, None, None)[2:4]):
        found = None if value is None else context.resolve(value)
        if value is not None and not isinstance(found, Constant):
            return None
        operands.append(found if isinstance(found, Constant) else None)
    codes = operands[0]
    bits, block_size = attributes.get_int("bits", 4), attributes.get_int("block_size", 128)
    if codes is None or codes.dtype != ir.DataType.UINT8 or len(codes.shape) != 2:
        return None
    if bits not in (2, 4, 8) or block_size < 1 or not codes.size:
        return None
    N, row_bytes = codes.shape
    weight = block_weight(operands, K=row_bytes * 8 // bits, N=N, bits=bits, block_size=block_size)
    return weight if isinstance(weight, Constant) else None
