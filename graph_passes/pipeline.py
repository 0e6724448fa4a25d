"""Ask every rule about every product, and replace what they found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_ternary.model_files.tensors import Spool, constant_bytes, prefetch
from onnx_ternary.op.nodes import local_functions, node_label
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import Kept, StoredIndex

from .attributes import check_attributes
from .choice import Choice
from .constants.ahead import Ahead
from .constants.budget import LEAST_EXPANSION, Budget, OverBudget
from .constants.cones import Cones
from .converted_before import stored_indices
from .functions import Functions
from .local_calls import set_apart
from .match import Context, Rejection, TernaryMatMul
from .parameters import inline_ternary_calls
from .rewrite import remaining
from .rewrite.constant_inputs import FIRST_WITHOUT_INPUTS, held_constant
from .rewrite.finish import Replaced, first_three
from .rewrite.renamed import Restored, restore
from .rewrite.replace import Replacer
from .rules import table
from .rules.catalogue import match_product, product_types
from .site import Site, function_name

# Gemm and Add broadcast differently before.
_MIN_OPSET = 7
_READ_THROUGH = ("Cast", "DequantizeLinear", "Identity", "Transpose")
_MAX_READ_THROUGH = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _Found:
    """A product some rule is asked about.

    Attributes:
        node: the product.
        where: the graph it is in, in words.
        in_function: whether that graph lies inside a local function.
    """

    node: ir.Node
    where: str
    in_function: bool


@dataclass(frozen=True, slots=True)
class PassResult:
    """What `run` did."""

    replaced: Replaced
    rejections: tuple[Kept, ...]
    requantised: tuple[str, ...]
    indices: tuple[StoredIndex, ...]
    unmatched: tuple[str, ...]
    restored: tuple[str, ...]


def run(
    model: ir.Model,
    options: OptimizeOptions,
    progress: Progress | None = None,
    spool: Spool | None = None,
) -> PassResult:
    """Replace the ternary products of ``model``, in place.

    Args:
        model: is changed only if something is replaced or restored.
        options: the user's choices.
        progress: called before each product with its name, its index and their number.
        spool: where the tensors of indices go; None keeps them in memory.
    """
    check_attributes(model)
    restored = restore(model)
    inlined = inline_ternary_calls(model, options)
    budget = Budget(options, constant_bytes(model))
    site = Site.of(model)
    cones = Cones(site, budget, fold=options.fold)
    ir_version = model.ir_version
    with held_constant(model, options) as held, set_apart(model), Ahead(options) as ahead:
        replacer = Replacer(site, options, spool, cones, restored)
        context = Context(options, site.opset, ahead, cones)
        functions = Functions(site, context, inlined.refusals, with_body=options.function_body)
        done = _run(site, context, replacer, functions, ahead, _Charges(budget), restored, progress)
        held.keep = bool(done.replaced.rewrites or done.requantised)
    notes = [*done.replaced.notes]
    if inlined.labels:
        names = first_three([f"'{label}'" for label in inlined.labels])
        notes.append(
            f"calls of local functions were written out, for the weights they give: {names}"
        )
    if held.keep:
        model.ir_version = max(model.ir_version, FIRST_WITHOUT_INPUTS)
        notes += filter(None, [held.note(ir_version, model.ir_version)])
    return replace(done, replaced=replace(done.replaced, notes=tuple(notes)))


def _run(
    site: Site,
    context: Context,
    replacer: Replacer,
    functions: Functions,
    ahead: Ahead,
    charges: _Charges,
    restored: Restored,
    progress: Progress | None,
) -> PassResult:
    model = site.model
    whole_model = _refusal_of_model(model)
    rejections: list[Kept] = []
    requantised: list[str] = []
    indices = tuple(stored_indices(model))
    products = list(_nodes(model, product_types(), restored.others))
    choice = Choice(context)
    for position, product in enumerate(products):
        node, where = product.node, product.where
        if progress is not None:
            progress(node_label(node), position, len(products))
        window = max(ahead.num_products, 1)
        following = [each.node for each in products[position : position + window + 1]]
        _prefetch(following[-1])
        if not whole_model:
            context.read_ahead([each for each in following if not choice.refusal(each)])
        excluded = choice.refusal(node)
        refusal = whole_model or functions.refusal(node) or excluded
        found = Rejection(node, refusal) if refusal else match_product(node, context)
        if not refusal and isinstance(found, Rejection):
            found = functions.explained(found)
        if isinstance(found, TernaryMatMul):
            found = charges.refusal(found) or found
        refused = replacer.replace(found, where) if isinstance(found, TernaryMatMul) else found
        if refused is not None:
            name, op_type = node_label(refused.node), refused.node.op_type
            reason = refused.reason
            quantized, outcome = (
                (False, "") if excluded else _requantize(product, replacer, context)
            )
            if quantized:
                requantised.append(name)
            reason = f"{reason}; {outcome}" if outcome else reason
            rejections.append(
                Kept(name, op_type, where, refused.weight, reason, not_ternary=refused.not_ternary)
            )
        ahead.drop(node)
    if replacer.has_indices:
        _share_tables(model, context, replacer, choice, restored)
    return PassResult(
        replacer.finish(),
        tuple(rejections),
        tuple(requantised),
        indices,
        choice.unmatched(tuple(index.node for index in indices)),
        restored.nodes,
    )


def _share_tables(
    model: ir.Model, context: Context, replacer: Replacer, choice: Choice, restored: Restored
) -> None:
    """Let gathers of tables that products multiply by read the products' indices."""
    for gather in list(_nodes(model, table.OP_TYPES, restored.others)):
        if gather.in_function or choice.refusal(gather.node):
            continue
        if (found := table.match(gather.node, context)) is not None:
            replacer.share_table(found, context, gather.where)


