"""Converted models that were merged with prefixes: the operators under their own names again.

    a_TernaryIndexedMatMul, a function of its own   =>   TernaryIndexedMatMul

`onnx.compose` puts its prefixes on local functions too. What is left calls a function, and runs
without the operator: right answers, at the speed and memory of the float model.

1. A function of the operators' domain, named like one of them behind a prefix, whose nodes are
   letter by letter those of the body this version writes: its calls become the operator.
2. Any other function named so is left alone, and the report says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_ternary._walk import nodes_in
from onnx_ternary.errors import IndexFormatError
from onnx_ternary.op.body_nodes import MIN_IR_VERSION, NoBody
from onnx_ternary.op.nodes import constant_tensor, node_label
from onnx_ternary.schema import DOMAIN, GATHER_INPUT_NAMES, GATHER_TYPE, INPUT_NAMES, OP_TYPES

from .function_body import body_of

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
    """Give nodes of ``model`` that call an operator's body under another name its name."""
    nodes: list[str] = []
    notes: list[str] = []
    others: set[ir.OperatorIdentifier] = set()
    for key, function in list(model.functions.items()):
        op_type = next((each for each in OP_TYPES if function.name.endswith(each)), "")
        if function.domain != DOMAIN or not op_type or function.name == op_type:
            continue
        calls = _calls(model, key)
        for node in calls:
            node.op_type = op_type
        if _is_body(function, calls, model):  # case 1
            del model.functions[key]
            nodes += map(node_label, calls)
            notes.append(
                f"'{function.name}', the operator as onnx.compose renames it, has its name again"
            )
        else:  # case 2
            for node in calls:
                node.op_type = function.name
            others.add(key)
            notes.append(
                f"'{function.name}' is named like the operator renamed by onnx.compose, but its "
                f"definition is not the one this version writes, {_REPAIR}"
            )
    return Restored(tuple(nodes), tuple(notes), frozenset(others))


def _calls(model: ir.Model, key: ir.OperatorIdentifier) -> list[ir.Node]:
    owners = (model.graph, *(each.graph for each in model.functions.values()))
    return [node for owner in owners for node in nodes_in(owner) if node.op_identifier() == key]


def _is_body(function: ir.Function, calls: list[ir.Node], model: ir.Model) -> bool:
    """Whether a function is the body that nodes with its calls' attributes and tensors get."""
    for node in calls:
        names = GATHER_INPUT_NAMES if node.op_type == GATHER_TYPE else INPUT_NAMES
        if len(node.inputs) != len(names) or None in map(constant_tensor, node.inputs[1:]):
            return False
    opset = model.opset_imports.get("", 0)
    try:
        body = body_of(calls, opset, max(model.ir_version, MIN_IR_VERSION))
    except IndexFormatError:
        return False
    if isinstance(body, NoBody):
        return False
    return _content(function) == _content(ir.serde.deserialize_function(body))


def _content(function: ir.Function) -> bytes:
    """Everything of a function but its name and what it says about itself."""
    proto = ir.serde.serialize_function(function)
    for field in ("name", "doc_string", "metadata_props", "value_info"):
        proto.ClearField(field)
    return bytes(onnx.FunctionProto.SerializeToString(proto, deterministic=True))
