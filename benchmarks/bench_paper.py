"""The experiments of arXiv 2411.06360 with the kernels of this package, one thread.

Times, as JSON, tables and plots: (a) vector-matrix products of n x n binary and ternary matrices,
(b) against block width, (c) memory of the index, (d) in numpy, (e) layers of language models, and
(f) batches against the FMA peak. The plain products in C are compiled here by the system's
compiler. Outputs are checked before they are timed.

    python benchmarks/bench_paper.py --json paper.json             # measure
    python benchmarks/bench_paper.py --from paper.json --docs docs # tables and plots of the docs
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from harness import Candidate, conditions, measure
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import _native
from onnx_ternary.index import build_index, rsr
from onnx_ternary.schema import Algorithm, Alphabet, OpAttributes, Storage
from onnx_ternary.ternary import TernaryWeight

NO_BIAS = np.zeros((), np.float32)
ONE = np.ones((), np.float32)
ALPHABETS: tuple[Alphabet, ...] = ("binary_01", "ternary")
ALGORITHMS: tuple[Algorithm, ...] = ("rsr", "rsr++")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# K x N of the products of one layer: attention, key and value, up, down.
LAYERS = {
    "Llama3-8B": ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)),
    "Falcon3-3B": ((3072, 3072), (3072, 1024), (3072, 9216), (9216, 3072)),
    "Falcon3-10B": ((3072, 23040), (23040, 3072)),
}
# The authors' C++, -O3 -march=native, binary, int32 activations, on a machine of this kind: ms.
AUTHORS_MS = {
    "rsr": {2048: 0.99, 4096: 4.16, 8192: 20.8, 16384: 52.2},
    "rsr++": {2048: 1.06, 4096: 4.29, 8192: 27.1, 16384: 37.6},
    "standard": {8192: 762.0, 16384: 3859.0},
}
C_SOURCE = """
#include <immintrin.h>
#include <stdint.h>
// The product the paper compares with: down the columns of a matrix stored by rows.
void column_order(const int32_t* w, const int32_t* x, int64_t n, int32_t* y) {
  for (int64_t j = 0; j < n; ++j) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * w[i * n + j];
    y[j] = sum;
  }
}
// The same with the loops in the order of memory, and weights of one byte.
void row_order(const int8_t* w, const int32_t* x, int64_t n, int32_t* y) {
  for (int64_t j = 0; j < n; ++j) y[j] = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) y[j] += x[i] * w[i * n + j];
  }
}
float fma_chain(int64_t count) {
  __m256 a[12], b = _mm256_set1_ps(0.5f);
  for (int l = 0; l < 12; ++l) a[l] = _mm256_set1_ps((float)l);
  for (int64_t i = 0; i < count; ++i) {
    for (int l = 0; l < 12; ++l) a[l] = _mm256_fmadd_ps(a[l], b, b);
  }
  for (int l = 1; l < 12; ++l) a[0] = _mm256_add_ps(a[0], a[l]);
  return _mm256_cvtss_f32(a[0]);
}
"""


@cache
def plain(optimisation: str) -> ctypes.CDLL:
    """The C products, compiled with -O0 or -O3."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise SystemExit("The plain products need a C compiler (cc, gcc or clang).")
    folder = Path(tempfile.mkdtemp())
    source = folder / "plain.c"
    source.write_text(C_SOURCE, encoding="utf-8")
    target = folder / f"plain{optimisation}.so"
    flags = [optimisation, "-march=native", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    for name in ("column_order", "row_order"):
        getattr(library, name).argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_void_p]
        getattr(library, name).restype = None
    library.fma_chain.argtypes = [ctypes.c_int64]
    library.fma_chain.restype = ctypes.c_float
    return library


