"""`TernaryIndexedGather` in ONNX Runtime sessions: every row exactly, and everything it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_ternary.op.gather import ternary_indexed_gather
from onnx_ternary.runtime import get_library_path
from onnx_ternary.schema import GATHER_ATTRIBUTES, OpAttributes
from tests.support.gather_node import (
    DTYPES,
    NODE_NAME,
    make_gather_model,
    packed_variants,
    table,
)
from tests.support.single_node import Node, label, make_node

K, N = 200, 13
VARIANTS = packed_variants(K, N)
NEXT_STEP = "convert the model again with 'onnx-ternary optimize'."
# What onnxruntime raises has no base class of its own below Exception.
ORT_ERRORS = Exception


def example(attributes: OpAttributes, *, per_column: bool = True) -> Node:
    """Scales are float16 numbers: ONNX Runtime drops Casts to float16 and back."""
    node = make_node(np.random.default_rng(7), attributes, per_column=per_column)
    return replace(node, scale=node.scale.astype(np.float16).astype(np.float32))


def make_session(
    model: onnx.ModelProto, *, library: bool = True, optimized: bool = True, threads: int = 1
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(get_library_path())
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def gathered(session: ort.InferenceSession, indices: Any, dtype: Any = np.int64) -> NDArray[Any]:
    y: NDArray[Any] = session.run(None, {"indices": np.asarray(indices, dtype)})[0]
    return y


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_column", [True, False], ids=["column", "tensor"])
def test_every_row_is_exact(attributes: OpAttributes, dtype: str, per_column: bool) -> None:
    node = example(attributes, per_column=per_column)
    expected = table(node, dtype)
    indices = np.array([*range(N), -1, -N, 0, 0])
    y = gathered(make_session(make_gather_model(node, dtype=dtype)), indices)
    np.testing.assert_array_equal(y, expected[indices].astype(np.float32))
    reference = ternary_indexed_gather(indices, node.codes, node.scale, DTYPES[dtype], attributes)
    assert reference.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(reference, expected[indices])


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
@pytest.mark.parametrize(
    ("opset", "dtype", "per_column"),
    [
        (12, "float32", True),
        (13, "float16", False),
        (17, "bfloat16", True),
        (21, "float16", False),
    ],
)
def test_body_gives_the_same_bits(
    attributes: OpAttributes, opset: int, dtype: str, per_column: bool
) -> None:
    node = example(attributes, per_column=per_column)
    onnx.checker.check_model(make_gather_model(node, dtype=dtype, opset=opset, body=True))
    model = make_gather_model(node, dtype=dtype, shape=None, opset=opset, body=True)
    expected = table(node, dtype).astype(np.float32)
    for library, optimized in ((False, True), (False, False), (True, True), (True, False)):
        session = make_session(model, library=library, optimized=optimized)
        for shape in ((), (5,), (2, 3, 1), (0,), (2, 0), (0, 3)):
            indices = np.random.default_rng(1).integers(-N, N, shape)
            y = gathered(session, indices)
            assert y.shape == (*shape, K)
            np.testing.assert_array_equal(y, expected[indices])


@pytest.mark.parametrize("index_type", [TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("value", [N, -N - 1, 2**31 - 1])
def test_indices_out_of_range_are_refused_by_name(index_type: int, value: int) -> None:
    session = make_session(make_gather_model(example(VARIANTS[0]), index_type=index_type))
    dtype = np.int32 if index_type == TensorProto.INT32 else np.int64
    np.testing.assert_array_equal(
        gathered(session, [N - 1], dtype), table(example(VARIANTS[0]), "float32")[-1:]
    )
    with pytest.raises(ORT_ERRORS) as caught:
        gathered(session, [0, 1, value], dtype)
    found = f"TernaryIndexedGather '{NODE_NAME}': indices, element 2 = {value}, expected from "
    assert f"{found}-13 to 12" in str(caught.value)


def test_body_refuses_indices_out_of_range_as_gather_does() -> None:
    # Four columns a tile: rows 13 to 15 are padding, which nobody may read.
    session = make_session(make_gather_model(example(VARIANTS[0]), body=True), library=False)
    for value in (N, -N - 1):
        with pytest.raises(ORT_ERRORS, match="out of"):
            gathered(session, [value])


def test_many_rows_are_the_same_on_any_number_of_threads() -> None:
    attributes = OpAttributes(K=640, N=300, group_size=128)
    node = example(attributes)
    model = make_gather_model(node)
    indices = np.random.default_rng(3).integers(0, 300, 2000)
    expected = table(node, "float32")[indices]
    for threads in (1, 4):
        np.testing.assert_array_equal(
            gathered(make_session(model, threads=threads), indices), expected
        )


def test_subnormal_scales_survive_a_session_that_flushes_them() -> None:
    node = replace(example(VARIANTS[0], per_column=False), scale=np.array(1e-40, np.float32))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.register_custom_ops_library(get_library_path())
    model = make_gather_model(node).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(gathered(session, [3]), table(node, "float32")[3:4])


def test_shapes_are_inferred() -> None:
    session = make_session(make_gather_model(example(VARIANTS[0]), shape=("batch", "sequence")))
    assert session.get_outputs()[0].shape == ["batch", "sequence", K]


def error_of(model: onnx.ModelProto) -> str:
    with pytest.raises(ORT_ERRORS) as caught:
        make_session(model)
    return str(caught.value)


@pytest.mark.parametrize("attribute", GATHER_ATTRIBUTES)
def test_missing_attribute_is_an_error(attribute: str) -> None:
    text = error_of(make_gather_model(example(VARIANTS[0]), drop_attribute=attribute))
    assert f"TernaryIndexedGather '{NODE_NAME}': attribute {attribute} = missing" in text
    assert text.rstrip().endswith(NEXT_STEP)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"K": 0}, "attribute K = 0"),
        ({"N": 2**31}, "attribute N = 2147483648"),
        ({"N": 17}, "codes shape = (4, 2, 4, 32), expected (5, 2, 4, 32)"),
        ({"K": 300}, "codes shape = (4, 2, 4, 32), expected (4, 3, 4, 32)"),
        ({"storage": "planes"}, "attribute storage = 'planes'"),
        ({"storage": "1bit"}, "attribute alphabet = 'ternary'"),
        ({"block_size": 100}, "attribute block_size = 100"),
        ({"group_size": 128}, "scale shape = (13,), expected (2, 13)"),
        ({"format_version": 2}, "attribute format_version = 2"),
    ],
)
def test_wrong_attribute_is_an_error(values: dict[str, Any], what: str) -> None:
    text = error_of(make_gather_model(example(VARIANTS[0]), attributes=values))
    assert f"TernaryIndexedGather '{NODE_NAME}': {what}" in text
    assert text.rstrip().endswith(NEXT_STEP)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_wrong_scale_is_an_error(value: float) -> None:
    node = example(VARIANTS[0])
    node.scale[5] = value
    assert "scale[5] = " in error_of(make_gather_model(node))


@pytest.mark.parametrize("name", ["codes", "scale"])
def test_index_must_be_constant(name: str) -> None:
    assert f"({name}) = not constant" in error_of(
        make_gather_model(example(VARIANTS[0]), graph_inputs=[name])
    )


def test_unused_code_is_memory_safe() -> None:
    node = example(VARIANTS[0])
    node.codes[...] = 255
    assert gathered(make_session(make_gather_model(node)), range(N)).shape == (N, K)
