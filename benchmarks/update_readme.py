"""Copy the committed results into README.md, between its `numbers` markers.

Usage: python benchmarks/update_readme.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def conditions(results: dict[str, Any]) -> str:
    """The conditions in one line."""
    facts = results["conditions"].items()
    return ", ".join(f"{name} {value}" for name, value in facts if name != "threads")


def example_section() -> str:
    """Digits: time a call and how many times faster, by batch size and threads."""
    rows = [["batch", "threads", "float MatMul", "onnx-ternary", "times faster"]]
    for threads in (1, 2):
        results = json.loads((RESULTS / f"example_{threads}.json").read_text())
        rows += [
            [
                f"{row['batch']:.0f}",
                str(threads),
                f"{row['float MatMul us']:.0f} us",
                f"{row['onnx-ternary us']:.0f} us",
                f"{row['times faster']:.2f}",
            ]
            for row in results["rows"]
        ]
    return (
        "The digits example (`benchmarks/bench_example.py`), whole model, float activations:\n\n"
        f"{table(rows)}\n\nConditions: {conditions(results)}."
    )


def kernel_section() -> str:
    """Layers of BitNet b1.58 2B: speed relative to float32 MatMul, all candidates side by side."""
    results = json.loads((RESULTS / "kernel.json").read_text())
    candidates = list(dict.fromkeys(row["candidate"] for row in results["rows"]))
    rows = [["K x N", "M", "threads", *candidates]]
    cells: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in results["rows"]:
        key = (row["KxN"], row["M"], row["threads"])
        cells.setdefault(key, {})[row["candidate"]] = row["x float32"]
    for (shape, M, threads), ratios in cells.items():
        rows.append([shape, str(M), str(threads), *(f"{ratios[name]:.2f}" for name in candidates)])
    return (
        "One layer (`benchmarks/bench_kernel.py`), times faster than ONNX Runtime's float32 "
        "MatMul, all in one interleaved run; every candidate but onnx-ternary float and MatMul "
        "quantises activations to 8 bits and is off by up to a percent or more:\n\n"
        f"{table(rows)}\n\nConditions: {conditions(results)}."
    )


def main() -> None:
    """Rewrite the section, or with --check fail if it is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    section = f"{BEGIN}\n{example_section()}\n\n{kernel_section()}\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    after = pattern.sub(lambda _: section, before)
    if check and after != before:
        raise SystemExit("README.md is not what benchmarks/results say; run update_readme.py")
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
