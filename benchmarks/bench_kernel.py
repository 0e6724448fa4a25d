"""One matrix product through ONNX Runtime sessions: our op against what ONNX Runtime has.

Every candidate runs in a session of its own, all in one process, in rounds that interleave them;
outputs are checked before anything is timed. Prints medians, the spread and the conditions.

    python benchmarks/bench_kernel.py --shapes 2560x2560,2560x6912 --rows 1,8,64 --threads 1
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import _native
from onnx_ternary._library import get_library_path
from onnx_ternary.schema import OpAttributes

DOMAIN = "onnx_ternary"
BLOCK = 128


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def model(node: onnx.NodeProto, K: int, N: int, constants: dict[str, NDArray[np.generic]]) -> bytes:
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["M", K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid(DOMAIN, 1),
    ]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return proto.SerializeToString()


def float_matmul(levels: NDArray[np.int8], scale: NDArray[np.float32]) -> bytes:
    weight = levels.astype(np.float32) * scale
    K, N = levels.shape
    return model(helper.make_node("MatMul", ["X", "W"], ["Y"]), K, N, {"W": weight})


def matmul_nbits(levels: NDArray[np.int8], scale: NDArray[np.float32]) -> bytes:
    K, N = levels.shape
    codes = (levels.T + 1).astype(np.uint8).reshape(N, K // BLOCK, BLOCK // 4, 4)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    node = helper.make_node(
        "MatMulNBits",
        ["X", "B", "scales", "zero_points"],
        ["Y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=2,
        block_size=BLOCK,
        accuracy_level=4,
    )
    constants: dict[str, NDArray[np.generic]] = {
        "B": packed.astype(np.uint8),
        "scales": np.repeat(scale[:, None], K // BLOCK, axis=1).reshape(-1),
        "zero_points": np.full((N, -(-K // BLOCK // 4)), 0x55, np.uint8).reshape(-1),
    }
    return model(node, K, N, constants)


def ternary(levels: NDArray[np.int8], scale: NDArray[np.float32], activation: str) -> bytes:
    K, N = levels.shape
    attributes = OpAttributes(K=K, N=N, storage="2bit", alphabet="ternary", block_size=BLOCK)
    if activation == "int8":
        attributes = replace(
            attributes,
            activation="int8",
            activation_rule="absmax_division",
            activation_epsilon=1e-5,
            activation_qmin=-128,
            activation_qmax=127,
        )
    constants: dict[str, NDArray[np.generic]] = {
        "codes": _native.pack(levels, storage="2bit", alphabet="ternary", block_size=BLOCK),
        "aux": np.zeros(1, np.uint32),
        "scale": scale,
        "bias": np.zeros((), np.float32),
    }
    node = helper.make_node(
        "TernaryIndexedMatMul", ["X", *constants], ["Y"], domain=DOMAIN, **attributes.to_dict()
    )
    return model(node, K, N, constants)


def session(serialized: bytes, threads: int, library: str | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def seconds(
    run: Callable[[], object], clock: Callable[[], float] = time.perf_counter, least: float = 0.02
) -> float:
    """Time of one call, averaged over as many as take `least` seconds."""
    calls = 0
    begin = clock()
    while True:
        run()
        calls += 1
        elapsed = clock() - begin
        if elapsed >= least:
            return elapsed / calls


def bench(
    K: int, N: int, rows: list[int], threads: int, rounds: int, clock: Callable[[], float]
) -> None:
    rng = np.random.default_rng(0)
    levels = rng.choice(np.array([-1, 0, 1], np.int8), (K, N), p=[0.3, 0.4, 0.3])
    scale = rng.uniform(0.5, 1.5, N).astype(np.float32)
    library = get_library_path()
    sessions = {
        "MatMul float32": session(float_matmul(levels, scale), threads, None),
        "MatMulNBits 2-bit accuracy_level 4": session(matmul_nbits(levels, scale), threads, None),
        "ours, float": session(ternary(levels, scale, "float"), threads, library),
        "ours, int8": session(ternary(levels, scale, "int8"), threads, library),
    }
    # Relative to the largest output; the two that quantise activations to 8 bits are coarser.
    tolerance = {"MatMulNBits 2-bit accuracy_level 4": 2e-2, "ours, int8": 2e-2}
    for M in rows:
        x = rng.normal(size=(M, K)).astype(np.float32)
        exact = x.astype(np.float64) @ (levels * scale.astype(np.float64))
        for name, candidate in sessions.items():
            error = np.max(np.abs(candidate.run(None, {"X": x})[0] - exact)) / np.max(np.abs(exact))
            if not error <= tolerance.get(name, 1e-5):
                raise SystemExit(f"{name}: wrong answer, relative error {error:.1e}")
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            for name, candidate in sessions.items():
                times[name].append(seconds(partial(candidate.run, None, {"X": x}), clock))
        base = statistics.median(times["MatMul float32"])
        for name, samples in times.items():
            median = statistics.median(samples)
            print(
                f"| {K}x{N} | {M} | {threads} | {name} | {median * 1e6:.0f} | "
                f"{min(samples) * 1e6:.0f}..{max(samples) * 1e6:.0f} | "
                f"{M * K * N / median / 1e9:.1f} | {base / median:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="2560x2560,2560x6912", help="KxN, comma-separated")
    parser.add_argument("--rows", default="1,8,64", help="M, comma-separated")
    parser.add_argument("--threads", default="1", help="intra-op threads, comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of the calling thread: on a busy machine, with one thread",
    )
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != "1":
        parser.error("--cpu-time sees one thread only")
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    print(
        f"CPU {cpu_name()}; {', '.join(_native.kernels()['cpu'])}; onnxruntime {ort.__version__}; "
        f"Python {platform.python_version()}; {arguments.rounds} interleaved rounds, medians; "
        f"ternary weights, 40 % zeros, one scale a column"
        f"{', processor time of the calling thread' if arguments.cpu_time else ''}."
    )
    print("| KxN | M | threads | candidate | us | spread | GMAC/s | x float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in map(int, arguments.threads.split(",")):
        for shape in arguments.shapes.split(","):
            K, N = map(int, shape.split("x"))
            rows = list(map(int, arguments.rows.split(",")))
            bench(K, N, rows, threads, arguments.rounds, clock)


if __name__ == "__main__":
    main()
