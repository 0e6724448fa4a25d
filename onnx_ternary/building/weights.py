"""Every weight of a checkpoint, stored as the decoder's nodes read it, one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.config import DecoderConfig
from onnx_ternary.building.layouts import read_matrix
from onnx_ternary.building.options import BuildOptions
from onnx_ternary.building.source import Source
from onnx_ternary.building.tensor_file import TensorFile, digest
from onnx_ternary.errors import ModelError
from onnx_ternary.index import build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.options import INT8_RULE
from onnx_ternary.schema import Alphabet, OpAttributes, Storage

if TYPE_CHECKING:
    from graph_passes.rewrite.remaining import ACCURACY_LEVEL, BLOCK_SIZE, block_quantizer
else:
    from onnx_ternary.graph_passes.rewrite.remaining import (
        ACCURACY_LEVEL,
        BLOCK_SIZE,
        block_quantizer,
    )

TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
LIKE = "onnx_ternary.like"
"""A float32 scalar: the type of the rows a shared table gives."""

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Ternary:
    """A product for `TernaryIndexedMatMul`.

    Attributes:
        attributes: of the node.
        inputs: names of codes, aux, scale and bias.
        digest: SHA-256 of these tensors.
        scale_rank: 0 for one scale, 1 for one per column, 2 for one per column and group.
        num_bytes: of codes and scale.
        table_digest: SHA-256 of codes and scale, where the embedding reads them too; else empty.
    """

    attributes: OpAttributes
    inputs: tuple[str, str, str, str]
    digest: str
    scale_rank: int
    num_bytes: int
    table_digest: str = ""

    @property
    def scale_kind(self) -> str:
        """What has a scale of its own, for reports."""
        return ("tensor", "column", f"group of {self.attributes.group_size}")[self.scale_rank]


@dataclass(frozen=True, slots=True)
class Float:
    """A product whose matrix stays float32.

    Attributes:
        tensor: its name; (N, K), as checkpoints store matrices.
        K: length of a row.
        N: number of rows.
        reason: why it is not ternary.
    """

    tensor: str
    K: int
    N: int
    reason: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix."""
        return 4 * self.K * self.N


@dataclass(frozen=True, slots=True)
class Blocks:
    """A product for onnxruntime's MatMulNBits.

    Attributes:
        inputs: names of codes, scales and zero points.
        attributes: of the node.
        num_bytes: of the three tensors.
    """

    inputs: tuple[str, str, str]
    attributes: dict[str, int]
    num_bytes: int


Product: TypeAlias = "Ternary | Float | Blocks"


@dataclass(slots=True)
class StoredWeights:
    """What stands in the data file.

    Attributes:
        products: by the name of the checkpoint's weight, products of the layers first.
        table: dtype of the embedding table; float32 where it is the head's index.
        alphabet_storages: storages and alphabets of the ternary products, for the function body.
    """

    products: dict[str, Product] = field(default_factory=dict)
    table: np.dtype[Any] = np.dtype(np.float32)  # noqa: RUF009  a dtype is immutable

    @property
    def shared_table(self) -> Ternary | None:
        """The head, where the embedding reads rows of its index; None where there is a table."""
        head = self.products.get(HEAD)
        return head if isinstance(head, Ternary) and head.table_digest else None


def layer_products(config: DecoderConfig, layer: int) -> dict[str, tuple[int, int]]:
    """K and N of every product of a layer, by the name of its weight."""
    hidden, ffn, q, kv = config.hidden, config.ffn, config.q_size, config.kv_size
    sizes = {
        "self_attn.q_proj": (hidden, q),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (q, hidden),
        "mlp.gate_proj": (hidden, ffn),
        "mlp.up_proj": (hidden, ffn),
        "mlp.down_proj": (ffn, hidden),
    }
    return {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}


