"""Calls of local functions that give ternary weights, or attributes of products.

    Linear(x, w) { Transpose(w) -> MatMul(x, .) -> y },   Linear(h, W1), Linear(g, W2), ...

Inside such a function the weight is no constant. The calls that give a ternary one are written out
where they stand, and nothing else is: calls of float weights stay calls.

1. What each product of a function needs is a set of the function's inputs, or its attributes, found
   in one walk; a call inside the function hands its own needs on. A call that gives constants for
   one such set, and not for all inputs, may be worth it.
2. Such calls are written out in a copy of the model, round after round, and the rules are asked
   about the products that appear. The calls on the way to a product they take are then written out
   in the model itself.
3. No more nodes are written than `MAX_NODES`, and no more than `MAX_ROUNDS` calls deep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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
from onnx_ternary.model_files.tensors import constant_bytes
from onnx_ternary.op.nodes import is_own, local_functions
from onnx_ternary.options import OptimizeOptions

from .choice import Choice
from .constants.ahead import Ahead
from .constants.budget import Budget
from .constants.cones import Cones
from .local_calls import called, set_apart
from .match import Context, TernaryMatMul
from .rewrite.constant_inputs import held_constant
from .rules.catalogue import match_product, product_types
from .site import Site

_MAX_NEEDS = 64
_CALLS = "onnx_ternary.calls"


@dataclass(slots=True)
class Inlined:
    """What was written out, and why other calls were not.

    Attributes:
        labels: of the calls, in order.
        refusals: by function, why the product of a call that was looked at stays float.
    """

    labels: list[str] = field(default_factory=list)
    refusals: dict[ir.OperatorIdentifier, str] = field(default_factory=dict)


def inline_ternary_calls(model: ir.Model, options: OptimizeOptions) -> Inlined:
    """Write out the calls of local functions that give ternary weights, in place.

    Args:
        model: without functions that call themselves.
        options: of the conversion.
    """
    found = Inlined()
    if not any(_needs(model).values()):
        return found
    trial = model.clone()
    rounds = _write_out(trial, options)
    if not any(rounds):
        return found
    needed = _worth_it(trial, options, found)
    for keys in rounds:
        taken = [key for key in keys if key in needed]
        if taken:
            found.labels += [
                node.name or key[1] for key, node in calls(model) if key in needed and key in keys
            ]
            inline_calls(model, taken)
    return found


def _write_out(trial: ir.Model, options: OptimizeOptions) -> list[list[CallKey]]:
    """Write out every call of case 1; their keys, round by round."""
    rounds: list[list[CallKey]] = []
    num_nodes = 0
    for _ in range(MAX_ROUNDS):
        taken: list[CallKey] = []
        for key, node in _candidates(trial, options):
            function = trial.functions[node.op_identifier()]
            num_nodes += sum(1 for _ in nodes_in(function))
            if num_nodes > MAX_NODES:
                break
            before = node.metadata_props.get(_CALLS, "")
            step = "\0".join((*(key[0] or ("", "", "")), key[1], *node.op_identifier()))
            node.metadata_props[_CALLS] = f"{before}\1{step}" if before else step
            taken.append(key)
        if not taken:
            break
        inline_calls(trial, taken)
        rounds.append(taken)
    return rounds


def _worth_it(trial: ir.Model, options: OptimizeOptions, found: Inlined) -> set[CallKey]:
    """Calls on the way to a product that a rule takes (case 2)."""
    site = Site.of(trial)
    cones = Cones(site, Budget(options, constant_bytes(trial)), fold=options.fold)
    needed: set[CallKey] = set()
    with held_constant(trial, options), set_apart(trial), Ahead(options) as ahead:
        context = Context(options, site.opset, ahead, cones)
        choice = Choice(context)
        for node in _appeared(trial):
            steps = [step.split("\0") for step in node.metadata_props[_CALLS].split("\1")]
            match = None if choice.refusal(node) else match_product(node, context)
            if isinstance(match, TernaryMatMul):
                needed |= {(_identifier(step[:3]), step[3]) for step in steps}
            elif match is not None:
                domain, name, overload = steps[-1][4:]
                found.refusals.setdefault((domain, name, overload), match.reason)
    return needed


def _identifier(parts: list[str]) -> ir.OperatorIdentifier | None:
    domain, name, overload = parts
    return (domain, name, overload) if name else None


def _appeared(trial: ir.Model) -> Iterator[ir.Node]:
    """Products of calls that were written out."""
    for graph in (trial.graph, *(each.graph for each in local_functions(trial))):
        for node in list(nodes_in(graph)):
            if (node.domain, node.op_type) in product_types() and _CALLS in node.metadata_props:
                yield node


def _candidates(model: ir.Model, options: OptimizeOptions) -> list[tuple[CallKey, ir.Node]]:
    """Calls that give constants, or attributes, for what a product needs (case 1)."""
    needs = _needs(model)
    site = Site.of(model)
    found = []
    with held_constant(model, options), set_apart(model):
        cones = Cones(site, Budget(options, 0), fold=options.fold)
        every = [
            (key, node, function)
            for key, node in _calls_apart(model)
            if (function := called(model, node)) is not None and needs[function.identifier()]
        ]
        for key, node, function in every:
            caller = site.function_of(node)
            if not can_inline(model, node, function, caller):
                continue
            given = _given(node, len(function.inputs), cones)
            whole = (1 << len(function.inputs)) - 1
            if given & whole != whole and any(
                need & given == need for need in needs[function.identifier()]
            ):
                found.append((key, node))
    return found


def _calls_apart(model: ir.Model) -> Iterator[tuple[CallKey, ir.Node]]:
    """`inlining.calls` while their domains are set apart."""
    owners: list[tuple[ir.OperatorIdentifier | None, ir.Graph | ir.Function]]
    owners = [(None, model.graph)]
    owners += [(each.identifier(), each) for each in local_functions(model)]
    for owner, graph in owners:
        for node in nodes_in(graph):
            if called(model, node) is not None and node.outputs and node.outputs[0].name:
                yield (owner, node.outputs[0].name), node


def _given(node: ir.Node, num_inputs: int, cones: Cones) -> int:
    """What a call gives as constants, as bits: its operands, then its attributes."""
    given = 0
    for at in range(num_inputs):
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None or cones.status(value) is None:
            given |= 1 << at
    if not any(attr.is_ref() for attr in node.attributes.values()):
        given |= 1 << num_inputs
    return given


def _needs(model: ir.Model) -> Mapping[ir.OperatorIdentifier, frozenset[int]]:
    """What products of each function need to be constant: inputs as bits, then its attributes."""
    found: dict[ir.OperatorIdentifier, frozenset[int]] = {
        key: frozenset() for key in model.functions if is_own(*key[:2])
    }
    waiting = list(local_functions(model))
    opened: set[ir.OperatorIdentifier] = set()
    while waiting:
        function = waiting[-1]
        key = function.identifier()
        if key in found:
            waiting.pop()
            continue
        inner = {called(model, node) for node in nodes_in(function)} - {None}
        unknown = [each for each in inner if each and each.identifier() not in found]
        # Functions of damaged models may call themselves: such a call has no needs.
        if unknown and key not in opened:
            opened.add(key)
            waiting += unknown
            continue
        found |= {each.identifier(): frozenset() for each in unknown}
        found[key] = _needs_of(model, function, found)
        waiting.pop()
    return found


def _needs_of(
    model: ir.Model,
    function: ir.Function,
    known: Mapping[ir.OperatorIdentifier, frozenset[int]],
) -> frozenset[int]:
    masks = {value: 1 << at for at, value in enumerate(function.inputs)}
    attributes = 1 << len(function.inputs)
    found: set[int] = set()
    for node in nodes_in(function.graph):
        operands = [0 if value is None else masks.get(value, 0) for value in node.inputs]
        own = attributes if any(attr.is_ref() for attr in node.attributes.values()) else 0
        whole = own
        for each in operands:
            whole |= each
        for output in node.outputs:
            masks[output] = whole
        inner = called(model, node)
        if inner is not None:
            found |= {
                _handed_on(need, operands, own, len(inner.inputs))
                for need in known[inner.identifier()]
            }
        elif (node.domain, node.op_type) in product_types():
            factors = operands[:2]
            # A factor that is the function's own constant needs nothing, but for attributes.
            found |= {own} if 0 in factors else {each | own for each in factors}
        if len(found) > _MAX_NEEDS:
            break
    return frozenset(found - {0})


def _handed_on(need: int, operands: list[int], own: int, num_inputs: int) -> int:
    """What a call inside a function needs of that function's inputs and attributes."""
    found = own if need >> num_inputs & 1 else 0
    for at, operand in enumerate(operands):
        if need >> at & 1:
            found |= operand
    return found
