"""Train small ternary language models, and write checkpoints in the layouts that real ones ship.

    pip install ".[exporters,genai]"
    python examples/chat/make_checkpoint.py FOLDER [--kind bitnet]

A minute of training teaches a model three pages of Python's language reference by heart. The folder
gets one checkpoint per layout, for example FOLDER/bitnet-packed, which 'onnx-ternary build' reads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # transformers compiles what a test runs once

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.bitnet import ActQuant, pack_weights

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
VOCABULARY, LENGTH, GROUP = 512, 256, 128
# So little that a short training learns it by heart: a model that has learned nothing repeats one
# token, and equal tokens of two such models say little.
TEXT = topics["while"] + topics["break"] + topics["continue"]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# Checkpoints of one model, by its class.
LAYOUTS = {
    "bitnet": ("bitnet-packed", "bitnet-online"),
    "llama": ("llama-packed", "llama-plain"),
    "qwen": ("qwen-groups",),
    "qwen-binary": ("qwen-binary",),
}
_BATCH, _WINDOW, _RATE = 8, 32, 5e-3


class _Rounded(torch.autograd.Function):
    """A matrix as the checkpoint will hold it; gradients pass through."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "tensor":
            scale = weight.abs().mean().clamp(min=1e-5)
            return (weight / scale).round().clamp(-1, 1) * scale
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        scale = groups.abs().mean(-1, keepdim=True).clamp(min=1e-5).half().float()
        if kind == "binary":
            levels = torch.where(groups < 0, -1.0, 1.0)
        else:
            levels = (groups / scale).round().clamp(-1, 1)
        return (levels * scale).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _QuantizedLinear(torch.nn.Linear):
    kind, rounds_activations = "tensor", True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = _Rounded.apply(self.weight, self.kind)
        return functional.linear(ActQuant.apply(x) if self.rounds_activations else x, weight)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over Python's own help texts, which every installation has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


def make_model(kind: str) -> torch.nn.Module:
    """An untrained model: bitnet, llama, qwen or qwen-binary."""
    torch.manual_seed(0)
    if kind == "bitnet":
        return BitNetForCausalLM(BitNetConfig(**SIZES, tie_word_embeddings=True))
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=64, tie_word_embeddings=True))


def train(model: torch.nn.Module, kind: str, tokens: torch.Tensor, steps: int) -> None:
    """Train with quantized layers, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != "lm_head":
            module.__class__ = _QuantizedLinear
            module.kind = {"qwen": "group", "qwen-binary": "binary"}.get(kind, "tensor")
            module.rounds_activations = not kind.startswith("qwen")
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        fade = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / 20) * fade
        starts = torch.randint(0, len(tokens) - _WINDOW, (_BATCH,), generator=generator)
        batch = torch.stack([tokens[start : start + _WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def save(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, layout: str, out: Path
) -> None:
    """Write a trained model's checkpoint."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    linear = [
        f"{name}.weight"
        for name, each in model.named_modules()
        if isinstance(each, _QuantizedLinear)
    ]
    dtype = torch.float16 if layout.startswith("qwen") else torch.bfloat16
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    for name in linear:
        stored |= _stored_matrix(name, state[name], layout)
    config = model.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {
        "bitnet-packed": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
        "bitnet-online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
        "llama-packed": {"modules_to_not_convert": ["lm_head"]},
    }.get(layout)
    if config["quantization_config"] is None:
        del config["quantization_config"]
    else:
        config["quantization_config"]["quant_method"] = "bitnet"
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(contiguous, out / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(out)
    GenerationConfig(bos_token_id=0, eos_token_id=1, do_sample=False).save_pretrained(out)


def _stored_matrix(name: str, master: torch.Tensor, layout: str) -> dict[str, torch.Tensor]:
    if layout.startswith("qwen"):
        kind = "binary" if layout == "qwen-binary" else "group"
        return {name: _Rounded.apply(master, kind).half()}
    if layout == "bitnet-online":
        return {name: master.to(torch.bfloat16)}
    # bitnet-packed is what bitnet-online becomes, so its levels are those of the bfloat16 masters.
    master = master.to(torch.bfloat16).float() if layout == "bitnet-packed" else master
    scale = master.abs().mean().clamp(min=1e-5)
    levels = (master / scale).round().clamp(-1, 1)
    scale = scale.to(torch.bfloat16)
    if layout == "llama-plain":
        return {name: levels.to(torch.bfloat16) * scale}
    factor = 1 / scale if layout == "llama-packed" else scale
    return {name: pack_weights(levels), f"{name}_scale": factor.reshape(1)}


def write_checkpoints(folder: Path, kinds: tuple[str, ...], steps: int) -> dict[str, Path]:
    """Train models of these kinds and write every layout of each; folders by layout."""
    tokenizer = make_tokenizer()
    tokens = torch.tensor(tokenizer(TEXT, add_special_tokens=False).input_ids)
    written = {}
    for kind in kinds:
        model = make_model(kind)
        train(model, kind, tokens, steps)
        for layout in LAYOUTS[kind]:
            save(model, tokenizer, layout, folder / layout)
            written[layout] = folder / layout
    return written


def main() -> None:
    """Write the checkpoints that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=LAYOUTS, action="append", help="default: every one")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    for layout, folder in write_checkpoints(
        arguments.folder, tuple(arguments.kind or LAYOUTS), arguments.steps
    ).items():
        print(f"{layout}: {folder}")


if __name__ == "__main__":
    main()