def plain_product(
    function: str, optimisation: str, weight: NDArray[Any], x: NDArray[np.float32]
) -> Callable[[], NDArray[Any]]:
    call = getattr(plain(optimisation), function)
    row = x[0].astype(np.int32)
    y = np.empty((1, weight.shape[1]), np.int32)

    def run() -> NDArray[Any]:
        call(weight.ctypes.data, row.ctypes.data, weight.shape[0], y.ctypes.data)
        return y

    return run


def random_levels(K: int, N: int, alphabet: Alphabet) -> NDArray[np.int8]:
    rng = np.random.default_rng(K + N)
    levels = rng.integers(-1 if alphabet == "ternary" else 0, 2, (K, N), np.int8)
    return np.ascontiguousarray(levels)


def activations(M: int, K: int) -> NDArray[np.float32]:
    """Integers that the int8 rule keeps as they are, so that every answer can be exact."""
    x = np.random.default_rng(M).integers(-127, 128, (M, K)).astype(np.float32)
    x[:, 0] = 127
    return x


def product(
    levels: NDArray[np.int8],
    alphabet: Alphabet,
    x: NDArray[np.float32],
    activation: str,
    **options: Any,
) -> tuple[Callable[[], NDArray[Any]], dict[str, Any]]:
    """A product through our kernels, and what it is."""
    index = build_index(TernaryWeight(levels, ONE, 0, alphabet, 0.0), **options)
    attributes = index.attributes
    if activation == "int8":
        attributes = replace(
            attributes,
            activation="int8",
            activation_rule="absmax_division",
            activation_epsilon=1e-5,
            activation_qmin=-128,
            activation_qmax=127,
        )
    layer = _native.Layer(attributes, index.codes, index.aux, index.scale, NO_BIAS)
    out = np.empty((x.shape[0], attributes.N), np.float32)
    _, kernel = layer.run(x, out=out)
    about = {
        "kernel": kernel,
        "block_width": attributes.block_width,
        "index_bytes": index.codes.nbytes + index.aux.nbytes,
    }
    return lambda: layer.run(x, out=out)[0], about


def onnxruntime_product(
    weight: NDArray[np.float32], x: NDArray[np.float32]
) -> Callable[[], NDArray[Any]]:
    """MatMul in float32; the weight is an input, so models above 2 GB need no files."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        "product",
        [info("X", TensorProto.FLOAT, ["M", weight.shape[0]])],
        [info("Y", TensorProto.FLOAT, ["M", weight.shape[1]])],
        [numpy_helper.from_array(weight, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if weight.nbytes < 2**31 - 2**20:
        serialized = model.SerializeToString()
    else:
        graph.initializer.pop()
        graph.input.append(info("W", TensorProto.FLOAT, list(weight.shape)))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: np.asarray(session.run(None, {"X": x, "W": weight})[0])
    session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, {"X": x})[0])


def numpy_rsr(
    levels: NDArray[np.int8], algorithm: Algorithm, x: NDArray[np.float32]
) -> Callable[[], NDArray[Any]]:
    """RSR and RSR++ in numpy, all column blocks of a binary matrix at once."""
    K, N = levels.shape
    width = rsr.optimal_block_width(K, N, "planes", algorithm)
    permutation, offsets = _native.pack_rsr(
        levels, storage="planes", alphabet="binary_01", block_width=width, group_size=0
    )
    rows = permutation[0].astype(np.int64)
    begins = offsets[0, :, 0].astype(np.int64)
    filled = begins[:, 1:] > begins[:, :-1]
    starts = (begins[:, :-1] + np.arange(rows.shape[0])[:, None] * K)[filled]
    patterns = np.indices((2,) * width).reshape(width, -1).T.astype(np.float32)
    u = np.zeros(filled.shape, np.float32)

    def run() -> NDArray[Any]:
        u[filled] = np.add.reduceat(x[0][rows].ravel(), starts)
        if algorithm == "rsr":
            return (u @ patterns).reshape(1, -1)[:, :N]
        y = np.empty((rows.shape[0], width), np.float32)
        sums = u
        for column in range(width - 1, -1, -1):
            y[:, column] = sums[:, 1::2].sum(axis=1)
            sums = sums[:, ::2] + sums[:, 1::2]
        return y.reshape(1, -1)[:, :N]

    return run


def timed(
    runs: dict[str, Callable[[], NDArray[Any]]],
    exact: NDArray[np.int64],
    rounds: int,
    slow: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Checked and timed side by side; the slow ones by themselves, twice."""
    for name, run in runs.items():
        if not np.array_equal(run(), exact):
            raise SystemExit(f"{name}: wrong answer")
    times = measure(
        [Candidate(name, run) for name, run in runs.items() if name not in slow],
        rounds=rounds,
        clock=time.thread_time,
    )
    if slow:
        candidates = [Candidate(name, runs[name]) for name in slow]
        times |= measure(candidates, rounds=2, clock=time.thread_time)
    return {
        name: {
            "ms": timing.median * 1e3,
            "smallest_ms": min(timing.seconds) * 1e3,
            "spread": timing.spread,
        }
        for name, timing in times.items()
    }


