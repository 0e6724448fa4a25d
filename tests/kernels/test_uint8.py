"""`activation = uint8`: every kernel against numpy and against ONNX Runtime's own operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import runtime
from onnx_ternary.errors import IndexFormatError
from onnx_ternary.native import binding, kernels, layer, packers
from onnx_ternary.op.activations import quantize_tensor
from onnx_ternary.op.bounds import uint8_error_bound
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import MAX_UINT8_K, Alphabet, OpAttributes, Storage
from tests.support.single_node import (
    Node,
    attribute_variants,
    label,
    make_model,
    make_node,
    uint8,
    without_casts,
)

KERNELS = [
    entry["name"]
    for entry in kernels.list_kernels()["kernels"]
    if entry["supported"] and entry["activation"] == "int8"
]
VARIANTS = [uint8(each) for each in attribute_variants(133, 21) if not each.group_size]
Array = NDArray[Any]


def rule(node: Node, x: Array) -> Array:
    """docs/op_spec.md, each operation rounded to float32."""
    f32 = np.float32
    lowest, highest = min(x.min(), f32(0)), max(x.max(), f32(0))
    x_scale = f32((highest - lowest) / f32(255)) if lowest != highest else f32(1)
    zero_point = np.rint(np.clip(f32(0) - lowest / x_scale, 0, 255))
    q = np.clip(np.rint(x / x_scale) + zero_point, 0, 255)
    sums = (q - zero_point).astype(np.int64) @ node.levels.astype(np.int64)
    result: Array = sums.astype(f32) * (x_scale * node.scale) + node.bias
    return result


def run(node: Node, x: Array, kernel: str | None = None, num_parts: int = 1) -> Array:
    y, used = layer.run(node.attributes, *node.tensors, x, kernel=kernel, num_parts=num_parts)
    assert kernel in (None, used)
    return y


def activations(rng: np.random.Generator, rows: int, K: int) -> list[Array]:
    """Both signs, one sign, an outlier, a constant, tiny ones, zeros."""
    x = rng.standard_normal((rows, K)).astype(np.float32)
    outlier = x.copy()
    outlier[0, 0] = 1e4
    constant = np.full_like(x, -3.25)
    return [x, np.abs(x) + 1, -np.abs(x), outlier, constant, x * np.float32(1e-37), x * 0]


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        pytest.param(name, attributes, id=f"{name}-{label(attributes)}")
        for name in KERNELS
        for attributes in VARIANTS
        if name.startswith(attributes.index_format)
    ],
)
def test_kernel_same_bits_as_the_rule(name: str, attributes: OpAttributes) -> None:
    rng = np.random.default_rng(1)
    for per_column in (False, True):
        node = make_node(rng, attributes, per_column=per_column)
        for rows in (1, 2, 9, 65):
            for x in activations(rng, rows, attributes.K):
                expected = rule(node, x)
                try:
                    np.testing.assert_array_equal(run(node, x, name), expected)
                except binding.LibraryError as error:
                    pytest.skip(str(error))
                np.testing.assert_array_equal(run(node, x, name, num_parts=3), expected)


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("packed")])
@pytest.mark.parametrize(
    ("level", "storage", "alphabet"),
    [
        (-1, "2bit", "ternary"),
        (1, "2bit", "ternary"),
        (-1, "1bit", "binary_pm"),
        (1, "1bit", "binary_pm"),
        (1, "1bit", "binary_01"),
    ],
)
def test_lowest_activations_and_largest_sums_exact(
    name: str, level: int, storage: Storage, alphabet: Alphabet
) -> None:
    """Kernels see -128 in every place, and more of them than 2^16."""
    attributes = uint8(OpAttributes(K=65537, N=5, storage=storage, alphabet=alphabet))
    levels = np.full((65537, 5), level, np.int8)
    codes = packers.pack(
        levels,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        block_size=attributes.block_size,
    )
    aux, bias = np.zeros(1, np.uint32), np.zeros((), np.float32)
    node = Node(attributes, levels, codes, aux, np.asarray(0.5, np.float32), bias)
    x = np.full((9, 65537), -3.25, np.float32)
    np.testing.assert_array_equal(run(node, x, name), rule(node, x))


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_reference_same_bits_as_the_rule(attributes: OpAttributes) -> None:
    rng = np.random.default_rng(2)
    node = make_node(rng, attributes, per_column=True)
    for x in activations(rng, 7, attributes.K):
        found = ternary_indexed_matmul(x, *node.tensors, attributes)
        np.testing.assert_array_equal(found, rule(node, x))


def operators(node: Node, x_shape: tuple[int | str, ...]) -> ort.InferenceSession:
    """What exporters write for it, with int8 weights."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["X"], ["q", "x_scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "levels", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["wide", "scales"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["Y"]),
    ]
    constants = {"levels": node.levels, "scale": node.scale, "bias": node.bias}
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def test_same_bits_as_onnxruntimes_operators() -> None:
    rng = np.random.default_rng(3)
    node = make_node(rng, uint8(OpAttributes(K=300, N=70)), per_column=True)
    session = operators(node, ("rows", 300))
    for rows in (1, 5, 40):
        for x in activations(rng, rows, 300):
            (expected,) = session.run(None, {"X": x})
            np.testing.assert_array_equal(run(node, x), expected)


