"""Copy the committed results into the marked places of README.md and of pages of docs.

Usage: python benchmarks/pages/update_readme.py [--check]

The pages are README.md and docs/index.md (what a stranger sees first), docs/performance.md
(kernel_*.json, a file for each machine), docs/models.md (model.json) and docs/cluster.md
(ray.json). Their plots are drawn too (`pip install ".[bench]"`), but not by --check, which changes
nothing and fails if a page is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
sys.path.insert(0, str(BENCHMARKS))  # as where a program of that folder is started

from pages import front, layers, machines  # noqa: E402
from pages import kernel as kernel_pages  # noqa: E402
from pages import model as model_pages  # noqa: E402
from pages.parts import conditions_line, fill, table  # noqa: E402


def example_section(folder: Path = RESULTS) -> str:
    """Digits: time a call and how many times faster, by machine, threads and batch size."""
    rows, conditions = [], {}
    for path in sorted(folder.glob("example_*.json"), reverse=True):
        results = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: value for name, value in results["conditions"].items() if name != "threads"}
        machine = results.get("machine") or facts["cpu"]
        conditions[machine] = conditions_line(facts)
        rows += [
            [
                machine,
                results["conditions"]["threads"],
                f"{row['batch']:.0f}",
                f"{row['float MatMul us']:.0f} us",
                f"{row['onnx-ternary us']:.0f} us",
                f"{row['times faster']:.2f}",
            ]
            for row in results["rows"]
        ]
    rows.sort(key=lambda row: (list(conditions).index(row[0]), row[1], int(row[2])))
    head = ["machine", "threads", "batch", "float MatMul", "onnx-ternary", "times faster"]
    return (
        "The digits example (`benchmarks/bench_example.py`), whole model, float activations:\n\n"
        f"{table(head, rows)}\n\n"
        + "\n".join(f"- {machine}: {facts}." for machine, facts in conditions.items())
    )


def ray_section(results: dict[str, Any]) -> str:
    """Workers of Ray Data: rows a second and memory of both models, medians of the rounds."""
    medians = {
        name: {key: float(np.median([each[key] for each in rounds])) for key in rounds[0]}
        for name, rounds in results["rounds"].items()
    }
    rows = [
        [name, f"{found['rows_per_second']:.0f}", f"{found['pss_mb']:.0f} MB"]
        for name, found in medians.items()
    ]
    head = ["model", "rows a second", f"memory of {results['workers']} workers (PSS)"]
    return (
        f"{table(head, rows)}\n\nConditions: {conditions_line(results['conditions'])}; "
        f"{results['rows']} rows, medians of {len(next(iter(results['rounds'].values())))} rounds "
        "in turns."
    )


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Rewrite the pages, or with --check fail if one is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    measured, model = machines.load(RESULTS), _result("model.json")
    places = {
        "README.md": {
            "first": front.first(model, "docs/images"),
            "models": front.model_table(model),
            "rivals": front.rival_table(measured),
        },
        "docs/index.md": {"first": front.first(model, "images")},
    }
    contents: dict[Path, Callable[[str], str]] = {
        ROOT / "docs" / "performance.md": lambda text: layers.filled(
            fill(text, {"example": example_section()}), measured
        ),
        ROOT / "docs" / "cluster.md": partial(
            fill, places={"ray": ray_section(_result("ray.json"))}
        ),
        ROOT / "docs" / "models.md": lambda text: model_pages.filled(text, model),
        ROOT / "docs" / "images" / "front.svg": lambda _: front.picture(model),
        ROOT / "docs" / "images" / "front_narrow.svg": lambda _: front.picture(model, narrow=True),
    }
    for name, place in places.items():
        contents[ROOT / name] = partial(fill, places=place)
    for path, made in contents.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        new = made(old)
        if check and old != new:
            raise SystemExit(
                f"{path.name} is not what benchmarks/results say; run update_readme.py"
            )
        if not check:
            path.write_text(new, encoding="utf-8")
    if not check:
        kernel_pages.draw(measured[0].layers, ROOT / "docs/images/kernel_time.svg")
        model_pages.draw(model, ROOT / "docs/images/model_speed.svg")


if __name__ == "__main__":
    main()
