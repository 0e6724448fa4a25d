"""Converted models that were merged with prefixes: the operator under its own name again.

    a_TernaryIndexedMatMul, a function of its own   =>   TernaryIndexedMatMul

`onnx.compose` puts its prefixes on local functions too. What is left calls a function, and runs
without the operator: right answers, at the speed and memory of the float model.

1. A function of the op's domain, named like the op behind a prefix, whose nodes are letter by
   letter those of the body this version writes: its calls become the op.
2. Any other function named so is left alone, and the report says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.op.body_nodes import NoBody
from onnx_ternary.op.function_body import MIN_IR_VERSION, BodyVariant, make_function_body
from onnx_ternary.op.nodes import constant_tensor, node_label
from onnx_ternary.schema import DOMAIN, INPUT_NAMES, OP_TYPE

from .function_body import variant_of

_REPAIR = (
    "so it runs by its definition, at the speed and memory of the float model; merge the "
    "originals, and convert the result"
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found of operators under other names.

    Attributes:
        nodes: names of the nodes that call the operator again.
        notes: what the user should know.
        others: the functions that stay.
    """

    nodes: tuple[str, ...]
    notes: tuple[str, ...]
    others: frozenset[ir.OperatorIdentifier]


def restore(model: ir.Model) -> Restored:
    """Give nodes of ``model`` that call the op's body under another name the op's name."""
    nodes: list[str] = []
    notes: list[str] = []
    others: set[ir.OperatorIdentifier] = set()
    for key, function in list(model.functions.items()):
        if function.domain != DOMAIN or not function.name.endswith(OP_TYPE):
            continue
        if function.name == OP_TYPE:
            continue
        calls = _calls(model, key)
        if _is_body(function, calls, model):  # case 1
            for node in calls:
                node.op_type = OP_TYPE
            del model.functions[key]
            nodes += map(node_label, calls)
            notes.append(
                f"'{function.name}', the operator as onnx.compose renames it, has its name again"
            )
        else:  # case 2
            others.add(key)
            notes.append(
                f"'{function.name}' is named like the operator renamed by onnx.compose, but its "
                f"definition is not the one this version writes, {_REPAIR}"
            )
    return Restored(tuple(nodes), tuple(notes), frozenset(others))


def _calls(model: ir.Model, key: ir.OperatorIdentifier) -> list[ir.Node]:
    owners = (model.graph, *(each.graph for each in model.functions.values()))
    return [
        node
        for owner in owners
        for node in ir.traversal.RecursiveGraphIterator(owner)
        if node.op_identifier() == key
    ]


def _is_body(function: ir.Function, calls: list[ir.Node], model: ir.Model) -> bool:
    """Whether a function is the body that nodes with its calls' attributes and tensors get."""
    opset = model.opset_imports.get("", 0)
    variants: list[BodyVariant] = []
    for node in calls:
        tensors = node.inputs[1:]
        if len(node.inputs) != len(INPUT_NAMES) or None in map(constant_tensor, tensors):
            return False
        try:
            variant = variant_of(node, opset)
        except IndexFormatError:
            return False
        if variant is None:
            return False
        variants.append(variant)
    body = make_function_body(variants, opset, max(model.ir_version, MIN_IR_VERSION))
    if isinstance(body, NoBody):
        return False
    return _content(function) == _content(ir.serde.deserialize_function(body))


def _content(function: ir.Function) -> bytes:
    """Everything of a function but its name and what it says about itself."""
    proto = ir.serde.serialize_function(function)
    for field in ("name", "doc_string", "metadata_props", "value_info"):
        proto.ClearField(field)
    return bytes(onnx.FunctionProto.SerializeToString(proto, deterministic=True))
