"""A small BitNetForCausalLM, trained for seconds, in every form transformers ships its weights.

It has what the real one has: grouped-query attention, sub-norms, squared ReLU, a tied embedding.
Training gives it something to predict, so that its loss and its most likely tokens mean something.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# transformers wraps the quantization in torch.compile, which the TorchScript exporter cannot trace.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.integrations import bitnet
from transformers.utils.quantization_config import BitNetQuantConfig

VOCABULARY = 64
CONFIG = BitNetConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    attn_implementation="eager",
)
HEAD_SIZE = CONFIG.hidden_size // CONFIG.num_attention_heads
# q, k, v, o, gate, up and down of each layer; the output layer is the float embedding.
NUM_TERNARY = 7 * CONFIG.num_hidden_layers
PAST = tuple(f"past_{part}_{i}" for i in range(CONFIG.num_hidden_layers) for part in ("k", "v"))
PRESENT = tuple(name.replace("past", "present") for name in PAST)

# On matrices this small a second thread only waits.
torch.set_num_threads(1)

FORMS = ("linear", "bitlinear", "autobitlinear offline", "autobitlinear online")
"""Layers of the weights: nn.Linear with ternary floats, the rest transformers' own classes."""

_TRAINING_STEPS = 60


def text(num_sequences: int, length: int, seed: int) -> NDArray[np.int64]:
    """Tokens that follow a fixed random table nine times of ten, else any token."""
    follows = np.random.default_rng(0).permutation(VOCABULARY)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (num_sequences, length))
    by_table = rng.random((num_sequences, length)) < 0.9
    for i in range(1, length):
        tokens[:, i] = np.where(by_table[:, i], follows[tokens[:, i - 1]], tokens[:, i])
    return tokens


def trained() -> BitNetForCausalLM:
    """The network, quantization in training ("autobitlinear online")."""
    torch.manual_seed(0)
    model = BitNetForCausalLM(CONFIG)
    initial = {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    _replace_layers(model, "autobitlinear", "online")
    for name, module in _bit_layers(model):
        module.weight = nn.Parameter(initial[name])
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(_TRAINING_STEPS):
        tokens = torch.from_numpy(text(32, 32, 1000 + step))
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def in_form(source: BitNetForCausalLM, form: str) -> BitNetForCausalLM:
    """The trained network with its weights in one of `FORMS`."""
    model = copy.deepcopy(source)
    kind, _, mode = form.partition(" ")
    if mode == "online":
        return model
    weights = {name: module.weight.detach() for name, module in _bit_layers(source)}
    if kind == "linear":
        for name, weight in weights.items():
            levels, scale = _ternary(weight)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(levels * scale)
            model.set_submodule(name, layer)
        return model.eval()
    _replace_layers(model, kind, mode or "offline")
    for name, module in _bit_layers(model):
        levels, scale = _ternary(weights[name])
        if kind == "bitlinear":
            module.weight = bitnet.pack_weights(levels.clone())
            module.weight_scale = (1 / scale).reshape(1)
        else:
            module.weight = nn.Parameter(levels, requires_grad=False)
            module.weight_scale = scale.reshape(1)
    return model.eval()


def _replace_layers(model: BitNetForCausalLM, kind: str, mode: str) -> None:
    config = BitNetQuantConfig(linear_class=kind, quantization_mode=mode)
    bitnet.replace_with_bitnet_linear(model, ["lm_head"], config)


def _bit_layers(model: BitNetForCausalLM) -> list[tuple[str, Any]]:
    classes = (bitnet.BitLinear, bitnet.AutoBitLinear)
    return [(name, each) for name, each in model.named_modules() if isinstance(each, classes)]


def _ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and scale by BitNet's rule, transformers' WeightQuant."""
    inverse = 1 / weight.abs().mean().clamp(min=1e-5)
    return (weight * inverse).round().clamp(-1, 1), 1 / inverse


class _WithCache(nn.Module):
    """(input_ids, attention_mask, *past) -> (logits, *present)."""

    def __init__(self, model: BitNetForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        present = [each for layer in cache.layers for each in (layer.keys, layer.values)]
        return result.logits, *present


def export(model: BitNetForCausalLM, path: Path, *, dynamo: bool) -> None:
    """Write the model with dynamic batch, sequence and past lengths."""
    batch, sequence, past = 2, 3, 4
    cache_shape = (batch, CONFIG.num_key_value_heads, past, HEAD_SIZE)
    example = (
        torch.zeros(batch, sequence, dtype=torch.int64),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        *(torch.zeros(cache_shape) for _ in PAST),
    )
    options: dict[str, Any]
    if dynamo:
        free = torch.export.Dim.DYNAMIC
        rows, cache = {0: free, 1: free}, {0: free, 2: free}
        options = {
            "dynamic_shapes": (rows, rows, (cache,) * len(PAST)),
            "external_data": False,
            "verbose": False,
        }
    else:
        options = {
            "dynamic_axes": {
                "input_ids": {0: "batch", 1: "sequence"},
                "attention_mask": {0: "batch", 1: "total"},
                "logits": {0: "batch", 1: "sequence"},
                **{name: {0: "batch", 2: "past"} for name in PAST},
                **{name: {0: "batch", 2: "total"} for name in PRESENT},
            },
            "opset_version": 18,  # BitwiseAnd, which unpacks the weights
        }
    torch.onnx.export(
        _WithCache(model),
        example,
        str(path),
        dynamo=dynamo,
        input_names=["input_ids", "attention_mask", *PAST],
        output_names=["logits", *PRESENT],
        **options,
    )


@dataclass(frozen=True)
class Quality:
    """How well logits predict a text.

    Attributes:
        loss: mean negative log likelihood of the next token, nats.
        top1: the most likely next tokens.
    """

    loss: float
    top1: NDArray[np.int64]


def quality(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> Quality:
    """Quality of logits (batch, length, VOCABULARY) on tokens (batch, length)."""
    scores = logits[:, :-1].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    log_probability = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probability, tokens[:, 1:, None], axis=-1)
    return Quality(float(-chosen.mean()), scores.argmax(axis=-1))
