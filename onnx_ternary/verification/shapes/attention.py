"""Attention of both domains: heads, and caches of earlier keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size


def _group_query_attention(node: Node) -> None:
    """Query, key and value (B, S, H * D), the caches (B, H, P, D), seqlens and total."""
    query, key = node.shape(0), node.shape(1)
    heads, kv_heads = node.integer("num_heads", 0), node.integer("kv_num_heads", 0)
    if not query or len(query) != 3 or heads <= 0 or kv_heads <= 0:
        return
    share = heads if key else heads + 2 * kv_heads
    head_size = node.sizes.resolve(query[-1]).divided(share)
    for at in (3, 4):
        cache = node.shape(at)
        if cache is None or len(cache) != 4:
            continue
        node.equate(cache[0], query[0])
        node.equate(cache[1], Size(kv_heads))
        if head_size is not None:
            node.equate(cache[3], head_size)
        node.mark_cache(at, 2)
    past = node.shape(3)
    total = query[1] + past[2] if past is not None and len(past) == 4 else query[1]
    for at, offset in ((5, -1), (6, 0)):
        origin = node.scope.origins.get(node.input(at))
        if origin is not None:
            node.found.totals[origin.name] = total + Size(offset - origin.offset)
    made = None if head_size is None else head_size.times(heads)
    node.set((*query[:2], made if made is not None else node.sizes.fresh()))


def _attention(node: Node) -> None:
    """Multi-head attention of both domains: caches (B, H, P, D) of queries (B, S, H * D)."""
    query = node.shape(0)
    is_onnx = node.proto.op_type == "Attention"
    heads = node.integer("q_num_heads" if is_onnx else "num_heads", 0)
    kv_heads = node.integer("kv_num_heads", heads)
    for at in (4, 5) if is_onnx else (6, 7):
        cache = node.shape(at)
        if not query or cache is None or len(cache) != 4:
            continue
        node.equate(cache[0], query[0])
        head_size = query[3] if len(query) == 4 else None
        if len(query) == 3 and heads > 0:
            node.equate(cache[1], Size(kv_heads))
            head_size = node.sizes.resolve(query[2]).divided(heads)
        if head_size is not None:
            node.equate(cache[3], head_size)
        node.mark_cache(at, 2)
    node.set(query)


HANDLERS: Mapping[str, Handler] = {
    "GroupQueryAttention": _group_query_attention,
    **dict.fromkeys(("MultiHeadAttention", "Attention"), _attention),
}
