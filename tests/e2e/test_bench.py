"""``onnx-ternary bench`` and `onnx_ternary.bench`, on the digits example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_ternary
from onnx_ternary.bench import Benchmark, Speed, bench
from onnx_ternary.errors import ModelError, VerificationError
from tests.support.command_line import DIGITS, run


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


def test_bench_command_converts_where_only_the_original_is_given(tmp_path: Path) -> None:
    done = run("bench", DIGITS, "--rounds", 1)
    assert "The converted model is" in done.stdout
    assert "12.3 times smaller" in done.stdout
    assert "image: generated, seed 0" in done.stdout


def test_bench_command_json_has_the_inputs_and_the_ratio(converted: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, image=np.ones((5, 64), np.float32))
    done = run(
        "bench", DIGITS, converted, "--rounds", 2, "--threads", 2, "--inputs", inputs, "--json"
    )
    content = json.loads(done.stdout)
    assert content["threads"] == 2
    assert "(5, 64)" in content["inputs"]["image"]
    before, after = (content[name]["seconds"] for name in ("original", "converted"))
    assert content["times_faster"] == pytest.approx(float(np.median(np.divide(before, after))))


def test_bench_refuses_to_compare_wrong_answers(tmp_path: Path, converted: Path) -> None:
    model = onnx.load(converted)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".scale"):
            scale = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(scale * np.float32(3), tensor.name))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    with pytest.raises(VerificationError, match="onnx-ternary verify"):
        bench(DIGITS, wrong, rounds=1)
    run("bench", DIGITS, wrong, "--rounds", 1, check=3)


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
