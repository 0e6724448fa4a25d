"""Checkpoints with random weights in the file layouts that trained ones have; numpy only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Layout = Literal[
    "bitnet-packed",  # autobitlinear offline: bitnet-b1.58-2B-4T
    "bitnet-online",  # float masters: bitnet-b1.58-2B-4T-bf16
    "llama-packed",  # bitlinear: Falcon-E, Llama3-8B-1.58
    "llama-plain",  # ternary per tensor as it is: Falcon-E, revision bfloat16
    "llama-shards",  # one scale per shard of rows: TriLM
    "qwen-groups",  # groups of 128, head and table ternary and tied: Ternary Bonsai
    "qwen-binary",  # the same, binary: Bonsai
]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_CLASSES = {"bitnet": "BitNetForCausalLM", "llama": "LlamaForCausalLM", "qwen": "Qwen3ForCausalLM"}
_QUANTIZATION: dict[str, dict[str, str]] = {
    "bitnet-packed": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "bitnet-online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "llama-packed": {},
}


def write_checkpoint(
    folder: Path,
    layout: Layout,
    *,
    seed: int = 0,
    shards: int = 1,
    change: Callable[[dict[str, Any], dict[str, NDArray[Any]]], None] | None = None,
    **config: Any,
) -> Path:
    """Write config.json and safetensors; return the folder.

    Args:
        folder: made if it is missing.
        layout: of the matrices.
        seed: of the numbers.
        shards: files the tensors are spread over.
        change: called with the configuration and the tensors before they are written.
        config: entries of config.json that differ from `SIZES`.
    """
    values = configuration(layout) | config
    tensors = _Tensors(values, layout, np.random.default_rng(seed)).all()
    if change is not None:
        change(values, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def configuration(layout: Layout) -> dict[str, Any]:
    """The content of config.json."""
    kind = layout.split("-")[0]
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "hidden_act": "relu2" if kind == "bitnet" else "silu",
        "tie_word_embeddings": kind != "llama",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        **SIZES,
    }
    if layout in _QUANTIZATION:
        values["quantization_config"] = {"quant_method": "bitnet", **_QUANTIZATION[layout]}
    return values


def pack_levels(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Levels (N, K), N a multiple of 4, as transformers packs them."""
    first, second, third, fourth = np.split((levels + 1).astype(np.uint8), 4)
    return first | second << 2 | third << 4 | fourth << 6


class _Tensors:
    """All tensors of a checkpoint, in the order a decoder uses them."""

    def __init__(self, config: dict[str, Any], layout: Layout, rng: np.random.Generator) -> None:
        self._config = config
        self._layout = layout
        self._rng = rng
        self._made: dict[str, NDArray[Any]] = {}

    def all(self) -> dict[str, NDArray[Any]]:
        config = self._config
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        q = config["num_attention_heads"] * config["head_dim"]
        kv = config["num_key_value_heads"] * config["head_dim"]
        shape = (config["vocab_size"], hidden)
        if self._layout.startswith("qwen"):
            self._matrix("model.embed_tokens", *shape)
        else:
            self._float("model.embed_tokens.weight", shape, 1.0)
            if not config["tie_word_embeddings"]:
                self._float("lm_head.weight", shape, hidden**-0.5)
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            for name, (N, K) in {
                "self_attn.q_proj": (q, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, q),
                "mlp.gate_proj": (ffn, hidden),
                "mlp.up_proj": (ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
            }.items():
                self._matrix(f"{prefix}.{name}", N, K)
            gains = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
            if self._layout.startswith("bitnet"):
                gains |= {"self_attn.attn_sub_norm": q, "mlp.ffn_sub_norm": ffn}
            if self._layout.startswith("qwen"):
                gains |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), config["head_dim"])
            for name, size in gains.items():
                self._gain(f"{prefix}.{name}.weight", size)
        self._gain("model.norm.weight", hidden)
        return self._made

    def _gain(self, name: str, size: int) -> None:
        self._made[name] = self._rng.uniform(0.5, 1.5, size).astype(BFLOAT16)

    def _float(self, name: str, shape: tuple[int, int], scale: float) -> None:
        values = self._rng.standard_normal(shape) * scale
        self._made[name] = values.astype(BFLOAT16)

    def _matrix(self, name: str, N: int, K: int) -> None:
        rng, layout = self._rng, self._layout
        if layout == "bitnet-online":
            self._float(f"{name}.weight", (N, K), K**-0.5)
            return
        choices = [-1, 1] if layout == "qwen-binary" else [-1, 0, 1]
        levels = rng.choice(np.array(choices, np.int8), (N, K))
        scale = rng.uniform(0.8, 1.2) * (1.5 / K) ** 0.5
        if layout.endswith("packed"):
            stored = 1 / scale if layout == "llama-packed" else scale
            self._made[f"{name}.weight"] = pack_levels(levels)
            self._made[f"{name}.weight_scale"] = np.array([stored], BFLOAT16)
            return
        scales = np.full((N, K), scale)
        if layout == "llama-shards":
            scales[N // 2 :] *= 1.25
        if layout.startswith("qwen"):
            scales *= np.repeat(rng.uniform(0.5, 1.5, (N, K // 128)), 128, axis=1)
        dtype = np.dtype(np.float16) if layout.startswith("qwen") else BFLOAT16
        self._made[f"{name}.weight"] = (levels * scales.astype(dtype)).astype(dtype)
