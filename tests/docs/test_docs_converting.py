"""docs/converting.md on quantized activations is what conversion does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.nodes import op_nodes, read_attributes
from onnx_ternary.options import OptimizeOptions
from tests.catalogue import activations, dequantize
from tests.catalogue.case import Case

TEXT = (Path(__file__).parents[2] / "docs/converting.md").read_text(encoding="utf-8")
# Nodes that quantize.
QUANTIZING = {"Round", "QuantizeLinear", "DynamicQuantizeLinear"}


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def converted(made: Case, *, fuse: bool) -> tuple[set[str], set[str]]:
    """How the op takes its activations, and the quantizing nodes that are left."""
    model = optimize(made.model, OptimizeOptions(min_elements=0, fuse_activation=fuse)).model
    kinds = {read_attributes(node).activation for node in op_nodes(model)}
    return kinds, {node.op_type for node in model.graph} & QUANTIZING


@pytest.mark.parametrize(
    ("made", "activation"),
    [
        (activations.offline, "int8"),
        (activations.online, "int8"),
        (activations.packed, "int8"),
        (activations.dynamic_qdq, "uint8"),
    ],
    ids=["offline", "online", "packed", "dynamic"],
)
def test_activations_become_part_of_the_operator(made: Callable[[], Case], activation: str) -> None:
    assert "(`activation = int8` or `uint8`, [patterns](patterns.md))" in TEXT
    assert converted(made(), fuse=True) == ({activation}, set())


@pytest.mark.parametrize("made", [activations.offline, activations.dynamic_qdq])
def test_activations_stay_in_the_graph_on_request(made: Callable[[], Case]) -> None:
    assert "`--no-fuse-activation` leaves them in the graph" in section("BitNet from transformers")
    kinds, left = converted(made(), fuse=False)
    assert kinds == {"float"}
    assert left


def test_pairs_with_a_fixed_scale_stay() -> None:
    assert "pairs with a fixed scale on *activations* stay" in section("QDQ")
    kinds, left = converted(dequantize.static_qdq(), fuse=True)
    assert kinds == {"float"}
    assert left == {"QuantizeLinear"}