def square(n: int, alphabet: Alphabet, rounds: int, naive_most: int) -> list[dict[str, Any]]:
    """Part (a), and the numpy products of (d)."""
    levels, x = random_levels(n, n, alphabet), activations(1, n)
    weight = levels.astype(np.float32)
    exact = np.rint(x.astype(np.float64) @ weight).astype(np.int64)
    runs: dict[str, Callable[[], NDArray[Any]]] = {}
    about: dict[str, dict[str, Any]] = {}

    def ours(name: str, activation: str, **options: Any) -> None:
        runs[name], about[name] = product(levels, alphabet, x, activation, **options)

    for activation in ("float", "int8"):
        for algorithm in ALGORITHMS:
            label = algorithm.upper()
            ours(f"{label} {activation}", activation, index_format="rsr", algorithm=algorithm)
            if alphabet == "ternary":
                ours(
                    f"{label} base 3 {activation}",
                    activation,
                    index_format="rsr",
                    storage="base3",
                    algorithm=algorithm,
                )
        ours(f"packed {activation}", activation, storage="2bit")
    runs["standard, row order, -O3"] = plain_product("row_order", "-O3", levels, x)
    runs["ONNX Runtime float32"] = onnxruntime_product(weight, x)
    runs["numpy float32"] = lambda: x @ weight
    if alphabet == "binary_01":
        for algorithm in ALGORITHMS:
            runs[f"numpy {algorithm.upper()}"] = numpy_rsr(levels, algorithm, x)
    slow = []
    if n <= naive_most:
        wide = levels.astype(np.int32)
        for optimisation in ("-O0", "-O3"):
            name = f"standard, column order, {optimisation}"
            runs[name] = plain_product("column_order", optimisation, wide, x)
            slow.append(name)
    times = timed(runs, exact, rounds, slow)
    return [
        {"n": n, "alphabet": alphabet, "name": name, **times[name], **about.get(name, {})}
        for name in runs
    ]


def widths(n: int, rounds: int) -> list[dict[str, Any]]:
    """Part (b)."""
    rows = []
    x = activations(1, n)
    cases: tuple[tuple[Alphabet, Storage, range], ...] = (
        ("binary_01", "planes", range(4, 14)),
        ("ternary", "base3", range(3, 9)),
    )
    for alphabet, storage, span in cases:
        levels = random_levels(n, n, alphabet)
        exact = np.rint(x.astype(np.float64) @ levels.astype(np.float32)).astype(np.int64)
        for algorithm in ALGORITHMS:
            runs, about = {}, {}
            for width in span:
                runs[str(width)], about[str(width)] = product(
                    levels,
                    alphabet,
                    x,
                    "int8",
                    index_format="rsr",
                    storage=storage,
                    algorithm=algorithm,
                    block_width=width,
                )
            times = timed(runs, exact, rounds)
            predicted = rsr.optimal_block_width(n, n, storage, algorithm)
            rows += [
                {
                    "n": n,
                    "storage": storage,
                    "algorithm": algorithm,
                    "predicted": predicted,
                    **times[width],
                    **about[width],
                }
                for width in runs
            ]
    return rows


