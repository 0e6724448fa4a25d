"""``onnx-ternary export`` as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnx_ternary
from onnx_ternary.exporting.exporter import Form
from tests.catalogue.matmul_nbits import FEW_BITS
from tests.support.command_line import DIGITS
from tests.support.command_line import run as run_command
from tests.support.converted_models import converted_model, make_product

FORMS: tuple[Form, ...] = get_args(Form)
every_form = pytest.mark.parametrize("form", FORMS)
# onnxruntime 1.17.3 to 1.23.2 refuse MatMulNBits of 2 bits, 1.31.1 runs it.
BITS: Any = 2 if FEW_BITS else 4


@every_form
@pytest.mark.parametrize("external_data", ["never", "always"])
def test_command_line_writes_a_model_for_plain_onnxruntime(
    form: Form, external_data: str, tmp_path: Path
) -> None:
    converted, exported = tmp_path / "converted.onnx", tmp_path / "exported.onnx"
    onnx_ternary.optimize(DIGITS).save(converted)
    arguments = ("--to", form, "--bits", BITS, "--external-data", external_data, "--verify")
    done = run_command("export", converted, exported, *arguments)
    assert "3 of 3 products within their bounds" in done.stdout
    assert (tmp_path / "exported.onnx.data").exists() == (external_data == "always")
    images = np.random.default_rng(0).random((4, 64), np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    (found,) = ort.InferenceSession(exported, options).run(None, {"image": images})
    (expected,) = ort.InferenceSession(DIGITS).run(None, {"image": images})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_command_line_in_place_and_without_products(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_ternary.optimize(DIGITS).save(path)
    run_command("export", path, path, "--to", "float")
    once = path.read_bytes()
    done = run_command("export", path, path, "--to", "float")
    assert "has no TernaryIndexedMatMul node" in done.stderr
    assert path.read_bytes() == once


def test_command_line_refusal_and_usage_write_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "converted.onnx", tmp_path / "exported.onnx"
    onnx.save(converted_model([make_product(scale_rank=2)]), source)
    done = run_command("export", source, target, "--to", "qdq", check=1)
    assert "use --to float or --to matmulnbits" in done.stderr
    run_command("export", source, target, check=2)
    run_command("export", source, target, "--to", "qdq", "--bits", "3", check=2)
    assert list(tmp_path.iterdir()) == [source]
