"""Random models around ternary weights: what tests/fuzz/graphs.py converts and judges.

Every node is run by tests/fuzz/intervals.py as soon as it is drawn, on the activations the model
will be given, so what follows knows its shape. Bodies of If, Loop, Scan and local functions are
drawn in the same way, on what their first run sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.interval_kernels import KERNELS
from tests.fuzz.intervals import Array, Interpreter, Interval, Values

Rng = np.random.Generator
F32 = np.float32
MICROSOFT = "com.microsoft"
QONNX = "qonnx.custom_op.general"
SIZES = (1, 4, 16, 24, 32, 33, 48, 64)
DEEPEST = 2
"""Bodies within bodies."""


def one(choices: Sequence[Any], rng: Rng) -> Any:
    return choices[rng.integers(len(choices))]


@dataclass
class Model:
    """What all scopes of one model share."""

    rng: Rng
    opset: int
    dtype: Any
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    interpreter: Interpreter = field(default_factory=lambda: Interpreter(KERNELS))
    names: Any = field(default_factory=itertools.count)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)

    @property
    def element(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def name(self, kind: str) -> str:
        return f"{kind}{next(self.names)}"


@dataclass
class Scope:
    """A graph or body that grows, and what its values are."""

    model: Model
    values: Values
    depth: int = 0
    is_function: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """Float activations of this scope, which later steps may read."""

    @property
    def rng(self) -> Rng:
        return self.model.rng

    def constant(self, array: Array, kind: str = "c") -> str:
        """An initializer, or a Constant node: always one in a function."""
        name = self.model.name(kind)
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if self.is_function or self.rng.random() < 0.15:
            made = helper.make_node("Constant", [], [name], value=tensor)
            self.nodes.append(made)
        else:
            self.tensors.append(tensor)
        self.values[name] = Interval.of(np.asarray(array))
        return name

    def number(self, value: Any) -> str:
        """A constant of the model's dtype with one element, of a rank drawn."""
        shape = one([(), (), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)], self.rng)
        return self.constant(np.full(shape, value, self.model.dtype))

    def add(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.add_all(op_type, inputs, 1, domain=domain, **attributes)[0]

    def add_all(
        self,
        op_type: str,
        inputs: Sequence[str],
        count: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        names = [self.model.name("v") for _ in range(count)]
        made = helper.make_node(
            op_type, list(inputs), names, name=f"{op_type}_{names[0]}", domain=domain, **attributes
        )
        found = self.model.interpreter.node(made, self.values)
        self.values.update(zip(names, found, strict=False))
        self.nodes.append(made)
        if domain:
            self.model.domains.add(domain)
        return names

    def inner(self, inputs: Sequence[tuple[str, Interval]], *, is_function: bool = False) -> Scope:
        seen = {} if is_function else dict(self.values)
        scope = Scope(self.model, seen | dict(inputs), self.depth + 1, is_function)
        if not is_function:
            scope.weights = list(self.weights)
        return scope


def draw_model(rng: Rng) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model and what to feed it."""
    opset = int(one([13, 17, 17, 17, 18, 21, 21, 22], rng))
    model = Model(rng, opset, one([F32, F32, F32, np.float16], rng))
    scope = Scope(model, {})
    rank = int(rng.integers(1, 5))
    shape = [int(one([1, 1, 2, 3, 5], rng)) for _ in range(rank - 1)] + [int(one(SIZES, rng))]
    x = rng.normal(size=shape) * one([1, 1, 1, 10, 0.1], rng)
    if rng.random() < 0.2:
        x = np.rint(x * 3)
    _add_input(scope, "x", np.asarray(x, model.dtype))
    scope.made.append("x")
    for _ in range(rng.integers(2, 9)):
        draw_step(scope)
    return _finished(scope), model.feeds


def _add_input(scope: Scope, name: str, array: Array) -> None:
    model, rng = scope.model, scope.rng
    model.feeds[name] = array
    scope.values[name] = Interval.of(array)
    shape: Any = list(array.shape)
    if rng.random() < 0.5:
        shape = [f"d{at}" if rng.random() < 0.6 else size for at, size in enumerate(shape[:-1])]
        shape = [*shape, *array.shape[-1:]]
    elif rng.random() < 0.2:
        shape = None
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    model.inputs.append(helper.make_tensor_value_info(name, element, shape))


def _finished(scope: Scope) -> onnx.ModelProto:
    model, rng = scope.model, scope.rng
    chosen = {scope.made[-1]} | {name for name in scope.made[1:] if rng.random() < 0.25}
    chosen |= {name for name in scope.weights if rng.random() < 0.08}
    if chosen == {"x"}:
        chosen = {scope.add("Identity", "x")}
    outputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(scope.values[name].dtype),
            None if rng.random() < 0.5 else [None] * len(scope.values[name].shape),
        )
        for name in sorted(chosen - {each.name for each in scope.tensors})
    ]
    graph = helper.make_graph(scope.nodes, "random", model.inputs, outputs, scope.tensors)
    opsets = [helper.make_opsetid("", model.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(model.domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=model.functions)
    return onnx.shape_inference.infer_shapes(made) if rng.random() < 0.4 else made


# What a step makes of an activation; weights of the draw are in STEPS.
Step = Callable[[Scope, str], "str | None"]


def draw_step(scope: Scope) -> None:
    """Draw one step behind an activation of the scope; one that does not fit draws nothing."""
    x = scope.made[-1] if scope.rng.random() < 0.6 else one(scope.made, scope.rng)
    step = one(STEPS, scope.rng)
    if (found := step(scope, x)) is not None and scope.values[found].value.size:
        scope.made.append(found)


def elementwise(scope: Scope, x: str) -> str | None:
    """Add, Sub, Mul, Div, Max or Min with a constant of any shape, or with another activation."""
    rng, shape = scope.rng, scope.values[x].shape
    op_type = one(["Add", "Sub", "Mul", "Mul", "Div", "Add", "Max", "Min"], rng)
    if rng.random() < 0.2:
        same = [name for name in scope.made if scope.values[name].shape == shape]
        return scope.add(one(["Add", "Sub", "Mul"], rng), x, one([x, *same], rng))
    kind = rng.integers(6)
    sizes: tuple[int, ...] = tuple(size if rng.random() < 0.5 else 1 for size in shape)
    if kind == 0:
        sizes = ()
    elif kind == 1:
        sizes = shape[-1:]
    elif kind == 2:
        sizes = (1,) * int(rng.integers(1, 5))
    elif kind == 3:
        sizes = (1,) * int(rng.integers(0, 3)) + shape[-1:]
    elif kind == 4 and len(shape) < 4:
        sizes = (int(rng.integers(1, 3)), *sizes)
    values = rng.normal(size=sizes)
    if rng.random() < 0.4:
        values = np.full(sizes, one([0.5, 1.0, 2.0, -1.0, 0.1, 0.0, 1e-3, 1e3], rng))
    if op_type == "Div":
        values = np.where(np.abs(values) < 0.05, 0.5, values)
    if op_type in ("Mul", "Div") and rng.random() < 0.5:
        values = np.abs(values) + 0.01
    constant = scope.constant(values.astype(scope.model.dtype))
    swapped = op_type != "Div" and rng.random() < 0.3
    return scope.add(op_type, *((constant, x) if swapped else (x, constant)))


def unary(scope: Scope, x: str) -> str | None:
    op_type = one(
        ["Relu", "Abs", "Neg", "Tanh", "Sigmoid", "Identity", "Identity", "Cast"], scope.rng
    )
    if op_type == "Cast":
        other = TensorProto.FLOAT16 if scope.model.dtype == F32 else TensorProto.FLOAT
        return scope.add("Cast", scope.add("Cast", x, to=other), to=scope.model.element)
    return scope.add(op_type, x)


def reshaping(scope: Scope, x: str) -> str | None:
    rng, shape = scope.rng, scope.values[x].shape
    kind = rng.integers(6)
    if kind == 0 and len(shape) > 1:
        return scope.add("Transpose", x, perm=[int(at) for at in rng.permutation(len(shape))])
    if kind == 1:
        return scope.add("Reshape", x, scope.constant(np.array([-1, shape[-1] if shape else 1])))
    if kind == 2 and len(shape) < 5:
        return scope.add("Reshape", x, scope.constant(np.array([1, *shape])))
    if kind == 3 and shape:
        rows = scope.constant(rng.integers(0, shape[0], int(rng.integers(1, 4))))
        return scope.add("Gather", x, rows, axis=0)
    if kind == 4 and shape:
        return scope.add("Concat", x, one([x, x], rng), axis=int(rng.integers(len(shape))))
    if kind == 5 and len(shape) > 1:
        return scope.add("ReduceMean", x, keepdims=int(rng.integers(2)))
    return None


def draw_levels(rng: Rng, shape: tuple[int, int]) -> Array:
    alphabet = one([(-1, 0, 1), (-1, 0, 1), (-1, 0, 1), (-1, 1), (0, 1), (0,), (1,)], rng)
    return rng.choice(np.array(alphabet, F32), shape)


def draw_matrix(scope: Scope, K: int, N: int) -> tuple[Array, Array, Array]:
    """Levels, scales that spread over them, and the matrix (K, N)."""
    rng = scope.rng
    levels = draw_levels(rng, (K, N))
    shape = one([(), (), (N,), (1, N), (1, 1), (K, 1), (-(-K // 16), N)], rng)
    scales = (
        rng.uniform(0.05, 1, shape) if rng.random() < 0.6 else 2.0 ** rng.integers(-3, 3, shape)
    )
    scales = np.asarray(scales, scope.model.dtype)
    spread = scales
    if shape == (-(-K // 16), N) and K > 1:
        spread = scales = np.repeat(scales, 16, axis=0)[:K]
    matrix = (levels * spread).astype(scope.model.dtype)
    if rng.random() < 0.1:  # near misses
        matrix[rng.integers(K), rng.integers(N)] *= one([2, -0.5, 1.0001], rng)
    return levels, scales, matrix


def draw_weight(scope: Scope, K: int, N: int) -> str:
    """A weight (K, N) of the model's dtype, stored or computed in one of many ways."""
    rng, dtype, element = scope.rng, scope.model.dtype, scope.model.element
    known = [name for name in scope.weights if scope.values[name].shape == (K, N)]
    if known and rng.random() < 0.4:
        return str(one(known, rng))
    levels, scales, matrix = draw_matrix(scope, K, N)
    how = rng.integers(11)
    if how == 0:
        name = scope.add("Transpose", scope.constant(np.ascontiguousarray(matrix.T)))
    elif how == 1:
        name = scope.add("Cast", scope.constant(levels.astype(np.int8)), to=element)
    elif how == 2:
        flat = scope.constant(matrix.reshape(-1))
        name = scope.add("Reshape", flat, scope.constant(np.array([K, N])))
    elif how == 3:
        name = scope.add("Mul", scope.constant(levels.astype(dtype)), scope.constant(scales))
    elif how == 4:
        name = _dequantized(scope, levels)
    elif how == 5:
        half = scope.constant((matrix / 2).astype(dtype))
        name = scope.add("Add", half, half)
    elif how == 6:
        name = scope.add("Gather", scope.constant(matrix), scope.constant(rng.permutation(K)))
    elif how == 7:
        name = _rounded_weight(scope, matrix)
    elif how == 8:
        name = scope.add("Identity", scope.constant(matrix))
    else:
        name = scope.constant(matrix, "w")
    scope.weights.append(name)
    return name


def _dequantized(scope: Scope, levels: Array) -> str:
    rng, N = scope.rng, levels.shape[1]
    zero = int(one([0, 0, 1, -2], rng))
    codes = scope.constant((levels + zero).astype(np.int8))
    per_column = rng.random() < 0.5
    shape: tuple[int, ...] = (N,) if per_column else one([(), (1,)] if N == 1 else [()], rng)
    scale = scope.constant(np.asarray(rng.uniform(0.05, 1, shape), F32))
    inputs = [codes, scale]
    if zero or rng.random() < 0.5:
        inputs.append(scope.constant(np.full(shape, zero, np.int8)))
    made = scope.add("DequantizeLinear", *inputs, axis=1)
    return made if scope.model.dtype == F32 else scope.add("Cast", made, to=scope.model.element)


def _rounded_weight(scope: Scope, matrix: Array) -> str:
    """Quantized in the graph, far from ties."""
    noise = scope.rng.uniform(0.8, 1.2, matrix.shape)
    scale = scope.number(1.0)
    wide = scope.constant((np.sign(matrix) * noise).astype(scope.model.dtype))
    low, high = (scope.constant(np.array(each, scope.model.dtype)) for each in (-1, 1))
    clipped = scope.add("Clip", scope.add("Round", scope.add("Div", wide, scale)), low, high)
    shape = one([(), (1,), (1, 1), (matrix.shape[1],)], scope.rng)
    back = scope.constant(np.full(shape, 0.37, scope.model.dtype))
    return scope.add("Mul", clipped, back)


def product(scope: Scope, x: str) -> str | None:
    """One product in any notation."""
    rng, shape = scope.rng, scope.values[x].shape
    if not shape:
        return None
    K, N = shape[-1], int(one(SIZES, rng))
    notations = [_matmul, _matmul, _matmul, _einsum, _stacked]
    if len(shape) == 2:
        notations += [_gemm, _gemm, _gemm]
    if len(shape) > 1:
        notations += [_left, _fused, _nbits]
    made: str | None = one(notations, rng)(scope, x, K, N)
    return made


def _matmul(scope: Scope, x: str, K: int, N: int) -> str:
    return scope.add("MatMul", x, draw_weight(scope, K, N))


def _einsum(scope: Scope, x: str, K: int, N: int) -> str:
    if scope.rng.random() < 0.5:
        return scope.add("Einsum", x, draw_weight(scope, K, N), equation="...k,kn->...n")
    return scope.add("Einsum", x, draw_weight(scope, N, K), equation="...k,nk->...n")


def _stacked(scope: Scope, x: str, K: int, N: int) -> str:
    """A weight with axes of one in front: as many as x has, or more."""
    ones = [1] * int(scope.rng.integers(1, 4))
    shape = scope.constant(np.array([*ones, K, N]))
    return scope.add("MatMul", x, scope.add("Reshape", draw_weight(scope, K, N), shape))


def _gemm(scope: Scope, x: str, K: int, N: int) -> str:
    rng, M = scope.rng, scope.values[x].shape[0]
    attributes: dict[str, Any] = {"transB": int(rng.integers(2)), "transA": int(rng.random() < 0.2)}
    K, M = (M, K) if attributes["transA"] else (K, M)
    attributes["alpha"] = float(one([1.0, 1.0, 0.5, 0.3, 2.0, -1.0], rng))
    attributes["beta"] = float(one([1.0, 1.0, 0.0, 0.7, -2.0], rng))
    inputs = [x, draw_weight(scope, *((N, K) if attributes["transB"] else (K, N)))]
    if rng.random() < 0.7:
        shape = one([(), (1,), (N,), (1, N), (M, 1), (M, N), (1, 1)], rng)
        inputs.append(scope.constant(rng.normal(size=shape).astype(scope.model.dtype)))
    return scope.add("Gemm", *inputs, **attributes)


def _left(scope: Scope, x: str, K: int, N: int) -> str:
    rows = scope.values[x].shape[-2]
    return scope.add("MatMul", draw_weight(scope, N, rows), x)


def _fused(scope: Scope, x: str, K: int, N: int) -> str | None:
    if scope.model.dtype != F32:
        return None
    turned = int(scope.rng.integers(2))
    weight = draw_weight(scope, *((N, K) if turned else (K, N)))
    alpha = float(one([1.0, 0.5, 3.0], scope.rng))
    return scope.add("FusedMatMul", x, weight, domain=MICROSOFT, transB=turned, alpha=alpha)


def _nbits(scope: Scope, x: str, K: int, N: int) -> str | None:
    if scope.model.dtype != F32 or scope.values[x].shape[-1] < 16:
        return None
    rng, bits, size = scope.rng, int(one([2, 4, 4], scope.rng)), int(one([16, 32], scope.rng))
    blocks, middle = -(-K // size), 2 ** (bits - 1)
    has_points = rng.random() < 0.5
    zero = 1 if has_points else middle
    codes = np.full((N, blocks * size), zero, np.uint8)
    codes[:, :K] = draw_levels(rng, (N, K)) + zero
    scales = rng.uniform(0.05, 1, (N, blocks)).astype(F32)
    inputs = [scope.constant(_packed(codes.reshape(N, blocks, size), bits)), scope.constant(scales)]
    if has_points:
        points = np.full((N, blocks), zero, np.uint8)
        inputs.append(scope.constant(_packed(points, bits)))
    return scope.add(
        "MatMulNBits", x, *inputs, domain=MICROSOFT, K=K, N=N, bits=bits, block_size=size
    )


def _packed(fields: Array, bits: int) -> Array:
    """Fields of the last axis, packed into bytes from the lowest bits on."""
    a_byte = 8 // bits
    padded = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, -fields.shape[-1] % a_byte)])
    parts = padded.reshape(*padded.shape[:-1], -1, a_byte).astype(np.int64)
    return (parts << (np.arange(a_byte) * bits)).sum(axis=-1).astype(np.uint8)


def biased_product(scope: Scope, x: str) -> str | None:
    """A product with what the op absorbs around it, or would if its shape were right."""
    for draw in (elementwise, product, elementwise, elementwise):
        if draw is product or scope.rng.random() < 0.6:
            found = draw(scope, x)
            if found is None:
                return None
            x = found
    return x


from tests.fuzz.random_bodies import BODIES  # noqa: E402
from tests.fuzz.random_quantization import QUANTIZED  # noqa: E402

STEPS: tuple[Step, ...] = (
    *(product,) * 5,
    *(biased_product,) * 5,
    *(elementwise,) * 4,
    unary,
    unary,
    reshaping,
    *BODIES,
    *QUANTIZED,
)
