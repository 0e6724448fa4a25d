"""Where converted products stand in the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnx_ternary.op.nodes import AXES_KEY, CHANGE_KEY
from onnx_ternary.schema import DOMAIN, OP_TYPE
from onnx_ternary.verification.places import (
    Place,
    find_places,
    node_name,
    subgraph_nodes,
    weight_change,
)


@given(st.permutations(range(4)), st.booleans())
def test_x_goes_back_to_its_source(perm: list[int], is_split: bool) -> None:
    shape = (2, 3, 4, 5)
    split = tuple(shape[axis] for axis in perm[-2:]) if is_split else ()
    place = Place("source", "target", perm_x=tuple(perm), split_x=split)
    source = np.arange(np.prod(shape)).reshape(shape)
    x = place.x_of(source)
    assert x.ndim == place.rank
    assert np.array_equal(x.ravel(), source.transpose(perm).ravel())
    assert np.array_equal(place.source_of(x), source)


def test_y_of_a_transposed_target() -> None:
    y = np.arange(24).reshape(2, 3, 4)
    place = Place("source", "target", perm_y=(2, 0, 1))
    assert np.array_equal(place.y_of(y.transpose(2, 0, 1)), y)


def product(x: str, y: str, change: str = "") -> onnx.NodeProto:
    node = helper.make_node(OP_TYPE, [x, "index"], [y], domain=DOMAIN)
    if change:
        node.metadata_props.add(key=CHANGE_KEY, value=change)
    return node


def test_transposes_and_reshapes_of_the_conversion_belong_to_a_product() -> None:
    split = helper.make_node("Reshape", ["flat", "shape"], ["y"])
    split.metadata_props.add(key=AXES_KEY, value="4,8")
    node = product("turned", "flat")
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]), node, split], "g", [], []
    )
    assert find_places(graph, [node], {"x", "y"})[id(node)] == Place(
        "x", "y", perm_x=(1, 0), split_y=(4, 8)
    )


def test_transposes_of_the_original_do_not() -> None:
    node = product("turned", "y")
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]), node], "g", [], []
    )
    place = find_places(graph, [node], {"x", "turned", "y"})[id(node)]
    assert place == Place("turned", "y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.001", 0.001),
        ("", 0.0),
        ("0.5", 0.0),  # more than any tolerance: somebody else wrote it
        ("-0.001", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("much", 0.0),
    ],
)
def test_a_change_of_weights_is_read_as_the_conversion_wrote_it(text: str, expected: float) -> None:
    assert weight_change(product("x", "y", text)) == expected


def test_nodes_of_subgraphs_at_every_depth() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "inner", [], [])
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner)], "g", [], []
    )
    node = helper.make_node("If", ["c"], ["d"], then_branch=outer, else_branch=inner)
    found = [each.op_type for each in subgraph_nodes([node])]
    assert sorted(found) == ["If", "Relu", "Relu", "Relu"]


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    assert node_name(product("x", "y")) == "y"
