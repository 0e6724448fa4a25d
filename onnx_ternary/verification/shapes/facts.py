"""What is known of a model's values: shapes, small integer tensors, where integers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnx import TensorProto, ValueInfoProto

from onnx_ternary.verification.shapes.sizes import Size, Sizes

Shape: TypeAlias = tuple[Size, ...]
# Elements of a tensor that is a shape; None where an element is not known.
Values: TypeAlias = "tuple[Size | None, ...]"

# A tensor of more elements is no shape.
MAX_VALUES = 64


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


def declared_shape(value: ValueInfoProto) -> Sequence[Any] | None:
    """Dimensions of a tensor; None where it is none, or of unknown rank."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims: Sequence[Any] = value.type.tensor_type.shape.dim
    return dims


def copy_facts(source: Scope, name: str, target: Scope, as_name: str) -> None:
    """Know of one value what is known of another, under a name of its own."""
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
