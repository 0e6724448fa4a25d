"""The one pen: new names and constants of a model, and the removal of what nobody uses any more.

New tensors are initializers of the graph the node is in: ONNX Runtime 1.17 gives a custom op only
its own graph's initializers as constants (1.31 gives it captured ones too), so a weight that two
subgraphs share gets an index in each. Functions have no initializers: inside them, and in the
subgraphs there, new tensors are Constant nodes, which ONNX Runtime makes initializers where it
inlines the function, once per call.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.model_files.tensors import Spool
from onnx_ternary.op.nodes import (
    constant_tensor,
)
from onnx_ternary.schema import DOMAIN, OpAttributes

from ..constants.constant import Constant, Folder
from ..constants.resolve import leaf
from ..site import Site


class ModelEditor:
    """One model while it is edited.

    Attributes:
        site: what is known of the model.
        model: the model.
        opset: the ai.onnx opset the model imports.
    """

    def __init__(self, site: Site, spool: Spool | None, folder: Folder) -> None:
        self.site = site
        self.model = site.model
        self.opset = site.opset
        self._spool = spool
        self._folder = folder
        self._tensors: dict[Hashable, ir.Value] = {}
        # The last number behind a name. No name becomes free, so none below is.
        self._value_numbers: dict[str, int] = {}
        self._node_numbers: dict[str, int] = {}

    def value_name(self, name: str) -> str:
        """``name``, or it with a number behind, for a new value; from then on taken."""
        return _unique(name, self.site.value_names, self._value_numbers)

    def node_name(self, name: str) -> str:
        """``name``, or it with a number behind, for a new node; from then on taken."""
        return _unique(name, self.site.node_names, self._node_numbers)

    def shared_constant(
        self, product: ir.Node, weight: Constant, role: str, array: NDArray[Any]
    ) -> ir.Value:
        """A constant of the product's graph; small equal ones are shared by all nodes."""
        small = array.size == 1 and not array.any()
        key = (id(product.graph), None if small else weight.key, role, array.shape, array.tobytes())
        if key not in self._tensors:
            name = f"{DOMAIN}.{role}.{self.site.digest}" if small else f"{weight.name}.{role}"
            self._tensors[key] = self.add_constant(product, name, array)
        return self._tensors[key]

    def add_constant(self, product: ir.Node, name: str, array: NDArray[Any]) -> ir.Value:
        """A new constant that ``product`` and the nodes behind it can read."""
        graph = product.graph
        assert isinstance(graph, ir.Graph)
        name = self.value_name(name)
        if self.site.function_of(product) is not None:
            node = ir.Node(
                "",
                "Constant",
                [],
                [ir.AttrTensor("value", ir.Tensor(array, name=name))],
                outputs=[ir.Value(name=name)],
                name=self.node_name(name),
            )
            graph.insert_before(product, node)
            return node.outputs[0]
        tensor = (
            ir.Tensor(array, name=name) if self._spool is None else self._spool.add(array, name)
        )
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def store_transposed(self, value: ir.Value) -> None:
        """Store a matrix that nothing but Transposes of its own graph reads as their result."""
        tensor, readers = value.const_value, [use.node for use in value.uses()]
        if tensor is None or not value.is_initializer() or not readers or len(tensor.shape) != 2:
            return
        if value.is_graph_output() or value.is_graph_input():
            return
        graph = value.graph
        assert graph is not None
        for node in readers:
            is_transpose = (node.domain, node.op_type) == ("", "Transpose")
            perm = node.attributes.get("perm")
            turns = perm is None or (not perm.is_ref() and tuple(perm.as_ints()) == (1, 0))
            if not is_transpose or not turns or node.graph is not graph:
                return
            if node.outputs[0].is_graph_output():
                return
        rows, columns = tensor.shape.numpy()
        shape, dtype = ir.Shape([columns, rows]), tensor.dtype
        name = self.value_name(f"{value.name}.transposed")
        # Evaluated when it is written: a table may be the largest tensor there is.
        turned = ir.Value(
            name=name,
            shape=shape,
            type=ir.TensorType(dtype),
            const_value=ir.LazyTensor(
                lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().T), dtype=dtype, name=name),
                dtype,
                shape,
                name=name,
            ),
        )
        graph.register_initializer(turned)
        for node in readers:
            node.outputs[0].replace_all_uses_with(turned)
        graph.remove(readers, safe=True)
        remove_unused(value)

    def prune(self, value: ir.Value) -> None:
        """Remove a constant nobody uses any more, and what it was made from."""
        if isinstance(leaf(value), Constant) or self._folder.status(value) is None:
            remove_unused(value)


def _unique(name: str, taken: set[str], numbers: dict[str, int]) -> str:
    """``name``, or it with a number behind; from then on taken."""
    unique = name
    while unique in taken:
        numbers[name] = numbers.get(name, 1) + 1
        unique = f"{name}_{numbers[name]}"
    taken.add(unique)
    return unique


def op_attributes(attributes: OpAttributes) -> list[ir.Attr]:
    """The attributes of a `TernaryIndexedMatMul` as a node has them."""
    return operator_attributes(attributes.to_dict())


def operator_attributes(values: Mapping[str, int | float | str]) -> list[ir.Attr]:
    """Attributes as a node has them."""
    made: list[ir.Attr] = []
    for name, value in values.items():
        if isinstance(value, str):
            made.append(ir.AttrString(name, value))
        elif isinstance(value, float):
            made.append(ir.AttrFloat32(name, value))
        else:
            made.append(ir.AttrInt64(name, value))
    return made


def output_shape(
    shape: ir.Shape | None, num_columns: int, rank: int | None = None
) -> ir.Shape | None:
    """The shape of a product with x; Gemm and Einsum tell the rank of an x of unknown shape."""
    if shape is None:
        return ir.Shape([*[None] * (rank - 1), num_columns]) if rank else None
    return ir.Shape([*shape[:-1], num_columns])


def permuted_shape(shape: ir.Shape | None, perm: tuple[int, ...]) -> ir.Shape | None:
    """The shape behind a Transpose; None where it is unknown."""
    if shape is None or len(shape) != len(perm):
        return None
    return ir.Shape([shape[axis] for axis in perm])


def split_shape(shape: ir.Shape | None, split: tuple[int, ...]) -> ir.Shape | None:
    """The shape behind a Reshape of the last axis to ``split``, if that is any."""
    return ir.Shape([*shape[:-1], *split]) if shape is not None and split else shape


def stored_tensor(value: ir.Value | None) -> ir.TensorProtocol:
    """The tensor of a constant the op reads."""
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor


def stored_array(value: ir.Value | None) -> NDArray[Any]:
    """The numbers of a constant the op reads."""
    return stored_tensor(value).numpy()


def set_array(value: ir.Value | None, array: NDArray[Any]) -> None:
    """Replace the numbers of an initializer or a Constant node."""
    assert value is not None
    tensor = ir.Tensor(array, name=value.name)
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
        return
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def remove_unused(value: ir.Value) -> None:
    """Remove what makes a value nobody uses any more."""
    unused = [value]
    while unused:
        each = unused.pop()
        producer = each.producer()
        if producer is None:
            graph, name = each.graph, each.name or ""
            if graph is not None and name in graph.initializers and not _seen(each):
                del graph.initializers[name]
        elif producer.graph is not None and not any(map(_seen, producer.outputs)):
            unused += [operand for operand in producer.inputs if operand is not None]
            producer.graph.remove(producer, safe=True)


def _seen(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output() or value.is_graph_input()
