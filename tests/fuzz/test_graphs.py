"""A short run of the fuzzer of graphs, and that what it judges by rejects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz import graphs
from tests.fuzz.interval_kernels import KERNELS
from tests.fuzz.intervals import Array, Interpreter, Interval, Values
from tests.fuzz.random_graphs import draw_model


@pytest.mark.parametrize("seed", range(30, 34))
def test_random_graphs_keep_their_answers(seed: int) -> None:
    outcomes = [graphs.try_graph(np.random.default_rng((seed, each))) for each in range(10)]
    assert outcomes.count("converted") >= 4


def test_a_weight_that_conversion_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    optimize = graphs.optimize

    def careless(model: onnx.ModelProto, options: graphs.OptimizeOptions) -> object:
        result = optimize(model, options)
        scale = next(
            value.const_value
            for value in result.model.graph.initializers.values()
            if value.name.endswith(".scale")
        )
        changed = numpy_helper.from_array(scale.numpy() * np.float32(1.001), scale.name)
        proto = result.to_proto()
        for tensor in proto.graph.initializer:
            if tensor.name == scale.name:
                tensor.CopyFrom(changed)
        return type("Result", (), {"report": result.report, "to_proto": lambda _: proto})()

    monkeypatch.setattr(graphs, "optimize", careless)
    weight = numpy_helper.from_array(np.eye(16, 8, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None]) for name in "xy")
    made = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)}
    with pytest.raises(AssertionError, match="16 are off"):
        graphs.check(model, feeds, graphs.OptimizeOptions(min_elements=0))


def test_fixed_point_of_a_scale_per_row_counts_inputs_behind_it() -> None:
    levels = np.random.default_rng(0).integers(-1, 2, (4, 48)).astype(np.float32)
    levels[:, 0] = [0, 0, 0, 1]
    gains = np.array([[4], [1], [1], [0.125]], np.float32)
    weight = numpy_helper.from_array(levels * gains, "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in "xy")
    made = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.array([[-0.19151902, 0, 0, -0.047879755]], np.float32)}
    assert graphs.check(model, feeds, graphs.OptimizeOptions(min_elements=0)) == "converted"


def test_an_original_that_ends_the_process_is_told_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not graphs.original_ends_the_process(np.random.default_rng(0))
    ended = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n"
    monkeypatch.setattr(graphs, "_OPEN", ended + graphs._OPEN)
    assert graphs.original_ends_the_process(np.random.default_rng(0))


def interpreted(model: onnx.ModelProto, feeds: dict[str, Array]) -> Values:
    return Interpreter(KERNELS, model.functions).run(model, feeds)


@pytest.mark.parametrize(
    "damage",
    [
        lambda array: array[None],
        lambda array: array.astype(np.float64),
        lambda array: array * np.float32(1.01) + np.float32(0.01),
        lambda array: np.full_like(array, np.nan),
    ],
    ids=["rank", "type", "numbers", "NaN"],
)
def test_another_answer_is_a_difference(damage: Callable[[Array], Array]) -> None:
    model, feeds = draw_model(np.random.default_rng((30, 1)))
    values = interpreted(model, feeds)
    found = graphs.run(model, feeds, graphs.LEVELS[0], library=False)
    assert not graphs.differences(found, values)
    name = next(name for name in found if np.isfinite(values[name].radius).all())
    assert name in graphs.differences({name: damage(found[name])}, values)


def test_rounding_takes_either_side_of_a_tie_it_may_reach() -> None:
    x = Interval(np.array([0.49999, 0.2]), np.array([1e-4, 1e-4]), np.dtype(np.float32))
    (found,) = KERNELS["Round"]({}, x)
    assert found.value.tolist() == [0, 0]
    assert found.radius.tolist() == [1, 0]


def test_float16_numbers_beyond_its_range_are_unknown() -> None:
    x = Interval.of(np.array([300.0, 2.0], np.float16))
    (found,) = KERNELS["Mul"]({}, x, x)
    assert np.isinf(found.radius).tolist() == [True, False]
