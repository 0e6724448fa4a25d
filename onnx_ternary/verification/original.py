"""The original's products: exposed in the model, or taken out and run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.places import (
    FunctionKey,
    Place,
    function_key,
    nested_nodes,
    subgraph_nodes,
)

# One rounding that falls the other way moves everything behind it, so outputs of models with
# quantized activations are reported without a verdict.
ROUNDING_OPS = frozenset(
    ("Round", "QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "Floor", "Ceil")
)
# Products of integers, and which input is the weight's zero point; the weight is input 1.
INTEGER_PRODUCTS = {"MatMulInteger": 3, "MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3}
# 2 * 255 * 64 fits in int16, twice that does not.
_LARGEST_UNSATURATED = 64
MIN_ROWS = 16
_NUMPY_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}


def run_alone(
    before: LoadedModel, graph: GraphProto, place: Place, K: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random numbers and what the original's product makes of them, as its source and target.

    Raises:
        ModelError: if the product does not run on any form of them.
    """
    failure = ModelError("its outputs have another type than its inputs")
    values = rng.standard_normal((MIN_ROWS, K))
    perm = place.perm_x or place.perm_y
    ranks = (2, 3, 4, 1) if perm is None else (len(perm),)
    for dtype in (np.float32, np.float16):
        for rank in ranks:
            rows = values if rank > 1 else values[0]
            x = rows.astype(dtype).reshape((1,) * (rank - 2) + rows.shape)
            try:
                y = product_of(before, graph, place, x)
            except ModelError as error:
                failure = error
                continue
            if y is not None and y.dtype == x.dtype:
                return place.source_of(x), place.target_of(y)
    raise failure


def _expose_in_function(
    proto: ModelProto, key: FunctionKey, names: Sequence[str]
) -> dict[str, str]:
    """Makes values of one call of a local function outputs of the main graph.

    Every call gets the function's new outputs; those of the first one that is no subgraph's are
    handed on, through other functions if need be.

    Returns:
        The names the values have in the main graph; none where only subgraphs call the function.
    """
    functions = {function_key(function): function for function in proto.functions}
    values = list(names)
    while True:
        function = functions[key]
        num_outputs = len(function.output)
        exposed = [f"{value}/exposed{at}" for at, value in enumerate(values)]
        function.node.extend(map(_identity, values, exposed))
        function.output.extend(exposed)
        if "" not in {each.domain for each in function.opset_import}:
            function.opset_import.extend(each for each in proto.opset_import if not each.domain)
        handed: tuple[FunctionKey | None, list[str]] | None = None
        callers: list[tuple[FunctionKey | None, Sequence[NodeProto]]] = [(None, proto.graph.node)]
        callers += [(caller, each.node) for caller, each in functions.items()]
        for caller, nodes in callers:
            own = len(nodes)
            for number, node in enumerate((*nodes, *subgraph_nodes(nodes))):
                if (node.domain, node.op_type, node.overload) != key:
                    continue
                outputs = [f"{name}/call{number}" for name in exposed]
                node.output.extend([""] * (num_outputs - len(node.output)) + outputs)
                if handed is None and number < own:
                    handed = caller, outputs
        if handed is None:
            return {}
        caller, values = handed
        if caller is None:
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
            return dict(zip(names, values, strict=True))
        key = caller


def _identity(value: str, output: str) -> NodeProto:
    return helper.make_node("Identity", [value], [output])


def with_float_sums(model: LoadedModel) -> tuple[LoadedModel, int]:
    """The model with MatMulNBits in float32, and how many were free to round their inputs.

    With accuracy_level 4 onnxruntime rounds them to int8, each block of each row by itself, which
    costs a hundred times a product's bound.
    """

    def rounding(proto: ModelProto) -> list[onnx.AttributeProto]:
        return [
            attribute
            for node in (*proto.graph.node, *nested_nodes(proto))
            if node.domain == "com.microsoft" and node.op_type == "MatMulNBits"
            for attribute in node.attribute
            if attribute.name == "accuracy_level" and attribute.i == 4
        ]

    if not rounding(model.proto):
        return model, 0
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    changed = rounding(proto)
    for attribute in changed:
        attribute.i = 1
    return replace(model, proto=proto), len(changed)


