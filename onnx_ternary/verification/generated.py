"""Inputs for a model that nobody gave any for: sizes that are left free, and numbers by role.

`shapes` solves what the graph decides. What is left free gets the size its role has as a rule (2
for a batch, 8 for a sequence, 4 for earlier positions, 32 for images); where the model refuses
them, sizes that its message names come next, then other usual ones, then those of the graph's own
constants.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.shapes.facts import Shape, Traced, declared_shape
from onnx_ternary.verification.shapes.sizes import Size, Sizes, parse_size
from onnx_ternary.verification.shapes.walk import trace

Feeds: TypeAlias = dict[str, NDArray[Any]]

MAX_INPUT_BYTES = 1 << 30
"""Generated inputs take no more memory than this together."""

_NUM_INTEGERS = 8
_WORDS = ("the", "a", "model", "answers", "reads", "text", "small", "and", "Zürich", "42", ".", "?")
_NUM_WORDS = 8
# Of one message, of how many messages in a row, and of how many that differ in numbers alone.
_MAX_HINTS = 6
_MAX_HINT_DEPTH = 3
_MAX_ALIKE = 2
_LARGEST_HINT = 1 << 17
# Branches that are run besides the first.
_MAX_CONDITIONS = 3

_IS_POSITION = re.compile(r"position|(^|[^a-z])pos([^a-z]|$)")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w.])")
# Gather's message: idx=7 must be within the inclusive range [-4,3].
_INDEX_RANGE = re.compile(r"inclusive range \[-?\d+,\s*(\d+)\]")


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes by role, and what some dimensions are besides.

    Attributes:
        depth: how many messages in a row led here.
    """

    batch: int = 2
    other: int = 8
    past: int = 4
    image: int = 32
    chosen: Mapping[str, int] = field(default_factory=dict)
    depth: int = 0


# Tried in order.
_PLANS = (
    _Plan(),
    _Plan(batch=1),
    _Plan(batch=1, other=1),
    _Plan(batch=1, past=0),
    _Plan(batch=1, other=1, past=0),
    _Plan(batch=1, image=224),
    _Plan(batch=1, other=16, image=64),
    _Plan(batch=1, other=512),
)


