"""The walk over shapes: what operators say about sizes, and that no damaged node stops it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.verification.shapes import (
    attention,
    constants,
    elementwise,
    layout,
    lookup,
    products,
)
from onnx_ternary.verification.shapes.facts import Origin, Scope, Traced
from onnx_ternary.verification.shapes.node import Node
from onnx_ternary.verification.shapes.sizes import Size, Sizes
from onnx_ternary.verification.shapes.walk import HANDLERS, trace

FILES = (elementwise, products, layout, lookup, attention, constants)
INTEGERS = (
    *("axis", "axes", "perm", "kernel_shape", "strides", "dilations", "pads", "group", "transA"),
    *("transB", "keepdims", "allowzero", "split", "starts", "ends", "start", "end", "num_heads"),
    *("kv_num_heads", "q_num_heads", "K", "N", "gather_axis"),
)
EQUATIONS = ("ij,jk->ik", "...ij,...jk->...ik", "ii->i", "ij", "a,b,c->abc", "->", "i...,j->...")


def test_operators_that_two_files_name() -> None:
    """They keep the shape, and say something besides: the later file is asked."""
    count = {name: sum(name in each.HANDLERS for each in FILES) for name in HANDLERS}
    twice = {name for name, number in count.items() if number > 1}
    assert twice == {"RotaryEmbedding", "ScatterElements", "ScatterND", "TensorScatter"}
    assert all(HANDLERS[name] is lookup.HANDLERS[name] for name in twice)


def solved(
    nodes: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Sequence[int | None]],
    weights: Mapping[str, np.ndarray[Any, Any]],
) -> tuple[dict[str, list[int | None]], Traced]:
    """The inputs' sizes as far as the nodes decide them, and all else that was found."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in shapes],
        [],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    sizes = Sizes()
    given = {
        name: tuple(sizes.fresh() if size is None else Size(size) for size in shape)
        for name, shape in shapes.items()
    }
    found = trace(helper.make_model(graph), given, sizes)
    return {
        name: [sizes.resolve(size).value for size in shape] for name, shape in given.items()
    }, found


