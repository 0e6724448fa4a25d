"""Quantized activations: which integers the op multiplies, and which nodes stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.activations import quantize_rows, quantize_tensor
from onnx_ternary.op.nodes import op_nodes, read_attributes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import OP_TYPE, OpAttributes
from onnx_ternary.verification.verify import verify
from tests.catalogue import activations, matmul_integer, straight_through
from tests.catalogue.activations import INT8, absmax, dynamic, offline
from tests.catalogue.case import Case, K, N, matmul, model, node, ternary
from tests.catalogue.dequantize import codes
from tests.catalogue.functions import call, calling, constant, function, referring
from tests.catalogue.matmul_integer import quantize_dynamic
from tests.support.checks import ALL, exposed, feeds_of, levels_and_scale, run, skip_where_too_new

KEPT = {**activations.KEPT, **straight_through.KEPT}
HITS = {**activations.HITS, **matmul_integer.HITS}
UNFUSED = OptimizeOptions(min_elements=0, fuse_activation=False)
Array = NDArray[Any]
INTEGER_PRODUCTS = [
    name
    for name in HITS
    if (name.startswith("dynamic") or name == "matmul_integer_absmax")
    and name not in ("dynamic_qdq", "dynamic_quantize_matmul")
]
WITH_INTEGERS = [name for name in HITS if name != "dynamic_quantize_matmul"]


def hard_inputs(made: onnx.ModelProto) -> list[dict[str, Array]]:
    """Activations where a rule that is nearly the graph's gives other integers."""
    rng = np.random.default_rng(11)
    (value,) = (each for each in made.graph.input if each.name == "x")
    shape = (4, 50, K)[-len(value.type.tensor_type.shape.dim) :]
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    x = rng.standard_normal(shape).astype(np.float32)
    # Whole numbers of steps and a half, to either side of which rounding goes.
    halves = (rng.integers(-254, 255, shape) / 2).astype(np.float32)
    halves[..., 0] = 127
    small = x * np.float32(1e-6)
    small[..., 1:] *= np.float32(1e-3)
    outlier = x.copy()
    outlier[..., 3] *= 1000
    zeros = np.zeros_like(x)
    return [{"x": each.astype(dtype)} for each in (x, halves, small, outlier, abs(x), zeros)]


def integers(x: Array, attributes: OpAttributes) -> Array:
    """What the op multiplies."""
    rows = x.reshape(-1, attributes.K).astype(np.float32)
    if attributes.activation == "uint8":
        return quantize_tensor(rows)[0].reshape(x.shape)
    return quantize_rows(rows, attributes)[0].astype(np.int64).reshape(x.shape)


@pytest.mark.parametrize("name", WITH_INTEGERS)
def test_integers_are_those_of_the_graph(name: str) -> None:
    case = HITS[name]()
    skip_where_too_new(case.model)
    nodes = list(op_nodes(optimize(case.model, ALL).model))
    assert len(nodes) == len(case.patterns)
    attributes = read_attributes(nodes[0])
    made = exposed(case.model, ["q", *(["zero"] if attributes.activation == "uint8" else [])])
    for feeds in hard_inputs(case.model):
        values = run(made, feeds)
        q = values["q"].astype(np.int64)
        if attributes.activation == "uint8":
            q -= values["zero"].astype(np.int64)
        np.testing.assert_array_equal(integers(feeds["x"], attributes), q)


@pytest.mark.parametrize("name", INTEGER_PRODUCTS)
def test_integer_sums_are_those_of_the_graph(name: str) -> None:
    case = HITS[name]()
    (new,) = op_nodes(optimize(case.model, ALL).model)
    levels, _, _ = levels_and_scale(new)
    unit = 64 if name == "dynamic_wide_codes" else 1  # of the codes
    for feeds in hard_inputs(case.model):
        sums = run(exposed(case.model, ["sums"]), feeds)["sums"]
        ours = integers(feeds["x"], read_attributes(new)) @ levels.astype(np.int64)
        np.testing.assert_array_equal(unit * ours, sums)


