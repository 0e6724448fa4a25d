from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.verification.inputs import (
    MAX_ATTEMPTS,
    ChosenInputs,
    InputOptions,
    InputsError,
    choose_inputs,
)
from onnx_ternary.verification.verify import verify
from tests.support import decoders
from tests.support.decoders import (
    CACHES,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    LONGEST,
    VOCABULARY,
    Graph,
    cached_decoder,
    ternary,
)

ATTENTION_IN_PROVIDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 20)


class Runs:
    """A session that remembers what it was given."""

    def __init__(self, model: ModelProto) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.feeds: list[dict[str, Any]] = []

    def __call__(self, feeds: dict[str, Any]) -> ModelError | None:
        self.feeds.append(feeds)
        try:
            self.session.run(None, feeds)
        except Exception as error:  # onnxruntime's errors share no base
            return ModelError(str(error))
        return None


def chosen(model: ModelProto, most: int = 1, **options: Any) -> ChosenInputs:
    """Inputs that the model ran on, found in at most so many attempts."""
    runs = Runs(model)
    found = choose_inputs(model, InputOptions(**options), runs)
    assert len(runs.feeds) <= most
    assert runs(found.feeds) is None
    return found


def shapes(found: ChosenInputs) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in found.feeds.items()}


def product(dims: Any, rows: int, *before: tuple[str, dict[str, Any], Any]) -> ModelProto:
    """x through some nodes, each with one constant or none, into a MatMul of so many rows."""
    graph = Graph()
    value = graph.input("x", TensorProto.FLOAT, dims)
    for op_type, attributes, operand in before:
        operands = () if operand is None else (graph.constant(operand),)
        value = graph(op_type, value, *operands, **attributes)
    return graph.model(graph("MatMul", value, graph.constant(ternary(rows, 12, 0))))


def test_dimension_that_meets_a_product_is_its_k() -> None:
    assert shapes(chosen(product(["m", "k"], 2560))) == {"x": (2, 2560)}
    assert shapes(chosen(product([None, None, None], 96))) == {"x": (2, 8, 96)}


@pytest.mark.parametrize(
    ("dims", "before", "rows", "expected"),
    [
        (["a", "b"], [("Transpose", {"perm": [1, 0]}, None)], 40, (40, 8)),
        (["a", "b", 6], [("Flatten", {"axis": 1}, None)], 30, (2, 5, 6)),
        (["n", 3, "h", "w"], [("Flatten", {"axis": 1}, None)], 3 * 49, (2, 3, 7, 7)),
        (
            ["a", "b"],
            [
                ("Reshape", {}, np.array([0, 0, 1, 1], np.int64)),
                ("Squeeze", {}, np.array([2, 3], np.int64)),
            ],
            40,
            (2, 40),
        ),
        (
            ["a", "b"],
            [
                ("Reshape", {}, np.array([0, -1, 8], np.int64)),
                ("Reshape", {}, np.array([0, 40], np.int64)),
            ],
            40,
            (2, 40),
        ),
        (["a", "b"], [("Add", {}, np.ones(24, np.float32))], 24, (2, 24)),
        (["a", "b"], [("Slice", {}, None)], 24, (2, 24)),
        (
            [None, None, None],
            [("Einsum", {"equation": "...i,ij->...j"}, ternary(44, 24, 1))],
            24,
            (2, 8, 44),
        ),
    ],
    ids=["transposed", "flattened", "image", "reshaped", "regrouped", "bias", "sliced", "einsum"],
)
def test_dimension_is_solved_through_operators(
    dims: Any, before: Any, rows: int, expected: tuple[int, ...]
) -> None:
    if before[0][0] == "Slice":
        graph = Graph()
        graph.input("x", TensorProto.FLOAT, dims)
        ends = (graph.integers(0), graph.integers(np.iinfo(np.int64).max), graph.integers(0))
        value = graph("Slice", "x", *ends)
        model = graph.model(graph("MatMul", value, graph.constant(ternary(rows, 12, 0))))
    else:
        model = product(dims, rows, *before)
    assert shapes(chosen(model, most=2))["x"] == expected


