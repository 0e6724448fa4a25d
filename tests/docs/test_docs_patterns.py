"""docs/patterns.md quotes reasons that are really given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.catalogue import NEAR_MISSES, activations, row_scales, straight_through

TEXT = (Path(__file__).parents[2] / "docs/patterns.md").read_text(encoding="utf-8")


def quoted() -> list[str]:
    """What stands in code in the last column of the tables of refusals."""
    tables = re.findall(r"\| form \| reason \|\n(?:\|.*\n)+", TEXT)
    assert len(tables) == 3
    rows = [line for table in tables for line in table.splitlines()[2:]]
    reasons = [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[-2])]
    return [text for text in reasons if " " in text and not text.startswith("--")]


def pieces(text: str) -> list[str]:
    """The text without names and numbers, cut where it is abridged."""
    plain = re.sub(r"'[^']*'|\d[\d.e-]*|-", "*", text)
    return [part.strip(" ;") for part in plain.split("...") if part.strip(" ;")]


@pytest.mark.parametrize("reason", quoted())
def test_reason_is_given(reason: str) -> None:
    reasons = [make().reason for make in NEAR_MISSES.values()]
    for each in (activations, straight_through, row_scales):
        reasons += [make()[1] for make in each.KEPT.values()]
    given = [" ".join(pieces(each)) for each in reasons]
    assert any(all(part in each for part in pieces(reason)) for each in given), pieces(reason)