def index_bytes(K: int, N: int, alphabet: Alphabet, storage: Storage, algorithm: Algorithm) -> int:
    """docs/index_format.md section 3; tests/unit/test_paper.py compares it with built ones."""
    width = rsr.optimal_block_width(K, N, storage, algorithm)
    attributes = OpAttributes(
        K=K,
        N=N,
        index_format="rsr",
        storage=storage,
        alphabet=alphabet,
        block_size=0,
        block_width=width,
        algorithm=algorithm,
    )
    entry = 2 if K <= 65536 else 4
    block = entry * K + 4 * (attributes.num_patterns + 1)
    return int(attributes.num_planes * math.ceil(N / width) * block)


def memory() -> list[dict[str, Any]]:
    """Part (c)."""
    rows = []
    for exponent in range(11, 17):
        n = 2**exponent
        kinds: tuple[tuple[str, Alphabet, Storage], ...] = (
            ("binary", "binary_01", "planes"),
            ("ternary", "ternary", "planes"),
            ("ternary, base 3", "ternary", "base3"),
        )
        for name, alphabet, storage in kinds:
            for algorithm in ALGORITHMS:
                size = index_bytes(n, n, alphabet, storage, algorithm)
                rows.append({"n": n, "name": name, "algorithm": algorithm, "index_bytes": size})
    return rows


def layers(rounds: int) -> list[dict[str, Any]]:
    """Part (e)."""
    rows = []
    for model, shapes in LAYERS.items():
        for K, N in shapes:
            levels, x = random_levels(K, N, "ternary"), activations(1, K)
            weight = levels.astype(np.float32)
            exact = np.rint(x.astype(np.float64) @ weight).astype(np.int64)
            runs = {"ONNX Runtime float32": onnxruntime_product(weight, x)}
            for activation in ("float", "int8"):
                kinds: dict[str, dict[str, Any]] = {
                    "RSR": {"index_format": "rsr", "algorithm": "rsr"},
                    "RSR++": {"index_format": "rsr", "algorithm": "rsr++"},
                    "RSR++ base 3": {"index_format": "rsr", "storage": "base3"},
                    "packed": {},
                }
                for name, options in kinds.items():
                    label = f"{name} {activation}"
                    runs[label], _ = product(levels, "ternary", x, activation, **options)
            times = timed(runs, exact, rounds)
            rows += [{"model": model, "K": K, "N": N, "name": name, **times[name]} for name in runs]
            print(f"{model} {K}x{N}", file=sys.stderr)
    return rows


def batches(n: int, rounds: int) -> list[dict[str, Any]]:
    """Part (f): GMAC/s of batches, and the FMA peak as measured."""
    rows = []
    count = 200_000
    peak = timed_peak(count, rounds)
    for alphabet, storage in (("binary_01", "planes"), ("ternary", "planes"), ("ternary", "base3")):
        levels = random_levels(n, n, alphabet)  # type: ignore[arg-type]  # literals of the tuple
        weight = levels.astype(np.float32)
        for M in (1, 8, 16, 32):
            x = activations(M, n)
            exact = np.rint(x.astype(np.float64) @ weight).astype(np.int64)
            runs = {"ONNX Runtime float32": onnxruntime_product(weight, x)}
            for activation in ("float", "int8"):
                runs[f"RSR++ {activation}"], _ = product(
                    levels,
                    alphabet,  # type: ignore[arg-type]  # as above
                    x,
                    activation,
                    index_format="rsr",
                    storage=storage,
                )
            times = timed(runs, exact, rounds)
            rows += [
                {
                    "n": n,
                    "kind": f"{alphabet} {storage}",
                    "M": M,
                    "name": name,
                    "gmacs": M * n * n / times[name]["ms"] / 1e6,
                    "peak_gmacs": peak,
                    **times[name],
                }
                for name in runs
            ]
    return rows


