"""One matrix product: the op against everything a ternary layer can be run with on this CPU.

Every competitor (peers/) runs side by side in interleaved rounds, after its output was compared
with the product in float64. Hot: one layer, called again and again, in cache where it fits. Cold:
copies of a layer, more than 256 MB of them, called in turn, so that weights come from DRAM.
Memory: what a session of a 4096 x 14336 layer takes. A competitor whose package is missing is
skipped with a line.

    python benchmarks/bench_kernel.py --quick                                    # a look
    python benchmarks/bench_kernel.py --json benchmarks/results/kernel_zen5.json # 12 minutes
    python benchmarks/pages/update_readme.py                                     # the pages

A machine has a file of its own, `kernel_*.json`, which can be filled in several runs: cases that
are measured again replace the old ones, everything else stays. Its conditions are those of the
last run, so a file is for one machine and one set of versions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import distributions
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from measure.bandwidth import read_bandwidth
from measure.harness import Candidate, Timing, available_bytes, conditions, cpu_flags, measure
from numpy.typing import NDArray
from peers import (
    Layer,
    Peer,
    Run,
    UnavailableError,
    all_peers,
    matmul_float32,
    matmul_nbits,
    share_threads,
)
from rich.console import Console
from rich.table import Table

SHAPES = "2560x2560,2560x640,2560x6912,6912x2560,4096x4096,4096x1024,4096x14336,14336x4096"  # K x N
ROWS = "1,8,64,256"
PLOT_SHAPE, PLOT_ROWS = "2560x2560", "2,4,16,32,128"
COLD_SHAPE = "4096x14336"
COLD_BYTES = 270_000_000  # of weights a competitor reads before one comes round again
BASELINE = "MatMul float32"
OPTIONAL_PACKAGES = ("torch", "onnxsim", "libggml-python", "llama-cpp-python")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def chosen_peers(globs: str) -> list[Peer]:
    """The competitors whose name matches one of the globs, and the baseline of ratios."""
    patterns = [BASELINE, *globs.split(",")]
    return [peer for peer in all_peers() if any(fnmatch(peer.name, each) for each in patterns)]


def relative_error(y: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """The largest difference relative to the largest output."""
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def checked(peer: Peer, run: Run, x: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """The error of an output; a wrong output ends the benchmark before it is timed."""
    error = relative_error(run(x), exact)
    if not error <= peer.max_error:
        raise SystemExit(f"{peer.name}: relative error {error:.1e}, at most {peer.max_error:g}")
    return error


def prepared(
    peers: Sequence[Peer], layer: Layer, threads: int, skipped: dict[str, str]
) -> dict[str, Run]:
    """The competitors that can run this layer here; why the others cannot is noted and printed."""
    runs = {}
    for peer in peers:
        if peer.name in skipped:
            continue
        try:
            (runs[peer.name],) = peer.prepare(layer, threads, 1)
        except UnavailableError as error:
            skipped[peer.name] = str(error)
            print(f"{peer.name} skipped: {error}", file=sys.stderr)
    return runs


def hot(
    peers: Sequence[Peer],
    cases: dict[str, list[int]],
    threads: int,
    rounds: int,
    skipped: dict[str, str],
) -> list[dict[str, Any]]:
    """Rows of every shape and M."""
    rows = []
    for shape, all_rows in cases.items():
        K, N = map(int, shape.split("x"))
        layer = Layer.random(K, N)
        runs = prepared(peers, layer, threads, skipped)
        inputs = np.random.default_rng(0).standard_normal((max(all_rows), K)).astype(np.float32)
        products = inputs.astype(np.float64) @ layer.levels.astype(np.float64)
        products *= layer.scale
        for M in all_rows:
            x, exact = inputs[:M], products[:M]
            errors = {
                peer.name: checked(peer, runs[peer.name], x, exact)
                for peer in peers
                if peer.name in runs
            }
            timings = measure(
                [Candidate(name, partial(run, x)) for name, run in runs.items()],
                rounds=rounds,
                seconds_a_round=0.01,
                threads=threads,
                budget_seconds=rounds * 0.8,
            )
            rows += [
                row(shape, M, threads, name, errors[name], timing)
                for name, timing in timings.items()
            ]
            print(f"{threads} threads, {shape}, M = {M} done", file=sys.stderr)
    return rows


def next_of(turn: Iterator[Run], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output of the next copy."""
    return next(turn)(x)


