"""Resolve a constant operand without touching the graph.

An operand is constant when it is an initializer nobody can override, a Constant node, one of these
behind Identity, Transpose, Cast, QuantizeLinear, Clip, DequantizeLinear and QONNX Quant nodes, or,
with a folder (cones.py), the end of any other constant expression. `resolve` only looks at shapes
and dtypes (a constant expression is run to learn them); `Constant.numpy` reads and evaluates, one
tensor at a time.

Another way to find constants only has to return a `Constant` whose ``key`` identifies the value and
whose ``evaluate`` computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from . import dequantize, qonnx
from .constant import Constant, Folder, NotConstant, Numbers, call_attribute
from .straight_through import computed_here, straight_through, taken_for_quantized

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
_INTEGERS = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.INT4,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT4,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)


_CHAIN = frozenset({("", "Cast"), ("", "Identity"), ("", "Transpose")})
# Each of them is a call inside a call when the constant is evaluated; cones.py takes more.
_MAX_CHAIN = 64


def resolve(value: ir.Value, folder: Folder | None = None) -> Constant | NotConstant:
    """Follow ``value`` back to the constant it comes from.

    Args:
        value: an operand.
        folder: finds constant expressions; None leaves them alone.
    """
    # By id; the values are held so that no id comes back.
    found = {} if folder is None else folder.resolved
    waiting = [value]
    while waiting:
        each = waiting[-1]
        unknown = [] if id(each) in found else [v for v in _sources(each) if id(v) not in found]
        if unknown:
            waiting += unknown
            continue
        if id(each) not in found:
            found[id(each)] = (each, _resolve(each, lambda source: found[id(source)][1], folder))
        waiting.pop()
    return found[id(value)][1]


_Resolved = Callable[[ir.Value], Constant | NotConstant]


def _sources(value: ir.Value) -> list[ir.Value]:
    """Operands `_resolve` asks for."""
    producer = value.producer()
    if producer is None or not producer.inputs or call_attribute(producer):
        return []
    kind = (producer.domain, producer.op_type)
    if kind in _CHAIN:
        return [each for each in producer.inputs[:1] if each is not None]
    if kind in dequantize.STEPS or kind in qonnx.STEPS:
        return [each for each in producer.inputs if each is not None]
    estimator = straight_through(value)
    return [] if estimator is None else [estimator.quantized, estimator.master]


def _resolve(value: ir.Value, resolved: _Resolved, folder: Folder | None) -> Constant | NotConstant:
    if (constant := leaf(value)) is not None:
        return constant
    producer = value.producer()
    assert producer is not None  # everything else is a leaf
    name = producer.name or producer.op_type
    if refused := call_attribute(producer):
        refusal = NotConstant(f"'{value.name}' is computed by {refused}", False)
        return refusal if folder is None else folder.resolve(value)
    if (
        (producer.domain, producer.op_type) in _CHAIN
        and producer.inputs
        and (source := producer.inputs[0]) is not None
    ):
        inner = resolved(source)
        if isinstance(inner, NotConstant):
            return inner
        found = _apply(producer, inner)
        if isinstance(found, Constant) or folder is None:
            return found
    step: Constant | NotConstant | None = None
    kind = (producer.domain, producer.op_type)
    if kind in dequantize.STEPS or kind in qonnx.STEPS:
        step = _resolve_step(producer, resolved)
        # Nothing but qonnx.py runs QONNX's operators.
        if isinstance(step, Constant) or (step is not None and kind in qonnx.STEPS):
            return step
    if folder is not None:
        evaluated = folder.resolve(value)
        if (ends := straight_through(value)) is not None:
            quantized, master = resolved(ends.quantized), resolved(ends.master)
            if isinstance(quantized, Constant) and isinstance(evaluated, Constant):
                return taken_for_quantized(evaluated, quantized)
            if isinstance(quantized, Constant) and isinstance(master, Constant):
                return computed_here(ends, quantized, master, producer) or evaluated
        return evaluated if isinstance(evaluated, Constant) or step is None else step
    if step is not None:
        return step
    return NotConstant(
        f"'{value.name}' is computed at run time (by {producer.op_type} '{name}')", True
    )


def detached(value: ir.Value) -> Constant | None:
    """A tensor of the model, or its transpose, read through a mapping of its own.

    Another thread may read it; `resolve` gives the same value the same key. None for what other
    nodes compute.
    """
    steps: list[ir.Node] = []
    while (step := value.producer()) is not None and len(steps) < _MAX_CHAIN:
        source = step.inputs[0] if step.inputs else None
        if step.domain or step.op_type not in ("Identity", "Transpose") or source is None:
            return None
        if call_attribute(step):
            return None
        steps.append(step)
        value = source
    found = _resolve_initializer(value)
    tensor = value.const_value
    if isinstance(found, Constant) and isinstance(tensor, ir.ExternalTensor):
        twin = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=tensor.base_dir,
        )
        found = _from_tensor(value, twin)
    for step in reversed(steps):
        if isinstance(found, Constant):
            found = _apply(step, found)
    return found if isinstance(found, Constant) else None


def leaf(value: ir.Value) -> Constant | NotConstant | None:
    """A value nothing but a Constant node makes; None for what other nodes compute."""
    producer = value.producer()
    if producer is None:
        return _resolve_initializer(value)
    if producer.domain == "" and producer.op_type == "Constant":
        return _resolve_constant_node(value, producer)
    return None


def _resolve_step(node: ir.Node, resolved: _Resolved) -> Constant | NotConstant | None:
    """The result of a step of dequantize.py or qonnx.py; None if its first input is activations."""
    operands = [None if value is None else resolved(value) for value in node.inputs]
    first = operands[0] if operands else None
    if first is None or (isinstance(first, NotConstant) and first.at_run_time):
        return None
    constants: list[Constant | None] = []
    for operand in operands:
        if isinstance(operand, NotConstant):
            if operand is first:
                return operand
            assert isinstance(first, Constant)
            return NotConstant(
                f"'{first.name}' goes through {node.op_type} '{node.name}', where {operand.reason}",
                False,
            )
        constants.append(operand)
    if sum(len(each.nodes) for each in constants if each is not None) > _MAX_CHAIN:
        return _too_long(node, first)
    steps = qonnx if (node.domain, node.op_type) in qonnx.STEPS else dequantize
    made = steps.apply(node, constants)
    return NotConstant(made, False) if isinstance(made, str) else made


def _resolve_initializer(value: ir.Value) -> Constant | NotConstant:
    if value.is_initializer() and value.is_graph_input():
        return NotConstant(
            f"'{value.name}' is also a graph input, so a caller may override it; "
            "--constant-initializers (constant_initializers=True) makes it a constant",
            False,
        )
    tensor = value.const_value
    if not value.is_initializer() or tensor is None:
        return NotConstant(f"'{value.name}' is given at run time", True)
    return _from_tensor(value, tensor)


def _resolve_constant_node(value: ir.Value, node: ir.Node) -> Constant | NotConstant:
    unusable = NotConstant(
        f"'{value.name}' is a Constant without a dense numeric tensor ('{node.name}')", False
    )
    if len(node.attributes) != 1:
        return unusable
    (attr,) = node.attributes.values()
    if attr.is_ref():
        return NotConstant(f"'{value.name}' is computed by {call_attribute(node)}", False)
    # Not ir.convenience.get_const_tensor: it writes the value's name into the user's tensor.
    if attr.name == "value":
        return _from_tensor(value, attr.as_tensor())
    if attr.name in ("value_float", "value_floats"):
        return _from_tensor(value, ir.Tensor(np.array(attr.value, np.float32)))
    if attr.name in ("value_int", "value_ints"):
        return _from_tensor(value, ir.Tensor(np.array(attr.value, np.int64)))
    return unusable


def _from_tensor(value: ir.Value, tensor: ir.TensorProtocol) -> Constant | NotConstant:
    if tensor.dtype == ir.DataType.STRING:
        return NotConstant(f"'{value.name}' holds strings", False)
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    return Constant(
        root=value,
        nodes=(),
        key=(id(value),),
        shape=shape,
        dtype=tensor.dtype,
        stored_bytes=int(tensor.nbytes),
        evaluate=Numbers(tensor.numpy),
    )


def _too_long(node: ir.Node, constant: Constant | NotConstant) -> NotConstant:
    name = constant.name if isinstance(constant, Constant) else ""
    return NotConstant(
        f"'{name}' goes through more than {_MAX_CHAIN} steps up to {node.op_type} '{node.name}'",
        False,
    )


def _apply(node: ir.Node, constant: Constant) -> Constant | NotConstant:
    if len(constant.nodes) >= _MAX_CHAIN:
        return constant if node.op_type == "Identity" else _too_long(node, constant)
    constant = replace(constant, nodes=(*constant.nodes, node))
    if node.op_type == "Identity":
        return constant
    if node.op_type == "Transpose":
        rank = len(constant.shape)
        perm_attr = node.attributes.get("perm")
        perm = tuple(perm_attr.as_ints()) if perm_attr else tuple(range(rank))[::-1]
        if sorted(perm) != list(range(rank)):
            return NotConstant(
                f"'{constant.name}' has rank {rank}, but Transpose '{node.name}' has perm "
                f"{list(perm)}",
                False,
            )
        return constant.permuted(perm)
    return _cast(node, constant)


def _cast(node: ir.Node, constant: Constant) -> Constant | NotConstant:
    target = ir.DataType(node.attributes["to"].as_int())
    if target == constant.dtype:
        return constant
    if target not in _FLOATS or constant.dtype not in _FLOATS | _INTEGERS:
        return NotConstant(
            f"'{constant.name}' is cast from {constant.dtype.name} to {target.name} by "
            f"'{node.name}', which this version does not evaluate",
            False,
        )
    old = constant.key if isinstance(constant.key, tuple) else (constant.key,)
    # Elementwise: it commutes with the transposes, which stay last in the key to cancel.
    transposes = tuple(part for part in old if isinstance(part, tuple) and part[0] == "transpose")
    others = tuple(part for part in old if part not in transposes)

    return replace(
        constant,
        key=(*others, ("cast", int(target)), *transposes),
        dtype=target,
        evaluate=constant.evaluate.cast(target.numpy()),
    )