@pytest.mark.parametrize("attributes", [VARIANTS[0], VARIANTS[-1]], ids=label)
def test_session_same_bits_for_any_threads_and_shape(attributes: OpAttributes) -> None:
    rng = np.random.default_rng(4)
    attributes = replace(attributes, K=513, N=260)
    node = make_node(rng, attributes, per_column=True)
    model = make_model(node, shape=("batch", "rows", "K"))
    x = rng.standard_normal((3, 100, 513)).astype(np.float32)
    for threads in (1, 2, 5):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = runtime.InferenceSession(model.SerializeToString(), options)
        (y,) = session.run(None, {"X": x})
        np.testing.assert_array_equal(y, rule(node, x.reshape(300, 513)).reshape(y.shape))
        # The range is that of all rows, so a row's answer depends on the others.
        (first,) = session.run(None, {"X": x[:1]})
        assert (first != y[:1]).any()
        (empty,) = session.run(None, {"X": x[:0]})
        assert empty.shape == (0, 100, 260)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_quantized_in_float32(dtype: Any) -> None:
    rng = np.random.default_rng(5)
    node = make_node(rng, uint8(OpAttributes(K=133, N=21)), per_column=True)
    x = rng.standard_normal((37, 133)).astype(dtype)
    model = make_model(node, dtype=np.dtype(dtype).name)
    is_float16 = dtype is np.float16
    if is_float16:
        model = without_casts(model)
    session = runtime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"X": x if is_float16 else x.astype(np.float32)})
    expected = rule(node, x.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("attributes", [VARIANTS[0], VARIANTS[-1]], ids=label)
def test_one_non_finite_number_makes_all_nan(attributes: OpAttributes, value: float) -> None:
    rng = np.random.default_rng(6)
    node = make_node(rng, attributes, per_column=True)
    for position in ((0, 0), (40, 132), (17, 5)):
        x = rng.standard_normal((41, 133)).astype(np.float32)
        x[position] = value
        assert np.isnan(run(node, x)).all()
        assert np.isnan(ternary_indexed_matmul(x, *node.tensors, attributes)).all()


def test_range_beyond_float32_is_nan_and_below_it_is_the_bias() -> None:
    rng = np.random.default_rng(7)
    node = make_node(rng, VARIANTS[0], per_column=True)
    x = np.zeros((3, 133), np.float32)
    x[1, 2], x[2, 3] = 3e38, -3e38
    assert np.isnan(run(node, x)).all()
    assert np.isnan(ternary_indexed_matmul(x, *node.tensors, VARIANTS[0])).all()
    x[1, 2], x[2, 3] = 1e-45, -1e-45  # a 255th of the range is 0
    expected = np.broadcast_to(node.bias, (3, 21))
    np.testing.assert_array_equal(run(node, x), expected)
    np.testing.assert_array_equal(ternary_indexed_matmul(x, *node.tensors, VARIANTS[0]), expected)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums_are_exact(name: str, sign: int) -> None:
    """K at its limit, every q - 128 at -128, then at 127, and the zero point at either end."""
    K = MAX_UINT8_K
    if name.startswith("rsr"):
        attributes = uint8(attribute_variants(K, 2)[8])
    else:
        attributes = uint8(OpAttributes(K=K, N=2))
    levels = np.full((K, 2), sign, np.int8)
    levels[0, 1] = -sign
    codes, aux = (
        packers.pack_rsr(levels, storage="planes", alphabet="ternary", block_width=3, group_size=0)
        if name.startswith("rsr")
        else (
            packers.pack(levels, storage="2bit", alphabet="ternary", block_size=128),
            np.zeros(1, np.uint32),
        )
    )
    one = np.ones((), np.float32)
    node = Node(attributes, levels, codes, aux, one, one * 0)
    for x in (np.full((1, K), 2.5, np.float32), np.full((1, K), -2.5, np.float32)):
        np.testing.assert_array_equal(run(node, x, name), rule(node, x))
        x[0, 5] *= -1
        np.testing.assert_array_equal(run(node, x, name), rule(node, x))


def test_bound_holds_and_is_tight() -> None:
    rng = np.random.default_rng(8)
    node = make_node(rng, VARIANTS[0], per_column=True)
    x = rng.standard_normal((30, 133)).astype(np.float32)
    centred, x_scale = quantize_tensor(x)
    exact = (centred @ node.levels.astype(np.int64)) * (
        np.float64(x_scale) * node.scale.astype(np.float64)
    ) + node.bias
    bound = uint8_error_bound(centred, x_scale, node.levels, node.scale, node.bias, np.float32)
    y = run(node, x)
    assert (np.abs(y - exact) <= bound).all()
    assert (np.abs(y + 5 * bound - exact) > bound).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_rule": "absmax_division"}, "dynamic_quantize_linear for uint8"),
        ({"activation_qmax": 127}, "255 for uint8"),
        ({"activation_qmin": -1}, "0 for uint8"),
        ({"activation_epsilon": 1e-5}, "0 for uint8"),
        ({"group_size": 128}, "0 for uint8"),
        ({"K": MAX_UINT8_K + 1}, f"at most {MAX_UINT8_K} for uint8"),
    ],
)
def test_other_attributes_are_refused(changes: dict[str, Any], message: str) -> None:
    node = make_node(np.random.default_rng(9), uint8(OpAttributes(K=133, N=5)))
    with pytest.raises(IndexFormatError, match=message):
        replace(node.attributes, **changes)
    # The library checks for itself, before it looks at the tensors.
    hostile = replace(node.attributes)
    for name, value in changes.items():
        object.__setattr__(hostile, name, value)
    with pytest.raises(IndexFormatError, match=message):
        layer.validate(hostile, *node.tensors)


def test_damaged_codes_are_memory_safe() -> None:
    rng = np.random.default_rng(10)
    for attributes in VARIANTS:
        node = make_node(rng, attributes, per_column=True)
        x = rng.standard_normal((9, 133)).astype(np.float32)
        raw = rng.integers(0, 256, node.codes.nbytes, np.uint8)
        codes = raw.view(node.codes.dtype).reshape(node.codes.shape)
        try:
            y = run(replace(node, codes=codes), x)
        except IndexFormatError:
            continue
        assert np.isfinite(y).all()