def test_sizes_are_solved_inside_local_functions() -> None:
    model = product(["m", "k"], 2560)
    (node,) = model.graph.node
    opsets = [helper.make_opsetid("", 18)]
    body = [helper.make_node("MatMul", ["a", "w"], ["y"])]
    model.functions.append(helper.make_function("tests", "Linear", ["a", "w"], ["y"], body, opsets))
    node.op_type, node.domain = "Linear", "tests"
    model.opset_import.append(helper.make_opsetid("tests", 1))
    assert shapes(chosen(model)) == {"x": (2, 2560)}


@pytest.mark.parametrize("first", ["copied", "computed"])
@pytest.mark.parametrize(
    "dims",
    [
        {},
        {"mask": ("batch", "past + sequence")},
        {
            "ids": ("b", "s"),
            "cache": ("b", HEADS, "p", HEAD_SIZE),
            "mask": ("b", "t"),
            "positions": ("b", "s"),
        },
        {
            "ids": (None, None),
            "cache": (None, None, None, None),
            "mask": (None, None),
            "positions": (None, None),
        },
        {"mask": None, "positions": None},
    ],
    ids=["named", "sum", "short", "unnamed", "no mask"],
)
def test_cached_decoder_runs_at_once(first: str, dims: dict[str, Any]) -> None:
    found = chosen(cached_decoder(first=first, **dims))
    expected = {"input_ids": (2, 8), **dict.fromkeys(CACHES, (2, HEADS, 4, HEAD_SIZE))}
    if dims.get("mask", ()) is not None:
        expected |= {"attention_mask": (2, 12), "position_ids": (2, 8)}
        assert found.feeds["attention_mask"].all()
        assert found.feeds["position_ids"].tolist() == [list(range(4, 12))] * 2
    assert shapes(found) == expected
    ids = found.feeds["input_ids"]
    assert ids.min() >= 0
    assert 8 <= ids.max() < VOCABULARY


def test_decoder_of_fixed_sizes() -> None:
    cache = (1, HEADS, 15, HEAD_SIZE)
    found = chosen(cached_decoder(ids=(1, 1), cache=cache, mask=(1, 16), positions=(1, 1)))
    assert found.feeds["position_ids"].tolist() == [[15]]


@pytest.mark.skipif(not ATTENTION_IN_PROVIDER, reason="needs onnxruntime 1.20")
@pytest.mark.parametrize("head_size", [HEAD_SIZE, "head_size"])
def test_grouped_query_decoder(head_size: Any) -> None:
    # onnxruntime takes no batch where several positions follow a cache.
    found = chosen(decoders.grouped_query_decoder(head_size), most=2)
    assert shapes(found)["attention_mask"] == (1, 12)
    assert shapes(found)[CACHES[0]] == (1, HEADS, 4, HEAD_SIZE)


@pytest.mark.skipif(not ATTENTION_IN_PROVIDER, reason="needs onnxruntime 1.20")
def test_lengths_that_are_inputs() -> None:
    found = chosen(decoders.counted_decoder(), most=2)
    assert found.feeds["seqlens_k"].tolist() == [11]
    assert found.feeds["total_sequence_length"].tolist() == 12


def test_positions_stay_inside_a_cache_of_fixed_length() -> None:
    found = chosen(decoders.static_cache_decoder())
    assert 0 <= found.feeds["cache_position"].item() < LONGEST


def test_both_branches_of_a_merged_decoder_are_offered() -> None:
    model = decoders.merged_decoder()
    found = chosen(model)
    (other,) = found.others
    assert found.feeds["use_cache_branch"].tolist() == [True]
    assert other["use_cache_branch"].tolist() == [False]
    assert Runs(model)(other) is None


