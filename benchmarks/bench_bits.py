"""One row with weights from DRAM, of two levels and scales for groups of 128 inputs: 1bit and 2bit.

The same weight stored both ways, copies of it called in turn through sessions, so that every call
reads it from memory. Outputs are compared with the product in float64 first.

    python benchmarks/bench_bits.py --threads 2
    python benchmarks/bench_bits.py --cpu-time    # one thread of a busy machine
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from measure.bandwidth import read_bandwidth
from measure.harness import Candidate, Timing, conditions, measure
from numpy.typing import NDArray
from peers import Layer, Run, onnx_peer, onnx_ternary_op, share_threads

from onnx_ternary.schema import Activation, Storage

SHAPES = "2560x6912,6912x2560,4096x4096"  # K x N
GROUP = 128
COPIES_BYTES = 96_000_000  # of weights before one comes round again
STORAGES: tuple[Storage, ...] = ("2bit", "1bit")
ACTIVATIONS: dict[Activation, float] = {"float": 1e-5, "int8": 2e-2}  # largest relative error


def two_levels(K: int, N: int) -> Layer:
    """Levels -1 and 1, scales (K / 128, N)."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 2, (K, N), np.int8) * np.int8(2) - np.int8(1)
    return Layer(levels, rng.uniform(0.5, 1.5, (-(-K // GROUP), N)).astype(np.float32))


def bytes_read(layer: Layer, storage: Storage) -> int:
    """Codes and scales of one product."""
    return layer.levels.size * int(storage[0]) // 8 + layer.scale.nbytes


def sessions(layer: Layer, storage: Storage, activation: Activation, threads: int) -> list[Run]:
    """Make copies that share no memory."""
    peer = onnx_peer(
        storage,
        partial(
            onnx_ternary_op.model,
            int8=activation == "int8",
            storage=storage,
            alphabet="binary_pm",
            group_size=GROUP,
        ),
        max_error=ACTIVATIONS[activation],
        quantizes=activation == "int8",
        bits=int(storage[0]),
    )
    return peer.prepare(layer, threads, max(2, -(-COPIES_BYTES // bytes_read(layer, storage))))


def next_of(turn: Iterator[Run], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output of the next copy."""
    return next(turn)(x)


def rows(
    shape: str, threads: int, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """All storages and activations of a shape, side by side."""
    K, N = map(int, shape.split("x"))
    layer = two_levels(K, N)
    x = np.random.default_rng(1).standard_normal((1, K)).astype(np.float32)
    scales = np.repeat(layer.scale.astype(np.float64), GROUP, axis=0)[:K]
    exact = x.astype(np.float64) @ (layer.levels * scales)
    candidates = []
    for activation, most in ACTIVATIONS.items():
        for storage in STORAGES:
            runs = sessions(layer, storage, activation, threads)
            error = max(float(np.abs(run(x) - exact).max()) for run in runs)
            if not error <= most * np.abs(exact).max():
                raise SystemExit(f"{storage}, {activation}: wrong by {error:.1e}")
            candidates.append(
                Candidate(f"{storage} {activation}", partial(next_of, cycle(runs), x))
            )
    timings = measure(candidates, rounds=rounds, seconds_a_round=0.03, threads=threads, clock=clock)
    return [
        row(shape, threads, storage, activation, layer, timings)
        for activation in ACTIVATIONS
        for storage in STORAGES
    ]


def row(
    shape: str,
    threads: int,
    storage: Storage,
    activation: Activation,
    layer: Layer,
    timings: dict[str, Timing],
) -> dict[str, Any]:
    """A result."""
    timing = timings[f"{storage} {activation}"]
    return {
        "KxN": shape,
        "threads": threads,
        "storage": storage,
        "activation": activation,
        "us": round(timing.median * 1e6, 1),
        "spread": round(timing.spread, 3),
        "GB/s": round(bytes_read(layer, storage) / timing.median / 1e9, 2),
        "of 2bit": round(timing.ratio_to(timings[f"2bit {activation}"]), 2),
    }


def main() -> None:
    """Measure, print a line a result, and write them all where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shapes", default=SHAPES, help="K x N, comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--cpu-time", action="store_true", help="of the calling thread; 1 thread")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads > 1:
        parser.error("--cpu-time is that of one thread")
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    share_threads(arguments.threads)
    found = []
    for shape in arguments.shapes.split(","):
        for each in rows(shape, arguments.threads, arguments.rounds, clock):
            found.append(each)
            print("  ".join(f"{name} {value}" for name, value in each.items()), flush=True)
    bandwidth = round(read_bandwidth(arguments.threads) / 1e9, 1)
    print(f"DRAM {bandwidth} GB/s")
    if arguments.json:
        result = {"conditions": conditions(), "DRAM GB/s": bandwidth, "rows": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
