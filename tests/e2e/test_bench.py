"""``onnx-ternary bench`` on the digits example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_ternary
from onnx_ternary.bench import bench
from onnx_ternary.errors import VerificationError
from tests.support.command_line import DIGITS, run


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "digits.onnx"
    onnx_ternary.optimize(DIGITS).save(target)
    return target


def test_bench_command_converts_where_only_the_original_is_given(tmp_path: Path) -> None:
    done = run("bench", DIGITS, "--rounds", 1)
    assert "Run: too few rounds for an answer, at least 15 are needed" in done.stdout
    assert "File: 12.3 times smaller, 2.26 MB -> 184 kB." in done.stdout
    assert "Nothing was converted" not in done.stdout
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
    assert content["runs"]["answer"] == content["loads"]["answer"] == "too few rounds"
    assert content["runs"]["low"] is None


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
