"""Tables as a person reads them: what matters first, equal reasons once, sizes in one piece."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_ternary import OptimizeOptions, optimize
from onnx_ternary.cli._output import Output
from onnx_ternary.cli._tables import print_rewrites

ALL = OptimizeOptions(min_elements=0)
NAME = "/model/layers.{}/mlp/down_proj/MatMul"


def layers(kinds: str) -> onnx.ModelProto:
    """Products in a row: ternary ones for t, float ones for f."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for at, kind in enumerate(kinds):
        numbers = rng.standard_normal((512, 512)).astype(np.float32)
        weights.append(
            numpy_helper.from_array(np.sign(numbers) if kind == "t" else numbers, f"w{at}")
        )
        nodes.append(
            helper.make_node("MatMul", [f"h{at}", f"w{at}"], [f"h{at + 1}"], name=NAME.format(at))
        )
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("h0", 1, ("m", 512))],
        [helper.make_tensor_value_info(f"h{len(kinds)}", 1, ("m", 512))],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def printed(
    model: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    columns: int = 160,
    verbose: bool = False,
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_rewrites(Output(quiet=False, verbose=verbose), optimize(model, ALL).report)
    return capsys.readouterr().out


def test_a_model_with_nothing_ternary_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(layers("fff"), monkeypatch, capsys).splitlines()
    assert lines[0] == "No weight of this model is ternary or binary: 3 products looked at."
    assert "No weight" not in printed(layers("ft"), monkeypatch, capsys)
    converted = optimize(layers("tf"), ALL).to_proto()
    assert "No weight" not in printed(converted, monkeypatch, capsys)


def test_a_ternary_weight_that_stays_is_not_denied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers("f")
    kernels = np.sign(np.random.default_rng(1).standard_normal((8, 4, 3, 3))).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernels, "k"))
    model.graph.input.append(helper.make_tensor_value_info("image", 1, (1, 4, 9, 9)))
    model.graph.node.append(helper.make_node("Conv", ["image", "k"], ["z"], name="conv"))
    model.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    first = printed(model, monkeypatch, capsys).splitlines()[0]
    assert first == "1 of 2 products have a weight that is neither ternary nor binary."


def test_equal_reasons_are_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers("tfffffft")
    text = printed(model, monkeypatch, capsys, columns=240)
    assert text.count("distinct magnitudes") == 1
    assert "and 5 more for such a reason; --verbose lists them" in text
    assert text.count("rewritten") == 2
    listed = printed(model, monkeypatch, capsys, columns=240, verbose=True)
    assert listed.count("distinct magnitudes") == 6
    few = printed(layers("tfft"), monkeypatch, capsys, columns=240)
    assert few.count("distinct magnitudes") == 2


def test_sizes_stay_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(layers("tf"), monkeypatch, capsys, columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "1.05 MB │ 32.8 kB" in text


def test_converted_model_shows_shapes_and_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = optimize(layers("t"), ALL)
    (row,) = result.report.rewrites
    (again,) = optimize(result.to_proto(), ALL).report.indices
    assert (again.node, again.K, again.N) == (row.node, 512, 512)
    assert (again.index_format, again.storage) == (row.index_format, row.storage)
    assert (again.alphabet, again.scale) == (row.alphabet, row.scale)
    assert again.num_bytes == row.bytes_after
    text = printed(result.to_proto(), monkeypatch, capsys)
    for part in ("512 x 512", "binary_pm, scale tensor", "already converted"):
        assert part in text
