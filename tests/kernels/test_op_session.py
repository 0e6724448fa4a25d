"""`TernaryIndexedMatMul` in real onnxruntime sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnx_ternary.native import kernels, packers
from onnx_ternary.native.library_path import get_library_path
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import (
    Node,
    attribute_variants,
    int8,
    label,
    make_model,
    make_node,
    pack,
    without_casts,
)

VARIANTS = attribute_variants(100, 13)
NODE_NAME = "/mlp/up_proj"
NEXT_STEP = "convert the model again with 'onnx-ternary optimize'."
# What onnxruntime raises has no base class of its own below Exception.
ORT_ERRORS = Exception


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def make_session(model: onnx.ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(get_library_path())
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: ort.InferenceSession, x: NDArray[np.float32]) -> NDArray[Any]:
    y: NDArray[Any] = session.run(None, {"X": x})[0]
    return y


def half_session(node: Node, dtype: str) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """What the node makes of X in its own type, both as float32."""
    model = make_model(node, dtype=dtype)
    if dtype != "float16":  # numpy has no bfloat16 to feed
        session = make_session(model)
        return lambda x: run(session, x)
    session = make_session(without_casts(model))
    return lambda x: session.run(None, {"X": x.astype(np.float16)})[0].astype(np.float32)


def error_of(model: onnx.ModelProto) -> str:
    with pytest.raises(ORT_ERRORS) as caught:
        make_session(model)
    return str(caught.value)


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_product_is_within_the_bound(
    rng: np.random.Generator, attributes: OpAttributes, dtype: str
) -> None:
    node = make_node(rng, attributes, per_column=True)
    answer = half_session(node, dtype)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    relative = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for rows in (1, 3, 17):
        x = rng.standard_normal((rows, attributes.K)).astype(numpy_dtype).astype(np.float32)
        y = answer(x)
        assert y.dtype == np.float32
        expected = node.expected(x)
        bound = node.tolerance(x) * (1 + relative) + np.abs(expected) * relative
        assert np.all(np.abs(y - expected) <= bound)
        # Nothing finer than the node's own type came out.
        np.testing.assert_array_equal(y.astype(numpy_dtype).astype(np.float32), y)


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_int8_product_is_within_its_quantization(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    node = make_node(rng, int8(attributes))
    x = rng.standard_normal((5, attributes.K)).astype(np.float32)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    bound = 0.51 * step * np.abs(node.weight).sum(axis=0)
    difference = np.abs(run(make_session(make_model(node)), x) - node.expected(x))
    assert np.all(difference <= bound)
    assert difference.max() > 1e-4  # it did quantize


def column_of_ones(num_rows: int) -> Node:
    attributes = OpAttributes(K=num_rows, N=1)
    levels = np.ones((num_rows, 1), np.int8)
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    return Node(attributes, levels, pack(levels, attributes), np.zeros(1, np.uint32), one, zero)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_value_survives(dtype: str) -> None:
    # One value per row, so that NaN and inf stay alone; subnormals and both zeros included.
    answer = half_session(column_of_ones(1), dtype)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    values = np.arange(65536, dtype=np.uint16).view(numpy_dtype).astype(np.float32)[:, None]
    np.testing.assert_array_equal(answer(values), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_results_are_rounded_to_nearest_even(rng: np.random.Generator, dtype: str) -> None:
    # Sums of two halves are exact in float32 and need rounding: ties, overflow, subnormals.
    node = column_of_ones(2)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    halves = rng.integers(0, 65536, (20000, 2)).astype(np.uint16).view(numpy_dtype)
    x = halves.astype(np.float32)
    x = x[np.isfinite(x).all(axis=1)]
    near = x.copy()
    near[:, 1] = (x[:, 0] * 2.0**-9).astype(numpy_dtype)
    x = np.concatenate([x, near])
    with np.errstate(over="ignore"):
        expected = (x[:, :1].astype(np.float64) + x[:, 1:]).astype(np.float32)
        expected = expected.astype(numpy_dtype).astype(np.float32)
    np.testing.assert_array_equal(half_session(node, dtype)(x), expected)


@pytest.mark.parametrize(
    ("shape", "symbolic"),
    [
        ((100,), ("K",)),
        ((3, 100), ("rows", 100)),
        ((2, 3, 100), ("batch", "sequence", 100)),
        ((2, 1, 3, 100), ("batch", 1, 3, "hidden")),
        ((0, 100), ("rows", 100)),
        ((2, 0, 100), ("batch", "sequence", 100)),
    ],
)
def test_any_leading_dimensions(
    rng: np.random.Generator, shape: tuple[int, ...], symbolic: tuple[int | str, ...]
) -> None:
    node = make_node(rng, VARIANTS[0])
    session = make_session(make_model(node, shape=symbolic))
    x = rng.standard_normal(shape).astype(np.float32)
    y = run(session, x)
    assert y.shape == (*shape[:-1], 13)
    assert np.all(np.abs(y - node.expected(x)) <= node.tolerance(x))


@pytest.mark.parametrize("attributes", [VARIANTS[0], VARIANTS[8]], ids=label)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shape_inference_keeps_symbols_and_type(
    rng: np.random.Generator, attributes: OpAttributes, dtype: str
) -> None:
    node = make_node(rng, attributes)
    model = make_model(node, shape=("batch", "sequence", 3, 100), dtype=dtype)
    output = make_session(model).get_outputs()[0]
    assert output.shape == ["batch", "sequence", 3, 13]
    assert output.type == "tensor(float)"


def test_shape_inference_leaves_unnamed_dimensions_open(rng: np.random.Generator) -> None:
    model = make_model(make_node(rng, VARIANTS[0]), shape=("batch", None, 100))
    output = make_session(model).get_outputs()[0]
    assert output.shape[0] == "batch"
    assert not isinstance(output.shape[1], int)
    assert output.shape[2] == 13


def test_wrong_last_dimension_is_named(rng: np.random.Generator) -> None:
    session = make_session(make_model(make_node(rng, VARIANTS[0]), shape=("rows", "columns")))
    with pytest.raises(ORT_ERRORS) as caught:
        run(session, np.zeros((2, 99), np.float32))
    assert f"'{NODE_NAME}': X shape = (2, 99), expected (..., 100)" in str(caught.value)
    # The session lives on.
    assert run(session, np.zeros((2, 100), np.float32)).shape == (2, 13)


def test_scalar_input_is_refused(rng: np.random.Generator) -> None:
    session = make_session(make_model(make_node(rng, VARIANTS[0]), shape=()))
    with pytest.raises(ORT_ERRORS, match=r"X shape = \(\), expected \(\.\.\., 100\)"):
        run(session, np.zeros((), np.float32))


@pytest.mark.parametrize("attribute", list(VARIANTS[0].to_dict()))
def test_missing_attribute_is_named(rng: np.random.Generator, attribute: str) -> None:
    message = error_of(make_model(make_node(rng, VARIANTS[0]), drop_attribute=attribute))
    assert f"TernaryIndexedMatMul '{NODE_NAME}': attribute {attribute} = missing" in message
    assert NEXT_STEP in message


@pytest.mark.parametrize(
    ("attribute", "value", "found", "expected"),
    [
        ("format_version", 2, "2", "1"),
        ("K", 0, "0", "from 1 to 16777215"),
        ("K", 2**24, "16777216", "from 1 to 16777215"),
        ("N", -1, "-1", "from 1 to 2147483647"),
        ("index_format", "csr", "'csr'", "packed or rsr"),
        ("storage", "4bit", "'4bit'", "2bit or dense or 1bit"),
        ("storage", "planes", "'planes'", "2bit or dense or 1bit"),
        ("alphabet", "quaternary", "'quaternary'", "ternary or binary_pm or binary_01"),
        ("block_size", 24, "24", "16, 32, 64 or 128"),
        ("block_width", 4, "4", "0 for packed"),
        ("algorithm", "rsr", "'rsr'", "auto for packed"),
        ("group_size", 64, "64", "a multiple of block_size 128"),
        ("group_size", -128, "-128", "from 0 to 16777215"),
        ("activation", "int4", "'int4'", "float or int8 or uint8"),
        ("activation_rule", "absmax_division", "'absmax_division'", "none for float"),
        ("activation_epsilon", 0.5, "0.5", "0 for float"),
        ("activation_qmin", -127, "-127", "0 for float"),
        ("activation_qmax", 127, "127", "0 for float"),
        ("K", "many", "missing or of another type", "an integer"),
        ("storage", 2, "missing or of another type", "a string"),
    ],
)
def test_unknown_attribute_value_is_named(
    rng: np.random.Generator, attribute: str, value: Any, found: str, expected: str
) -> None:
    node = make_node(rng, VARIANTS[0])
    message = error_of(make_model(node, attributes={attribute: value}))
    prefix = f"TernaryIndexedMatMul '{NODE_NAME}': "
    assert f"{prefix}attribute {attribute} = {found}, expected {expected}; {NEXT_STEP}" in message


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("activation_rule", "none", "absmax_division or absmax_reciprocal for int8"),
        ("activation_epsilon", 0.0, "from 1e-30 to below 1e30"),
        ("activation_epsilon", float("nan"), "from 1e-30 to below 1e30"),
        ("activation_qmax", 128, "from 1 to 127"),
        ("activation_qmin", 0, "from -128 to -1"),
    ],
)
def test_unknown_int8_rule_is_named(
    rng: np.random.Generator, attribute: str, value: Any, expected: str
) -> None:
    node = make_node(rng, int8(VARIANTS[0]))
    message = error_of(make_model(node, attributes={attribute: value}))
    assert f"attribute {attribute} = " in message
    assert f", expected {expected}; " in message


def test_unnamed_node_is_called_by_its_output(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[0])
    message = error_of(make_model(node, node_name="", attributes={"format_version": 9}))
    assert "TernaryIndexedMatMul 'Y': attribute format_version = 9" in message


@pytest.mark.parametrize("index", range(1, 5))
def test_constant_that_is_a_graph_input_is_refused(rng: np.random.Generator, index: int) -> None:
    name = ("X", "codes", "aux", "scale", "bias")[index]
    message = error_of(make_model(make_node(rng, VARIANTS[0]), graph_inputs=(name,)))
    assert f"input {index} ({name}) = not constant" in message
    assert NODE_NAME in message


def test_corrupted_rsr_index_is_refused(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[8])
    codes = node.codes.copy()
    codes[0, 2, 50] = 100
    message = error_of(make_model(replace(node, codes=codes)))
    assert f"'{NODE_NAME}': permutation[0, 2, 50] = 100, expected each row from 0 to 99" in message
    aux = node.aux.copy()
    aux[1, 0, 0, 3] = 2**31
    message = error_of(make_model(replace(node, aux=aux)))
    assert f"'{NODE_NAME}': segment_offsets[1, 0, 0, 3] = 2147483648, expected from" in message


def test_codes_of_another_type_are_refused(rng: np.random.Generator) -> None:
    packed, rsr = make_node(rng, VARIANTS[0]), make_node(rng, VARIANTS[8])
    message = error_of(make_model(replace(packed, codes=packed.codes.astype(np.uint16))))
    assert f"'{NODE_NAME}': codes dtype = uint16, expected uint8; {NEXT_STEP}" in message
    message = error_of(make_model(replace(rsr, codes=rsr.codes.astype(np.uint8))))
    assert f"'{NODE_NAME}': codes dtype = uint8, expected uint16 or uint32; {NEXT_STEP}" in message
    assert "TernaryIndexedMatMul" in error_of(
        make_model(replace(packed, codes=packed.codes.astype(np.int8)))
    )


def test_uint32_permutation_gives_the_same_bits(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[8])
    wide = replace(node, codes=node.codes.astype(np.uint32))
    x = rng.standard_normal((3, 100)).astype(np.float32)
    np.testing.assert_array_equal(
        run(make_session(make_model(node)), x), run(make_session(make_model(wide)), x)
    )


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 70])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_thread_count_does_not_change_bits(rng: np.random.Generator, rows: int, dtype: str) -> None:
    attributes = OpAttributes(K=512, N=1500, group_size=128)
    levels = rng.integers(-1, 2, (512, 1500)).astype(np.int8)
    node = Node(
        attributes,
        levels,
        packers.pack(levels, storage="2bit", alphabet="ternary", block_size=128),
        np.zeros(1, np.uint32),
        rng.uniform(0.5, 1, (4, 1500)).astype(np.float32),
        np.zeros((), np.float32),
    )
    model = make_model(node, dtype=dtype)
    x = rng.standard_normal((rows, 512)).astype(np.float32)
    if rows > 4:
        x[2, 5] = np.inf
        x[3] = 0
        x[3, 7] = 1
    outputs = [run(make_session(model, threads=threads), x) for threads in (1, 2, 4)]
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])


@pytest.mark.parametrize("rows", [33, 64, 96])
def test_an_extreme_row_changes_no_bits_of_others(rng: np.random.Generator, rows: int) -> None:
    """Which rows share a tile depends on the threads, and must not decide on the kernel."""
    model = make_model(make_node(rng, OpAttributes(K=512, N=64)))
    x = rng.standard_normal((rows, 512)).astype(np.float32)
    x[0] = 1e-3 * x[0]
    x[0, 7] = 1
    sessions = [make_session(model, threads=threads) for threads in (1, 2, 4)]
    expected = run(sessions[0], x)
    # Work is cut for all processors at first, later for the threads that were seen.
    for session in sessions:
        for _ in range(40):
            np.testing.assert_array_equal(run(session, x), expected)
    without = run(sessions[0], np.concatenate([x[1:], x[1:2]]))
    np.testing.assert_array_equal(expected[1:], without[:-1])


@pytest.mark.parametrize("rows", [24, 32, 48, 70])
@pytest.mark.parametrize("base", attribute_variants(512, 64)[8:], ids=label)
def test_thread_count_does_not_change_bits_of_rsr(
    rng: np.random.Generator, base: OpAttributes, rows: int
) -> None:
    model = make_model(make_node(rng, base))
    x = rng.standard_normal((rows, 512)).astype(np.float32)
    sessions = [make_session(model, threads=threads) for threads in (1, 2, 4)]
    expected = run(sessions[0], x)
    # Sessions learn how many threads they have in their first calls.
    for session in sessions:
        for _ in range(4):
            np.testing.assert_array_equal(run(session, x), expected)


@pytest.mark.parametrize("attributes", [VARIANTS[0], VARIANTS[9], int8(VARIANTS[1])], ids=label)
def test_concurrent_runs_share_one_session(
    rng: np.random.Generator, attributes: OpAttributes
) -> None:
    node = make_node(rng, attributes)
    session = make_session(make_model(node), threads=2)
    inputs = [rng.standard_normal((rows, 100)).astype(np.float32) for rows in (1, 2, 9, 40)]
    expected = [run(session, x) for x in inputs]
    failures: list[str] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed)
        for _ in range(100):
            i = int(order.integers(len(inputs)))
            if not np.array_equal(run(session, inputs[i]), expected[i]):
                failures.append(f"input {i}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_rows_that_are_not_finite_stay_alone(rng: np.random.Generator) -> None:
    for attributes in (VARIANTS[0], VARIANTS[8]):
        node = make_node(rng, attributes)
        x = rng.standard_normal((20, 100)).astype(np.float32)
        x[3, 4] = np.nan
        x[11, 5] = np.inf
        y = run(make_session(make_model(node)), x)
        assert np.isnan(y[3]).all()
        # inf times a level of 0 is NaN, as in MatMul.
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(y[11], np.inf * node.levels[5].astype(np.float32))
        rest = [row for row in range(20) if row not in (3, 11)]
        difference = np.abs(y[rest] - node.expected(x[rest]))
        assert np.all(difference <= node.tolerance(x[rest]))


def test_external_data_is_read_at_any_offset(rng: np.random.Generator, tmp_path: Path) -> None:
    for attributes in (VARIANTS[1], VARIANTS[8]):
        node = make_node(rng, attributes, per_column=True)
        model = make_model(node)
        x = rng.standard_normal((3, 100)).astype(np.float32)
        expected = run(make_session(model), x)
        path = tmp_path / "model.onnx"
        onnx.save(
            model,
            str(path),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"weights_{attributes.index_format}.bin",
            size_threshold=0,
        )
        options = ort.SessionOptions()
        options.register_custom_ops_library(get_library_path())
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(run(session, x), expected)


def test_constant_activations_are_read_at_any_offset(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    node = make_node(rng, VARIANTS[0], per_column=True)
    model = make_model(node)
    x = rng.standard_normal((3, 100)).astype(np.float32)
    expected = run(make_session(model), x)
    (tmp_path / "x.bin").write_bytes(b"\0" * 4097 + x.tobytes())
    constant = onnx.TensorProto(name="X", data_type=onnx.TensorProto.FLOAT, dims=x.shape)
    constant.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "x.bin"), ("offset", "4097"), ("length", str(x.nbytes))):
        constant.external_data.add(key=key, value=value)
    del model.graph.input[:]
    model.graph.initializer.append(constant)
    onnx.save(model, str(tmp_path / "model.onnx"))
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    session = ort.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {})[0], expected)


def test_unsupported_input_type_is_refused(rng: np.random.Generator) -> None:
    model = make_model(make_node(rng, VARIANTS[0]))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert "TernaryIndexedMatMul" in error_of(model)


def test_registering_twice_fails_when_the_session_is_made(rng: np.random.Generator) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(get_library_path())
    options.register_custom_ops_library(get_library_path())
    model = make_model(make_node(rng, VARIANTS[0])).SerializeToString()
    with pytest.raises(ORT_ERRORS, match="Domain already set"):
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_forced_kernel_that_cannot_serve_is_named_when_the_session_is_made(
    rng: np.random.Generator,
) -> None:
    with kernels.forced(kernel="rsr_gemv_float_scalar"):
        message = error_of(make_model(make_node(rng, VARIANTS[0])))
    assert f"TernaryIndexedMatMul '{NODE_NAME}': " in message
    assert "'rsr_gemv_float_scalar' cannot serve" in message


def test_unknown_rank_is_accepted(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[0])
    x = rng.standard_normal((2, 3, 100)).astype(np.float32)
    for dtype in ("float32", "float16", "bfloat16"):
        model = make_model(node, dtype=dtype)
        model.graph.input[0].type.tensor_type.ClearField("shape")
        assert run(make_session(model), x).shape == (2, 3, 13)


def test_all_types_in_one_session(rng: np.random.Generator) -> None:
    model = make_model(make_node(rng, VARIANTS[0]))
    graph = model.graph
    for dtype, variant in (("float16", VARIANTS[8]), ("bfloat16", VARIANTS[1])):
        other = make_model(make_node(rng, variant), dtype=dtype)
        names = {name for node in other.graph.node for name in (*node.input, *node.output)}
        renamed = {name: f"{name}_{dtype}" for name in names - {"X"}}
        for node in other.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
            node.name = f"{node.op_type}_{dtype}_{node.output[0]}"
        for tensor in (*other.graph.initializer, *other.graph.output):
            tensor.name = renamed[tensor.name]
        graph.node.extend(other.graph.node)
        graph.initializer.extend(other.graph.initializer)
        graph.output.extend(other.graph.output)
    x = rng.standard_normal((2, 100)).astype(np.float32)
    outputs = make_session(model).run(None, {"X": x})
    assert [y.shape for y in outputs] == [(2, 13)] * 3


def test_many_sessions_share_the_library(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[0])
    x = rng.standard_normal((2, 100)).astype(np.float32)
    sessions = [make_session(make_model(node)) for _ in range(5)]
    outputs = [run(session, x) for session in sessions]
    del sessions
    np.testing.assert_array_equal(outputs[-1], outputs[0])
    np.testing.assert_array_equal(run(make_session(make_model(node)), x), outputs[0])
