"""Two models timed side by side, on the digits example."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_ternary
from onnx_ternary._machine import num_processors
from onnx_ternary.bench import Benchmark, Speed, bench, format_seconds
from onnx_ternary.errors import ModelError
from tests.support.command_line import DIGITS


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "digits.onnx"
    onnx_ternary.optimize(DIGITS).save(target)
    return target


def test_bench_times_both_models_as_often(converted: Path) -> None:
    result = bench(DIGITS, converted, rounds=3, seconds_a_round=0.001)
    for speed in (result.original, result.converted):
        assert len(speed.seconds) == len(speed.load_seconds) == 3
        assert min(*speed.seconds, *speed.load_seconds) > 0
    assert result.runs.answer == result.loads.answer == "too few rounds"
    assert not result.same_operators
    assert result.original.file_bytes == DIGITS.stat().st_size
    assert result.converted.file_bytes == converted.stat().st_size
    assert 0 < result.max_relative_difference <= 1e-5


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """A process for each processor, busy in bursts of its own length."""
    code = "import time\nwhile True:\n  end = time.monotonic() + {0}\n"
    code += "  while time.monotonic() < end: pass\n  time.sleep({0} / 3)"
    hogs = [
        subprocess.Popen([sys.executable, "-c", code.format(0.003 * (2 + number))])
        for number in range(num_processors())
    ]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


@pytest.mark.usefixtures("busy_machine")
def test_a_file_against_itself_is_never_faster_or_slower() -> None:
    # By the sign test a wrong answer has a chance of 2**-14 each at most, of 0.25 % in all 40.
    for seed in range(20):
        result = bench(DIGITS, DIGITS, seed=seed, rounds=15, seconds_a_round=0.003)
        assert result.runs.answer in ("no difference", "too noisy"), result
        assert result.loads.answer in ("no difference", "too noisy"), result
        assert result.verdict().startswith("Nothing was converted")


def test_a_model_with_two_thousand_nodes_more_is_not_faster(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    (tail,) = model.graph.output
    for number in range(2000):
        model.graph.node.add(
            op_type="Identity" if number % 2 else "Neg",
            input=[tail.name if number == 0 else f"again_{number}"],
            output=[f"again_{number + 1}"],
        )
    model.graph.node.add(op_type="Abs", input=["again_2000"], output=["more"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", 1, None))
    longer = tmp_path / "longer.onnx"
    onnx.save(model, longer)
    result = bench(DIGITS, longer, inputs={"image": np.ones((1, 64), np.float32)})
    # On a busy machine there may be no answer, but never the wrong one.
    assert result.runs.answer in ("slower", "too noisy")
    assert not result.same_operators


def test_bench_names_the_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    model.graph.node[0].op_type = "NoSuchOperator"
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    with pytest.raises(ModelError, match=r"broken\.onnx' cannot be loaded"):
        bench(DIGITS, broken, rounds=1)


def test_verdict_says_what_each_part_showed() -> None:
    before = Speed((4e-3,) * 15, (0.1, 0.2, 0.1), 2_000_000)
    after = Speed((2e-3,) * 15, (0.2, 0.1, 0.1), 100_000)
    lines = Benchmark(before, after, 1, 0.0, {}).verdict().splitlines()
    assert lines == [
        "Run: 2.00 times faster (2.00 to 2.00), 4 ms -> 2 ms.",
        "Load: too few rounds for an answer, at least 15 are needed, 100 ms -> 100 ms.",
        "File: 20.0 times smaller, 2 MB -> 100 kB.",
        "Outputs: differ by at most 0.0e+00 of their largest magnitude.",
    ]
    lines = Benchmark(before, before, 1, 0.0, {}, same_operators=True).verdict().splitlines()
    assert lines[0] == "Nothing was converted: both models have the same operators."
    assert lines[1] == "Run: no difference measured (1.00 to 1.00 times), 4 ms -> 4 ms."
    assert lines[3] == "File: as large, 2 MB -> 2 MB."


def test_durations_have_three_digits() -> None:
    durations = [43.21e-6, 999.7e-6, 0.0192, 2.5, 1234.5]
    assert [format_seconds(each) for each in durations] == [
        "43.2 us",
        "1 ms",
        "19.2 ms",
        "2.5 s",
        "1234 s",
    ]
