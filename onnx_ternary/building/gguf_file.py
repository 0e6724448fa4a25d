"""A GGUF file as a checkpoint: names, configuration and order of rows as transformers has them.

1. TQ1_0, TQ2_0 and other types the gguf library knows are read by it. A ternary block is 256 levels
   and a float16 scale, so float16 holds its weights exactly.
2. Q1_0, which the library does not know: 128 weights in 18 bytes, a little-endian float16 scale and
   128 bits, of which bit i % 8 of byte i / 8 says whether weight i is plus or minus the scale.
   Source: ggml's block_q1_0 as described in ggml-org/llama.cpp#21273; type 41.
3. llama.cpp rotates neighbors where transformers rotates the halves of a head, and stores the query
   and key rows of Llama models in that order: row (half, i) of a head as row (i, half). Here they
   are put back. Qwen3 and BitNet b1.58 files keep transformers' order.
4. A file does not say how a model was trained. BitNet b1.58 is W1.58A8 by definition; for others
   `--activation int8` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.gguf_header import MAGIC, GgufTensor, read_header
from onnx_ternary.building.source import Source, read_json
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: _BFLOAT16}
_TQ1_0, _TQ2_0, _Q1_0 = 34, 35, 41
_Q1_0_WEIGHTS, _Q1_0_BYTES = 128, 18
# Ternary types that neither the library nor this file reads.
_REFUSED = {36: "I2_S of microsoft/BitNet", 42: "Q2_0"}


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How a llama.cpp architecture is called in transformers."""

    name: str
    gate: str
    permuted: bool = False
    quantized: bool = False


