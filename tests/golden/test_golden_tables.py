"""Golden tables of format version 1: they load, and give the rows they always gave."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnx_ternary
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.nodes import check_indices, gather_nodes, op_nodes
from tests.golden.write_golden import K, N
from tests.golden.write_tables import TABLES, table_cases

CASES = {case.path.stem: case for case in table_cases()}


@pytest.mark.parametrize("with_library", [True, False], ids=["library", "body"])
@pytest.mark.parametrize("name", CASES)
def test_rows_stay_the_same(name: str, with_library: bool) -> None:
    open_session = onnx_ternary.InferenceSession if with_library else ort.InferenceSession
    session = open_session(CASES[name].path, providers=["CPUExecutionProvider"])
    ids = np.array([*range(N), -1, -N])
    x = np.zeros((len(ids), K), np.float32)
    (rows,) = session.run(["rows"], {"ids": ids, "X": x})
    np.testing.assert_array_equal(rows, CASES[name].table()[ids])
    assert len(np.unique(rows)) > 1


@pytest.mark.parametrize("name", CASES)
def test_files_are_sound_and_left_alone(name: str) -> None:
    model = ir.load(CASES[name].path)
    assert check_indices(model) == ("embedding", "head")
    (gather,), (product,) = gather_nodes(model), op_nodes(model)
    assert gather.inputs[1] is product.inputs[1]
    again = optimize(CASES[name].path).report
    assert not again.rewrites
    assert again.already_converted == ("embedding", "head")


def test_every_combination_has_a_file_and_every_file_is_read() -> None:
    assert {path.stem for path in TABLES.glob("*.onnx")} == set(CASES)