@pytest.mark.parametrize(
    "make",
    [
        decoders.cached_decoder,
        pytest.param(
            decoders.grouped_query_decoder,
            marks=pytest.mark.skipif(not ATTENTION_IN_PROVIDER, reason="needs onnxruntime 1.20"),
        ),
        decoders.static_cache_decoder,
        decoders.merged_decoder,
    ],
)
def test_decoders_are_compared_as_a_whole_by_default(make: Callable[[], ModelProto]) -> None:
    model = make()
    result = optimize(model, OptimizeOptions(min_elements=0))
    assert result.report.rewrites
    report = verify(model, result.to_proto())
    assert report.passed, report.summary()
    assert report.outputs
    assert {check.status for check in report.products} == {"passed"}


def test_index_of_a_table_stays_inside_it() -> None:
    graph = Graph()
    graph.input("rows", TensorProto.INT64, ["n"])
    moved = graph("Add", "rows", graph.integers(2))
    value = graph("Gather", graph.constant(ternary(5, HIDDEN, 0)), moved)
    model = graph.model(graph("MatMul", value, graph.constant(ternary(HIDDEN, 12, 1))))
    found = chosen(model)
    assert found.feeds["rows"].max() < 3


def test_range_of_an_index_is_learned_from_the_message() -> None:
    graph = Graph()
    graph.input("rows", TensorProto.INT64, [6])
    hidden = graph("Mod", "rows", graph.integers(1000))
    value = graph("Gather", graph.constant(ternary(3, HIDDEN, 0)), hidden)
    model = graph.model(graph("MatMul", value, graph.constant(ternary(HIDDEN, 12, 1))))
    found = chosen(model, most=2)
    assert found.feeds["rows"].max() == 2


def test_every_second_column_meets_a_product() -> None:
    graph = Graph()
    graph.input("x", TensorProto.FLOAT, ["n", "hidden"])
    steps = [graph.integers(number) for number in (0, np.iinfo(np.int64).max, 1, 2)]
    value = graph("Slice", "x", *steps)
    model = graph.model(graph("MatMul", value, graph.constant(ternary(20, 12, 0))))
    assert shapes(chosen(model)) == {"x": (2, 40)}


def test_sizes_of_the_graph_s_constants_are_tried() -> None:
    graph = Graph()
    graph.input("x", TensorProto.FLOAT, ["steps", "batch", "features"])
    weights = [graph.constant(ternary(3 * 5, columns, 0)[None]) for columns in (44, 5)]
    value = graph("GRU", "x", *weights, hidden_size=5)
    model = graph.model(graph("MatMul", value, graph.constant(ternary(5, 12, 0))))
    assert shapes(chosen(model, most=MAX_ATTEMPTS))["x"][2] == 44


def test_sound_is_long_enough_for_its_windows() -> None:
    graph = Graph()
    waves = graph.input("waves", TensorProto.FLOAT, ["batch", "samples"])
    padded = graph("Pad", waves, graph.integers(0, 0, 0, 64), mode="reflect")
    windows = graph("Unsqueeze", padded, graph.integers(1))
    kernels = graph.constant(np.ones((20, 1, 256), np.float32))
    frames = graph("Conv", windows, kernels, strides=[128])
    value = graph("Transpose", frames, perm=[0, 2, 1])
    model = graph.model(graph("MatMul", value, graph.constant(ternary(20, 12, 0))))
    assert shapes(chosen(model, most=MAX_ATTEMPTS)) == {"waves": (1, 512)}


def test_sizes_can_be_given() -> None:
    model = cached_decoder(mask=("batch", "past + sequence"))
    found = chosen(model, shapes={"batch": 3, "past": 9})
    assert shapes(found)["attention_mask"] == (3, 17)
    found = chosen(model, shapes={"input_ids": (1, 5)})
    assert shapes(found)["position_ids"] == (1, 5)
    unnamed = product([None, None], 2560)
    assert shapes(chosen(unnamed, shapes={"x:0": 7})) == {"x": (7, 2560)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"sequenze": 3}, "There is no dimension 'sequenze' to be 3; known are: batch, sequence"),
        ({"input_ids": (1, 2, 3)}, "Input 'input_ids' cannot have the shape"),
        ({"batch": -1}, "There is no dimension 'batch' to be -1"),
    ],
)
def test_wrong_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        chosen(cached_decoder(), shapes=sizes)


