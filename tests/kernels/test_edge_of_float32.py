"""Sums at the edge of float32: what the original and the op promise, and where they part.

docs/op_spec.md has the rule. A product whose terms together fit into float32 is finite in both. A
larger one is infinite or NaN in a float32 product, depending on the order in which it adds; the
library adds such rows in float64 and gives the sum rounded once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model, node, ternary

LARGEST = float(np.finfo(np.float32).max)
K, N = 512, 32
Floats = NDArray[np.float32]


class Models:
    """A product as the original, with the library and by the function body."""

    def __init__(self, made: onnx.ModelProto, folder: Path) -> None:
        original, converted = folder / "original.onnx", folder / "converted.onnx"
        onnx.save(made, original)
        options = OptimizeOptions(min_elements=0)
        done = onnx_ternary.convert(original, converted, options, verify_result=False)
        assert done.report.rewrites
        given = ["CPUExecutionProvider"]
        self.original = ort.InferenceSession(str(original), providers=given)
        self.body = ort.InferenceSession(str(converted), providers=given)
        self.library = onnx_ternary.InferenceSession(converted, library="always")

    def run(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        found = [each.run(None, {"x": x})[0] for each in (self.original, self.library, self.body)]
        return found[0], found[1], found[2]


def product(weight: Floats, folder: Path) -> Models:
    return Models(model([matmul()], {"w": weight}, x_shape=("b", weight.shape[0])), folder)


@pytest.mark.parametrize("rows", [1, 3, 8, 16])
@pytest.mark.parametrize("scale", [1.0, 100.0, 0.01])
def test_sums_around_the_largest_float(scale: float, rows: int, tmp_path: Path) -> None:
    weight = ternary(K, N, scale=scale, seed=3)
    models = product(weight, tmp_path)
    rng = np.random.default_rng(rows)
    finite = beyond = 0
    for magnitude in (1e30, 1e31, 1.1e31, 1e33, 1e34, 1e35, 1e36, 1e37, 1e38, 3e38):
        x = (rng.uniform(-1, 1, (rows, K)) * magnitude).astype(np.float32)
        original, library, body = models.run(x)
        wide = x.astype(np.float64), weight.astype(np.float64)
        terms = np.abs(wide[0]) @ np.abs(wide[1])
        with np.errstate(over="ignore"):
            exact = wide[0] @ wide[1]
            rounded = exact.astype(np.float32)
        # Every partial sum, and every sum before the scale, stays below these.
        fits = np.maximum(terms, terms / scale) * (1 + 2 * K * 2.0**-24) < LARGEST
        for found in (original, library, body):
            assert np.isfinite(found[fits]).all()
            assert (np.abs(found - exact)[fits] <= 2 * K * 2.0**-24 * terms[fits]).all()
        assert not np.isnan(library).any()
        edge = np.abs(np.abs(exact) - LARGEST) <= 1e-6 * LARGEST
        assert (np.isfinite(library) == np.isfinite(rounded))[~edge].all()
        infinite = np.isinf(rounded) & ~edge
        np.testing.assert_array_equal(library[infinite], rounded[infinite])
        finite += fits.sum()
        beyond += (~fits).sum()
    assert finite
    assert beyond


@pytest.mark.parametrize("rows", [1, 8])
def test_sum_that_fits_where_its_parts_do_not(rows: int, tmp_path: Path) -> None:
    """The limit: a float32 product gives inf or NaN here, the library the sum."""
    weight = ternary(K, N, levels=(0, 1), scale=1.0)
    weight[:] = 1
    weight[:, ::2] = 0
    x = np.full((rows, K), 3e38, np.float32)
    x[:, K // 2 :] = -3e38
    original, library, body = product(weight, tmp_path).run(x)
    assert not library.any()
    assert not original[:, ::2].any()
    assert not np.isfinite(original[:, 1::2]).any()
    np.testing.assert_array_equal(np.isfinite(body), np.isfinite(original))


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("rows", [1, 8])
def test_infinite_inputs_and_nan_are_those_of_the_original(
    special: float, rows: int, tmp_path: Path
) -> None:
    weight = ternary(K, N, seed=5)
    x = np.random.default_rng(0).standard_normal((rows, K)).astype(np.float32)
    x[:, 7] = special
    original, library, body = product(weight, tmp_path).run(x)
    for found in (library, body):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(original))
        np.testing.assert_array_equal(np.isposinf(found), np.isposinf(original))
        np.testing.assert_array_equal(np.isneginf(found), np.isneginf(original))


def test_round_behind_a_product_may_take_the_other_side_of_a_tie(tmp_path: Path) -> None:
    """The limit: sums that differ in their last bit round to neighbors."""
    weight = ternary(K, N, levels=(1,), scale=1.0)
    nodes = [matmul("x", "w", "sum"), node("Round", ["sum"], "y")]
    made = model(nodes, {"w": weight}, x_shape=("b", K), outputs=("sum", "y"))
    models = Models(made, tmp_path)
    x = np.full((1, K), 2.0**-26, np.float32)
    x[:, 0] = 0.5
    exact = 0.5 + (K - 1) * 2.0**-26
    bound = 2 * K * 2.0**-24 * exact
    for session in (models.original, models.library, models.body):
        total, rounded = session.run(None, {"x": x})
        assert (np.abs(total - exact) <= bound).all()
        np.testing.assert_array_equal(rounded, np.rint(total))
        assert set(rounded.ravel()) <= {0.0, 1.0}
