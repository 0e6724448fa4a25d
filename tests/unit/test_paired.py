"""The sign test behind the answers of `bench`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_ternary._paired import MAX_CHANCE, MIN_ROUNDS, compare


def test_fewer_rounds_than_the_sign_test_needs_give_no_answer() -> None:
    for rounds in range(1, MIN_ROUNDS):
        assert compare([2.0] * rounds, [1.0] * rounds).answer == "too few rounds"
    assert compare([2.0] * MIN_ROUNDS, [1.0] * MIN_ROUNDS).answer == "faster"
    assert 2 * 2**-MIN_ROUNDS <= MAX_CHANCE < 2 * 2 ** -(MIN_ROUNDS - 1)


@pytest.mark.parametrize(("rounds", "outside"), [(15, 0), (20, 1), (25, 2), (30, 4)])
def test_interval_is_the_sign_tests(rounds: int, outside: int) -> None:
    first = np.arange(1.0, rounds + 1)
    found = compare(first[::-1], np.ones(rounds))
    assert (found.low, found.high) == (1.0 + outside, rounds - outside)

    def chance(most: int) -> float:
        return 2 * sum(math.comb(rounds, k) for k in range(most + 1)) / 2**rounds

    assert chance(outside) <= MAX_CHANCE < chance(outside + 1)


@pytest.mark.parametrize(
    ("factor", "noise", "words"),
    [
        (2.0, 0.02, "times faster"),
        (0.5, 0.02, "times slower"),
        (1.0, 0.02, "no difference measured"),
        (1.02, 0.001, "no difference measured"),
        (1.0, 1.0, "too noisy for an answer, "),
    ],
)
def test_answers(factor: float, noise: float, words: str) -> None:
    rng = np.random.default_rng(3)
    first, second = np.exp(rng.normal(0, noise, (2, 25)))
    found = compare(first * factor, second)
    assert words in found.text()
    assert found.low <= found.ratio <= found.high


def test_swapping_both_swaps_the_answer() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.uniform(1, 1.1, 25) * 3, rng.uniform(1, 1.1, 25)
    there, back = compare(first, second), compare(second, first)
    assert (there.answer, back.answer) == ("faster", "slower")
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)


def test_equal_things_with_bursts_of_noise_get_an_answer_as_seldom_as_promised() -> None:
    """The coin is what makes rounds independent: the noise here lasts for many of them."""
    rng = np.random.default_rng(7)
    wrong, trials = 0, 4000
    for _ in range(trials):
        load = np.repeat(rng.exponential(1.0, 5), 5)
        times = np.stack([1 + load, 1 + load * rng.uniform(1, 2)])  # who comes second suffers
        coin = rng.random(25) < 0.5
        first = np.where(coin, times[0], times[1])
        second = np.where(coin, times[1], times[0])
        wrong += compare(first, second).answer in ("faster", "slower")
    assert wrong <= 3  # 0.4 expected at most


def test_spread_of_no_interval_is_infinite() -> None:
    assert math.isinf(compare([1.0], [1.0]).spread)
    assert compare([1.0] * 15, [1.0] * 15).spread == 0
