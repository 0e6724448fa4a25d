"""The C++ packers and validator against the numpy ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary import _native
from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import Index, build_index, packed, rsr, validate_index
from onnx_ternary.schema import BLOCK_SIZES, Alphabet, Storage
from onnx_ternary.ternary import TernaryWeight
from tests.support.strategies import (
    LEVELS,
    PACKED_STORAGES,
    RSR_STORAGES,
    column_counts,
    random_generators,
    random_levels,
    row_counts,
    ternary_weights,
)

NO_BIAS = np.zeros((), np.float32)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("storage", "alphabet"), PACKED_STORAGES)
@given(data=st.data(), rng=random_generators())
def test_packed(
    storage: Storage,
    alphabet: Alphabet,
    block_size: int,
    data: st.DataObject,
    rng: np.random.Generator,
) -> None:
    K = data.draw(row_counts(block_size))
    N = data.draw(column_counts() | st.sampled_from([63, 64, 65, 130]))
    levels = random_levels(rng, K, N, alphabet)
    options: dict[str, Any] = {
        "storage": storage,
        "alphabet": alphabet,
        "block_size": block_size,
    }
    codes = packed.pack(levels, **options)
    native = _native.pack(levels, **options)
    assert native.dtype == codes.dtype
    np.testing.assert_array_equal(native, codes)
    np.testing.assert_array_equal(_native.unpack(codes, K, N, **options), levels)


@pytest.mark.parametrize("storage", ["dense", "1bit"])
def test_every_byte_unpacks_alike(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    shape = packed.codes_shape(256, 40, storage=storage, block_size=128)
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    options: dict[str, Any] = {"storage": storage, "alphabet": "binary_01", "block_size": 128}
    np.testing.assert_array_equal(
        _native.unpack(codes, 256, 40, **options), packed.unpack(codes, 256, 40, **options)
    )


@pytest.mark.parametrize("group_size", [0, 1, 7, 64])
@pytest.mark.parametrize(("storage", "alphabet"), RSR_STORAGES)
@given(data=st.data(), rng=random_generators())
def test_rsr(
    storage: Storage,
    alphabet: Alphabet,
    group_size: int,
    data: st.DataObject,
    rng: np.random.Generator,
) -> None:
    K, N = data.draw(row_counts(group_size or 30)), data.draw(column_counts())
    levels = random_levels(rng, K, N, alphabet)
    options: dict[str, Any] = {
        "storage": storage,
        "alphabet": alphabet,
        "block_width": data.draw(st.integers(1, 6)),
        "group_size": group_size,
    }
    for native, expected in zip(
        _native.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        assert native.dtype == expected.dtype
        np.testing.assert_array_equal(native, expected)


@pytest.mark.parametrize(("storage", "block_width"), [("planes", 16), ("base3", 10)])
def test_rsr_of_the_widest_patterns(storage: Storage, block_width: int) -> None:
    levels = random_levels(np.random.default_rng(0), 50, 20, "ternary")
    options: dict[str, Any] = {"storage": storage, "alphabet": "ternary"}
    options |= {"block_width": block_width, "group_size": 0}
    for native, expected in zip(
        _native.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        np.testing.assert_array_equal(native, expected)


@pytest.mark.parametrize("K", [65536, 65537])
def test_rsr_of_many_rows(K: int) -> None:
    levels = random_levels(np.random.default_rng(0), K, 3, "ternary")
    options: dict[str, Any] = {"storage": "planes", "alphabet": "ternary"}
    options |= {"block_width": 2, "group_size": 0}
    for native, expected in zip(
        _native.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        assert native.dtype == expected.dtype
        np.testing.assert_array_equal(native, expected)


def test_levels_of_any_memory_order() -> None:
    levels = np.asfortranarray(random_levels(np.random.default_rng(0), 130, 9, "ternary"))
    options: dict[str, Any] = {"storage": "2bit", "alphabet": "ternary", "block_size": 128}
    np.testing.assert_array_equal(_native.pack(levels, **options), packed.pack(levels, **options))


@pytest.mark.parametrize(("storage", "alphabet"), [*PACKED_STORAGES, *RSR_STORAGES])
def test_level_outside_the_alphabet_is_refused(storage: Storage, alphabet: Alphabet) -> None:
    outside = {-1, 0, 1, 2, -2, 127} - set(LEVELS[alphabet])
    for level in outside:
        levels = np.full((130, 70), LEVELS[alphabet][-1], np.int8)
        levels[129, 69] = level
        with pytest.raises(IndexFormatError, match=rf"levels\[129, 69\] = {level} "):
            if storage in ("planes", "base3"):
                _native.pack_rsr(
                    levels, storage=storage, alphabet=alphabet, block_width=3, group_size=0
                )
            else:
                _native.pack(levels, storage=storage, alphabet=alphabet, block_size=128)


@given(weight=ternary_weights(), index_format=st.sampled_from(["packed", "rsr"]))
def test_build_index_is_the_same(weight: TernaryWeight, index_format: Any) -> None:
    native = build_index(weight, index_format=index_format)
    expected = build_index(weight, index_format=index_format, native=False)
    assert native.attributes == expected.attributes
    for name in ("codes", "aux", "scale"):
        np.testing.assert_array_equal(getattr(native, name), getattr(expected, name))
    _native.validate(native.attributes, native.codes, native.aux, native.scale, NO_BIAS)


# Validators ------------------------------------------------------------------------------------

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


def make(index_format: Any, group_size: int, storage: Any) -> Index:
    levels = random_levels(np.random.default_rng(0), 40, 5, "ternary")
    shape = (-(-40 // group_size), 5) if group_size else (5,)
    weight = TernaryWeight(levels, np.ones(shape, np.float32), group_size, "ternary", 0.0)
    return build_index(
        weight,
        index_format=index_format,
        storage=storage,
        block_width=2 if index_format == "rsr" else None,
        native=False,
    )


def same(tensors: Tensors) -> Tensors:
    return tensors


SHARED: dict[str, Callable[[Tensors], Tensors]] = {
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
PACKED: dict[str, Callable[[Tensors], Tensors]] = {
    "uint16 codes": convert("codes", np.uint16),
    "unused codes": put("codes", 0, 255),
    "aux of two": replace("aux", np.zeros(2, np.uint32)),
    "aux not zero": put("aux", 0, 7),
    "codes of rank 1": replace("codes", np.zeros(8, np.uint8)),
}
RSR: dict[str, Callable[[Tensors], Tensors]] = {
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
        *(("packed", storage, name) for storage in ("2bit", "dense") for name in SHARED | PACKED),
        *(("rsr", storage, name) for storage in ("planes", "base3") for name in SHARED | RSR),
    ],
)
@pytest.mark.parametrize("group_size", [0, 16])
def test_validators_agree(index_format: str, storage: str, change: str, group_size: int) -> None:
    index = make(index_format, group_size, storage)
    changes = SHARED | (PACKED if index_format == "packed" else RSR)
    tensors: Tensors = {
        "codes": index.codes,
        "aux": index.aux,
        "scale": index.scale,
        "bias": NO_BIAS,
    }
    tensors = changes[change](tensors)
    texts = [failure(validate, index, tensors) for validate in (validate_index, _native.validate)]
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
    index = make("packed", 0, None)
    attributes = dataclasses.replace(
        index.attributes,
        activation="int8",
        activation_rule=rule,
        activation_epsilon=1e-5,
        activation_qmin=-128,
        activation_qmax=127,
    )
    _native.validate(attributes, index.codes, index.aux, index.scale, NO_BIAS)