@pytest.mark.parametrize(
    ("node", "shapes", "weights", "expected"),
    [
        (("MatMul", ["x", "w"]), {"x": (None, None)}, {"w": (8, 3)}, {"x": [None, 8]}),
        (("Gemm", ["x", "w"]), {"x": (None, None)}, {"w": (8, 3)}, {"x": [None, 8]}),
        (("Conv", ["x", "w"]), {"x": (1, None, 9, 9)}, {"w": (4, 3, 3, 3)}, {"x": [1, 3, 9, 9]}),
        (("Add", ["x", "z"]), {"x": (None, 8), "z": (5, 8)}, {}, {"x": [5, 8], "z": [5, 8]}),
        (
            ("Concat", ["x", "z"], {"axis": 1}),
            {"x": (None, 2), "z": (5, 8)},
            {},
            {"x": [5, 2], "z": [5, 8]},
        ),
        (
            ("Einsum", ["x", "w"], {"equation": "bij,jk->bik"}),
            {"x": (2, 4, None)},
            {"w": (8, 3)},
            {"x": [2, 4, 8]},
        ),
        (("LayerNormalization", ["x", "w"]), {"x": (2, None)}, {"w": (7,)}, {"x": [2, 7]}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_sizes_that_a_node_decides(
    node: tuple[Any, ...],
    shapes: Mapping[str, Sequence[int | None]],
    weights: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, Sequence[int | None]],
) -> None:
    op_type, inputs, *attributes = node
    made = helper.make_node(op_type, inputs, ["y"], **(attributes[0] if attributes else {}))
    tensors = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    found, _ = solved([made], shapes, tensors)
    assert found == expected


def test_indices_stay_inside_their_table() -> None:
    nodes = [
        helper.make_node("Add", ["x", "two"], ["moved"]),
        helper.make_node("Gather", ["table", "moved"], ["y"]),
    ]
    weights = {"table": np.ones((50, 4), np.float32), "two": np.array([2])}
    _, found = solved(nodes, {"x": (3,)}, weights)
    assert [size.value for size in found.bounds["x"]] == [48]


def damaged(rng: random.Random, op_type: str) -> Node:
    """A node with too few or too many inputs, attributes and outputs of any kind."""
    scope, sizes = Scope(), Sizes()
    inputs = [rng.choice(["", f"i{at}", f"i{at}", f"i{at}"]) for at in range(rng.randint(0, 8))]
    for name in filter(None, inputs):
        if rng.random() < 0.7:
            choices = [*map(Size, (0, 1, 2, 3, 8)), sizes.fresh()]
            scope.shapes[name] = tuple(rng.choices(choices, k=rng.randint(0, 5)))
        if rng.random() < 0.4:
            elements = [None, *map(Size, (-9, -1, 0, 1, 2, 1 << 62)), sizes.fresh()]
            scope.values[name] = tuple(rng.choices(elements, k=rng.randint(0, 4)))
        if rng.random() < 0.3:
            scope.origins[name] = Origin(name)
        if rng.random() < 0.2:
            tensor = np.array(rng.choices(range(-5, 6), k=rng.randint(0, 3)), np.int64)
            scope.tensors[name] = numpy_helper.from_array(tensor)
    attributes: dict[str, Any] = {
        name: rng.choice([0, 1, rng.randint(-9, 9), rng.choices(range(-9, 10), k=3)])
        for name in rng.sample(INTEGERS, rng.randint(0, 5))
    }
    if op_type == "Einsum":
        attributes["equation"] = rng.choice(EQUATIONS)
    outputs = rng.choices(["", "y"], k=rng.randint(0, 3))
    return Node(helper.make_node(op_type, inputs, outputs, **attributes), scope, Traced(sizes))


@pytest.mark.parametrize("op_type", sorted(HANDLERS))
def test_a_damaged_node_ends_what_is_known_and_nothing_else(op_type: str) -> None:
    rng = random.Random(op_type)
    for _ in range(100):
        node = damaged(rng, op_type)
        HANDLERS[op_type](node)
        elementwise.track_elements(node)


def body(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.GraphProto:
    values = [
        [helper.make_tensor_value_info(each, 1, None) for each in s] for s in (inputs, outputs)
    ]
    return helper.make_graph(list(nodes), "body", *values)


def loop(*, results: Sequence[str] = ("z",), turns: str = "turns") -> onnx.NodeProto:
    nodes = [
        helper.make_node("Identity", ["going"], ["still"]),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
    ]
    inner = body(nodes, ["turn", "going", "h"], ["still", "p", "r"])
    return helper.make_node("Loop", [turns, "", "x"], list(results), body=inner)


def scan(**attributes: Any) -> onnx.NodeProto:
    nodes = [
        helper.make_node("MatMul", ["t", "w"], ["p"]),
        helper.make_node("Add", ["h", "p"], ["s"]),
    ]
    inner = body(nodes, ["h", "t"], ["s", "p"])
    attributes = {"num_scan_inputs": 1, **attributes}
    return helper.make_node("Scan", ["h0", "x"], ["last", "y"], body=inner, **attributes)


def test_product_in_a_loop_decides_what_the_loop_starts_with() -> None:
    weights = {"w": np.ones((8, 8), np.float32), "turns": np.array(3)}
    found, _ = solved([loop()], {"x": (None, None)}, weights)
    assert found == {"x": [None, 8]}


def test_results_of_a_loop_have_shapes() -> None:
    """The last value as the loop began, and what all turns made, one behind the other."""
    nodes = [
        loop(results=("z", "all")),
        helper.make_node("Add", ["z", "v"], ["sum"]),
        helper.make_node("Add", ["all", "u"], ["others"]),
    ]
    weights = {"w": np.ones((8, 8), np.float32), "turns": np.array(3)}
    shapes = {"x": (4, None), "v": (None, 8), "u": (None, None, 8)}
    found, _ = solved(nodes, shapes, weights)
    assert found == {"x": [4, 8], "v": [4, 8], "u": [3, 4, 8]}


def test_carried_value_of_another_shape_ends_what_is_known() -> None:
    nodes = [loop(), helper.make_node("Add", ["z", "v"], ["sum"])]
    weights = {"w": np.ones((8, 5), np.float32), "turns": np.array(1)}
    found, _ = solved(nodes, {"x": (4, 8), "v": (None, None)}, weights)
    assert found["v"] == [None, None]


@pytest.mark.parametrize(
    ("attributes", "expected", "result"),
    [
        ({}, [5, 8], [5, 3]),
        ({"scan_input_axes": [1]}, [8, 5], [5, 3]),
        ({"scan_input_axes": [-1], "scan_output_axes": [-1]}, [8, 5], [3, 5]),
    ],
)
def test_body_of_a_scan_decides_its_sequence(
    attributes: dict[str, Any], expected: list[int], result: list[int]
) -> None:
    length = [each if each == 5 else None for each in expected]
    weights = {"w": np.ones((8, 3), np.float32)}
    nodes = [scan(**attributes), helper.make_node("Add", ["y", "v"], ["sum"])]
    shapes = {"x": length, "h0": (None,), "v": (None, None)}
    found, _ = solved(nodes, shapes, weights)
    assert found == {"x": expected, "h0": [3], "v": result}


@pytest.mark.parametrize("op_type", ["Loop", "Scan"])
def test_damaged_loop_ends_what_is_known_and_nothing_else(op_type: str) -> None:
    rng = random.Random(7)
    for _ in range(300):
        whole = loop() if op_type == "Loop" else scan()
        del whole.input[rng.randint(0, 3) :]
        del whole.output[rng.randint(0, 2) :]
        for attribute in whole.attribute:
            if attribute.name == "body":
                del attribute.g.input[rng.randint(0, 3) :]
                del attribute.g.output[rng.randint(0, 3) :]
            else:
                attribute.i = rng.randint(-3, 5)
        if rng.random() < 0.3:
            whole.attribute.append(helper.make_attribute("scan_input_axes", [rng.randint(-9, 9)]))
        if rng.random() < 0.2:
            del whole.attribute[0]
        shapes = {"x": (None,) * rng.randint(0, 3), "h0": (None,)}
        weights = {
            "w": np.ones((8, 8), np.float32),
            "turns": np.ones((2,) * rng.randint(0, 2), int),
        }
        nodes = [whole, helper.make_node("MatMul", ["x", "w"], ["last"])]
        found, _ = solved(nodes, shapes, weights)
        if shapes["x"]:
            assert found["x"][-1] == 8
