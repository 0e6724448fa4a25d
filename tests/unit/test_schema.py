from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.schema import OpAttributes

RSR: dict[str, Any] = {
    "index_format": "rsr",
    "storage": "planes",
    "block_size": 0,
    "block_width": 4,
    "algorithm": "rsr",
}
UINT8: dict[str, Any] = {
    "activation": "uint8",
    "activation_rule": "dynamic_quantize_linear",
    "activation_qmax": 255,
}
INT8: dict[str, Any] = {
    "activation": "int8",
    "activation_rule": "absmax_division",
    "activation_epsilon": 1e-5,
    "activation_qmin": -128,
    "activation_qmax": 127,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"storage": "dense", "group_size": 128},
        {"storage": "1bit", "alphabet": "binary_pm", "block_size": 16, "group_size": 48},
        RSR,
        RSR | {"storage": "base3", "block_width": 10, "group_size": 7},
        RSR | {"algorithm": "rsr++", "alphabet": "binary_01", "block_width": 16},
        INT8,
        RSR | INT8 | {"activation_rule": "absmax_reciprocal"},
        UINT8,
        RSR | UINT8,
    ],
)
def test_attributes_allowed(options: dict[str, Any]) -> None:
    attributes = OpAttributes(K=300, N=20, **options)
    assert OpAttributes(**attributes.to_dict()) == attributes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"K": 0}, "attribute K = 0, expected from 1 to 16777215"),
        ({"K": 2**24}, "attribute K = 16777216, expected"),
        ({"N": 2**31}, "attribute N = 2147483648, expected"),
        ({"format_version": 2}, "attribute format_version = 2, expected 1"),
        ({"index_format": "csr"}, "attribute index_format = 'csr', expected packed or rsr"),
        ({"storage": "planes"}, "storage = 'planes', expected 2bit or dense or 1bit"),
        ({"storage": "1bit"}, "alphabet = 'ternary', expected binary_pm or binary_01"),
        ({"block_size": 8}, "block_size = 8, expected 16, 32, 64 or 128"),
        ({"block_width": 4}, "block_width = 4, expected 0 for packed"),
        ({"algorithm": "rsr"}, "algorithm = 'rsr', expected auto for packed"),
        ({"group_size": 64}, "group_size = 64, expected a multiple of block_size 128"),
        ({"group_size": -128}, "group_size = -128, expected from 0"),
        (RSR | {"block_size": 128}, "block_size = 128, expected 0 for rsr"),
        (RSR | {"block_width": 17}, "block_width = 17, expected from 1 to 16"),
        (RSR | {"storage": "base3", "block_width": 11}, "expected from 1 to 10"),
        (RSR | {"storage": "base3", "alphabet": "binary_pm"}, "expected ternary"),
        (RSR | {"algorithm": "auto"}, "algorithm = 'auto', expected rsr or rsr++"),
        ({"activation": "uint4"}, "activation = 'uint4', expected float or int8 or uint8"),
        ({"activation_rule": "absmax_division"}, "expected none for float"),
        ({"activation_qmax": 127}, "activation_qmax = 127, expected 0 for float"),
        (INT8 | {"activation_rule": "none"}, "activation_rule = 'none', expected absmax_division"),
        (INT8 | {"activation_epsilon": 0.0}, "activation_epsilon = 0.0, expected from 1e-30"),
        (INT8 | {"activation_epsilon": 1e-40}, "activation_epsilon = 1e-40, expected from 1e-30"),
        (INT8 | {"activation_epsilon": float("nan")}, "activation_epsilon = nan"),
        (UINT8 | {"group_size": 128}, "group_size = 128, expected 0 for uint8"),
        (UINT8 | {"activation_qmax": 127}, "activation_qmax = 127, expected 255 for uint8"),
        (INT8 | {"activation_rule": "dynamic_quantize_linear"}, "expected absmax_division"),
        (INT8 | {"activation_qmax": 128}, "activation_qmax = 128, expected from 1 to 127"),
        (INT8 | {"activation_qmin": -129}, "activation_qmin = -129, expected from -128 to -1"),
    ],
)
def test_attributes_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IndexFormatError) as error:
        OpAttributes(**{"K": 300, "N": 20} | options)
    assert message in str(error.value)
    assert str(error.value).endswith("convert the model again with 'onnx-ternary optimize'.")


@pytest.mark.parametrize(
    ("K", "group_size", "expected"), [(300, 0, 1), (300, 128, 3), (256, 128, 2), (1, 128, 1)]
)
def test_num_groups(K: int, group_size: int, expected: int) -> None:
    assert OpAttributes(K=K, N=1, group_size=group_size).num_groups == expected


def test_patterns_and_planes() -> None:
    ternary = OpAttributes(K=9, N=9, **RSR)
    assert (ternary.num_planes, ternary.num_patterns) == (2, 16)
    binary = dataclasses.replace(ternary, alphabet="binary_pm")
    assert (binary.num_planes, binary.num_patterns) == (1, 16)
    base3 = dataclasses.replace(ternary, storage="base3")
    assert (base3.num_planes, base3.num_patterns) == (1, 81)


def test_every_attribute_is_documented() -> None:
    spec = (Path(__file__).parents[2] / "docs/op_spec.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(OpAttributes):
        assert f"`{field.name}`" in spec, field.name
