"""Which products the user chose by name, and which of the names nothing has."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnx_ternary.op.nodes import node_label

from .constants.constant import Constant
from .match import Context


class Choice:
    """`OptimizeOptions.include` and ``exclude``, for one model.

    A pattern stands for a product by the name that reports give it, or by the name of its weight:
    as a glob, or letter by letter, so that names with brackets can be copied from a table.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._include, self._exclude = context.options.include, context.options.exclude
        self._unmatched = dict.fromkeys((*self._include, *self._exclude))
        self._refusals: dict[ir.Node, str] = {}

    def refusal(self, node: ir.Node) -> str:
        """Why a product is not among the chosen ones; empty if it is."""
        if not (self._include or self._exclude):
            return ""
        if node not in self._refusals:
            self._refusals[node] = self._find(node)
        return self._refusals[node]

    def unmatched(self, others: tuple[str, ...]) -> tuple[str, ...]:
        """Patterns that matched no product asked about, and none of ``others``, names."""
        return tuple(
            pattern
            for pattern in self._unmatched
            if not any(_matches(name, pattern) for name in others)
        )

    def _find(self, node: ir.Node) -> str:
        names = list(self._names(node))
        found = [
            pattern
            for pattern in (*self._exclude, *self._include)
            if any(_matches(name, pattern) for name in names)
        ]
        for pattern in found:
            self._unmatched.pop(pattern, None)
        excluding = next((pattern for pattern in self._exclude if pattern in found), None)
        if excluding is not None:
            return f"excluded by '{excluding}'"
        if self._include and not any(pattern in found for pattern in self._include):
            return "not among the nodes to include"
        return ""

    def _names(self, node: ir.Node) -> Iterator[str]:
        yield node_label(node)
        for value in node.inputs:
            operand = None if value is None else self._context.resolve(value)
            if isinstance(operand, Constant):
                yield operand.name


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
