"""Networks that packages carry, their weights rounded to ternary, by the command people type first.

`.ci/extended published` installs the packages; only their model files are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnx_ternary
from onnx_ternary.errors import ModelError
from onnx_ternary.verification.inputs import InputOptions, choose_inputs
from tests.fuzz.sessions import graphs_of
from tests.support.command_line import run

PACKAGES = (
    "basic-pitch",
    "ddddocr",
    "magika",
    "nudenet",
    "rapidocr-onnxruntime",
    "silero-vad",
)
PRODUCTS = ("Conv", "Gemm", "MatMul")
# How many products are rewritten, and with --conv; none of the models that are not here.
REWRITTEN = {
    "320n": (0, 24),
    "ch_PP-OCRv4_det_infer": (0, 32),
    "ch_PP-OCRv4_rec_infer": (9, 29),
    "ch_ppocr_mobile_v2.0_cls_infer": (0, 21),
    "common": (1, 9),
    "common_det": (0, 42),
    "model": (2, 2),
    "silero_vad_op18_ifless": (4, 4),
}


def model_files() -> Iterator[Path]:
    for package in PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        yield from sorted(Path(str(file.locate())) for file in files if file.suffix == ".onnx")


FILES = list(model_files())
if not FILES:
    pytest.skip("no package with a model is installed", allow_module_level=True)

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def round_weight(tensor: onnx.TensorProto) -> None:
    """Round a matrix of floats, or of more axes, as BitNet does, to one scale."""
    weight = numpy_helper.to_array(tensor)
    if weight.dtype != np.float32 or weight.ndim < 2:
        return
    scale = np.abs(weight).mean(dtype=np.float32)
    levels = np.clip(np.round(weight / (scale or np.float32(1))), -1, 1)
    tensor.CopyFrom(numpy_helper.from_array(levels * scale, tensor.name))


def ternary(file: Path, target: Path) -> onnx.ModelProto:
    """Write the model with ternary weights."""
    model = onnx.load(file)
    every = graphs_of(model)
    nodes = [node for graph in every for node in graph.node]
    weights = {node.input[1] for node in nodes if node.op_type in PRODUCTS}
    tensors = [tensor for graph in every for tensor in graph.initializer if tensor.name in weights]
    tensors += [
        attribute.t
        for node in nodes
        if node.op_type == "Constant" and node.output[0] in weights
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for tensor in tensors:
        round_weight(tensor)
    onnx.save(model, target)
    return model


@each_file
def test_network_as_it_is_stays_and_says_so(file: Path, tmp_path: Path) -> None:
    done = run("optimize", file, tmp_path / "out.onnx")
    assert "no product was rewritten; the model was written unchanged" in done.stderr
    assert (tmp_path / "out.onnx").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("conv", [False, True], ids=["default", "conv"])
@each_file
def test_ternary_network_keeps_its_answers(file: Path, conv: bool, tmp_path: Path) -> None:
    source, target, report = (tmp_path / name for name in ("in.onnx", "out.onnx", "report.json"))
    model = ternary(file, source)
    run("optimize", source, target, *["--conv"] * conv, "--report", report)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert len(found["rewrites"]) == REWRITTEN.get(file.stem, (0, 0))[conv]
    if found["rewrites"]:
        assert found["verification"]["scope"] == "whole" and found["verification"]["passed"]
        compare(model, source, target)


def compare(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Run both on inputs that verification did not have."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    original = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    converted = onnx_ternary.InferenceSession(target, providers=["CPUExecutionProvider"])

    def refusal(feeds: dict[str, Any]) -> ModelError | None:
        try:
            original.run(None, feeds)
        except Exception as error:  # onnxruntime's errors share no base
            return ModelError(str(error))
        return None

    feeds = choose_inputs(model, InputOptions(seed=7), refusal).feeds
    pairs = zip(original.run(None, feeds), converted.run(None, feeds), strict=True)
    for expected, got in pairs:
        largest = np.max(np.abs(expected), initial=np.finfo(np.float32).tiny)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * largest)
