"""Every form of tests/catalogue: converted as it should be, with the original's answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnx_ternary import get_library_path
from onnx_ternary.conversion.optimize import OptimizeResult, optimize
from onnx_ternary.errors import LibraryError
from onnx_ternary.op.activations import quantize_rows, quantize_tensor
from onnx_ternary.op.bounds import float_error_bound, int8_error_bound, uint8_error_bound
from onnx_ternary.op.nodes import constant_tensor, op_nodes, read_attributes
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import Rewrite
from onnx_ternary.schema import DOMAIN, INPUT_NAMES, OpAttributes
from tests.catalogue import HITS, NEAR_MISSES
from tests.catalogue.case import Case
from tests.catalogue.gemm import ACTIVATIONS
from tests.support.checks import (
    ALL,
    Array,
    dense,
    exposed,
    feeds_of,
    levels_and_scale,
    options_of,
    run,
    skip_where_too_new,
    tensors,
)


@pytest.fixture(params=HITS, ids=str, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return HITS[request.param]()


@pytest.fixture(scope="module")
def result(case: Case) -> OptimizeResult:
    """The converted case, for tests that change nothing in it."""
    return optimize(case.model, options_of(case))


def test_hit_structure(case: Case, result: OptimizeResult) -> None:
    proto = result.to_proto()
    if all(each.type.tensor_type.HasField("shape") for each in case.model.graph.output):
        onnx.checker.check_model(proto)
    assert tuple(row.pattern for row in result.report.rewrites) == case.patterns
    assert result.report.rejections == ()
    nodes = list(op_nodes(result.model))
    assert len(nodes) == len(case.patterns)
    for node, row in zip(nodes, result.report.rewrites, strict=True):
        assert node.name == row.node
        attributes = read_attributes(node).to_dict()
        assert list(node.attributes) == list(attributes)
        assert case.activation.items() <= attributes.items()
        assert len(node.inputs) == len(INPUT_NAMES)
        for value in node.inputs[1:]:
            assert value is not None
            assert value.graph is node.graph and not value.is_graph_input()
            assert value.is_initializer() is not row.graph.startswith("function ")
        assert node.outputs[0].dtype is not None
    smaller = result.report.bytes_after < result.report.bytes_before
    assert smaller or case.keeps_weight or case.grows


def test_hit_keeps_names_metadata_and_imports(case: Case, result: OptimizeResult) -> None:
    before, after = case.model, result.to_proto()
    assert [each.name for each in after.graph.input] == [each.name for each in before.graph.input]
    for old, new in zip(before.graph.output, after.graph.output, strict=True):
        assert new.name == old.name
        assert new.type.tensor_type.elem_type == old.type.tensor_type.elem_type
        if old.type.tensor_type.HasField("shape"):
            assert new == old
    for name in ("ir_version", "producer_name", "doc_string"):
        assert getattr(after, name) == getattr(before, name)
    assert after.graph.doc_string == before.graph.doc_string
    assert after.graph.name == before.graph.name
    imports = {each.domain: each.version for each in after.opset_import}
    assert imports == {**{each.domain: each.version for each in before.opset_import}, DOMAIN: 1}
    metadata = {each.key: each.value for each in after.metadata_props}
    assert metadata["author"] == "somebody"
    assert metadata.keys() == {"author", "onnx_ternary.version", "onnx_ternary.options"}


def test_hit_keeps_float_weight_only_where_used(case: Case, result: OptimizeResult) -> None:
    names = {value.name for graph in result.model.graphs() for value in graph.initializers.values()}
    weights = {row.weight for row in result.report.rewrites}
    assert (weights <= names) if case.keeps_weight else not (weights & names)
    assert bool(result.report.notes) == (case.keeps_weight or case.noted)
    constants = [node for node in result.model.graph if node.op_type == "Constant"]
    assert not constants


def test_hit_weight_is_exact(case: Case, result: OptimizeResult) -> None:
    nodes = op_nodes(result.model)
    for node, expected in zip(nodes, case.weights, strict=True):
        if expected is not None:
            np.testing.assert_array_equal(dense(node), expected)


@pytest.fixture(params=["function body", "library"])
def library(request: pytest.FixtureRequest) -> bool:
    if request.param == "library":
        try:
            get_library_path()
        except LibraryError as error:
            pytest.skip(str(error))
    return bool(request.param == "library")


def test_hit_numerics(case: Case, result: OptimizeResult, library: bool) -> None:
    skip_where_too_new(case.model)
    # With a body in the model, a library that refuses a node would go unnoticed; inside local
    # functions nodes need it, and unit/verification/test_forms.py runs them alone.
    with_body = not library or bool(case.model.functions)
    if not with_body:
        result = optimize(case.model, options_of(case, function_body=False))
    assert result.report.has_function_body is with_body
    if all(row.graph == "main graph" for row in result.report.rewrites):
        check_products(case, result, library)
    else:
        # Values in bodies cannot be exposed; whole numbers make every sum exact.
        feeds = feeds_of(case.model, whole_numbers=True)
        expected = run(case.runnable or case.model, feeds)
        found = run(result.to_proto(), feeds, library=library)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def check_products(case: Case, result: OptimizeResult, library: bool) -> None:
    rows = result.report.rewrites
    if any(row.dtype == "bfloat16" for row in rows):
        pytest.skip("ONNX Runtime's CPU provider multiplies no bfloat16 matrices")
    nodes = list(op_nodes(result.model))
    names = [row.input for row in rows]
    names += [output_name(row, node) for row, node in zip(rows, nodes, strict=True)]
    feeds = feeds_of(case.model, whole_numbers=False)
    before = run(exposed(case.runnable or case.model, names), feeds)
    after = run(exposed(result.to_proto(), names), feeds, library=library)
    for row, node in zip(rows, nodes, strict=True):
        check_product(row, node, {**feeds, **before}, {**feeds, **after}, case, library)


def check_product(
    row: Rewrite,
    node: ir.Node,
    before: dict[str, Array],
    after: dict[str, Array],
    case: Case,
    library: bool,
) -> None:
    levels, scale, group_size = levels_and_scale(node)
    bias = np.broadcast_to(tensors(node)[3], (levels.shape[1],))
    if case.activation["activation"] != "float":
        check_quantized_product(row, node, before, after)
        return
    # X times a scale per row is rounded here, and in sessions of float16 it is not.
    scales = [each.op_type for each in steps_between(row.input, node.inputs[0])].count("Mul")
    separate = row.pattern.count("->") + 1 + scales
    for values, roundings in ((after, scales * (row.dtype == "float16")), (before, separate)):
        x, y = product_values(row, node, values)
        exact = x.astype(np.float64) @ dense(node) + bias
        addend = kept_addend(case.model, values)
        bound = float_error_bound(
            x,
            levels,
            scale,
            group_size,
            bias,
            addition_depth=levels.shape[0],
            fixed_point=library,
            dtype=y.dtype,
        )
        unit = np.finfo(y.dtype).eps
        magnitude = np.abs(x).astype(np.float64) @ np.abs(dense(node)) + np.abs(bias)
        # Each separate operation of the original rounds once more.
        bound = bound + (roundings + 2 * (addend is not None)) * unit * (
            magnitude + (0 if addend is None else np.abs(addend))
        )
        if values is before:
            bound = bound + row.max_relative_change * magnitude
        expected = exact if addend is None else exact + addend
        assert y.shape == expected.shape
        assert (np.abs(y - expected) <= bound).all()


def check_quantized_product(
    row: Rewrite, node: ir.Node, before: dict[str, Array], after: dict[str, Array]
) -> None:
    """The op follows its rule, and the original's sums are of the same integers."""
    attributes, constants = read_attributes(node), tensors(node)
    x, y = product_values(row, node, after)
    expected = ternary_indexed_matmul(x, *constants, attributes)
    levels, scale, group_size = levels_and_scale(node)
    rows = x.reshape(-1, attributes.K).astype(np.float32)
    if attributes.activation == "uint8":
        integers, x_scale = quantize_tensor(rows)
        factor = np.full((len(rows), 1), x_scale, np.float64)
        bound = uint8_error_bound(integers, x_scale, levels, scale, constants[3], x.dtype)
    else:
        q, s = quantize_rows(rows, attributes)
        integers, factor = q.astype(np.int64), 1 / s[:, None].astype(np.float64)
        bound = int8_error_bound(rows, levels, scale, group_size, constants[3], attributes, x.dtype)
    y, expected = (each.reshape(-1, attributes.N).astype(np.float64) for each in (y, expected))
    magnitude = (np.abs(integers) @ np.abs(dense(node))) * factor + np.abs(constants[3])
    # Scales of groups of rows are folded into the body's weights, which makes its sums float ones.
    ours = 2 * bound + (group_size > 0) * 2.0**-23 * attributes.K * magnitude
    assert (np.abs(y - expected) <= ours).all()
    # The original's float sums, and its rounding of each scaled operand.
    theirs = (attributes.K + 8) * 2.0**-24 + (x.dtype == np.float16) * 2.0**-9
    original = before[row.output].reshape(y.shape)
    assert (np.abs(original - expected) <= bound + theirs * magnitude).all()


