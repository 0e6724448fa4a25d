"""Products that stay float, in the hands of ONNX Runtime's own quantizer, where the user asks.

    MatMul(X, W)    =>   com.microsoft.MatMulNBits(X, B, scales, zero_points)
    Gemm(X, W, C)   =>   com.microsoft.MatMulNBits(X, B, scales, zero_points) [-> Add(C)]

1. MatMul with a constant float32 or float16 W (K, N) on the right that no rule rewrote and the user
   did not exclude; Gemm with such a W, transposed or not, that neither transposes nor scales
   anything else. All others stay as they are, with a reason.
2. 4 or 8 bits, one scale and zero point a block of 32 rows, accuracy_level 4: activations are
   rounded to int8. Answers change; the report names every such product.
3. W is read a few columns at a time. It stays in the model where something else uses it (the
   embedding a head is tied to). Where only Transposes still do, it is stored the way they give it:
   ONNX Runtime would fold them into a second copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.errors import OnnxTernaryError

from ..constants.constant import Constant
from ..match import Context
from .model_editor import (
    ModelEditor,
    output_shape,
)

BLOCK_SIZE = 32
ACCURACY_LEVEL = 4
_COLUMNS_AT_ONCE = 4096
_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight as MatMulNBits takes it.

    Attributes:
        weight: what it was, (K, N).
        bits: 4 or 8.
        codes: uint8 (N, blocks, bytes of a block).
        scales: of the weight's dtype, (N, blocks).
        zero_points: uint8 (N, bytes of a column's).
    """

    weight: Constant
    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zero_points: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.codes.nbytes + self.scales.nbytes + self.zero_points.nbytes


def quantize(node: ir.Node, context: Context, bits: int) -> Quantized | str:
    """The weight of a product in blocks, or why case 1 does not hold.

    Raises:
        OnnxTernaryError: if onnxruntime has no quantizer for these bits.
        ModelError: if the weight cannot be read.
    """
    if (node.domain, node.op_type) not in (("", "MatMul"), ("", "Gemm")):
        return f"{node.op_type} is no product onnxruntime's quantizer takes"
    if node.op_type == "Gemm" and (found := _plain_gemm(node)):
        return found
    weight = None if node.inputs[1] is None else context.resolve(node.inputs[1])
    if not isinstance(weight, Constant):
        return "its second operand is no constant"
    if len(weight.shape) != 2 or not weight.size:
        return f"its weight has shape {list(weight.shape)}, expected two dimensions"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype.name}, expected FLOAT or FLOAT16"
    if node.attributes.get_int("transB", 0):
        weight = weight.transposed()
    quantizer = block_quantizer(bits)
    parts = [quantizer.qbits_block_quant(columns) for columns in _columns(weight)]
    codes, scales, zero_points = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Quantized(weight, bits, codes, scales, zero_points)


def _plain_gemm(node: ir.Node) -> str:
    """Why a Gemm is more than ``X @ W + C``; empty if it is not."""
    attributes = node.attributes
    if attributes.get_int("transA", 0):
        return "its activations are transposed (transA)"
    scales = [("alpha", attributes.get_float("alpha", 1.0))]
    if _addend(node) is not None:
        scales.append(("beta", attributes.get_float("beta", 1.0)))
    return next((f"{name} is {value:g}, expected 1" for name, value in scales if value != 1), "")


def _addend(node: ir.Node) -> ir.Value | None:
    """What a Gemm adds; None for a MatMul."""
    return node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None


def requantize(editor: ModelEditor, node: ir.Node, quantized: Quantized) -> None:
    """Put a MatMulNBits in the place of a MatMul or Gemm, an Add behind it where C is."""
    graph, x, output = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(graph, ir.Graph) and x is not None
    weight = quantized.weight
    K, N = weight.shape
    tensors = {
        f"{weight.name}_Q{quantized.bits}": quantized.codes,
        f"{weight.name}_scales": quantized.scales.reshape(-1),
        f"{weight.name}_zero_points": quantized.zero_points.reshape(-1),
    }
    sizes = {
        "K": K,
        "N": N,
        "bits": quantized.bits,
        "block_size": BLOCK_SIZE,
        "accuracy_level": ACCURACY_LEVEL,
    }
    new = ir.Value(
        name=output.name,
        shape=output.shape or output_shape(x.shape, N),
        type=output.type or ir.TensorType(weight.dtype),
        doc_string=output.doc_string,
        metadata_props=dict(output.metadata_props),
    )
    addend = _addend(node)
    result = new
    if addend is not None:
        name = editor.value_name(f"{output.name}.product")
        result = ir.Value(name=name, shape=new.shape, type=new.type)
    nodes = [
        ir.Node(
            "com.microsoft",
            "MatMulNBits",
            [x, *(editor.add_constant(node, name, array) for name, array in tensors.items())],
            outputs=[result],
            attributes=[ir.AttrInt64(name, size) for name, size in sizes.items()],
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
    ]
    if addend is not None:
        name = editor.node_name(f"{node.name}/add")
        nodes.append(ir.Node("", "Add", [result, addend], outputs=[new], name=name))
    graph.insert_before(node, nodes)
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    operand = node.inputs[1]
    graph.remove(node, safe=True)
    if operand is not None:
        editor.prune(operand)
        editor.store_transposed(operand)
    editor.model.opset_imports.setdefault("com.microsoft", 1)


def _columns(weight: Constant) -> Iterator[NDArray[Any]]:
    """(K, some columns) at a time; what is a view of a file is mapped anew for each."""
    viewed = all(node.op_type in ("Identity", "Transpose") for node in weight.nodes)
    numbers: NDArray[Any] | None = None
    for start in range(0, weight.shape[1], _COLUMNS_AT_ONCE):
        numbers = weight.numpy() if numbers is None else numbers
        yield np.ascontiguousarray(numbers[:, start : start + _COLUMNS_AT_ONCE])
        if viewed:
            numbers = None
            weight.release()
    weight.release()


def block_quantizer(bits: int) -> Any:
    """The quantizer of onnxruntime; ``qbits_block_quant`` takes (K, N) floats.

    Raises:
        OnnxTernaryError: if onnxruntime has none for these bits.
    """
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK_SIZE, is_symmetric=False, accuracy_level=ACCURACY_LEVEL, bits=bits
        )
    except (ImportError, TypeError) as error:
        raise OnnxTernaryError(
            f"This onnxruntime has no quantizer for {bits} bits ({error}); upgrade it with "
            "'pip install -U onnxruntime', or leave out --remaining."
        ) from error
    return DefaultWeightOnlyQuantizer(config)
