"""Nodes without a session: what they compute, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError, LibraryError
from onnx_ternary.native import layer as native_layer
from onnx_ternary.native import packers
from onnx_ternary.schema import MAX_K, MAX_N, ActivationRule, IndexFormat, OpAttributes
from tests.support.native_node import SCALAR_KERNELS, VARIANTS, run
from tests.support.single_node import Node, int8, label, make_node


def quantize(x: NDArray[np.float32], attributes: OpAttributes) -> tuple[Any, Any]:
    absmax = np.maximum(np.abs(x).max(axis=1), np.float32(attributes.activation_epsilon))
    qmax = np.float32(attributes.activation_qmax)
    s = (
        qmax / absmax
        if attributes.activation_rule == "absmax_division"
        else (np.float32(1) / absmax) * qmax
    )
    q = np.clip(np.rint(x * s[:, None]), attributes.activation_qmin, attributes.activation_qmax)
    return q.astype(np.int64), s


def int8_product(node: Node, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The int8 rule of docs/op_spec.md, every float32 operation in its order."""
    q, s = quantize(x, node.attributes)
    group_rows = node.attributes.group_size or node.attributes.K
    scales = node.scale if node.attributes.group_size else [node.scale]
    y = np.zeros((x.shape[0], node.attributes.N), np.float32)
    for group, scale in enumerate(scales):
        rows = slice(group * group_rows, (group + 1) * group_rows)
        sums = (q[:, rows] @ node.levels[rows].astype(np.int64)).astype(np.float32)
        y = y + sums / s[:, None] * scale
    return y + node.bias


LONGEST = 2**63 - 1


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
@pytest.mark.parametrize("per_column", [False, True])
def test_float_kernels_are_within_the_bound(
    rng: np.random.Generator, attributes: OpAttributes, per_column: bool
) -> None:
    node = make_node(rng, attributes, per_column=per_column)
    x = rng.standard_normal((9, attributes.K)).astype(np.float32)
    names = [
        name
        for name in SCALAR_KERNELS
        if name.startswith(attributes.index_format) and "float" in name
    ]
    assert names
    for name in [None, *names]:
        y, used = run(node, x, kernel=name)
        assert name is None or used == name
        assert np.all(np.abs(y - node.expected(x)) <= node.tolerance(x)), used


