from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_ternary import runtime
from onnx_ternary.op.body_nodes import NoBody
from onnx_ternary.op.function_body import make_function_body
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import DOMAIN, OP_TYPE
from tests.support.converted_models import (
    UINT8,
    Product,
    body,
    converted_model,
    ir_version,
    original_model,
    plain_session,
    random_weight,
    rows_for_the_int8_rule,
    supported_opsets,
)
from tests.support.products import INT8

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_ALL")
SUPPORTED = supported_opsets()
OPSETS = sorted({11, 12, 13, 15, 17, 18, 20, 21, 23, 25, SUPPORTED[-1]} & set(SUPPORTED))
FORMATS: dict[str, dict[str, Any]] = {
    "2bit": {"storage": "2bit"},
    "2bit-binary_pm": {"storage": "2bit", "alphabet": "binary_pm"},
    "dense": {"storage": "dense"},
    "1bit-binary_pm": {"storage": "1bit", "alphabet": "binary_pm"},
    "1bit-binary_01": {"storage": "1bit", "alphabet": "binary_01"},
    "rsr-planes": {"index_format": "rsr", "storage": "planes", "block_width": 4},
    "rsr-planes-binary_pm": {
        "index_format": "rsr",
        "storage": "planes",
        "alphabet": "binary_pm",
        "block_width": 5,
    },
    "rsr-planes-binary_01": {
        "index_format": "rsr",
        "storage": "planes",
        "alphabet": "binary_01",
        "block_width": 1,
    },
    "rsr-base3": {"index_format": "rsr", "storage": "base3", "block_width": 3},
}
every_format = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


def make_product(
    rng: np.random.Generator,
    K: int,
    N: int,
    options: dict[str, Any],
    *,
    scale_rank: int = 1,
    group_size: int = 32,
    with_bias: bool = False,
    activation: dict[str, Any] | None = None,
) -> Product:
    options = dict(options)
    alphabet = options.pop("alphabet", "ternary")
    weight = random_weight(
        rng, K, N, alphabet=alphabet, scale_rank=scale_rank, group_size=group_size
    )
    bias = rng.standard_normal(N).astype(np.float32) if with_bias else None
    return Product.make(weight, bias=bias, activation=activation, **options)


def run(model: ModelProto, x: np.ndarray, level: str = "ENABLE_ALL") -> np.ndarray:
    (y,) = plain_session(model, level).run(None, {"X": x})
    return y


