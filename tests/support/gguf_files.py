"""GGUF files of checkpoints, written by the gguf library as llama.cpp names and orders rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.checkpoint import Checkpoint
from onnx_ternary.building.config import Quantization
from onnx_ternary.building.layouts import read_matrix
from onnx_ternary.building.reference import dense_columns
from onnx_ternary.index.levels import TernaryWeight

Q1_0 = 41
_ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", gguf.MODEL_ARCH.LLAMA),
    "Qwen3ForCausalLM": ("qwen3", gguf.MODEL_ARCH.QWEN3),
    "BitNetForCausalLM": ("bitnet-b1.58", gguf.MODEL_ARCH.BITNET),
}


def write_gguf(
    path: Path,
    checkpoint: Path,
    kind: int,
    *,
    table: int = gguf.GGMLQuantizationType.F32,
    values: dict[str, Any] | None = None,
    extra: dict[str, int] | None = None,
) -> Path:
    """Write a checkpoint as a GGUF file.

    Args:
        path: of the file.
        checkpoint: a folder.
        kind: type of the layers' matrices whose rows it fits; the others are F16.
        table: type of the table and the head.
        values: more metadata.
        extra: more tensors, 256 zero bytes of the given type each.
    """
    source = Checkpoint(checkpoint)
    config = source.json("config.json")
    name, architecture = _ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, name)
    _add_configuration(writer, config)
    writer.add_token_list([f"word {number}" for number in range(config["vocab_size"])])
    for key, value in (values or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for each in source:
        if each.endswith("_scale"):
            continue
        array = _dense(source, config, each)
        if name == "llama":
            array = _permuted(each, array, config)
        renamed = names.get_name(_library_name(each), try_suffixes=(".weight",))
        assert renamed is not None, each
        is_end = each in ("model.embed_tokens.weight", "lm_head.weight")
        _add(writer, renamed, array, table if is_end else kind)
    for each, number in (extra or {}).items():
        writer.add_tensor(each, np.zeros((1, 256), np.int8), (1, 256), number)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encode_q1_0(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Rows of one magnitude per 128 weights as blocks of 18 bytes, bit by bit."""
    blocks = array.reshape(len(array), -1, 128)
    encoded = np.zeros((*blocks.shape[:2], 18), np.uint8)
    scales = np.abs(blocks).max(axis=-1).astype("<f2")
    assert np.array_equal(np.abs(blocks), np.broadcast_to(scales[..., None], blocks.shape))
    encoded[..., :2] = scales[..., None].view(np.uint8)
    for weight in range(128):
        encoded[..., 2 + weight // 8] |= (blocks[..., weight] > 0).astype(np.uint8) << weight % 8
    return encoded.reshape(len(array), -1)


def _add_configuration(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _library_name(name: str) -> str:
    """The first BitNet's names for the sub-norms, which the library knows."""
    attention = name.replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
    return attention.replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm")


def _dense(source: Checkpoint, config: dict[str, Any], name: str) -> NDArray[Any]:
    if source.dtype(name) != np.uint8:
        return source.read(name).astype(np.float32)
    found = config["quantization_config"]
    quantization = Quantization(found.get("linear_class", "bitlinear"), "offline", ("lm_head",))
    weight = read_matrix(source, name, quantization)
    assert isinstance(weight, TernaryWeight)
    return dense_columns(weight, slice(None)).T.astype(np.float32)


def _permuted(name: str, array: NDArray[Any], config: dict[str, Any]) -> NDArray[Any]:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return array
    halves = array.reshape(config[count], 2, -1, array.shape[1])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _add(writer: gguf.GGUFWriter, name: str, array: NDArray[Any], kind: int) -> None:
    if array.ndim == 1:
        writer.add_tensor(name, array)
    elif kind == Q1_0:
        # The library refuses bytes of a type it does not know.
        data = encode_q1_0(array).view(np.int8)
        writer.add_tensor(name, data, array.shape, Q1_0)  # type: ignore[arg-type]
    else:
        known = gguf.GGMLQuantizationType(kind)
        block, _ = gguf.GGML_QUANT_SIZES[known]
        known = gguf.GGMLQuantizationType.F16 if array.shape[1] % block else known
        data = gguf.quantize(np.ascontiguousarray(array), known)
        writer.add_tensor(name, data, raw_dtype=known)
