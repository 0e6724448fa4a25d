"""Indices that are refused, by the numpy validator and by the C++ one alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import Index, build_index, decode_index, validate_index
from onnx_ternary.native import layer
from tests.support.indices import index_of, rsr_index, simple_weight

NO_BIAS = np.zeros((), np.float32)


@pytest.fixture
def index() -> Index:
    return build_index(simple_weight(130, 5, 0), native=False)


def refused(index: Index, **changes: Any) -> str:
    inputs = {"codes": index.codes, "aux": index.aux, "scale": index.scale, "bias": NO_BIAS}
    with pytest.raises(IndexFormatError) as error:
        validate_index(index.attributes, **(inputs | changes), node="/mlp/up_proj")
    text = str(error.value)
    assert text.startswith("TernaryIndexedMatMul '/mlp/up_proj': ")
    assert text.endswith("; convert the model again with 'onnx-ternary optimize'.")
    return text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"codes": np.zeros((2, 2, 4, 31), np.uint8)},
            "codes shape = (2, 2, 4, 31), expected (2, 2, 4, 32)",
        ),
        ({"codes": np.zeros((2, 2, 4, 32), np.int8)}, "codes dtype = int8, expected uint8"),
        ({"aux": np.zeros(2, np.uint32)}, "aux shape = (2,), expected (1,)"),
        ({"aux": np.zeros(1, np.int32)}, "aux dtype = int32, expected uint32"),
        ({"scale": np.ones(4, np.float32)}, "scale shape = (4,), expected () or (5,)"),
        ({"scale": np.ones((1, 5), np.float32)}, "scale shape = (1, 5), expected () or (5,)"),
        ({"scale": np.ones(5)}, "scale dtype = float64, expected float32"),
        (
            {"scale": np.array([1, 1, np.nan, 1, 1], np.float32)},
            "scale[2] = nan, expected a finite number of at least 0",
        ),
        ({"scale": np.array(-0.5, np.float32)}, "scale = -0.5, expected a finite number of"),
        ({"scale": np.array(np.inf, np.float32)}, "scale = inf, expected a finite number of"),
        ({"bias": np.ones((), np.float32)}, "bias = 1, expected 0, or one value per column"),
        ({"bias": np.ones(1, np.float32)}, "bias shape = (1,), expected () or (5,)"),
        ({"bias": np.ones(5, np.float16)}, "bias dtype = float16, expected float32"),
    ],
)
def test_corrupted_index_is_refused(index: Index, changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(index, **changes)


def test_group_scale_of_another_shape_is_refused() -> None:
    index = build_index(simple_weight(130, 5, 128), native=False)
    validate_index(index.attributes, index.codes, index.aux, index.scale, NO_BIAS)
    text = refused(index, scale=np.ones(5, np.float32))
    assert "scale shape = (5,), expected (2, 5)" in text


def rsr_refused(index: Index, **changes: Any) -> str:
    inputs = {"codes": index.codes, "aux": index.aux, "scale": index.scale, "bias": NO_BIAS}
    with pytest.raises(IndexFormatError) as error:
        validate_index(index.attributes, **(inputs | changes), node="/mlp/up_proj")
    return str(error.value)


@pytest.mark.parametrize(
    ("tensor", "position", "value", "expected"),
    [
        ("codes", (1, 2, 7), 40, "permutation[1, 2, 7] = 40, expected each row from 0 to 39 once"),
        ("codes", (0, 0, 0), 65535, "permutation[0, 0, 0] = 65535, expected each row from 0 to"),
        ("aux", (1, 0, 0, 0), 1, "segment_offsets[1, 0, 0, 0] = 1, expected 0"),
        ("aux", (0, 2, 0, 4), 39, "segment_offsets[0, 2, 0, 4] = 39, expected 40"),
        ("aux", (0, 1, 0, 2), 70000, "segment_offsets[0, 1, 0, 2] = 70000, expected from"),
        ("aux", (0, 1, 0, 4), 2**32 - 1, "= 4294967295, expected 40"),
    ],
)
def test_corrupted_element_is_refused(
    tensor: str, position: tuple[int, ...], value: int, expected: str
) -> None:
    index = rsr_index()
    changed = getattr(index, tensor).copy()
    changed[position] = value
    text = rsr_refused(index, **{tensor: changed})
    assert expected in text
    assert text.startswith("TernaryIndexedMatMul '/mlp/up_proj': ")


def test_repeated_row_is_refused() -> None:
    index = rsr_index()
    codes = index.codes.copy()
    codes[0, 1, 30] = codes[0, 1, 4]
    expected = f"permutation[0, 1, 30] = {codes[0, 1, 4]}, expected each row from 0 to 39 once"
    assert expected in rsr_refused(index, codes=codes)


def test_decreasing_offsets_are_refused() -> None:
    index = rsr_index()
    aux = index.aux.copy()
    aux[0, 0, 0, 1] = 30
    aux[0, 0, 0, 2] = 29
    expected = "segment_offsets[0, 0, 0, 2] = 29, expected from 30 to 40"
    assert expected in rsr_refused(index, aux=aux)


def test_row_of_another_group_is_refused() -> None:
    index = rsr_index(16)
    codes = index.codes.copy()
    codes[0, 0, [3, 20]] = codes[0, 0, [20, 3]]
    assert "expected each row from 0 to 15 once" in rsr_refused(index, codes=codes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"codes": np.zeros((2, 3, 40), np.int64)}, "codes dtype = int64, expected uint16 or"),
        ({"codes": np.zeros((1, 3, 40), np.uint16)}, "codes shape = (1, 3, 40), expected (2, 3,"),
        ({"aux": np.zeros(1, np.uint32)}, "aux shape = (1,), expected (2, 3, 1, 5)"),
    ],
)
def test_tensor_of_another_form_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in rsr_refused(rsr_index(), **changes)


def test_uint32_permutation_is_allowed() -> None:
    index = rsr_index()
    wide = index.codes.astype(np.uint32)
    validate_index(index.attributes, wide, index.aux, index.scale, NO_BIAS)
    np.testing.assert_array_equal(
        decode_index(index.attributes, wide, index.aux),
        decode_index(index.attributes, index.codes, index.aux),
    )


Tensors = dict[str, NDArray[Any]]


def put(name: str, position: Any, value: Any) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        changed = tensors[name].copy()
        changed[position] = value
        return tensors | {name: changed}

    return change


def replace(name: str, tensor: NDArray[Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensor}


def convert(name: str, dtype: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name].astype(dtype)}


def cut(name: str, axis: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: np.delete(tensors[name], -1, axis)}


def swap_rows(tensors: Tensors) -> Tensors:
    codes = tensors["codes"].copy()
    codes[0, 0, [3, 20]] = codes[0, 0, [20, 3]]
    return tensors | {"codes": codes}


def repeat_row(tensors: Tensors) -> Tensors:
    codes = tensors["codes"].copy()
    codes[-1, 1, 9] = codes[-1, 1, 4]
    return tensors | {"codes": codes}


def lower_offset(tensors: Tensors) -> Tensors:
    aux = tensors["aux"].copy()
    aux[0, 0, 0, 1:3] = 12, 11
    return tensors | {"aux": aux}


def same(tensors: Tensors) -> Tensors:
    return tensors


CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "nothing": same,
    "bias": replace("bias", np.ones(5, np.float32)),
    "bias of another length": replace("bias", np.ones(4, np.float32)),
    "bias of one": replace("bias", np.ones(1, np.float32)),
    "bias of rank 2": replace("bias", np.ones((1, 5), np.float32)),
    "scalar bias": replace("bias", np.array(1, np.float32)),
    "NaN scalar bias": replace("bias", np.array(np.nan, np.float32)),
    "NaN bias": replace("bias", np.full(5, np.nan, np.float32)),
    "scale of one": replace("scale", np.ones(1, np.float32)),
    "scale per tensor": replace("scale", np.array(2, np.float32)),
    "scale of rank 2": replace("scale", np.ones((1, 5), np.float32)),
    "NaN scale": put("scale", -1, np.nan),
    "infinite scale": put("scale", -1, np.inf),
    "negative scale": put("scale", 0, -1),
    "scale of zero": put("scale", 0, 0),
    "denormal scale": put("scale", 0, 1e-40),
    "fewer codes": cut("codes", 0),
    "shorter codes": cut("codes", 2),
    "aux of rank 2": replace("aux", np.zeros((1, 1), np.uint32)),
    "empty aux": replace("aux", np.zeros(0, np.uint32)),
}
PACKED_CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "uint16 codes": convert("codes", np.uint16),
    "unused codes": put("codes", 0, 255),
    "aux of two": replace("aux", np.zeros(2, np.uint32)),
    "aux not zero": put("aux", 0, 7),
    "codes of rank 1": replace("codes", np.zeros(8, np.uint8)),
}
RSR_CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "uint32 permutation": convert("codes", np.uint32),
    "uint8 permutation": convert("codes", np.uint8),
    "row past K": put("codes", (-1, 2, 7), 40),
    "largest row": put("codes", (0, 0, 0), 65535),
    "repeated row": repeat_row,
    "swapped rows": swap_rows,
    "first offset": put("aux", (-1, 0, 0, 0), 1),
    "last offset": put("aux", (0, 2, 0, -1), 3),
    "offset past K": put("aux", (0, 1, 0, 2), 70000),
    "largest offset": put("aux", (0, 1, 0, -2), 2**32 - 1),
    "largest last offset": put("aux", (0, 1, 0, -1), 2**32 - 1),
    "decreasing offsets": lower_offset,
    "fewer offsets": cut("aux", -1),
}


@pytest.mark.parametrize(
    ("index_format", "storage", "change"),
    [
        *(
            ("packed", storage, name)
            for storage in ("2bit", "dense")
            for name in CHANGES | PACKED_CHANGES
        ),
        *(
            ("rsr", storage, name)
            for storage in ("planes", "base3")
            for name in CHANGES | RSR_CHANGES
        ),
    ],
)
@pytest.mark.parametrize("group_size", [0, 16])
def test_validators_agree(index_format: str, storage: str, change: str, group_size: int) -> None:
    index = index_of(index_format, group_size, storage)
    changes = CHANGES | (PACKED_CHANGES if index_format == "packed" else RSR_CHANGES)
    tensors: Tensors = {
        "codes": index.codes,
        "aux": index.aux,
        "scale": index.scale,
        "bias": NO_BIAS,
    }
    tensors = changes[change](tensors)
    texts = [failure(validate, index, tensors) for validate in (validate_index, layer.validate)]
    assert (texts[0] is None) == (texts[1] is None), texts
    expected_to_pass = {
        "nothing",
        "bias",
        "NaN bias",
        "scale of zero",
        "denormal scale",
        "unused codes",
        "aux not zero",
        "uint32 permutation",
    }
    if group_size == 0:
        expected_to_pass |= {"scale per tensor", "swapped rows"}
    assert (texts[0] is None) == (change in expected_to_pass), texts
    if texts[0] is not None and texts[1] is not None:
        place = [text.split(" = ")[0] for text in texts]
        assert place[0] == place[1]


def failure(validate: Any, index: Index, tensors: Tensors) -> str | None:
    try:
        validate(index.attributes, **tensors)
    except IndexFormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("rule", ["absmax_division", "absmax_reciprocal"])
def test_int8_attributes_are_accepted(rule: Any) -> None:
    index = index_of("packed", 0, None)
    attributes = dataclasses.replace(
        index.attributes,
        activation="int8",
        activation_rule=rule,
        activation_epsilon=1e-5,
        activation_qmin=-128,
        activation_qmax=127,
    )
    layer.validate(attributes, index.codes, index.aux, index.scale, NO_BIAS)