def timed_peak(count: int, rounds: int) -> float:
    """Multiply-adds a second of one core in 256-bit registers, in 10^9."""

    def run() -> NDArray[Any]:
        return np.array([plain("-O3").fma_chain(count)])

    found = measure([Candidate("peak", run)], rounds=rounds, clock=time.thread_time)["peak"]
    return 12 * 8 * count / min(found.seconds) / 1e9


# ---------------------------------------------------------------------------------------------
# Tables and plots


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times_faster(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table_square(result: dict[str, Any], alphabet: str) -> str:
    found = [row for row in result["square"] if row["alphabet"] == alphabet]
    sizes = sorted({row["n"] for row in found})
    names = list(dict.fromkeys(row["name"] for row in found))
    time = {(row["name"], row["n"]): row for row in found}
    rows = []
    for name in names:
        cells = [
            f"{ms(time[name, n]['ms'])} (±{time[name, n]['spread'] * 100:.0f} %)"
            if (name, n) in time
            else ""
            for n in sizes
        ]
        rows.append([name, *cells])
    if alphabet == "binary_01":
        for name, figures in AUTHORS_MS.items():
            label = {"standard": "standard, column order, -O3"}.get(name, name.upper())
            rows.append(
                [
                    f"*authors' C++: {label}*",
                    *[ms(figures[n]) if n in figures else "" for n in sizes],
                ]
            )
    return table(["ms", *[f"n = {n}" for n in sizes]], rows)


def table_speedups(result: dict[str, Any]) -> str:
    found = [row for row in result["square"] if row["alphabet"] == "binary_01"]
    sizes = sorted({row["n"] for row in found})
    time = {(row["name"], row["n"]): row["ms"] for row in found}
    rows = []
    for n in sizes:
        best = min(time["RSR int8", n], time["RSR++ int8", n])
        authors = min(AUTHORS_MS[a][n] for a in ALGORITHMS) if n in AUTHORS_MS["rsr"] else None
        against = [
            "standard, column order, -O0",
            "standard, column order, -O3",
            "standard, row order, -O3",
            "ONNX Runtime float32",
            "numpy float32",
            "packed int8",
        ]
        cells = [
            times_faster(time[name, n] / best) if (name, n) in time else "" for name in against
        ]
        rows.append([str(n), *cells, times_faster(authors / best) if authors else ""])
    return table(
        [
            "n",
            "column order -O0",
            "column order -O3",
            "row order -O3",
            "ONNX Runtime float32",
            "numpy float32",
            "our packed int8",
            "authors' better",
        ],
        rows,
    )


def table_widths(result: dict[str, Any]) -> str:
    rows = []
    for key in dict.fromkeys((r["storage"], r["algorithm"]) for r in result["widths"]):
        found = [r for r in result["widths"] if (r["storage"], r["algorithm"]) == key]
        best = min(found, key=lambda row: row["ms"])
        at = next(r for r in found if r["block_width"] == r["predicted"])
        rows.append(
            [
                key[0],
                key[1].upper(),
                str(at["predicted"]),
                ms(at["ms"]),
                str(best["block_width"]),
                ms(best["ms"]),
                f"{at['ms'] / best['ms']:.2f}",
            ]
        )
    return table(
        ["storage", "algorithm", "predicted", "ms", "fastest", "ms", "predicted / fastest"], rows
    )


def table_memory(result: dict[str, Any]) -> str:
    rows = []
    for row in result["memory"]:
        dense = row["n"] ** 2
        rows.append(
            [
                str(row["n"]),
                row["name"],
                row["algorithm"].upper(),
                f"{row['index_bytes'] / 2**20:.1f}",
                f"{dense / row['index_bytes']:.2f}",
                f"{4 * dense / row['index_bytes']:.1f}",
            ]
        )
    return table(["n", "matrix", "algorithm", "index MiB", "int8 / index", "float32 / index"], rows)


def table_layers(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["name"] for row in result["layers"]))
    rows = []
    for key in dict.fromkeys((r["model"], r["K"], r["N"]) for r in result["layers"]):
        time = {r["name"]: r["ms"] for r in result["layers"] if (r["model"], r["K"], r["N"]) == key}
        rows.append([f"{key[0]} {key[1]}x{key[2]}", *[ms(time[name]) for name in names]])
    return table(["ms", *names], rows)


