"""Two models timed side by side, on the digits example."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import onnx_ternary
from onnx_ternary.bench import Benchmark, Speed, bench
from onnx_ternary.errors import ModelError
from tests.support.command_line import DIGITS


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "digits.onnx"
    onnx_ternary.optimize(DIGITS).save(target)
    return target


def test_bench_times_both_models_as_often(converted: Path) -> None:
    result = bench(DIGITS, converted, rounds=3, seconds_a_round=0.001)
    assert len(result.original.seconds) == len(result.converted.seconds) == 3
    assert min(*result.original.seconds, *result.converted.seconds) > 0
    assert result.original.file_bytes == DIGITS.stat().st_size
    assert result.converted.file_bytes == converted.stat().st_size
    assert 0 < result.max_relative_difference <= 1e-5


def test_bench_names_the_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    model.graph.node[0].op_type = "NoSuchOperator"
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    with pytest.raises(ModelError, match=r"broken\.onnx' cannot be loaded"):
        bench(DIGITS, broken, rounds=1)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((4.0, 4.0, 4.0), (2.0, 2.0, 2.0), "2.00 times faster"),
        ((2.0, 2.0, 2.0), (4.0, 4.0, 4.0), "2.00 times slower"),
        ((2.0, 2.2, 1.8), (2.0, 2.1, 1.9), "as fast as the original"),
    ],
)
def test_verdict(before: tuple[float, ...], after: tuple[float, ...], words: str) -> None:
    result = Benchmark(Speed(before, 0.1, 100), Speed(after, 0.1, 10), 1, 0.0, {})
    assert words in result.verdict()
    assert "10.0 times smaller" in result.verdict()