def product_values(row: Rewrite, node: ir.Node, values: dict[str, Array]) -> tuple[Array, Array]:
    """X and Y of a node, from the values around the Transposes, Reshapes and Mul beside it."""
    y_name = output_name(row, node)
    x, y = values[row.input], values[y_name]
    for step in steps_between(row.input, node.inputs[0]):
        if step.op_type == "Transpose":
            x = x.transpose(step.attributes["perm"].as_ints())
        elif step.op_type == "Mul":
            scale = constant_tensor(step.inputs[1])
            assert scale is not None
            x = x * scale.numpy()
        else:
            x = x.reshape(*x.shape[: num_kept(step)], -1)
    (last,) = (each for each in node.graph or () if y_name in {v.name for v in each.outputs})
    for step in reversed(steps_between(node.outputs[0].name, last.outputs[0])):
        if step.op_type == "Transpose":
            y = y.transpose(np.argsort(step.attributes["perm"].as_ints()))
        elif step.op_type == "Reshape":
            y = y.reshape(*y.shape[: num_kept(step)], -1)
    return x, y


def steps_between(name: str | None, value: ir.Value | None) -> list[ir.Node]:
    """The nodes from the value of a name to another one, first operands followed."""
    steps: list[ir.Node] = []
    while value is not None and value.name != name:
        step = value.producer()
        assert step is not None
        steps.insert(0, step)
        value = step.inputs[0]
    return steps