_ARCHITECTURES = {
    "llama": _Architecture("LlamaForCausalLM", "silu", permuted=True),
    "qwen3": _Architecture("Qwen3ForCausalLM", "silu"),
    "bitnet-25": _Architecture("BitNetForCausalLM", "relu2", quantized=True),
    "bitnet-b1.58": _Architecture("BitNetForCausalLM", "relu2", quantized=True),
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def is_gguf(path: Path) -> bool:
    """Whether an ordinary file begins as a GGUF file does, or is called so."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(4) == MAGIC
    except OSError:
        return False


class GgufFile(Source):
    """The tensors and the configuration of one GGUF file.

    Args:
        path: of the file.
        tokenizer: the folder with the tokenizer's files; a GGUF file has them in a form of its own
            that onnxruntime-genai does not read.

    Raises:
        ModelError: if the file cannot be read, breaks the format, or holds something that is not
            implemented; if there is no tokenizer folder, or the gguf library is missing.
    """

    def __init__(
        self, path: str | PathLike[str], tokenizer: str | PathLike[str] | None = None
    ) -> None:
        self.folder = Path(path)
        check_name(self.folder)
        if tokenizer is None:
            raise ModelError(
                f"'{self.folder}' is a GGUF file, whose tokenizer onnxruntime-genai does not read; "
                "give the folder with tokenizer.json: --tokenizer FOLDER."
            )
        self.tokenizer = Path(tokenizer)
        check_name(self.tokenizer)
        if not self.tokenizer.is_dir():
            raise ModelError(f"'{self.tokenizer}' is not a folder; expected a tokenizer's files.")
        self._library = _library()
        self._header = read_header(self.folder)
        self._prefix = self._architecture_name()
        self._architecture = _ARCHITECTURES[self._prefix]
        self._refuse_what_is_not_implemented()
        self._tensors = {self._renamed(name): each for name, each in self._header.tensors.items()}
        self._row_bytes = {
            name: self._checked_row_bytes(each) for name, each in self._tensors.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """The configuration, from metadata; other files from the tokenizer's folder.

        Raises:
            ModelError: as `Source.json`, or if metadata are missing.
        """
        if name == "config.json":
            return self._config()
        return read_json(self.tokenizer / name, required=required)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raise ModelError if there is no such tensor."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """float32, float16 or bfloat16, whichever holds the tensor's numbers exactly.

        Raises:
            ModelError: if there is no such tensor.
        """
        kind = self._tensor(name).kind
        if kind in (_TQ1_0, _TQ2_0, _Q1_0):
            return np.dtype(np.float16)
        dtype: np.dtype[Any] = _PLAIN.get(kind, np.dtype(np.float32)).newbyteorder("=")
        return dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """A tensor, or some of its rows, as transformers orders them.

        Raises:
            ModelError: if there is no such tensor, or it cannot be read.
        """
        tensor = self._tensor(name)
        num_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        order = self._order(name, num_rows)[start:stop]
        try:
            mapped = np.memmap(
                self.folder, np.uint8, "r", tensor.offset, (num_rows, self._row_bytes[name])
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"'{self.folder}' cannot be read: {error}.") from error
        values = self._decoded(mapped[order], tensor.kind).astype(self.dtype(name), copy=False)
        return values if len(tensor.shape) > 1 else values.reshape(-1)

    def _decoded(self, rows: NDArray[np.uint8], kind: int) -> NDArray[Any]:
        """Rows of bytes as rows of numbers."""
        if kind in _PLAIN:
            return rows.view(_PLAIN[kind])
        if kind == _Q1_0:
            return _decoded_q1_0(rows)
        kinds = self._library.GGMLQuantizationType
        values: NDArray[Any] = self._library.dequantize(rows, kinds(kind))
        return values

    def _order(self, name: str, num_rows: int) -> NDArray[np.int64]:
        """Which row of the file is row i of transformers' tensor."""
        order = np.arange(num_rows)
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"}.get(name.split(".")[-2])
        if not self._architecture.permuted or heads is None:
            return order
        count = self._positive(f"attention.{heads}", self._positive("attention.head_count"))
        if num_rows % (2 * count):
            raise ModelError(
                f"Tensor '{name}' of '{self.folder}' has {num_rows} rows, expected a multiple of "
                f"two for each of {count} heads."
            )
        halves: NDArray[np.int64] = order.reshape(count, -1, 2).swapaxes(1, 2).reshape(num_rows)
        return halves

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise ModelError(
                f"'{self.folder}' has no tensor '{name}', which its architecture needs."
            )
        return self._tensors[name]

    def _renamed(self, name: str) -> str:
        """Transformers' name of a tensor; an unknown one keeps its own."""
        base, _, kind = name.rpartition(".")
        if base in _TOP_NAMES:
            return f"{_TOP_NAMES[base]}.{kind}"
        parts = base.split(".", 2)
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
            return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
        return name

    def _checked_row_bytes(self, tensor: GgufTensor) -> int:
        """Bytes of a row of a tensor that lies within the file.

        Raises:
            ModelError: if it does not, or its type is not read.
        """
        block, num_bytes = self._block(tensor)
        num_columns = tensor.shape[-1]
        if num_columns % block:
            raise ModelError(
                f"Tensor '{tensor.name}' of '{self.folder}' has rows of {num_columns}, which its "
                f"type's blocks of {block} do not fill."
            )
        row_bytes = num_columns // block * num_bytes
        num_rows = 1
        for size in tensor.shape[:-1]:
            num_rows *= size
        if tensor.offset + num_rows * row_bytes > self._header.num_bytes:
            raise ModelError(
                f"Tensor '{tensor.name}' does not lie within '{self.folder}'; the file is cut "
                "short, download it again."
            )
        return row_bytes

    def _block(self, tensor: GgufTensor) -> tuple[int, int]:
        """Weights of a block, and its bytes."""
        if tensor.kind in _PLAIN:
            return 1, _PLAIN[tensor.kind].itemsize
        if tensor.kind == _Q1_0:
            return _Q1_0_WEIGHTS, _Q1_0_BYTES
        known = {int(each): sizes for each, sizes in self._library.GGML_QUANT_SIZES.items()}
        if tensor.kind in _REFUSED or tensor.kind not in known:
            kind = _REFUSED.get(tensor.kind, f"number {tensor.kind}")
            raise ModelError(
                f"Tensor '{tensor.name}' of '{self.folder}' is of type {kind}, which is not "
                "implemented; take a file of TQ1_0, TQ2_0 or Q1_0, or the safetensors checkpoint."
            )
        block, num_bytes = known[tensor.kind]
        return int(block), int(num_bytes)

    def _architecture_name(self) -> str:
        found = self._header.values.get("general.architecture")
        if found not in _ARCHITECTURES:
            raise ModelError(
                f"'{self.folder}': architecture {found!r} is not implemented; expected one of "
                f"{', '.join(_ARCHITECTURES)}."
            )
        return str(found)

    def _refuse_what_is_not_implemented(self) -> None:
        values = self._header.values
        head_dim = self._head_dim()
        scaling = self._value("rope.scaling.type")
        refused = {
            "split.count": (values.get("split.count"), (None, 0, 1)),
            f"{self._prefix}.expert_count": (self._value("expert_count"), (None, 0)),
            f"{self._prefix}.attention.sliding_window": (
                self._value("attention.sliding_window"),
                (None, 0),
            ),
            f"{self._prefix}.attention.value_length": (
                self._value("attention.value_length"),
                (None, head_dim),
            ),
            f"{self._prefix}.rope.dimension_count": (
                self._value("rope.dimension_count"),
                (None, head_dim),
            ),
            f"{self._prefix}.rope.scaling.type": (scaling, (None, "none", "linear")),
        }
        for key, (found, allowed) in refused.items():
            if found not in allowed:
                raise ModelError(
                    f"'{self.folder}': {key} = {found!r} is not implemented, expected "
                    f"{allowed[-1]!r} or none; build from the safetensors checkpoint."
                )
        if "rope_freqs.weight" in self._header.tensors:
            raise ModelError(
                f"'{self.folder}': rope_freqs.weight, the RoPE scaling of Llama 3, is not "
                "implemented for GGUF files; build from the safetensors checkpoint."
            )

    def _value(self, key: str) -> Any:
        return self._header.values.get(f"{self._prefix}.{key}")

    def _positive(self, key: str, default: int | None = None) -> int:
        found = self._value(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 2**31:
            raise ModelError(
                f"'{self.folder}': {self._prefix}.{key} is {found!r}, expected a positive integer."
            )
        return found

    def _head_dim(self) -> int:
        heads = self._positive("attention.head_count")
        return self._positive("attention.key_length", self._positive("embedding_length") // heads)

    def _config(self) -> dict[str, Any]:
        heads = self._positive("attention.head_count")
        vocabulary, *_ = self.shape("model.embed_tokens.weight")
        rope: dict[str, Any] = {"rope_type": "default"}
        if self._value("rope.scaling.type") == "linear":
            rope = {"rope_type": "linear", "factor": self._value("rope.scaling.factor")}
        config = {
            "architectures": [self._architecture.name],
            "hidden_act": self._architecture.gate,
            "num_hidden_layers": self._positive("block_count"),
            "hidden_size": self._positive("embedding_length"),
            "intermediate_size": self._positive("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._positive("attention.head_count_kv", heads),
            "head_dim": self._head_dim(),
            "vocab_size": vocabulary,
            "max_position_embeddings": self._positive("context_length"),
            "rms_norm_eps": self._value("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "lm_head.weight" not in self,
            "rope_parameters": {**rope, "rope_theta": self._value("rope.freq_base") or 10000.0},
        }
        for name in ("bos", "eos"):
            config[f"{name}_token_id"] = self._header.values.get(f"tokenizer.ggml.{name}_token_id")
        padding = self._header.values.get("tokenizer.ggml.padding_token_id")
        config["pad_token_id"] = padding
        if self._architecture.quantized:
            config["quantization_config"] = {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "offline",
            }
        return config


def _decoded_q1_0(rows: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(rows, bytes) to (rows, weights)."""
    blocks = rows.reshape(len(rows), -1, _Q1_0_BYTES)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float16)
    bits = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little")
    return np.where(bits == 1, scales, -scales).reshape(len(rows), -1)


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "Reading a GGUF file needs the gguf library; install it with "
            "'pip install onnx-ternary[genai]'."
        ) from error
    library: ModuleType = gguf
    return library