def table_batches(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["name"] for row in result["batches"]))
    rows = []
    for key in dict.fromkeys((r["kind"], r["M"]) for r in result["batches"]):
        rate = {r["name"]: r for r in result["batches"] if (r["kind"], r["M"]) == key}
        peak = next(iter(rate.values()))["peak_gmacs"]
        rows.append([key[0], str(key[1])])
        rows[-1] += [f"{rate[n]['gmacs']:.1f} ({rate[n]['gmacs'] / peak:.2f})" for n in names]
    return table(["matrix", "M", *[f"{name}, GMAC/s (of FMA peak)" for name in names]], rows)


def conditions_text(result: dict[str, Any]) -> str:
    found = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    how = f"one thread, its CPU time; medians of {result['rounds']} interleaved rounds."
    return f"{found}; {how} {result['note']}"


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Every table whose measurements are there, by the name of its place in docs/paper.md."""
    makers: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "binary": ("square", partial(table_square, alphabet="binary_01")),
        "ternary": ("square", partial(table_square, alphabet="ternary")),
        "speedups": ("square", table_speedups),
        "widths": ("widths", table_widths),
        "memory": ("memory", table_memory),
        "layers": ("layers", table_layers),
        "batches": ("batches", table_batches),
    }
    made = {name: make(result) for name, (part, make) in makers.items() if result.get(part)}
    return {"conditions": conditions_text(result), **made}


def write_docs(result: dict[str, Any], docs: Path) -> None:
    """Fills the places of paper.md marked <!-- name --> ... <!-- end --> and draws the plots."""
    page = docs / "paper.md"
    text = page.read_text(encoding="utf-8")
    for name, content in tables(result).items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, content=content: f"{match[1]}{content}\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f"{page}: expected one place for '{name}', found {count}")
    page.write_text(text, encoding="utf-8")
    draw(result, docs)


def draw(result: dict[str, Any], docs: Path) -> None:
    import matplotlib  # type: ignore[import-not-found,unused-ignore]  # a benchmark extra

    matplotlib.use("svg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    matplotlib.rcParams["svg.hashsalt"] = "paper"
    shown = {
        "standard, column order, -O0": "standard, columns, -O0",
        "standard, column order, -O3": "standard, columns, -O3",
        "standard, row order, -O3": "standard, rows, -O3",
        "ONNX Runtime float32": "ONNX Runtime float32",
        "RSR int8": "RSR",
        "RSR++ int8": "RSR++",
        "RSR++ base 3 int8": "RSR++ base 3",
        "packed int8": "packed",
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, alphabet, title in zip(axes, ALPHABETS, ("binary", "ternary"), strict=True):
        for colour, (name, label) in enumerate(shown.items()):
            points = [
                (row["n"], row["ms"])
                for row in result["square"]
                if row["alphabet"] == alphabet and row["name"] == name
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=f"C{colour}", label=label)
        if alphabet == "binary_01":
            points_a = list(AUTHORS_MS["rsr++"].items())
            axis.plot(*zip(*points_a, strict=True), "k:", label="authors' RSR++")
        axis.set(title=f"{title}, int8 activations", xlabel="n", xscale="log", yscale="log")
        axis.set_xticks(sorted({row["n"] for row in result["square"]}))
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.minorticks_off()
        axis.legend(fontsize=7, loc="upper left")
    axes[0].set_ylabel("ms a product")
    save(figure, docs / "paper_time.svg")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, storage in zip(axes, ("planes", "base3"), strict=True):
        for algorithm in ALGORITHMS:
            found = [
                r
                for r in result["widths"]
                if (r["storage"], r["algorithm"]) == (storage, algorithm)
            ]
            if not found:
                continue
            axis.plot(
                [r["block_width"] for r in found],
                [r["ms"] for r in found],
                "o-",
                label=algorithm.upper(),
            )
            at = next(r for r in found if r["block_width"] == r["predicted"])
            axis.plot(at["block_width"], at["ms"], "k*", markersize=14)
        axis.set(title=f"{storage}, n = {result['widths'][0]['n']}", xlabel="block width")
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[0].set_ylabel("ms a product (star: predicted optimum)")
    save(figure, docs / "paper_width.svg")

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["name"] for row in result["memory"]):
        found = [r for r in result["memory"] if r["name"] == name and r["algorithm"] == "rsr++"]
        sizes = [r["n"] for r in found]
        axis.plot(sizes, [r["index_bytes"] for r in found], "o-", label=f"index, {name}")
    axis.plot(sizes, [n**2 for n in sizes], "k--", label="int8")
    axis.plot(sizes, [4 * n**2 for n in sizes], "k-", label="float32")
    axis.set(xlabel="n", ylabel="bytes", xscale="log", yscale="log")
    axis.set_xticks(sizes)
    axis.get_xaxis().set_major_formatter("{x:.0f}")
    axis.minorticks_off()
    axis.legend(fontsize=8)
    save(figure, docs / "paper_memory.svg")


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="2048,4096,8192,16384", help="n; 32768 takes 20 GB")
    parser.add_argument(
        "--naive-most", type=int, default=8192, help="largest n of the column-order product"
    )
    parser.add_argument("--width-size", type=int, default=4096, help="n of the block widths")
    parser.add_argument("--batch-size", type=int, default=4096, help="n of the batches")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="square,widths,memory,layers,batches")
    parser.add_argument("--note", default="", help="about the machine, for the conditions")
    parser.add_argument("--json", type=Path, help="where results go; parts not measured stay")
    parser.add_argument("--from", type=Path, dest="source", help="results to show, not measure")
    parser.add_argument("--docs", type=Path, help="folder of paper.md, for its tables and plots")
    arguments = parser.parse_args()
    if arguments.source:
        result = json.loads(arguments.source.read_text(encoding="utf-8"))
    else:
        if any(os.environ.get(name) != "1" for name in THREADS):
            # Matrix libraries read these when they are loaded.
            os.environ.update(dict.fromkeys(THREADS, "1"))
            os.execv(sys.executable, [sys.executable, *sys.argv])
        result = measured(arguments)
    for name, content in tables(result).items():
        print(f"\n{name}\n{content}")
    if arguments.docs:
        write_docs(result, arguments.docs)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8"))
    rounds = arguments.rounds
    sizes = [int(n) for n in arguments.sizes.split(",")]
    result |= {"conditions": conditions(), "rounds": rounds, "note": arguments.note}
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "square": lambda: [
            row
            for n in sizes
            for alphabet in ALPHABETS
            for row in square(n, alphabet, rounds, arguments.naive_most)
        ],
        "widths": lambda: widths(arguments.width_size, rounds),
        "memory": memory,
        "layers": lambda: layers(rounds),
        "batches": lambda: batches(arguments.batch_size, rounds),
    }
    for part in arguments.only.split(","):
        # Sizes may be measured one by one.
        kept = [row for row in result.get(part, []) if part == "square" and row["n"] not in sizes]
        result[part] = sorted(kept + parts[part](), key=lambda row: row.get("n", 0))
        print(f"{part} done", file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
