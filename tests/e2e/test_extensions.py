"""onnxruntime-extensions beside our library: both registered in either order, and a Python operator
(PyOp, domain ai.onnx.contrib) that multiplies by the same index tensors, as an independent oracle.

The oracle reads docs/index_format.md one weight at a time and shares nothing with the package.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import onnx_ternary
from onnx_ternary import runtime
from onnx_ternary.errors import LibraryError
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import attribute_variants, label, make_model, make_node

extensions = pytest.importorskip("onnxruntime_extensions")
PyOp = extensions.PyOp

INT_ATTRIBUTES = ("K", "N", "block_size", "block_width", "group_size")
STRING_ATTRIBUTES = ("index_format", "storage", "alphabet")
ORACLES = {"uint8": PyOp.dt_uint8, "uint16": PyOp.dt_uint16, "uint32": PyOp.dt_uint32}


def packed_level(codes: NDArray[np.uint8], row: int, column: int, attributes: Any) -> int:
    """docs/index_format.md section 2."""
    block, r = divmod(row, attributes["block_size"])
    block_bytes = codes.shape[-1]
    position, i = divmod(r, block_bytes)
    byte = int(codes[column // 4, block, column % 4, i])
    if attributes["storage"] == "2bit":
        return (byte >> (2 * position) & 3) - 1
    if attributes["storage"] == "dense":
        return byte // 3**position % 3 - 1
    return 1 if byte >> position & 1 else (-1 if attributes["alphabet"] == "binary_pm" else 0)


def rsr_levels(
    permutation: NDArray[Any], offsets: NDArray[np.uint32], attributes: Any
) -> NDArray[np.float64]:
    """docs/index_format.md section 3."""
    K, N, width = attributes["K"], attributes["N"], attributes["block_width"]
    base = 3 if attributes["storage"] == "base3" else 2
    num_planes, num_blocks, num_groups, _ = offsets.shape
    digits = np.zeros((num_planes, K, num_blocks * width), int)
    for plane, block, group in np.ndindex(num_planes, num_blocks, num_groups):
        bounds = offsets[plane, block, group]
        for pattern in range(base**width):
            for row in permutation[plane, block, bounds[pattern] : bounds[pattern + 1]]:
                for c in range(width):
                    digit = pattern // base ** (width - 1 - c) % base
                    digits[plane, row, block * width + c] = digit
    digits = digits[:, :, :N]
    if base == 3:
        return digits[0] - 1.0
    if attributes["alphabet"] == "ternary":
        return (digits[0] - digits[1]).astype(np.float64)
    return digits[0] * 2.0 - 1 if attributes["alphabet"] == "binary_pm" else digits[0] * 1.0


def oracle(
    x: NDArray[np.float32],
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    **attributes: Any,
) -> NDArray[np.float32]:
    K, N = attributes["K"], attributes["N"]
    if attributes["index_format"] == "packed":
        levels = np.array(
            [[packed_level(codes, k, n, attributes) for n in range(N)] for k in range(K)], float
        )
    else:
        levels = rsr_levels(codes, aux, attributes)
    group = attributes["group_size"] or K
    scales = np.broadcast_to(scale, (-(-K // group), N)).astype(np.float64)
    weight = np.array([levels[k] * scales[k // group] for k in range(K)])
    return (x.astype(np.float64) @ weight + bias).astype(np.float32)


for _codes_dtype, _kind in ORACLES.items():
    extensions.onnx_op(
        op_type=f"TernaryOracle_{_codes_dtype}",
        inputs=[PyOp.dt_float, _kind, PyOp.dt_uint32, PyOp.dt_float, PyOp.dt_float],
        outputs=[PyOp.dt_float],
        attrs={
            **dict.fromkeys(INT_ATTRIBUTES, PyOp.dt_int64),
            **dict.fromkeys(STRING_ATTRIBUTES, PyOp.dt_string),
        },
    )(oracle)


def with_oracle(model: onnx.ModelProto, attributes: OpAttributes) -> onnx.ModelProto:
    """Our node, and the oracle beside it on the same tensors."""
    (node,) = [each for each in model.graph.node if each.domain == "onnx_ternary"]
    codes = next(each for each in model.graph.initializer if each.name == node.input[1])
    values = asdict(attributes)
    model.graph.node.append(
        helper.make_node(
            f"TernaryOracle_{helper.tensor_dtype_to_np_dtype(codes.data_type).name}",
            node.input,
            ["Y_oracle"],
            domain="ai.onnx.contrib",
            **{name: values[name] for name in (*INT_ATTRIBUTES, *STRING_ATTRIBUTES)},
        )
    )
    model.graph.output.append(helper.make_tensor_value_info("Y_oracle", TensorProto.FLOAT, None))
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return model


def options_with_both(*, extensions_first: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if extensions_first:
        options.register_custom_ops_library(extensions.get_library_path())
    onnx_ternary.register(options)
    if not extensions_first:
        options.register_custom_ops_library(extensions.get_library_path())
    return options


@pytest.mark.parametrize("attributes", attribute_variants(150, 21), ids=label)
def test_op_agrees_with_a_python_operator_on_the_same_tensors(attributes: OpAttributes) -> None:
    rng = np.random.default_rng(0)
    node = make_node(rng, attributes, per_column=not attributes.group_size)
    model = with_oracle(make_model(node), attributes).SerializeToString()
    x = rng.standard_normal((9, attributes.K)).astype(np.float32)
    for extensions_first in (True, False):
        options = options_with_both(extensions_first=extensions_first)
        session = onnx_ternary.InferenceSession(model, options)
        y, y_oracle = session.run(None, {"X": x})
        rounding = 2.0**-24 * np.abs(y_oracle)  # the oracle's own, to float32
        np.testing.assert_array_less(np.abs(y - y_oracle), node.tolerance(x) + rounding)
        np.testing.assert_allclose(y_oracle, node.expected(x), rtol=1e-6, atol=1e-6)


def test_oracle_sees_a_wrong_weight() -> None:
    attributes = OpAttributes(K=150, N=21)
    node = make_node(np.random.default_rng(0), attributes)
    node.codes[0, 0, 0, 0] ^= 1 if node.levels[0, 0] >= 0 else 2
    model = with_oracle(make_model(node), attributes).SerializeToString()
    session = onnx_ternary.InferenceSession(model, options_with_both(extensions_first=True))
    x = np.eye(150, dtype=np.float32)
    _, y_oracle = session.run(None, {"X": x})
    assert (y_oracle != node.expected(x).astype(np.float32)).sum() == 1


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("no_such_module", "There is no custom operator library 'no_such_module'"),
        ("json", "has no attribute 'get_library_path'"),
        ("no/such.so", r"There is no custom operator library 'no/such\.so'; expected"),
    ],
)
def test_library_that_is_none(library: str, message: str) -> None:
    with pytest.raises(LibraryError, match=message):
        runtime.find_library(library)


def test_library_by_module_and_by_path() -> None:
    path = extensions.get_library_path()
    assert runtime.find_library("onnxruntime_extensions") == path
    assert runtime.find_library(path) == path


def test_file_that_is_no_library_is_named(tmp_path: Any) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(LibraryError, match=r"cannot load the custom operator library .*text\.so"):
        runtime.register_libraries(ort.SessionOptions(), [runtime.find_library(text)])
