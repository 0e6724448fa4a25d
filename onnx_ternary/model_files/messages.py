"""Messages as onnx_ir's models, and what it has no type or no short words for.

Values that are maps, as scikit-learn's classifiers end in, are read without a type, which is
written back when the model is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

_KEY = "onnx_ternary.map_types"
_MAX_REASON = 300


def deserialized(proto: onnx.ModelProto) -> ir.Model:
    """The model of a message that may have maps as inputs, outputs or inner values."""
    maps = {
        value.name: value.type.SerializeToString()
        for value in _values(proto.graph)
        if _is_map(value.type)
    }
    if not maps:
        return ir.from_proto(proto)
    without = onnx.ModelProto()
    without.CopyFrom(proto)
    for value in _values(without.graph):
        if value.name in maps:
            value.ClearField("type")
    model = ir.from_proto(without)
    model.meta[_KEY] = maps
    return model


def why(error: BaseException) -> str:
    """What is wrong with a message, from what onnx_ir raised, in one line.

    onnx_ir quotes the whole message, tensors too, in every error but the first of a chain.
    """
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    text = text[:_MAX_REASON] + "..." if len(text) > _MAX_REASON else text
    return text.rstrip(".") or type(error).__name__


def parts(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.NodeProto]:
    """Every graph and every node of a message, those of subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if not nodes:
            graph = graphs.pop()
            yield graph
            nodes += reversed(graph.node)
            continue
        node = nodes.pop()
        yield node
        for attribute in node.attribute:
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs


def has_map_types(model: ir.Model) -> bool:
    """Whether a model that was read has types that it was read without."""
    return bool(model.meta.get(_KEY))


def restore_map_types(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Give values of the model's message the types they were read with."""
    maps = model.meta.get(_KEY, {})
    for value in _values(proto.graph):
        if value.name in maps:
            value.type.ParseFromString(maps[value.name])


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _is_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _is_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _is_map(kind.optional_type.elem_type)
    return bool(kind.HasField("map_type"))
