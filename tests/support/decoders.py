"""Decoders with a KV cache, built by hand in the ways exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

HIDDEN, HEADS, HEAD_SIZE, VOCABULARY, LONGEST = 32, 2, 16, 50, 64
CACHES = ("past_key_values.0.key", "past_key_values.0.value")


def ternary(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.float32) * 0.25


class Graph:
    """Nodes, initializers and inputs of a model in the making."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.inputs: list[Any] = []

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def input(self, name: str, dtype: int, dims: Any) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def size(self, value: str, axis: int) -> str:
        """One dimension, as (1,)."""
        return self("Gather", self("Shape", value), self.integers(axis))

    def heads(self, value: str, *, first: str) -> str:
        """(B, S, H * D) to (B, H, S, D), by the two ways exporters reshape."""
        if first == "copied":
            shape = self.integers(0, 0, HEADS, HEAD_SIZE)
        else:
            sizes = [self.size(value, 0), self.size(value, 1), self.integers(HEADS, HEAD_SIZE)]
            shape = self("Concat", *sizes, axis=0)
        return self("Transpose", self("Reshape", value, shape), perm=[0, 2, 1, 3])

    def attention(self, x: str, caches: tuple[str, ...], mask: str, *, first: str) -> list[str]:
        """Attention whose keys and values follow the caches; the mask adds to the scores."""
        query, key, value = (
            self.heads(self("MatMul", x, self.constant(ternary(HIDDEN, HIDDEN, at))), first=first)
            for at in range(3)
        )
        if caches:
            key = self("Concat", caches[0], key, axis=2)
            value = self("Concat", caches[1], value, axis=2)
        scores = self("MatMul", query, self("Transpose", key, perm=[0, 1, 3, 2]))
        if mask:
            hidden = self("Sub", self.constant(np.int64(1)), mask)
            penalty = self("Mul", self("Cast", hidden, to=1), self.constant(np.float32(-1e4)))
            scores = self("Add", scores, self("Unsqueeze", penalty, self.integers(1, 2)))
        mixed = self("MatMul", self("Softmax", scores, axis=-1), value)
        mixed = self("Transpose", mixed, perm=[0, 2, 1, 3])
        return [self("Reshape", mixed, self.integers(0, 0, HIDDEN)), key, value]

    def model(self, *outputs: str) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def cached_decoder(
    *,
    ids: Any = ("batch", "sequence"),
    cache: Any = ("batch", HEADS, "past", HEAD_SIZE),
    mask: Any = ("batch", "total"),
    positions: Any = ("batch", "sequence"),
    first: str = "copied",
) -> ModelProto:
    """Embedding, positions, one layer of attention, a head; None leaves an input out."""
    graph = Graph()
    graph.input("input_ids", TensorProto.INT64, ids)
    if mask is not None:
        graph.input("attention_mask", TensorProto.INT64, mask)
    if positions is not None:
        graph.input("position_ids", TensorProto.INT64, positions)
    for name in CACHES:
        graph.input(name, TensorProto.FLOAT, cache)
    x = graph("Gather", graph.constant(ternary(VOCABULARY, HIDDEN, 7)), "input_ids")
    if positions is not None:
        places = graph("Gather", graph.constant(ternary(LONGEST, HIDDEN, 8)), "position_ids")
        x = graph("Add", x, places)
    mixed, key, value = graph.attention(
        x, CACHES, "attention_mask" if mask is not None else "", first=first
    )
    logits = graph("MatMul", mixed, graph.constant(ternary(HIDDEN, VOCABULARY, 9)))
    return graph.model(logits, key, value)


