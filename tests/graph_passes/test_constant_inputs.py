"""Initializers that are graph inputs too: constants below IR version 4, or where they are asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from onnx_ternary import verify
from onnx_ternary.cli import main
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import K, N, column_scales, matmul, model, node, ternary

OPTIONS = OptimizeOptions(min_elements=0)
CONSTANTS = OptimizeOptions(min_elements=0, constant_initializers=True)


def given(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def listed(ir_version: int, *, opset: int = 13, ternary_weight: bool = True) -> onnx.ModelProto:
    """``relu(x @ w) * rest``, with both constants among the inputs."""
    weight = ternary(scale=column_scales())
    if not ternary_weight:
        weight = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
    return model(
        [matmul("x", "w", "h"), node("Relu", ["h"], "r"), node("Mul", ["r", "rest"], "y")],
        {"w": weight, "rest": np.arange(1, N + 1, dtype=np.float32)},
        inputs=[given("w", K, N), given("rest", N)],
        ir_version=ir_version,
        opset=opset,
    )


def overridable(made: onnx.ModelProto) -> list[str]:
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return [value.name for value in session.get_overridable_initializers()]


def inputs_of(made: onnx.ModelProto) -> list[str]:
    return [value.name for value in made.graph.input]


@pytest.mark.parametrize("opset", [13, 9])
def test_below_ir_4_they_are_constants(opset: int) -> None:
    original = listed(3, opset=opset)
    assert overridable(original) == []  # onnxruntime lets nobody override them
    result = optimize(original, OPTIONS)
    assert [row.weight for row in result.report.rewrites] == ["w"]
    assert result.report.rejections == ()
    converted = result.to_proto()
    assert converted.ir_version == (8 if opset == 13 else 4)  # no function body before 11
    assert inputs_of(converted) == ["x"]
    assert [each.name for each in converted.graph.initializer if each.name == "rest"] == ["rest"]
    (note,) = (each for each in result.report.notes if "where no caller can override" in each)
    assert note == (
        "IR version 3 has every initializer among the graph's inputs, where no caller can override "
        f"it; in IR version {converted.ir_version} they are none: 'w', 'rest'"
    )
    report = verify(original, converted)
    assert report.passed and report.scope == "whole", report.summary()


def test_from_ir_4_they_stay_overridable() -> None:
    original = listed(4)
    assert overridable(original) == ["w", "rest"]
    result = optimize(original, OPTIONS)
    assert result.report.rewrites == ()
    (kept,) = result.report.rejections
    assert "--constant-initializers (constant_initializers=True) makes it a constant" in kept.reason


@pytest.mark.parametrize("ir_version", [4, 8])
def test_option_makes_constants(ir_version: int) -> None:
    original = listed(ir_version)
    result = optimize(original, CONSTANTS)
    assert [row.weight for row in result.report.rewrites] == ["w"]
    converted = result.to_proto()
    assert overridable(converted) == []
    assert inputs_of(converted) == ["x"]
    assert inputs_of(original) == ["x", "w", "rest"]
    assert "no longer graph inputs that a caller may override: 'w', 'rest'" in result.report.notes
    assert verify(original, converted).passed
    again = optimize(converted, CONSTANTS)
    assert again.to_proto() == converted


@pytest.mark.parametrize("ir_version", [3, 8])
def test_inputs_stay_where_nothing_is_rewritten(ir_version: int) -> None:
    original = listed(ir_version, ternary_weight=False)
    result = optimize(original, CONSTANTS)
    assert result.report.rewrites == ()
    assert result.report.notes == ()
    assert result.to_proto() == original


def test_values_of_callers_stay_inputs() -> None:
    """An input without an initializer is no constant, whatever the option says."""
    made = model([matmul()], {}, inputs=[given("w", K, N)])
    result = optimize(made, CONSTANTS)
    (kept,) = result.report.rejections
    assert kept.reason == "no constant weight: 'w' is given at run time"


def test_option_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(listed(8), path)
    command = ["optimize", str(path), str(tmp_path / "out.onnx"), "--min-elements", "0"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 0 and "--constant-initializers" in refused.output
    done = CliRunner().invoke(main, [*command, "--constant-initializers", "--require-rewrite"])
    assert done.exit_code == 0, done.output
    assert inputs_of(onnx.load(tmp_path / "out.onnx")) == ["x"]