class Candidates:
    """Inputs that a model may run on, the likeliest first."""

    def __init__(self, model: ModelProto, wanted: Sequence[ValueInfoProto], seed: int) -> None:
        """Walk the model; ``wanted`` are its inputs that are no initializers."""
        self._wanted = wanted
        self._seed = seed
        self._sizes = Sizes()
        self._shapes = _declared_shapes(wanted)
        self._model = model
        self._traced_once: Traced | None = None
        self._plans: deque[_Plan] = deque(_PLANS)
        self._plan = _PLANS[0]
        self._tried: set[tuple[tuple[int, ...], ...]] = set()
        self._index_limit = _NUM_INTEGERS
        self._limit_moved = False
        self._constants_added = False
        self._heard: Counter[str] = Counter()

    @property
    def _traced(self) -> Traced:
        """What the graph says; walked when it is first asked for, sizes that are pinned known."""
        if self._traced_once is None:
            self._traced_once = trace(self._model, self._shapes, self._sizes)
        return self._traced_once

    @property
    def has_choice(self) -> bool:
        """Whether anything about the inputs is a guess, so that the model may refuse them."""
        return bool(self._free()) or any(
            value.type.tensor_type.elem_type in _INTEGERS for value in self._wanted
        )

    def pin(self, sizes: Mapping[str, int | Sequence[int]]) -> str:
        """Decide sizes before anything else does.

        Returns:
            What is wrong with them; empty if nothing is.
        """
        variables = dict.fromkeys(n for s in self._shapes.values() for d in s for n in d.variables)
        for name, size in sizes.items():
            if name in self._shapes and not isinstance(size, int):
                problem = self._pin_input(name, tuple(size))
            elif isinstance(size, int) and size >= 0 and name in variables:
                fits = self._sizes.equate(Size.of(name), Size(size))
                problem = "" if fits else f"'{name}' cannot be {size} beside the other sizes."
            else:
                known = ", ".join([*variables, *self._shapes]) or "none"
                problem = f"There is no dimension '{name}' to be {size}; known are: {known}."
            if problem:
                return problem
        return ""

    def _pin_input(self, name: str, sizes: tuple[int, ...]) -> str:
        shape = self._shapes[name]
        fits = len(sizes) == len(shape) and all(
            self._sizes.equate(dim, Size(size)) for dim, size in zip(shape, sizes, strict=True)
        )
        return "" if fits else f"Input '{name}' cannot have the shape {sizes}."

    def next_feeds(self) -> Feeds | None:
        """The next inputs that were not tried; None where there are none left.

        Raises:
            ModelError: if an input is of a kind that cannot be generated, or too large.
        """
        for value in self._wanted:
            _require_generable(value)
        while True:
            if not self._plans and not self._constants_added:
                self._constants_added = True
                self._plans.extend(self._plans_of_constants())
            if not self._plans:
                return None
            self._plan = self._plans.popleft()
            shapes = self._sized(self._plan)
            if shapes is None or (shapes in self._tried and not self._limit_moved):
                continue
            self._tried.add(shapes)
            self._limit_moved = False
            return self._filled(self._plan, shapes)

    def learn(self, message: str) -> None:
        """Take up what onnxruntime said about the inputs that came last."""
        limit = _INDEX_RANGE.search(message)
        if limit is not None:
            if int(limit[1]) + 1 < self._index_limit:
                self._index_limit = int(limit[1]) + 1
                self._limit_moved = True
                self._plans.appendleft(self._plan)
            return
        words = _NUMBER.sub("", message)
        self._heard[words] += 1
        if self._plan.depth >= _MAX_HINT_DEPTH or self._heard[words] > _MAX_ALIKE:
            return
        # The error's own number comes first.
        found = _NUMBER.findall(message.partition("Status Message:")[2] or message)
        numbers = dict.fromkeys(int(text) for text in found if 0 < int(text) <= _LARGEST_HINT)
        values = self._values(self._plan)
        changes = [
            (name, number)
            for name in self._free()
            for number in numbers
            if values[name] in numbers and number != values[name]
        ]
        changes.sort(key=lambda change: change[1] not in self._traced.constants)
        hints = [
            replace(
                self._plan,
                chosen={**self._plan.chosen, name: number},
                depth=self._plan.depth + 1,
            )
            for name, number in changes
        ]
        self._plans.extendleft(reversed(hints[:_MAX_HINTS]))

    def other_branches(self, feeds: Feeds) -> Iterator[Feeds]:
        """The inputs with the other choices of the booleans that decide about branches."""
        names = [
            name
            for name in self._traced.conditions
            if name in feeds and feeds[name].dtype == np.bool_
        ][:_MAX_CONDITIONS]
        for flips in itertools.product((False, True), repeat=len(names)):
            if any(flips):
                yield feeds | {
                    name: ~feeds[name] for name, flip in zip(names, flips, strict=True) if flip
                }

    # Sizes.

    def _free(self) -> list[str]:
        """Variables that decide the inputs' shapes and that nothing decides."""
        _ = self._traced
        resolved = (self._sizes.resolve(dim) for shape in self._shapes.values() for dim in shape)
        return list(dict.fromkeys(name for size in resolved for name in size.variables))

    def _plans_of_constants(self) -> Iterator[_Plan]:
        values = self._values(_PLANS[1])
        for name in self._free():
            if self._role(name) in ("batch", "past"):
                continue
            for size in self._traced.constants:
                if size != values[name]:
                    yield replace(_PLANS[1], chosen={name: size})

    def _values(self, plan: _Plan) -> dict[str, int]:
        return {name: self._size(name, plan) for name in self._free()}

    def _size(self, name: str, plan: _Plan) -> int:
        if name in plan.chosen:
            return plan.chosen[name]
        role = self._role(name)
        if role == "total":
            return plan.past + plan.other
        return {"batch": plan.batch, "past": plan.past, "image": plan.image}.get(role, plan.other)

    def _role(self, name: str) -> str:
        """What a free dimension is, by its name, by what reads it, by where it stands."""
        # Exporters call dimensions after inputs where nobody names them.
        own = [each for each in self._shapes if name.startswith((f"{each}:", f"{each}_dynamic"))]
        lower = "" if own else name.lower()
        for word, role in (("total", "total"), ("past", "past"), ("batch", "batch")):
            if word in lower:
                return role
        if "height" in lower or "width" in lower:
            return "image"
        if name in self._traced.roles:
            return self._traced.roles[name]
        at = [
            (input_name, axis)
            for input_name, shape in self._shapes.items()
            for axis, size in enumerate(shape)
            if name in self._sizes.resolve(size).variables
        ]
        if any(self._traced.caches.get(input_name) == axis for input_name, axis in at):
            return "past"
        if at and all(axis == 0 for _, axis in at) and "seq" not in lower:
            return "batch"
        only_masks = all("mask" in input_name.lower() for input_name, _ in at)
        return "total" if at and only_masks and self._traced.caches else "other"

    def _sized(self, plan: _Plan) -> tuple[tuple[int, ...], ...] | None:
        """The inputs' shapes; None where one would be negative."""
        values = self._values(plan)
        shapes = tuple(
            tuple(self._sizes.resolve(dim).at(values) for dim in self._shapes[value.name])
            for value in self._wanted
        )
        if any(size < 0 for shape in shapes for size in shape):
            return None
        num_bytes = sum(8 * math.prod(shape) for shape in shapes)
        if num_bytes > MAX_INPUT_BYTES:
            raise ModelError(
                f"Generated inputs would take {num_bytes} bytes, at most {MAX_INPUT_BYTES} are "
                "made; give smaller sizes (--shape NAME=SIZE) or inputs of your own (--inputs)."
            )
        return shapes

    # Numbers.

    def _filled(self, plan: _Plan, shapes: Sequence[tuple[int, ...]]) -> Feeds:
        rng = np.random.default_rng(self._seed)
        values = self._values(plan)
        by_name = {value.name: shape for value, shape in zip(self._wanted, shapes, strict=True)}
        past = max(
            (by_name[name][axis] for name, axis in self._traced.caches.items() if name in by_name),
            default=0,
        )
        return {
            value.name: self._elements(value, by_name[value.name], rng, values, past)
            for value in self._wanted
        }

    def _elements(
        self,
        value: ValueInfoProto,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        values: Mapping[str, int],
        past: int,
    ) -> NDArray[Any]:
        kind = value.type.tensor_type.elem_type
        name = value.name.lower()
        if kind == TensorProto.STRING:
            texts = [" ".join(rng.choice(_WORDS, _NUM_WORDS)) for _ in range(math.prod(shape))]
            return np.array(texts, dtype=object).reshape(shape)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if dtype.kind == "f" and "mask" in name:
            # What is added to scores is 0 where nothing is masked, what is multiplied is 1.
            return np.full(shape, 0 if len(shape) == 4 else 1, dtype)
        if dtype.kind == "f":
            return np.asarray(rng.standard_normal(shape), dtype)
        if dtype.kind == "b" or "mask" in name:
            return np.ones(shape, dtype)
        if value.name in self._traced.totals:
            return np.full(shape, self._at(self._traced.totals[value.name], values), dtype)
        below = self._bound(value.name, values)
        if _IS_POSITION.search(name):
            return _positions(shape, past, below, dtype)
        if "token_type" in name:
            return np.zeros(shape, dtype)
        limit = min(self._index_limit, below or self._index_limit) if below is None else below
        return np.asarray(rng.integers(0, limit, shape), dtype)

    def _bound(self, name: str, values: Mapping[str, int]) -> int | None:
        """Integers of an input stay below this; None where nothing is known."""
        bounds = [self._at(size, values) for size in self._traced.bounds.get(name, ())]
        return max(1, min(bounds)) if bounds else None

    def _at(self, size: Size, values: Mapping[str, int]) -> int:
        size = self._sizes.resolve(size)
        return size.at({name: values.get(name, _PLANS[0].other) for name in size.variables})


