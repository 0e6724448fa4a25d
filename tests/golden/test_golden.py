"""Golden indices: packers still write them, readers still read them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.native import kernels, layer
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import OpAttributes
from tests.golden.write_golden import FOLDER, Case, activation_cases, cases

NO_BIAS = np.zeros((), np.float32)
CASES = {case.path.stem: case for case in cases()}
QUANTIZED = {case.path.stem: case for case in activation_cases()}


def load(case: Case) -> tuple[OpAttributes, dict[str, NDArray[Any]]]:
    with np.load(case.path) as file:
        tensors = dict(file)
    return OpAttributes(**json.loads(str(tensors.pop("attributes")))), tensors


@pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("name", CASES)
def test_packers_write_the_same_bytes(name: str, native: bool) -> None:
    attributes, tensors = load(CASES[name])
    index = CASES[name].build(native=native)
    assert index.attributes == attributes
    for tensor in ("codes", "aux", "scale"):
        built = getattr(index, tensor)
        assert built.dtype == tensors[tensor].dtype
        np.testing.assert_array_equal(built, tensors[tensor], err_msg=tensor)


@pytest.mark.parametrize("name", CASES)
def test_readers_read_them(name: str) -> None:
    attributes, tensors = load(CASES[name])
    levels = tensors.pop("levels")
    validate_index(attributes, **tensors, bias=NO_BIAS)
    layer.validate(attributes, **tensors, bias=NO_BIAS)
    np.testing.assert_array_equal(
        decode_index(attributes, tensors["codes"], tensors["aux"]), levels
    )
    # The levels are not trivial: every one of the alphabet occurs.
    assert len(np.unique(levels)) == (3 if attributes.alphabet == "ternary" else 2)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_answers_are_the_same(name: str) -> None:
    with np.load(QUANTIZED[name].path) as file:
        tensors = dict(file)
    attributes = OpAttributes(**json.loads(str(tensors["attributes"])))
    x, y = tensors["x"], tensors["y"]
    constants = [tensors[each] for each in ("codes", "aux", "scale", "bias")]
    np.testing.assert_array_equal(ternary_indexed_matmul(x, *constants, attributes), y)
    answered = 0
    for kernel in kernels.list_kernels()["kernels"]:
        same_format = kernel["index_format"] == attributes.index_format
        if kernel["supported"] and kernel["activation"] == "int8" and same_format:
            found, _ = layer.run(attributes, *constants, x, kernel=kernel["name"])
            np.testing.assert_array_equal(found, y, err_msg=kernel["name"])
            answered += 1
    assert answered >= 2


def test_every_combination_has_a_file_and_every_file_is_read() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(CASES) | set(QUANTIZED)
