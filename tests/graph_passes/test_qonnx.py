"""What of QONNX's quantizers stays."""

from __future__ import annotations

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import OP_TYPE
from tests.catalogue.qonnx import activations_too


def test_quantization_of_activations_stays() -> None:
    result = optimize(activations_too().model, OptimizeOptions(min_elements=0))
    quantizer, product = result.model.graph
    assert (quantizer.op_type, quantizer.name, product.op_type) == ("Quant", "quant_x", OP_TYPE)
    assert product.inputs[0] is quantizer.outputs[0]
    # The zero point serves the activations as well.
    assert {"x_scale", "bits8", "zero"} < set(result.model.graph.initializers)
    assert not {"v", "scale", "bits"} & set(result.model.graph.initializers)
