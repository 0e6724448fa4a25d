"""The way back: exported models hold the same weights, run anywhere, and convert back again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary
from onnx_ternary import OptimizeOptions, OptimizeResult
from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.errors import IndexFormatError, ModelError, VerificationError
from onnx_ternary.exporting.export import _compared, _judge, export, export_file
from onnx_ternary.exporting.exporter import Form
from onnx_ternary.model_files.load import load
from onnx_ternary.op.bounds import float_error_bound
from onnx_ternary.op.nodes import op_nodes
from onnx_ternary.schema import DOMAIN, INPUT_NAMES, OP_TYPE
from tests.catalogue import HITS
from tests.catalogue.case import Case
from tests.catalogue.matmul_nbits import FEW_BITS
from tests.golden.write_golden import Case as GoldenCase
from tests.golden.write_golden import cases as golden_cases
from tests.support.checks import ALL, dense, feeds_of, skip_where_too_new, tensors
from tests.support.command_line import DIGITS
from tests.support.command_line import run as run_command
from tests.support.converted_models import (
    Product,
    converted_model,
    make_product,
    original_model,
    plain_session,
    random_weight,
    rows_for_the_int8_rule,
    supported_opsets,
)
from tests.support.products import INT8

FORMS: tuple[Form, ...] = get_args(Form)
every_form = pytest.mark.parametrize("form", FORMS)
# onnxruntime 1.17.3 to 1.23.2 refuse MatMulNBits of 2 bits, 1.31.1 runs it.
BITS: Any = 2 if FEW_BITS else 4
SUPPORTED = supported_opsets()
OPSETS = sorted({11, 12, 13, 17, 19, 21, 25} & set(SUPPORTED))
Array = NDArray[Any]


def run(model: onnx.ModelProto, x: Array, level: str = "DISABLE_ALL") -> Array:
    (y,) = plain_session(model, level).run(None, {"X": x})
    return np.asarray(y)


def assert_plain(model: onnx.ModelProto) -> None:
    """Nothing of ours is left."""
    domains = {entry.domain for entry in model.opset_import}
    assert DOMAIN not in domains
    assert not any(function.domain == DOMAIN for function in model.functions)
    assert not any("onnx_ternary" in entry.key for entry in model.metadata_props)
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    assert not any("onnx_ternary" in entry.key for node in nodes for entry in node.metadata_props)
    assert b"TernaryIndexedMatMul" not in model.SerializeToString()


def refused(form: Form, scale_rank: int, opset: int) -> bool:
    """Whether DequantizeLinear of this opset lacks such scales."""
    return form == "qdq" and opset < (10, 13, 21)[scale_rank]


@every_form
@pytest.mark.parametrize("golden", list(golden_cases()), ids=lambda case: case.path.stem)
def test_golden_index_comes_back(golden: GoldenCase, form: Form) -> None:
    index = golden.build(native=False)
    product = Product(golden.weight(), index, np.zeros((), np.float32))
    converted = converted_model([product], opset=21)
    exported = export(converted, to=form).to_proto()
    assert_plain(exported)
    again = onnx_ternary.optimize(
        exported,
        OptimizeOptions(
            min_elements=0,
            index_format=golden.index_format,
            storage=golden.storage,
            block_width=index.attributes.block_width or None,
        ),
    )
    (node,) = op_nodes(again.model)
    np.testing.assert_array_equal(dense(node), golden.weight().dense())
    codes, aux, scale, _ = tensors(node)
    for found, expected in zip(
        (codes, aux, scale), (index.codes, index.aux, index.scale), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def _assert_converts_again(exported: onnx.ModelProto, converted: OptimizeResult) -> None:
    again = onnx_ternary.optimize(exported, ALL)
    nodes, before = op_nodes(again.model), op_nodes(converted.model)
    assert [node.name for node in nodes] == [node.name for node in before]
    for new, old in zip(nodes, before, strict=True):
        np.testing.assert_array_equal(dense(new), dense(old))


@functools.lru_cache(maxsize=1)  # the forms of a case follow one another
def _converted(name: str) -> tuple[Case, OptimizeResult]:
    case = HITS[name]()
    return case, onnx_ternary.optimize(case.model, ALL)


@every_form
@pytest.mark.parametrize("name", HITS)
def test_catalogue_exports_runs_and_converts_again(name: str, form: Form, tmp_path: Path) -> None:
    case, converted = _converted(name)
    skip_where_too_new(case.model)
    groups = any(row.scale.startswith("group") for row in converted.report.rewrites)
    opset = converted.model.opset_imports[""]
    if groups and refused(form, 2, opset):
        with pytest.raises(ModelError, match="group of rows takes DequantizeLinear of opset 21"):
            export(converted.model, to=form)
        return
    result = export(converted.model, to=form, bits=BITS)
    assert len(result.products) == len(converted.report.rewrites)
    result.save(tmp_path / "exported.onnx")
    exported = onnx.load(tmp_path / "exported.onnx")
    assert_plain(exported)

    if all(product.activation == "float" for product in result.products):
        _assert_converts_again(exported, converted)
    # onnxruntime has no bfloat16 MatMul.
    if all(row.dtype != "bfloat16" for row in converted.report.rewrites):
        report = onnx_ternary.verify(
            exported, converted.to_proto(), inputs=feeds_of(case.model, whole_numbers=False)
        )
        assert report.passed, report.summary()


def test_float_weights_are_the_originals_bit_for_bit() -> None:
    original = onnx.load(DIGITS)
    exported = export(onnx_ternary.optimize(original).to_proto()).to_proto()
    before = {each.name: numpy_helper.to_array(each) for each in original.graph.initializer}
    after = {each.name: numpy_helper.to_array(each) for each in exported.graph.initializer}
    products = {node.name: node for node in exported.graph.node}
    rewritten = [node for node in original.graph.node if node.op_type == "Gemm"][:3]
    for gemm in rewritten:
        assert products[gemm.name].op_type == "MatMul"
        # transB = 1; adding 0 takes the sign off the zeros that training rounded from below.
        weight = np.ascontiguousarray(before[gemm.input[1]].T + np.float32(0))
        assert after[products[gemm.name].input[1]].tobytes() == weight.tobytes()
    assert set(after) & set(before)  # the float layer is as it was


@every_form
@pytest.mark.parametrize("scale_rank", [0, 1, 2])
@pytest.mark.parametrize("opset", OPSETS)
def test_float_product_within_bound(opset: int, scale_rank: int, form: Form) -> None:
    product = make_product(scale_rank=scale_rank)
    model = converted_model([product], opset=opset)
    if refused(form, scale_rank, opset):
        with pytest.raises(ModelError, match=f"'product0': .* found opset {opset}; use --to"):
            export(model, to=form)
        return
    exported = export(model, to=form, bits=BITS).to_proto()
    x = np.random.default_rng(1).standard_normal((2, 5, 130)).astype(np.float32)
    weight = product.weight
    bound = float_error_bound(
        x,
        weight.levels,
        weight.scale,
        weight.group_size,
        product.bias,
        addition_depth=130,
        fixed_point=False,
        dtype=np.dtype(np.float32),
    )
    expected = x.astype(np.float64) @ weight.dense() + product.bias
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        if form == "qdq" and level == "ENABLE_ALL":
            continue  # onnxruntime quantizes activations; see below
        assert (np.abs(run(exported, x, level) - expected) <= 2 * bound).all()


@every_form
@pytest.mark.parametrize("rule", ["absmax_division", "absmax_reciprocal"])
@pytest.mark.parametrize("scale_rank", [0, 1, 2])
@pytest.mark.parametrize("opset", OPSETS)
def test_int8_rule_within_bound(opset: int, scale_rank: int, rule: str, form: Form) -> None:
    product = make_product(
        scale_rank=scale_rank,
        activation={**INT8, "activation_rule": rule, "activation_qmin": -127},
    )
    model = converted_model([product], opset=opset)
    if form == "qdq" and scale_rank == 2 and opset < 21:
        with pytest.raises(ModelError, match="DequantizeLinear of opset 21"):
            export(model, to=form)
        return
    result = export(model, to=form, bits=BITS)
    assert result.products[0].operator.startswith(rule)
    exported = result.to_proto()
    assert_plain(exported)
    x = rows_for_the_int8_rule(np.random.default_rng(1), 2, 5, 130)
    expected, bound = product.by_the_int8_rule(x)
    assert (np.abs(run(exported, x) - expected) <= 2 * bound).all()
    (node,) = op_nodes(onnx_ternary.optimize(exported, ALL).model)
    np.testing.assert_array_equal(np.sign(dense(node)), product.weight.levels)


@every_form
@pytest.mark.parametrize("exact", [True, False], ids=["exact scale", "float32 scale"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("opset", sorted({13, 21} & set(SUPPORTED)))
def test_half_precision_computes_in_its_own_type_where_exact(
    opset: int, dtype: Any, exact: bool, form: Form
) -> None:
    rng = np.random.default_rng(0)
    weight = random_weight(rng, 130, 40)
    scale = weight.scale.astype(dtype).astype(np.float32) if exact else weight.scale
    weight = type(weight)(weight.levels, scale, 0, "ternary", 0.0)
    product = Product.make(weight)
    x_dtype = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    result = export(converted_model([product], opset=opset, x_dtype=x_dtype), to=form, bits=BITS)
    half = exact and not (form == "matmulnbits" and dtype == ml_dtypes.bfloat16)
    name = "float16" if dtype == np.float16 else "bfloat16"
    assert result.products[0].dtype == (name if half else "float")
    exported = result.to_proto()
    onnx.checker.check_model(exported)
    assert sum(node.op_type == "Cast" for node in exported.graph.node) == (
        (0 if opset >= 19 or form != "qdq" else 1) if half else 2
    )
    again = onnx_ternary.optimize(exported, ALL)
    (node,) = op_nodes(again.model)
    np.testing.assert_array_equal(dense(node), weight.dense())
    if dtype == np.float16:
        x = rng.standard_normal((1, 3, 130)).astype(np.float16)
        expected = x.astype(np.float64) @ weight.dense()
        np.testing.assert_allclose(run(exported, x), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.skipif(25 not in SUPPORTED, reason="int2 takes opset 25")
@pytest.mark.parametrize("scale_rank", [0, 1, 2])
@pytest.mark.parametrize(
    ("opset", "ir_version", "N", "code_type"),
    [
        (17, 8, 40, TensorProto.INT8),
        (21, 9, 40, TensorProto.INT8),
        (21, 10, 37, TensorProto.INT4),
        (25, 13, 37, TensorProto.INT4),
        (25, 13, 40, TensorProto.INT2),
    ],
)
def test_dequantized_codes_are_the_smallest_onnxruntime_gets_right(
    opset: int, ir_version: int, N: int, code_type: int, scale_rank: int
) -> None:
    if refused("qdq", scale_rank, opset):
        pytest.skip("blocked scales take opset 21")
    product = make_product(N=N, scale_rank=scale_rank)
    model = converted_model([product], opset=opset)
    model.ir_version = ir_version
    exported = export(model, to="qdq").to_proto()
    (dequantize,) = (node for node in exported.graph.node if node.op_type == "DequantizeLinear")
    types = {each.name: each.data_type for each in exported.graph.initializer}
    assert types[dequantize.input[0]] == code_type
    # With all optimizations onnxruntime makes a MatMulNBits of it, which rounds activations to int8
    # unless told not to.
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(exported.SerializeToString(), options)
    x = np.random.default_rng(1).standard_normal((2, 5, 130)).astype(np.float32)
    (y,) = session.run(None, {"X": x})
    expected = x.astype(np.float64) @ product.weight.dense() + product.bias
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(
    ("K", "group_size", "block_size"),
    [
        (5, 0, 16),
        (100, 0, 128),
        (128, 0, 128),
        (700, 0, 128),
        (700, 16, 16),
        (700, 128, 128),
        (700, 256, 256),
        (300, 48, 16),
    ],
)
def test_matmulnbits_blocks_fit_the_scale_groups(
    K: int, group_size: int, block_size: int, bits: Any
) -> None:
    if bits < BITS:
        pytest.skip(f"onnxruntime {ort.__version__} has no 2-bit MatMulNBits")
    options: dict[str, Any] = {"index_format": "rsr"} if group_size == 48 else {}
    product = make_product(K=K, scale_rank=2 if group_size else 1, group_size=group_size, **options)
    result = export(converted_model([product]), to="matmulnbits", bits=bits)
    assert result.products[0].operator == f"MatMulNBits {bits}-bit, block {block_size}"
    exported = result.to_proto()
    (node,) = (each for each in exported.graph.node if each.op_type == "MatMulNBits")
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    expected = {"K": K, "N": 40, "bits": bits, "block_size": block_size, "accuracy_level": 0}
    assert found == expected
    y = run(exported, np.eye(K, dtype=np.float32)[None])
    np.testing.assert_array_equal(y[0], product.weight.dense() + product.bias)


def test_matmulnbits_refuses_groups_no_block_divides() -> None:
    product = make_product(scale_rank=2, group_size=24, index_format="rsr")
    with pytest.raises(ModelError, match="'product0': one scale every 24 rows, expected a multip"):
        export(converted_model([product]), to="matmulnbits")


@pytest.mark.parametrize("shape", [(130,), (3, 130), (0, 130), (2, 2, 2, 130)])
@every_form
def test_any_leading_dimensions(shape: tuple[int, ...], form: Form) -> None:
    if form == "matmulnbits" and len(shape) == 1:
        pytest.skip("MatMulNBits takes no vectors")
    product = make_product()
    exported = export(converted_model([product], x_shape=shape), to=form, bits=BITS).to_proto()
    assert run(exported, np.ones(shape, np.float32)).shape == (*shape[:-1], 40)


def with_constants_in_function(product: Product, *, opset: int = 17) -> onnx.ModelProto:
    """The product in a local function, its tensors made by Constant nodes, called twice."""
    index = product.index
    arrays = (index.codes, index.aux, index.scale, product.bias)
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in zip(INPUT_NAMES[1:], arrays, strict=True)
    ]
    attributes = product.attributes.to_dict()
    nodes.append(
        helper.make_node(
            OP_TYPE, list(INPUT_NAMES), ["Y"], name="inner", domain=DOMAIN, **attributes
        )
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    function = helper.make_function("local", "Linear", ["X"], ["Y"], nodes, imports)
    calls = [
        helper.make_node("Linear", ["X"], ["Y"], domain="local", name="call"),
        helper.make_node("Linear", ["X"], ["Z"], domain="local", name="other call"),
    ]
    K, N = product.weight.levels.shape
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("X", K), ("Y", N), ("Z", N))
    ]
    graph = helper.make_graph(calls, "calls", values[:1], values[1:])
    return helper.make_model(
        graph,
        opset_imports=[*imports, helper.make_opsetid("local", 1)],
        functions=[function],
        ir_version=8,
    )


@every_form
@pytest.mark.parametrize("activation", [None, INT8], ids=["float", "int8"])
def test_product_in_a_function(activation: dict[str, Any] | None, form: Form) -> None:
    product = make_product(activation=activation)
    exported = export(with_constants_in_function(product), to=form, bits=BITS).to_proto()
    onnx.checker.check_model(exported)
    assert_plain(exported)
    (function,) = exported.functions
    constants = [node for node in function.node if node.op_type == "Constant"]
    assert not any(attr.t.dims[:2] == [10, 2] for node in constants for attr in node.attribute)
    x = np.random.default_rng(1).standard_normal((5, 130)).astype(np.float32)
    expected = export(converted_model([product], x_shape=("b", None)), to="float").to_proto()
    first, second = plain_session(exported, "DISABLE_ALL").run(None, {"X": x})
    np.testing.assert_array_equal(first, second)
    wanted = run(expected, x)
    np.testing.assert_allclose(first, wanted, atol=1e-5 * np.abs(wanted).max())


def test_unknown_type_at_an_old_opset_is_refused() -> None:
    with pytest.raises(ModelError, match="'inner': the type of its output is unknown"):
        export(with_constants_in_function(make_product(), opset=13))


def test_shared_index_becomes_one_weight() -> None:
    product = make_product(K=40, N=40)
    model = converted_model([product, product])
    first, second = model.graph.node
    second.input[1:] = first.input[1:]
    del model.graph.initializer[4:]
    for form in FORMS:
        exported = export(model, to=form).to_proto()
        sizes = [each for each in exported.graph.initializer if np.prod(each.dims) >= 400]
        assert len(sizes) == 1, form


def test_the_source_is_left_as_it_is() -> None:
    model = ir.from_proto(converted_model([make_product()]))
    before = ir.to_proto(model).SerializeToString()
    export(model, to="qdq")
    assert ir.to_proto(model).SerializeToString() == before


def test_names_do_not_clash() -> None:
    model = converted_model([make_product(), make_product(K=40)])
    model.graph.node[1].input[0] = "codes0.weight"
    model.graph.node[0].output[0] = "codes0.weight"
    exported = export(model).to_proto()
    onnx.checker.check_model(exported, full_check=True)
    assert run(exported, np.ones((1, 1, 130), np.float32)).shape == (1, 1, 40)


def test_wrong_choices_are_value_errors() -> None:
    model = converted_model([make_product()])
    with pytest.raises(ValueError, match="to = 'int8', expected one of: float, matmulnbits, qdq"):
        export(model, to="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits = 3, expected 2 or 4"):
        export(model, to="matmulnbits", bits=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accuracy_level = 5, expected from 0 to 4"):
        export(model, to="matmulnbits", accuracy_level=5)


def test_damaged_index_is_refused_and_nothing_written(tmp_path: Path) -> None:
    source, target = tmp_path / "damaged.onnx", tmp_path / "exported.onnx"
    model = onnx_ternary.optimize(DIGITS).to_proto()
    codes = next(each for each in model.graph.initializer if each.name.endswith(".codes"))
    codes.raw_data = bytes([codes.raw_data[0] ^ 1]) + codes.raw_data[1:]
    onnx.save(model, source)
    with pytest.raises(IndexFormatError, match="'node_linear'"):
        export(source)
    done = run_command("export", source, target, "--to", "float", check=1)
    assert "node_linear" in done.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("activation", ["keep", "int8"])
def test_verification_finds_a_wrong_weight(activation: Any, tmp_path: Path) -> None:
    converted, exported = tmp_path / "converted.onnx", tmp_path / "exported.onnx"
    onnx_ternary.optimize(DIGITS, OptimizeOptions(activation=activation)).save(converted)
    done = export_file(converted, exported)
    assert done.verification is not None
    assert done.verification.passed
    assert done.bytes_after == exported.stat().st_size

    model = onnx.load(exported)
    (matmul,) = (node for node in model.graph.node if node.name == "node_linear_1")
    (weight,) = (each for each in model.graph.initializer if each.name == matmul.input[1])
    array = numpy_helper.to_array(weight).copy()
    array[3, 5] = 1 - array[3, 5]
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, exported)
    images = np.random.default_rng(0).random((64, 64), np.float32)
    verifying = Verifying(inputs={"image": images})
    report = _compared(exported, load(converted), verifying, 0)
    with pytest.raises(VerificationError, match="node_linear_1"):
        _judge(report)


def test_original_and_exported_give_the_same_bits() -> None:
    products = [make_product(), make_product(K=40, N=33)]
    x = np.random.default_rng(2).standard_normal((4, 5, 130)).astype(np.float32)
    exported = export(converted_model(products)).to_proto()
    np.testing.assert_array_equal(run(exported, x), run(original_model(products), x))
