"""Whether a model is what its checkpoint says: every product alone, the first layers together.

1. Every product of the op, as it stands in the data file, against levels and scales read from the
   checkpoint once more, within the bound of docs/op_spec.md.
2. The built model cut off behind its first layers, in onnxruntime, against `reference.Reference` on
   a short prompt. Wrong wiring gives other numbers altogether, and the question is how much right
   wiring may differ. The answer is measured: the reference runs a second time with the inputs of
   its products rounded otherwise (to float16 where the model rounds nothing; not at all where it
   rounds to int8), and the built model has to be closer to the first run than the second run is,
   by the root mean square. A head that was quantized adds the steps of its blocks.
3. Rows of an embedding that reads the head's index, in onnxruntime, which have to be the
   checkpoint's exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnx_ternary import _onnxruntime as ort
from onnx_ternary.building.config import DecoderConfig
from onnx_ternary.building.graph import EMBEDDING, HIDDEN, decoder_model, past_names, rows_model
from onnx_ternary.building.layouts import read_matrix
from onnx_ternary.building.reference import Array, Reference, Rounding, pooled
from onnx_ternary.building.source import Source
from onnx_ternary.building.weights import (
    HEAD,
    TABLE,
    Blocks,
    Float,
    Progress,
    StoredWeights,
    Ternary,
    ternary_products,
)
from onnx_ternary.errors import ModelError
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native.layer import Layer
from onnx_ternary.op.activations import quantize_rows
from onnx_ternary.op.bounds import float_error_bound, int8_error_bound
from onnx_ternary.runtime import register

NUM_TOKENS = 8
NUM_LAYERS = 2
_ROWS = 2
_COLUMNS_AT_ONCE = 2048
_TABLE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Distance:
    """How far numbers of the built model are from the reference, and how far they may be.

    Attributes:
        found: root mean square of the differences.
        allowed: what it may be.
    """

    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False for NaN as well."""
        return self.found <= self.allowed


