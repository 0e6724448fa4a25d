"""Whether one thing takes longer than another, from times taken in pairs.

A round times both things in an order drawn by a coin. If there is no difference between them, each
round is as likely to favor one as the other, whatever else the machine does, and independently of
all other rounds. So the number of rounds that favor one is binomial with probability 1/2, and the
sign test's interval of the median ratio needs no assumption about how times are distributed: from
the (k + 1)-th smallest to the (k + 1)-th largest of the rounds' ratios, where k is the largest
number with 2 * P(Binomial(rounds, 1/2) <= k) <= `MAX_CHANCE`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

MAX_CHANCE = 1e-4
"""Chance that the interval of two equal things leaves out the ratio 1."""

MIN_ROUNDS = 15
"""The fewest with an interval at all: 2 * 2**-15 <= MAX_CHANCE < 2 * 2**-14."""

MIN_DIFFERENCE = 0.03
"""A smaller difference is none: two sessions of one file differ by as much, for all their lives,
when their weights happen to lie differently in memory."""

MAX_SPREAD = 0.25
"""An interval wider than this says little about things that may be alike."""

# onnxruntime's idle pool threads spin for a while after a run and would slow the other model.
_SPIN_DOWN_SECONDS = 0.2
# Models are loaded anew in as many rounds as fit; one of gigabytes is loaded twice in all.
_LOADING_SECONDS = 10.0

Answer = Literal["faster", "slower", "no difference", "too noisy", "too few rounds"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times faster the second of two things is.

    Attributes:
        ratio: the median of the rounds' ratios, first to second.
        low: of the interval of the ratio; 0 where there are too few rounds for one.
        high: of the interval; inf where there are too few rounds.
        answer: what that means.
    """

    ratio: float
    low: float
    high: float
    answer: Answer

    @property
    def spread(self) -> float:
        """Width of the interval, relative to its lower end."""
        return self.high / self.low - 1 if self.low else math.inf

    def text(self) -> str:
        """The answer in a few words, with the interval."""
        interval = f"{self.low:.2f} to {self.high:.2f}"
        if self.answer == "faster":
            return f"{self.ratio:.2f} times faster ({interval})"
        if self.answer == "slower":
            return f"{1 / self.ratio:.2f} times slower ({1 / self.high:.2f} to {1 / self.low:.2f})"
        if self.answer == "no difference":
            return f"no difference measured ({interval} times)"
        if self.answer == "too noisy":
            return f"too noisy for an answer, {self.spread:.0%} spread ({interval} times)"
        return f"too few rounds for an answer, at least {MIN_ROUNDS} are needed"


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare the times of two things, one entry per round.

    Args:
        first: seconds.
        second: seconds of the same rounds.
    """
    ratios = sorted(one / other for one, other in zip(first, second, strict=True))
    count = len(ratios)
    middle = (ratios[(count - 1) // 2] + ratios[count // 2]) / 2
    outside = _outside(count)
    if outside is None:
        return Comparison(middle, 0.0, math.inf, "too few rounds")
    low, high = ratios[outside], ratios[count - 1 - outside]
    return Comparison(middle, low, high, _answer(low, high))


def _answer(low: float, high: float) -> Answer:
    if low > 1 + MIN_DIFFERENCE:
        return "faster"
    if high < 1 / (1 + MIN_DIFFERENCE):
        return "slower"
    return "no difference" if high / low - 1 <= MAX_SPREAD else "too noisy"


def _outside(count: int) -> int | None:
    """How many ratios lie outside the interval on either side; None if there is no interval."""
    chance, outside = 0.0, None
    for number in range(count):
        chance += 2 * math.comb(count, number) / 2**count
        if chance > MAX_CHANCE:
            break
        outside = number
    return outside


class Entry(Protocol):
    """What takes part in rounds."""

    threads: int


_Entry = TypeVar("_Entry", bound=Entry)


def take_turns(
    entries: Sequence[_Entry],
    rounds: int,
    seed: int,
    *,
    loading_seconds: float,
    load: Callable[[Sequence[_Entry]], None],
    run: Callable[[_Entry], None],
) -> None:
    """Let entries run in rounds, each in an order drawn by a coin.

    Args:
        entries: one or two.
        rounds: how often each runs.
        seed: of the coin.
        loading_seconds: what loading all of them once took.
        load: loads all of them anew, in this order; called in the first rounds only.
        run: runs one of them and keeps its time.
    """
    coin = np.random.default_rng(seed)
    num_loads = max(1, int(_LOADING_SECONDS / max(loading_seconds, 1e-9)))
    last = None
    for number in range(rounds):
        order = list(entries) if coin.random() < 0.5 else list(reversed(entries))
        if number < num_loads:
            load(order)
        for entry in order:
            if entry.threads > 1 and entry is not last:
                time.sleep(_SPIN_DOWN_SECONDS)
            run(entry)
            last = entry
