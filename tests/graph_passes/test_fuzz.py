"""Random graphs around ternary weights: converting them never fails and never changes a number.

All constants are small integers times powers of two, and what a value can hold is tracked while a
graph is built, so every sum is exact in float32 whatever its order: outputs have to be equal bit by
bit. `ONNX_TERNARY_FUZZ_EXAMPLES=5000 pytest tests/graph_passes/test_fuzz.py` looks longer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import get_library_path, verify
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import LibraryError
from onnx_ternary.op.nodes import check_indices
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import Array
from tests.support.checks import feeds_of, run

EXAMPLES = int(os.environ.get("ONNX_TERNARY_FUZZ_EXAMPLES", "40"))
SIZE = 32
"""Rows and columns of every weight, so that anything can follow anything."""
LARGEST_INPUT = 16
"""Inputs are whole numbers; four standard deviations times four."""
MAX_RATIO = 2.0**22
"""Of the largest value and the smallest step: below what the fixed-point kernels hold exactly."""
F32 = np.float32


@dataclass(frozen=True)
class Value:
    """A float32 activation (..., SIZE): multiples of `step`, none larger than `largest`."""

    name: str
    rank: int
    largest: float
    step: float

    @property
    def exact(self) -> bool:
        return self.largest / self.step <= MAX_RATIO


@dataclass
class Graph:
    """A graph that grows; names are numbered."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def constant(self, array: Array, kind: str = "c") -> str:
        name = self.name(kind)
        self.constants[name] = array
        return name

    def add(self, op_type: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        output = self.name("v")
        made = helper.make_node(
            op_type, list(inputs), [output], name=f"{op_type}_{output}", domain=domain, **attributes
        )
        self.nodes.append(made)
        return output


@dataclass(frozen=True)
class Weight:
    """A (SIZE, SIZE) matrix of multiples of a half, and the name it has in the graph."""

    name: str
    matrix: Array

    @property
    def largest(self) -> float:
        return float(np.abs(self.matrix).max())

    @property
    def step(self) -> float:
        return 0.5


@st.composite
def weights(draw: st.DrawFn, graph: Graph) -> Weight:
    """A weight: ternary, binary, zero or off by a little; stored in one of many ways."""
    alphabets = [(-1, 0, 1), (-1, 0, 1), (-1, 1), (0, 1), (0,), (-2, -1, 0, 1)]
    alphabet = draw(st.sampled_from(alphabets))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    levels = generator.choice(alphabet, (SIZE, SIZE)).astype(F32)
    kind = draw(st.sampled_from(["tensor", "column", "tensor", "column", "group", "row"]))
    shape = {"tensor": (), "column": (SIZE,), "group": (SIZE // 16, SIZE), "row": (SIZE, 1)}[kind]
    drawn = generator.choice([0.5, 1.0, 2.0], shape).astype(F32)
    spread = np.repeat(drawn, 16, axis=0) if kind == "group" else drawn
    matrix = (levels * spread).astype(F32)
    how = draw(
        st.sampled_from(
            ["plain", "node", "turned", "cast", "float16", "flat", "scaled", "codes", "twice"]
        )
    )
    if how == "plain":
        name = graph.constant(matrix, "w")
    elif how == "node":
        name = graph.add("Constant", value=numpy_helper.from_array(matrix))
    elif how == "turned":
        name = graph.add("Transpose", graph.constant(np.ascontiguousarray(matrix.T)))
    elif how == "cast":
        stored = graph.constant((matrix * 2).astype(np.int8))
        name = graph.add("Cast", stored, to=TensorProto.FLOAT)
        matrix = matrix * 2
    elif how == "float16":
        stored = graph.constant(matrix.astype(np.float16))
        name = graph.add("Cast", stored, to=TensorProto.FLOAT)
    elif how == "flat":
        flat = graph.constant(matrix.reshape(-1))
        name = graph.add("Reshape", flat, graph.constant(np.array([SIZE, -1])))
    elif how == "scaled":
        name = graph.add("Mul", graph.constant(levels), graph.constant(spread.astype(F32)))
    elif how == "codes":
        zero = draw(st.integers(-3, 3))
        stored = graph.constant((levels + zero).astype(np.int8))
        scale, zero_point = drawn.reshape(-1)[:1].reshape(()), np.array(zero, np.int8)
        name = graph.add(
            "DequantizeLinear", stored, graph.constant(scale), graph.constant(zero_point)
        )
        matrix = levels * scale
    else:
        half = graph.constant((matrix / 2).astype(F32))
        name = graph.add("Add", half, half)
    return Weight(name, matrix)


def product(draw: st.DrawFn, graph: Graph, x: Value, weight: Weight) -> Value:
    """One product, in any notation, and in the main graph, a branch or a function."""
    notations = ["MatMul", "MatMul", "Einsum", "left"] + (["Gemm"] * 2 if x.rank == 2 else [])
    how = draw(st.sampled_from(notations))
    if how == "Gemm":
        attributes: dict[str, object] = {"transB": draw(st.integers(0, 1))}
        attributes["alpha"] = draw(st.sampled_from([0.5, 1.0, 2.0, -1.0]))
        attributes["beta"] = draw(st.sampled_from([0.0, 1.0, 2.0]))
        inputs = [x.name, weight.name]
        if draw(st.booleans()):
            shape = draw(st.sampled_from([(), (SIZE,), (1, SIZE), (2, SIZE), (2, 1)]))
            inputs.append(graph.constant(np.full(shape, 3, F32)))
        name = graph.add("Gemm", *inputs, **attributes)
        return Value(name, 2, x.largest * weight.largest * SIZE * 2 + 6, x.step * weight.step / 2)
    made = Value("", x.rank, x.largest * weight.largest * SIZE, x.step * weight.step)
    if how == "Einsum":
        name = graph.add("Einsum", x.name, weight.name, equation="...k,kn->...n")
    elif how == "left":
        turned = graph.add("Transpose", x.name, perm=[*range(x.rank - 2), x.rank - 1, x.rank - 2])
        across = graph.add("MatMul", weight.name, turned)
        name = graph.add("Transpose", across, perm=[*range(x.rank - 2), x.rank - 1, x.rank - 2])
    else:
        where = draw(st.sampled_from([_in_main, _in_main, _in_branch, _in_function, _of_call]))
        name = where(graph, x.name, weight)
    return Value(name, made.rank, made.largest, made.step)


def _in_main(graph: Graph, x: str, weight: Weight) -> str:
    return graph.add("MatMul", x, weight.name)


def _in_branch(graph: Graph, x: str, weight: Weight) -> str:
    branches = {}
    for branch in ("then_branch", "else_branch"):
        output = graph.name("b")
        made = helper.make_node("MatMul", [x, weight.name], [output], name=f"MatMul_{output}")
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        branches[branch] = helper.make_graph([made], branch, [], [result])
    return graph.add("If", graph.constant(np.array(True)), **branches)


def _in_function(graph: Graph, x: str, weight: Weight) -> str:
    """The function has the weight."""
    tensor = numpy_helper.from_array(weight.matrix)
    return _call(graph, [x], [helper.make_node("Constant", [], ["w"], value=tensor)])


def _of_call(graph: Graph, x: str, weight: Weight) -> str:
    """The call gives the weight, so the product stays."""
    return _call(graph, [x, weight.name], [])


def _call(graph: Graph, inputs: list[str], nodes: list[onnx.NodeProto]) -> str:
    name = graph.name("Linear")
    body = [*nodes, helper.make_node("MatMul", ["a", "w"], ["b"], name=f"MatMul_{name}")]
    graph.functions.append(
        helper.make_function(
            "local", name, ["a", "w"][: len(inputs)], ["b"], body, [helper.make_opsetid("", 17)]
        )
    )
    return graph.add(name, *inputs, domain="local")


def step(draw: st.DrawFn, graph: Graph, x: Value, others: list[Value]) -> Value:
    """An elementwise step."""
    op_type = draw(st.sampled_from(["Mul", "Div", "Add", "Sub", "Relu", "Identity", "Sum"]))
    if op_type in ("Relu", "Identity"):
        return Value(graph.add(op_type, x.name), x.rank, x.largest, x.step)
    if op_type == "Sum":
        same = [each for each in others if each.rank == x.rank]
        other = draw(st.sampled_from(same)) if same else x
        name = graph.add("Add", x.name, other.name)
        return Value(name, x.rank, x.largest + other.largest, min(x.step, other.step))
    shape = draw(st.sampled_from([(), (1,), (SIZE,), (1, SIZE), (2, 1)]))
    is_scale = op_type in ("Mul", "Div")
    number = draw(st.sampled_from([0.5, 1.0, 2.0, -1.0] if is_scale else [1.0, -3.0]))
    constant = graph.constant(np.full(shape, number, F32))
    swapped = op_type != "Div" and draw(st.booleans())
    name = graph.add(op_type, *([constant, x.name] if swapped else [x.name, constant]))
    if is_scale:
        return Value(name, x.rank, x.largest * 2, x.step / 2)
    return Value(name, x.rank, x.largest + 3, min(x.step, 1.0))


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    graph = Graph()
    rank = draw(st.integers(2, 3))
    values = [Value("x", rank, LARGEST_INPUT, 1.0)]
    matrices: list[Weight] = []
    for _ in range(draw(st.integers(2, 9))):
        x = values[-1] if draw(st.booleans()) else draw(st.sampled_from(values))
        if draw(st.integers(0, 4)) < 3:
            if not matrices or draw(st.booleans()):
                matrices.append(draw(weights(graph)))
            made = product(draw, graph, x, draw(st.sampled_from(matrices)))
        else:
            made = step(draw, graph, x, values)
        if not made.exact:
            graph.nodes.pop()
            break
        values.append(made)
    outputs = {values[-1].name: rank}
    outputs |= {each.name: rank for each in values[1:] if draw(st.integers(0, 3)) == 0}
    for weight in matrices:
        use = draw(st.integers(0, 7))
        if use == 0:
            outputs[graph.add("Gather", weight.name, graph.constant(np.array([1, 0])))] = 2
        elif use == 1:
            outputs[weight.name] = 2
    if outputs.pop("x", None) and not outputs:
        outputs[graph.add("Identity", "x")] = rank
    shapes = [draw(st.sampled_from([2, "batch"])), *([2] if rank == 3 else []), SIZE]
    made = helper.make_graph(
        graph.nodes,
        "fuzz",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in sorted(outputs.items())
        ],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8, functions=graph.functions)
    return onnx.shape_inference.infer_shapes(model) if draw(st.booleans()) else model


def all_options() -> st.SearchStrategy[OptimizeOptions]:
    return st.builds(
        OptimizeOptions,
        index_format=st.sampled_from(["packed", "packed", "rsr"]),
        fold=st.sampled_from([True, True, False]),
        function_body=st.sampled_from([True, True, False]),
        min_elements=st.just(0),
    )


@pytest.fixture(scope="module")
def library() -> None:
    try:
        get_library_path()
    except LibraryError as error:
        pytest.skip(str(error))


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(original=graphs(), options=all_options())
def test_answers_do_not_change(
    library: None, original: onnx.ModelProto, options: OptimizeOptions
) -> None:
    result = optimize(original, options)
    note(f"{options}\n{onnx.printer.to_text(original)}\n{result.report}")
    for row in result.report.rewrites:
        event(f"rewritten: {row.pattern} in {row.graph.split()[0]}")
    proto = result.to_proto()
    onnx.checker.check_model(proto)
    check_indices(ir.from_proto(proto))
    feeds = feeds_of(original, whole_numbers=True)
    feeds["x"] = np.clip(feeds["x"], -LARGEST_INPUT, LARGEST_INPUT)
    expected = run(original, feeds)
    for with_library in (True, False):
        if not with_library and not result.report.has_function_body:
            continue
        found = run(proto, feeds, library=with_library)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, {with_library}")
    again = optimize(proto, options)
    assert not again.report.rewrites
    if result.report.rewrites:
        assert again.to_proto() == proto
        report = verify(original, proto, inputs=feeds)
        assert report.passed, report.summary()
