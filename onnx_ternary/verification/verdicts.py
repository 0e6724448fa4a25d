"""Which outputs can be held to a tolerance.

Two right ways of summing differ in the last bits. Behind a product those differences stay small
through continuous operators; an operator that jumps (a sign, a comparison, a rounding, the largest
of several) can turn them into any other answer, in the original just as in the converted model.
Random operators without a seed differ from run to run by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_ternary.op.nodes import is_own
from onnx_ternary.verification.places import is_product, subgraph_nodes

JUMPS = frozenset(
    (
        *("Sign", "Round", "Floor", "Ceil", "Mod", "Hardmax", "TopK", "ArgMax", "ArgMin"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero", "Unique"),
        *("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "Compress"),
        *("NonMaxSuppression", "BipolarQuant", "Quant", "Trunc"),
    )
)
RANDOM = frozenset(
    (
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Multinomial", "Bernoulli"),
    )
)
# Whose results do not depend on the numbers they are given.
_SHAPES = frozenset(("Shape", "Size"))
_INTEGERS = frozenset(
    (
        *(TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32),
        *(TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32),
        TensorProto.UINT64,
    )
)


@dataclass(frozen=True, slots=True)
class _Inside:
    """What a node holds: its subgraphs, the functions it calls, itself.

    Attributes:
        product: whether there is a converted product.
        jump: the first operator that jumps; empty if there is none.
        noise: the first random operator without a seed; empty if there is none.
    """

    product: bool = False
    jump: str = ""
    noise: str = ""

    def __or__(self, other: _Inside) -> _Inside:
        return _Inside(
            self.product or other.product, self.jump or other.jump, self.noise or other.noise
        )


def outputs_without_verdict(model: ModelProto) -> dict[str, str]:
    """Outputs of a converted model that no tolerance can be held to, and why."""
    reader = _Reader(model)
    moved: set[str] = set()
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in _SHAPES and not node.domain:
            continue
        inside = reader.inside(node)
        read = [*node.input, *(n for each in subgraph_nodes([node]) for n in each.input)]
        is_moved = inside.product or any(name in moved for name in read)
        reason = next((reasons[name] for name in read if name in reasons), "")
        if not reason and inside.noise:
            reason = f"{inside.noise} is random and has no seed"
        if not reason and is_moved and inside.jump:
            reason = f"{inside.jump} may turn a difference of rounding into another value"
        for name in node.output:
            if is_moved:
                moved.add(name)
            if reason:
                reasons[name] = reason
    names = [value.name for value in model.graph.output]
    return {name: reasons[name] for name in names if name in reasons}


class _Reader:
    def __init__(self, model: ModelProto) -> None:
        self._functions = {(each.domain, each.name): each for each in model.functions}
        self._known: dict[tuple[str, str], _Inside] = {}
        self._constants = {
            tensor.name: tensor
            for tensor in model.graph.initializer
            if tensor.data_type == TensorProto.BOOL
        }
        for node in model.graph.node:
            if node.op_type == "Constant":
                self._constants.update(
                    (node.output[0], each.t) for each in node.attribute if each.name == "value"
                )

    def inside(self, node: NodeProto) -> _Inside:
        key = (node.domain, node.op_type)
        if is_product(node):
            return _Inside(product=True)
        found = self._own(node)
        if key in self._functions and not is_own(*key):
            if key not in self._known:
                self._known[key] = _Inside()  # a function that calls itself adds nothing
                self._known[key] = self._all(self._functions[key].node)
            found = self._known[key]
        return found | self._all(subgraph_nodes([node]))

    def _all(self, nodes: Iterable[NodeProto]) -> _Inside:
        found = _Inside()
        for node in nodes:
            found |= self.inside(node)
        return found

    def _own(self, node: NodeProto) -> _Inside:
        attributes = {each.name: each for each in node.attribute}
        name = f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"
        seeded = "seed" in attributes
        if node.op_type in RANDOM and not seeded:
            return _Inside(noise=name)
        if node.op_type == "Dropout" and not seeded and self._may_train(node, attributes):
            return _Inside(noise=name)
        to_integer = node.op_type == "Cast" and attributes["to"].i in _INTEGERS
        return _Inside(jump=name if node.op_type in JUMPS or to_integer else "")

    def _may_train(self, node: NodeProto, attributes: Mapping[str, AttributeProto]) -> bool:
        if len(node.input) < 3 or not node.input[2]:
            return "is_test" in attributes and not attributes["is_test"].i
        constant = self._constants.get(node.input[2])
        return constant is None or bool(numpy_helper.to_array(constant).any())
