"""Inputs of a verification: given, read, or generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.errors import RequirementError
from onnx_ternary.options import VerificationOptions
from onnx_ternary.verification.inputs import InputsError
from onnx_ternary.verification.verify import verify
from tests.support.converted_models import Product, converted_model, original_model, random_weight


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Input 'X' is missing; given: nothing"),
        ({"x": np.ones((1, 1, 130), np.float32)}, "no input 'x'; it has: X"),
        ({"X": np.ones((1, 1, 130))}, "Input 'X' is float64, expected float32"),
        ({"X": np.ones((1, 1, 131), np.float32)}, r"has shape \(1, 1, 131\), expected \(batch, "),
        ({"X": np.ones((1, 130), np.float32)}, r"has shape \(1, 130\), expected \(batch, "),
    ],
)
def test_wrong_inputs(products: list[Product], inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        verify(original_model(products), converted_model(products), inputs=inputs)


def test_unreadable_inputs_file(products: list[Product], tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    path.write_bytes(b"not an archive")
    for wrong in (path, tmp_path / "missing.npz"):
        with pytest.raises(InputsError, match="cannot be read"):
            verify(original_model(products), converted_model(products), inputs=wrong)


def test_integer_inputs_and_named_dimensions() -> None:
    rng = np.random.default_rng(4)
    weight = random_weight(rng, 16, 10)
    product = Product.make(weight)
    models = []
    for model in (original_model([product]), converted_model([product])):
        table = np.random.default_rng(5).standard_normal((50, 16)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(table, "table"))
        model.graph.node.insert(0, helper.make_node("Gather", ["table", "ids"], ["X"]))
        del model.graph.input[:]
        dims = ["batch", "past_length + sequence_length"]
        model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, dims))
        model.graph.input.append(
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, dims)
        )
        models.append(model)
    report = verify(*models)
    assert report.passed
    assert report.inputs["ids"].endswith("int64 (2, 12)")
    assert report.products[0].rows == 24


def test_generated_batch_falls_back_to_one() -> None:
    product = Product.make(random_weight(np.random.default_rng(0), 16, 10))
    models = []
    for model in (original_model([product]), converted_model([product])):
        # Only a batch of one fits the model's own constant shape.
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([1, 8, 16], np.int64), "shape")
        )
        model.graph.node.insert(0, helper.make_node("Reshape", ["input", "shape"], ["X"]))
        model.graph.input[0].name = "input"
        models.append(model)
    report = verify(*models)
    assert report.passed
    assert report.inputs["input"].endswith("float32 (1, 8, 16)")


def test_inputs_that_cannot_be_generated(products: list[Product]) -> None:
    original, converted = original_model(products), converted_model(products)
    signal = helper.make_tensor_value_info("signal", TensorProto.COMPLEX64, ["batch"])
    original.graph.input.append(signal)
    report = verify(original, converted)
    assert "Input 'signal' is complex64, which cannot be generated" in report.not_whole
    assert (report.scope, report.outputs) == ("products", ())
    assert [check.status for check in report.products] == ["passed"] * 2
    assert report.passed
    with pytest.raises(RequirementError, match="that is required: Input 'signal' is complex64"):
        verify(original, converted, VerificationOptions(require_whole=True))
