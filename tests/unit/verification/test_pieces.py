"""Parts of a model in one session."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.pieces import BATCH_BYTES, Piece, batches, run_pieces


def test_batches_hold_every_item_once_and_no_more_bytes_than_allowed() -> None:
    sizes = [BATCH_BYTES // 2, BATCH_BYTES // 2, 1, 3 * BATCH_BYTES, 1, 1]
    found = list(batches(range(len(sizes)), sizes))
    assert found == [[0, 1], [2], [3], [4, 5]]


def test_batches_of_tiny_items_end_too() -> None:
    found = list(batches(range(600), [0] * 600))
    assert [len(each) for each in found] == [256, 256, 88]
    assert [item for each in found for item in each] == list(range(600))


@pytest.fixture
def model() -> LoadedModel:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return LoadedModel.load(proto, "original", ())


def piece(op_type: str, constant: float) -> Piece:
    """Pieces share their names, as those of one model's functions do."""
    return Piece(
        nodes=[helper.make_node(op_type, ["x", "c"], ["y"])],
        constants=[numpy_helper.from_array(np.array([constant], np.float32), "c")],
        feeds={"x": np.array([3.0], np.float32)},
        outputs=["y"],
    )


def test_pieces_of_one_session_do_not_meet(model: LoadedModel) -> None:
    answers = run_pieces(model, [piece("Mul", 2), piece("Add", 2)], optimized=True)
    assert [float(each[0][0]) for each in answers if isinstance(each, tuple)] == [6.0, 5.0]


def test_a_piece_that_does_not_run_leaves_the_others_their_answers(model: LoadedModel) -> None:
    answers = run_pieces(
        model, [piece("Mul", 2), piece("NoSuchOperator", 2), piece("Add", 2)], optimized=False
    )
    assert isinstance(answers[1], ModelError)
    assert [float(each[0][0]) for each in answers if isinstance(each, tuple)] == [6.0, 5.0]


def test_no_piece_needs_no_session() -> None:
    unreadable = LoadedModel.load(onnx.ModelProto(), "original", ())
    assert run_pieces(unreadable, [], optimized=True) == []
