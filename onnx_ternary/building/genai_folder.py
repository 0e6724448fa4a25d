"""What onnxruntime-genai wants beside model.onnx: its configuration, a tokenizer, the op's library.

The library is a copy, and `custom_ops_library` its bare name: since version 0.16 onnxruntime-genai
refuses a path that leads out of the model's folder, links included.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_ternary.building.config import DecoderConfig
from onnx_ternary.building.graph import past_names, present_names
from onnx_ternary.building.model_folder import CONFIG
from onnx_ternary.building.source import Source
from onnx_ternary.errors import ModelError
from onnx_ternary.native.library_path import get_library_path

MODEL = "model.onnx"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# A cache is allocated for max_length tokens before the first one; a program can ask for more.
_DEFAULT_LENGTH = 4096


def write_folder(checkpoint: Source, config: DecoderConfig, folder: Path) -> list[str]:
    """Write everything but the model into a folder.

    Returns:
        Notes for the report.

    Raises:
        ModelError: if a file cannot be read or written, or config.json names no tokens.
    """
    notes = []
    try:
        copied = copy_tokenizer(checkpoint.tokenizer, folder)
        library = copy_library(folder)
        if config.pooling is None:  # onnxruntime-genai runs models that write
            content = genai_config(checkpoint, config, library)
            (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"'{folder}' cannot be written: {error.strerror or error}.") from error
    if "tokenizer.json" not in copied and "tokenizer.model" not in copied:
        notes.append(
            f"'{checkpoint.tokenizer}' has neither tokenizer.json nor tokenizer.model, so the "
            "folder runs with token numbers only; copy the tokenizer's files into it"
        )
    return notes


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copy what there is of `TOKENIZER_FILES`; return their names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names


def copy_library(folder: Path) -> str:
    """Copy the op's library; return its bare name."""
    library = Path(get_library_path())
    shutil.copyfile(library, folder / library.name)
    return library.name


def genai_config(checkpoint: Source, config: DecoderConfig, library: str) -> dict[str, Any]:
    """The content of genai_config.json."""
    values = checkpoint.json("config.json")
    generation = checkpoint.json("generation_config.json", required=False)
    eos = _token(values, generation, "eos_token_id")
    if eos is None:
        raise ModelError("config.json: there is no eos_token_id, so generated text would not end.")
    pad = _token(values, generation, "pad_token_id")
    bos = _token(values, generation, "bos_token_id")
    first_eos = eos[0] if isinstance(eos, list) else eos
    return {
        "model": {
            # A type without an architecture of its own: a decoder with these inputs and outputs.
            "type": "llama",
            "bos_token_id": first_eos if bos is None else bos,
            "eos_token_id": eos,
            "pad_token_id": first_eos if pad is None else pad,
            "context_length": config.max_length,
            "vocab_size": config.vocabulary,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "custom_ops_library": library,
                    "provider_options": [],
                },
                "filename": MODEL,
                "head_size": config.head_dim,
                "hidden_size": config.hidden,
                "num_attention_heads": config.heads,
                "num_hidden_layers": config.layers,
                "num_key_value_heads": config.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": past_names(0)[0].replace("0", "%d"),
                    "past_value_names": past_names(0)[1].replace("0", "%d"),
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": present_names(0)[0].replace("0", "%d"),
                    "present_value_names": present_names(0)[1].replace("0", "%d"),
                },
            },
        },
        "search": _search(generation, config),
    }


def _search(generation: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    search: dict[str, Any] = {
        "do_sample": bool(generation.get("do_sample", False)),
        "max_length": min(config.max_length, _DEFAULT_LENGTH),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    for name in ("repetition_penalty", "temperature", "top_k", "top_p"):
        if isinstance(generation.get(name), (int, float)):
            search[name] = generation[name]
    return search


def _token(values: Mapping[str, Any], generation: Mapping[str, Any], name: str) -> Any:
    """A token's number; generation_config.json knows all the tokens that end a text."""
    for each in (generation, values):
        if each.get(name) is not None:
            return each[name]
    return None