def grouped_query_decoder(head_size: Any = HEAD_SIZE) -> ModelProto:
    """As onnxruntime-genai's builder writes it: GroupQueryAttention, lengths from the mask."""
    graph = Graph()
    graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    graph.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    cache = ["batch_size", HEADS, "past_sequence_length", head_size]
    for name in CACHES:
        graph.input(name, TensorProto.FLOAT, cache)
    x = graph("Gather", graph.constant(ternary(VOCABULARY, HIDDEN, 7)), "input_ids")
    qkv = [graph("MatMul", x, graph.constant(ternary(HIDDEN, HIDDEN, at))) for at in range(3)]
    counted = graph("ReduceSum", "attention_mask", graph.integers(1), keepdims=1)
    lengths = graph("Sub", counted, graph.constant(np.int64(1)))
    lengths = graph("Cast", lengths, to=TensorProto.INT32)
    total = graph("Gather", graph("Shape", "attention_mask"), graph.constant(np.int64(1)))
    total = graph("Cast", total, to=TensorProto.INT32)
    table = np.random.default_rng(3).random((LONGEST, HEAD_SIZE // 2)).astype(np.float32)
    outputs = ["mixed", "present.key", "present.value"]
    graph.nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            [*qkv, *CACHES, lengths, total, graph.constant(table), graph.constant(table)],
            outputs,
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            do_rotary=1,
        )
    )
    logits = graph("MatMul", "mixed", graph.constant(ternary(HIDDEN, VOCABULARY, 9)))
    return graph.model(logits, *outputs[1:])


def counted_decoder() -> ModelProto:
    """GroupQueryAttention whose lengths are inputs of the model."""
    model = grouped_query_decoder()
    counted = {node.output[0]: node for node in model.graph.node}
    attention = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    for node in list(model.graph.node):
        if node.op_type in ("ReduceSum", "Sub", "Shape", "Cast") or (
            node.op_type == "Gather" and counted.get(node.input[0])
        ):
            model.graph.node.remove(node)
    attention.input[5:7] = ["seqlens_k", "total_sequence_length"]
    del model.graph.input[1]
    model.graph.input.extend(
        [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        ]
    )
    return model


def static_cache_decoder() -> ModelProto:
    """A cache of fixed length that new keys are written into, at positions that are an input."""
    graph = Graph()
    graph.input("input_ids", TensorProto.INT64, [1, 1])
    graph.input("cache_position", TensorProto.INT64, [1])
    for name in CACHES:
        graph.input(name, TensorProto.FLOAT, [LONGEST, HIDDEN])
    x = graph("Gather", graph.constant(ternary(VOCABULARY, HIDDEN, 7)), "input_ids")
    key = graph("Squeeze", graph("MatMul", x, graph.constant(ternary(HIDDEN, HIDDEN, 1))))
    places = graph("Unsqueeze", "cache_position", graph.integers(1))
    rows = graph("Unsqueeze", key, graph.integers(0))
    keys = graph("ScatterND", CACHES[0], places, rows)
    scores = graph("MatMul", x, graph("Transpose", keys, perm=[1, 0]))
    mixed = graph("MatMul", graph("Softmax", scores, axis=-1), CACHES[1])
    logits = graph("MatMul", mixed, graph.constant(ternary(HIDDEN, VOCABULARY, 9)))
    return graph.model(logits, keys)


def merged_decoder() -> ModelProto:
    """optimum's merged decoder: an If between a prompt without and a step with a cache."""
    graph = Graph()
    graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    graph.input(
        "attention_mask",
        TensorProto.INT64,
        ["batch_size", "past_sequence_length + sequence_length"],
    )
    cache = ["batch_size", HEADS, "past_sequence_length", HEAD_SIZE]
    for name in CACHES:
        graph.input(name, TensorProto.FLOAT, cache)
    graph.input("use_cache_branch", TensorProto.BOOL, [1])
    branches = {}
    for name, caches in (("then_branch", CACHES), ("else_branch", ())):
        inner = Graph()
        x = inner("Gather", inner.constant(ternary(VOCABULARY, HIDDEN, 7)), "input_ids")
        results = inner.attention(x, caches, "", first="computed")
        logits = inner("MatMul", results[0], inner.constant(ternary(HIDDEN, VOCABULARY, 9)))
        for node in inner.nodes:
            for names in (node.input, node.output):
                names[:] = [f"{name}/{n}" if "_" in n and n not in known else n for n in names]
        for tensor in inner.tensors:
            tensor.name = f"{name}/{tensor.name}"
        branches[name] = helper.make_graph(
            inner.nodes,
            name,
            [],
            [
                helper.make_tensor_value_info(f"{name}/{value}", TensorProto.FLOAT, None)
                for value in (logits, *results[1:])
            ],
            inner.tensors,
        )
    outputs = ["logits", "present.0.key", "present.0.value"]
    graph.nodes.append(
        helper.make_node("If", ["use_cache_branch"], outputs, name="optimum::if", **branches)
    )
    return graph.model(*outputs)


known = {"input_ids", "attention_mask", *CACHES}
