"""Inputs at the edges of float32 and of every accumulator, through the op's own choice of kernel.

Every instruction set the machine has, both formats, both arithmetics: the same promises everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.native import kernels
from tests.support.kernel_node import BY_NAME, SUPPORTED, Node, check_int8, make_node

Rows = NDArray[np.float32]

ISAS = sorted({kernel["isa"] for kernel in SUPPORTED})
K, N = 641, 37

each_isa = pytest.mark.parametrize("isa", ISAS)
each_format = pytest.mark.parametrize("index_format", ["packed", "rsr"])
each_scale = pytest.mark.parametrize("scale_kind", ["tensor", "column", "group"])


def run(node: Node, x: Rows, isa: str) -> tuple[Rows, list[str]]:
    """The op's answer with one instruction set, and the kernels that gave it."""
    with kernels.forced(isa=isa):
        y, used = node.run(x, None, num_parts=3)
        np.testing.assert_array_equal(y.view(np.uint32), node.run(x, None)[0].view(np.uint32))
    return y, used.split(",")


def check_float(node: Node, x: Rows, isa: str) -> list[str]:
    """Within the bound of the kernels that ran; beyond float32's range, infinite."""
    y, used = run(node, x, isa)
    exact = x.astype(np.float64) @ (node.levels * node.row_scales()) + node.bias
    bound = np.max([node.bound(x, kernel) for kernel in used], axis=0)
    largest = float(np.finfo(np.float32).max)
    inside = np.abs(exact) + bound <= largest
    assert (np.abs(y - exact)[inside] <= bound[inside]).all()
    beyond = np.abs(exact) - bound > largest
    np.testing.assert_array_equal(y[beyond], np.copysign(np.inf, exact[beyond]))
    return used


def normal(rng: np.random.Generator, rows: int) -> Rows:
    return rng.standard_normal((rows, K)).astype(np.float32)


def sparse(rng: np.random.Generator, rows: int) -> Rows:
    x = np.zeros((rows, K), np.float32)
    x[np.arange(rows), rng.integers(K, size=rows)] = 1
    return x


def mixed(rng: np.random.Generator, rows: int) -> Rows:
    """Ordinary rows, rows of zeros, outliers and denormals side by side."""
    x = normal(rng, rows)
    x[0::4] = 0
    x[1::4, 7] = 1e6
    x[2::4] *= np.float32(1e-42)
    return x


ACTIVATIONS: dict[str, Callable[[np.random.Generator, int], Rows]] = {
    "denormal": lambda rng, rows: normal(rng, rows) * np.float32(1e-42),
    "smallest": lambda _, rows: np.full((rows, K), 2.0**-149, np.float32),
    "tiny": lambda rng, rows: normal(rng, rows) * np.float32(1e-30),
    "huge": lambda rng, rows: normal(rng, rows) * np.float32(1e30),
    "largest": lambda _, rows: np.full((rows, K), np.finfo(np.float32).max, np.float32),
    "zero": lambda _, rows: np.zeros((rows, K), np.float32),
    "negative zero": lambda _, rows: np.full((rows, K), -0.0, np.float32),
    "one nonzero": sparse,
    "mixed": mixed,
}