@dataclass(frozen=True, slots=True)
class BuildVerification:
    """What `verify_build` found.

    Attributes:
        products: largest error of every product, relative to its bound, by the weight's name.
        layers: how many layers ran together.
        hidden: of what goes into the head.
        logits: of what comes out of it; of the embedding, where the model gives one.
        output: what that is called, ``logits`` or ``embeddings``.
    """

    products: dict[str, float]
    layers: int
    hidden: Distance
    logits: Distance
    output: str = "logits"

    @property
    def failed(self) -> tuple[str, ...]:
        """What is not within its bound."""
        products = [name for name, worst in self.products.items() if not worst <= 1]
        distances = {"hidden states": self.hidden, self.output: self.logits}
        return (*products, *(name for name, each in distances.items() if not each.passed))

    @property
    def passed(self) -> bool:
        """Whether everything is within its bound."""
        return not self.failed

    def summary(self) -> str:
        """One sentence."""
        layers = f"the first {self.layers} layers" if self.layers > 1 else "the first layer"
        if self.failed:
            more = f" and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
            return (
                f"Verification failed: {', '.join(self.failed[:3])}{more}; hidden states behind "
                f"{layers} differ by {self.hidden.found:.3g} (allowed {self.hidden.allowed:.3g}), "
                f"{self.output} by {self.logits.found:.3g} (allowed {self.logits.allowed:.3g})."
            )
        worst = max(self.products.values(), default=0.0)
        return (
            f"Verified: {len(self.products)} products within {worst:.2g} of their bounds; "
            f"{self.output} behind {layers} differ from the checkpoint's by "
            f"{self.logits.found:.2g}, allowed {self.logits.allowed:.2g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types."""

        def numbers(each: Distance) -> dict[str, float]:
            return {"found": each.found, "allowed": each.allowed}

        return {
            "passed": self.passed,
            "products": self.products,
            "layers": self.layers,
            "hidden_states": numbers(self.hidden),
            self.output: numbers(self.logits),
        }


def verify_build(
    checkpoint: Source,
    config: DecoderConfig,
    weights: StoredWeights,
    tensors: dict[str, TensorProto],
    folder: Path,
    progress: Progress | None = None,
) -> BuildVerification:
    """Compare a built model with its checkpoint.

    Args:
        checkpoint: what it was built from.
        config: of the decoder.
        weights: what each product became.
        tensors: the model's initializers, whose data lies in ``folder``.
        folder: where a file for the cut-off model may be written.
        progress: called for every product.

    Raises:
        ModelError: if onnxruntime refuses the model.
    """
    products = dict(ternary_products(weights))
    worst: dict[str, float] = {}
    for done, (name, product) in enumerate(products.items()):
        if progress is not None:
            progress(name, done, len(products) + 1)
        worst[name] = _worst_error(checkpoint, config, name, product, tensors, folder)
    if weights.shared_table is not None:
        worst[TABLE] = _worst_row(checkpoint, weights.shared_table, tensors, folder)
    if progress is not None:
        progress("the first layers", len(products), len(products) + 1)
    layers = min(NUM_LAYERS, config.layers)
    hidden, logits = _forward(checkpoint, config, weights, tensors, folder, layers)
    if progress is not None:
        progress("", len(products) + 1, len(products) + 1)
    output = "logits" if config.pooling is None else "embeddings"
    return BuildVerification(worst, layers, hidden, logits, output)


def _worst_error(
    checkpoint: Source,
    config: DecoderConfig,
    name: str,
    product: Ternary,
    tensors: dict[str, TensorProto],
    folder: Path,
) -> float:
    """Largest error relative to its bound of a product in the data file; inf for other levels."""
    source = TABLE if name == HEAD and config.tied else name
    quantization = None if name == HEAD else config.quantization
    weight = read_matrix(checkpoint, source, quantization)
    assert isinstance(weight, TernaryWeight)
    attributes = product.attributes
    codes, aux, scale, bias = (stored_array(tensors[each], folder) for each in product.inputs)
    rng = np.random.default_rng([0, *name.encode()])
    x = rng.standard_normal((_ROWS, attributes.K)).astype(np.float32)
    y, _ = Layer(attributes, codes, aux, scale, bias).run(x)
    # Rows of integers stay integers, so that their sums are exact and 0 is 0.
    rows, row_scale = x.astype(np.float64), np.ones(_ROWS)
    if attributes.activation == "int8":
        q, s = quantize_rows(x, attributes)
        rows, row_scale = q.astype(np.float64), s.astype(np.float64)
    worst = 0.0
    for start in range(0, attributes.N, _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        part = _columns(weight, columns)
        error = np.abs(y[:, columns] - _exact(rows, part) / row_scale[:, None])
        if attributes.activation == "int8":
            bound = int8_error_bound(
                x, part.levels, part.scale, part.group_size, bias, attributes, np.float32
            )
        else:
            bound = float_error_bound(
                x,
                part.levels,
                part.scale,
                part.group_size,
                bias,
                addition_depth=attributes.K,
                fixed_point=True,
                dtype=np.float32,
            )
        ratio = float((error / bound).max())
        worst = max(worst, ratio) if not math.isnan(ratio) else math.inf
    return worst


def _worst_row(
    checkpoint: Source, head: Ternary, tensors: dict[str, TensorProto], folder: Path
) -> float:
    """0 where rows of the shared table, evenly taken, are the checkpoint's; inf where not."""
    N = head.attributes.N
    chosen = np.unique(np.linspace(0, N - 1, min(N, _TABLE_ROWS)).round().astype(np.int64))
    path = folder / "rows.onnx"
    try:
        path.write_bytes(rows_model(head, tensors).SerializeToString())
        options = register(ort.SessionOptions())
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"input_ids": chosen})
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise ModelError(f"onnxruntime {ort.__version__} cannot run the model: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    for row, values in zip(chosen.tolist(), found, strict=True):
        if not np.array_equal(values, checkpoint.read(TABLE, row, row + 1)[0].astype(np.float32)):
            return math.inf
    return 0.0


def _exact(rows: Array, weight: TernaryWeight) -> Array:
    """``rows @ W``, sums of levels first and scales behind them, as the op computes."""
    K = weight.levels.shape[0]
    size = weight.group_size or K
    scales = np.broadcast_to(weight.scale, (-(-K // size), weight.levels.shape[1]))
    total = np.zeros((rows.shape[0], weight.levels.shape[1]))
    for group, start in enumerate(range(0, K, size)):
        levels = weight.levels[start : start + size].astype(np.float64)
        total += (rows[:, start : start + size] @ levels) * scales[group].astype(np.float64)
    return total


def _columns(weight: TernaryWeight, columns: slice) -> TernaryWeight:
    scale = weight.scale if weight.scale.ndim == 0 else weight.scale[..., columns]
    levels = np.ascontiguousarray(weight.levels[:, columns])
    return TernaryWeight(levels, scale, weight.group_size, weight.alphabet, 0.0)


def stored_array(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """A tensor's numbers, mapped where they lie in the data file."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    mapped = np.memmap(
        folder / place["location"],
        np.uint8,
        "r",
        int(place["offset"]),
        int(place["length"]),
    )
    empty = TensorProto(data_type=tensor.data_type, dims=[0])
    dtype = numpy_helper.to_array(empty).dtype
    return mapped.view(dtype).reshape(tuple(tensor.dims))


def _forward(
    checkpoint: Source,
    config: DecoderConfig,
    weights: StoredWeights,
    tensors: dict[str, TensorProto],
    folder: Path,
    layers: int,
) -> tuple[Distance, Distance]:
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, NUM_TOKENS)

    def rounding(name: str) -> Rounding:
        product = weights.products[name]
        int8 = isinstance(product, Ternary) and product.attributes.activation == "int8"
        return "int8" if int8 else "none"

    def other_rounding(name: str) -> Rounding:
        return "none" if rounding(name) == "int8" else "float16"

    hidden = Reference(checkpoint, config, layers, rounding).hidden(tokens)
    other = Reference(checkpoint, config, layers, other_rounding)
    other_hidden = other.hidden(tokens)
    found_hidden, found = _run(config, weights, tensors, folder, layers, tokens)
    allowed = _root_mean_square([other_hidden - hidden])
    distance = Distance(_root_mean_square([found_hidden - hidden]), allowed)
    if config.pooling is not None:
        exact = pooled(hidden, config.pooling)
        other_exact = pooled(other_hidden, config.pooling)
        allowed = _root_mean_square([other_exact - exact])
        return distance, Distance(_root_mean_square([found - exact]), allowed)
    head = weights.products[HEAD]
    return distance, _logits_distance(other, head, hidden, other_hidden, found)


def _logits_distance(
    reference: Reference,
    head: Ternary | Float | Blocks,
    hidden: Array,
    other_hidden: Array,
    found: NDArray[np.float32],
) -> Distance:
    differences: list[float] = []
    allowances: list[float] = []
    start = 0
    for rows in reference.checkpoint.rows(TABLE if reference.config.tied else HEAD):
        matrix = rows.astype(np.float64).T
        columns = slice(start, start + matrix.shape[1])
        start = columns.stop
        exact = hidden @ matrix
        differences.append(float(np.sum((found[:, columns] - exact) ** 2)))
        allowed = (other_hidden @ matrix - exact) ** 2
        if isinstance(head, Blocks):
            allowed = allowed + _block_variance(hidden, matrix, head)
        allowances.append(float(np.sum(allowed)))
    return Distance(
        math.sqrt(sum(differences) / found.size), math.sqrt(sum(allowances) / found.size)
    )


def _block_variance(hidden: Array, matrix: Array, head: Blocks) -> Array:
    """Square of a step of every weight's block and of every input's, summed over the inputs.

    Rounding is off by a step over the square root of 12 in the root mean square, so this is what
    may be expected, with a factor of about 3 to spare.
    """
    size, bits = head.attributes["block_size"], head.attributes["bits"]
    starts = np.arange(0, matrix.shape[0], size)
    lowest = np.minimum(np.minimum.reduceat(matrix, starts, axis=0), 0)
    highest = np.maximum(np.maximum.reduceat(matrix, starts, axis=0), 0)
    weight_steps = (highest - lowest) / (2**bits - 1)
    input_steps = np.maximum.reduceat(np.abs(hidden), starts, axis=1) / 127
    inputs = np.add.reduceat(hidden**2, starts, axis=1)
    sizes = np.add.reduceat(matrix**2, starts, axis=0)
    variance: Array = inputs @ weight_steps**2 + input_steps**2 @ sizes
    return variance


def _run(
    config: DecoderConfig,
    weights: StoredWeights,
    tensors: dict[str, TensorProto],
    folder: Path,
    layers: int,
    tokens: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hidden states (length, hidden) of the built model's first layers, and its output."""
    model = decoder_model(
        config, weights, tensors, layers=layers, with_body=False, hidden_states=True
    )
    path = folder / "first_layers.onnx"
    options = register(ort.SessionOptions())
    options.log_severity_level = 4
    if isinstance(weights.products.get(HEAD), Float):
        # A packed copy of the head would double its memory for one prompt.
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        path.write_bytes(model.SerializeToString())
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        cache = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
        feeds: dict[str, NDArray[Any]] = {
            name: cache
            for layer in range(0 if config.pooling else layers)
            for name in past_names(layer)
        }
        feeds |= {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
        output = "logits" if config.pooling is None else EMBEDDING
        hidden, found = session.run([HIDDEN, output], feeds)
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise ModelError(f"onnxruntime {ort.__version__} cannot run the model: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    return hidden[0], found[0]


def _root_mean_square(arrays: Sequence[Array]) -> float:
    squares = [(float(np.sum(each.astype(np.float64) ** 2)), each.size) for each in arrays]
    return math.sqrt(sum(each for each, _ in squares) / max(1, sum(size for _, size in squares)))
