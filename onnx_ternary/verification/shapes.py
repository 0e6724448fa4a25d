"""What a model's operators say about the sizes of its inputs and the range of its integers.

The graph is walked once without running it: shapes as tuples of `Size`, small integer tensors that
hold shapes as tuples of sizes, and where integers come from. Operators that are not known end what
is known; nothing is allocated, so the walk costs the same for any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnx_ternary.schema import DOMAIN, OP_TYPE
from onnx_ternary.verification.sizes import Size, Sizes

Shape: TypeAlias = tuple[Size, ...]
# Elements of a tensor that is a shape; None where an element is not known.
Values: TypeAlias = "tuple[Size | None, ...]"

# Nodes looked at inside calls of local functions, and how deep these may call.
_MAX_CALLED_NODES = 50_000
_MAX_DEPTH = 64
# A tensor of more elements is no shape.
_MAX_VALUES = 64

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
# Whose elements are elements of their first input, in whatever order.
_SAME_ELEMENTS = frozenset(
    (
        *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"),
        *("Expand", "Slice", "Tile", "Clip"),
    )
)
# Last axis of the first input meets the size of a vector in this place.
_NORMALIZATION_SCALE = {
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
    "BiasGelu": 1,
}
_MATRIX_PRODUCTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}


@dataclass(slots=True)
class Scope:
    """Values of one graph, its subgraphs included, or of one call of a function."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    tensors: dict[str, TensorProto] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Origin:
    """The input of the model that a value's elements come from, and a number added to them."""

    name: str
    offset: int = 0


@dataclass(slots=True)
class Traced:
    """What the walk found.

    Attributes:
        sizes: the equations between dimensions.
        bounds: sizes that the elements of an integer input have to stay below, by input.
        roles: what a free dimension is: "image" for height and width of convolutions.
        totals: integer inputs that count keys, and how many they have to say.
        caches: inputs that hold earlier keys or values, and the axis of their positions.
        conditions: boolean inputs that choose the branch of an If.
        constants: numbers that occur in the graph as sizes, in order.
    """

    sizes: Sizes
    bounds: dict[str, list[Size]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    totals: dict[str, Size] = field(default_factory=dict)
    caches: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, None] = field(default_factory=dict)
    constants: dict[int, None] = field(default_factory=dict)


def trace(model: ModelProto, inputs: Mapping[str, Shape], sizes: Sizes) -> Traced:
    """Walk the model from its inputs' shapes on; ``sizes`` is solved on the way."""
    found = Traced(sizes)
    scope = Scope()
    for value in model.graph.input:
        if value.name in inputs:
            scope.shapes[value.name] = inputs[value.name]
            scope.origins[value.name] = Origin(value.name)
    tracer = _Tracer(model, found)
    tracer.walk(model.graph, scope, 0)
    sizes.solve_products()
    return found


