"""Operators that make shapes and numbers: Shape, Constant, ConstantOfShape, Range."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import AttributeProto

from onnx_ternary.verification.shapes.facts import MAX_VALUES
from onnx_ternary.verification.shapes.node import Handler, Node, read_integers
from onnx_ternary.verification.shapes.sizes import Size


def _shape_of(node: Node) -> None:
    x = node.shape(0)
    if x is not None:
        start, end = node.integer("start", 0), node.integer("end", len(x))
        node.set_values(x[start:end])
        node.set((Size(len(x[start:end])),))


def _constant(node: Node) -> None:
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.ref_attr_name or not node.proto.output:
        return
    name = node.proto.output[0]
    if attribute.type == AttributeProto.TENSOR:
        node.scope.tensors[name] = attribute.t
        node.scope.shapes[name] = tuple(map(Size, attribute.t.dims))
    elif attribute.type in (AttributeProto.INT, AttributeProto.INTS):
        is_list = attribute.type == AttributeProto.INTS
        numbers = list(attribute.ints) if is_list else [attribute.i]
        node.set((Size(len(numbers)),) if is_list else ())
        node.set_values(tuple(map(Size, numbers)))
    elif attribute.type == AttributeProto.FLOAT:
        node.set(())


def _constant_of_shape(node: Node) -> None:
    sizes = node.values(0)
    if sizes is None:
        return
    shape = [node.sizes.fresh() if size is None else size for size in sizes]
    node.set(shape)
    length = node.sizes.resolve(shape[0]).value if len(shape) == 1 else None
    if length is not None and 0 <= length <= MAX_VALUES:
        tensor = node.attributes["value"].t if "value" in node.attributes else None
        filled = [0] if tensor is None else read_integers(tensor)
        node.set_values((Size(filled[0]),) * length if filled else None)


def _range(node: Node) -> None:
    ends = [node.values(at) for at in range(3)]
    known = [end[0] for end in ends if end is not None and end]
    if len(known) == 3 and all(end is not None for end in known) and known[2] == Size(1):
        start, limit = known[0], known[1]
        node.set((limit - start,) if start is not None and limit is not None else None)
    else:
        node.set((node.sizes.fresh(),))


HANDLERS: Mapping[str, Handler] = {
    "Shape": _shape_of,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