def num_kept(reshape: ir.Node) -> int:
    """How many axes in front a Reshape leaves as they are."""
    target = constant_tensor(reshape.inputs[1])
    assert target is not None
    return int((target.numpy() == 0).sum())


def output_name(row: Rewrite, node: ir.Node) -> str:
    """The last value that the original's product has too, the activation of a FusedGemm apart."""
    (last,) = (each for each in node.graph or () if row.output in {v.name for v in each.outputs})
    value = last.inputs[0] if last.op_type in ACTIVATIONS else last.outputs[0]
    assert value is not None and value.name
    return value.name


def kept_addend(model: onnx.ModelProto, values: dict[str, Array]) -> Array | None:
    """``beta * C`` of a Gemm or MatMulNBits whose C cannot become the op's bias."""
    inputs = {each.name for each in model.graph.input}
    for node in model.graph.node:
        at = {"Gemm": 2, "FusedGemm": 2, "MatMulNBits": 5}.get(node.op_type, len(node.input))
        if len(node.input) <= at:
            continue
        constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        c = values.get(node.input[at], constants.get(node.input[at]))
        if c is None:
            continue  # a DequantizeLinear of constants
        runtime = node.input[at] not in constants or node.input[at] in inputs
        if runtime or (c.ndim == 2 and c.shape[0] > 1):
            beta = {each.name: each.f for each in node.attribute}.get("beta", 1.0)
            return c.astype(np.float64) * beta
    return None


def test_hit_twice_changes_nothing(case: Case, result: OptimizeResult) -> None:
    twice = optimize(result.to_proto(), options_of(case))
    assert twice.report.rewrites == ()
    assert twice.report.already_converted == tuple(row.node for row in result.report.rewrites)
    assert twice.report.rejections == ()
    assert twice.to_proto() == result.to_proto()