class _Charges:
    """What the budget is charged for indices of weights no file holds.

    Every graph that uses an expression gets an index, so a few kilobytes could ask for gigabytes.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._charged: set[Hashable] = set()

    def refusal(self, match: TernaryMatMul) -> Rejection | None:
        """Why a product stays; None if it may be replaced."""
        weight = match.weight
        num_bytes = weight.size * weight.dtype.itemsize
        key = (id(match.product.graph), weight.key)
        if num_bytes <= LEAST_EXPANSION * weight.stored_bytes or key in self._charged:
            return None
        try:
            self._budget.make(int(num_bytes), f"{match.product.op_type} '{match.product.name}'")
        except OverBudget as refusal:
            return Rejection(match.product, str(refusal), weight.name)
        self._charged.add(key)
        return None


def _requantize(product: _Found, replacer: Replacer, context: Context) -> tuple[bool, str]:
    """Hand a product to onnxruntime's quantizer if the user asks.

    Returns:
        Whether it took it, and what was done or why not; empty if nobody asked.
    """
    choice, node = context.options.remaining, product.node
    if choice == "keep":
        return False, ""
    if product.in_function:
        return False, "not quantized by --remaining: it is in a local function"
    quantized = remaining.quantize(node, context, int(choice.removeprefix("int")))
    if isinstance(quantized, str):
        return False, f"not quantized by --remaining: {quantized}"
    replacer.requantize(node, quantized)
    return True, (
        f"quantized by onnxruntime to {choice} in blocks of {remaining.BLOCK_SIZE} (MatMulNBits), "
        f"{quantized.weight.stored_bytes} -> {quantized.nbytes} bytes"
    )


def _prefetch(product: ir.Node) -> None:
    """Have a product's stored weight read: the disk is the slowest part of a conversion."""
    for operand in product.inputs:
        value = operand
        for _ in range(_MAX_READ_THROUGH):
            step = None if value is None else value.producer()
            if step is None or step.op_type not in _READ_THROUGH or not step.inputs:
                break
            value = step.inputs[0]
        if value is not None:
            prefetch(value.const_value)


def _nodes(
    model: ir.Model,
    op_types: frozenset[tuple[str, str]],
    apart: Collection[ir.OperatorIdentifier],
) -> Iterator[_Found]:
    """Every node of these kinds, products or gathers, those of functions ``apart`` left out."""

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

    for node, where in walk(model.graph, "main graph"):
        yield _Found(node, where, in_function=False)
    for function in local_functions(model):
        if function.identifier() in apart:
            continue
        for node, _ in walk(function, ""):
            yield _Found(node, f"function {function_name(function)}", in_function=True)


def _refusal_of_model(model: ir.Model) -> str:
    opset = model.opset_imports.get("", 0)
    if opset < _MIN_OPSET:
        return f"the model has opset {opset}; {_MIN_OPSET} or later is needed"
    return ""
