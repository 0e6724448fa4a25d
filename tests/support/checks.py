"""How converted models are run and taken apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnx_ternary.index import decode_index
from onnx_ternary.op.nodes import constant_tensor, read_attributes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.runtime import register
from tests.catalogue.case import Case
from tests.catalogue.matmul_nbits import FEW_BITS

ALL = OptimizeOptions(min_elements=0)
Array = NDArray[Any]


def options_of(case: Case, **changes: Any) -> OptimizeOptions:
    return dataclasses.replace(ALL, **case.options, **changes)


def tensors(node: ir.Node) -> list[Array]:
    """Codes, aux, scale and bias."""
    values = []
    for value in node.inputs[1:]:
        tensor = constant_tensor(value)
        assert tensor is not None
        values.append(tensor.numpy())
    return values


def levels_and_scale(node: ir.Node) -> tuple[Array, Array, int]:
    attributes = read_attributes(node)
    codes, aux, scale, _ = tensors(node)
    return decode_index(attributes, codes, aux), scale, attributes.group_size


def dense(node: ir.Node) -> Array:
    levels, scale, group_size = levels_and_scale(node)
    scale = scale.astype(np.float64)
    if scale.ndim == 2:
        scale = np.repeat(scale, group_size, axis=0)[: levels.shape[0]]
    return levels * scale


def run(
    model: onnx.ModelProto, feeds: dict[str, Array], *, library: bool = False
) -> dict[str, Array]:
    options = ort.SessionOptions()
    if library:
        register(options)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def skip_where_too_new(model: onnx.ModelProto) -> None:
    opset = {each.domain: each.version for each in model.opset_import}[""]
    version = tuple(map(int, ort.__version__.split(".")[:2]))
    # onnxruntime 1.17 knows opset 20 and IR version 9, 1.18 knows 21 and 10.
    if (opset > 20 or model.ir_version > 9) and version < (1, 18):
        pytest.skip(
            f"onnxruntime {ort.__version__} knows no opset {opset} with IR {model.ir_version}"
        )
    newer = any(node.op_type == "MatMulNBits" for node in model.graph.node)
    if (newer or opset > 24) and not FEW_BITS:
        pytest.skip(f"onnxruntime {ort.__version__} does not multiply by 2-bit weights")
    attributes = {each.name for node in model.graph.node for each in node.attribute}
    if "output_dtype" in attributes and version < (1, 26):
        # 1.23.2 fails in DequantizeLinear itself, 1.31.1 runs it.
        pytest.skip(f"onnxruntime {ort.__version__} does not follow output_dtype")


def feeds_of(model: onnx.ModelProto, *, whole_numbers: bool) -> dict[str, Array]:
    generator = np.random.default_rng(5)
    initializers = {each.name for each in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in initializers:
            continue
        tensor = value.type.tensor_type
        dims = [dim.dim_value or 2 for dim in tensor.shape.dim]
        if not tensor.HasField("shape"):
            dims = [2, 3, 48]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        numbers = generator.standard_normal(dims)
        feeds[value.name] = (np.round(numbers * 4) if whole_numbers else numbers).astype(dtype)
    return feeds


def exposed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with more of its values among the outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {each.name for each in (*copy.graph.output, *copy.graph.input)}
    for name in dict.fromkeys(names):
        if name not in present:
            copy.graph.output.add(name=name)
    return copy
