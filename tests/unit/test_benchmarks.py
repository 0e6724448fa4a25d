"""The benchmarks' own parts: no test here depends on how long anything takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bandwidth  # noqa: E402
import bench_kernel  # noqa: E402
import bench_paper  # noqa: E402
import kernel_pages  # noqa: E402
import pages  # noqa: E402
import paper_pages  # noqa: E402
import session_memory  # noqa: E402
from harness import Candidate, Timing, available_bytes, measure  # noqa: E402
from peers import Layer, Peer, UnavailableError, all_peers, matmul_float32  # noqa: E402

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: Iterator[float]) -> Any:
        def run() -> NDArray[np.float64]:
            self.now += next(seconds)
            return np.zeros(1)

        return run


def constant(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def test_measure_times_a_call() -> None:
    clock = Clock()
    candidates = [
        Candidate("slow", clock.takes(constant(3.0))),
        Candidate("fast", clock.takes(constant(0.25))),
    ]
    times = measure(candidates, rounds=5, seconds_a_round=1.0, clock=clock)
    assert times["slow"].seconds == (3.0,) * 5
    assert times["fast"].seconds == (0.25,) * 5
    assert times["fast"].ratio_to(times["slow"]) == 12.0


def test_measure_keeps_within_its_budget() -> None:
    clock = Clock()
    candidates = [Candidate("one", clock.takes(constant(1.0)))]
    arguments: dict[str, Any] = {"seconds_a_round": 0.5, "clock": clock}  # one call a round
    assert len(measure(candidates, rounds=9, budget_seconds=5, **arguments)["one"].seconds) == 5
    assert len(measure(candidates, rounds=9, budget_seconds=1, **arguments)["one"].seconds) == 3
    assert len(measure(candidates, rounds=2, budget_seconds=1, **arguments)["one"].seconds) == 2


def test_measure_rotates_the_order() -> None:
    order: list[str] = []

    def named(name: str) -> Candidate:
        def run() -> NDArray[np.float64]:
            order.append(name)
            return np.zeros(1)

        return Candidate(name, run)

    ticks = iter(range(10_000))
    measure([named("a"), named("b")], rounds=3, clock=lambda: float(next(ticks)))
    assert "".join(order) == "aabb" + "ab" + "ba" + "ab"  # each runs twice before


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    ours, theirs = Timing((1.0, 2.0, 4.0)), Timing((2.0, 8.0, 4.0))
    assert ours.ratio_to(theirs) == 2.0
    assert ours.median == 2.0
    assert Timing((1.0,) * 4).spread == 0.0


def test_available_bytes() -> None:
    assert available_bytes() > 2**20


@pytest.fixture(scope="module")
def layer() -> Layer:
    return Layer.random(512, 128)


@pytest.mark.parametrize("peer", all_peers(), ids=lambda peer: peer.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_peer_is_right(peer: Peer, threads: int, layer: Layer) -> None:
    try:
        runs = peer.prepare(layer, threads, 2)
    except UnavailableError as error:
        pytest.skip(f"{peer.name}: {error}")
    assert len(runs) == 2
    weight = layer.levels * layer.scale.astype(np.float64)
    for M in (1, 3, 9):
        x = np.random.default_rng(M).standard_normal((M, 512)).astype(np.float32)
        exact = x.astype(np.float64) @ weight
        errors = [bench_kernel.checked(peer, run, x, exact) for run in runs]
        # What claims to round no activations must not; what does is not exact.
        assert (max(errors) > 1e-4) == peer.quantises
    assert peer.weight_bytes(layer) > layer.levels.size // 8


def test_a_wrong_answer_is_not_timed(layer: Layer) -> None:
    (peer,) = matmul_float32.PEERS
    (run,) = peer.prepare(layer, 1, 1)
    x = np.ones((2, 512), np.float32)
    exact = x.astype(np.float64) @ layer.dense.astype(np.float64)
    with pytest.raises(SystemExit, match="relative error"):
        bench_kernel.checked(peer, lambda given: run(given) * np.float32(1.001), x, exact)
    with pytest.raises(SystemExit, match="relative error"):
        bench_kernel.checked(peer, lambda given: run(given) * np.float32(np.nan), x, exact)


def test_random_layers_are_ternary() -> None:
    made = Layer.random(64, 256)
    assert set(np.unique(made.levels)) == {-1, 0, 1}
    assert 0.3 < (made.levels == 0).mean() < 0.5


def test_kernel_benchmark_runs(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    command = [sys.executable, str(BENCHMARKS / "bench_kernel.py"), "--json", str(path)]
    command += ["--shapes", "256x128", "--rows", "1,2", "--threads", "1", "--rounds", "3"]
    done = subprocess.run(
        [*command, "--only", "hot", "--peers", "onnx-ternary*"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    names = ["MatMul float32", "onnx-ternary float", "onnx-ternary int8"]
    assert [row["candidate"] for row in found["rows"]] == names * 2
    assert {row["M"] for row in found["rows"]} == {1, 2}
    assert all(len(row["rounds_us"]) == 3 for row in found["rows"])
    assert {"cpu", "isa", "onnxruntime", "numpy", "python"} <= found["conditions"].keys()


def test_results_measured_again_replace_the_old_ones() -> None:
    def rows(shape: str, threads: int, us: int) -> list[dict[str, Any]]:
        return [{"KxN": shape, "M": M, "threads": threads, "us": us} for M in (1, 8)]

    old = rows("2560x6912", 1, 1) + rows("2560x2560", 1, 1) + rows("2560x2560", 2, 1)
    merged = bench_kernel.merged(old, rows("2560x2560", 1, 2))
    found = [(row["threads"], row["KxN"], row["us"]) for row in merged if row["M"] == 1]
    assert found == [(1, "2560x2560", 2), (1, "2560x6912", 1), (2, "2560x2560", 1)]
    assert len(merged) == 6


def test_targets_take_the_worst_case() -> None:
    def row(shape: str, candidate: str, rounds: list[float]) -> dict[str, Any]:
        return {"KxN": shape, "M": 1, "threads": 1, "candidate": candidate, "rounds_us": rounds}

    ours, rival = kernel_pages.FLOAT, kernel_pages.BASELINE
    results = {
        "conditions": {"L3 cache": "32768K"},
        "rows": [
            row("2560x2560", ours, [1, 1, 1]),  # 25 MiB of float32: in the cache
            row("2560x2560", rival, [2, 2, 2]),
            row("2560x6912", ours, [1, 1, 1]),
            row("2560x6912", rival, [9, 8, 70]),
            row("4096x4096", ours, [1, 2, 4]),
            row("4096x4096", rival, [8, 20, 28]),
            row("2560x640", ours, [1, 1, 1]),
            row("2560x640", rival, [1, 1, 1]),
        ],
    }
    beyond = kernel_pages.Target(ours, (1,), (rival,), (7, 6), "beyond L3")
    assert kernel_pages.worst(results, beyond, 1) == (8.0, "4096x4096, M = 1")
    large = kernel_pages.Target(ours, (1,), (rival,), (7, 6))
    assert kernel_pages.worst(results, large, 1) == (2.0, "2560x2560, M = 1")
    assert kernel_pages.worst(results, large, 2) is None
    small = kernel_pages.Target(ours, (1,), (), (4, 3), "small")
    assert kernel_pages.worst(results, small, 1) == (1.0, "2560x640, M = 1")
    text = kernel_pages.target_table(results)
    assert "| float, M = 1, beyond L3 | MatMul float32 | 1 | >= 7x | 8.00x |" in text
    assert "| >= 4x | 1.00x | 2560x640, M = 1 | **not reached** |" in text


def test_a_place_that_is_missing_is_an_error() -> None:
    text = "<!-- a -->\nold\n<!-- end -->\n"
    assert pages.fill(text, {"a": "new"}) == "<!-- a -->\nnew\n<!-- end -->\n"
    with pytest.raises(SystemExit, match="found 0"):
        pages.fill(text, {"b": "new"})
    with pytest.raises(SystemExit, match="found 2"):
        pages.fill(text * 2, {"a": "new"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_session_memory_sees_the_weight(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(matmul_float32.model(Layer.random(1024, 2048)))
    found = session_memory.measured(path)
    assert found["peak"] >= found["after"] > 0
    assert found["peak"] > 4 * 1024 * 2048


@needs_compiler
def test_bandwidth_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 2**20)
    assert bandwidth.read_bandwidth(2, rounds=1) > 0


@needs_compiler
@pytest.mark.parametrize("alphabet", ["binary_01", "ternary"])
def test_paper_products_are_right(alphabet: Any) -> None:
    """Every candidate is checked before it is timed; a wrong one ends the run."""
    budget = bench_paper.Budget(2**30)
    rows = bench_paper.square(96, alphabet, 1, 96, budget)
    names = {row["name"] for row in rows}
    assert {"RSR int8", "RSR++ float", "packed int8", "ONNX Runtime float32"} <= names
    assert {"standard, column order, -O0", "standard, row order, -O3"} <= names
    assert ("numpy RSR++" in names) == (alphabet == "binary_01")
    assert ("RSR++ base 3 int8" in names) == (alphabet == "ternary")
    assert budget.skipped == []
    for row in rows:
        if "block_width" in row and row["name"].startswith("RSR"):
            storage: Any = "base3" if "base 3" in row["name"] else "planes"
            algorithm: Any = "rsr++" if "++" in row["name"] else "rsr"
            size = bench_paper.index_bytes(96, 96, alphabet, storage, algorithm)
            assert row["index_bytes"] == size


@needs_compiler
def test_paper_products_that_do_not_fit_are_skipped() -> None:
    cells = 96 * 96
    budget = bench_paper.Budget(6 * cells)
    rows = bench_paper.square(96, "binary_01", 1, 64, budget)
    skipped = {each["name"] for each in budget.skipped}
    assert "ONNX Runtime float32, numpy float32" in skipped
    assert "standard, column order" in skipped
    names = {row["name"] for row in rows}
    assert not {"numpy float32", "standard, column order, -O3"} & names
    assert {"RSR int8", "standard, row order, -O3"} <= names
    assert bench_paper.square(96, "ternary", 1, 64, bench_paper.Budget(cells - 1)) == []


def test_paper_refuses_a_wrong_answer() -> None:
    exact = np.arange(4)[None]
    bench_paper.check("right", exact.astype(np.float32), exact)
    with pytest.raises(SystemExit, match="wrong answer"):
        bench_paper.check("wrong", exact + 1, exact)


def test_readme_and_performance_are_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "update_readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_paper_page_is_what_the_results_say() -> None:
    results = json.loads((BENCHMARKS / "results" / "paper.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert pages.fill(text, paper_pages.tables(results)) == text
