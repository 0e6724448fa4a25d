"""Olive with the pass converts, verifies, and says what is wrong; needs the extra ``olive``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_ternary

pytest.importorskip("olive", reason="the extra olive is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "digits_mlp.onnx"
MODULE = "onnx_ternary.integrations.olive"


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an interpreter's module in a folder, Olive's telemetry off."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env=os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"},
    )


def run_olive(folder: Path, workflow: Path) -> subprocess.CompletedProcess[str]:
    """Both commands of docs/olive.md."""
    written = python(MODULE, "packages.json", folder=folder)
    assert written.returncode == 0, written.stderr
    files = ["--run-config", str(workflow), "--package-config", "packages.json"]
    return python("olive", "run", *files, "-m", str(MODEL), "-o", "out", folder=folder)


def changed_workflow(folder: Path, **parameters: Any) -> Path:
    """The example's workflow with other parameters of the pass."""
    workflow = json.loads((EXAMPLES / "olive/workflow.json").read_text(encoding="utf-8"))
    workflow["passes"]["ternary"] |= parameters
    path = folder / "workflow.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")
    return path


def test_example_keeps_the_digits_answers(tmp_path: Path) -> None:
    done = run_olive(tmp_path, EXAMPLES / "olive/workflow.json")
    assert done.returncode == 0, done.stderr[-2000:]
    (converted,) = (tmp_path / "out").rglob("*.onnx")
    operators = [node.op_type for node in onnx.load(converted).graph.node]
    assert operators.count("TernaryIndexedMatMul") > 0
    assert converted.stat().st_size < MODEL.stat().st_size / 2
    with np.load(EXAMPLES / "digits_mlp.npz") as data:
        images, labels = data["image"], data["labels"]
    session = onnx_ternary.InferenceSession(converted)
    (logits,) = session.run(["logits"], {"image": images})
    assert int((logits.argmax(axis=1) == labels).sum()) == 440
    assert len(labels) == 450


def test_parameters_reach_the_conversion(tmp_path: Path) -> None:
    first, *_ = onnx_ternary.optimize(MODEL).report.rewrites
    workflow = changed_workflow(
        tmp_path,
        exclude=[first.node],
        external_data="always",
        inputs=str(EXAMPLES / "digits_mlp.npz"),
        verify=True,
    )
    done = run_olive(tmp_path, workflow)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 of 4 products rewritten" in done.stdout + done.stderr
    assert "verification passed" in done.stdout + done.stderr
    (converted,) = (tmp_path / "out").rglob("*.onnx")
    assert list(converted.parent.glob("*.onnx.data"))
    onnx_ternary.InferenceSession(converted)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_size_ratio": 0.01}, "of its size; at most 0.01 is required"),
        ({"tolerance": 0.5}, "tolerance = 0.5, expected from 0 to below 1/3"),
        (
            {"shapes": {"batch": 3}, "inputs": str(EXAMPLES / "digits_mlp.npz")},
            "Sizes of generated inputs were asked for, but inputs are given",
        ),
    ],
    ids=["requirement", "option", "verification"],
)
def test_error_ends_the_run_without_a_model(
    parameters: dict[str, Any], message: str, tmp_path: Path
) -> None:
    done = run_olive(tmp_path, changed_workflow(tmp_path, **parameters))
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert list((tmp_path / "out").rglob("*.onnx")) == []