@each_isa
@each_format
@each_scale
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_float_any_activations(
    isa: str, index_format: str, scale_kind: str, kind: str, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    node = make_node(rng, index_format, "float", K, N, scale_kind=scale_kind)
    check_float(node, ACTIVATIONS[kind](rng, rows), isa)


@each_isa
@each_format
@each_scale
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_int8_any_activations(
    isa: str, index_format: str, scale_kind: str, kind: str, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    node = make_node(rng, index_format, "int8", K, N, scale_kind=scale_kind)
    x = ACTIVATIONS[kind](rng, rows)
    y, _ = run(node, x, isa)
    check_int8(node, x, y)


@each_isa
@each_format
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e37])
def test_float_any_scale(isa: str, index_format: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    node = make_node(rng, index_format, "float", K, N, scale_kind="column", with_bias=False)
    node.scale[...] = scale
    check_float(node, normal(rng, 9), isa)


@each_isa
@each_format
def test_sums_beyond_float32_before_the_scale(isa: str, index_format: str) -> None:
    levels = np.ones((K, N), np.int8)
    node = make_node(np.random.default_rng(0), index_format, "float", K, N, levels=levels)
    node.scale[...] = 1e-3
    x = np.full((5, K), 3e37, np.float32)
    y, _ = run(node, x, isa)
    assert np.isfinite(y).all()
    check_float(node, x, isa)


@each_isa
@each_format
@pytest.mark.parametrize("crest", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_columns_that_avoid_an_outlier_do_not_pay_for_it(
    isa: str, index_format: str, crest: float, rows: int
) -> None:
    """No kernel whose error depends on the row's largest value serves such rows."""
    rng = np.random.default_rng(1)
    levels = rng.choice(np.array((-1, 0, 1), np.int8), (K, N))
    levels[5, ::2] = 0
    node = make_node(rng, index_format, "float", K, N, levels=levels)
    x = normal(rng, rows)
    x[:, 5] = crest * np.abs(x).mean() * K
    used = check_float(node, x, isa)
    if index_format == "packed":
        assert not any(BY_NAME[kernel]["fixed_point"] for kernel in used)


@each_isa
@pytest.mark.parametrize("num_inputs", [16, 32, 64, 128, 129, 256, 641, 1024])
@pytest.mark.parametrize("num_outliers", [1, 2, 5])
def test_columns_without_outliers_are_as_accurate_as_a_float32_product(
    isa: str, num_inputs: int, num_outliers: int
) -> None:
    """Relative to |x| @ |w| of the column alone, docs/op_spec.md, also where K is small."""
    rng = np.random.default_rng(4)
    levels = rng.choice(np.array((-1, 1), np.int8), (num_inputs, N))
    levels[:num_outliers, ::2] = 0
    node = make_node(rng, "packed", "float", num_inputs, N, levels=levels)
    node = replace(node, bias=np.zeros_like(node.bias))
    weight = node.levels * node.row_scales()
    unit = 2.0**-24
    for outlier in (1e2, 1e3, 1e5, 1e8):
        for rows in (1, 2, 3, 9):
            x = rng.standard_normal((rows, num_inputs)).astype(np.float32)
            x[:, :num_outliers] = outlier
            error = np.abs(run(node, x, isa)[0] - x.astype(np.float64) @ weight)
            terms = np.abs(x).astype(np.float64) @ np.abs(weight)
            roundings = num_inputs + 33 + max(260, 1.01 * num_inputs)
            assert (error <= roundings * unit * terms)[:, ::2].all()


@each_isa
@each_format
@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize(
    ("rows", "num_inputs", "num_columns"),
    [(0, 641, 37), (1, 1, 1), (9, 1, 1), (3, 65537, 5), (100_000, 16, 3)],
)
def test_any_size(
    isa: str, index_format: str, activation: str, rows: int, num_inputs: int, num_columns: int
) -> None:
    rng = np.random.default_rng(2)
    node = make_node(rng, index_format, activation, num_inputs, num_columns)
    if num_inputs > 65536 and index_format == "rsr":
        assert node.codes.dtype == np.uint32
    x = rng.standard_normal((rows, num_inputs)).astype(np.float32)
    if rows == 0:
        assert node.run(x, None)[0].shape == (0, num_columns)
    elif activation == "int8":
        check_int8(node, x, run(node, x, isa)[0])
    else:
        check_float(node, x, isa)


@each_isa
@each_format
def test_epsilon_decides_for_small_rows(isa: str, index_format: str) -> None:
    rng = np.random.default_rng(3)
    node = make_node(rng, index_format, "int8", K, N)
    node = replace(node, attributes=replace(node.attributes, activation_epsilon=1.0))
    x = np.concatenate([normal(rng, 2) * np.float32(1e-2), np.zeros((1, K), np.float32)])
    y: Any = run(node, x, isa)[0]
    check_int8(node, x, y)
    np.testing.assert_array_equal(y[2], node.bias)
