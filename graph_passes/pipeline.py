"""Ask every rule about every product, and replace what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnx_ternary.nodes import node_label, op_nodes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.report import Kept
from onnx_ternary.schema import DOMAIN, OP_TYPE

from . import conv, einsum, gemm, matmul, matmul_integer, matmul_nbits, unhandled
from .cones import folding
from .match import Context, Rejection, Rule, TernaryMatMul
from .replace import Replaced, Replacer
from .weights import Constant, resolve

RULES: tuple[Rule, ...] = (
    *matmul.RULES,
    *gemm.RULES,
    *einsum.RULES,
    *conv.RULES,
    *matmul_integer.RULES,
    *matmul_nbits.RULES,
    *unhandled.RULES,
)

# Gemm and Add broadcast differently before; models below IR 4 cannot hold a constant initializer.
_MIN_OPSET = 7
_MIN_IR_VERSION = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PassResult:
    """What `run` did."""

    replaced: Replaced
    rejections: tuple[Kept, ...]
    already_converted: tuple[str, ...]


def run(model: ir.Model, options: OptimizeOptions, progress: Progress | None = None) -> PassResult:
    """Replace the ternary products of ``model``, in place.

    Args:
        model: is changed only if something is replaced.
        options: the user's choices.
        progress: called before each product with its name, its index and their number.
    """
    with folding(model, fold=options.fold):
        return _run(model, options, progress)


def _run(model: ir.Model, options: OptimizeOptions, progress: Progress | None) -> PassResult:
    context = Context(options)
    replacer = Replacer(model, options)
    whole_model = _refusal_of_model(model)
    rejections: list[Kept] = []
    already = [node_label(node) for node in op_nodes(model)]
    products = list(_products(model))
    for position, (node, where) in enumerate(products):
        if progress is not None:
            progress(node_label(node), position, len(products))
        found = _match(node, where, whole_model, context)
        refused = replacer.replace(found, where) if isinstance(found, TernaryMatMul) else found
        if refused is not None:
            name, op_type = node_label(refused.node), refused.node.op_type
            rejections.append(Kept(name, op_type, where, refused.weight, refused.reason))
    return PassResult(replacer.finish(), tuple(rejections), tuple(already))


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Every product some rule is asked about, and a description of the graph it is in."""
    op_types = frozenset[tuple[str, str]]().union(*(rule.op_types for rule in RULES))

    def walk(nodes: ir.Graph | ir.Function, where: str) -> Iterator[tuple[ir.Node, str]]:
        for node in nodes:
            if (node.domain, node.op_type) in op_types:
                yield node, where
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                inner = f"{attr.name} of {node.op_type} '{node_label(node)}'"
                if attr.type == ir.AttributeType.GRAPH:
                    yield from walk(attr.as_graph(), inner)
                elif attr.type == ir.AttributeType.GRAPHS:
                    for graph in attr.as_graphs():
                        yield from walk(graph, inner)

    yield from walk(model.graph, "main graph")
    for function in model.functions.values():
        if (function.domain, function.name) != (DOMAIN, OP_TYPE):
            for node, _ in walk(function, ""):
                yield node, f"function {function.domain}::{function.name}"


def _refusal_of_model(model: ir.Model) -> str:
    opset = model.opset_imports.get("", 0)
    if model.ir_version < _MIN_IR_VERSION:
        return (
            f"the model has IR version {model.ir_version}, in which every initializer may be "
            f"overridden by the caller; {_MIN_IR_VERSION} or later is needed"
        )
    if opset < _MIN_OPSET:
        return f"the model has opset {opset}; {_MIN_OPSET} or later is needed"
    return ""


def _match(
    node: ir.Node, where: str, whole_model: str, context: Context
) -> TernaryMatMul | Rejection:
    if whole_model:
        return Rejection(node, whole_model)
    if where.startswith("function "):
        return Rejection(
            node,
            f"it is inside local {where}; inline the model's functions first "
            "(onnx.inliner.inline_local_functions) to have it rewritten",
        )
    if reason := _excluded(node, context.options):
        return Rejection(node, reason)
    for rule in RULES:
        if (node.domain, node.op_type) in rule.op_types:
            found = rule.match(node, context)
            if found is not None:
                return found
    return Rejection(node, "no rule for this form")


def _excluded(node: ir.Node, options: OptimizeOptions) -> str:
    if not (options.include or options.exclude):
        return ""
    names = [node.name or ""]
    for value in node.inputs:
        operand = None if value is None else resolve(value)
        if isinstance(operand, Constant):
            names.append(operand.name)
    for glob in options.exclude:
        if any(fnmatchcase(name, glob) for name in names):
            return f"excluded by '{glob}'"
    if options.include and not any(
        fnmatchcase(name, glob) for glob in options.include for name in names
    ):
        return "not among the nodes to include"
    return ""
