"""Make a checkpoint of real size with random levels, and measure what building it takes.

    python benchmarks/bench_genai.py make CHECKPOINT [--preset bitnet-2b] [--layers N]
    python benchmarks/bench_genai.py build CHECKPOINT FOLDER [OPTION of onnx-ternary build ...]
    onnx-ternary bench --genai FOLDER [--against FOLDER] [--threads N]

`make` writes packed uint8 as bitnet-b1.58-2B-4T ships it: random levels have the size and the speed
of trained ones, and say nothing. `build` measures a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from make_bitnet import PRESETS, Shape
from numpy.typing import NDArray
from safetensors.numpy import save_file

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Bytes of four levels, none of them the unused code 3.
BYTES = np.array(
    [byte for byte in range(256) if all(byte >> 2 * i & 3 != 3 for i in range(4))], np.uint8
)


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, N and K of a layer's products."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "self_attn.q_proj", q, shape.hidden
    yield "self_attn.k_proj", kv, shape.hidden
    yield "self_attn.v_proj", kv, shape.hidden
    yield "self_attn.o_proj", shape.hidden, q
    yield "mlp.gate_proj", shape.ffn, shape.hidden
    yield "mlp.up_proj", shape.ffn, shape.hidden
    yield "mlp.down_proj", shape.hidden, shape.ffn


def layer_tensors(shape: Shape, layer: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Tensors of one layer, by name."""
    prefix = f"model.layers.{layer}"
    tensors: dict[str, NDArray[Any]] = {}
    for name, N, K in matrices(shape):
        packed = BYTES[rng.integers(0, len(BYTES), (N // 4, K), np.uint8)]
        tensors[f"{prefix}.{name}.weight"] = packed
        scale = (1.5 / K) ** 0.5
        tensors[f"{prefix}.{name}.weight_scale"] = np.array([scale], BFLOAT16)
    gains = {"input_layernorm": shape.hidden, "post_attention_layernorm": shape.hidden}
    if shape.sub_norms:
        gains |= {"self_attn.attn_sub_norm": shape.heads * shape.head_dim}
        gains |= {"mlp.ffn_sub_norm": shape.ffn}
    for name, size in gains.items():
        tensors[f"{prefix}.{name}.weight"] = np.ones(size, BFLOAT16)
    return tensors


def make(folder: Path, shape: Shape) -> None:
    """Write a checkpoint, one shard a layer."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    weight_map = {}

    def shard(name: str, tensors: dict[str, NDArray[Any]]) -> None:
        save_file(tensors, folder / name)
        weight_map.update(dict.fromkeys(tensors, name))

    for layer in range(shape.layers):
        shard(f"layer-{layer}.safetensors", layer_tensors(shape, layer, rng))
    table = rng.standard_normal((shape.vocabulary, shape.hidden), np.float32)
    ends = {"model.embed_tokens.weight": table.astype(BFLOAT16)}
    ends["model.norm.weight"] = np.ones(shape.hidden, BFLOAT16)
    if not shape.tied:
        ends["lm_head.weight"] = (table * shape.hidden**-0.5).astype(BFLOAT16)
    shard("ends.safetensors", ends)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(configuration(shape), indent=2))


def configuration(shape: Shape) -> dict[str, Any]:
    """config.json of a packed checkpoint."""
    return {
        "architectures": ["BitNetForCausalLM" if shape.sub_norms else "LlamaForCausalLM"],
        "hidden_act": "relu2" if shape.squared_relu else "silu",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.max_length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear" if shape.sub_norms else "bitlinear",
            "quantization_mode": "offline",
        },
    }


def build(arguments: list[str]) -> None:
    """Run 'onnx-ternary build' and print what it took of time, processors and memory."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "onnx_ternary", "build", *arguments], check=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processors, peak memory "
        f"{used.ru_maxrss / 1024:.0f} MB"
    )


def main() -> None:
    """Do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--preset", choices=PRESETS, default="bitnet-2b")
    making.add_argument("--layers", type=int)
    building = commands.add_parser("build")
    building.add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command == "make":
        shape = PRESETS[arguments.preset]
        if arguments.layers:
            shape = replace(shape, layers=arguments.layers)
        make(arguments.folder, shape)
    else:
        build(arguments.arguments)


if __name__ == "__main__":
    main()
