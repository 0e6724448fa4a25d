"""Copy the committed results into README.md (its `numbers` markers) and docs/performance.md.

Usage: python benchmarks/update_readme.py [--check]

The plot of docs/performance.md is drawn too (`pip install ".[bench]"`), but not by --check, which
changes nothing and fails if a page is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import kernel_pages
from pages import conditions_line, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def example_section() -> str:
    """Digits: time a call and how many times faster, by batch size and threads."""
    rows = []
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
    head = ["batch", "threads", "float MatMul", "onnx-ternary", "times faster"]
    facts = {name: value for name, value in results["conditions"].items() if name != "threads"}
    return (
        "The digits example (`benchmarks/bench_example.py`), whole model, float activations:\n\n"
        f"{table(head, rows)}\n\nConditions: {conditions_line(facts)}."
    )


def main() -> None:
    """Rewrite both pages, or with --check fail if one is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    kernel = json.loads((RESULTS / "kernel.json").read_text(encoding="utf-8"))
    section = f"{BEGIN}\n{example_section()}\n\n{kernel_pages.readme_section(kernel)}\n{END}"
    marked = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    readme, performance = ROOT / "README.md", ROOT / "docs" / "performance.md"
    pages = {}
    before = readme.read_text(encoding="utf-8")
    pages[readme] = (before, marked.sub(lambda _: section, before))
    before = performance.read_text(encoding="utf-8")
    pages[performance] = (before, kernel_pages.filled(before, kernel))
    for path, (old, new) in pages.items():
        if check and old != new:
            raise SystemExit(
                f"{path.name} is not what benchmarks/results say; run update_readme.py"
            )
        if not check:
            path.write_text(new, encoding="utf-8")
    if not check:
        kernel_pages.draw(kernel, ROOT / "docs" / "kernel_time.svg")


if __name__ == "__main__":
    main()
