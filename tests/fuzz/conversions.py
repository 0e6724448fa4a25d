"""Damage models of the catalogue the way files get damaged, and the way people damage them.

Converting one gives a result or a documented error: no other exception, no endless loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from onnx_ternary.conversion.optimize import UNEXPECTED, optimize
from onnx_ternary.errors import OnnxTernaryError
from onnx_ternary.options import OptimizeOptions
from tests.catalogue import HITS, NEAR_MISSES

Rng = np.random.Generator
SIZES = (0, 1, 2, 3, 5, 48, 2**31, 2**40, -1, -(2**63), 2**63 - 1)
FLOATS = (0.0, -1.0, 1e38, -1e-45, float("inf"), float("nan"))
TEXTS = (b"", b"x", b"\xff\xfe", b"a" * 1000, b"x\n::error::", b"nosuch")
OPERATORS = ("Add", "Cast", "Clip", "Constant", "DequantizeLinear", "Gemm", "Identity", "If")
OPERATORS += ("MatMul", "MatMulNBits", "Mul", "QuantizeLinear", "Quant", "ReduceMax", "Reshape")
OPERATORS += ("Round", "Tile", "Transpose", "Einsum", "Conv", "Scan", "MatMulInteger", "Div")
DOMAINS = ("", "ai.onnx", "com.microsoft", "local", "onnx_ternary", "qonnx.custom_op.general")
OPTIONS = (
    OptimizeOptions(min_elements=0, convolutions=True),
    OptimizeOptions(min_elements=0, fold=False, fuse_siblings=True),
)


def base_models() -> list[bytes]:
    """Every form of the catalogue, serialized."""
    made = [case().model for case in HITS.values()] + [
        miss().model for miss in NEAR_MISSES.values()
    ]
    return [each.SerializeToString() for each in made if each.ByteSize() < 1 << 20]


def try_model(content: bytes, rng: Rng) -> str:
    """Damage a model and convert it: ``converted`` or ``refused``.

    Raises:
        AssertionError: if anything but a documented error is raised.
    """
    if rng.random() < 0.2:
        return convert(_bytes(content, rng))
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.integers(1, 4)):
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        damage(model, rng)
    return convert(model.SerializeToString())


def convert(content: bytes) -> str:
    """Convert a model; see `try_model`."""
    outcomes = [_convert(content, options) for options in OPTIONS]
    return "refused" if "refused" in outcomes else "converted"


def _convert(content: bytes, options: OptimizeOptions) -> str:
    try:
        optimize(content, options)
    except OnnxTernaryError as error:
        assert UNEXPECTED not in str(error), error
        return "refused"
    return "converted"


def _bytes(content: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.3:
        return content[: rng.integers(len(content))]
    damaged = bytearray(content)
    for at in rng.integers(len(damaged), size=rng.integers(1, 5)):
        damaged[at] = rng.integers(256)
    return bytes(damaged)


def _one(choices: Sequence[Any], rng: Rng) -> Any:
    return choices[rng.integers(len(choices))] if len(choices) else None


def _node_lists(model: onnx.ModelProto) -> list[Any]:
    found = [model.graph.node, *(function.node for function in model.functions)]
    for nodes in found:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found.append(attribute.g.node)
                found += [graph.node for graph in attribute.graphs]
    return found


def _node(model: onnx.ModelProto, rng: Rng) -> Any:
    return _one([node for nodes in _node_lists(model) for node in nodes], rng)


def _names(model: onnx.ModelProto) -> list[str]:
    nodes = [node for nodes in _node_lists(model) for node in nodes]
    names = {name for node in nodes for name in (*node.input, *node.output)}
    return sorted({*names, *(each.name for each in model.graph.initializer), "", "nosuch"})


def _operand(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is not None and node.input:
        node.input[rng.integers(len(node.input))] = _one(_names(model), rng)


def _result(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is not None and node.output:
        node.output[rng.integers(len(node.output))] = _one(_names(model), rng)


def _number_of_operands(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is None:
        return
    side = node.input if rng.random() < 0.7 else node.output
    if len(side) and rng.random() < 0.6:
        del side[rng.integers(len(side)) :]
    else:
        side.append(_one(_names(model), rng))


def _operator(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is not None:
        node.op_type = _one(OPERATORS, rng)


def _domain(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is not None:
        node.domain = _one(DOMAINS, rng)


def _attribute(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng)
    if node is None or not node.attribute:
        return
    attribute = _one(node.attribute, rng)
    kind = rng.integers(7)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.i = _one(SIZES, rng)
    elif kind == 2:
        attribute.f = _one(FLOATS, rng)
    elif kind == 3:
        attribute.s = _one(TEXTS, rng)
    elif kind == 4:
        attribute.ints[:] = [_one(SIZES, rng) for _ in range(rng.integers(4))]
    elif kind == 5:
        attribute.type = _one([*AttributeProto.AttributeType.values()], rng)
    else:
        attribute.ref_attr_name = "nosuch"


def _new_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    if (node := _node(model, rng)) is not None:
        names = ("alpha", "axis", "perm", "to", "transB", "keepdims", "block_size", "bits", "K")
        kind = _one([AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS], rng)
        node.attribute.add(name=_one(names, rng), type=kind, i=_one(SIZES, rng))


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    found = [*model.graph.initializer]
    for nodes in _node_lists(model):
        for node in nodes:
            found += [each.t for each in node.attribute if each.HasField("t")]
    return found


def _tensor(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _one(_tensors(model), rng)
    if tensor is None:
        return
    kind = rng.integers(6)
    if kind == 0:
        tensor.dims[:] = [_one(SIZES, rng) for _ in range(rng.integers(4))]
    elif kind == 1 and tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = _one(SIZES, rng)
    elif kind == 2:
        tensor.data_type = rng.integers(0, 30)
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: rng.integers(len(tensor.raw_data) + 1)]
    elif kind == 4:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=_one(["x", "", "/dev/zero", "../x"], rng))
    else:
        tensor.name = _one(_names(model), rng)


def _shape(model: onnx.ModelProto, rng: Rng) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    value = _one(values, rng)
    if value is None:
        return
    tensor = value.type.tensor_type
    kind = rng.integers(4)
    if kind == 0:
        tensor.elem_type = rng.integers(0, 30)
    elif kind == 1:
        tensor.shape.dim.add(dim_value=_one(SIZES, rng))
    elif kind == 2 and tensor.shape.dim:
        _one(tensor.shape.dim, rng).dim_value = _one(SIZES, rng)
    else:
        value.name = _one(_names(model), rng)


def _whole_node(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = _one([each for each in _node_lists(model) if len(each)], rng)
    if nodes is None:
        return
    if rng.random() < 0.5:
        nodes.add().CopyFrom(_one(nodes, rng))
    else:
        del nodes[rng.integers(len(nodes))]


def _function(model: onnx.ModelProto, rng: Rng) -> None:
    function = _one(model.functions, rng)
    if function is None:
        function = model.functions.add(name=_one(OPERATORS, rng), domain=_one(DOMAINS, rng))
        function.input.append("a")
        function.output.append("b")
        function.node.add(op_type="Neg", input=["a"], output=["b"])
        return
    kind = rng.integers(4)
    if kind == 0:
        function.name = _one(OPERATORS, rng)
    elif kind == 1:
        function.domain = _one(DOMAINS, rng)
    elif kind == 2:
        del function.opset_import[:]
    else:
        call = function.node.add(op_type=function.name, domain=function.domain)
        call.input.extend(function.input)
        call.output.extend(["again"])


def _imports(model: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.3:
        model.ir_version = _one([-1, 0, 3, 4, 7, 10, 1000], rng)
    elif model.opset_import:
        imported = _one(model.opset_import, rng)
        imported.version = _one([-1, 0, 1, 6, 7, 10, 13, 21, 1000], rng)
        if rng.random() < 0.3:
            imported.domain = _one(DOMAINS, rng)


DAMAGES: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    _operand,
    _operand,
    _result,
    _number_of_operands,
    _operator,
    _domain,
    _attribute,
    _attribute,
    _new_attribute,
    _tensor,
    _tensor,
    _shape,
    _whole_node,
    _function,
    _imports,
)