def cold(
    peers: Sequence[Peer], threads: int, rounds: int, skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows of M = 1 with weights from DRAM."""
    K, N = map(int, COLD_SHAPE.split("x"))
    layer = Layer.random(K, N)
    x = np.random.default_rng(1).standard_normal((1, K)).astype(np.float32)
    exact = x.astype(np.float64) @ (layer.levels * layer.scale.astype(np.float64))
    copies = {peer.name: max(2, -(-COLD_BYTES // peer.weight_bytes(layer))) for peer in peers}
    # A session may keep a packed copy beside the weight it was given.
    needed = sum(2 * copies[peer.name] * peer.weight_bytes(layer) for peer in peers)
    if needed > available_bytes():
        skipped["cold"] = f"needs {needed / 2**30:.1f} GiB of memory"
        print(f"cold skipped: {skipped['cold']}", file=sys.stderr)
        return []
    candidates, errors = [], {}
    for peer in peers:
        if peer.name in skipped:
            continue
        try:
            runs = peer.prepare(layer, threads, copies[peer.name])
        except UnavailableError as error:
            skipped[peer.name] = str(error)
            print(f"{peer.name} skipped: {error}", file=sys.stderr)
            continue
        errors[peer.name] = max(checked(peer, run, x, exact) for run in runs)
        candidates.append(Candidate(peer.name, partial(next_of, cycle(runs), x)))
    timings = measure(candidates, rounds=rounds, seconds_a_round=0.03, threads=threads)
    bandwidth = read_bandwidth(threads)
    weight_bytes = {peer.name: peer.weight_bytes(layer) for peer in peers}
    print(f"{threads} threads, cold done", file=sys.stderr)
    return [
        row(COLD_SHAPE, 1, threads, name, errors[name], timing)
        | {
            "copies": copies[name],
            "GB/s": round(weight_bytes[name] / timing.median / 1e9, 1),
            "of DRAM": round(weight_bytes[name] / timing.median / bandwidth, 3),
            "DRAM GB/s": round(bandwidth / 1e9, 1),
        }
        for name, timing in timings.items()
    ]


def row(
    shape: str, M: int, threads: int, name: str, error: float, timing: Timing
) -> dict[str, Any]:
    """A result; `rounds_us` keeps the rounds, of which ratios are made."""
    K, N = map(int, shape.split("x"))
    return {
        "KxN": shape,
        "M": M,
        "threads": threads,
        "candidate": name,
        "us": round(timing.median * 1e6, 1),
        "spread": round(timing.spread, 3),
        "GMAC/s": round(M * K * N / timing.median / 1e9, 1),
        "error": float(f"{error:.1e}"),
        "rounds_us": [round(seconds * 1e6, 2) for seconds in timing.seconds],
    }


def memory() -> list[dict[str, Any]]:
    """Peak resident memory and file size of the cold shape, by how the model is stored."""
    import onnx
    from measure.session_memory import measured

    import onnx_ternary
    from onnx_ternary.options import OptimizeOptions

    K, N = map(int, COLD_SHAPE.split("x"))
    layer = Layer.random(K, N)
    rows = []

    def add(name: str, external: bool, path: Path) -> None:
        size = sum(each.stat().st_size for each in path.parent.iterdir())
        found = measured(path)
        rows.append({"model": name, "external data": external, "file": size, **found})
        print(f"memory of {name} done", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        source.write_bytes(matmul_float32.model(layer))
        rivals = {"MatMul float32": source.read_bytes()}
        rivals["MatMulNBits 2-bit"] = matmul_nbits.model(layer, bits=2)
        for external in (False, True):
            for name, model in rivals.items():
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    path = Path(place) / "model.onnx"
                    proto = onnx.load_model_from_string(model)
                    onnx.save_model(proto, path, save_as_external_data=external, location="data")
                    del proto
                    add(name, external, path)
            for storage in ("2bit", "dense"):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    path = Path(place) / "model.onnx"
                    options = OptimizeOptions(
                        storage=storage, external_data="always" if external else "never"
                    )
                    onnx_ternary.optimize(source, options).save(path)
                    add(f"onnx-ternary {storage}", external, path)
    return rows


def worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hot and cold with one number of threads."""
    threads = int(arguments.threads)
    if threads > 1:
        share_threads(threads)
    peers = chosen_peers(arguments.peers)
    parts = arguments.only.split(",")
    skipped: dict[str, str] = {}
    result: dict[str, Any] = {"skipped": skipped}
    if "hot" in parts:
        cases = {
            shape: sorted(map(int, arguments.rows.split(",")))
            for shape in arguments.shapes.split(",")
        }
        if PLOT_SHAPE in cases and arguments.plot_rows:
            extra = map(int, arguments.plot_rows.split(","))
            cases[PLOT_SHAPE] = sorted({*cases[PLOT_SHAPE], *extra})
        result["rows"] = hot(peers, cases, threads, arguments.rounds, skipped)
    if "cold" in parts:
        result["cold"] = cold(peers, threads, arguments.rounds, skipped)
    return result


def with_threads(threads: str) -> dict[str, Any]:
    """The same command line for one number of threads: libraries read theirs when loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [sys.executable, *sys.argv, "--threads", threads, "--worker", str(path)]
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)}
        subprocess.run(command, check=True, env=environment)
        part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return part


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old rows of cases that were not measured again, and the new ones.

    A case is a shape, M and a number of threads: the candidates that were timed side by side.
    """

    def case(row: dict[str, Any]) -> tuple[str, int, int]:
        return row["KxN"], row["M"], row["threads"]

    measured = set(map(case, new))
    kept = [row for row in old if case(row) not in measured]
    shapes = SHAPES.split(",")

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        known = shapes.index(row["KxN"]) if row["KxN"] in shapes else len(shapes)
        return row["threads"], known, row["M"]

    return sorted(kept + new, key=place)


def show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of everything but the rounds."""
    if not rows:
        return
    table = Table(*[name for name in rows[0] if name != "rounds_us"], title=title)
    for each in rows:
        table.add_row(*[str(value) for name, value in each.items() if name != "rounds_us"])
    console.print(table)


def versions() -> dict[str, str]:
    """Versions of the optional competitors that are installed."""
    installed = {each.metadata["Name"]: each.version for each in distributions()}
    return {name: installed[name] for name in OPTIONAL_PACKAGES if name in installed}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=SHAPES, help="KxN, comma-separated")
    parser.add_argument("--rows", default=ROWS, help="M, comma-separated")
    parser.add_argument(
        "--plot-rows", default=PLOT_ROWS, help=f"more M, for {PLOT_SHAPE} and the plot"
    )
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7, help="fewer where a round takes long")
    parser.add_argument("--peers", default="*", help="globs of names, comma-separated")
    parser.add_argument("--only", default="hot,cold,memory", help="parts, comma-separated")
    parser.add_argument("--quick", action="store_true", help="one shape, hot, 3 rounds")
    parser.add_argument("--json", type=Path, help="where results go; what is not measured stays")
    parser.add_argument("--machine", help="what pages call this machine; the processor's own name")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.plot_rows = "2560x2560", ""
        arguments.rounds, arguments.only = 3, "hot"
    return arguments


def main() -> None:
    """Measure, print, write."""
    arguments = parsed()
    if arguments.worker:
        arguments.worker.write_text(json.dumps(worker(arguments)), encoding="utf-8")
        return
    start = time.time()
    parts = arguments.only.split(",")
    result: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8"))
    result["conditions"] = {
        **conditions(),
        **versions(),
        "rounds": f"up to {arguments.rounds} interleaved, medians",
        "weights": "40 % zeros, one scale per column",
    }
    result["cpu flags"] = cpu_flags()
    if arguments.machine:
        result["machine"] = arguments.machine
    found: dict[str, Any] = {"rows": [], "cold": [], "skipped": {}}
    if {"hot", "cold"} & set(parts):
        for threads in arguments.threads.split(","):
            part = with_threads(threads)
            found["rows"] += part.get("rows", [])
            found["cold"] += part.get("cold", [])
            found["skipped"] |= part["skipped"]
    for name in ("rows", "cold"):
        result[name] = merged(result.get(name, []), found[name])
    if "memory" in parts:
        result["memory"] = memory()
    result["skipped"] = found["skipped"]

    console = Console()
    facts = result["conditions"].items()
    console.print(", ".join(f"{name} {value}" for name, value in facts), highlight=False)
    for name, why in result["skipped"].items():
        console.print(f"{name} skipped: {why}", highlight=False)
    show(console, "hot", found["rows"])
    show(console, "cold", found["cold"])
    show(console, "memory, bytes", result.get("memory", []) if "memory" in parts else [])
    console.print(f"{time.time() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
