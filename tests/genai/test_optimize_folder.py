"""`onnx-ternary optimize FOLDER OUT` on what onnxruntime-genai's own builder writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_checkpoint import TEXT

import onnx_ternary
from tests.genai.decoding import Genai, tokenizer
from tests.genai.trained import Trained


def run_builder(checkpoint: Path, out: Path, precision: str) -> Path:
    """The folder that onnxruntime-genai's builder writes."""
    arguments = {"-i": checkpoint, "-o": out, "-p": precision, "-e": "cpu", "-c": out / "cache"}
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += [str(each) for pair in arguments.items() for each in pair]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def optimize(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnx_ternary", "optimize", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("layout", ["llama-plain", "qwen-groups"])
def test_a_float_folder_is_converted_without_flags(
    tmp_path: Path, trained: Trained, layout: str
) -> None:
    original = run_builder(trained[layout], tmp_path / "original", "fp32")
    report_path = tmp_path / "report.json"
    done = optimize(str(original), str(tmp_path / "converted"), "--report", str(report_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(report_path.read_text())
    # The builder joins the query, key and value projections: five products in each of two layers.
    assert len(report["rewrites"]) >= 10
    assert report["verification"]["passed"]
    library = Path(onnx_ternary.get_library_path()).name
    config = json.loads((tmp_path / "converted/genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["custom_ops_library"] == library
    files = {path.name for path in original.iterdir() if path.is_file()}
    assert files - {"model.onnx.data"} <= {path.name for path in (tmp_path / "converted").iterdir()}
    prompt = tokenizer(trained[layout])(TEXT[:40]).input_ids
    one, other = Genai(original), Genai(tmp_path / "converted")
    assert one.tokens(prompt, 40) == other.tokens(prompt, 40)


def test_an_int4_folder_is_refused_with_what_to_do(tmp_path: Path, trained: Trained) -> None:
    original = run_builder(trained["llama-plain"], tmp_path / "original", "int4")
    for options in ((), ("--tolerance", "0.2")):
        done = optimize(str(original), str(tmp_path / "out"), "--require-rewrite", *options)
        assert done.returncode == 4, done.stdout
        assert not (tmp_path / "out").exists()
    report = tmp_path / "r.json"
    optimize(str(original), str(tmp_path / "out"), "--require-rewrite", "--report", str(report))
    reasons = [kept["reason"] for kept in json.loads(report.read_text())["rejections"]]
    assert sum("levels -8, 0 and 7" in reason for reason in reasons) >= 5