def declared_shape(value: ValueInfoProto) -> Sequence[Any] | None:
    """Dimensions of a tensor; None where it is none, or of unknown rank."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims: Sequence[Any] = value.type.tensor_type.shape.dim
    return dims


class _Tracer:
    def __init__(self, model: ModelProto, found: Traced) -> None:
        self.found = found
        self.sizes = found.sizes
        self.functions = {(each.domain, each.name): each for each in model.functions}
        self.num_called = 0

    def walk(self, graph: GraphProto, scope: Scope, depth: int) -> None:
        """The nodes of a graph, whose values go into ``scope``."""
        for tensor in graph.initializer:
            scope.tensors[tensor.name] = tensor
            scope.shapes.setdefault(tensor.name, tuple(map(Size, tensor.dims)))
            self.found.constants.update((dim, None) for dim in tensor.dims if dim > 1)
        self.walk_nodes(graph.node, scope, depth)

    def walk_nodes(self, nodes: Iterable[NodeProto], scope: Scope, depth: int) -> None:
        for node in nodes:
            self.num_called += depth > 0
            if self.num_called > _MAX_CALLED_NODES:
                return
            function = self.functions.get((node.domain, node.op_type))
            if function is not None and (node.domain, node.op_type) != (DOMAIN, OP_TYPE):
                self.call(node, function, scope, depth)
            else:
                _Node(self, node, scope, depth).apply()

    def call(self, node: NodeProto, function: Any, scope: Scope, depth: int) -> None:
        """A call of a local function, walked with what its operands are."""
        if depth >= _MAX_DEPTH:
            return
        inner = Scope()
        for name, given in zip(function.input, node.input, strict=False):
            _copy(scope, given, inner, name)
        self.walk_nodes(function.node, inner, depth + 1)
        for name, made in zip(function.output, node.output, strict=False):
            _copy(inner, name, scope, made)


def _copy(source: Scope, name: str, target: Scope, as_name: str) -> None:
    if not name or not as_name:
        return
    if name in source.shapes:
        target.shapes[as_name] = source.shapes[name]
    if name in source.values:
        target.values[as_name] = source.values[name]
    if name in source.origins:
        target.origins[as_name] = source.origins[name]
    if name in source.tensors:
        target.tensors[as_name] = source.tensors[name]


class _Node:
    """One node: what it makes of what is known, and what it says about its inputs."""

    def __init__(self, tracer: _Tracer, node: NodeProto, scope: Scope, depth: int) -> None:
        self.tracer = tracer
        self.sizes = tracer.sizes
        self.found = tracer.found
        self.node = node
        self.scope = scope
        self.depth = depth
        self._attributes = {each.name: each for each in node.attribute}

    def apply(self) -> None:
        op_type = self.node.op_type
        handler = _HANDLERS.get(op_type)
        if handler is not None:
            handler(self)
        elif op_type in _MATRIX_PRODUCTS:
            self.matrix_product(*_MATRIX_PRODUCTS[op_type])
        elif op_type in _SAME_SHAPE:
            self.same_shape()
        elif op_type in _BROADCAST:
            self.broadcast()
        self.track_elements()

    # What inputs and attributes are.

    def input(self, at: int) -> str:
        return self.node.input[at] if at < len(self.node.input) else ""

    def shape(self, at: int) -> Shape | None:
        return self.scope.shapes.get(self.input(at))

    def values(self, at: int) -> Values | None:
        """The elements of a small integer tensor, read where it is a constant."""
        name = self.input(at)
        if name not in self.scope.values and name in self.scope.tensors:
            read = _read_integers(self.scope.tensors[name])
            if read is not None:
                self.scope.values[name] = tuple(map(Size, read))
        return self.scope.values.get(name)

    def numbers(self, at: int, attribute: str = "") -> list[int] | None:
        """Known integers of an input, or of an attribute in older opsets."""
        if attribute in self._attributes:
            return list(self._attributes[attribute].ints)
        values = self.values(at)
        if values is None:
            return None
        numbers = [None if value is None else self.sizes.resolve(value).value for value in values]
        known = [number for number in numbers if number is not None]
        return known if len(known) == len(numbers) else None

    def integer(self, name: str, default: int) -> int:
        attribute = self._attributes.get(name)
        return default if attribute is None or attribute.ref_attr_name else int(attribute.i)

    def set(self, shape: Sequence[Size] | None, at: int = 0) -> None:
        if shape is not None and at < len(self.node.output) and self.node.output[at]:
            self.scope.shapes[self.node.output[at]] = tuple(map(self.sizes.resolve, shape))

    def set_values(self, values: Values | None) -> None:
        if values is not None and len(values) <= _MAX_VALUES:
            self.scope.values[self.node.output[0]] = values

    def equate(self, one: Size, other: Size) -> None:
        self.sizes.equate(one, other)
        for size in (one, other):
            if size.value is not None and size.value > 1:
                self.found.constants.setdefault(size.value)

    # Families of operators.

    def same_shape(self) -> None:
        shape = self.shape(0)
        scale = self.shape(_NORMALIZATION_SCALE.get(self.node.op_type, len(self.node.input)))
        if shape and scale and len(scale) == 1:
            self.equate(shape[-1], scale[0])
        skip = self.shape(1)
        if self.node.op_type.startswith("Skip") and shape and skip and len(shape) == len(skip):
            for one, other in zip(shape, skip, strict=True):
                self.equate(one, other)
        self.set(shape)
        if self.node.op_type in ("Cast", "Identity"):
            self.set_values(self.values(0))

    def broadcast(self) -> None:
        shapes = [self.shape(at) for at in range(len(self.node.input))]
        known = [shape for shape in shapes if shape is not None]
        if len(known) == len(shapes):
            self.set(self.broadcast_shapes(known))
        self.broadcast_values()

    def broadcast_shapes(self, shapes: Sequence[Shape]) -> Shape:
        """The common shape; sizes that meet and are not 1 are taken to be equal."""
        rank = max(map(len, shapes))
        result = [Size(1)] * rank
        for shape in shapes:
            for at, size in enumerate(shape, rank - len(shape)):
                one, other = self.sizes.resolve(result[at]), self.sizes.resolve(size)
                if one == Size(1):
                    result[at] = other
                elif other != Size(1):
                    self.equate(one, other)
                    result[at] = one if one.value is not None else other
        return tuple(result)

    def broadcast_values(self) -> None:
        """Arithmetic of shapes."""
        operands = [self.values(at) for at in range(len(self.node.input))]
        known = [values for values in operands if values is not None]
        if not known or len(known) < len(operands):
            return
        length = max(map(len, known))
        if length > _MAX_VALUES or any(len(values) not in (1, length) for values in known):
            return
        rows = [values if len(values) == length else values * length for values in known]
        self.set_values(tuple(self.combine(elements) for elements in zip(*rows, strict=True)))

    def combine(self, elements: Sequence[Size | None]) -> Size | None:
        operands = [element for element in elements if element is not None]
        if len(operands) < len(elements):
            return None
        operands = list(map(self.sizes.resolve, operands))
        op_type = self.node.op_type
        if op_type == "Where":
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

    def matrix_product(self, left: int, right: int) -> None:
        x, w = self.shape(left), self.shape(right)
        if not x or not w:
            return
        if len(x) >= 2 and self.integer("transA", 0):
            x = (*x[:-2], x[-1], x[-2])
        if len(w) >= 2 and self.integer("transB", 0):
            w = (*w[:-2], w[-1], w[-2])
        self.equate(x[-1], w[-2] if len(w) > 1 else w[0])
        batch = self.broadcast_shapes((x[:-2], w[:-2]))
        self.set((*batch, *x[-2:-1], *(w[-1:] if len(w) > 1 else ())))

    def gemm(self) -> None:
        a, b = self.shape(0), self.shape(1)
        if a is None or b is None or len(a) != 2 or len(b) != 2:
            return
        a = (a[1], a[0]) if self.integer("transA", 0) else a
        b = (b[1], b[0]) if self.integer("transB", 0) else b
        self.equate(a[1], b[0])
        self.set((a[0], b[1]))

    def packed_product(self) -> None:
        """MatMulNBits and the op: K and N are attributes."""
        x, K, N = self.shape(0), self.integer("K", 0), self.integer("N", 0)
        if x and K > 0 and N > 0:
            self.equate(x[-1], Size(K))
            self.set((*x[:-1], Size(N)))

    def conv(self) -> None:
        x = self.shape(0)
        w = self.shape(3 if self.node.op_type == "QLinearConv" else 1)
        if not x or not w or len(x) != len(w) or len(x) < 3:
            return
        transposed = self.node.op_type == "ConvTranspose"
        group = self.integer("group", 1)
        self.equate(x[1], w[0] if transposed else w[1].times(group))
        for size in x[2:]:
            for name in self.sizes.resolve(size).variables:
                self.found.roles.setdefault(name, "image")
        channels = w[1].times(group) if transposed else w[0]
        spatial = [Size(w[at].constant) for at in range(2, len(x))]
        moved = [self.sizes.fresh() for _ in spatial] if transposed else self.windows(x, spatial)
        self.set((x[0], channels, *moved))

    def pool(self) -> None:
        x = self.shape(0)
        kernel = [Size(size) for size in self.numbers(len(self.node.input), "kernel_shape") or ()]
        if x and len(kernel) == len(x) - 2:
            self.set((*x[:2], *self.windows(x, kernel)))

    def windows(self, x: Shape, kernel: Sequence[Size]) -> list[Size]:
        """Spatial sizes behind a convolution or a pool; new variables where none is linear."""
        rank = len(kernel)
        strides = self.ints("strides") or [1] * rank
        dilations = self.ints("dilations") or [1] * rank
        pads = self.ints("pads") or [0] * (2 * rank)
        auto_pad = self._attributes["auto_pad"].s if "auto_pad" in self._attributes else b""
        if auto_pad not in (b"", b"NOTSET", b"VALID") or len(pads) < 2 * rank:
            return [self.sizes.fresh() for _ in kernel]
        made = []
        for at, size in enumerate(kernel):
            room = self.sizes.resolve(x[2 + at]) + Size(pads[at] + pads[at + rank])
            room -= Size(dilations[at] * (size.constant - 1) + 1)
            if room.value is not None:
                made.append(Size(max(0, room.value) // max(1, strides[at]) + 1))
            elif strides[at] == 1:
                made.append(room + Size(1))
            else:
                made.append(self.sizes.fresh())
        return made

    def ints(self, name: str) -> list[int]:
        return list(self._attributes[name].ints) if name in self._attributes else []

    def global_pool(self) -> None:
        x = self.shape(0)
        self.set(x and (*x[:2], *(Size(1) for _ in x[2:])))

    def transpose(self) -> None:
        x = self.shape(0)
        if x is not None:
            perm = self.ints("perm") or list(reversed(range(len(x))))
            if sorted(perm) == list(range(len(x))):
                self.set(tuple(x[axis] for axis in perm))

    def reshape(self) -> None:
        x, wanted, length = self.shape(0), self.values(1), self.shape(1)
        if self.values(0) is not None:
            self.set_values(self.values(0))
        if wanted is None:
            rank = length[0].value if length and len(length) == 1 else None
            if rank is not None and rank <= _MAX_VALUES:
                self.set([self.sizes.fresh() for _ in range(rank)])
            return
        target: list[Size | None] = []
        inferred = -1
        for at, size in enumerate(wanted):
            number = None if size is None else self.sizes.resolve(size)
            if number == Size(0) and not self.integer("allowzero", 0):
                number = x[at] if x is not None and at < len(x) else None
            elif number == Size(-1):
                number, inferred = None, at
            target.append(number)
        known = [size for size in target if size is not None]
        if x is not None and len(known) + (inferred >= 0) == len(target):
            rest = self.quotient(x, known, nothing_left=inferred < 0)
            if inferred >= 0:
                target[inferred] = rest
        self.set([size if size is not None else self.sizes.fresh() for size in target])

    def quotient(
        self, whole: Sequence[Size], parts: Sequence[Size], *, nothing_left: bool = False
    ) -> Size | None:
        """What the parts leave of a product: a size, or 1 if it is told that nothing is left."""
        above = list(map(self.sizes.resolve, whole))
        below = []
        for size in map(self.sizes.resolve, parts):
            if size in above:
                above.remove(size)
            else:
                below.append(size)
        top = math.prod(size.constant for size in above if not size.terms)
        bottom = math.prod(size.constant for size in below if not size.terms)
        unknown = [size for size in above if size.terms]
        unknown_below = [size for size in below if size.terms]
        if bottom <= 0 or top <= 0:
            return None
        divisor = math.gcd(top, bottom)
        top, bottom = top // divisor, bottom // divisor
        if nothing_left:
            if len(unknown) <= 1 and len(unknown_below) <= 1:
                one, other = (*unknown, Size(1))[0], (*unknown_below, Size(1))[0]
                self.equate(one.times(top), other.times(bottom))
            elif not unknown_below and top == 1:
                self.equate(self.sizes.product(1, tuple(unknown)), Size(bottom))
            return Size(1)
        if unknown_below or (bottom != 1 and len(unknown) != 1):
            return None
        if bottom != 1:
            # d as (-1, 64): d is a multiple of 64.
            left = unknown[0].times(top).divided(bottom) or self.sizes.fresh()
            self.equate(left.times(bottom), unknown[0].times(top))
            return left
        if not unknown:
            return Size(top)
        if len(unknown) == 1:
            return unknown[0].times(top)
        return self.sizes.product(top, tuple(unknown))

    def flatten(self) -> None:
        x = self.shape(0)
        if x is not None:
            axis = self.integer("axis", 1)
            axis += len(x) if axis < 0 else 0
            sides = [self.quotient(side, ()) for side in (x[:axis], x[axis:])]
            self.set([side if side is not None else self.sizes.fresh() for side in sides])

    def squeeze(self) -> None:
        x, axes = self.shape(0), self.numbers(1, "axes")
        self.set_values(self.values(0))
        if x is not None:
            gone = (
                {axis % max(1, len(x)) for axis in axes}
                if axes is not None
                else {at for at, size in enumerate(x) if size == Size(1)}
            )
            self.set([size for at, size in enumerate(x) if at not in gone])

    def unsqueeze(self) -> None:
        x, axes = self.shape(0), self.numbers(1, "axes")
        self.set_values(self.values(0))
        if x is not None and axes is not None:
            rank = len(x) + len(axes)
            new = {axis % rank for axis in axes}
            rest = iter(x)
            self.set([Size(1) if at in new else next(rest, Size(1)) for at in range(rank)])

    def concat(self) -> None:
        shapes = [self.shape(at) for at in range(len(self.node.input))]
        known = [shape for shape in shapes if shape]
        if len(shapes) == 2 and shapes[0] and len(shapes[0]) >= 3:
            self.mark_cache(0, self.integer("axis", 0) % len(shapes[0]))
        if len(known) == len(shapes) and len(set(map(len, known))) == 1:
            self.set(self.joined(known))
        joined: list[Size | None] = []
        for at, shape in enumerate(shapes):
            part = self.values(at)
            if part is None and shape == (Size(1),):
                part = (None,)
            if part is None:
                return
            joined.extend(part)
        self.set_values(tuple(joined))

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        axis = self.integer("axis", 0) % len(shapes[0])
        result = list(shapes[0])
        for shape in shapes[1:]:
            for at, size in enumerate(shape):
                if at == axis:
                    result[at] += size
                else:
                    self.equate(result[at], size)
        return tuple(result)

    def split(self) -> None:
        x = self.shape(0)
        if not x:
            return
        axis = self.integer("axis", 0) % len(x)
        count = len(self.node.output)
        parts = self.numbers(1, "split")
        if parts is not None and len(parts) == count:
            self.equate(x[axis], Size(sum(parts)))
            made: list[Size | None] = [Size(part) for part in parts]
        else:
            made = [self.sizes.resolve(x[axis]).divided(count)] * count
        for at, size in enumerate(made):
            part = size if size is not None else self.sizes.fresh()
            self.set((*x[:axis], part, *x[axis + 1 :]), at)

    def slice(self) -> None:
        x = self.shape(0)
        starts, ends = self.slice_values("starts", 1), self.slice_values("ends", 2)
        axes, steps = self.slice_values("axes", 3), self.slice_values("steps", 4)
        if starts is None or ends is None or len(starts) != len(ends):
            if x is not None:
                named = self.numbers(3, "axes")
                cut = set(range(len(x))) if named is None else {a % max(1, len(x)) for a in named}
                self.set([self.sizes.fresh() if a in cut else s for a, s in enumerate(x)])
            return
        places = [None if a is None else a.value for a in axes] if axes else range(len(starts))
        values = self.values(0)
        if x is None:
            return
        made = list(x)
        for at, axis in enumerate(places):
            if axis is None or at >= len(starts) or not -len(x) <= axis < len(x):
                return
            given = Size(1) if not steps else steps[at]
            step = None if given is None else given.value
            size = self.sizes.resolve(x[axis])
            made[axis] = self.sliced(size, starts[at], ends[at], step)
            if values is not None and len(x) == 1:
                self.set_values(_slice_values(values, starts[at], ends[at], step))
        self.set(made)

    def slice_values(self, name: str, at: int) -> Values | None:
        if name in self._attributes:
            return tuple(map(Size, self._attributes[name].ints))
        values = self.values(at)
        return values and tuple(v if v is None else self.sizes.resolve(v) for v in values)

    def sliced(self, size: Size, start: Size | None, end: Size | None, step: int | None) -> Size:
        """The length of a slice that stays inside its axis."""
        if start is None or end is None or step is None or step < 1:
            return self.sizes.fresh()
        if start.value is not None and start.value < 0:
            start = size + start
        stop = end.value
        if stop is not None and stop < 0:
            end = size + end
        elif stop is not None and size.value is not None:
            end = Size(min(stop, size.value))
        elif stop is not None and stop > _NO_END:
            end = size
        elif stop is not None:
            return self.sizes.fresh()
        if step == 1:
            return end - start
        count = self.sizes.fresh()
        self.equate(count.times(step), end - start)
        return count

    def gather(self) -> None:
        x, at = self.shape(0), self.shape(1)
        values, places = self.values(0), self.numbers(1)
        if values is not None and places is not None and self.shape(0) is not None:
            inside = all(-len(values) <= place < len(values) for place in places)
            self.set_values(tuple(values[place] for place in places) if inside else None)
        if not x or at is None:
            return
        key = "gather_axis" if self.node.op_type == "GatherBlockQuantized" else "axis"
        axis = self.integer(key, 0) % len(x)
        self.bound(1, x[axis])
        self.set((*x[:axis], *at, *x[axis + 1 :]))

    def gather_elements(self) -> None:
        x, at = self.shape(0), self.shape(1)
        if x:
            self.bound(1, x[self.integer("axis", 0) % len(x)])
        self.set(at)

    def scatter(self) -> None:
        x = self.shape(0)
        if x:
            axis = self.integer("axis", 0) if self.node.op_type != "ScatterND" else 0
            self.bound(2 if self.node.op_type == "TensorScatter" else 1, x[axis % len(x)])
        self.set(x)

    def bound(self, at: int, size: Size) -> None:
        """Elements of an input have to be below ``size``."""
        origin = self.scope.origins.get(self.input(at))
        if origin is not None:
            self.found.bounds.setdefault(origin.name, []).append(size - Size(origin.offset))

    def embed_layer_norm(self) -> None:
        ids, table = self.shape(0), self.shape(2)
        for at, rows in ((0, 2), (1, 4)):
            indexed = self.shape(rows)
            if indexed:
                self.bound(at, indexed[0])
        if ids is not None and table:
            self.set((*ids, table[-1]))

    def one_hot(self) -> None:
        depth = self.numbers(1)
        if depth:
            self.bound(0, Size(depth[0]))

    def shape_of(self) -> None:
        x = self.shape(0)
        if x is not None:
            start, end = self.integer("start", 0), self.integer("end", len(x))
            self.set_values(x[start:end])
            self.set((Size(len(x[start:end])),))

    def constant(self) -> None:
        name = self.node.output[0]
        attribute = next(iter(self._attributes.values()), None)
        if attribute is None or attribute.ref_attr_name:
            return
        if attribute.type == AttributeProto.TENSOR:
            self.scope.tensors[name] = attribute.t
            self.scope.shapes[name] = tuple(map(Size, attribute.t.dims))
        elif attribute.type in (AttributeProto.INT, AttributeProto.INTS):
            is_list = attribute.type == AttributeProto.INTS
            numbers = list(attribute.ints) if is_list else [attribute.i]
            self.set((Size(len(numbers)),) if is_list else ())
            self.set_values(tuple(map(Size, numbers)))
        elif attribute.type == AttributeProto.FLOAT:
            self.set(())

    def constant_of_shape(self) -> None:
        sizes = self.values(0)
        if sizes is None:
            return
        shape = [self.sizes.fresh() if size is None else size for size in sizes]
        self.set(shape)
        length = self.sizes.resolve(shape[0]).value if len(shape) == 1 else None
        if length is not None and 0 <= length <= _MAX_VALUES:
            tensor = self._attributes["value"].t if "value" in self._attributes else None
            filled = [0] if tensor is None else _read_integers(tensor)
            self.set_values((Size(filled[0]),) * length if filled else None)

    def range(self) -> None:
        ends = [self.values(at) for at in range(3)]
        known = [end[0] for end in ends if end is not None and end]
        if len(known) == 3 and all(end is not None for end in known) and known[2] == Size(1):
            start, limit = known[0], known[1]
            self.set((limit - start,) if start is not None and limit is not None else None)
        else:
            self.set((self.sizes.fresh(),))

    def expand(self) -> None:
        x, target = self.shape(0), self.values(1)
        if x is None or target is None:
            return
        rank = max(len(x), len(target))
        left = [Size(1)] * (rank - len(x)) + list(x)
        right = [Size(1)] * (rank - len(target)) + list(target)
        made = []
        for one, other in zip(left, right, strict=True):
            if other is None:
                made.append(one if one != Size(1) else self.sizes.fresh())
            else:
                made.append(self.broadcast_shapes(((one,), (other,)))[0])
        self.set(made)

    def reduce(self) -> None:
        x = self.shape(0)
        if x is None:
            return
        axes = self.numbers(1, "axes")
        if axes is None and self.node.op_type.startswith("Arg"):
            axes = [self.integer("axis", 0)]
        if axes is None and self.input(1):
            return
        gone = set(range(len(x))) if not axes else {axis % max(1, len(x)) for axis in axes}
        if self.integer("keepdims", 1):
            self.set([Size(1) if at in gone else size for at, size in enumerate(x)])
        else:
            self.set([size for at, size in enumerate(x) if at not in gone])

    def einsum(self) -> None:
        equation = self._attributes["equation"].s.decode() if "equation" in self._attributes else ""
        terms, arrow, result = equation.replace(" ", "").partition("->")
        letters: dict[str, Size] = {}
        rest: list[Shape] = []
        for at, term in enumerate(terms.split(",")):
            front, dots, back = term.partition("...")
            shape = self.shape(at)
            if shape is None or (
                len(shape) < len(front + back) if dots else len(shape) != len(term)
            ):
                return
            end = len(shape) - len(back)
            for letter, size in zip(front + back, shape[: len(front)] + shape[end:], strict=True):
                if letter in letters:
                    self.equate(letters[letter], size)
                else:
                    letters[letter] = size
            rest.append(shape[len(front) : end])
        if arrow:
            front, dots, back = result.partition("...")
            many = self.broadcast_shapes(rest) if dots else ()
            named = [[letters.get(c) or self.sizes.fresh() for c in part] for part in (front, back)]
            self.set((*named[0], *many, *named[1]))

    def group_query_attention(self) -> None:
        """Query, key and value (B, S, H * D), the caches (B, H, P, D), seqlens and total."""
        query, key = self.shape(0), self.shape(1)
        heads, kv_heads = self.integer("num_heads", 0), self.integer("kv_num_heads", 0)
        if not query or len(query) != 3 or heads <= 0 or kv_heads <= 0:
            return
        share = heads if key else heads + 2 * kv_heads
        head_size = self.sizes.resolve(query[-1]).divided(share)
        for at in (3, 4):
            cache = self.shape(at)
            if cache is None or len(cache) != 4:
                continue
            self.equate(cache[0], query[0])
            self.equate(cache[1], Size(kv_heads))
            if head_size is not None:
                self.equate(cache[3], head_size)
            self.mark_cache(at, 2)
        past = self.shape(3)
        total = query[1] + past[2] if past is not None and len(past) == 4 else query[1]
        for at, offset in ((5, -1), (6, 0)):
            origin = self.scope.origins.get(self.input(at))
            if origin is not None:
                self.found.totals[origin.name] = total + Size(offset - origin.offset)
        made = None if head_size is None else head_size.times(heads)
        self.set((*query[:2], made if made is not None else self.sizes.fresh()))

    def attention(self) -> None:
        """Multi-head attention of both domains: caches (B, H, P, D) of queries (B, S, H * D)."""
        query = self.shape(0)
        is_onnx = self.node.op_type == "Attention"
        heads = self.integer("q_num_heads" if is_onnx else "num_heads", 0)
        kv_heads = self.integer("kv_num_heads", heads)
        for at in (4, 5) if is_onnx else (6, 7):
            cache = self.shape(at)
            if not query or cache is None or len(cache) != 4:
                continue
            self.equate(cache[0], query[0])
            head_size = query[3] if len(query) == 4 else None
            if len(query) == 3 and heads > 0:
                self.equate(cache[1], Size(kv_heads))
                head_size = self.sizes.resolve(query[2]).divided(heads)
            if head_size is not None:
                self.equate(cache[3], head_size)
            self.mark_cache(at, 2)
        self.set(query)

    def mark_cache(self, at: int, axis: int) -> None:
        origin = self.scope.origins.get(self.input(at))
        if origin is not None:
            self.found.caches.setdefault(origin.name, axis)

    def rotary(self) -> None:
        """com.microsoft's: positions stay inside the table of cosines."""
        table = self.shape(2)
        if table and len(table) == 2:
            self.bound(1, table[0])
        self.set(self.shape(0))

    def branch(self) -> None:
        """If: both branches, the second's shapes where they differ."""
        origin = self.scope.origins.get(self.input(0))
        if origin is not None:
            self.found.conditions.setdefault(origin.name)
        if self.depth >= _MAX_DEPTH:
            return
        for name in ("then_branch", "else_branch"):
            if name not in self._attributes:
                continue
            graph = self._attributes[name].g
            self.tracer.walk(graph, self.scope, self.depth + 1)
            for made, value in zip(self.node.output, graph.output, strict=False):
                _copy(self.scope, value.name, self.scope, made)

    # Where integers come from.

    def track_elements(self) -> None:
        op_type, outputs = self.node.op_type, self.node.output
        if not outputs or not outputs[0]:
            return
        first = self.scope.origins.get(self.input(0))
        if op_type in _SAME_ELEMENTS or op_type in ("Not", "Gather"):
            if first is not None:
                self.scope.origins[outputs[0]] = first
        elif op_type in ("Add", "Sub"):
            self.track_offset(outputs[0], first)

    def track_offset(self, output: str, first: Origin | None) -> None:
        sign = 1 if self.node.op_type == "Add" else -1
        moved = self.numbers(1)
        if first is None and sign == 1:
            first, moved = self.scope.origins.get(self.input(1)), self.numbers(0)
        if first is not None and moved is not None and len(moved) == 1:
            self.scope.origins[output] = Origin(first.name, first.offset + sign * moved[0])


