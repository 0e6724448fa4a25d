"""Sentence embeddings of a built model are those torch computes from the checkpoint.

The reference is transformers' Qwen3Model with its AutoBitLinear, which norms its input, rounds its
activations to 8 bits and its float weights to three levels.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import onnxruntime as ort
import pytest
import torch
from make_checkpoint import SIZES
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model
from transformers.integrations import bitnet

from onnx_ternary import BuildOptions, build, register

# Relative to an embedding's root mean square. Without rounding of activations it is float32's over
# sums of some hundred terms; with it, a value on the border between two integers may fall to either
# side, which is one of 127 steps.
ALLOWED = {"keep": 2.0**-12, "int8": 1 / 127}
TEXTS = ([3, 100, 40, 7, 7, 250, 11, 390], [12, 499, 1], [61])


@pytest.fixture(scope="module")
def model() -> Qwen3Model:
    torch.manual_seed(3)
    made = Qwen3Model(Qwen3Config(**SIZES, head_dim=64)).eval()
    for name, module in list(made.named_modules()):
        if type(module) is not torch.nn.Linear:
            continue
        linear = bitnet.AutoBitLinear(
            module.in_features,
            module.out_features,
            bias=False,
            online_quant=True,
            use_rms_norm=True,
            rms_norm_eps=made.config.rms_norm_eps,
        )
        torch.nn.init.normal_(linear.weight, std=0.05)
        torch.nn.init.uniform_(linear.rms_norm.weight, 0.5, 1.5)
        made.set_submodule(name, linear)
    return made


@pytest.fixture(scope="module")
def checkpoint(model: Qwen3Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in BitNet-embedding's layout."""
    folder = tmp_path_factory.mktemp("embedding")
    state = {
        name.replace(".rms_norm.", ".norm."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder


def reference(model: Qwen3Model, pooling: str, text: list[int]) -> NDArray[np.float64]:
    with torch.no_grad():
        hidden = model(torch.tensor([text]), use_cache=False).last_hidden_state[0].double().numpy()
    return hidden[-1] if pooling == "last" else hidden.mean(axis=0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("activation", ["int8", "keep"])
def test_embeddings_are_those_of_transformers(
    tmp_path: Path,
    model: Qwen3Model,
    checkpoint: Path,
    pooling: Literal["mean", "last"],
    activation: Literal["int8", "keep"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = BuildOptions(activation=activation, task="embedding", pooling=pooling)
    result = build(checkpoint, tmp_path / "built", options)
    assert result.activation == ("int8" if activation == "int8" else "float")
    if activation == "keep":
        monkeypatch.setattr(bitnet.ActQuant, "apply", lambda x: x)
    length = max(map(len, TEXTS))
    feeds: dict[str, Any] = {
        "input_ids": np.array([[*text, *[0] * (length - len(text))] for text in TEXTS], np.int64),
        "attention_mask": np.array(
            [[1] * len(text) + [0] * (length - len(text)) for text in TEXTS], np.int64
        ),
    }
    session = ort.InferenceSession(tmp_path / "built/model.onnx", register(ort.SessionOptions()))
    (found,) = session.run(["sentence_embedding"], feeds)
    for row, text in zip(found, TEXTS, strict=True):
        expected = reference(model, pooling, text)
        size = np.sqrt(np.mean(expected**2))
        assert np.sqrt(np.mean((row - expected) ** 2)) <= ALLOWED[activation] * size
    # Texts that all had one embedding would agree with anything.
    assert np.abs(found[0] - found[1]).max() > 0.1
