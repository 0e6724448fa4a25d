"""examples/text: a decoder that takes strings, converted and verified with both libraries."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import onnx_ternary
from onnx_ternary.model_files.load import load
from onnx_ternary.schema import OP_TYPE

pytest.importorskip("onnxruntime_extensions")

EXAMPLE = Path(__file__).parents[2] / "examples" / "text"
MODEL = EXAMPLE / "docs_decoder.onnx"
LIBRARY = "onnxruntime_extensions"
TEXTS = np.array(["The for statement", "x = 1\n", "Déjà vu, 你好"])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "docs_decoder.ternary.onnx"
    conversion = onnx_ternary.convert(MODEL, path, custom_op_libraries=[LIBRARY])
    assert len(conversion.report.rewrites) == 8
    assert conversion.verification is not None
    return path


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_ternary", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_example_runs_both_libraries_and_keeps_the_loss(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "text")
    command = [sys.executable, folder / "run_docs_decoder.py"]
    # The example imports the module beside it, which cibuildwheel's PYTHONSAFEPATH would forbid.
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = re.findall(r"(\S[^:\n]*): loss (\S+) nats", done.stdout)
    assert [name for name, _ in losses] == [
        "original",
        "extensions, then onnx-ternary",
        "onnx-ternary, then extensions",
        "extensions only (function body)",
    ]
    # An untrained model of this vocabulary is at ln 512 = 6.24.
    assert all(float(loss) < 3.0 for _, loss in losses), done.stdout
    assert "8 of 8 products within their bounds" in done.stdout


def test_model_is_small_and_names_no_machine() -> None:
    content = MODEL.read_bytes()
    assert len(content) < 500_000
    assert str(MODEL.parents[2]).encode() not in content
    assert str(Path.home()).encode() not in content
    assert tempfile.gettempdir().encode() not in content


def test_converted_model_keeps_the_tokenizer(converted: Path) -> None:
    nodes = list(load(converted).model.graph)
    assert [node.op_type for node in nodes].count("GPT2Tokenizer") == 1
    assert [node.op_type for node in nodes].count(OP_TYPE) == 8
    assert converted.stat().st_size < 0.6 * MODEL.stat().st_size


def test_verification_generates_strings_or_takes_them(converted: Path, tmp_path: Path) -> None:
    generated = onnx_ternary.verify(MODEL, converted, custom_op_libraries=[LIBRARY])
    assert generated.inputs["text"].startswith("generated, seed 0: object (2,)")
    np.savez(tmp_path / "texts.npz", text=TEXTS)
    for inputs in (tmp_path / "texts.npz", {"text": TEXTS}, {"text": TEXTS.astype(object)}):
        report = onnx_ternary.verify(MODEL, converted, inputs=inputs, custom_op_libraries=[LIBRARY])
        assert report.passed
        assert len(report.products) == 8
        assert all(product.status == "passed" and product.rows for product in report.products)
        checks = {check.name: check for check in report.outputs}
        assert checks["logits"].tolerance is not None
        assert checks["token_ids"].max_abs_difference == 0


def test_missing_library_says_what_to_do(converted: Path) -> None:
    report = onnx_ternary.verify(MODEL, converted)
    assert report.scope == "products"
    assert [check.status for check in report.products] == ["passed"] * 8
    assert "--library (custom_op_libraries)" in report.not_whole


def test_export_verifies_with_the_library(converted: Path, tmp_path: Path) -> None:
    target = tmp_path / "float.onnx"
    required = ("--require-verification", "whole")
    done = cli("export", converted, target, "--to", "float", *required)
    assert (done.returncode, target.exists()) == (4, False)
    assert "--library" in done.stderr
    done = cli("export", converted, target, "--to", "float", "--verify", "--library", LIBRARY)
    assert done.returncode == 0, done.stderr
    types = [node.op_type for node in load(target).model.graph]
    assert "GPT2Tokenizer" in types
    assert OP_TYPE not in types


def test_bench_runs_with_the_library(converted: Path) -> None:
    done = cli("bench", MODEL, converted, "--rounds", 1)
    assert done.returncode == 1
    assert "--library" in done.stderr
    done = cli("bench", MODEL, converted, "--rounds", 1, "--library", LIBRARY, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inputs"]["text"].startswith("generated, seed 0: object")


def test_command_line_takes_the_library(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    done = cli("optimize", MODEL, target, "--require-verification", "whole")
    assert (done.returncode, target.exists()) == (4, False)
    assert "--library" in done.stderr
    done = cli("optimize", MODEL, target)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 products within their bounds" in done.stdout
    assert "the whole models were not compared" in done.stderr
    assert "--library" in done.stderr
    target = tmp_path / "other.onnx"
    done = cli("optimize", MODEL, target, "--library", "no_such_library")
    assert (done.returncode, target.exists()) == (1, False)
    assert "There is no custom operator library 'no_such_library'" in done.stderr
    done = cli("optimize", MODEL, target, "--library", LIBRARY)
    assert done.returncode == 0, done.stderr
    done = cli("verify", MODEL, target, "--library", LIBRARY, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 products within their bounds" in done.stdout