_INTEGERS = frozenset(
    (
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
)


def _positions(
    shape: tuple[int, ...], past: int, below: int | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Positions counted up along the last axis, from ``past`` on where the table is long enough."""
    count = shape[-1] if shape else 1
    start = past if below is None or past + count <= below else 0
    numbers = np.arange(start, start + count) % (below or start + count + 1)
    return np.array(np.broadcast_to(numbers if shape else numbers[0], shape), dtype)


def _require_generable(value: ValueInfoProto) -> None:
    advice = "give inputs of your own"
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"Input '{value.name}' is not a tensor; {advice}.")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(f"Input '{value.name}' has no shape; {advice}.")
    if tensor.elem_type == TensorProto.STRING:
        return
    if helper.tensor_dtype_to_np_dtype(tensor.elem_type).kind not in "fbiu":
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(f"Input '{value.name}' is {kind}, which cannot be generated; {advice}.")


def _declared_shapes(wanted: Sequence[ValueInfoProto]) -> dict[str, Shape]:
    """Inputs' shapes; equal names are one variable, sums of names are understood."""
    dims = {value.name: declared_shape(value) for value in wanted}
    names = {dim.dim_param for shape in dims.values() for dim in shape or () if dim.dim_param}
    return {
        name: tuple(_declared_size(dim, f"{name}:{axis}", names) for axis, dim in enumerate(shape))
        for name, shape in dims.items()
        if shape is not None
    }


def _declared_size(dim: Any, place: str, names: set[str]) -> Size:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return Size(dim.dim_value)
    if not dim.dim_param:
        return Size.of(place)
    parsed = parse_size(dim.dim_param)
    is_sum = parsed is not None and ("+" in dim.dim_param or set(parsed.variables) <= names)
    return parsed if parsed is not None and is_sum else Size.of(dim.dim_param)
