"""Write models with the shapes of BitNet b1.58 2B and its relatives, and random ternary weights.

The graph is the one onnxruntime-genai builds: RMSNorm, rotary embedding and grouped-query attention
with a KV cache (com.microsoft.GroupQueryAttention), BitNet's sub-norms and squared ReLU, a head
tied to the embedding. Every form of one seed holds the same weights. Tensors go straight to the
data file, page-aligned, so no more than one of them is in memory.

Usage: python benchmarks/make_bitnet.py OUT.onnx [--form float32] [--preset bitnet-2b]
       [--layers 30] [--vocabulary 128256] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from peers.matmul_nbits import BLOCK, pack

Form = Literal["float32", "float16", "matmulnbits", "bitlinear"]
"""Dense weights; MatMulNBits of 2 bits; dense weights behind transformers' activation rounding."""

PAGE = 4096
OPSET, IR_VERSION = 17, 8
# 40 % zeros, the rest +1 and -1 in equal shares, looked up by a random byte.
LEVELS = np.repeat(np.array([-1, 0, 1], np.int8), [77, 102, 77])
_CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder; ``sub_norms`` and squared ReLU are BitNet's, SiLU is Llama's."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_base: float
    sub_norms: bool
    squared_relu: bool
    tied: bool
    max_length: int = 4096


PRESETS = {
    "bitnet-2b": Shape(30, 2560, 6912, 20, 5, 128, 128256, 5e5, True, True, True),
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 5e5, False, False, False),
    "falcon3-10b": Shape(40, 3072, 23040, 12, 4, 256, 131072, 1000042.0, False, False, False),
    "tiny": Shape(2, 256, 384, 4, 2, 64, 512, 5e5, True, True, True, 256),
}


@dataclass(slots=True)
class DataFile:
    """Tensors appended to an open external data file, each at the start of a page."""

    path: Path
    tensors: list[TensorProto] = field(default_factory=list)

    def add(
        self, name: str, dtype: np.dtype[Any], dims: tuple[int, ...], parts: Iterable[NDArray[Any]]
    ) -> str:
        """Append the parts of one tensor, C-ordered, cast to ``dtype``; return its name."""
        with self.path.open("ab") as file:
            file.write(bytes(-file.tell() % PAGE))
            offset = file.tell()
            for part in parts:
                file.write(np.ascontiguousarray(part.astype(dtype, copy=False)).data)
            length = file.tell() - offset
        assert length == int(np.prod(dims)) * dtype.itemsize, name
        tensor = TensorProto(
            name=name,
            dims=dims,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.path.name),
            ("offset", str(offset)),
            ("length", str(length)),
        ):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        return name


