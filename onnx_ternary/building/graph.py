"""The decoder as onnxruntime runs it: RMSNorm, rotary GroupQueryAttention with a cache, the op.

    residual = table[input_ids]
    layer:  x = norm(residual);  a = o_proj(sub_norm(attention(q_proj(x), k_proj(x), v_proj(x))))
            residual += a
            y = norm(residual);  f = down_proj(sub_norm(gate(gate_proj(y)) * up_proj(y)))
            residual += f
    logits = head(norm(residual)), or for a text embedding the pooled norm(residual)

1. Names of inputs and outputs are the ones onnxruntime-genai's own builder gives.
2. Sub-norms are BitNet's; Qwen3 norms every query and key head in front of the rotation.
3. A float matrix (N, K) is read where it lies, by FusedMatMul with transB: a Transpose would be
   folded into a second copy when the session is made.
4. The table keeps the checkpoint's dtype, where the head does not share it; the rows that are
   looked up are cast. A ternary head that is tied to the table shares its index.
5. A model that embeds has no cache and no head; BitNet-embedding norms the input of every product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnx_ternary._version import __version__
from onnx_ternary.building.config import DecoderConfig, Pooling
from onnx_ternary.building.weights import (
    HEAD,
    LIKE,
    NORM,
    TABLE,
    Blocks,
    Float,
    Product,
    StoredWeights,
    Ternary,
    input_norm,
    layer_gains,
    layer_products,
    ternary_products,
)
from onnx_ternary.op.body_nodes import MIN_IR_VERSION, NoBody
from onnx_ternary.op.function_body import BodyVariant, make_function_body
from onnx_ternary.op.gather import GatherVariant, make_gather_body
from onnx_ternary.op.nodes import DIGEST_KEY
from onnx_ternary.schema import DOMAIN, DOMAIN_VERSION, GATHER_TYPE, OP_TYPE

OPSET = 17
_MICROSOFT = "com.microsoft"
HIDDEN = "hidden_states"
EMBEDDING = "sentence_embedding"
# torch.nn.functional.normalize's.
_SMALLEST_LENGTH = 1e-12


def past_names(layer: int) -> tuple[str, str]:
    """Inputs of a layer's cache."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs of a layer's cache."""
    return f"present.{layer}.key", f"present.{layer}.value"


def function_bodies(weights: StoredWeights) -> list[FunctionProto] | NoBody:
    """The operators as functions of standard ones, or why there are none."""
    variants = [
        BodyVariant.of(
            product.attributes,
            x_dtype=TensorProto.FLOAT,
            scale_rank=product.scale_rank,
            bias_rank=0,
            opset=OPSET,
        )
        for _, product in ternary_products(weights)
    ]
    bodies = [make_function_body(variants, OPSET, MIN_IR_VERSION)]
    head = weights.shared_table
    if head is not None:
        variant = GatherVariant.of(head.attributes, y_dtype=TensorProto.FLOAT, opset=OPSET)
        bodies.append(make_gather_body([variant], OPSET, MIN_IR_VERSION))
    missing = [body for body in bodies if isinstance(body, NoBody)]
    if missing:
        return missing[0]
    return [body for body in bodies if not isinstance(body, NoBody)]


def decoder_model(
    config: DecoderConfig,
    weights: StoredWeights,
    tensors: Mapping[str, TensorProto],
    *,
    layers: int | None = None,
    with_body: bool = True,
    hidden_states: bool = False,
) -> ModelProto:
    """The model, which refers to tensors in a data file.

    Args:
        config: of the decoder.
        weights: what each product became.
        tensors: the initializers by name.
        layers: how many of the first layers; None for all.
        with_body: carry the op's function body, where there is one.
        hidden_states: make what goes into the head an output, `HIDDEN`.
    """
    count = config.layers if layers is None else layers
    graph = _Graph(config, weights)
    graph.decoder(count)
    inputs, outputs = _interface(config, count)
    if hidden_states:
        outputs.append(_float(HIDDEN, ["batch_size", "sequence_length", config.hidden]))
    used = {name for node in graph.nodes for name in node.input}
    initializers = [tensors[name] for name in tensors if name in used]
    bodies = function_bodies(weights) if with_body else []
    functions = [] if isinstance(bodies, NoBody) else bodies
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "decoder", inputs, outputs, [*initializers, *graph.constants.values()]
        ),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(_MICROSOFT, 1),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
        ],
        ir_version=MIN_IR_VERSION,
        functions=functions,
        producer_name="onnx-ternary",
        producer_version=__version__,
    )
    model.metadata_props.add(key="onnx_ternary.version", value=__version__)
    return model


def rows_model(head: Ternary, tensors: Mapping[str, TensorProto]) -> ModelProto:
    """The embedding alone, where it shares the head's index: input_ids (rows,) -> (rows, K)."""
    codes, _, scale, _ = head.inputs
    attributes: dict[str, Any] = head.attributes.to_gather_dict()
    node = helper.make_node(
        GATHER_TYPE,
        ["input_ids", codes, scale, LIKE],
        ["rows"],
        domain=DOMAIN,
        **attributes,
    )
    return helper.make_model(
        helper.make_graph(
            [node],
            "rows",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows"])],
            [_float("rows", ["rows", head.attributes.K])],
            [tensors[name] for name in (codes, scale, LIKE)],
        ),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
        ],
        ir_version=MIN_IR_VERSION,
    )


