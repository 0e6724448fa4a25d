"""One matrix product through ONNX Runtime sessions: the op against what ONNX Runtime has.

Usage: python benchmarks/bench_kernel.py [--shapes 2560x2560,2560x6912] [--rows 1,8,64]
       [--threads 1,2] [--rounds 9] [--cpu-time] [--json benchmarks/results/kernel.json]
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from harness import Candidate, conditions, measure
from numpy.typing import NDArray
from peers import (
    Layer,
    Peer,
    dynamic_quantize,
    matmul_float32,
    matmul_nbits,
    onnx_ternary_float,
    onnx_ternary_int8,
)
from rich.console import Console
from rich.table import Table

import onnx_ternary

PEERS: tuple[Peer, ...] = (
    matmul_float32,
    matmul_nbits,
    dynamic_quantize,
    onnx_ternary_float,
    onnx_ternary_int8,
)
BASELINE = matmul_float32.NAME


def run(session: ort.InferenceSession, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Y (M, N) of X (M, K)."""
    (y,) = session.run(None, {"X": x})
    return np.asarray(y)


def check(name: str, y: NDArray[np.float32], exact: NDArray[np.float64], limit: float) -> None:
    """Refuse to time a wrong answer."""
    error = np.abs(y - exact).max() / np.abs(exact).max()
    if not error <= limit:
        raise SystemExit(f"{name}: relative error {error:.1e}, expected at most {limit:g}")


def main() -> None:
    """Check every output against float64, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="2560x2560,2560x6912", help="KxN, comma-separated")
    parser.add_argument("--rows", default="1,8,64", help="M, comma-separated")
    parser.add_argument("--threads", default="1", help="intra-op threads, comma-separated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of the calling thread: for a busy machine, one thread only",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != "1":
        parser.error("--cpu-time sees one thread only")

    rows: list[dict[str, Any]] = []
    for threads in map(int, arguments.threads.split(",")):
        for shape in arguments.shapes.split(","):
            K, N = map(int, shape.split("x"))
            layer = Layer.random(K, N)
            sessions = {}
            for peer in PEERS:
                options = ort.SessionOptions()
                options.intra_op_num_threads = threads
                sessions[peer.NAME] = onnx_ternary.InferenceSession(peer.model(layer), options)
            for M in map(int, arguments.rows.split(",")):
                x = np.random.default_rng(M).standard_normal((M, K)).astype(np.float32)
                exact = x.astype(np.float64) @ (layer.levels * layer.scale.astype(np.float64))
                for peer in PEERS:
                    check(peer.NAME, run(sessions[peer.NAME], x), exact, peer.MAX_ERROR)
                timings = measure(
                    [Candidate(name, partial(run, each, x)) for name, each in sessions.items()],
                    rounds=arguments.rounds,
                    threads=threads,
                    clock=time.thread_time if arguments.cpu_time else time.perf_counter,
                )
                rows += [
                    {
                        "KxN": shape,
                        "M": M,
                        "threads": threads,
                        "candidate": name,
                        "us": round(timing.median * 1e6, 1),
                        "spread": round(timing.spread, 3),
                        "GMAC/s": round(M * K * N / timing.median / 1e9, 1),
                        "x float32": round(timing.ratio_to(timings[BASELINE]), 2),
                    }
                    for name, timing in timings.items()
                ]

    facts = conditions() | {
        "rounds": f"{arguments.rounds} interleaved, medians",
        "clock": "processor time" if arguments.cpu_time else "wall clock",
        "weights": "40 % zeros, one scale a column, in cache",
    }
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