class Decoder:
    """A builder of one model's graph, which writes weights as it goes."""

    def __init__(self, shape: Shape, form: Form, seed: int, data: DataFile) -> None:
        self._shape = shape
        self._form = form
        self._seed = seed
        self._data = data
        self._dtype = np.dtype(np.float16 if form == "float16" else np.float32)
        self._type = helper.np_dtype_to_tensor_dtype(self._dtype)
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def _node(
        self, op_type: str, inputs: list[str], name: str, domain: str = "", **attributes: Any
    ) -> str:
        output = f"{name}/output_0"
        node = helper.make_node(op_type, inputs, [output], name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def _float(self, value: float) -> str:
        return self._constant(f"constants/{value:g}", np.array(value, self._dtype))

    def _product(self, x: str, K: int, N: int, name: str) -> str:
        """``x @ W`` with W (K, N) = levels * scale."""
        # A key from the name: every form, and every number of layers, has the same weights.
        rng = np.random.default_rng([self._seed, *name.encode()])
        scale = np.float32(rng.uniform(0.8, 1.2) / np.sqrt(0.6 * K))
        if self._form == "float16":
            scale = np.float32(np.float16(scale))
        codes = rng.integers(0, LEVELS.size, (K, N), np.uint8)
        weight = f"{name.strip('/').replace('/', '.')}.weight"
        if self._form == "matmulnbits":
            return self._nbits_product(x, np.take(LEVELS, codes), scale, name, weight)
        factor = np.float32(1) if self._form == "bitlinear" else scale
        values = (LEVELS * factor).astype(self._dtype)
        self._data.add(weight, self._dtype, (K, N), [np.take(values, codes)])
        if self._form != "bitlinear":
            return self._node("MatMul", [x, weight], f"{name}/MatMul")
        y = self._node("MatMul", [self._rounded(x, name), weight], f"{name}/MatMul")
        return self._node(
            "Mul", [y, self._constant(f"{weight}_scale", np.array([scale]))], f"{name}/Mul"
        )

    def _nbits_product(
        self, x: str, levels: NDArray[np.int8], scale: np.float32, name: str, weight: str
    ) -> str:
        K, N = levels.shape
        scales = np.full(N * K // BLOCK, scale, np.float32)
        tensors = {f"{weight}_Q2": pack(levels, 2), f"{weight}_scales": scales}
        for each, array in tensors.items():
            self._data.add(each, array.dtype, array.shape, [array])
        return self._node(
            "MatMulNBits",
            [x, *tensors],
            f"{name}/MatMul",
            domain="com.microsoft",
            K=K,
            N=N,
            bits=2,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def _rounded(self, x: str, name: str) -> str:
        """Absmax int8 rounding of each row, as transformers' ActQuant exports it."""
        largest = self._node("Abs", [x], f"{name}/Abs")
        largest = self._node("ReduceMax", [largest], f"{name}/ReduceMax", axes=[-1], keepdims=1)
        largest = self._node("Clip", [largest, self._float(1e-5)], f"{name}/Clip")
        scale = self._node("Div", [self._float(127), largest], f"{name}/Div")
        y = self._node("Mul", [x, scale], f"{name}/Mul_x")
        y = self._node("Round", [y], f"{name}/Round")
        y = self._node("Clip", [y, self._float(-128), self._float(127)], f"{name}/Clip_1")
        return self._node("Div", [y, scale], f"{name}/Div_1")

    def _gain(self, name: str, size: int) -> str:
        rng = np.random.default_rng([self._seed, *name.encode()])
        weight = f"{name.strip('/').replace('/', '.')}.weight"
        return self._data.add(weight, self._dtype, (size,), [rng.uniform(0.5, 1.5, size)])

    def _norm(self, x: str, size: int, name: str) -> str:
        return self._node(
            "SimplifiedLayerNormalization",
            [x, self._gain(name, size)],
            name,
            axis=-1,
            epsilon=1e-5,
            stash_type=1,
        )

    def _add_and_norm(self, x: str, residual: str, name: str) -> tuple[str, str]:
        """The norm of ``x + residual``, and the sum."""
        inputs = [x, residual, self._gain(name, self._shape.hidden)]
        outputs = [f"{name}/output_0", "", "", f"{name}/output_3"]
        node = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            inputs,
            outputs,
            name=name,
            domain="com.microsoft",
            epsilon=1e-5,
        )
        self._nodes.append(node)
        return outputs[0], outputs[3]

    def _lengths(self) -> None:
        mask = "attention_mask"
        total = self._node("Shape", [mask], "/lengths/Shape")
        one = self._constant("constants/index_1", np.array(1, np.int64))
        total = self._node("Gather", [total, one], "/lengths/Gather", axis=0)
        self._total_length = self._node("Cast", [total], "/lengths/Cast", to=TensorProto.INT32)
        axes = self._constant("constants/axes_1", np.array([1], np.int64))
        each = self._node("ReduceSum", [mask, axes], "/lengths/ReduceSum", keepdims=0)
        each = self._node("Sub", [each, one], "/lengths/Sub")
        self._lengths_k = self._node("Cast", [each], "/lengths/Cast_1", to=TensorProto.INT32)

    def _rotary_tables(self) -> None:
        shape = self._shape
        frequency = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = np.outer(np.arange(shape.max_length), frequency)
        for name, values in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles))):
            self._data.add(name, self._dtype, values.shape, [values])

    def _attention(self, x: str, layer: int, name: str) -> str:
        shape = self._shape
        kv = shape.kv_heads * shape.head_dim
        q_size = shape.heads * shape.head_dim
        q = self._product(x, shape.hidden, q_size, f"{name}/q_proj")
        k = self._product(x, shape.hidden, kv, f"{name}/k_proj")
        v = self._product(x, shape.hidden, kv, f"{name}/v_proj")
        output = f"{name}/GroupQueryAttention/output_0"
        past = [f"past_key_values.{layer}.{each}" for each in ("key", "value")]
        present = [f"present.{layer}.{each}" for each in ("key", "value")]
        node = helper.make_node(
            "GroupQueryAttention",
            [q, k, v, *past, self._lengths_k, self._total_length, "cos_cache", "sin_cache"],
            [output, *present],
            name=f"{name}/GroupQueryAttention",
            domain="com.microsoft",
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=shape.head_dim**-0.5,
        )
        self._nodes.append(node)
        if shape.sub_norms:
            output = self._norm(output, q_size, f"{name}/attn_sub_norm")
        return self._product(output, q_size, shape.hidden, f"{name}/o_proj")

    def _ffn(self, x: str, name: str) -> str:
        shape = self._shape
        gate = self._product(x, shape.hidden, shape.ffn, f"{name}/gate_proj")
        up = self._product(x, shape.hidden, shape.ffn, f"{name}/up_proj")
        if shape.squared_relu:
            positive = self._node("Relu", [gate], f"{name}/act_fn/Relu")
            gate = self._node("Mul", [positive, positive], f"{name}/act_fn/Mul")
        else:
            sigmoid = self._node("Sigmoid", [gate], f"{name}/act_fn/Sigmoid")
            gate = self._node("Mul", [gate, sigmoid], f"{name}/act_fn/Mul")
        y = self._node("Mul", [gate, up], f"{name}/Mul")
        if shape.sub_norms:
            y = self._norm(y, shape.ffn, f"{name}/ffn_sub_norm")
        return self._product(y, shape.ffn, shape.hidden, f"{name}/down_proj")

    def _normal_rows(self, name: str, scale: float) -> Iterator[NDArray[np.float32]]:
        """(vocabulary, hidden), some rows at a time."""
        shape = self._shape
        rng = np.random.default_rng([self._seed, *name.encode()])
        for start in range(0, shape.vocabulary, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, shape.vocabulary - start)
            values = rng.standard_normal((rows, shape.hidden), np.float32)
            values *= np.float32(scale)
            yield values

    def _table(self, name: str, scale: float) -> str:
        dims = (self._shape.vocabulary, self._shape.hidden)
        return self._data.add(name, self._dtype, dims, self._normal_rows(name, scale))

    def build(self) -> ModelProto:
        """Write every tensor and return the model that refers to them."""
        shape = self._shape
        table = self._table("model.embed_tokens.weight", 1.0)
        self._lengths()
        self._rotary_tables()
        residual = self._node("Gather", [table, "input_ids"], "/model/embed_tokens/Gather")
        x = self._norm(residual, shape.hidden, "/model/layers.0/input_layernorm")
        for layer in range(shape.layers):
            name = f"/model/layers.{layer}"
            y = self._attention(x, layer, f"{name}/attn")
            x, residual = self._add_and_norm(y, residual, f"{name}/post_attention_layernorm")
            y = self._ffn(x, f"{name}/mlp")
            last = layer == shape.layers - 1
            norm = "/model/norm" if last else f"/model/layers.{layer + 1}/input_layernorm"
            x, residual = self._add_and_norm(y, residual, norm)
        head = table if shape.tied else self._table("lm_head.weight", shape.hidden**-0.5)
        head = self._node("Transpose", [head], "/lm_head/Transpose", perm=[1, 0])
        self._nodes.append(
            helper.make_node("MatMul", [x, head], ["logits"], name="/lm_head/MatMul")
        )
        return self._model()

    def _model(self) -> ModelProto:
        shape = self._shape
        cache = ("batch", shape.kv_heads, "past_length", shape.head_dim)
        longer = ("batch", shape.kv_heads, "total_length", shape.head_dim)
        tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
        mask = helper.make_tensor_value_info(
            "attention_mask", TensorProto.INT64, ["batch", "total_length"]
        )
        logits = ["batch", "length", shape.vocabulary]
        inputs, outputs = (
            [tokens, mask],
            [helper.make_tensor_value_info("logits", self._type, logits)],
        )
        for layer in range(shape.layers):
            for each in ("key", "value"):
                past, present = f"past_key_values.{layer}.{each}", f"present.{layer}.{each}"
                inputs.append(helper.make_tensor_value_info(past, self._type, cache))
                outputs.append(helper.make_tensor_value_info(present, self._type, longer))
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            inputs,
            outputs,
            [*self._data.tensors, *self._constants.values()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def write_model(path: Path, shape: Shape, form: Form = "float32", seed: int = 0) -> None:
    """Write ``path`` and ``path.data``, replacing what is there.

    Args:
        path: of the model.
        shape: of the decoder; for ``matmulnbits`` hidden, ffn and heads * head_dim are multiples
            of 128.
        form: how ternary weights are stored.
        seed: equal seeds give equal weights in every form (a scale rounded to float16 in float16).
    """
    data = DataFile(path.with_name(f"{path.name}.data"))
    data.path.write_bytes(b"")
    model = Decoder(shape, form, seed, data).build()
    path.write_bytes(model.SerializeToString())


def feeds(
    shape: Shape, length: int, past_length: int, form: Form = "float32", seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Inputs of a model: ``length`` random tokens behind a random cache of ``past_length``."""
    rng = np.random.default_rng(seed)
    dtype = np.float16 if form == "float16" else np.float32
    cache = (1, shape.kv_heads, past_length, shape.head_dim)
    values: dict[str, NDArray[Any]] = {
        "input_ids": rng.integers(0, shape.vocabulary, (1, length)),
        "attention_mask": np.ones((1, past_length + length), np.int64),
    }
    for layer in range(shape.layers):
        for each in ("key", "value"):
            past = rng.standard_normal(cache, np.float32).astype(dtype)
            values[f"past_key_values.{layer}.{each}"] = past
    return values


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--form", choices=get_args(Form), default="float32")
    parser.add_argument("--preset", choices=PRESETS, default="bitnet-2b")
    parser.add_argument("--layers", type=int, help="default: the preset's")
    parser.add_argument("--vocabulary", type=int, help="default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = PRESETS[arguments.preset]
    shape = replace(
        shape,
        layers=arguments.layers or shape.layers,
        vocabulary=arguments.vocabulary or shape.vocabulary,
    )
    write_model(arguments.output, shape, arguments.form, arguments.seed)


if __name__ == "__main__":
    main()
