"""Tables, marked places and plots of the pages that show results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions_line(conditions: Mapping[str, str]) -> str:
    """The conditions in one line."""
    return ", ".join(f"{name} {value}" for name, value in conditions.items())


def ratio(rounds: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster than another, round by round: the median."""
    return float(np.median(np.divide(other, rounds)))


def verdict(reached: bool) -> str:
    """Whether a target is reached, in words."""
    return "reached" if reached else "**not reached**"


def fill(text: str, places: Mapping[str, str]) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- end -->`` replaced.

    Raises:
        SystemExit: if a place is missing or there twice.
    """
    for name, content in places.items():
        marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        found = list(marked.finditer(text))
        if len(found) != 1:
            raise SystemExit(f"expected one place for '{name}', found {len(found)}")
        (place,) = found
        text = f"{text[: place.end(1)]}{content}\n{text[place.start(2) :]}"
    return text


def plots() -> Any:
    """matplotlib.pyplot, writing SVG that is the same for the same results."""
    import matplotlib  # type: ignore[import-not-found,unused-ignore]  # a benchmark extra

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "onnx-ternary"
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    return plt


def save(figure: Any, path: Path) -> None:
    """Write a plot; the file names no date."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
