"""Golden models of format version 1: they load, and give the answer they always gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.activations import quantize_rows
from onnx_ternary.op.bounds import float_error_bound, int8_error_bound
from onnx_ternary.op.nodes import check_indices, op_nodes, read_attributes
from onnx_ternary.schema import OpAttributes
from tests.golden.write_models import MODELS, ModelCase, activations, model_cases

CASES = {case.path.stem: case for case in model_cases()}
NO_BIAS = np.zeros((), np.float32)


def attributes_of(case: ModelCase) -> OpAttributes:
    (found,) = op_nodes(ir.load(case.path))
    return read_attributes(found)


def answer(case: ModelCase, *, with_library: bool) -> NDArray[Any]:
    open_session = onnx_ternary.InferenceSession if with_library else ort.InferenceSession
    session = open_session(case.path, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {"X": activations()})[0]
    return result


def expected(case: ModelCase) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The answer in float64, and how far from it a float32 one may be."""
    weight, x, attributes = case.index.weight(), activations(), attributes_of(case)
    scale = weight.scale.astype(np.float64)
    if weight.group_size:
        scale = np.repeat(scale, weight.group_size, axis=0)[: attributes.K]
    dense = weight.levels * scale
    arguments = (x, weight.levels, weight.scale, weight.group_size, NO_BIAS)
    if attributes.activation == "int8":
        q, s = quantize_rows(x, attributes)
        return (q / s[:, None].astype(np.float64)) @ dense, int8_error_bound(
            *arguments, attributes, np.float32
        )
    return x.astype(np.float64) @ dense, float_error_bound(
        *arguments, addition_depth=attributes.K, fixed_point=True, dtype=np.float32
    )


@pytest.mark.parametrize("with_library", [True, False], ids=["library", "body"])
@pytest.mark.parametrize("name", CASES)
def test_answers_stay_the_same(name: str, with_library: bool) -> None:
    value, bound = expected(CASES[name])
    error = np.abs(answer(CASES[name], with_library=with_library) - value)
    assert (error <= bound).all()
    # The bound could fail: an answer with one weight's sign turned is outside of it.
    assert (bound < np.abs(value).mean() * 1e-3).all()


@pytest.mark.parametrize("name", CASES)
def test_files_are_sound_and_left_alone(name: str) -> None:
    model = ir.load(CASES[name].path)
    assert len(check_indices(model)) == 1
    again = optimize(CASES[name].path).report
    assert not again.rewrites
    assert again.already_converted == ("product",)


def test_every_combination_has_a_file_and_every_file_is_read() -> None:
    assert {path.stem for path in MODELS.glob("*.onnx")} == set(CASES)