@pytest.mark.parametrize("rule", ["absmax_division", "absmax_reciprocal"])
@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_int8_kernels_follow_the_rule_exactly(
    rng: np.random.Generator, attributes: OpAttributes, rule: ActivationRule
) -> None:
    node = make_node(rng, int8(attributes, rule), per_column=True)
    x = rng.standard_normal((9, attributes.K)).astype(np.float32)
    x[3] = 0.0
    x[4] *= 1e-7
    x[5, 0] = -1e30
    # Halves: x * s is exactly k + 0.5 here, which must go to the even neighbor.
    x[6] = np.resize(np.arange(-126, 127, 2) / 2, attributes.K)
    x[6, :2] = 127.0
    expected = int8_product(node, x)
    for name in SCALAR_KERNELS:
        if name.startswith(attributes.index_format) and "int8" in name:
            np.testing.assert_array_equal(run(node, x, kernel=name)[0], expected, err_msg=name)


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_int8_row_with_nan_or_inf_is_nan(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    node = make_node(rng, int8(attributes))
    x = rng.standard_normal((4, attributes.K)).astype(np.float32)
    x[1, 5] = np.inf
    x[2, 6] = np.nan
    y, _ = run(node, x)
    assert np.isnan(y[[1, 2]]).all()
    assert np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_float_rows_beyond_float32_sums_follow_ieee(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    node = make_node(rng, attributes, per_column=True)
    x = rng.standard_normal((12, attributes.K)).astype(np.float32)
    x[1, 5] = np.inf
    x[4, 6] = np.nan
    x[7, :9] = 3e37
    x[8, 3] = -np.inf
    x[8, 4] = np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        # One product at a time: matrix libraries may leave zeros out.
        products = x.astype(np.float64)[:, :, None] * node.weight[None]
        expected = (products.sum(axis=1) + node.bias).astype(np.float32)
    y, used = run(node, x)
    assert f"{attributes.index_format}_reference_float_scalar" in used
    rows = [1, 4, 7, 8]
    np.testing.assert_allclose(y[rows], expected[rows], rtol=1e-6)
    ordinary = [0, 2, 3, 5, 6, 9, 10, 11]
    within = np.abs(y - node.expected(np.where(np.isfinite(x), x, 0))) <= node.tolerance(
        np.where(np.isfinite(x), x, 0)
    )
    assert within[ordinary].all()


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
@pytest.mark.parametrize("activation", ["float", "int8"])
def test_parts_do_not_change_bits(
    rng: np.random.Generator, attributes: OpAttributes, activation: str
) -> None:
    attributes = replace(attributes, N=37)
    if activation == "int8":
        attributes = int8(attributes)
    node = make_node(rng, attributes)
    x = rng.standard_normal((11, attributes.K)).astype(np.float32)
    for kernel in [None, *SCALAR_KERNELS]:
        if kernel and not (kernel.startswith(attributes.index_format) and activation in kernel):
            continue
        whole, _ = run(node, x, kernel=kernel)
        for num_parts in (2, 3, 9, 1000):
            parts, _ = run(node, x, kernel=kernel, num_parts=num_parts)
            np.testing.assert_array_equal(parts, whole, err_msg=f"{kernel}, {num_parts} parts")


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_rows_with_extreme_crest_factor_are_within_the_bound_of_a_dot_product(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    attributes = replace(attributes, K=1000)
    if attributes.index_format == "rsr":
        attributes = replace(attributes, block_width=min(2, attributes.block_width))
    node = make_node(rng, attributes)
    x = (rng.standard_normal((5, 1000)) * 1e-6).astype(np.float32)
    x[:, 17] = 1.0
    for rows in (1, 2, 5):
        y, _ = run(node, x[:rows])
        unit = 2.0**-24
        bound = 1010 * unit * (np.abs(x[:rows]).astype(np.float64) @ np.abs(node.weight)) + 1e-37
        # Columns without the large input show whether it blurred the small ones.
        assert np.all(np.abs(y - node.expected(x[:rows])) <= bound)


def test_more_parts_than_columns(rng: np.random.Generator) -> None:
    node = make_node(rng, OpAttributes(K=100, N=9))
    x = rng.standard_normal((2, 100)).astype(np.float32)
    np.testing.assert_array_equal(run(node, x, num_parts=LONGEST)[0], run(node, x)[0])


def test_zero_rows() -> None:
    node = make_node(np.random.default_rng(1), VARIANTS[0])
    y, used = run(node, np.zeros((0, node.attributes.K), np.float32))
    assert y.shape == (0, node.attributes.N)
    assert used == ""


def test_every_two_bit_code_is_safe(rng: np.random.Generator) -> None:
    node = make_node(rng, OpAttributes(K=100, N=13))
    node = replace(node, codes=rng.integers(0, 256, node.codes.shape).astype(np.uint8))
    x = rng.standard_normal((9, 100)).astype(np.float32)
    for rows in (1, 4, 9):
        assert run(node, x[:rows])[0].shape == (rows, 13)


@pytest.mark.parametrize("attributes", [VARIANTS[0], VARIANTS[3], VARIANTS[8]], ids=label)
def test_misaligned_tensors_are_read(rng: np.random.Generator, attributes: OpAttributes) -> None:
    def misalign(tensor: NDArray[Any]) -> Any:
        raw = np.zeros(tensor.nbytes + 1, np.uint8)
        moved = raw[1:].view()
        moved[:] = np.frombuffer(tensor.tobytes(), np.uint8)
        return np.ndarray(tensor.shape, tensor.dtype, buffer=raw.data, offset=1)

    node = make_node(rng, attributes, per_column=True)
    moved = replace(
        node,
        codes=misalign(node.codes),
        aux=misalign(node.aux),
        scale=misalign(node.scale),
        bias=misalign(node.bias),
    )
    assert moved.codes.ctypes.data % 2 == 1
    x = rng.standard_normal((3, attributes.K)).astype(np.float32)
    np.testing.assert_array_equal(run(moved, x)[0], run(node, x)[0])


@pytest.mark.parametrize("attributes", [*VARIANTS, *map(int8, VARIANTS)], ids=label)
def test_validate_accepts_what_the_format_allows(attributes: OpAttributes) -> None:
    for per_column in (False, True):
        node = make_node(np.random.default_rng(3), attributes, per_column=per_column)
        native_layer.validate(node.attributes, *node.tensors)


def changed(tensor: NDArray[Any], position: tuple[int, ...], value: float) -> NDArray[Any]:
    copy = tensor.copy()
    copy[position] = value
    return copy


RSR = OpAttributes(
    K=10, N=5, index_format="rsr", storage="planes", block_size=0, block_width=2,
    algorithm="rsr", group_size=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "position", "value", "message"),
    [
        ("codes", (0, 1, 2), 9, r"permutation\[0, 1, 2\] = 9, expected each row from 0 to 3 once"),
        ("codes", (1, 2, 9), 65535, r"permutation\[1, 2, 9\] = 65535, expected .* 8 to 9 once"),
        ("aux", (0, 0, 0, 0), 1, r"segment_offsets\[0, 0, 0, 0\] = 1, expected 0;"),
        ("aux", (1, 2, 2, 4), 11, r"segment_offsets\[1, 2, 2, 4\] = 11, expected 10;"),
        ("aux", (1, 2, 2, 4), 9, r"segment_offsets\[1, 2, 2, 4\] = 9, expected 10;"),
        ("aux", (0, 0, 1, 2), 2**32 - 1, r"= 4294967295, expected from \d to 8;"),
        ("aux", (0, 0, 1, 1), 3, r"segment_offsets\[0, 0, 1, 1\] = 3, expected from 4 to 8;"),
        ("scale", (2, 4), np.nan, r"scale\[2, 4\] = nan, expected a finite number of at least 0"),
        ("scale", (0, 0), -1.0, r"scale\[0, 0\] = -1, expected"),
        ("scale", (0, 1), np.inf, r"scale\[0, 1\] = inf, expected"),
    ],
)
def test_validate_corrupted_rsr_index_names_the_place(
    rng: np.random.Generator, tensor: str, position: tuple[int, ...], value: float, message: str
) -> None:
    node = make_node(rng, RSR)
    tensors: dict[str, Any] = {tensor: changed(getattr(node, tensor), position, value)}
    broken = replace(node, **tensors)
    with pytest.raises(IndexFormatError, match=message) as caught:
        native_layer.validate(broken.attributes, *broken.tensors)
    assert str(caught.value).startswith("TernaryIndexedMatMul: ")
    assert str(caught.value).endswith("; convert the model again with 'onnx-ternary optimize'.")


def test_validate_repeated_row_is_refused(rng: np.random.Generator) -> None:
    node = make_node(rng, RSR)
    codes = node.codes.copy()
    codes[0, 0, 5] = codes[0, 0, 4]
    with pytest.raises(IndexFormatError, match=r"permutation\[0, 0, 5\]"):
        native_layer.validate(node.attributes, codes, node.aux, node.scale, node.bias)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("codes", np.zeros((1, 1, 4, 31), np.uint8), r"\(1, 1, 4, 31\), expected \(1, 1, 4, 32\)"),
        ("codes", np.zeros(128, np.uint8), r"codes shape = \(128,\), expected"),
        ("codes", np.zeros((1, 1, 4, 32), np.uint16), "codes dtype = uint16, expected uint8"),
        ("aux", np.zeros((), np.uint32), r"aux shape = \(\), expected \(1,\)"),
        ("aux", np.zeros(1, np.int32), "aux dtype = int32"),
        ("scale", np.zeros(4, np.float32), r"scale shape = \(4,\), expected \(\) or \(3,\)"),
        ("scale", np.zeros((1, 3), np.float32), r"scale shape = \(1, 3\), expected"),
        ("scale", np.float32(np.nan).reshape(()), "scale = nan, expected a finite"),
        ("bias", np.zeros(1, np.float32), r"bias shape = \(1,\), expected \(\) or \(3,\)"),
        ("bias", np.ones((), np.float32), "bias = 1, expected 0"),
    ],
)  # fmt: skip
def test_validate_wrong_tensor_is_refused(
    rng: np.random.Generator, tensor: str, value: NDArray[Any], message: str
) -> None:
    tensors: dict[str, Any] = {tensor: value}
    node = replace(make_node(rng, OpAttributes(K=100, N=3)), **tensors)
    with pytest.raises(IndexFormatError, match=message):
        native_layer.validate(node.attributes, *node.tensors)


