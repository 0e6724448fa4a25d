"""Products that stay float, in the hands of ONNX Runtime's own quantizer, where the user asks.

    MatMul(X, W)   =>   com.microsoft.MatMulNBits(X, B, scales, zero_points)

1. MatMul with a constant float32 or float16 W (K, N) on the right that no rule rewrote and the user
   did not exclude; everything else stays as it is.
2. 4 or 8 bits, one scale and zero point a block of 32 rows, accuracy_level 4: activations are
   rounded to int8. Answers change; the report names every such product.
3. W is read a few columns at a time. It stays in the model where something else uses it (the
   embedding a head is tied to).
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
from ..constants.resolve import resolve
from .model_editor import (
    ModelEditor,
    output_shape,
    prune,
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


def quantize(node: ir.Node, bits: int) -> Quantized | None:
    """The weight of a product in blocks, or None where case 1 does not hold.

    Raises:
        OnnxTernaryError: if onnxruntime has no quantizer for these bits.
        ModelError: if the weight cannot be read.
    """
    if (node.domain, node.op_type) != ("", "MatMul") or node.inputs[1] is None:
        return None
    weight = resolve(node.inputs[1])
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or weight.dtype not in _DTYPES:
        return None
    if not weight.size:
        return None
    quantizer = _quantizer(bits)
    parts = [quantizer.qbits_block_quant(columns) for columns in _columns(weight)]
    codes, scales, zero_points = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Quantized(weight, bits, codes, scales, zero_points)


def requantize(editor: ModelEditor, node: ir.Node, quantized: Quantized) -> None:
    """Put a MatMulNBits in the place of a MatMul."""
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
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        [x, *(editor.add_constant(node, name, array) for name, array in tensors.items())],
        outputs=[new],
        attributes=[ir.AttrInt64(name, size) for name, size in sizes.items()],
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, product)
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    operand = node.inputs[1]
    graph.remove(node, safe=True)
    if operand is not None:
        prune(operand)
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


def _quantizer(bits: int) -> Any:
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
