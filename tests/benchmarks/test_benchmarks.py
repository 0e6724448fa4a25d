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
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary.options import OptimizeOptions

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_bits  # noqa: E402
import bench_kernel  # noqa: E402
import bench_limits  # noqa: E402
import bench_model  # noqa: E402
import bench_paper  # noqa: E402
from measure import bandwidth, session_memory  # noqa: E402
from measure.harness import Candidate, Timing, available_bytes, measure  # noqa: E402
from measure.model_process import Case, MeasurementError  # noqa: E402
from pages import kernel as kernel_pages  # noqa: E402
from pages import model as model_pages  # noqa: E402
from pages import paper as paper_pages  # noqa: E402
from pages import parts  # noqa: E402
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


def test_a_long_call_is_not_repeated_to_be_timed() -> None:
    clock = Clock()
    long = Candidate("long", clock.takes(constant(10.0)))
    times = measure([long], rounds=9, budget_seconds=20, min_rounds=2, clock=clock)
    assert times["long"].seconds == (10.0,) * 2
    assert clock.now == 30.0


def test_measure_settles_what_runs_elsewhere() -> None:
    clock = Clock()
    settled: list[str] = []
    run = clock.takes(constant(1.0))
    candidates = [Candidate(name, run, lambda: settled.append("ready")) for name in "ab"]
    measure(candidates, rounds=3, threads=2, clock=clock, settle=lambda: settled.append("settled"))
    assert settled == ["ready", "settled"] * 6


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
        assert (max(errors) > 1e-4) == peer.quantizes
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


