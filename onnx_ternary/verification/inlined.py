"""The original with the calls of local functions written out that conversion has written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from onnx_ternary.model_files.inlining import CallKey, calls, can_inline, inline_calls
from onnx_ternary.verification.loaded_model import LoadedModel

# As many as conversion writes out, one inside the other.
_MAX_ROUNDS = 32


def with_inlined_calls(before: LoadedModel, after: LoadedModel) -> LoadedModel:
    """The original, with the values of the converted model that stand in functions there.

    A call was written out where the converted model has no call with its result.
    """
    if not before.proto.functions:
        return before
    kept = {key for key, _ in calls(ir.from_proto(after.proto))}
    model = ir.from_proto(before.proto)
    changed = False
    for _ in range(_MAX_ROUNDS):
        missing = list(_missing(model, kept))
        if not missing:
            break
        inline_calls(model, missing)
        changed = True
    return replace(before, proto=ir.to_proto(model)) if changed else before


def _missing(model: ir.Model, kept: set[CallKey]) -> Iterator[CallKey]:
    owners = model.functions
    for key, node in calls(model):
        caller = None if key[0] is None else owners[key[0]]
        function = owners[node.op_identifier()]
        if key not in kept and can_inline(model, node, function, caller):
            yield key
