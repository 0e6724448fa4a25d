"""The experiments of arXiv 2411.06360 with the kernels of this package, one thread.

Times, as JSON, tables and plots: (a) vector-matrix products of n x n binary and ternary matrices,
(b) against block width, (c) memory of the index, (d) in numpy, (e) layers of language models, and
(f) batches against the FMA peak. The plain products in C are compiled here by the system's
compiler. Outputs are checked before they are timed. A candidate that would not fit into the
memory that is available is skipped, and the results say so.

    python benchmarks/bench_paper.py --json paper.json             # measure
    python benchmarks/bench_paper.py --from paper.json --docs docs # tables and plots of the docs
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from measure.c_code import compiled
from measure.harness import GIB, Candidate, available_bytes, conditions, measure
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pages import paper

from onnx_ternary.index import Index, build_index, rsr
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import layer as native_layer
from onnx_ternary.native import packers
from onnx_ternary.options import INT8_RULE
from onnx_ternary.schema import Algorithm, Alphabet, OpAttributes, Storage

NO_BIAS = np.zeros((), np.float32)
ONE = np.ones((), np.float32)
ALPHABETS: tuple[Alphabet, ...] = ("binary_01", "ternary")
ALGORITHMS: tuple[Algorithm, ...] = ("rsr", "rsr++")
# Multiply-adds of independent chains, and the lanes of each.
FMA_CHAINS = {"fma_256": 8, "fma_512": 16}
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# K x N of the products of one layer: attention, key and value, up, down.
LAYERS = {
    "Llama3-8B": ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)),
    "Falcon3-3B": ((3072, 3072), (3072, 1024), (3072, 9216), (9216, 3072)),
    "Falcon3-10B": ((3072, 23040), (23040, 3072)),
}
# Left for everything that is not counted: Python, its libraries, temporaries of the packers.
HEADROOM = 2 * GIB
C_SOURCE = """
#include <immintrin.h>
#include <stdint.h>
// The product the paper compares with: down the columns of a matrix stored by rows.
void column_order(const int32_t* w, const int32_t* x, int64_t k, int64_t n, int32_t* y) {
  for (int64_t j = 0; j < n; ++j) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += x[i] * w[i * n + j];
    y[j] = sum;
  }
}
// The same with the loops in the order of memory, and weights of one byte.
void row_order(const int8_t* w, const int32_t* x, int64_t k, int64_t n, int32_t* y) {
  for (int64_t j = 0; j < n; ++j) y[j] = 0;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) y[j] += x[i] * w[i * n + j];
  }
}
float fma_256(int64_t count) {
  __m256 a[12], b = _mm256_set1_ps(0.5f);
  for (int l = 0; l < 12; ++l) a[l] = _mm256_set1_ps((float)l);
  for (int64_t i = 0; i < count; ++i) {
    for (int l = 0; l < 12; ++l) a[l] = _mm256_fmadd_ps(a[l], b, b);
  }
  for (int l = 1; l < 12; ++l) a[0] = _mm256_add_ps(a[0], a[l]);
  return _mm256_cvtss_f32(a[0]);
}
#ifdef __AVX512F__
float fma_512(int64_t count) {
  __m512 a[12], b = _mm512_set1_ps(0.5f);
  for (int l = 0; l < 12; ++l) a[l] = _mm512_set1_ps((float)l);
  for (int64_t i = 0; i < count; ++i) {
    for (int l = 0; l < 12; ++l) a[l] = _mm512_fmadd_ps(a[l], b, b);
  }
  for (int l = 1; l < 12; ++l) a[0] = _mm512_add_ps(a[0], a[l]);
  return _mm512_cvtss_f32(a[0]);
}
#endif
"""


@dataclass(slots=True)
class Budget:
    """Memory that candidates may still take, and those it was too small for."""

    left: int
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def take(self, name: str, needed: float) -> bool:
        """Whether a candidate that needs so many bytes may be built."""
        if needed > self.left:
            gib = {"needed_gib": round(needed / GIB, 1), "left_gib": round(self.left / GIB, 1)}
            self.skipped.append({"name": name, **gib})
            print(f"{name} skipped: {gib}", file=sys.stderr)
            return False
        self.left -= int(needed)
        return True


@cache
def plain(optimization: str) -> ctypes.CDLL:
    """The C products, compiled with -O0 or -O3."""
    library = compiled(C_SOURCE, optimization)
    for name in ("column_order", "row_order"):
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        getattr(library, name).argtypes = [pointer, pointer, size, size, pointer]
        getattr(library, name).restype = None
    for name in FMA_CHAINS:
        if hasattr(library, name):
            getattr(library, name).argtypes = [ctypes.c_int64]
            getattr(library, name).restype = ctypes.c_float
    return library


def plain_product(
    function: str, optimization: str, weight: NDArray[Any], x: NDArray[np.float32]
) -> Callable[[], NDArray[Any]]:
    call = getattr(plain(optimization), function)
    row = x[0].astype(np.int32)
    y = np.empty((1, weight.shape[1]), np.int32)

    def run() -> NDArray[Any]:
        call(weight.ctypes.data, row.ctypes.data, *weight.shape, y.ctypes.data)
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


def exact_product(x: NDArray[np.float32], levels: NDArray[np.int8]) -> NDArray[np.int64]:
    """X @ W in integers, a few rows of W at a time: float64 holds every sum exactly."""
    sums = np.zeros((x.shape[0], levels.shape[1]))
    for begin in range(0, levels.shape[0], 256):
        rows = slice(begin, begin + 256)
        sums += x[:, rows].astype(np.float64) @ levels[rows].astype(np.float64)
    return sums.astype(np.int64)


def indexed(levels: NDArray[np.int8], alphabet: Alphabet, **options: Any) -> Index:
    return build_index(TernaryWeight(levels, ONE, 0, alphabet, 0.0), **options)


def product(
    index: Index, x: NDArray[np.float32], activation: str
) -> tuple[Callable[[], NDArray[Any]], dict[str, Any]]:
    """A product through our kernels, which read the index where it lies, and what it is."""
    attributes = index.attributes
    if activation == "int8":
        attributes = replace(attributes, **INT8_RULE)
    layer = native_layer.Layer(attributes, index.codes, index.aux, index.scale, NO_BIAS)
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
    """MatMul in float32. The session takes the weight as a constant where it lies."""
    info = helper.make_tensor_value_info
    constant = TensorProto(
        name="W",
        data_type=TensorProto.FLOAT,
        dims=weight.shape,
        data_location=TensorProto.EXTERNAL,
    )
    constant.external_data.add(key="location", value="given to the session")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        "product",
        [info("X", TensorProto.FLOAT, ["M", weight.shape[0]])],
        [info("Y", TensorProto.FLOAT, ["M", weight.shape[1]])],
        [constant],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    value = ort.OrtValue.ortvalue_from_numpy(weight)
    options.add_external_initializers(["W"], [value])
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run() -> NDArray[Any]:
        (y,) = session.run(None, {"X": x})
        return np.asarray(y)

    return run


def numpy_rsr(
    levels: NDArray[np.int8], algorithm: Algorithm, x: NDArray[np.float32]
) -> Callable[[], NDArray[Any]]:
    """RSR and RSR++ in numpy, all column blocks of a binary matrix at once."""
    K, N = levels.shape
    width = rsr.optimal_block_width(K, N, "planes", algorithm)
    permutation, offsets = packers.pack_rsr(
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
    runs: dict[str, Callable[[], NDArray[Any]]], exact: NDArray[np.int64], rounds: int
) -> dict[str, dict[str, float]]:
    """The times of products that are checked first, then timed side by side."""
    for name, run in runs.items():
        check(name, run(), exact)
    times = measure(
        [Candidate(name, run) for name, run in runs.items()], rounds=rounds, clock=time.thread_time
    )
    return {
        name: {
            "ms": timing.median * 1e3,
            "smallest_ms": min(timing.seconds) * 1e3,
            "spread": timing.spread,
        }
        for name, timing in times.items()
    }


def check(name: str, y: NDArray[Any], exact: NDArray[np.int64]) -> None:
    if not np.array_equal(y, exact):
        raise SystemExit(f"{name}: wrong answer")


def column_order(
    levels: NDArray[np.int8], x: NDArray[np.float32], exact: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """The paper's standard product by itself: two calls, seconds each at larger sizes."""
    wide = levels.astype(np.int32)
    times = {}
    for optimization in ("-O0", "-O3"):
        name = f"standard, column order, {optimization}"
        run = plain_product("column_order", optimization, wide, x)
        seconds = []
        for _ in range(2):
            start = time.thread_time()
            y = run()
            seconds.append(time.thread_time() - start)
            check(name, y, exact)
        spread = abs(seconds[0] - seconds[1]) / sum(seconds)
        times[name] = {
            "ms": sum(seconds) / 2 * 1e3,
            "smallest_ms": min(seconds) * 1e3,
            "spread": spread,
        }
    return times