@pytest.mark.parametrize("index_format", ["packed", "rsr"])
def test_validate_largest_sizes_do_not_overflow(index_format: IndexFormat) -> None:
    is_rsr = index_format == "rsr"
    attributes = OpAttributes(
        K=MAX_K,
        N=MAX_N,
        index_format=index_format,
        storage="planes" if is_rsr else "dense",
        block_size=0 if is_rsr else 16,
        block_width=16 if is_rsr else 0,
        algorithm="rsr++" if is_rsr else "auto",
        group_size=1 if is_rsr else 16,
    )
    codes = np.zeros(2, np.uint32 if is_rsr else np.uint8)
    expected = "(2, 134217728, 16777215)" if is_rsr else "(536870912, 1048576, 4, 4)"
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    with pytest.raises(IndexFormatError, match=re.escape(f"expected {expected};")):
        native_layer.validate(attributes, codes, np.zeros(1, np.uint32), one, zero)


@pytest.mark.parametrize("attributes", [a for a in VARIANTS if a.index_format == "rsr"], ids=label)
def test_random_corruption_is_refused_or_harmless(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    node = make_node(rng, attributes)
    x = rng.standard_normal((3, attributes.K)).astype(np.float32)
    refused = 0
    for _ in range(200):
        tensors: dict[str, Any] = {}
        name = str(rng.choice(["codes", "aux"]))
        tensor = getattr(node, name).copy()
        flat = tensor.reshape(-1)
        flat[rng.integers(flat.size)] = rng.choice([0, 1, attributes.K, rng.integers(65536)])
        tensors[name] = tensor
        broken = replace(node, **tensors)
        try:
            y, _ = run(broken, x)
        except IndexFormatError:
            refused += 1
        else:
            assert np.isfinite(y).all()
    assert refused > 50


def test_validate_long_matrix_needs_uint32() -> None:
    attributes = replace(RSR, K=65537, N=1, group_size=0, block_width=1, alphabet="binary_01")
    permutation, offsets = packers.pack_rsr(
        np.ones((65537, 1), np.int8),
        storage="planes",
        alphabet="binary_01",
        block_width=1,
        group_size=0,
    )
    scale, bias = np.ones((), np.float32), np.zeros((), np.float32)
    native_layer.validate(attributes, permutation, offsets, scale, bias)
    with pytest.raises(IndexFormatError, match="codes dtype = uint16, expected uint32"):
        native_layer.validate(attributes, permutation.astype(np.uint16), offsets, scale, bias)


def test_layer_runs_as_run_does_and_into_out(rng: np.random.Generator) -> None:
    for attributes in (VARIANTS[0], VARIANTS[-1]):
        node = make_node(rng, attributes)
        x = rng.normal(size=(3, attributes.K)).astype(np.float32)
        expected, used = native_layer.run(
            node.attributes, node.codes, node.aux, node.scale, node.bias, x
        )
        layer = native_layer.Layer(node.attributes, node.codes, node.aux, node.scale, node.bias)
        out = np.full_like(expected, np.nan)
        for _ in range(2):
            y, ran = layer.run(x, out=out)
            assert y is out
            assert ran == used
            np.testing.assert_array_equal(y, expected)
        for wrong in (out[:2], out.astype(np.float64), out[:, ::2]):
            with pytest.raises(IndexFormatError, match="out has shape"):
                layer.run(x, out=wrong)
        with pytest.raises(IndexFormatError, match="x has shape"):
            layer.run(x[:, :-1])
        with pytest.raises(LibraryError, match="does not exist"):
            layer.run(x, kernel="nope")


def test_layer_refuses_an_invalid_node(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[0])
    with pytest.raises(IndexFormatError, match="codes"):
        native_layer.Layer(node.attributes, node.codes[:-1], node.aux, node.scale, node.bias)
