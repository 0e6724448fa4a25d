"""The nodes a constant expression runs: which ones may, and calls of local functions written out.

1. The operators of operators.py, and local functions made of these; QONNX's Quant, which qonnx.py
   computes (not inside functions that are called).
2. Every function is looked at once, however often it is called, and how many nodes its calls stand
   for is known before they are written out: calls of calls can double at every level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import AttributeProto, helper

from onnx_ternary.model_files.cycles import DOMAINS_OF_OPERATORS

from ..local_calls import called, real_domain, serialized
from . import qonnx
from .operators import EVALUATED

_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"}
    | {"RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of an expression.

    Attributes:
        proto: its operands and results by their names in the expression.
        imports: the opsets it belongs to.
        label: what messages call it.
    """

    proto: onnx.NodeProto
    imports: Mapping[str, int]
    label: str


@dataclass(frozen=True, slots=True)
class _Facts:
    """Why a function has no place in an expression, or nothing; and how many nodes it runs."""

    refusal: str
    num_nodes: int


class Nodes:
    """The nodes of one model, as steps.

    Args:
        model: without cycles and functions that call themselves.
        owners: the local function of each graph inside one, by the graph's id.
    """

    def __init__(self, model: ir.Model, owners: Mapping[int, ir.Function]) -> None:
        self._model = model
        self._owners = owners
        self._facts: dict[int, _Facts] = {}
        self._protos: dict[int, onnx.FunctionProto] = {}
        self._num_calls = 0

    def refusal(self, node: ir.Node) -> str:
        """Why a node has no place in an expression; empty if it has one (case 1)."""
        function = called(self._model, node)
        if function is not None:
            return self._of(function).refusal
        if (node.domain, node.op_type) in qonnx.STEPS:
            return ""
        return _refusal(node)

    def count(self, node: ir.Node) -> int:
        """How many operators run for a node (case 2)."""
        function = called(self._model, node)
        return 1 if function is None else self._of(function).num_nodes

    def steps(self, node: ir.Node, proto: onnx.NodeProto) -> Iterator[Step]:
        """A node, written as ``proto`` with names of the expression, with calls written out."""
        owner = self._owners.get(id(node.graph))
        imports = {**self._model.opset_imports, **(owner.opset_imports if owner else {})}
        function = called(self._model, node)
        if function is None:
            yield Step(proto, imports, label(node))
            return
        bodies = [self._body(function, proto)]
        while bodies:
            step = next(bodies[-1], None)
            if step is None:
                bodies.pop()
                continue
            key = (step.proto.domain, step.proto.op_type, _overload(step.proto))
            function = self._model.functions.get(key)
            if function is None:
                yield step
            else:
                bodies.append(self._body(function, step.proto))

    def _of(self, function: ir.Function) -> _Facts:
        waiting = [function]
        while waiting:
            each = waiting[-1]
            if id(each) in self._facts:
                waiting.pop()
                continue
            inner = [called(self._model, node) for node in each if _is_known(each)]
            unknown = [f for f in inner if f is not None and id(f) not in self._facts]
            if unknown:
                waiting += unknown
                continue
            self._facts[id(each)] = self._judge(each)
            waiting.pop()
        return self._facts[id(function)]

    def _judge(self, function: ir.Function) -> _Facts:
        """The facts of a function, once every function it calls has facts."""
        if not _is_known(function):
            return _Facts(f"local function {function.name}, which has the name of an operator", 1)
        refusals, num_nodes = [], 0
        for node in function:
            inner = called(self._model, node)
            if has_graph(node):
                refusals.append(f"{label(node)}, which contains {node.op_type}")
            elif inner is not None:
                refusals.append(self._facts[id(inner)].refusal)
                num_nodes += self._facts[id(inner)].num_nodes
            else:
                refusals.append(_refusal(node))
                num_nodes += 1
        return _Facts(next(filter(None, refusals), ""), num_nodes)

    def _body(self, function: ir.Function, call: onnx.NodeProto) -> Iterator[Step]:
        """The nodes of a call, with the names and attributes the call gives."""
        proto = self._protos.get(id(function))
        if proto is None:
            proto = self._protos[id(function)] = serialized(function)
        self._num_calls += 1
        prefix = f"call{self._num_calls}."
        imports = {each.domain: each.version for each in proto.opset_import}
        names = dict.fromkeys(proto.input, "") | dict(zip(proto.input, call.input, strict=False))
        results = dict(zip(proto.output, call.output, strict=False))
        names |= {inner: outer for inner, outer in results.items() if inner not in names and outer}
        given = {each.name: each for each in (*proto.attribute_proto, *call.attribute)}
        for node in proto.node:
            made = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
            made.name = f"{prefix}{node.name}" if node.name else ""
            if overload := _overload(node):
                made.overload = overload
            made.input.extend(names.get(name, "") for name in node.input)
            for name in node.output:
                names.setdefault(name, f"{prefix}{name}" if name else "")
                made.output.append(names[name])
            made.attribute.extend(_attributes(node, given))
            yield Step(made, imports, f"{node.op_type} '{node.name or node.op_type}'")
        for inner, outer in results.items():
            if outer and inner in proto.input:  # a function may hand an operand on as it is
                made = helper.make_node("Identity", [names[inner]], [outer])
                yield Step(made, {"": imports.get("", 1)}, f"function {proto.name}")


def _is_known(function: ir.Function) -> bool:
    return function.domain not in DOMAINS_OF_OPERATORS


def label(node: ir.Node) -> str:
    """What messages call a node."""
    return f"{node.op_type} '{node.name or node.op_type}'"


def has_graph(node: ir.Node) -> bool:
    """Whether a node has subgraphs."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attr.type in graphs for attr in node.attributes.values())


def _refusal(node: ir.Node) -> str:
    domain = real_domain(node)
    if node.op_type in EVALUATED.get(domain, ()):
        return ""
    if domain == "" and node.op_type in _RANDOM:
        return f"{label(node)}, which may give other numbers in every run"
    prefix = f"{domain}." if domain else ""
    return f"{prefix}{label(node)}, which this version does not evaluate"


def _overload(proto: onnx.NodeProto) -> str:
    return getattr(proto, "overload", "")


def _attributes(
    node: onnx.NodeProto, given: Mapping[str, AttributeProto]
) -> Iterator[AttributeProto]:
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            yield attribute
        elif attribute.ref_attr_name in given:
            made = AttributeProto()
            made.CopyFrom(given[attribute.ref_attr_name])
            made.name = attribute.name
            yield made
