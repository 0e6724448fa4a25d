"""Sizes as linear expressions, and the equations between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.verification.shapes.sizes import Size, Sizes, parse_size

NAMES = ("batch", "past", "sequence")
NUMBERS = st.integers(-20, 20)
SIZES = st.builds(
    lambda constant, coefficients: sum(
        (Size.of(name).times(number) for name, number in coefficients.items()), Size(constant)
    ),
    NUMBERS,
    st.dictionaries(st.sampled_from(NAMES), NUMBERS),
)
VALUES = st.fixed_dictionaries(dict.fromkeys(NAMES, NUMBERS))


@given(SIZES, SIZES, NUMBERS, VALUES)
def test_arithmetic_is_that_of_the_numbers(
    one: Size, other: Size, factor: int, values: dict[str, int]
) -> None:
    assert (one + other).at(values) == one.at(values) + other.at(values)
    assert (one - other).at(values) == one.at(values) - other.at(values)
    assert one.times(factor).at(values) == factor * one.at(values)
    assert (one - one).value == 0


@given(SIZES, st.integers(1, 6))
def test_a_quotient_times_its_divisor_is_the_size(size: Size, divisor: int) -> None:
    quotient = size.divided(divisor)
    assert quotient is None or quotient.times(divisor) == size
    assert size.times(divisor).divided(divisor) == size


@given(st.lists(st.tuples(SIZES, SIZES), max_size=4))
def test_what_is_equated_is_equal_behind_every_later_equation(
    pairs: list[tuple[Size, Size]],
) -> None:
    sizes = Sizes()
    agreed = [pair for pair in pairs if sizes.equate(*pair)]
    assert all(sizes.resolve(one - other) == Size() for one, other in agreed)


def test_a_contradiction_changes_nothing() -> None:
    sizes = Sizes()
    assert sizes.equate(Size.of("k"), Size(2560))
    assert not sizes.equate(Size.of("k"), Size(64))
    assert sizes.resolve(Size.of("k")).value == 2560


def test_no_dimension_is_negative() -> None:
    assert not Sizes().equate(Size.of("k") + Size(3), Size(1))


def test_a_sum_is_solved_rather_than_a_part_of_it() -> None:
    sizes = Sizes()
    assert sizes.equate(Size.of("past") + Size.of("sequence"), Size.of("total"))
    assert sizes.resolve(Size.of("total")).variables == ("past", "sequence")


@pytest.mark.parametrize(
    ("total", "factors", "expected"),
    [
        (784, ("height", "width"), {"height": 28, "width": 28}),
        (784, ("height",), {"height": 784}),
        (785, ("height", "width"), {"height": None, "width": None}),
    ],
)
def test_factors_of_a_flattened_tensor(
    total: int, factors: tuple[str, ...], expected: dict[str, int | None]
) -> None:
    sizes = Sizes()
    flat = sizes.product(1, tuple(map(Size.of, factors)))
    assert sizes.equate(flat, Size(total))
    sizes.solve_products()
    assert {name: sizes.resolve(Size.of(name)).value for name in factors} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch", Size.of("batch")),
        (" past + sequence ", Size.of("past") + Size.of("sequence")),
        ("2*s0 - 1", Size.of("s0").times(2) - Size(1)),
        ("s0*s1", None),
        ("floor(s0/2)", None),
        ("", None),
        ("(" * 10_000, None),
        ("\0", None),
        ("__import__('os')", None),
    ],
)
def test_names_of_dimensions(text: str, expected: Size | None) -> None:
    assert parse_size(text) == expected