def square(
    n: int, alphabet: Alphabet, rounds: int, naive_most: int, budget: Budget
) -> list[dict[str, Any]]:
    """Part (a), and the numpy products of (d).

    The dense matrix is held in bytes, indexes are shared by float and int8 activations, floats
    are made where they fit, and the int32 matrix of the column order once all else is freed.
    """
    cells = n * n
    if not budget.take("everything", cells):
        return []
    levels, x = random_levels(n, n, alphabet), activations(1, n)
    exact = exact_product(x, levels)
    runs: dict[str, Callable[[], NDArray[Any]]] = {}
    about: dict[str, dict[str, Any]] = {}

    kinds: dict[str, dict[str, Any]] = {}
    for algorithm in ALGORITHMS:
        of_paper = {"index_format": "rsr", "algorithm": algorithm}
        kinds[algorithm.upper()] = {**of_paper, "storage": "planes"}
        if alphabet == "ternary":
            kinds[f"{algorithm.upper()} base 3"] = {**of_paper, "storage": "base3"}
    kinds["packed"] = {"storage": "2bit"}
    for kind, options in kinds.items():
        needed = cells // 4
        if "algorithm" in options:
            needed = index_bytes(n, n, alphabet, options["storage"], options["algorithm"])
        if budget.take(kind, needed):
            index = indexed(levels, alphabet, **options)
            for activation in ("float", "int8"):
                name = f"{kind} {activation}"
                runs[name], about[name] = product(index, x, activation)
    runs["standard, row order, -O3"] = plain_product("row_order", "-O3", levels, x)
    # The matrix, and the copy ONNX Runtime may make in the order of its kernel.
    if budget.take("ONNX Runtime float32, numpy float32", 8 * cells):
        weight = levels.astype(np.float32)
        runs["ONNX Runtime float32"] = onnxruntime_product(weight, x)
        runs["numpy float32"] = lambda: x @ weight
    if alphabet == "binary_01":
        for algorithm in ALGORITHMS:
            name = f"numpy {algorithm.upper()}"
            # Row numbers of 8 bytes, the numbers they fetch, and the index they come from.
            width = rsr.optimal_block_width(n, n, "planes", algorithm)
            if budget.take(name, 14 * cells / width):
                runs[name] = numpy_rsr(levels, algorithm, x)
    times = timed(runs, exact, rounds)
    names = list(runs)
    freed = budget.left + 8 * cells if "numpy float32" in runs else budget.left
    runs.clear()
    weight = np.empty(0, np.float32)
    name = "standard, column order"
    if n > naive_most:
        reason = f"n > {naive_most} (--naive-most): seconds per product"
        budget.skipped.append({"name": name, "reason": reason})
    elif Budget(freed, budget.skipped).take(name, 4 * cells):
        times |= column_order(levels, x, exact)
    names += [name for name in times if name not in names]
    return [
        {"n": n, "alphabet": alphabet, "name": name, **times[name], **about.get(name, {})}
        for name in names
    ]