@every_format
@pytest.mark.parametrize("opset", OPSETS)
def test_identity_gives_original_weights(opset: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(opset)
    for K, N, scale_rank in ((130, 37, 0), (130, 37, 1), (130, 37, 2), (1, 1, 1), (64, 5, 2)):
        # Below opset 12 the bias tells N.
        product = make_product(
            rng, K, N, options, scale_rank=scale_rank, with_bias=opset < 12 and scale_rank == 0
        )
        model = converted_model([product], opset=opset)
        onnx.checker.check_model(model, full_check=True)
        for level in LEVELS:
            y = run(model, np.eye(K, dtype=np.float32)[None], level)
            np.testing.assert_array_equal(y[0], product.weight.dense() + product.bias)


@every_format
@pytest.mark.parametrize("opset", OPSETS)
def test_basic_optimization_folds_decode(
    opset: int, options: dict[str, Any], tmp_path: Path
) -> None:
    product = make_product(np.random.default_rng(0), 130, 37, options, with_bias=True)
    shape = ("batch", None) if opset >= 12 else (3, None)
    model = converted_model([product], opset=opset, x_shape=shape)
    path = tmp_path / "optimized.onnx"
    plain_session(model, "ENABLE_BASIC", str(path))
    optimized = onnx.load(path)
    assert {node.op_type for node in optimized.graph.node} <= {"MatMul", "Add", "Gemm", "Cast"}


@pytest.mark.parametrize("opset", sorted({11, 18, onnx.defs.onnx_opset_version()}))
def test_identity_gives_original_weights_in_onnx_reference(opset: int) -> None:
    rng = np.random.default_rng(opset)
    for options in FORMATS.values():
        product = make_product(rng, 66, 7, options, scale_rank=2)
        model = converted_model([product], opset=opset)
        onnx.checker.check_model(model, full_check=True)
        (y,) = ReferenceEvaluator(model).run(None, {"X": np.eye(66, dtype=np.float32)[None]})
        np.testing.assert_array_equal(y[0], product.weight.dense())


@pytest.mark.parametrize("opset", [12, 18])
def test_one_function_serves_all_shapes_and_scales(opset: int) -> None:
    rng = np.random.default_rng(1)
    products = [
        make_product(rng, 130, 37, {}, scale_rank=0),
        make_product(rng, 37, 300, {}, scale_rank=2, group_size=16),
        make_product(rng, 300, 64, {}, scale_rank=2, group_size=128, with_bias=True),
        make_product(rng, 64, 6, {}, scale_rank=1),
    ]
    converted, original = converted_model(products, opset=opset), original_model(products)
    assert len(converted.functions) == 1
    x = rng.standard_normal((2, 3, 130)).astype(np.float32)
    expected = run(original, x)
    np.testing.assert_allclose(run(converted, x), expected, atol=1e-5 * np.abs(expected).max())


def test_one_rsr_function_serves_all_block_widths() -> None:
    rng = np.random.default_rng(1)
    rsr = {"index_format": "rsr", "storage": "planes"}
    products = [
        make_product(rng, 20, 9, {**rsr, "block_width": 16}),
        make_product(rng, 9, 12, {**rsr, "block_width": 1}),
    ]
    x = rng.standard_normal((2, 3, 20)).astype(np.float32)
    expected = run(original_model(products), x)
    np.testing.assert_allclose(run(converted_model(products), x), expected, rtol=1e-5, atol=1e-5)


def test_permutation_of_more_than_65536_rows() -> None:
    rng = np.random.default_rng(1)
    product = make_product(
        rng, 70000, 3, {"index_format": "rsr", "storage": "base3", "block_width": 2}
    )
    assert product.index.codes.dtype == np.uint32
    x = np.zeros((1, 2, 70000), np.float32)
    x[0, 0, 69999] = x[0, 1, 65536] = 1
    y = run(converted_model([product]), x)
    np.testing.assert_array_equal(y[0], product.weight.dense()[[69999, 65536]])


@pytest.mark.parametrize("shape", [(130,), (3, 130), (0, 130), (2, 0, 130), (2, 2, 2, 130)])
@pytest.mark.parametrize("activation", [None, INT8, UINT8], ids=["float", "int8", "uint8"])
@pytest.mark.parametrize("opset", [11, 17, 18])
def test_any_leading_dimensions(
    opset: int, activation: dict[str, Any] | None, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    product = make_product(rng, 130, 6, {}, activation=activation)
    model = converted_model([product], opset=opset, x_shape=shape)
    x = rng.standard_normal(shape).astype(np.float32)
    y = run(model, x)
    index = product.index
    expected = ternary_indexed_matmul(
        x, index.codes, index.aux, index.scale, product.bias, product.attributes
    )
    assert y.shape == expected.shape == (*shape[:-1], 6)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_same_bits_as_original() -> None:
    rng = np.random.default_rng(2)
    products = [make_product(rng, 130, 64, {}), make_product(rng, 64, 33, {}, with_bias=True)]
    x = rng.standard_normal((4, 5, 130)).astype(np.float32)
    np.testing.assert_array_equal(
        run(converted_model(products), x), run(original_model(products), x)
    )


@pytest.mark.parametrize("rule", ["absmax_division", "absmax_reciprocal"])
@pytest.mark.parametrize("scale_rank", [0, 1, 2])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, SUPPORTED[-1]])
def test_int8_rule_within_bound(opset: int, scale_rank: int, rule: str) -> None:
    rng = np.random.default_rng(3)
    activation = {**INT8, "activation_rule": rule, "activation_qmin": -127}
    product = make_product(
        rng, 130, 37, {}, scale_rank=scale_rank, with_bias=True, activation=activation
    )
    model = converted_model([product], opset=opset)
    onnx.checker.check_model(model, full_check=True)
    x = rows_for_the_int8_rule(rng, 2, 40, 130)
    expected, bound = product.by_the_int8_rule(x)
    for level in LEVELS:
        assert (np.abs(run(model, x, level) - expected) <= 2 * bound).all()


