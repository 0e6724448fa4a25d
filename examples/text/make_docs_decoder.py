"""Train the ternary text example and write docs_decoder.onnx, a graph that takes strings.

A BitNet-style decoder of two layers that continues the Python language's own documentation
(`pydoc_data.topics`, part of every Python). Its projections are trained the BitNet b1.58 way:
weights are rounded to {-s, 0, +s} with s the mean magnitude, and gradients pass straight through
the rounding. Embedding and output layer share one float16 table. The export stores the ternary
codes as int8, as quantization-aware training usually does; a tokenizer operator of
onnxruntime-extensions is put in front:

    text (batch,) string -> GPT2Tokenizer -> token_ids, attention_mask (batch, length) int64
                         -> decoder       -> logits (batch, length, VOCABULARY) float32

    pip install ".[examples]"
    python examples/text/make_docs_decoder.py [--output docs_decoder.onnx]

It takes about three minutes on one core. The topics of `docs_text.HELD_OUT` are not trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import onnx
import torch
from docs_text import split
from onnx import TensorProto, compose, helper
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 512
WIDTH = 128
HIDDEN = 256
HEADS = 4
LAYERS = 2
CONTEXT = 128
BATCH_SIZE = 16
STEPS = 1200
LEARNING_RATE = 4e-3
OPSET = 18
OPSETS = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.contrib", 1)]
IR_VERSION = 9  # onnxruntime 1.17 reads no later one


class TernaryLinear(nn.Module):
    """A linear layer without bias; ternary in the forward pass, float in the backward pass."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / math.sqrt(in_features))

    def codes_and_scale(self) -> tuple[Tensor, Tensor]:
        """Codes (N, K) in {-1, 0, 1} and one scale, the mean magnitude (arXiv 2402.17764)."""
        scale = self.weight.abs().mean().clamp(min=1e-5)
        return (self.weight / scale).round().clamp(-1, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), float32."""
        codes, scale = self.codes_and_scale()
        straight_through = self.weight + (codes * scale - self.weight).detach()
        return functional.linear(x, straight_through)


class StoredTernaryLinear(nn.Module):
    """A trained `TernaryLinear` as it is exported: int8 codes and a scale."""

    def __init__(self, trained: TernaryLinear) -> None:
        super().__init__()
        codes, scale = trained.codes_and_scale()
        self.register_buffer("codes", codes.detach().to(torch.int8))
        self.register_buffer("scale", scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), float32."""
        return functional.linear(x, self.codes.to(torch.float32) * self.scale)


class Block(nn.Module):
    """Causal attention and a squared-ReLU feed-forward network, both behind an RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.queries_keys_values = TernaryLinear(WIDTH, 3 * WIDTH)
        self.attention_out = TernaryLinear(WIDTH, WIDTH)
        self.feed_forward_norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.up = TernaryLinear(WIDTH, HIDDEN)
        self.down_norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.down = TernaryLinear(HIDDEN, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map (batch, length, WIDTH) to the same; bias (HEADS, length, length) masks and ages."""
        batch, length = x.shape[0], x.shape[1]
        projected = self.queries_keys_values(self.attention_norm(x))
        q, k, v = (
            part.reshape(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in projected.split(WIDTH, dim=-1)
        )
        weights = functional.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + self.attention_out(mixed)
        hidden = functional.relu(self.up(self.feed_forward_norm(x))).square()
        return x + self.down(self.down_norm(hidden))


class Decoder(nn.Module):
    """Token ids (batch, length) to logits (batch, length, VOCABULARY)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        # ALiBi (arXiv 2108.12409): no positions to store, any length.
        self.register_buffer("slopes", 2.0 ** -torch.arange(0, 2 * HEADS, 2).float())

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits of the token after each one."""
        table = self.table.to(torch.float32)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        age = (positions[:, None] - positions[None, :]).to(torch.float32)
        bias = torch.where(age < 0, torch.full_like(age, -1e9), 0.0)
        bias = bias - self.slopes[:, None, None] * age.clamp(min=0)
        x = functional.embedding(token_ids, table)
        for block in self.blocks:
            x = block(x, bias)
        return functional.linear(self.norm(x), table)

    def as_stored(self) -> Decoder:
        """The same model with what is exported: int8 codes, a float16 table."""
        for block in self.blocks:
            for name, layer in list(block.named_children()):
                if isinstance(layer, TernaryLinear):
                    setattr(block, name, StoredTernaryLinear(layer))
        table = self.table.detach().to(torch.float16)
        del self.table
        self.register_buffer("table", table)
        return self.eval()


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level byte-pair encoding, as GPT-2's, that knows every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train(tokens: Tensor) -> Decoder:
    """Train on one long text (num_tokens,) int64."""
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    started = time.perf_counter()
    for step in range(STEPS):
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH_SIZE,))
        windows = tokens[starts[:, None] + torch.arange(CONTEXT + 1)]
        logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{STEPS}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    return model


def tokenizer_model(tokenizer: Tokenizer) -> onnx.ModelProto:
    """Strings to token ids, padded to the longest text of the batch."""
    bpe = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    names = ["token_ids", "attention_mask"]
    node = helper.make_node(
        "GPT2Tokenizer",
        ["text"],
        names,
        name="tokenizer",
        domain="ai.onnx.contrib",
        vocab=json.dumps(bpe["vocab"], ensure_ascii=False),
        merges="\n".join(["#version: 0.2", *merges]),
        padding_length=-1,
    )
    graph = helper.make_graph(
        [node],
        "tokenizer",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in names
        ],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)


def decoder_model(model: Decoder) -> onnx.ModelProto:
    """The trained decoder as ONNX, without the exporter's notes on the machine it ran on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        torch.onnx.export(
            model.as_stored(),
            (torch.ones(2, 8, dtype=torch.int64),),
            path,
            input_names=["ids"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},),
        )
        exported = onnx.load(path)
    for node in exported.graph.node:
        del node.metadata_props[:]
    for value in (*exported.graph.value_info, *exported.graph.input, *exported.graph.output):
        del value.metadata_props[:]
    del exported.graph.metadata_props[:]
    exported.ir_version = IR_VERSION
    return exported


def main() -> None:
    """Train, export and put the tokenizer in front."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).with_name("docs_decoder.onnx")
    parser.add_argument("--output", type=Path, default=default)
    output: Path = parser.parse_args().output
    torch.manual_seed(0)
    torch.set_num_threads(1)

    texts, _ = split()
    tokenizer = train_tokenizer(texts)
    tokens = torch.tensor([token for text in texts for token in tokenizer.encode(text).ids])
    print(f"{len(texts)} topics, {len(tokens)} tokens")
    decoder = decoder_model(train(tokens))
    merged = compose.merge_models(
        tokenizer_model(tokenizer),
        decoder,
        io_map=[("token_ids", "ids")],
        outputs=["logits", "token_ids", "attention_mask"],
    )
    merged.graph.name = "docs_decoder"
    del merged.opset_import[:]  # both parts' import of the standard operators
    merged.opset_import.extend(OPSETS)
    onnx.checker.check_model(merged)
    onnx.save(merged, output)
    print(f"wrote {output}, {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
