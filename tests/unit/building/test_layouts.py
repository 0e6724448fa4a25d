"""Levels and scales of every layout, against what the checkpoint was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from onnx_ternary.building.checkpoint import Checkpoint
from onnx_ternary.building.config import Quantization
from onnx_ternary.building.layouts import FloatMatrix, read_matrix, unpack_levels
from onnx_ternary.errors import ModelError
from onnx_ternary.index.levels import TernaryWeight
from tests.support.checkpoints import BFLOAT16, pack_levels

RNG = np.random.default_rng(5)
LEVELS = RNG.integers(-1, 2, (32, 256)).astype(np.int8)
BITLINEAR = Quantization("bitlinear", "offline", ("lm_head",))
AUTOBITLINEAR = Quantization("autobitlinear", "offline", ("lm_head",))
ONLINE = Quantization("autobitlinear", "online", ("lm_head",))


def read(
    folder: Path, quantization: Quantization | None, **tensors: NDArray[Any]
) -> TernaryWeight | FloatMatrix:
    save_file({f"a.{name}": each for name, each in tensors.items()}, folder / "model.safetensors")
    return read_matrix(Checkpoint(folder), "a.weight", quantization)


def test_packing_is_undone() -> None:
    np.testing.assert_array_equal(unpack_levels(pack_levels(LEVELS)), LEVELS.T)


def test_packed_bytes_have_the_layout_of_transformers() -> None:
    # The example in the documentation of transformers' unpack_weights.
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    expected = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
    np.testing.assert_array_equal(unpack_levels(packed).T, expected)


@pytest.mark.parametrize(("quantization", "scale"), [(BITLINEAR, 1 / 0.75), (AUTOBITLINEAR, 0.75)])
def test_bitlinear_divides_by_the_scale_and_autobitlinear_multiplies(
    tmp_path: Path, quantization: Quantization, scale: float
) -> None:
    stored = np.array([0.75], BFLOAT16)
    found = read(tmp_path, quantization, weight=pack_levels(LEVELS), weight_scale=stored)
    assert isinstance(found, TernaryWeight)
    np.testing.assert_array_equal(found.levels, LEVELS.T)
    assert found.scale == np.float32(scale)


def test_packed_scales_per_column(tmp_path: Path) -> None:
    stored = RNG.uniform(0.5, 2, 32).astype(np.float32)
    found = read(tmp_path, AUTOBITLINEAR, weight=pack_levels(LEVELS), weight_scale=stored)
    assert isinstance(found, TernaryWeight)
    np.testing.assert_array_equal(found.scale, stored)


def test_masters_are_rounded_by_their_mean(tmp_path: Path) -> None:
    masters = RNG.standard_normal((32, 256)).astype(BFLOAT16)
    found = read(tmp_path, ONLINE, weight=masters)
    assert isinstance(found, TernaryWeight)
    mean = np.abs(masters.astype(np.float64)).mean()
    np.testing.assert_allclose(found.scale, mean, rtol=2.0**-23)
    exact = masters.astype(np.float64) / mean
    ties = np.abs(np.abs(exact) - 0.5) < 1e-6
    expected = np.clip(np.rint(exact), -1, 1)
    np.testing.assert_array_equal(found.levels.T[~ties], expected[~ties])


@pytest.mark.parametrize(
    "quantization", [None, BITLINEAR, Quantization("autobitlinear", "online", ("a",))]
)
def test_masters_are_not_rounded_without_being_told(
    tmp_path: Path, quantization: Quantization | None
) -> None:
    masters = RNG.standard_normal((32, 256)).astype(BFLOAT16)
    found = read(tmp_path, quantization, weight=masters)
    assert isinstance(found, FloatMatrix)
    assert "distinct magnitudes" in found.reason


@pytest.mark.parametrize("dtype", [np.float16, np.float32, BFLOAT16])
@pytest.mark.parametrize("kind", ["tensor", "column", "group"])
def test_plain_matrices_are_read_exactly(tmp_path: Path, dtype: Any, kind: str) -> None:
    scales = {
        "tensor": np.full((32, 256), 0.3),
        "column": np.repeat(RNG.uniform(0.5, 2, (32, 1)), 256, axis=1),
        "group": np.repeat(RNG.uniform(0.5, 2, (32, 2)), 128, axis=1),
    }[kind].astype(dtype)
    weight = (LEVELS * scales).astype(dtype)
    found = read(tmp_path, None, weight=weight)
    assert isinstance(found, TernaryWeight)
    assert found.scale.ndim == ("tensor", "column", "group").index(kind)
    np.testing.assert_array_equal(found.dense().T, weight.astype(np.float32))


def test_a_misfit_behind_the_first_rows_is_seen(tmp_path: Path) -> None:
    weight = np.tile(LEVELS, (4, 1)).astype(np.float32)
    weight[100, 7] = 0.5
    assert isinstance(read(tmp_path, None, weight=weight), FloatMatrix)


def test_zeros_are_not_ternary(tmp_path: Path) -> None:
    found = read(tmp_path, None, weight=np.zeros((32, 256), np.float32))
    assert isinstance(found, FloatMatrix)


@pytest.mark.parametrize(
    ("quantization", "tensors", "named"),
    [
        (None, {}, "does not say quant_method bitnet"),
        (Quantization("bitlinear", "offline", ("a",)), {}, "leaves this module out"),
        (BITLINEAR, {"weight_scale": np.ones(3, np.float32)}, "3 scales, expected 1 or 32"),
        (BITLINEAR, {"weight_scale": np.zeros(1, np.float32)}, "not finite and positive"),
        (BITLINEAR, {"weight": np.full((8, 256), 255, np.uint8)}, "code 3"),
        (BITLINEAR, {"weight": np.zeros(8, np.uint8)}, "expected (N / 4, K)"),
    ],
)
def test_packed_tensors_are_checked(
    tmp_path: Path,
    quantization: Quantization | None,
    tensors: dict[str, NDArray[Any]],
    named: str,
) -> None:
    whole = {"weight": pack_levels(LEVELS), "weight_scale": np.ones(1, np.float32)}
    with pytest.raises(ModelError) as error:
        read(tmp_path, quantization, **whole | tensors)
    assert named in str(error.value)


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tensor 'a\.weight_scale'"):
        read(tmp_path, BITLINEAR, weight=pack_levels(LEVELS))