@pytest.mark.parametrize("name", ["dynamic", "dynamic_bias", "dynamic_columns", "dynamic_rank3"])
def test_quantize_dynamic_gives_the_same_bits(name: str) -> None:
    case = HITS[name]()
    converted = optimize(case.model, ALL)
    for feeds in hard_inputs(case.model):
        expected = run(case.model, feeds)["y"]
        for library in (False, True):
            found = run(converted.to_proto(), feeds, library=library)["y"]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", HITS)
def test_verification_passes(name: str) -> None:
    case = HITS[name]()
    skip_where_too_new(case.model)
    converted = optimize(case.model, ALL).to_proto()
    for feeds in hard_inputs(case.model):
        report = verify(case.model, converted, inputs=feeds)
        assert report.passed
        for check in report.products:
            assert check.compared_with.endswith("rule and original product")


@pytest.mark.parametrize("zero", [0, None, 7])
def test_verification_of_codes_that_may_saturate(zero: int | None) -> None:
    """Sums of 255 * 127 saturate in onnxruntime on some processors; the op's do not."""
    zeros = np.array(zero or 0, np.int8)
    stored = codes(levels=(-113, 7, 127) if zero == 7 else (-127, 0, 127))
    case = quantize_dynamic(stored=stored, zero=zeros)
    if zero is None:
        (product,) = (each for each in case.model.graph.node if each.op_type == "MatMulInteger")
        del product.input[3]
        (unused,) = (each for each in case.model.graph.initializer if each.name == "w_zero")
        case.model.graph.initializer.remove(unused)
    converted = optimize(case.model, ALL).to_proto()
    feeds = {"x": np.ones((3, K), np.float32)}
    report = verify(case.model, converted, inputs=feeds)
    assert report.passed
    (check,) = report.products
    assert check.compared_with == "numpy reference of the uint8 rule and original product"


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("bitlinear_offline", "activation_epsilon", 5.0),
        ("bitlinear_offline", "activation_qmax", 126),
        ("bitlinear_offline", "activation_qmin", -20),
        ("bitlinear_packed", "activation_epsilon", 5.0),
    ],
)
def test_verification_sees_another_rule(name: str, attribute: str, value: float) -> None:
    case = HITS[name]()
    converted = optimize(case.model, ALL).to_proto()
    (new,) = (each for each in converted.graph.node if each.op_type == OP_TYPE)
    (found,) = (each for each in new.attribute if each.name == attribute)
    found.CopyFrom(helper.make_attribute(attribute, value))
    report = verify(case.model, converted)
    assert not report.passed
    (check,) = report.products
    assert check.worst_error_over_bound > 10