def test_sizes_and_given_inputs_exclude_each_other() -> None:
    x = {"x": np.zeros((2, 2560), np.float32)}
    with pytest.raises(InputsError, match="asked for, but inputs are given"):
        chosen(product(["m", "k"], 2560), given=x, shapes={"m": 2})


def test_same_seed_gives_the_same_inputs() -> None:
    one, other = (chosen(cached_decoder(), seed=4).feeds for _ in range(2))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert not np.array_equal(one[CACHES[0]], chosen(cached_decoder(), seed=5).feeds[CACHES[0]])


def test_attempts_end() -> None:
    calls = []

    def never(feeds: dict[str, Any]) -> ModelError:
        calls.append({name: array.shape for name, array in feeds.items()})
        return ModelError("no 7 and no 8")

    with pytest.raises(ModelError, match="Generated inputs do not fit; give sizes"):
        choose_inputs(cached_decoder(), InputOptions(), never)
    assert 3 < len(calls) <= MAX_ATTEMPTS


def test_huge_declared_inputs_are_not_made() -> None:
    model = product([1 << 20, 1 << 20], 1 << 20)
    del model.graph.node[:]
    with pytest.raises(ModelError, match="Generated inputs would take 8796093022208 bytes"):
        choose_inputs(model, InputOptions(), lambda feeds: None)


def test_walk_ends_where_functions_call_each_other_many_times() -> None:
    model = product(["m", "k"], 16)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("tests", 1)]
    for level in range(40):
        inner = "Relu" if level == 0 else f"F{level - 1}"
        domain = "" if level == 0 else "tests"
        body = [
            helper.make_node(inner, [f"v{at}"], [f"v{at + 1}"], domain=domain) for at in range(2)
        ]
        function = helper.make_function("tests", f"F{level}", ["v0"], ["v2"], body, opsets)
        model.functions.append(function)
    call = helper.make_node("F39", ["x"], ["bomb"], domain="tests")
    model.graph.node.insert(0, call)
    found = choose_inputs(model, InputOptions(), lambda feeds: None)
    assert found.feeds["x"].ndim == 2


def test_masks_and_other_kinds_by_role() -> None:
    graph = Graph()
    graph.input("token_type_ids", TensorProto.INT32, [2, 3])
    graph.input("padding_mask", TensorProto.FLOAT, [2, 3])
    graph.input("scores_mask", TensorProto.FLOAT, [2, 1, 3, 3])
    graph.input("is_long", TensorProto.BOOL, [1])
    graph.input("texts", TensorProto.STRING, [2])
    found = choose_inputs(graph.model(), InputOptions(), lambda feeds: None).feeds
    assert not found["token_type_ids"].any()
    assert found["padding_mask"].all()
    assert not found["scores_mask"].any()
    assert found["is_long"].all()
    assert all(isinstance(text, str) and " " in text for text in found["texts"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (helper.make_tensor_value_info("z", TensorProto.COMPLEX64, [1]), "'z' is complex64"),
        (helper.make_tensor_value_info("z", TensorProto.FLOAT, None), "'z' has no shape"),
        (helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, None), "is not a tensor"),
    ],
    ids=["complex", "no shape", "sequence"],
)
def test_inputs_that_cannot_be_generated(value: Any, message: str) -> None:
    model = product(["m", "k"], 16)
    model.graph.input.append(value)
    with pytest.raises(ModelError, match=message):
        choose_inputs(model, InputOptions(), lambda feeds: None)


def test_initializers_are_no_inputs() -> None:
    model = product(["m", "k"], 16)
    weight = model.graph.initializer[0]
    dims = list(numpy_helper.to_array(weight).shape)
    model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, dims))
    assert shapes(chosen(model)) == {"x": (2, 16)}