@every_format
@pytest.mark.parametrize("opset", OPSETS)
def test_uint8_rule_same_bits(opset: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for scale_rank in (0, 1):
        product = make_product(
            rng, 130, 37, options, scale_rank=scale_rank, with_bias=True, activation=UINT8
        )
        model = converted_model([product], opset=opset)
        onnx.checker.check_model(model, full_check=True)
        x = rng.standard_normal((2, 40, 130)).astype(np.float32)
        x[1, 1] = 0
        index = product.index
        for values in (x, abs(x) + 1, x * 0, np.full_like(x, 3e38) * np.sign(x)):
            expected = ternary_indexed_matmul(
                values, index.codes, index.aux, index.scale, product.bias, product.attributes
            )
            for level in ("DISABLE_ALL", "ENABLE_BASIC"):
                np.testing.assert_array_equal(run(model, values, level), expected)
            # Extended optimizations fuse the operators, in another order of roundings.
            np.testing.assert_allclose(run(model, values), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_uint8_keeps_the_axes_of_an_add_behind_it(opset: int, level: str, with_bias: bool) -> None:
    rng = np.random.default_rng(3)
    product = make_product(rng, 64, 32, {}, with_bias=with_bias, activation=UINT8)
    model = converted_model([product], opset=opset, x_shape=["M", 64])
    added = rng.standard_normal((1, 1, 32)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(added, "added"))
    model.graph.node.append(helper.make_node("Add", ["y0", "added"], ["y"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    x = rng.standard_normal((3, 64)).astype(np.float32)
    index = product.index
    expected = added + ternary_indexed_matmul(
        x, index.codes, index.aux, index.scale, product.bias, product.attributes
    )
    found = run(model, x, level)
    assert found.shape == (1, 3, 32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_uint8_with_one_nan_or_inf_is_nan(opset: int, value: float) -> None:
    rng = np.random.default_rng(3)
    product = make_product(rng, 130, 37, {}, activation=UINT8)
    x = rng.standard_normal((1, 4, 130)).astype(np.float32)
    x[0, 2, 3] = value
    assert np.isnan(run(converted_model([product], opset=opset), x)).all()


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_int8_rows_with_nan_or_inf_are_nan(opset: int) -> None:
    rng = np.random.default_rng(3)
    product = make_product(rng, 130, 37, {}, activation=INT8)
    x = rng.standard_normal((1, 4, 130)).astype(np.float32)
    x[0, 0, 3], x[0, 1, 4], x[0, 2, 5] = np.nan, np.inf, -np.inf
    y = run(converted_model([product], opset=opset), x)
    assert np.isnan(y[0, :3]).all()
    assert np.isfinite(y[0, 3]).all()


@pytest.mark.parametrize("opset", [11, 13, 15, 18])
@pytest.mark.parametrize("activation", [None, INT8, UINT8], ids=["float", "int8", "uint8"])
def test_float16(opset: int, activation: dict[str, Any] | None) -> None:
    rng = np.random.default_rng(4)
    product = make_product(rng, 130, 37, {}, with_bias=True, activation=activation)
    model = converted_model([product], opset=opset, x_dtype=TensorProto.FLOAT16)
    onnx.checker.check_model(model, full_check=True)
    x = rng.standard_normal((2, 3, 130)).astype(np.float16)
    index = product.index
    expected = ternary_indexed_matmul(
        x, index.codes, index.aux, index.scale, product.bias, product.attributes
    )
    y = run(model, x)
    assert y.dtype == np.float16
    # Half a unit in the last place each way where sums round apart.
    np.testing.assert_allclose(y.astype(np.float32), expected.astype(np.float32), rtol=2**-10)


@pytest.mark.parametrize("opset", [13, 15, 18])
def test_bfloat16(opset: int) -> None:
    rng = np.random.default_rng(4)
    product = make_product(rng, 130, 37, {}, with_bias=True)
    model = converted_model([product], opset=opset, x_dtype=TensorProto.BFLOAT16)
    onnx.checker.check_model(model, full_check=True)
    # numpy has no bfloat16 to feed: cast inside.
    for node in model.graph.node:
        node.input[0], node.output[0] = "x_bf16", "y_bf16"
    model.graph.node.insert(0, helper.make_node("Cast", ["X"], ["x_bf16"], to=TensorProto.BFLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["y_bf16"], ["y0"], to=TensorProto.FLOAT))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    x = rng.standard_normal((2, 3, 130)).astype(ml_dtypes.bfloat16)
    index = product.index
    expected = ternary_indexed_matmul(
        x, index.codes, index.aux, index.scale, product.bias, product.attributes
    )
    y = run(model, x.astype(np.float32))
    np.testing.assert_allclose(y, expected.astype(np.float32), rtol=2**-7)


def test_library_takes_precedence_over_function(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    model = converted_model([make_product(rng, 130, 37, {})])
    path, optimized = tmp_path / "model.onnx", tmp_path / "optimized.onnx"
    onnx.save(model, path)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    runtime.InferenceSession(path, options)
    nodes = onnx.load(optimized).graph.node
    assert [(node.domain, node.op_type) for node in nodes] == [(DOMAIN, OP_TYPE)]


@pytest.mark.parametrize(
    ("opset", "ir", "products", "reason"),
    [
        (10, 8, [{}], "the model's opset is 10"),
        (17, 7, [{}], "the model's IR version is 7"),
        (17, 8, [], "no TernaryIndexedMatMul node"),
        (
            17,
            8,
            [{}, {"storage": "dense"}],
            "2 functions under one name (packed 2bit, packed dense)",
        ),
        (11, 8, [{"scale_rank": 0}], "its bias has to be written as (N,)"),
        (11, 8, [{}, {"scale_rank": 2}], "packed 2bit groups of 32 float"),
    ],
)
def test_no_body(opset: int, ir: int, products: list[dict[str, Any]], reason: str) -> None:
    rng = np.random.default_rng(6)
    made = []
    for options in products:
        options = dict(options)
        rank = options.pop("scale_rank", 1)
        made.append(make_product(rng, 130, 37, options, scale_rank=rank))
    result = make_function_body([product.variant(opset) for product in made], opset, ir)
    assert isinstance(result, NoBody)
    assert reason in result.reason


def test_function_lists_every_attribute_and_model_opset() -> None:
    product = make_product(np.random.default_rng(7), 130, 37, {})
    function = body([product], 20)
    assert set(function.attribute) == set(product.attributes.to_dict())
    assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", 20)]
    assert ir_version(20) <= 9  # onnxruntime 1.17 reads no later one


@every_format
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("activation", [None, INT8, UINT8], ids=["float", "int8", "uint8"])
def test_every_input_is_read(
    opset: int, activation: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    """Tools drop inputs of a function that no node of it reads, and leave the calls as they are."""
    product = make_product(np.random.default_rng(7), 130, 37, options, activation=activation)
    function = body([product], opset)
    read = {name for node in function.node for name in node.input}
    assert set(function.input) <= read


@pytest.mark.parametrize("opset", [11, 18])
def test_what_aux_of_a_packed_index_holds_does_not_matter(opset: int) -> None:
    product = make_product(np.random.default_rng(8), 130, 37, {})
    model = converted_model([product], opset=opset)
    (aux,) = (tensor for tensor in model.graph.initializer if tensor.name == "aux0")
    x = np.random.default_rng(9).standard_normal((1, 2, 130)).astype(np.float32)
    expected = run(model, x)
    for value in (1, 7, 2**32 - 1):
        aux.CopyFrom(numpy_helper.from_array(np.array([value], np.uint32), aux.name))
        np.testing.assert_array_equal(run(model, x), expected)
