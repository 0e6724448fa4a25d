"""What config.json says about a decoder; whatever this package does not implement is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError

Gate = Literal["silu", "relu2"]
LinearClass = Literal["bitlinear", "autobitlinear"]
QuantizationMode = Literal["offline", "online"]


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What a class of transformers has that another one has not."""

    gate: Gate
    sub_norms: bool = False
    head_norms: bool = False
    default_head_dim: int | None = None


ARCHITECTURES = {
    "BitNetForCausalLM": _Architecture("relu2", sub_norms=True),
    "LlamaForCausalLM": _Architecture("silu"),
    "Qwen3ForCausalLM": _Architecture("silu", head_norms=True, default_head_dim=128),
}


BODIES = {"qwen3": "Qwen3ForCausalLM"}
"""Which of `ARCHITECTURES` is the body of a text embedding model, by its model_type."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """The part quantization_config of a W1.58A8 checkpoint, ``quant_method: bitnet``.

    Attributes:
        linear_class: ``bitlinear`` divides by the stored scale, ``autobitlinear`` multiplies.
        mode: ``online`` checkpoints hold float masters, quantized by their mean magnitude.
        skipped: names of modules that stay float; the head is always one.
    """

    linear_class: LinearClass
    mode: QuantizationMode
    skipped: tuple[str, ...]

    def applies_to(self, name: str) -> bool:
        """Whether a weight is one of the quantized ones."""
        module = name.removesuffix(".weight")
        return not any(module == each or f".{each}." in f".{module}." for each in self.skipped)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        kind: ``default``, ``linear`` or ``llama3``.
        factor: by how much frequencies are divided; 1.0 for ``default``.
        low_freq_factor: of ``llama3``.
        high_freq_factor: of ``llama3``.
        original_length: of ``llama3``, positions the model was trained on.
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def tables(self, head_dim: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines, (length, head_dim / 2), of angles rounded as transformers does."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (1.0 / self.theta ** exponents.astype(np.float64)).astype(np.float32)
        if self.kind == "linear":
            frequencies = frequencies / np.float32(self.factor)
        elif self.kind == "llama3":
            frequencies = self._llama3(frequencies)
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
        return np.cos(angles), np.sin(angles)

    def _llama3(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
        """Long waves are slowed down by the factor, short ones kept, between them blended."""
        turns = self.original_length * frequencies / np.float32(2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0, 1)
        scaled: NDArray[np.float32] = (
            (1 - blend) * frequencies / np.float32(self.factor) + blend * frequencies
        ).astype(np.float32)
        return scaled


@dataclass(frozen=True, slots=True)
class Pooling:
    """How hidden states become the embedding of a text.

    Attributes:
        mode: ``mean`` over the tokens, or the ``last`` one.
        normalize: divide by the Euclidean length.
    """

    mode: Literal["mean", "last"]
    normalize: bool


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes and forms of a decoder.

    Attributes:
        architecture: transformers' class.
        layers: number of decoder layers.
        hidden: width of the residual stream.
        ffn: width of the feed-forward network.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head, a multiple of 16.
        vocabulary: rows of the embedding table.
        max_length: positions the model may see.
        epsilon: of every RMSNorm.
        gate: activation of the feed-forward network.
        sub_norms: an RMSNorm in front of the output and the down projection (BitNet).
        head_norms: an RMSNorm of every query and key head (Qwen3).
        tied: the head is the embedding table.
        rope: rotary position embedding.
        quantization: of W1.58A8 checkpoints, else None.
        pooling: of a model that embeds texts; None for one that writes.
        input_norms: an RMSNorm in front of every product of a layer (BitNet-embedding).
    """

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_length: int
    epsilon: float
    gate: Gate
    sub_norms: bool
    head_norms: bool
    tied: bool
    rope: Rope
    quantization: Quantization | None
    pooling: Pooling | None = None
    input_norms: bool = False

    @property
    def q_size(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key and of the value projection."""
        return self.kv_heads * self.head_dim

    @classmethod
    def read(cls, values: Mapping[str, Any], *, embeds: bool = False) -> DecoderConfig:
        """The configuration in a parsed config.json.

        Args:
            values: of config.json.
            embeds: whether the model embeds texts. Its class has any name then, and model_type
                says what its body is.

        Raises:
            ModelError: naming what is missing or not implemented.
        """
        return _Reader(values, embeds).config()


class _Reader:
    """A reader of config.json that refuses by name what is not implemented."""

    def __init__(self, values: Mapping[str, Any], embeds: bool) -> None:
        self._values = values
        self._embeds = embeds

    def config(self) -> DecoderConfig:
        architecture = self._architecture()
        form = ARCHITECTURES[architecture]
        self._refuse_what_is_not_implemented(form)
        heads, hidden = self._integer("num_attention_heads"), self._integer("hidden_size")
        kv_heads = self._integer("num_key_value_heads", default=heads)
        head_dim = self._integer("head_dim", default=form.default_head_dim or hidden // heads)
        if heads % kv_heads:
            raise _refusal(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
        if head_dim % 16:
            raise _refusal(
                f"head_dim {head_dim} is no multiple of 16, which GroupQueryAttention needs"
            )
        return DecoderConfig(
            architecture=architecture,
            layers=self._integer("num_hidden_layers"),
            hidden=hidden,
            ffn=self._integer("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=self._integer("vocab_size"),
            max_length=self._integer("max_position_embeddings"),
            epsilon=self._number(self._values, "rms_norm_eps", 1e-6),
            gate=form.gate,
            sub_norms=form.sub_norms,
            head_norms=form.head_norms,
            tied=bool(self._values.get("tie_word_embeddings", False)),
            rope=self._rope(),
            quantization=self._quantization(),
        )

    def _architecture(self) -> str:
        if self._embeds:
            kind = self._values.get("model_type")
            if kind not in BODIES:
                raise _refusal(
                    f"model_type {kind!r} is not implemented for text embeddings; expected "
                    f"{', '.join(map(repr, BODIES))}"
                )
            return BODIES[str(kind)]
        found = self._values.get("architectures")
        name = found[0] if isinstance(found, list) and found else None
        if name not in ARCHITECTURES:
            raise _refusal(
                f"architecture {name!r} is not implemented; expected one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        return str(name)

    def _refuse_what_is_not_implemented(self, form: _Architecture) -> None:
        values = self._values
        if values.get("is_causal") is False:
            raise _refusal("is_causal = False is not implemented")
        for name in (
            "attention_bias",
            "mlp_bias",
            "use_sliding_window",
            "use_bidirectional_attention",
        ):
            if values.get(name):
                raise _refusal(f"{name} = {values[name]!r} is not implemented")
        for kind in values.get("layer_types") or ():
            if kind != "full_attention":
                raise _refusal(f"layer_types with {kind!r} is not implemented")
        # Qwen3 names a window that use_sliding_window switches off.
        if values.get("sliding_window") and "use_sliding_window" not in values:
            raise _refusal(f"sliding_window = {values['sliding_window']!r} is not implemented")
        gate = values.get("hidden_act", form.gate)
        if gate != form.gate:
            raise _refusal(f"hidden_act = {gate!r} is not implemented; expected {form.gate!r}")

    def _rope(self) -> Rope:
        values = self._values
        # transformers 5 has one dictionary, earlier versions have two entries.
        found = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(found, Mapping):
            raise _refusal(f"the RoPE parameters are {found!r}, expected an object")
        kind = found.get("rope_type") or found.get("type") or "default"
        theta = self._number(found, "rope_theta", self._number(values, "rope_theta", 10000.0))
        partial = found.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1, 1.0):
            raise _refusal(f"partial_rotary_factor = {partial!r} is not implemented")
        if kind == "default":
            return Rope(theta)
        if kind == "linear":
            return Rope(theta, "linear", self._number(found, "factor"))
        if kind != "llama3":
            raise _refusal(
                f"RoPE type {kind!r} is not implemented; expected default, linear or llama3"
            )
        return Rope(
            theta,
            "llama3",
            self._number(found, "factor"),
            self._number(found, "low_freq_factor"),
            self._number(found, "high_freq_factor"),
            int(self._number(found, "original_max_position_embeddings")),
        )

    def _quantization(self) -> Quantization | None:
        found = self._values.get("quantization_config")
        if not found:
            return None
        method = found.get("quant_method") if isinstance(found, Mapping) else found
        if method != "bitnet":
            raise _refusal(f"quant_method {method!r} is not implemented; expected 'bitnet'")
        if found.get("use_rms_norm"):
            raise _refusal("use_rms_norm, an RMSNorm inside every linear layer, is not implemented")
        linear_class = found.get("linear_class", "bitlinear")
        mode = found.get("quantization_mode", "offline")
        if linear_class not in ("bitlinear", "autobitlinear"):
            raise _refusal(f"linear_class {linear_class!r} is not implemented")
        if mode not in ("offline", "online"):
            raise _refusal(f"quantization_mode {mode!r} is not implemented")
        skipped = found.get("modules_to_not_convert") or ()
        return Quantization(linear_class, mode, ("lm_head", *map(str, skipped)))

    def _integer(self, name: str, default: int | None = None) -> int:
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _refusal(f"{name} = {value!r}, expected a positive integer")
        return value

    @staticmethod
    def _number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
        value = values.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise _refusal(f"{name} = {value!r}, expected a positive number")
        return float(value)


def _refusal(what: str) -> ModelError:
    return ModelError(f"config.json: {what}.")
