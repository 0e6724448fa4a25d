"""A node of the walk, through which operators read what is known of values and add to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_ternary.verification.shapes.facts import MAX_VALUES, Scope, Shape, Traced, Values
from onnx_ternary.verification.shapes.sizes import Size


class Node:
    """One node, with what is known of its inputs.

    Args:
        proto: the node.
        scope: the values around it; what is known of the node's outputs is added.
        found: what is known of the model; what the node says about inputs of the model is added.
    """

    def __init__(self, proto: NodeProto, scope: Scope, found: Traced) -> None:
        self.proto = proto
        self.scope = scope
        self.found = found
        self.sizes = found.sizes
        self.attributes = {each.name: each for each in proto.attribute}

    def input(self, at: int) -> str:
        """The name of an input; empty where it is absent."""
        return self.proto.input[at] if at < len(self.proto.input) else ""

    def shape(self, at: int) -> Shape | None:
        """The shape of an input; None where it is not known."""
        return self.scope.shapes.get(self.input(at))

    def values(self, at: int) -> Values | None:
        """The elements of a small integer tensor, read where it is a constant."""
        name = self.input(at)
        if name not in self.scope.values and name in self.scope.tensors:
            read = read_integers(self.scope.tensors[name])
            if read is not None:
                self.scope.values[name] = tuple(map(Size, read))
        return self.scope.values.get(name)

    def numbers(self, at: int, attribute: str = "") -> list[int] | None:
        """Known integers of an input, or of an attribute in older opsets."""
        if attribute in self.attributes:
            return list(self.attributes[attribute].ints)
        values = self.values(at)
        if values is None:
            return None
        numbers = [None if value is None else self.sizes.resolve(value).value for value in values]
        known = [number for number in numbers if number is not None]
        return known if len(known) == len(numbers) else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.attributes.get(name)
        return default if attribute is None or attribute.ref_attr_name else int(attribute.i)

    def ints(self, name: str) -> list[int]:
        """A list of integers, an attribute; empty where it is absent."""
        return list(self.attributes[name].ints) if name in self.attributes else []

    def set(self, shape: Sequence[Size] | None, at: int = 0) -> None:
        """Know the shape of an output."""
        if shape is not None and at < len(self.proto.output) and self.proto.output[at]:
            self.scope.shapes[self.proto.output[at]] = tuple(map(self.sizes.resolve, shape))

    def set_values(self, values: Values | None) -> None:
        """Know the elements of the first output, if they may be a shape."""
        if values is not None and len(values) <= MAX_VALUES and self.proto.output:
            self.scope.values[self.proto.output[0]] = values

    def equate(self, one: Size, other: Size) -> None:
        """Take two sizes to be equal."""
        self.sizes.equate(one, other)
        for size in (one, other):
            if size.value is not None and size.value > 1:
                self.found.constants.setdefault(size.value)

    def bound(self, at: int, size: Size) -> None:
        """Elements of an input have to be below ``size``."""
        origin = self.scope.origins.get(self.input(at))
        if origin is not None:
            self.found.bounds.setdefault(origin.name, []).append(size - Size(origin.offset))

    def mark_cache(self, at: int, axis: int) -> None:
        """Take an input for a cache whose positions lie along ``axis``."""
        origin = self.scope.origins.get(self.input(at))
        if origin is not None:
            self.found.caches.setdefault(origin.name, axis)

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


Handler: TypeAlias = Callable[[Node], None]


def read_integers(tensor: TensorProto) -> list[int] | None:
    """Elements of a small integer tensor inside the model; None for any other."""
    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > MAX_VALUES:
        return None
    if helper.tensor_dtype_to_np_dtype(tensor.data_type).kind not in "iub":
        return None
    try:
        return [int(number) for number in np.ravel(numpy_helper.to_array(tensor))]
    except (ValueError, TypeError):
        return None
