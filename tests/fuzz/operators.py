"""Constant expressions of one or a few operators, with operands and attributes that are extreme.

ONNX Runtime runs them at conversion, so what ends the process there ends the conversion. Operators
that are evaluated, which is a list, are drawn from ONNX's own test cases, then damaged, and from
schemas with operands of every shape.
Converting gives a result or a documented error, in bounded time and memory; the process lives on.
"""

from __future__ import annotations

import functools
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper

from onnx_ternary.conversion.optimize import UNEXPECTED, optimize
from onnx_ternary.errors import OnnxTernaryError
from onnx_ternary.graph_passes.constants.operators import EVALUATED
from onnx_ternary.options import OptimizeOptions

Array = NDArray[Any]
Rng = np.random.Generator
MOST_SECONDS = 60
"""Of processors, for one model: 4 GiB of results are allowed by default."""
MOST_BYTES = 3 << 30
"""Of the process, at any time; an expression may hold 256 MiB by default."""
MOST_ELEMENTS = 4096
OPSETS = range(7, defs.onnx_opset_version() + 1)
INTEGERS = (0, 1, 2, 3, 7, 64, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "reflect", "wrap", "edge")
TEXTS += ("nearest", "linear", "cubic", "bilinear", "align_corners", "tf_crop_and_resize", "add")
TEXTS += ("max", "mul", "min", "reverse", "bidirectional", "DCR", "CRD", "LEFT", "RIGHT", "none")
TEXTS += ("ij,jk->ik", "...i->...", "ii->i", "->", "ij->kk", "Tanh", "avg", "output_half_pixel")
LENGTHS = (0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 8)
TYPES: Mapping[str, Any] = {
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(string)": np.object_,
    **{
        f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
# Weights of common types: a kernel for every type runs the same lines.
COMMON = ("tensor(float)", "tensor(float)", "tensor(int64)", "tensor(int32)", "tensor(uint8)")


@dataclass(frozen=True, slots=True)
class Expression:
    """Nodes and the constants they start from, by name; the last node's results are the result."""

    nodes: tuple[NodeProto, ...]
    constants: dict[str, Array] = field(default_factory=dict)
    opset: int = defs.onnx_opset_version()


@functools.cache
def cases() -> list[Expression]:
    """ONNX's own test cases of one operator with tensors."""
    from onnx.backend.test.case import node as cases_of_nodes

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute infinities on purpose
        collected = cases_of_nodes.collect_testcases(None)
    for case in collected:
        model = case.model
        if len(model.graph.node) != 1 or model.functions or not case.data_sets:
            continue
        names = [each.name for each in model.graph.input]
        arrays = [np.asarray(each) for each in case.data_sets[0][0] if isinstance(each, np.ndarray)]
        node = model.graph.node[0]
        if len(arrays) != len(names) or not _may_run(node) or sum(a.nbytes for a in arrays) > 1e6:
            continue
        opset = next(each.version for each in model.opset_import if each.domain == node.domain)
        found.append(Expression((node,), dict(zip(names, arrays, strict=True)), opset))
    return found


def _may_run(node: NodeProto) -> bool:
    return node.domain == "" and node.op_type in EVALUATED[""]


def try_operator(rng: Rng) -> str:
    """Draw an expression, damage it and convert a product with it: see `convert`."""
    return convert(draw(rng), rng)


def draw(rng: Rng) -> Expression:
    """An operator from its schema or from a test case, damaged."""
    made = draw_from_schema(rng) if rng.random() < 0.4 else _one(cases(), rng)
    return damaged(made, rng)


def convert(expression: Expression, rng: Rng) -> str:
    """Convert a product whose weight an expression computes: ``evaluated`` or ``refused``.

    Raises:
        AssertionError: for anything but a documented error, and for too much time or memory.
    """
    content = product_with(expression, rng).SerializeToString()
    started, before = time.process_time(), held_bytes()
    try:
        said = " ".join(
            each.reason
            for each in optimize(content, OptimizeOptions(min_elements=0)).report.rejections
        )
    except OnnxTernaryError as error:
        said = str(error)
        assert UNEXPECTED not in said, error
        return "not valid"
    finally:
        seconds = time.process_time() - started
        after = held_bytes()
        assert seconds < MOST_SECONDS, f"it took {seconds:.0f} s"
        assert after < MOST_BYTES or after == before, f"the process has held {after} bytes"
    if "onnxruntime" in said and " says: " in said:
        return "refused by onnxruntime"
    return "not evaluated" if "not evaluated" in said or "computed" in said else "evaluated"


def held_bytes() -> int:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_with(expression: Expression, rng: Rng) -> onnx.ModelProto:
    """``x @ w``, with one result of the last node, cast to float32, as ``w``."""
    results = [name for name in expression.nodes[-1].output if name]
    nodes = [
        *expression.nodes,
        helper.make_node("Cast", [_one(results, rng) or "none"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, None))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, None))],
        [numpy_helper.from_array(array, name) for name, array in expression.constants.items()],
    )
    opsets = [helper.make_opsetid("", expression.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@functools.cache
def _schemas() -> dict[int, list[defs.OpSchema]]:
    """The operators of every opset that are evaluated, by name."""
    by_opset: dict[int, list[defs.OpSchema]] = {}
    for opset in OPSETS:
        by_opset[opset] = []
        for name in sorted(EVALUATED[""]):
            try:
                schema = defs.get_schema(name, opset)
            except defs.SchemaError:
                continue
            if not schema.deprecated:
                by_opset[opset].append(schema)
    return by_opset


def draw_from_schema(rng: Rng) -> Expression:
    """An operator with operands of the types it takes, and of any shapes."""
    opset = int(_one(OPSETS, rng))
    if rng.random() < 0.05:
        domain = "com.microsoft"
        op_type = _one(sorted(EVALUATED[domain]), rng)
        node = helper.make_node(op_type, ["a", "b", "c"], ["r"], domain=domain)
        shape = _shape(rng)
        zero = np.zeros((), rng.choice([np.uint8, np.int8]))
        arrays = [_array(np.dtype(kind), shape, rng) for kind in (np.float32, np.float32)]
        return Expression((node,), dict(zip("abc", [*arrays, zero], strict=True)), opset)
    schema = _one(_schemas()[opset], rng)
    chosen: dict[str, str] = {}
    constants: dict[str, Array] = {}
    shape = _shape(rng)
    for at, operand in enumerate(schema.inputs):
        if operand.option == defs.OpSchema.FormalParameterOption.Optional and rng.random() < 0.3:
            break
        types = sorted(set(operand.types) & set(TYPES))
        likely = [each for each in COMMON if each in types]
        if not types:
            break
        kind = _one(likely if likely and rng.random() < 0.7 else types, rng)
        dtype = TYPES[chosen.setdefault(operand.type_str, kind)]
        constants[f"c{at}"] = _array(dtype, shape if rng.random() < 0.5 else _shape(rng), rng)
    node = helper.make_node(schema.name, [*constants], [])
    node.output.extend(f"r{at}" for at in range(max(1, min(len(schema.outputs), 3))))
    for name in sorted(schema.attributes):
        if schema.attributes[name].required or rng.random() < 0.4:
            _set(node, schema.attributes[name], rng)
    return Expression((node,), constants, opset)


def _set(node: NodeProto, attribute: Any, rng: Rng) -> None:
    """Give a node an attribute of the type its schema wants."""
    kind = attribute.type.name
    lengths = range(int(_one(LENGTHS, rng)))
    values: dict[str, Callable[[], Any]] = {
        "INT": lambda: _integer(rng),
        "FLOAT": lambda: _one(FLOATS, rng),
        "STRING": lambda: _one(TEXTS, rng),
        "INTS": lambda: [_integer(rng) for _ in lengths],
        "FLOATS": lambda: [_one(FLOATS, rng) for _ in lengths],
        "STRINGS": lambda: [_one(TEXTS, rng) for _ in lengths],
        "TENSOR": lambda: numpy_helper.from_array(_array(np.dtype(np.float32), (1,), rng)),
    }
    if kind not in values:
        return
    kept = [each for each in node.attribute if each.name != attribute.name]
    del node.attribute[:]
    node.attribute.extend(kept)
    made = helper.make_attribute(
        attribute.name, values[kind](), attr_type=AttributeProto.AttributeType.Value(kind)
    )
    node.attribute.append(made)


def damaged(expression: Expression, rng: Rng) -> Expression:
    """The same with up to three things changed, sometimes in front of another operator."""
    for _ in range(rng.integers(4)):
        expression = DAMAGES[rng.integers(len(DAMAGES))](expression, rng)
    return expression


def _attribute(expression: Expression, rng: Rng) -> Expression:
    """An attribute of the schema, there or not, gets a value."""
    node = _copy(expression.nodes[-1])
    if schema := _schema(node, expression.opset):
        attribute = _one([schema.attributes[name] for name in sorted(schema.attributes)], rng)
        if attribute is not None:
            _set(node, attribute, rng)
    return replace(expression, nodes=(*expression.nodes[:-1], node))


def _value_of_attribute(expression: Expression, rng: Rng) -> Expression:
    """One number of an attribute that is there changes."""
    node = _copy(expression.nodes[-1])
    attribute = _one(node.attribute, rng)
    if attribute is not None:
        if attribute.type == AttributeProto.INTS and attribute.ints and rng.random() < 0.7:
            attribute.ints[rng.integers(len(attribute.ints))] = _integer(rng)
        elif attribute.type == AttributeProto.INTS:
            attribute.ints[:] = attribute.ints[:-1] if rng.random() < 0.5 else [*attribute.ints, 1]
        elif attribute.type == AttributeProto.INT:
            attribute.i = _integer(rng)
        elif attribute.type == AttributeProto.FLOAT:
            attribute.f = _one(FLOATS, rng)
        else:
            attribute.type = _one([*AttributeProto.AttributeType.values()], rng)
    return replace(expression, nodes=(*expression.nodes[:-1], node))


def _numbers(expression: Expression, rng: Rng) -> Expression:
    """Some numbers of a constant become extreme."""

    def change(array: Array) -> Array:
        changed = array.copy().reshape(-1)
        for at in rng.integers(changed.size, size=rng.integers(1, 4)) if changed.size else ():
            changed[at] = _array(changed.dtype, (1,), rng)[0]
        return changed.reshape(array.shape)

    return _changed(expression, change, rng)


def _dims(expression: Expression, rng: Rng) -> Expression:
    """A constant is empty, has one axis more or less, or ends early."""

    def change(array: Array) -> Array:
        kind = rng.integers(5)
        if kind == 0 or array.ndim == 0:
            return array[None] if rng.random() < 0.5 else array.reshape(-1)[:0]
        axis = int(rng.integers(array.ndim))
        if kind == 1:
            return array.take(range(0), axis)
        if kind == 2 and array.shape[axis]:
            return array.take(0, axis)
        if kind == 3:
            return array.take(range(int(rng.integers(array.shape[axis] + 1))), axis)
        return np.concatenate([array, array], axis)

    return _changed(expression, change, rng)


def _type(expression: Expression, rng: Rng) -> Expression:
    """A constant of another type, all of its numbers extreme perhaps."""

    def change(array: Array) -> Array:
        return _array(np.dtype(TYPES[_one([*TYPES], rng)]), array.shape, rng)

    return _changed(expression, change, rng)


def _operands(expression: Expression, rng: Rng) -> Expression:
    """An operand is missing, or one too many, or another one."""
    node = _copy(expression.nodes[-1])
    if node.input and rng.random() < 0.6:
        at = rng.integers(len(node.input))
        node.input[at] = _one(["", *expression.constants], rng)
    elif node.input and rng.random() < 0.5:
        del node.input[-1]
    elif expression.constants:
        node.input.append(_one([*expression.constants], rng))
    return replace(expression, nodes=(*expression.nodes[:-1], node))


def _opset(expression: Expression, rng: Rng) -> Expression:
    return replace(expression, opset=int(_one(OPSETS, rng)))


def _behind(expression: Expression, rng: Rng) -> Expression:
    """Another operator takes a result in the place of one of its operands."""
    other = draw_from_schema(rng)
    node = _copy(other.nodes[0])
    prefix = f"n{len(expression.nodes)}_"
    result = _one([name for name in expression.nodes[-1].output if name], rng)
    if node.domain or not node.input or result is None:
        return expression
    node.input[:] = [prefix + name for name in node.input]
    node.output[:] = [prefix + name for name in node.output]
    constants = {prefix + name: array for name, array in other.constants.items()}
    at = int(rng.integers(len(node.input)))
    constants.pop(node.input[at])
    node.input[at] = result
    return Expression(
        (*expression.nodes, node), {**expression.constants, **constants}, expression.opset
    )


DAMAGES: tuple[Callable[[Expression, Rng], Expression], ...] = (
    _attribute,
    _attribute,
    _value_of_attribute,
    _value_of_attribute,
    _numbers,
    _numbers,
    _dims,
    _dims,
    _type,
    _operands,
    _opset,
    _behind,
)


def _changed(expression: Expression, change: Callable[[Array], Array], rng: Rng) -> Expression:
    name = _one([*expression.constants], rng)
    if name is None:
        return expression
    old = expression.constants[name]
    array = change(old)
    if not isinstance(array, np.ndarray):  # an element of an array of objects
        array = np.array(array, old.dtype)
    return replace(expression, constants={**expression.constants, name: array})


def _schema(node: NodeProto, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(node.op_type, opset, node.domain)
    except defs.SchemaError:
        return None


def _copy(node: NodeProto) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    return made


def _one(choices: Sequence[Any], rng: Rng) -> Any:
    return choices[rng.integers(len(choices))] if len(choices) else None


def _integer(rng: Rng) -> int:
    number = int(_one(INTEGERS, rng)) if rng.random() < 0.4 else int(rng.integers(5))
    return -number - int(rng.integers(2)) if rng.random() < 0.4 else number


def _shape(rng: Rng) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for _ in range(rng.integers(6)):
        size = int(_one((0, 1, 1, 2, 3, 4, 5, 8), rng))
        if size * np.prod(shape, dtype=int) <= MOST_ELEMENTS:
            shape = (*shape, size)
    return shape


def _array(dtype: Any, shape: tuple[int, ...], rng: Rng) -> Array:
    """Numbers of a type: small ones, and sometimes a few or all extreme."""
    dtype = np.dtype(dtype)
    if dtype == np.object_:
        return np.array(rng.choice(["", "a", "1", "-7.5", "é"], shape), dtype)
    small = rng.integers(0 if dtype.kind == "u" else -3, 6, shape)
    extreme = rng.random(shape) < _one((0, 0, 0.2, 1), rng)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        choices = (limits.min, limits.max, -1, 2**31 - 1, 2**40, -(2**31))
        kept = [each for each in choices if limits.min <= each <= limits.max]
        large = np.array(kept, dtype)[rng.integers(len(kept), size=shape)]
        return np.where(extreme, large, small.astype(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        large = np.array(FLOATS)[rng.integers(len(FLOATS), size=shape)].astype(dtype)
        return np.where(extreme, large, small.astype(dtype)).astype(dtype)


def main() -> int:
    """Write the model of one attempt: ``python -m tests.fuzz.operators SEED:ATTEMPT FILE``."""
    seed, number = map(int, sys.argv[1].split(":"))
    rng = np.random.default_rng((seed, number))
    onnx.save(product_with(draw(rng), rng), sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