def with_unsigned_weights(model: LoadedModel) -> LoadedModel:
    """The model with large int8 weights of integer products as uint8, 128 added to code and zero.

    On processors with AVX2 but without VNNI onnxruntime multiplies uint8 activations by int8
    weights in pairs that saturate at int16; by uint8 weights its sums are exact.
    """
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}

    def int8(name: str) -> bool:
        return name in stored and stored[name].data_type == TensorProto.INT8

    products = [
        node
        for node in model.proto.graph.node
        if node.op_type in INTEGER_PRODUCTS and int8(node.input[1])
    ]
    large = {
        name
        for name in {node.input[1] for node in products}
        if np.abs(model.constants(model.proto.graph, [name], name)[0].astype(np.int16)).max(
            initial=0
        )
        > _LARGEST_UNSATURATED
    }
    if not large:
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    moved: dict[str, str] = {}
    taken = {*stored, *(value.name for value in proto.graph.input)}
    taken.update(name for node in proto.graph.node for name in node.output)

    def unsigned(name: str) -> str:
        """The tensor moved by 128; without a name, the zero point of 0."""
        if name not in moved:
            old = np.zeros((), np.int8)
            if name:
                old = model.constants(model.proto.graph, [name], name)[0]
            codes = (old.astype(np.int16) + 128).astype(np.uint8)
            fresh = f"{name}.unsigned"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            moved[name] = fresh
            proto.graph.initializer.append(numpy_helper.from_array(codes, fresh))
        return moved[name]

    for node in proto.graph.node:
        if node.op_type not in INTEGER_PRODUCTS or node.input[1] not in large:
            continue
        at = INTEGER_PRODUCTS[node.op_type]
        node.input.extend([""] * (at + 1 - len(node.input)))
        if node.input[at] and not int8(node.input[at]):
            continue
        node.input[1], node.input[at] = unsigned(node.input[1]), unsigned(node.input[at])
    return replace(model, proto=proto)


def run_exposed(
    model: LoadedModel,
    function: FunctionKey | None,
    feeds: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Inner values of a model, or of a function's call, by name: those numpy has a type for."""
    if not names:
        return {}
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    if function is None:
        shown = {name: name for name in names}
        outputs = {value.name for value in proto.graph.output}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in outputs
        )
    else:
        shown = _expose_in_function(proto, function, names)
        if not shown:
            return {}
    session = model.session(proto, optimized=False)
    types = {output.name: output.type for output in session.get_outputs()}
    readable = [name for name in shown if types[shown[name]] in _NUMPY_TYPES]
    values = model.run_session(session, feeds, [shown[name] for name in readable])
    return {name: values[shown[name]] for name in readable}


@dataclass(frozen=True, slots=True)
class _OriginalProduct:
    """The original's nodes between a product's input and output, and their constants."""

    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto]

    @property
    def op_types(self) -> set[str]:
        return {node.op_type for node in self.nodes}


def original_product(graph: GraphProto, place: Place) -> _OriginalProduct | None:
    """None where they take more than constants and the product's input, or have subgraphs."""
    source, target = place.source, place.target
    makers = {name: maker for maker in graph.node for name in maker.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    needed: set[str] = set()
    constants: dict[str, TensorProto] = {}
    open_names = [target]
    while open_names:
        name = open_names.pop()
        if name in ("", source) or name in needed or name in constants:
            continue
        if name in initializers:
            constants[name] = initializers[name]
            continue
        maker = makers.get(name)
        if maker is None or any(_has_graph(attribute) for attribute in maker.attribute):
            return None
        needed.update(maker.output)
        open_names.extend(maker.input)
    nodes = [maker for maker in graph.node if any(name in needed for name in maker.output)]
    return _OriginalProduct(nodes, list(constants.values()))


def run_original_product(
    before: LoadedModel, graph: GraphProto, place: Place, probe: NDArray[Any]
) -> NDArray[Any] | None:
    """The original's product on another X; None where it does not stand alone or for its shape."""
    try:
        return product_of(before, graph, place, probe)
    except ModelError:
        return None


def product_of(
    before: LoadedModel, graph: GraphProto, place: Place, probe: NDArray[Any]
) -> NDArray[Any] | None:
    """The original's product on another X; None where it does not stand alone.

    Raises:
        ModelError: if it does not run, on X of this shape and type or at all.
    """
    source, target = place.source, place.target
    x = place.source_of(probe)
    product = original_product(graph, place)
    if product is None:
        return None
    alone = ModelProto()
    alone.ir_version = before.proto.ir_version
    alone.opset_import.extend(before.proto.opset_import)
    alone.functions.extend(before.proto.functions)
    alone.graph.name = "product"
    alone.graph.node.extend(product.nodes)
    alone.graph.initializer.extend(product.constants)
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    alone.graph.input.append(helper.make_tensor_value_info(source, dtype, x.shape))
    alone.graph.output.append(onnx.ValueInfoProto(name=target))
    session = before.session(alone, optimized=False)
    result: NDArray[Any] = before.run_session(session, {source: x}, [target])[target]
    return place.y_of(result)


def original_op_types(before: LoadedModel, graph: GraphProto, place: Place) -> frozenset[str]:
    """Operators between the original's values, those inside called functions included."""
    product = original_product(graph, place)
    functions = {(each.domain, each.name): each for each in before.proto.functions}
    found: set[str] = set()
    waiting = [] if product is None else list(product.nodes)
    while waiting:
        node = waiting.pop()
        found.add(node.op_type)
        called = functions.pop((node.domain, node.op_type), None)
        waiting.extend(() if called is None else called.node)
    return frozenset(found)


def _has_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or len(attribute.graphs) > 0
