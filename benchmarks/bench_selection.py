"""Kernels alone, side by side: which is fastest for how many rows of which layer.

What the rows of `kSelection` (custom_ops/dispatch/select.cc) are chosen by. Every kernel that is
named and can serve a layer multiplies the same rows, without a session, in the calling thread, in
interleaved rounds of processor time, after its output was compared with the product in float64.

    python benchmarks/bench_selection.py                                        # AVX2, float
    python benchmarks/bench_selection.py --activation int8 --rows 4,6,8,9,10,12
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure.harness import Candidate, Timing, conditions, measure
from peers import Layer

from onnx_ternary.index import build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import kernels
from onnx_ternary.native import layer as native
from onnx_ternary.options import INT8_RULE
from onnx_ternary.schema import Activation

SHAPES = "512x512,512x2048,2048x512,2560x640,2560x2560,4096x1024,2560x6912,4096x4096"  # K x N
MOST: dict[Activation, float] = {"float": 1e-5, "int8": 2e-2}  # relative errors that are right


def random_weight(K: int, N: int, group: int) -> TernaryWeight:
    """40 % zeros; one scale per column, or for groups of so many inputs."""
    layer = Layer.random(K, N)
    scale = layer.scale
    if group:
        shape = (-(-K // group), N)
        scale = np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(np.float32)
    return TernaryWeight(layer.levels, scale, group, "ternary", 0.0)


def made(weight: TernaryWeight, activation: Activation) -> native.Layer:
    """The node of a weight, ready to run."""
    index = build_index(weight)
    attributes = index.attributes
    if activation == "int8":
        attributes = replace(attributes, **INT8_RULE)
    bias = np.zeros((), np.float32)
    return native.Layer(attributes, index.codes, index.aux, index.scale, bias)


def candidates(activation: Activation, globs: str) -> list[str]:
    """Kernels of the default format that can run here and match one of the globs."""
    return [
        each["name"]
        for each in kernels.list_kernels()["kernels"]
        if each["supported"]
        and (each["index_format"], each["activation"]) == ("packed", activation)
        and any(fnmatch(each["name"], glob) for glob in globs.split(","))
    ]


def rows_of(
    shape: str, group: int, activation: Activation, names: list[str], rows: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Every kernel and M of one layer: GMAC/s, and how much faster than the first kernel."""
    K, N = map(int, shape.split("x"))
    weight = random_weight(K, N, group)
    node = made(weight, activation)
    inputs = np.random.default_rng(1).standard_normal((max(rows), K)).astype(np.float32)
    products = inputs.astype(np.float64) @ weight.dense().astype(np.float64)
    found = []
    for M in rows:
        x, exact, out = inputs[:M], products[:M], np.empty((M, N), np.float32)
        for name in names:
            error = float(np.abs(node.run(x, kernel=name)[0] - exact).max() / np.abs(exact).max())
            if not error <= MOST[activation]:
                raise SystemExit(f"{name}, {shape}, M = {M}: relative error {error:.1e}")
        runs = [Candidate(name, partial(node.run, x, kernel=name, out=out)) for name in names]
        timings = measure(runs, rounds=rounds, clock=time.thread_time)
        found += [row(shape, group, M, name, timings, timings[names[0]]) for name in names]
    return found


def row(
    shape: str, group: int, M: int, name: str, timings: dict[str, Timing], first: Timing
) -> dict[str, Any]:
    """A result."""
    K, N = map(int, shape.split("x"))
    timing = timings[name]
    return {
        "KxN": shape,
        "group": group,
        "M": M,
        "kernel": name,
        "us": round(timing.median * 1e6, 1),
        "GMAC/s": round(M * K * N / timing.median / 1e9, 1),
        "of the first": round(timing.ratio_to(first), 2),
        "spread": round(timing.spread, 3),
    }


def main() -> None:
    """Measure, print a line a result, and write them all where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shapes", default=SHAPES, help="K x N, comma-separated")
    parser.add_argument("--rows", default="1,2,3,4", help="M, comma-separated")
    parser.add_argument("--groups", default="0,128", help="inputs with one scale; 0: a column")
    parser.add_argument("--activation", choices=MOST, default="float")
    parser.add_argument("--kernels", default="*_avx2", help="globs of names, comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    names = candidates(arguments.activation, arguments.kernels)
    if not names:
        parser.error(f"no kernel that can run here matches {arguments.kernels}")
    rows = [int(M) for M in arguments.rows.split(",")]
    found = []
    for shape in arguments.shapes.split(","):
        for group in map(int, arguments.groups.split(",")):
            case = rows_of(shape, group, arguments.activation, names, rows, arguments.rounds)
            found += case
            for each in case:
                print("  ".join(f"{name} {value}" for name, value in each.items()), flush=True)
    if arguments.json:
        result = {"conditions": conditions(), "rows": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
