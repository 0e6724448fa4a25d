from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.index.codes import ternarize_codes
from onnx_ternary.index.levels import NotTernary, TernaryWeight, ternarize

NO_ZERO = np.zeros((1, 1))


def found(*args: Any, **kwargs: Any) -> TernaryWeight:
    result = ternarize_codes(*args, **{"group_size": 0, **kwargs})
    assert isinstance(result, TernaryWeight), result
    return result


def reason(*args: Any, **kwargs: Any) -> str:
    result = ternarize_codes(*args, **{"group_size": 0, **kwargs})
    assert isinstance(result, NotTernary), result
    return result.reason


def scales(*shape: int) -> NDArray[np.float32]:
    return np.linspace(0.1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (4, 300), (4, 1)])
def test_agrees_with_the_floats(shape: tuple[int, int], dtype: Any, order: Any) -> None:
    # More than one tile: 1200 x 300 elements.
    generator = np.random.default_rng(0)
    zero = generator.integers(1, 4, shape).astype(np.float64)
    step = 304
    spread = np.repeat(zero, step, axis=0)[:1200] if len(zero) > 1 else zero
    codes = (3 * generator.integers(-1, 2, (1200, 300)) + spread).astype(np.int8)
    scale = scales(*shape)
    result = found(np.asarray(codes, order=order), scale, zero, group_size=step, dtypes=[dtype])
    spread_scale = np.repeat(scale, step, axis=0)[:1200] if len(scale) > 1 else scale
    floats = ((codes - spread).astype(np.float32) * spread_scale).astype(dtype)
    np.testing.assert_array_equal(result.dense(), floats.astype(np.float32))
    expected = ternarize(floats, group_sizes=(step,))
    assert isinstance(expected, TernaryWeight)
    np.testing.assert_array_equal(result.levels, expected.levels)
    assert result.group_size == (step if shape[0] > 1 else 0)
    assert result.alphabet == "ternary"
    assert result.max_relative_change == 0.0


def test_equal_scales_stay_as_fine_as_given() -> None:
    codes = np.tile(np.array([[-1], [0], [1], [1]], np.int8), (8, 3))
    assert found(codes, np.ones((1, 1), np.float32), NO_ZERO).scale.shape == ()
    assert found(codes, np.ones((1, 3), np.float32), NO_ZERO).scale.shape == (3,)


def test_equal_scales_of_all_groups_count_as_one() -> None:
    codes = np.tile(np.array([[-1], [0], [1], [1]], np.int8), (8, 3))
    one = found(codes, np.full((2, 3), 2, np.float32), NO_ZERO, group_size=16)
    assert (one.scale.shape, one.group_size, one.scale) == ((), 0, 2)
    columns = np.tile(scales(1, 3), (2, 1))
    per_column = found(codes, columns, NO_ZERO, group_size=16)
    assert per_column.group_size == 0
    np.testing.assert_array_equal(per_column.scale, columns[0])
    columns[1, 2] *= 2
    per_group = found(codes, columns, NO_ZERO, group_size=16)
    assert per_group.group_size == 16
    np.testing.assert_array_equal(per_group.scale, columns)


def test_a_group_of_zeros_has_any_scale() -> None:
    codes = np.ones((32, 2), np.int8)
    codes[:16, 0] = 0
    scale = np.array([[9, 2], [3, 2]], np.float32)
    result = found(codes, scale, NO_ZERO, group_size=16)
    np.testing.assert_array_equal(result.scale, [3, 2])
    assert result.group_size == 0
    np.testing.assert_array_equal(result.dense()[:16], np.tile([[0.0, 2.0]], (16, 1)))


@pytest.mark.parametrize("size", [8, 128])
def test_clipped_levels_say_what_to_do(size: int) -> None:
    codes = np.array([[0], [size], [2 * size - 1]], np.uint8)
    zero = np.array([[float(size)]])
    result = ternarize_codes(codes, np.ones((1, 1), np.float32), zero, group_size=0)
    assert isinstance(result, NotTernary)
    assert result.final
    assert f"levels {-size}, 0 and {size - 1}: a ternary matrix that was quantized" in result.reason
    assert "'onnx-ternary build'" in result.reason
    other = ternarize_codes(codes, np.ones((1, 1), np.float32), zero + 1, group_size=0)
    assert isinstance(other, NotTernary)
    assert not other.final


def test_equal_scales_of_small_groups_count_as_one() -> None:
    codes = np.eye(3, dtype=np.int8)
    assert found(codes, np.full((3, 1), 2, np.float32), NO_ZERO, group_size=1).scale == 2
    text = reason(codes, np.full((3, 1), 2, np.float32), np.eye(3)[:, :1], group_size=1)
    assert text.startswith("weight has one scale every row along K")


def test_one_scale_with_other_codes_in_a_column_is_a_scale_a_column() -> None:
    codes = np.array([[1, -127], [-1, 0]], np.int8)
    np.testing.assert_array_equal(
        found(codes, np.array([[0.5]], np.float32), NO_ZERO).scale, np.array([0.5, 63.5])
    )


def test_columns_of_zeros_have_scale_one() -> None:
    codes = np.array([[5, 0], [5, 1]], np.int8)
    result = found(codes, scales(1, 2), np.array([[5.0, 0.0]]))
    np.testing.assert_array_equal(result.levels, [[0, 0], [0, 1]])
    np.testing.assert_array_equal(result.scale, [1, 2])


def test_weights_that_round_to_zero_are_zero() -> None:
    codes = np.array([[1, -1]], np.int8)
    scale = np.array([[1e-9, 1]], np.float32)
    result = found(codes, scale, NO_ZERO, dtypes=[np.float16])
    np.testing.assert_array_equal(result.levels, [[0, -1]])
    np.testing.assert_array_equal(result.scale, [1, 1])


def test_negative_scale_turns_the_levels() -> None:
    result = found(np.array([[1, 1]], np.int8), np.array([[-2, 2]], np.float32), NO_ZERO)
    np.testing.assert_array_equal(result.levels, [[-1, 1]])
    np.testing.assert_array_equal(result.scale, [2, 2])


def test_extremes_of_types_do_not_overflow() -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32):
        limits = np.iinfo(dtype)
        codes = np.array([[limits.min], [limits.max]], dtype)
        middle = np.array([[(limits.min + limits.max) / 2]])
        result = found(codes, np.ones((1, 1), np.float32), middle)
        np.testing.assert_array_equal(result.levels, [[-1], [1]])
        assert result.alphabet == "binary_pm"
        assert "different" not in reason(codes, np.ones((1, 1), np.float32), middle + 1)


def test_one_code_off_is_found_wherever_it_is() -> None:
    codes = np.random.default_rng(1).choice(np.array([-1, 0, 1], np.int8), (700, 400))
    assert ternarize_codes(codes, scales(1, 400), NO_ZERO, group_size=0)
    for row, column in ((0, 0), (350, 399), (699, 200)):
        damaged = codes.copy()
        damaged[row, column] = 2
        text = reason(damaged, scales(1, 400), NO_ZERO)
        assert text == (
            f"weight has codes -1, 0, 1 and 2 in column {column}; expected 0 and plus or minus "
            "one magnitude"
        )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrix_is_refused(shape: tuple[int, int]) -> None:
    assert reason(np.zeros(shape, np.int8), np.ones((1, 1), np.float32), NO_ZERO) == (
        f"weight is empty, shape {shape}"
    )