@pytest.mark.parametrize("weight_tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("name", HITS)
def test_verification_sees_a_wrong_weight(name: str, weight_tolerance: float) -> None:
    case = HITS[name]()
    skip_where_too_new(case.model)
    result = optimize(case.model, ALL)
    new = next(iter(op_nodes(result.model)))
    codes = new.inputs[1]
    assert codes is not None and codes.const_value is not None
    changed = codes.const_value.numpy().copy()
    # Input 0 of column 0: level -1 and 0 become 1, level 1 becomes 0.
    changed[0, 0, 0, 0] ^= 1 if changed[0, 0, 0, 0] & 3 == 2 else 2
    if changed[0, 0, 0, 0] & 3 == 3:
        changed[0, 0, 0, 0] ^= 1
    codes.const_value = ir.Tensor(changed, name=codes.name)
    report = verify(case.model, result.to_proto(), weight_tolerance=weight_tolerance)
    assert not report.products_passed


@pytest.mark.parametrize("name", HITS)
def test_quantization_leaves_the_graph(name: str) -> None:
    case = HITS[name]()
    converted = optimize(case.model, ALL).model
    kinds = Counter(each.op_type for each in converted.graph)
    assert kinds.pop(OP_TYPE) == len(case.patterns)
    stays = {
        "bitlinear_float16": {},
        "bitlinear_seen_output": dict.fromkeys(("Abs", "ReduceMax", "Reciprocal", "Round"), 1)
        | {"Clip": 2, "Mul": 2},
    }
    stays["bitlinear_seen_node"] = stays["bitlinear_seen_output"] | {"Relu": 1}
    assert kinds == stays.get(name, {})
    used = {value for each in converted.graph for value in each.inputs}
    assert set(converted.graph.initializers.values()) <= used


@pytest.mark.parametrize("name", [name for name in HITS if "integer" not in name])
def test_quantization_stays_where_asked(name: str) -> None:
    case = HITS[name]()
    skip_where_too_new(case.model)
    result = optimize(case.model, UNFUSED)
    if "MatMulInteger" in {each.op_type for each in case.model.graph.node}:
        assert not result.report.rewrites
        return
    if name == "dynamic_quantize_matmul":
        assert [kept.reason for kept in result.report.rejections] == [
            "its activations are integers, and fuse_activation is off"
        ]
        return
    assert {row.activation for row in result.report.rewrites} == {"float"}
    kinds = Counter(each.op_type for each in result.model.graph)
    before = Counter(each.op_type for each in case.model.graph.node)
    for op_type in ("Abs", "ReduceMax", "DynamicQuantizeLinear", "DequantizeLinear"):
        assert kinds[op_type] == before[op_type] - (name == "bitlinear_online" and op_type == "Abs")
    assert verify(case.model, result.to_proto()).products_passed


@pytest.mark.parametrize("name", KEPT)
def test_rule_the_op_lacks_stays_in_the_graph(name: str) -> None:
    made, reason = KEPT[name]()
    if name == "truncating_division" and ort.__version__.startswith("1.17."):
        pytest.skip("onnxruntime 1.17 does not divide int8")
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    assert row.activation == "float"
    expected = f"the graph goes on quantizing the activations, because {reason}: '{row.node}'"
    assert result.report.notes == (expected,)
    kinds = Counter(each.op_type for each in result.model.graph)
    before = Counter(each.op_type for each in made.graph.node)
    for op_type in ("Abs", "ReduceMax", "Round", "Floor", "Reciprocal"):
        assert kinds[op_type] == before[op_type]
    assert verify(made, result.to_proto()).products_passed


@pytest.mark.parametrize("scaled", ["before", "behind"])
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_integers_keep_a_zero_point_nobody_subtracts(op_type: str, scaled: str) -> None:
    nodes = [*dynamic(), node("Cast", ["q"], "wide", to=TensorProto.FLOAT)]
    if scaled == "before":
        nodes.append(node("Mul", ["wide", "x_scale"], "h"))
        nodes.append(node(op_type, ["h", "w"], "y"))
    else:
        nodes.append(node(op_type, ["wide", "w"], "sums"))
        nodes.append(node("Mul", ["sums", "x_scale"], "y"))
    made = model(nodes, {"w": ternary()})
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    assert row.activation == "float"
    feeds = feeds_of(made, whole_numbers=False)
    assert feeds["x"].min() < 0
    expected = run(made, feeds)["y"]
    for library in (False, True):
        found = run(result.to_proto(), feeds, library=library)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("of", "name", "kind", "value"),
    [
        ("Cast", "to", AttributeProto.INT, int(TensorProto.FLOAT)),
        ("ReduceMax", "axes", AttributeProto.INTS, [-1]),
        ("ReduceMax", "keepdims", AttributeProto.INT, 1),
    ],
)
def test_rule_that_calls_of_a_function_give_stays(
    of: str, name: str, kind: Any, value: Any
) -> None:
    nodes, constants = absmax()
    nodes += [
        node("Div", ["q", "s"], "dequantized"),
        node("Cast", ["dequantized"], "cast", to=TensorProto.FLOAT),
        matmul("cast"),
    ]
    (given,) = (each for each in nodes if each.op_type == of)
    (old,) = (each for each in given.attribute if each.name == name)
    given.attribute.remove(old)
    referring(given, name, kind)
    makers = [constant(each, key) for key, each in {**constants, "w": ternary()}.items()]
    made = calling([function([*makers, *nodes], attributes=[name])], [call(**{name: value})])
    result = optimize(made, ALL)
    (row,) = result.report.rewrites
    assert row.activation == "float"
    feeds = feeds_of(made, whole_numbers=False)
    found, expected = run(result.to_proto(), feeds)["y"], run(made, feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_weight_shared_with_float_activations() -> None:
    """One index, two activation rules."""
    case = offline()
    made = case.model
    made.graph.node.append(matmul("x", "w", "z", "plain"))
    made.graph.output.append(
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch", "tokens", N))
    )
    result = optimize(made, ALL)
    assert [row.activation for row in result.report.rewrites] == ["int8", "float"]
    first, second = op_nodes(result.model)
    assert first.inputs[1] is second.inputs[1]
    feeds = feeds_of(made, whole_numbers=False)
    expected = run(made, feeds)
    found = run(result.to_proto(), feeds, library=True)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_model_that_never_quantizes_is_not_quantized() -> None:
    made = model(
        [node("Clip", ["x", "low"], "h"), matmul("h")],
        {"w": ternary(), "low": np.array(0, np.float32)},
    )
    (row,) = optimize(made, ALL).report.rewrites
    assert row.activation == "float"


def test_users_int8_does_not_replace_the_models_rule() -> None:
    options = OptimizeOptions(min_elements=0, activation="int8")
    made = offline(epsilon=0.5).model
    (new,) = op_nodes(optimize(made, options).model)
    assert read_attributes(new).activation_epsilon == 0.5
    (row,) = optimize(quantize_dynamic().model, options).report.rewrites
    assert row.activation == "uint8"


def test_quantized_in_a_branch() -> None:
    """All of it in the branches of an If; x is captured."""
    weight = ternary()
    branches = {}
    for branch in ("then_branch", "else_branch"):
        nodes, constants = absmax(prefix=f"{branch}_")
        nodes += [
            node("Div", [f"{branch}_q", f"{branch}_s"], f"{branch}_dequantized"),
            matmul(f"{branch}_dequantized", "w", f"{branch}_y", branch),
        ]
        branches[branch] = helper.make_graph(
            nodes,
            branch,
            [],
            [helper.make_tensor_value_info(f"{branch}_y", TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(each, name) for name, each in constants.items()],
        )
    made = model(
        [
            node("ReduceMax", ["x"], "top", keepdims=0),
            node("Greater", ["top", "zero"], "positive"),
            helper.make_node("If", ["positive"], ["y"], name="choice", **branches),
        ],
        {"w": weight, "zero": np.array(0, np.float32)},
    )
    result = optimize(made, ALL)
    assert [row.activation for row in result.report.rewrites] == ["int8", "int8"]
    for new in op_nodes(result.model):
        assert INT8.items() <= read_attributes(new).to_dict().items()
        assert new.graph is not None
        assert [each.op_type for each in new.graph] == [OP_TYPE]
    feeds = feeds_of(made, whole_numbers=False)
    for x in (feeds["x"], -abs(feeds["x"])):
        expected, found = (
            run(each, {"x": x}, library=each is not made)["y"] for each in (made, result.to_proto())
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_too_many_rows_for_uint8_stay() -> None:
    rows = 2**17 + 1
    case: Case = quantize_dynamic(stored=np.ones((rows, 1), np.int8), x_shape=("batch", rows))
    (kept,) = optimize(case.model, ALL).report.rejections
    assert kept.reason == (
        "its activations are integers, and uint8 activations take at most 131072 rows, the weight "
        "has 131073"
    )
