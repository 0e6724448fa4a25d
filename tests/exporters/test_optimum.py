"""Optimum's decoder with past, converted by the command people type first: no flags, no inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
exporters = pytest.importorskip("optimum.exporters.onnx")

NUM_LAYERS, PROJECTIONS = 2, 7


def ternary_decoder() -> object:
    """A Llama of two small layers, every projection with one mean magnitude."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                scale = module.weight.abs().mean()
                module.weight.copy_((module.weight / scale).round().clamp(-1, 1) * scale)
    return model


def test_decoder_with_past_converts_by_default(tmp_path: Path) -> None:
    exporters.onnx_export_from_model(
        ternary_decoder(), tmp_path, task="text-generation-with-past", do_validation=False
    )
    source, target, report = (tmp_path / name for name in ("model.onnx", "o.onnx", "r.json"))
    command = [sys.executable, "-m", "onnx_ternary", "optimize", str(source), str(target)]
    done = subprocess.run([*command, "--report", str(report)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert len(found["rewrites"]) == NUM_LAYERS * PROJECTIONS
    verification = found["verification"]
    assert verification["scope"] == "whole" and verification["passed"]
    assert {each["status"] for each in verification["products"]} == {"passed"}
    assert {each["name"] for each in verification["outputs"]} >= {"logits", "present.0.key"}
    assert target.exists()
