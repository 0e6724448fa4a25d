"""The original's products: exposed in the model, or taken out and run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.pieces import Piece, run_pieces
from onnx_ternary.verification.places import (
    FunctionKey,
    Place,
    Scope,
    constant_tensors,
    function_key,
    has_graph,
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
# Nodes between a product's input and its output, and nodes that compute its weight.
_MAX_PRODUCT_NODES = 4096
_NUMPY_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}


def run_alone(
    before: LoadedModel, scope: Scope, place: Place, K: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random numbers and what the original's product makes of them, as its source and target.

    Raises:
        ModelError: if the product does not run on any form of them.
    """
    failure = ModelError("its outputs have another type than its inputs")
    values = rng.standard_normal((MIN_ROWS, K))
    ranks = (2, 3, 4, 1) if place.rank is None else (place.rank,)
    for dtype in (np.float32, np.float16):
        for rank in ranks:
            rows = values if rank > 1 else values[0]
            x = rows.astype(dtype).reshape((1,) * (rank - 2) + rows.shape)
            piece = product_piece(scope, place, x)
            if piece is None:
                continue
            functions = original_functions(before, [piece])
            (answer,) = run_pieces(before, [piece], optimized=False, functions=functions)
            if isinstance(answer, ModelError):
                failure = answer
            elif place.y_of(answer[0]).ndim != x.ndim:
                failure = ModelError("its outputs have another rank than its inputs")
            elif answer[0].dtype == x.dtype:
                return place.source_of(x), answer[0]
    raise failure


def _expose_in_function(
    proto: ModelProto, key: FunctionKey, names: Sequence[str]
) -> dict[str, str]:
    """Make values of one call of a local function outputs of the main graph.

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
    known = constant_tensors(model.proto.graph)

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
        if np.abs(model.constants(known, [name], name)[0].astype(np.int16)).max(initial=0)
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
                old = model.constants(known, [name], name)[0]
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


def with_separate_activations(model: LoadedModel) -> LoadedModel:
    """The model with FusedGemm as Gemm and an activation, so that the product has a value.

    Conversion writes the op and the activation, and names the value between in the same way.
    """
    nodes = (*model.proto.graph.node, *nested_nodes(model.proto))
    if not any(map(_is_fused_gemm, nodes)):
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    opset = next((each for each in proto.opset_import if not each.domain), None)
    places: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    while places:
        place = places.pop()
        if isinstance(place, FunctionProto) and all(each.domain for each in place.opset_import):
            place.opset_import.extend([] if opset is None else [opset])
        separated = [part for node in place.node for part in _separated(node)]
        del place.node[:]
        place.node.extend(separated)
        for attribute in (each for node in place.node for each in node.attribute):
            places += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return replace(model, proto=proto)


def _is_fused_gemm(node: NodeProto) -> bool:
    return (node.domain, node.op_type) == ("com.microsoft", "FusedGemm")


def _separated(node: NodeProto) -> tuple[NodeProto, ...]:
    """A FusedGemm as Gemm and activation; other nodes as they are."""
    op_type = next((each.s.decode() for each in node.attribute if each.name == "activation"), "")
    if not _is_fused_gemm(node) or not onnx.defs.has(op_type):
        return (node,)
    between = f"{node.output[0]}.product"
    product = helper.make_node("Gemm", node.input, [between], name=node.name)
    activation = helper.make_node(op_type, [between], node.output)
    for attribute in node.attribute:
        inner = attribute.name.removeprefix("activation_")
        target = product if inner == attribute.name else activation
        if inner in onnx.defs.get_schema(target.op_type).attributes:
            copy = target.attribute.add()
            copy.CopyFrom(attribute)
            copy.name = inner
    return product, activation


def run_exposed(
    model: LoadedModel,
    function: FunctionKey | None,
    feeds: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Inner values of a model, or of a function's call, by name, if numpy has a type for them."""
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


def original_product(scope: Scope, place: Place) -> _OriginalProduct | None:
    """None where they take more than constants and the product's input, or have subgraphs."""
    needed: dict[tuple[int, int], NodeProto] = {}
    constants: dict[str, TensorProto] = {}
    seen = {"", place.source}
    open_names = [place.target]
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in scope.initializers:
            constants[name] = scope.initializers[name]
            continue
        if name not in scope.makers or len(needed) >= _MAX_PRODUCT_NODES:
            return None
        at, maker = scope.makers[name]
        if any(has_graph(attribute) for attribute in maker.attribute):
            return None
        needed[at] = maker
        open_names.extend(maker.input)
    return _OriginalProduct([needed[at] for at in sorted(needed)], list(constants.values()))


def product_piece(scope: Scope, place: Place, x: NDArray[Any]) -> Piece | None:
    """The original's product on another X; None where it does not stand alone."""
    product = original_product(scope, place)
    if product is None:
        return None
    feeds = {place.source: place.source_of(x)}
    return Piece(product.nodes, product.constants, feeds, [place.target])


def original_functions(before: LoadedModel, pieces: Sequence[Piece]) -> list[FunctionProto]:
    """Local functions that pieces of the original may call."""
    calls = any(node.domain for piece in pieces for node in piece.nodes)
    return list(before.proto.functions) if calls else []


def original_op_types(before: LoadedModel, scope: Scope, place: Place) -> frozenset[str]:
    """Operators between the original's values, operators inside called functions included."""
    product = original_product(scope, place)
    functions = {(each.domain, each.name): each for each in before.proto.functions}
    found: set[str] = set()
    waiting = [] if product is None else list(product.nodes)
    while waiting:
        node = waiting.pop()
        found.add(node.op_type)
        called = functions.pop((node.domain, node.op_type), None)
        waiting.extend(() if called is None else called.node)
    return frozenset(found)