# Slices to the end are written with the largest integer of some type.
_NO_END = 1 << 30


def _slice_values(
    values: Values, start: Size | None, end: Size | None, step: int | None
) -> Values | None:
    if start is None or end is None or start.value is None or end.value is None or not step:
        return None
    return values[start.value : end.value : step]


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


def _read_integers(tensor: TensorProto) -> list[int] | None:
    """Elements of a small integer tensor inside the model; None for any other."""
    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > _MAX_VALUES:
        return None
    if helper.tensor_dtype_to_np_dtype(tensor.data_type).kind not in "iub":
        return None
    try:
        return [int(number) for number in np.ravel(numpy_helper.to_array(tensor))]
    except (ValueError, TypeError):
        return None


_HANDLERS: Mapping[str, Callable[[_Node], None]] = {
    "Gemm": _Node.gemm,
    "FusedGemm": _Node.gemm,
    "MatMulNBits": _Node.packed_product,
    OP_TYPE: _Node.packed_product,
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv"), _Node.conv),
    "ConvTranspose": _Node.conv,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _Node.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _Node.global_pool),
    "Transpose": _Node.transpose,
    "Reshape": _Node.reshape,
    "Flatten": _Node.flatten,
    "Squeeze": _Node.squeeze,
    "Unsqueeze": _Node.unsqueeze,
    "Concat": _Node.concat,
    "Split": _Node.split,
    "Slice": _Node.slice,
    **dict.fromkeys(("Gather", "GatherBlockQuantized"), _Node.gather),
    "GatherElements": _Node.gather_elements,
    **dict.fromkeys(("ScatterElements", "ScatterND", "TensorScatter"), _Node.scatter),
    "EmbedLayerNormalization": _Node.embed_layer_norm,
    "OneHot": _Node.one_hot,
    "Shape": _Node.shape_of,
    "Constant": _Node.constant,
    "ConstantOfShape": _Node.constant_of_shape,
    "Range": _Node.range,
    "Expand": _Node.expand,
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin"),
        ),
        _Node.reduce,
    ),
    "Einsum": _Node.einsum,
    "GroupQueryAttention": _Node.group_query_attention,
    **dict.fromkeys(("MultiHeadAttention", "Attention"), _Node.attention),
    "RotaryEmbedding": _Node.rotary,
    "If": _Node.branch,
}
