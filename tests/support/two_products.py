"""Models of one ternary and one float product, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import Array, matmul, model, ternary

ALL = OptimizeOptions(min_elements=0)


def outputs(source: onnx.ModelProto | Path) -> list[Array]:
    given = str(source) if isinstance(source, Path) else source.SerializeToString()
    session = ort.InferenceSession(given, providers=["CPUExecutionProvider"])
    shape = [each if isinstance(each, int) else 3 for each in session.get_inputs()[0].shape]
    x = np.random.default_rng(1).integers(-4, 5, shape).astype(np.float32)
    found: list[Array] = session.run(None, {"x": x})
    return found


def assert_same_answers(first: onnx.ModelProto | Path, second: onnx.ModelProto | Path) -> None:
    for a, b in zip(outputs(first), outputs(second), strict=True):
        np.testing.assert_array_equal(a, b)


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def two_products(*, constant_node: bool = False) -> onnx.ModelProto:
    """A ternary product of the default minimum size, and a float one that stays."""
    other = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [matmul("x", "w", "h", "first"), matmul("h", "v", "y", "second")]
    tensors = {"w": ternary(64, 64), "v": other}
    if constant_node:
        value = numpy_helper.from_array(tensors.pop("v"), "value")
        nodes.insert(0, helper.make_node("Constant", [], ["v"], name="constant", value=value))
    return model(nodes, tensors, x_shape=("batch", 64))


def write_two_products(path: Path, data: str, *, constant_node: bool = False) -> None:
    onnx.save(
        two_products(constant_node=constant_node),
        path,
        save_as_external_data=True,
        location=data,
        size_threshold=0,
        convert_attribute=True,
    )
