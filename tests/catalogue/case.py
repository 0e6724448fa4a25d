"""What every file of the catalogue is made of: a case, a near miss, and small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

K, N = 48, 20
ATTRIBUTES = {"doc_string": "a model", "producer_name": "tests"}
Array = NDArray[Any]
F32 = np.float32


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and what conversion makes of it.

    Attributes:
        model: the model.
        patterns: `Rewrite.pattern` of every rewritten product, in graph order.
        weights: float64 (K, N) per rewritten product: the matrix the new node multiplies by,
            exactly; None where absorbed factors round.
        keeps_weight: the original weight stays in the model.
        grows: stored in few bits before, the model gets no smaller.
        runnable: the same model for onnxruntime, where it has no kernels for `model`.
        options: of the conversion, besides min_elements = 0.
        activation: the new nodes' activation attributes.
        noted: the report has something to say about the numbers.
    """

    model: onnx.ModelProto
    patterns: tuple[str, ...]
    weights: tuple[Array | None, ...]
    keeps_weight: bool = False
    grows: bool = False
    runnable: onnx.ModelProto | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=lambda: {"activation": "float"})
    noted: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """A model in which one product stays, and why."""

    model: onnx.ModelProto
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)


def ternary(
    rows: int = K,
    columns: int = N,
    *,
    scale: float | Array = 0.25,
    group_size: int = 0,
    levels: Sequence[int] = (-1, 0, 1),
    dtype: Any = np.float32,
    seed: int = 0,
) -> Array:
    """A (rows, columns) matrix of levels times scale; every level occurs in every column."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(levels, size=(rows, columns)).astype(np.float32)
    drawn[: len(levels)] = np.array(levels, np.float32)[:, None]
    scale = np.asarray(scale, np.float32)
    if group_size:
        scale = np.repeat(scale, group_size, axis=0)[:rows]
    return (drawn * scale).astype(dtype)


def column_scales(columns: int = N) -> Array:
    """(columns,) float32, all different, with full mantissas."""
    return (np.arange(columns, dtype=np.float32) + 1) * np.float32(0.013)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, Array],
    *,
    x_shape: Sequence[int | str] | None = ("batch", K),
    x_dtype: int = TensorProto.FLOAT,
    y_dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
) -> onnx.ModelProto:
    """A model with input ``x``, only the shapes it needs, and metadata that has to survive."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", x_dtype, x_shape), *inputs],
        [helper.make_tensor_value_info(name, y_dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        doc_string="a graph",
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *opsets],
        ir_version=ir_version,
        functions=list(functions),
        **ATTRIBUTES,
    )
    helper.set_model_props(made, {"author": "somebody"})
    inferred = onnx.shape_inference.infer_shapes(made)
    for value, known in zip(made.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(known)
    return made


def matmul(x: str = "x", w: str = "w", y: str = "y", name: str = "product") -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, w], [y], name=name, doc_string="a product")


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"{op_type}_{output}", **attributes)


def simple(weight: Array, **kwargs: Any) -> onnx.ModelProto:
    """``y = x @ w``."""
    return model([matmul()], {"w": weight}, **kwargs)


def in_float64(weight: Array) -> Array:
    return weight.astype(np.float64)


TWO = np.array(2, F32)
ROW = column_scales()


def changed(weight: Array, row: int, column: int, value: float) -> Array:
    weight[row, column] = value
    return weight


MICROSOFT = [helper.make_opsetid("com.microsoft", 1)]


def overridable(made: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """An initializer becomes an input as well."""
    (constant,) = (each for each in made.graph.initializer if each.name == name)
    given = helper.make_tensor_value_info(name, constant.data_type, constant.dims)
    made.graph.input.append(given)
    return made


OVERRIDABLE = (
    "is also a graph input, so a caller may override it; --constant-initializers "
    "(constant_initializers=True) makes it a constant"
)
WEIGHT = ternary(scale=column_scales())
EXACT = WEIGHT.astype(np.float64)


def product_case(made: onnx.ModelProto, scale: float = 1.0, pattern: str = "MatMul") -> Case:
    return Case(made, (pattern,), (EXACT * scale,))


def to_half(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float16."""
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made


def half_case(made: onnx.ModelProto, pattern: str = "MatMul") -> Case:
    weight = WEIGHT.astype(np.float16).astype(np.float64)
    return Case(to_half(made), (pattern,), (weight,))
