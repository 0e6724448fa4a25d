"""What the calls of a local function decide about the products inside it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnx_ternary._walk import nodes_in
from onnx_ternary.op.nodes import local_functions, node_label

from .constants.constant import INLINE, Constant
from .local_calls import called
from .match import Context, Rejection
from .site import Site, function_name

_MAX_STEPS = 64


class Functions:
    """What products inside local functions may not have: what differs from call to call."""

    def __init__(
        self,
        site: Site,
        context: Context,
        tried: Mapping[ir.OperatorIdentifier, str],
        *,
        with_body: bool,
    ) -> None:
        """What is known of a model's functions.

        Args:
            site: of the model.
            context: of the conversion.
            tried: by function, why its product stays float with the weight a call gives.
            with_body: whether the op's function body is written.
        """
        self._tried = tried
        self._site, model = site, site.model
        self._context = context
        self._with_body = with_body
        self._calls: dict[ir.OperatorIdentifier, list[ir.Node]] = {
            function.identifier(): [] for function in local_functions(model)
        }
        for graph in (model.graph, *(each.graph for each in local_functions(model))):
            for node in nodes_in(graph):
                function = called(model, node)
                if function is not None and function.identifier() in self._calls:
                    self._calls[function.identifier()].append(node)

    def refusal(self, node: ir.Node) -> str:
        """Why a product inside a local function stays; empty if nothing is against it."""
        function = self._site.function_of(node)
        if function is None:
            references = [name for name, attr in node.attributes.items() if attr.is_ref()]
            if references:
                return f"its attribute {references[0]} is one of a function, and it is in none"
            return ""
        name = function_name(function)
        if not self._with_body:
            return (
                f"it is inside local function {name}, where ONNX Runtime finds the types of the op "
                "through its function body only, and that is switched off"
            )
        opset, models_opset = function.opset_imports.get(""), self._site.opset
        if opset not in (None, models_opset):
            return (
                f"local function {name} imports opset {opset}, the model {models_opset}; the op's "
                "function body serves one opset"
            )
        for attribute, attr in node.attributes.items():
            if attr.is_ref():
                return f"its attribute {attribute} is given by every call of {name}; {INLINE}"
        return ""

    def explained(self, rejection: Rejection) -> Rejection:
        """The rejection, or one that says that the function's calls give the weight."""
        node = rejection.node
        function = self._site.function_of(node)
        values = [value for value in node.inputs if value is not None]
        if function is None or any(
            isinstance(self._context.resolve(each), Constant) for each in values
        ):
            return rejection
        name = function_name(function)
        for value in values:
            source = _source(value)
            if source not in function.inputs:
                continue
            if call := self._constant_call(function, function.inputs.index(source)):
                given = f"weight '{source.name}' is an input of local function {name}, and"
                if tried := self._tried.get(function.identifier()):
                    return Rejection(
                        node, f"{given} no call that is left gives a ternary one ({call}): {tried}"
                    )
                return Rejection(node, f"{given} every call gives its own ({call}); {INLINE}")
        return rejection

    def _constant_call(self, function: ir.Function, position: int) -> str:
        """A call that gives a constant for an input, also through other functions; or nothing."""
        waiting, seen = [(function, position)], {(id(function), position)}
        while waiting:
            each, at = waiting.pop()
            for node in self._calls[each.identifier()]:
                value = node.inputs[at] if at < len(node.inputs) else None
                if value is None:
                    continue
                constant = self._context.resolve(value)
                if isinstance(constant, Constant):
                    return f"'{node_label(node)}' gives '{constant.name}'"
                caller = self._site.function_of(node)
                if caller is None or value not in caller.inputs:
                    continue
                key = (id(caller), caller.inputs.index(value))
                if key not in seen:
                    seen.add(key)
                    waiting.append((caller, key[1]))
        return ""


def _source(value: ir.Value) -> ir.Value:
    """What a chain of steps with one operand each starts from, scales and shapes apart."""
    for _ in range(_MAX_STEPS):
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.inputs else None
        if source is None:
            return value
        value = source
    return value