def layer_gains(config: DecoderConfig, layer: int) -> dict[str, int]:
    """Length of every RMSNorm weight of a layer, by name."""
    sizes = {"input_layernorm": config.hidden, "post_attention_layernorm": config.hidden}
    if config.sub_norms:
        sizes |= {"self_attn.attn_sub_norm": config.q_size, "mlp.ffn_sub_norm": config.ffn}
    if config.head_norms:
        sizes |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    gains = {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    if config.input_norms:
        products = layer_products(config, layer)
        gains |= {input_norm(name): K for name, (K, _) in products.items()}
    return gains


def input_norm(product: str) -> str:
    """Name of the RMSNorm weight in front of a product, by the name of the product's weight."""
    return f"{product.removesuffix('.weight')}.norm.weight"


def store_weights(
    checkpoint: Source,
    config: DecoderConfig,
    options: BuildOptions,
    file: TensorFile,
    progress: Progress | None = None,
) -> StoredWeights:
    """Store every weight the decoder needs.

    Raises:
        ModelError: if a tensor is missing, unknown or of another shape, or none of the layers'
            matrices is ternary.
    """
    return _Writer(checkpoint, config, options, file, progress).run()


class _Writer:
    def __init__(
        self,
        checkpoint: Source,
        config: DecoderConfig,
        options: BuildOptions,
        file: TensorFile,
        progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._options = options
        self._file = file
        self._progress = progress
        self._stored = StoredWeights()
        self._storage: Storage | None = None

    def run(self) -> StoredWeights:
        config = self._config
        self._refuse_unknown_tensors()
        self._file.add("onnx_ternary.aux", np.zeros(1, np.uint32))
        self._file.add("onnx_ternary.no_bias", np.zeros((), np.float32))
        total = 7 * config.layers + 1
        for layer in range(config.layers):
            for name, shape in layer_products(config, layer).items():
                self._report(name, total)
                self._stored.products[name] = self._product(name, *shape)
            for name, size in layer_gains(config, layer).items():
                self._gain(name, size)
        self._refuse_without_ternary()
        self._gain(NORM, config.hidden)
        cosines, sines = config.rope.tables(config.head_dim, config.max_length)
        self._file.add("cos_cache", cosines)
        self._file.add("sin_cache", sines)
        self._report(TABLE if config.pooling else HEAD, total)
        if config.pooling is not None:
            self._require_shape(TABLE, (config.vocabulary, config.hidden))
            self._table()
        else:
            self._head_and_table()
        if self._progress is not None:
            self._progress("", total, total)
        return self._stored

    def _report(self, name: str, total: int) -> None:
        if self._progress is not None:
            self._progress(name, len(self._stored.products), total)

    def _refuse_unknown_tensors(self) -> None:
        """A tensor nobody reads is a part of the model that would be missing."""
        config = self._config
        known = {TABLE, HEAD, NORM}
        for layer in range(config.layers):
            products = layer_products(config, layer)
            known |= {*products, *layer_gains(config, layer)}
            known |= {f"{name}_scale" for name in products}
        unknown = [
            name
            for name in self._checkpoint
            if name not in known and not name.endswith("rotary_emb.inv_freq")
        ]
        if unknown:
            raise ModelError(
                f"'{self._checkpoint.folder}' has tensors that {config.architecture} of "
                f"{config.layers} layers does not have here, the first is '{unknown[0]}'; nothing "
                "was built, because the result would compute something else."
            )

    def _refuse_without_ternary(self) -> None:
        products = self._stored.products
        if any(isinstance(each, Ternary) for each in products.values()):
            return
        name, first = next(iter(products.items()))
        reason = first.reason if isinstance(first, Float) else ""
        raise ModelError(
            f"No matrix of '{self._checkpoint.folder}' is ternary; the first, '{name}', stays "
            f"float because it {reason}. Weights are rounded only where quantization_config in "
            "config.json says quant_method bitnet, linear_class autobitlinear and "
            "quantization_mode online."
        )

    def _product(self, name: str, K: int, N: int) -> Product:
        found = read_matrix(self._checkpoint, name, self._config.quantization)
        if isinstance(found, TernaryWeight):
            if found.levels.shape != (K, N):
                raise self._wrong_shape(name, found.levels.shape[::-1], (N, K))
            return self._ternary(name, found, int8=self._int8_activations())
        self._require_shape(name, (N, K))
        self._store_rows(name, np.dtype(np.float32), (N, K))
        return Float(name, K, N, found.reason)

    def _int8_activations(self) -> bool:
        chosen = self._options.activation
        return chosen == "int8" or (chosen == "auto" and self._config.quantization is not None)

    def _ternary(
        self, name: str, weight: TernaryWeight, *, int8: bool, is_table: bool = False
    ) -> Ternary:
        # One function body has one storage: the first matrix decides, 2 bits hold everything.
        if self._storage is None:
            self._storage = "1bit" if weight.alphabet == "binary_pm" else "2bit"
        storage = self._storage_for(weight.alphabet)
        index = build_index(weight, storage=storage)
        attributes = index.attributes
        if int8:
            attributes = dataclasses.replace(attributes, **INT8_RULE)
        bias = np.zeros((), np.float32)
        base = name.removesuffix(".weight")
        inputs = (
            self._file.add(f"{base}.codes", index.codes),
            "onnx_ternary.aux",
            self._file.add(f"{base}.scale", index.scale),
            "onnx_ternary.no_bias",
        )
        return Ternary(
            attributes,
            inputs,
            digest([index.codes, index.aux, index.scale, bias]),
            index.scale.ndim,
            index.codes.nbytes + index.scale.nbytes,
            digest([index.codes, index.scale]) if is_table else "",
        )

    def _storage_for(self, alphabet: Alphabet) -> Storage:
        return "1bit" if self._storage == "1bit" and alphabet == "binary_pm" else "2bit"

    def _gain(self, name: str, size: int) -> None:
        self._require_shape(name, (size,))
        self._file.add(name, self._checkpoint.read(name).astype(np.float32))

    def _head_and_table(self) -> None:
        """The head, and the table in the checkpoint's dtype unless they are one."""
        config, checkpoint = self._config, self._checkpoint
        shape = (config.vocabulary, config.hidden)
        self._require_shape(TABLE, shape)
        source = TABLE if config.tied else HEAD
        self._require_shape(source, shape)
        found = read_matrix(checkpoint, source, None)
        if isinstance(found, TernaryWeight):
            head: Product = self._ternary(HEAD, found, int8=False, is_table=config.tied)
        elif self._options.head == "keep":
            self._store_rows(source, np.dtype(np.float32), shape)
            head = Float(source, config.hidden, config.vocabulary, found.reason)
        else:
            head = self._blocks(source, 8 if self._options.head == "int8" else 4)
        self._stored.products[HEAD] = head
        if self._stored.shared_table is not None:
            self._file.add(LIKE, np.zeros((), np.float32))
        elif not (isinstance(head, Float) and head.tensor == TABLE):
            self._table()

    def _table(self) -> None:
        self._stored.table = self._checkpoint.dtype(TABLE)
        self._store_rows(TABLE, self._stored.table, (self._config.vocabulary, self._config.hidden))

    def _store_rows(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file.add_parts(name, dtype, shape, self._checkpoint.rows(name))

    def _blocks(self, source: str, bits: Literal[4, 8]) -> Blocks:
        quantizer = block_quantizer(bits)
        parts = [
            quantizer.qbits_block_quant(np.ascontiguousarray(rows.T, np.float32))
            for rows in self._checkpoint.rows(source)
        ]
        codes, scales, zero_points = (np.concatenate(each) for each in zip(*parts, strict=True))
        base = HEAD.removesuffix(".weight")
        tensors: dict[str, NDArray[Any]] = {
            f"{base}.codes": codes,
            f"{base}.scales": scales.reshape(-1),
            f"{base}.zero_points": zero_points.reshape(-1),
        }
        first, second, third = (self._file.add(name, array) for name, array in tensors.items())
        attributes = {
            "K": self._config.hidden,
            "N": self._config.vocabulary,
            "bits": bits,
            "block_size": BLOCK_SIZE,
            "accuracy_level": ACCURACY_LEVEL,
        }
        num_bytes = sum(array.nbytes for array in tensors.values())
        return Blocks((first, second, third), attributes, num_bytes)

    def _require_shape(self, name: str, expected: tuple[int, ...]) -> None:
        found = self._checkpoint.shape(name)
        if found != expected:
            raise self._wrong_shape(name, found, expected)

    @staticmethod
    def _wrong_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ModelError:
        return ModelError(
            f"Tensor '{name}' is of shape {found}, expected {expected} from config.json."
        )


def ternary_products(weights: StoredWeights) -> Iterator[tuple[str, Ternary]]:
    """The products that became nodes of the op."""
    for name, product in weights.products.items():
        if isinstance(product, Ternary):
            yield name, product