def test_bits_are_compared_with_two_bits_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio for each activation; an answer further off than is right ends the benchmark."""
    monkeypatch.setattr(bench_bits, "COPIES_BYTES", 1)
    found = bench_bits.rows("256x36", threads=1, rounds=1)
    assert [(each["activation"], each["storage"]) for each in found] == [
        ("float", "2bit"),
        ("float", "1bit"),
        ("int8", "2bit"),
        ("int8", "1bit"),
    ]
    assert all(each["of 2bit"] == 1 for each in found if each["storage"] == "2bit")
    monkeypatch.setattr(bench_bits, "ACTIVATIONS", {"int8": 1e-7})
    with pytest.raises(SystemExit, match="2bit, int8: wrong by"):
        bench_bits.rows("256x36", threads=1, rounds=1)


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


def test_rows_can_be_added_to_a_shape() -> None:
    def row(M: int, us: int) -> dict[str, Any]:
        return {"KxN": "2560x2560", "M": M, "threads": 1, "us": us}

    merged = bench_kernel.merged([row(8, 1), row(1, 1)], [row(64, 2), row(8, 2)])
    assert merged == [row(1, 1), row(8, 2), row(64, 2)]


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


def speed(case: str, threads: int, candidate: str, rounds: list[float]) -> dict[str, Any]:
    tokens = 1 if case.startswith("decode") else int(case.split()[1])
    row = {"case": case, "tokens": tokens, "threads": threads, "candidate": candidate}
    return row | {"rounds_ms": rounds}


def model_results() -> dict[str, Any]:
    rows = [
        speed("decode 128", 2, model_pages.FLOAT, [10, 20, 40]),
        speed("decode 128", 2, model_pages.BASELINE, [80, 200, 280]),
        speed("decode 1024", 2, model_pages.FLOAT, [20.0]),
        speed("decode 1024", 2, model_pages.BASELINE, [70.0]),
        speed("prefill 128", 2, model_pages.FLOAT, [1000.0]),
        speed("prefill 128", 2, model_pages.BASELINE, [2500.0]),
    ]
    loads = [
        {"candidate": name, "linear": 6, "linear_float32": 100, "loads_s": [seconds]}
        | {"peak_MB": peak, "process_MB": 100.0, "file": 10, "private_after_loading_MB": 1.0}
        for name, seconds, peak in (
            (model_pages.FLOAT, 3.0, 180.0),
            (model_pages.NBITS, 4.0, 200.0),
            (model_pages.DENSE, 3.0, 180.0),
        )
    ]
    return {
        "two threads": {"conditions": {"cpu": "one", "model": "small"}, "rows": rows},
        "load": {"conditions": {"cpu": "one", "model": "large"}, "rows": loads},
    }


def test_targets_of_models_take_the_worst_case() -> None:
    results = model_results()
    lines = model_pages.target_table(results).splitlines()
    found = {line.split(" | ")[0].strip("| "): line for line in lines[2:]}
    assert "| >= 4x | 3.50x | decode 1024 | **not reached** |" in found["float, decode"]
    assert "| >= 2.2x | 2.50x | prefill 128 | reached |" in found["float, prefill 128"]
    assert "| <= 0.5x | 0.75x | float | **not reached** |" in found["load time"]
    assert "| <= 0.8x | 0.80x | float | reached |" in found["peak memory of the session"]
    assert "1/16.7 |  | reached |" in found["float, linear weights in the file"]
    assert "1/16.7 |  | **not reached** |" in found["float, dense, linear weights in the file"]
    assert len(found) == 6
    table = model_pages.speed_table(results, "two threads")
    assert "| onnx-ternary float | 50 (8.00) | 50 (3.50) | 128 (2.50) |" in table
    text = model_pages.conditions_text(results)
    assert text == "cpu one. By part: two threads: small; load: large."


def test_a_part_that_was_not_measured_is_said() -> None:
    for table in (model_pages.target_table, model_pages.load_table, model_pages.share_table):
        assert table({}) == model_pages.NOT_MEASURED
    assert model_pages.speed_table({}, "whole") == model_pages.NOT_MEASURED


def test_wrong_logits_are_not_kept() -> None:
    right = np.arange(4, dtype=np.float32)
    contestants = (bench_model.FLOAT32, bench_model.FLOAT)
    outputs = {contestant.name: right for contestant in contestants}
    bench_model.check(outputs, contestants)
    outputs[bench_model.FLOAT.name] = right[::-1]
    with pytest.raises(MeasurementError, match="onnx-ternary float: cosine"):
        bench_model.check(outputs, contestants)


def test_parts_are_restricted() -> None:
    parts = bench_model.chosen("one thread; load", "decode@128", "float32;onnx-ternary float")
    assert [each.name for each in parts] == ["one thread", "load"]
    assert parts[0].cases == (Case("decode", 128),)
    assert parts[1].cases == (Case("decode", 1024),)  # its only one
    assert [each.name for each in parts[0].contestants] == ["float32", "onnx-ternary float"]
    with pytest.raises(SystemExit, match="no part 'three threads'"):
        bench_model.chosen("three threads", None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 20), reason="needs onnxruntime 1.20"
)
def test_model_benchmark_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"whole": {"conditions": {}, "rows": []}}), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "bench_model.py"), str(tmp_path / "models")]
    command += ["--preset", "tiny", "--json", str(path), "--parts", "one thread; load; convert"]
    command += ["--candidates", "onnx-ternary float", "--cases", "decode@128"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == ["whole", "one thread", "load", "convert"]
    (row,) = found["one thread"]["rows"]
    assert row["rounds_ms"]
    assert sum(row["shares"].values()) > 0.9
    (row,) = found["load"]["rows"]
    assert len(row["loads_s"]) == bench_model.LOADS
    assert row["peak_MB"] > row["process_MB"] > 0
    assert row["linear_float32"] / row["linear"] > 14
    (row,) = found["convert"]["rows"]
    assert row["result"] < row["source"]
    assert row["peak_MB"] > 0
    assert {"cpu", "isa", "onnxruntime", "model"} <= found["convert"]["conditions"].keys()


def test_a_place_that_is_missing_is_an_error() -> None:
    text = "<!-- a -->\nold\n<!-- end -->\n"
    assert parts.fill(text, {"a": "new"}) == "<!-- a -->\nnew\n<!-- end -->\n"
    with pytest.raises(SystemExit, match="found 0"):
        parts.fill(text, {"b": "new"})
    with pytest.raises(SystemExit, match="found 2"):
        parts.fill(text * 2, {"a": "new"})


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
        [sys.executable, str(BENCHMARKS / "pages/update_readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_paper_page_is_what_the_results_say() -> None:
    results = json.loads((BENCHMARKS / "results" / "paper.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert parts.fill(text, paper_pages.tables(results)) == text


def test_limits_measure_a_process_of_its_own() -> None:
    """The peak is that of the command, not of the process that starts it."""
    ballast = np.ones(1 << 26)
    source = ROOT / "examples" / "digits_mlp.onnx"
    row = bench_limits.run("digits", "nothing", [sys.executable, "-c", "pass"], source)
    assert row.file_bytes == source.stat().st_size
    assert 0 < row.peak_bytes < ballast.nbytes // 2
    with pytest.raises(subprocess.CalledProcessError):
        bench_limits.run("digits", "fails", [sys.executable, "-c", "raise SystemExit(3)"], source)
    assert row.ended
    endless = [sys.executable, "-c", "while True: pass"]
    assert not bench_limits.run("digits", "endless", endless, source, longest=1).ended


@pytest.mark.parametrize("case", ["weight", "products", "nodes", "folder"])
def test_limits_make_models_that_convert(case: str, tmp_path: Path) -> None:
    source = bench_limits.CASES[case](tmp_path, 0.0005)
    first = min(source.iterdir()) if source.is_dir() else source
    report = onnx_ternary.optimize(first, OptimizeOptions(min_elements=0)).report
    assert bool(report.rewrites) == (case != "nodes")
    assert report.rewrites or report.rejections