def squares(
    sizes: Sequence[int], rounds: int, naive_most: int, limit: int | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part (a) of all sizes, and what was skipped. From 2^15 on three rounds are enough."""
    rows, skipped = [], []
    for n in sizes:
        for alphabet in ALPHABETS:
            budget = Budget((limit or available_bytes()) - HEADROOM)
            rows += square(n, alphabet, rounds if n < 2**15 else 3, naive_most, budget)
            skipped += [{"n": n, "alphabet": alphabet, **each} for each in budget.skipped]
            print(f"{alphabet} n = {n} done", file=sys.stderr)
    return rows, skipped


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
        exact = exact_product(x, levels)
        for algorithm in ALGORITHMS:
            runs, about = {}, {}
            for width in span:
                index = indexed(
                    levels,
                    alphabet,
                    index_format="rsr",
                    storage=storage,
                    algorithm=algorithm,
                    block_width=width,
                )
                runs[str(width)], about[str(width)] = product(index, x, "int8")
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
    """docs/index_format.md section 3; tests/docs/test_paper.py compares it with built ones."""
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
    kinds: dict[str, dict[str, Any]] = {
        "RSR": {"index_format": "rsr", "algorithm": "rsr"},
        "RSR++": {"index_format": "rsr", "algorithm": "rsr++"},
        "RSR++ base 3": {"index_format": "rsr", "storage": "base3"},
        "packed": {},
    }
    rows = []
    for model, shapes in LAYERS.items():
        for K, N in shapes:
            levels, x = random_levels(K, N, "ternary"), activations(1, K)
            exact = exact_product(x, levels)
            runs = {
                "standard, row order, -O3": plain_product("row_order", "-O3", levels, x),
                "ONNX Runtime float32": onnxruntime_product(levels.astype(np.float32), x),
            }
            indexes = {kind: indexed(levels, "ternary", **kinds[kind]) for kind in kinds}
            for activation in ("float", "int8"):
                for kind, index in indexes.items():
                    runs[f"{kind} {activation}"], _ = product(index, x, activation)
            times = column_order(levels, x, exact) | timed(runs, exact, rounds)
            rows += [
                {"model": model, "K": K, "N": N, "name": name, **times[name]} for name in times
            ]
            print(f"{model} {K}x{N}", file=sys.stderr)
    return rows


def batches(n: int, rounds: int) -> list[dict[str, Any]]:
    """Part (f): GMAC/s of batches, and the FMA peaks as measured."""
    rows = []
    peaks = fma_peaks(200_000, rounds)
    cases: tuple[tuple[Alphabet, Storage], ...] = (
        ("binary_01", "planes"),
        ("ternary", "planes"),
        ("ternary", "base3"),
    )
    for alphabet, storage in cases:
        levels = random_levels(n, n, alphabet)
        weight = levels.astype(np.float32)
        index = indexed(levels, alphabet, index_format="rsr", storage=storage)
        for M in (1, 8, 16, 32, 64):
            x = activations(M, n)
            exact = exact_product(x, levels)
            runs = {"ONNX Runtime float32": onnxruntime_product(weight, x)}
            for activation in ("float", "int8"):
                runs[f"RSR++ {activation}"], _ = product(index, x, activation)
            times = timed(runs, exact, rounds)
            rows += [
                {
                    "n": n,
                    "kind": f"{alphabet} {storage}",
                    "M": M,
                    "name": name,
                    "gmacs": M * n * n / times[name]["ms"] / 1e6,
                    "peaks": peaks,
                    **times[name],
                }
                for name in runs
            ]
    return rows


def fma_peaks(count: int, rounds: int) -> dict[str, float]:
    """Multiply-adds a second of one core, in 10^9, by the width of its registers in bits."""
    peaks = {}
    for name, lanes in FMA_CHAINS.items():
        chain = getattr(plain("-O3"), name, None)
        if chain is None:
            continue  # this processor has no such registers
        candidate = Candidate(name, partial(chain, count))
        found = measure([candidate], rounds=rounds, clock=time.thread_time)[name]
        peaks[str(32 * lanes)] = 12 * lanes * count / min(found.seconds) / 1e9
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        default="2048,4096,8192,16384,32768,65536",
        help="n; what does not fit into memory is skipped (65536 takes 12 GB without floats)",
    )
    parser.add_argument(
        "--naive-most", type=int, default=16384, help="largest n of the column-order product"
    )
    parser.add_argument(
        "--memory-limit", type=float, metavar="GIB", help="default: what is available"
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
    for name, content in paper.tables(result).items():
        print(f"\n{name}\n{content}")
    if arguments.docs:
        paper.write(result, arguments.docs)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8"))
    rounds = arguments.rounds
    sizes = [int(n) for n in arguments.sizes.split(",")]
    result |= {"conditions": conditions(), "rounds": rounds, "note": arguments.note}
    skipped = [row for row in result.get("skipped", []) if row["n"] not in sizes]
    limit = int(arguments.memory_limit * GIB) if arguments.memory_limit else None

    def square_part() -> list[dict[str, Any]]:
        rows, left_out = squares(sizes, rounds, arguments.naive_most, limit)
        result["skipped"] = sorted(skipped + left_out, key=lambda row: int(row["n"]))
        return rows

    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "square": square_part,
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
