"""Operators that work element by element, and where the elements of an integer tensor come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_ternary.verification.shapes.facts import MAX_VALUES, Origin
from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size

_SAME_SHAPE = frozenset(
    (
        *("Abs", "Acos", "Asin", "Atan", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos"),
        *("CumSum", "DequantizeLinear", "DynamicQuantizeLinear", "Dropout", "Elu", "Erf", "Exp"),
        *("Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "IsInf", "IsNaN"),
        *("LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not", "QuantizeLinear", "Reciprocal"),
        *("Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Softsign"),
        *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu", "FastGelu", "QuickGelu"),
        *("BiasGelu", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "BatchNormalization"),
        *("GroupNormalization", "InstanceNormalization", "LpNormalization", "RotaryEmbedding"),
        *("ScatterElements", "ScatterND", "TensorScatter", "RandomNormalLike"),
        *("RandomUniformLike", "Bernoulli", "Quant", "BipolarQuant"),
    )
)
_BROADCAST = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Mod", "PRelu", "Where"),
        *("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("BitwiseAnd", "BitwiseOr", "BitShift"),
    )
)
# The elements of the output are elements of the first input, in whatever order.
_SAME_ELEMENTS = frozenset(
    (
        *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"),
        *("Expand", "Slice", "Tile", "Clip"),
    )
)
# The last axis of the first input meets the size of a vector in this place.
_NORMALIZATION_SCALE = {
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
    "BiasGelu": 1,
}


def _same_shape(node: Node) -> None:
    shape = node.shape(0)
    scale = node.shape(_NORMALIZATION_SCALE.get(node.proto.op_type, len(node.proto.input)))
    if shape and scale and len(scale) == 1:
        node.equate(shape[-1], scale[0])
    skip = node.shape(1)
    if node.proto.op_type.startswith("Skip") and shape and skip and len(shape) == len(skip):
        for one, other in zip(shape, skip, strict=True):
            node.equate(one, other)
    node.set(shape)
    if node.proto.op_type in ("Cast", "Identity"):
        node.set_values(node.values(0))


def _broadcast(node: Node) -> None:
    shapes = [node.shape(at) for at in range(len(node.proto.input))]
    known = [shape for shape in shapes if shape is not None]
    if known and len(known) == len(shapes):
        node.set(node.broadcast_shapes(known))
    _broadcast_values(node)


def _broadcast_values(node: Node) -> None:
    """Arithmetic of shapes."""
    operands = [node.values(at) for at in range(len(node.proto.input))]
    known = [values for values in operands if values is not None]
    if not known or len(known) < len(operands):
        return
    length = max(map(len, known))
    if length > MAX_VALUES or any(len(values) not in (1, length) for values in known):
        return
    rows = [values if len(values) == length else values * length for values in known]
    node.set_values(tuple(_combine(node, elements) for elements in zip(*rows, strict=True)))


def _combine(node: Node, elements: Sequence[Size | None]) -> Size | None:
    operands = [element for element in elements if element is not None]
    if len(operands) < len(elements):
        return None
    operands = list(map(node.sizes.resolve, operands))
    op_type = node.proto.op_type
    if op_type == "Where" and len(operands) == 3:
        chosen = operands[0].value
        return None if chosen is None else operands[1 if chosen else 2]
    if len(operands) != 2:
        return None
    one, other = operands
    if op_type == "Add":
        return one + other
    if op_type == "Sub":
        return one - other
    if op_type == "Mul":
        if other.value is not None:
            return one.times(other.value)
        return other.times(one.value) if one.value is not None else None
    if op_type == "Div":
        return one.divided(other.value) if other.value else None
    if op_type == "Equal":
        return _equal(one, other)
    return None


def _equal(one: Size, other: Size) -> Size | None:
    """1 or 0 where two sizes are known to be equal or not; a size is never negative."""
    gap = one - other
    if gap.value is not None:
        return Size(int(gap.value == 0))
    for size, number in ((one, other.value), (other, one.value)):
        if number is not None and number < 0 and _is_size(size):
            return Size(0)
    return None


def _is_size(size: Size) -> bool:
    return size.constant >= 0 and all(coefficient > 0 for _, coefficient in size.terms)


def track_elements(node: Node) -> None:
    """Note the input of the model that the elements of the node's output come from."""
    op_type, outputs = node.proto.op_type, node.proto.output
    if not outputs or not outputs[0]:
        return
    first = node.scope.origins.get(node.input(0))
    if op_type in _SAME_ELEMENTS or op_type in ("Not", "Gather"):
        if first is not None:
            node.scope.origins[outputs[0]] = first
    elif op_type in ("Add", "Sub"):
        _track_offset(node, outputs[0], first)


def _track_offset(node: Node, output: str, first: Origin | None) -> None:
    sign = 1 if node.proto.op_type == "Add" else -1
    moved = node.numbers(1)
    if first is None and sign == 1:
        first, moved = node.scope.origins.get(node.input(1)), node.numbers(0)
    if first is not None and moved is not None and len(moved) == 1:
        node.scope.origins[output] = Origin(first.name, first.offset + sign * moved[0])


HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_SAME_SHAPE, _same_shape),
    **dict.fromkeys(_BROADCAST, _broadcast),
}
