"""A short run of the fuzzer of operators, and the models it found something with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.fuzz import operators
from tests.support.command_line import run_process

# As the fuzzer drew them: a seed draws another model with every version of onnx.
CORPUS = Path(__file__).with_name("corpus") / "operators"
KEPT = {
    "axis_beyond_32_bits": "'LayerNormalization', which this version does not evaluate",
    "constant_of_strings": "weight 'w' has 36 elements",
    "eye_like_behind_col2im": "'Col2Im', which this version does not evaluate",
    "eye_like_behind_fused_matmul": "'EyeLike', which this version does not evaluate",
    "lstm_without_batch": "'LSTM', which this version does not evaluate",
    "no_such_type": "'LayerNormalization', which this version does not evaluate",
    "result_left_out": "'Attention', which this version does not evaluate",
    "split_into_fewer": "Split 'Split' has num_outputs = 1, expected 3",
    "stft_without_window": "'STFT', which this version does not evaluate",
    "words_without_indexes": "'TfIdfVectorizer', which this version does not evaluate",
}


@pytest.mark.parametrize("seed", range(20, 23))
def test_operators_are_evaluated_or_refused(seed: int) -> None:
    rngs = [np.random.default_rng((seed, number)) for number in range(100)]
    drawn = [operators.damaged(operators.draw_from_schema(rng), rng) for rng in rngs]
    outcomes = [operators.convert(each, rng) for each, rng in zip(drawn, rngs, strict=True)]
    assert {"evaluated", "refused by onnxruntime"} <= set(outcomes)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.stem)
def test_what_was_a_finding(path: Path) -> None:
    """In a process of its own, which most of them ended with a signal."""
    report = json.loads(run_process("inspect", "--json", path).stdout)
    assert KEPT[path.stem] in report["rejections"][-1]["reason"]


def test_an_expression_that_takes_too_much_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    made = operators.Expression(
        (helper.make_node("Neg", ["a"], ["r"]),), {"a": np.ones((2, 2), np.float32)}, 17
    )
    rng = np.random.default_rng(0)
    assert operators.convert(made, rng) == "evaluated"
    with monkeypatch.context() as patch:
        patch.setattr(operators, "held_bytes", iter([1 << 20, 1 << 40]).__next__)
        with pytest.raises(AssertionError, match="the process has held 1099511627776 bytes"):
            operators.convert(made, rng)
    monkeypatch.setattr(operators, "MOST_SECONDS", 0)
    with pytest.raises(AssertionError, match="it took 0 s"):
        operators.convert(made, rng)


def test_an_unexpected_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*_: object) -> object:
        raise operators.OnnxTernaryError(f"cannot be converted: {operators.UNEXPECTED}")

    monkeypatch.setattr(operators, "optimize", careless)
    made = operators.Expression((helper.make_node("Neg", ["a"], ["r"]),), {}, 17)
    with pytest.raises(AssertionError, match="cannot be converted"):
        operators.convert(made, np.random.default_rng(0))
