"""The original with the calls of local functions written out that conversion has written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from onnx_ternary._walk import nodes_in
from onnx_ternary.model_files.inlining import (
    MAX_NODES,
    MAX_ROUNDS,
    CallKey,
    calls,
    can_inline,
    inline_calls,
)
from onnx_ternary.verification.loaded_model import LoadedModel


def with_inlined_calls(before: LoadedModel, after: LoadedModel) -> LoadedModel:
    """The original, with the values of the converted model that stand in functions there.

    A call was written out where the converted model has no call with its result. What a conversion
    would not have written out stays too.
    """
    if not before.proto.functions:
        return before
    kept = {key for key, _ in calls(ir.from_proto(after.proto))}
    model = ir.from_proto(before.proto)
    changed = False
    num_nodes = 0
    for _ in range(MAX_ROUNDS):
        missing = dict(_missing(model, kept))
        num_nodes += sum(missing.values())
        if not missing or num_nodes > MAX_NODES:
            break
        inline_calls(model, missing.keys())
        changed = True
    return replace(before, proto=ir.to_proto(model)) if changed else before


def _missing(model: ir.Model, kept: set[CallKey]) -> Iterator[tuple[CallKey, int]]:
    """Calls that may have been written out, and the nodes they become."""
    owners = model.functions
    sizes = {key: sum(1 for _ in nodes_in(each)) for key, each in owners.items()}
    for key, node in calls(model):
        caller = None if key[0] is None else owners[key[0]]
        function = owners[node.op_identifier()]
        if key not in kept and can_inline(model, node, function, caller):
            yield key, sizes[node.op_identifier()]