def test_hit_leaves_given_model_alone(case: Case) -> None:
    original = onnx.ModelProto()
    original.CopyFrom(case.model)
    optimize(case.model, options_of(case))
    assert case.model == original
    model = ir.from_proto(case.model)
    before = ir.to_proto(model)
    optimize(model, options_of(case))
    assert ir.to_proto(model) == before


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_stays_with_its_reason(name: str) -> None:
    miss = NEAR_MISSES[name]()
    result = optimize(miss.model, OptimizeOptions(**{"min_elements": 0, **miss.options}))
    assert result.report.rewrites == ()
    (kept,) = result.report.rejections
    assert kept.reason == miss.reason
    assert result.to_proto() == ir.to_proto(ir.from_proto(miss.model))


def test_shared_weight_is_stored_once() -> None:
    result = optimize(HITS["shared"]().model, ALL)
    first, second = op_nodes(result.model)
    assert first.inputs[1] is second.inputs[1]
    assert first.inputs[2] is second.inputs[2]
    assert first.inputs[3] is not second.inputs[3]  # one has absorbed a factor
    assert [row.shares_index_with for row in result.report.rewrites] == [None, "first"]
    assert result.report.weight_bytes_before == 48 * 48 * 4


def test_transposed_twice_is_the_same_weight() -> None:
    result = optimize(HITS["shared_through_transpose"]().model, ALL)
    first, second = op_nodes(result.model)
    assert [first.inputs[at] for at in (1, 2, 3, 4)] == [second.inputs[at] for at in (1, 2, 3, 4)]
    assert "Transpose" not in {node.op_type for node in result.model.graph}


def test_bias_initializer_is_kept_by_name() -> None:
    result = optimize(HITS["gemm_trans_b"]().model, ALL)
    (node,) = op_nodes(result.model)
    assert node.inputs[4] is result.model.graph.initializers["c"]


def test_notes_name_who_uses_a_kept_weight() -> None:
    notes = optimize(HITS["gather_tied_weight"]().model, ALL).report.notes
    assert notes == ("weight 'w' kept as well: used by Gather 'Gather_z'",)
    notes = optimize(HITS["graph_output_weight"]().model, ALL).report.notes
    assert notes == ("weight 'w' kept as well: it is a graph output",)


def test_bfloat16_answers(library: bool) -> None:
    case = HITS["matmul_bfloat16"]()
    result = optimize(case.model, options_of(case))
    (node,) = op_nodes(result.model)
    assert node.outputs[0].dtype == ir.DataType.BFLOAT16
    feeds = feeds_of(case.model, whole_numbers=True)
    found = run(result.to_proto(), feeds, library=library)["y"]
    exact = feeds["x"].astype(np.float64) @ dense(node)
    assert (np.abs(found - exact) <= 2.0**-8 * np.abs(exact)).all()


@pytest.mark.parametrize("index_format", ["packed", "rsr"])
@pytest.mark.parametrize("activation", ["keep", "int8"])
def test_options_reach_the_node(index_format: str, activation: str) -> None:
    options = OptimizeOptions(
        index_format=index_format,  # type: ignore[arg-type] # parametrized
        activation=activation,  # type: ignore[arg-type] # parametrized
        min_elements=0,
    )
    result = optimize(HITS["matmul"]().model, options)
    onnx.checker.check_model(result.to_proto())
    (node,) = op_nodes(ir.from_proto(result.to_proto()))
    attributes = read_attributes(node)
    assert attributes.index_format == index_format
    if activation == "keep":
        assert attributes.activation == "float"
        return
    assert attributes == OpAttributes(
        K=48,
        N=20,
        index_format=attributes.index_format,
        storage=attributes.storage,
        block_size=attributes.block_size,
        block_width=attributes.block_width,
        algorithm=attributes.algorithm,
        activation="int8",
        activation_rule="absmax_division",
        activation_epsilon=float(np.float32(1e-5)),
        activation_qmin=-128,
        activation_qmax=127,
    )


def test_int8_keeps_a_scale_in_front_of_the_quantization() -> None:
    options = OptimizeOptions(activation="int8", min_elements=0)
    result = optimize(HITS["mul_before"]().model, options)
    assert [row.pattern for row in result.report.rewrites] == ["MatMul"]