def _float(name: str, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _cache(config: DecoderConfig, name: str, length: str) -> ValueInfoProto:
    return _float(name, ["batch_size", config.kv_heads, length, config.head_dim])


def _interface(
    config: DecoderConfig, layers: int
) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    def integers(name: str, length: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", length])

    inputs = [
        integers("input_ids", "sequence_length"),
        integers("attention_mask", "total_sequence_length"),
    ]
    if config.pooling is not None:
        inputs[1] = integers("attention_mask", "sequence_length")
        return inputs, [_float(EMBEDDING, ["batch_size", config.hidden])]
    outputs = [_float("logits", ["batch_size", "sequence_length", config.vocabulary])]
    for layer in range(layers):
        inputs += [_cache(config, each, "past_sequence_length") for each in past_names(layer)]
        outputs += [_cache(config, each, "total_sequence_length") for each in present_names(layer)]
    return inputs, outputs


class _Graph:
    """Nodes in order; a value has the name of the node that makes it."""

    def __init__(self, config: DecoderConfig, weights: StoredWeights) -> None:
        self._config = config
        self._weights = weights
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def decoder(self, layers: int) -> None:
        config = self._config
        self._lengths()
        residual = self._embedding()
        x = self._norm(residual, "model.layers.0.input_layernorm.weight")
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            a = self._attention(x, layer)
            y, residual = self._add_and_norm(
                a, residual, f"{prefix}.post_attention_layernorm.weight"
            )
            f = self._feed_forward(y, layer)
            gain = f"model.layers.{layer + 1}.input_layernorm.weight"
            x, residual = self._add_and_norm(f, residual, NORM if layer == layers - 1 else gain)
        x = self._node("Identity", [x], f"/model/{HIDDEN}", output=HIDDEN)
        if config.pooling is not None:
            self._pooled(x, config.pooling)
        else:
            self._product(x, HEAD, output="logits")

    def _node(
        self,
        op_type: str,
        inputs: Iterable[str],
        name: str,
        domain: str = "",
        output: str = "",
        **attributes: Any,
    ) -> str:
        output = output or f"{name}/output_0"
        self.nodes.append(
            helper.make_node(
                op_type, list(inputs), [output], name=name, domain=domain, **attributes
            )
        )
        return output

    def _constant(self, name: str, values: Any, dtype: DTypeLike = np.int64) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(values, dtype), name)
        return name

    def _embedding(self) -> str:
        name = "/model/embed_tokens/Gather"
        head = self._weights.shared_table
        if head is not None:
            codes, _, scale, _ = head.inputs
            inputs = ["input_ids", codes, scale, LIKE]
            values: dict[str, Any] = head.attributes.to_gather_dict()
            rows = self._node(GATHER_TYPE, inputs, name, DOMAIN, **values)
            self.nodes[-1].metadata_props.add(key=DIGEST_KEY, value=head.table_digest)
            return rows
        rows = self._node("Gather", [TABLE, "input_ids"], name)
        if self._weights.table != np.float32:
            rows = self._node("Cast", [rows], "/model/embed_tokens/Cast", to=TensorProto.FLOAT)
        return rows

    def _lengths(self) -> None:
        """What GroupQueryAttention wants: the last position of each row, and the total length."""
        one = self._constant("/constants/one", 1)
        axis = self._constant("/constants/axis_1", [1])
        counted = self._node(
            "ReduceSum", ["attention_mask", axis], "/model/lengths/ReduceSum", keepdims=0
        )
        last = self._last_index = self._node("Sub", [counted, one], "/model/lengths/Sub")
        shape = self._node("Shape", ["attention_mask"], "/model/lengths/Shape")
        total = self._node("Gather", [shape, one], "/model/lengths/Gather", axis=0)
        self._last = self._node("Cast", [last], "/model/lengths/Cast", to=TensorProto.INT32)
        self._total = self._node("Cast", [total], "/model/lengths/Cast_1", to=TensorProto.INT32)

    def _pooled(self, x: str, pooling: Pooling) -> None:
        """The embedding of every text from its tokens' hidden states; padding is behind them."""
        name = "/model/pooling"
        axis = self._constant("/constants/axis_1", [1])
        if pooling.mode == "last":
            index = self._node("Unsqueeze", [self._last_index, axis], f"{name}/Unsqueeze")
            pooled = self._node("GatherND", [x, index], f"{name}/GatherND", batch_dims=1)
        else:
            behind = self._constant("/constants/axis_2", [2])
            mask = self._node("Cast", ["attention_mask"], f"{name}/Cast", to=TensorProto.FLOAT)
            column = self._node("Unsqueeze", [mask, behind], f"{name}/Unsqueeze")
            kept = self._node("Mul", [x, column], f"{name}/Mul")
            total = self._node("ReduceSum", [kept, axis], f"{name}/ReduceSum", keepdims=0)
            count = self._node("ReduceSum", [mask, axis], f"{name}/ReduceSum_1")
            pooled = self._node("Div", [total, count], f"{name}/Div")
        if pooling.normalize:
            smallest = self._constant("/constants/smallest", _SMALLEST_LENGTH, np.float32)
            length = self._node("ReduceL2", [pooled], f"{name}/ReduceL2", axes=[1])
            length = self._node("Max", [length, smallest], f"{name}/Max")
            self._node("Div", [pooled, length], f"{name}/Div_1", output=EMBEDDING)
        else:
            self._node("Identity", [pooled], f"{name}/Identity", output=EMBEDDING)

    def _norm(self, x: str, gain: str) -> str:
        return self._node(
            "SimplifiedLayerNormalization",
            [x, gain],
            f"{_path(gain)}/SimplifiedLayerNormalization",
            axis=-1,
            epsilon=self._config.epsilon,
            stash_type=1,
        )

    def _add_and_norm(self, x: str, residual: str, gain: str) -> tuple[str, str]:
        """The norm of x + residual, and the sum."""
        name = f"{_path(gain)}/SkipSimplifiedLayerNormalization"
        outputs = [f"{name}/output_0", "", "", f"{name}/output_3"]
        node = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            [x, residual, gain],
            outputs,
            name=name,
            domain=_MICROSOFT,
            epsilon=self._config.epsilon,
        )
        self.nodes.append(node)
        return outputs[0], outputs[3]

    def _product(self, x: str, weight: str, output: str = "") -> str:
        product: Product = self._weights.products[weight]
        if self._config.input_norms and weight != HEAD:
            x = self._norm(x, input_norm(weight))
        if isinstance(product, Float):
            return self._node(
                "FusedMatMul",
                [x, product.tensor],
                f"{_path(weight)}/MatMul",
                _MICROSOFT,
                output,
                transB=1,
            )
        if isinstance(product, Blocks):
            return self._node(
                "MatMulNBits",
                [x, *product.inputs],
                f"{_path(weight)}/MatMul",
                _MICROSOFT,
                output,
                **product.attributes,
            )
        return self._ternary_product(x, weight, product, output)

    def _ternary_product(self, x: str, weight: str, product: Ternary, output: str) -> str:
        made = self._node(
            OP_TYPE,
            [x, *product.inputs],
            f"{_path(weight)}/MatMul",
            DOMAIN,
            output,
            **product.attributes.to_dict(),
        )
        self.nodes[-1].metadata_props.add(key=DIGEST_KEY, value=product.digest)
        return made

    def _head_norm(self, x: str, gain: str, size: int) -> str:
        """The norm of every head of (batch, length, heads * head_dim)."""
        heads = self._constant("/constants/heads", [0, -1, self._config.head_dim])
        joined = self._constant(f"/constants/joined_{size}", [0, -1, size])
        apart = self._node("Reshape", [x, heads], f"{_path(gain)}/Reshape")
        normed = self._norm(apart, gain)
        return self._node("Reshape", [normed, joined], f"{_path(gain)}/Reshape_1")

    def _attention(self, x: str, layer: int) -> str:
        config = self._config
        gains = layer_gains(config, layer)
        prefix = f"model.layers.{layer}.self_attn"
        q, k, v, o = (
            name for name in layer_products(config, layer) if name.startswith(f"{prefix}.")
        )
        query, key, value = (self._product(x, name) for name in (q, k, v))
        if config.head_norms:
            query = self._head_norm(query, f"{prefix}.q_norm.weight", config.q_size)
            key = self._head_norm(key, f"{prefix}.k_norm.weight", config.kv_size)
        name = f"{_path(prefix)}/GroupQueryAttention"
        # A model that embeds reads a text at once.
        past = ("", "") if config.pooling is not None else past_names(layer)
        inputs = [query, key, value, *past, self._last, self._total]
        node = helper.make_node(
            "GroupQueryAttention",
            [*inputs, "cos_cache", "sin_cache"],
            [f"{name}/output_0", *present_names(layer)],
            name=name,
            domain=_MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=config.head_dim**-0.5,
        )
        self.nodes.append(node)
        mixed = f"{name}/output_0"
        if (gain := f"{prefix}.attn_sub_norm.weight") in gains:
            mixed = self._norm(mixed, gain)
        return self._product(mixed, o)

    def _feed_forward(self, x: str, layer: int) -> str:
        prefix = f"model.layers.{layer}.mlp"
        gate = self._product(x, f"{prefix}.gate_proj.weight")
        up = self._product(x, f"{prefix}.up_proj.weight")
        name = f"{_path(prefix)}/act_fn"
        if self._config.gate == "relu2":
            positive = self._node("Relu", [gate], f"{name}/Relu")
            gate = self._node("Mul", [positive, positive], f"{name}/Mul")
        else:
            sigmoid = self._node("Sigmoid", [gate], f"{name}/Sigmoid")
            gate = self._node("Mul", [gate, sigmoid], f"{name}/Mul")
        y = self._node("Mul", [gate, up], f"{_path(prefix)}/Mul")
        if self._config.sub_norms:
            y = self._norm(y, f"{prefix}.ffn_sub_norm.weight")
        return self._product(y, f"{prefix}.down_proj.weight")


def _path(weight: str) -> str:
    """'model.layers.0.mlp.up_proj.weight' as '/model/layers.0/mlp/up_proj'."""
    parts = weight.removesuffix(".weight").split(".")
    joined = "/".join(parts)
    return "/" + joined.replace("layers/", "layers.", 1)
