"""Build a checkpoint of real size with random levels, and time what onnxruntime-genai makes of it.

    python benchmarks/bench_genai.py make CHECKPOINT [--preset bitnet-2b] [--layers N]
    python benchmarks/bench_genai.py build CHECKPOINT FOLDER [OPTION of onnx-ternary build ...]
    python benchmarks/bench_genai.py run FOLDER [--against FOLDER] [--threads N]

`make` writes packed uint8 as bitnet-b1.58-2B-4T ships it: random levels have the size and the speed
of trained ones, and say nothing. `build` and `run` measure processes of their own. Speeds of two
folders are taken in turns, in one run. Where others use the machine as well, tokens per second of a
processor, with --threads 1, say more than tokens per second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
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
PROMPT_TOKENS, NEW_TOKENS = 64, 16


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


class Model:
    """A model folder in a process of its own."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "serve", str(folder), "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self) -> dict[str, float]:
        """One round: load s, prefill and decode tokens/s, resident and peak MB."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process that runs the model ended")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(folder: Path, threads: int) -> None:
    """Answer every line of standard input with the numbers of one round."""
    import onnxruntime_genai as og

    start = time.perf_counter()
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    load = time.perf_counter() - start
    prompt = np.arange(2, 2 + PROMPT_TOKENS, dtype=np.int32)
    for _ in sys.stdin:
        parameters = og.GeneratorParams(model)
        length = PROMPT_TOKENS + NEW_TOKENS
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, parameters)
        times = [(time.perf_counter(), time.process_time())]
        generator.append_tokens(prompt)
        generator.generate_next_token()
        times.append((time.perf_counter(), time.process_time()))
        for _ in range(NEW_TOKENS - 1):
            generator.generate_next_token()
        times.append((time.perf_counter(), time.process_time()))
        prefill, decode = times[1][0] - times[0][0], times[2][0] - times[1][0]
        work = times[1][1] - times[0][1], times[2][1] - times[1][1]
        status = Path("/proc/self/status").read_text().splitlines()
        resident = int(next(each for each in status if each.startswith("VmRSS")).split()[1])
        found = {
            "load": load,
            "prefill": PROMPT_TOKENS / prefill,
            "decode": (NEW_TOKENS - 1) / decode,
            "prefill_work": PROMPT_TOKENS / work[0],
            "decode_work": (NEW_TOKENS - 1) / work[1],
            "resident": resident / 1024,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(found), flush=True)


def run(folders: list[Path], threads: int, num_rounds: int) -> None:
    """Time folders in turns and print medians."""
    models = [Model(folder, threads) for folder in folders]
    rounds = [[model.measure() for model in models] for _ in range(num_rounds)]
    for model in models:
        model.close()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(
        f"{threads} threads, prompt {PROMPT_TOKENS}, {NEW_TOKENS} new tokens, {num_rounds} rounds"
    )
    print(f"load average {load} on {os.cpu_count()} processors")
    for at, folder in enumerate(folders):
        numbers = [each[at] for each in rounds]
        median = {key: statistics.median(each[key] for each in numbers) for key in numbers[0]}
        print(
            f"{folder}: prefill {median['prefill']:.1f} tokens/s ({median['prefill_work']:.1f} a "
            f"second of a processor), decode {median['decode']:.1f} ({median['decode_work']:.1f}), "
            f"load {median['load']:.1f} s, resident {median['resident']:.0f} MB, peak "
            f"{median['peak']:.0f} MB"
        )


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--preset", choices=PRESETS, default="bitnet-2b")
    making.add_argument("--layers", type=int)
    building = commands.add_parser("build")
    building.add_argument("arguments", nargs=argparse.REMAINDER)
    for name in ("run", "serve"):
        running = commands.add_parser(name)
        running.add_argument("folder", type=Path)
        running.add_argument("--threads", type=int, default=2)
        if name == "run":
            running.add_argument("--against", type=Path)
            running.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.command == "make":
        shape = PRESETS[arguments.preset]
        if arguments.layers:
            shape = replace(shape, layers=arguments.layers)
        make(arguments.folder, shape)
    elif arguments.command == "build":
        build(arguments.arguments)
    elif arguments.command == "serve":
        serve(arguments.folder, arguments.threads)
    else:
        others = [arguments.against] if arguments.against else []
        run([arguments.folder, *others], arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
