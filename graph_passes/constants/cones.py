"""Weights that are the end of a constant expression.

    w -> Abs -> ReduceMean -> Clip -> Div -> Round -> Mul -> MatMul(X, .)   (quantized in the graph)
    packed uint8 -> BitwiseAnd -> BitShift -> ScatterND -> Sub -> Cast -> MatMul(X, .)   (unpacked)

A *cone* is everything a value is computed from, if that is constants only. It is cut out as a
model of its own and run by onnxruntime with optimizations off, one cone at a time; the user's
graph stays as it is, and rewrite/ removes what nobody uses any more.

1. In the main graph, in local functions, and in subgraphs, whose cones may reach into the graphs
   around them.
2. Deterministic standard operators, a few of ONNX Runtime's, and local functions made of these;
   QONNX's Quant, which qonnx.py computes (not inside functions that are called).
   Nodes with subgraphs (If, Loop, Scan) end a cone: what they make counts as made at run time.
3. Before anything runs, every tensor has a size, found by shape inference; where a shape is
   computed itself (Expand, Reshape), that part runs first.
4. The result is compared exactly like a stored weight: a magnitude that rounding has split in two
   is two magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, helper

from onnx_ternary import _onnxruntime as ort
from onnx_ternary.op.nodes import owning_functions

from . import qonnx
from .constant import FOLDER, Constant, NotConstant, Numbers, call_attribute
from .resolve import leaf, resolve

MAX_TENSOR_BYTES = 1 << 32
"""Of every tensor in a cone, and of all its constants together."""

_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"}
    | {"RandomUniform", "RandomUniformLike"}
)
_MICROSOFT = frozenset({"DequantizeLinear", "FusedMatMul", "QuantizeLinear", "TransposeMatMul"})
# The size of what these make depends on the elements of an operand.
_SIZED_BY_ELEMENTS = frozenset(
    {"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Reshape", "Resize", "Tile", "Upsample"}
)
# Constants below this stand in the cone's model, where shape inference reads them.
_EMBEDDED_BYTES = 1024
# Results below this are kept: scales and shapes are asked for more than once.
_KEPT_BYTES = 1 << 16
# What onnxruntime takes from and gives to numpy.
_NUMPY_DTYPES: Mapping[str, ir.DataType] = {
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(int8)": ir.DataType.INT8,
    "tensor(int16)": ir.DataType.INT16,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(uint8)": ir.DataType.UINT8,
    "tensor(uint16)": ir.DataType.UINT16,
    "tensor(uint32)": ir.DataType.UINT32,
    "tensor(uint64)": ir.DataType.UINT64,
}
_FED = frozenset(_NUMPY_DTYPES.values())
_BFLOAT16 = "tensor(bfloat16)"

Array = NDArray[Any]


class _Refusal(Exception):  # noqa: N818 # a value with a reason, not an error of the program
    """Why a cone is not evaluated."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What a cone turned out to be, without its elements; ``root`` gives it its name."""

    shape: tuple[int, ...]
    dtype: ir.DataType
    root: ir.Value


@dataclass(frozen=True, slots=True)
class _Cone:
    """Nodes in topological order, and the constants they start from, by the value's id."""

    nodes: tuple[ir.Node, ...]
    leaves: Mapping[int, Constant]

    def root(self) -> ir.Value:
        """The largest constant, initializers first, that is not one number all over.

        Unpacking starts from zeros, which are larger than the packed weight.
        """
        leaves = sorted(
            self.leaves.values(),
            key=lambda each: (each.root.is_initializer(), each.stored_bytes),
            reverse=True,
        )
        for leaf_constant in leaves:
            elements = leaf_constant.numpy().reshape(-1)
            if elements.size and (elements != elements[0]).any():
                return leaf_constant.root
        return leaves[0].root

    @property
    def stored_bytes(self) -> int:
        return sum(each.stored_bytes for each in self.leaves.values())

    def release(self) -> None:
        """Let go of mapped files."""
        for constant in self.leaves.values():
            constant.release()


@contextmanager
def folding(model: ir.Model, *, fold: bool) -> Iterator[None]:
    """While open, `weights.resolve` finds the constant expressions of ``model``.

    Args:
        model: what the values that are resolved belong to.
        fold: False names constant expressions without evaluating them.
    """
    token = FOLDER.set(_Folder(model, fold=fold))
    try:
        yield
    finally:
        FOLDER.reset(token)


class _Folder:
    """Finds and evaluates cones; holds the elements of one large result at most."""

    def __init__(self, model: ir.Model, *, fold: bool) -> None:
        self._model = model
        self._owners = owning_functions(model)
        self._fold = fold
        # By id; the values are held so that no id comes back.
        self._statuses: dict[int, tuple[ir.Value, NotConstant | None]] = {}
        self._results: dict[int, _Result | NotConstant] = {}
        self._kept: dict[int, Array] = {}
        self._last: tuple[int, Array] | None = None

    def status(self, value: ir.Value) -> NotConstant | None:
        """Why ``value`` is not the end of a cone; None if it is."""
        open_values = [value]
        while open_values:
            each = open_values[-1]
            if id(each) in self._statuses:
                open_values.pop()
                continue
            producer = each.producer()
            inputs = [] if producer is None else [v for v in producer.inputs if v is not None]
            waiting = [v for v in inputs if id(v) not in self._statuses]
            if waiting:
                open_values += waiting
                continue
            self._statuses[id(each)] = (each, self._judge(each, producer, inputs))
            open_values.pop()
        return self._statuses[id(value)][1]

    def _judge(
        self, value: ir.Value, producer: ir.Node | None, inputs: Iterable[ir.Value]
    ) -> NotConstant | None:
        """The status of a value whose inputs have theirs."""
        if (constant := leaf(value)) is not None:
            return None if isinstance(constant, Constant) else constant
        assert producer is not None  # everything else is a leaf
        found = [status for v in inputs if (status := self._statuses[id(v)][1]) is not None]
        at_run_time = NotConstant(
            f"'{value.name}' is computed at run time (by {producer.op_type} "
            f"'{producer.name or producer.op_type}')",
            True,
        )
        if any(status.at_run_time for status in found) or _has_graph(producer):
            return at_run_time
        if found:
            return NotConstant(
                f"'{value.name}' is computed from another value: {found[0].reason}", False
            )
        if why := call_attribute(producer) or self._forbidden(producer):
            return NotConstant(f"'{value.name}' is computed by {why}", False)
        return None

    def _forbidden(self, node: ir.Node, calls: tuple[Any, ...] = ()) -> str:
        """Why a node has no place in a cone; empty if it has one (case 2)."""
        named = f"{node.op_type} '{node.name or node.op_type}'"
        function = self._model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            key = function.identifier()
            if key in calls:
                return f"{named}, which calls itself"
            for inner in function:
                if _has_graph(inner):
                    return f"{named}, which contains {inner.op_type}"
                if why := self._forbidden(inner, (*calls, key)):
                    return why
            return ""
        if node.domain == "" and node.op_type not in _RANDOM:
            return ""
        if node.domain == "com.microsoft" and node.op_type in _MICROSOFT:
            return ""
        if (node.domain, node.op_type) in qonnx.STEPS and not calls:
            return ""  # computed by qonnx.py
        if node.domain == "":
            return f"{named}, which may give other numbers in every run"
        return f"{node.domain}.{named}, which this version does not evaluate"

    def resolve(self, value: ir.Value) -> Constant | NotConstant:
        """The cone that ends in ``value`` as a constant, or why it is none."""
        if (status := self.status(value)) is not None:
            return status
        cone = self._cone([value], {})
        if not cone.leaves:
            return NotConstant(f"'{value.name}' is computed from nothing", False)
        if not self._fold:
            return NotConstant(
                f"'{value.name}' is the end of a constant expression of {len(cone.nodes)} nodes, "
                "which is left alone because folding is switched off",
                False,
            )
        if id(value) not in self._results:
            try:
                array = self._evaluate(value)
            except _Refusal as refusal:
                self._results[id(value)] = NotConstant(
                    f"'{value.name}' is the end of a constant expression that is not evaluated: "
                    f"{refusal}",
                    False,
                )
            else:
                self._keep(value, array)
                dtype = ir.DataType.from_numpy(array.dtype)
                self._results[id(value)] = _Result(array.shape, dtype, cone.root())
                cone.release()
        result = self._results[id(value)]
        if isinstance(result, NotConstant):
            return result
        return Constant(
            root=result.root,
            nodes=cone.nodes,
            key=(("cone", id(value)),),
            shape=result.shape,
            dtype=result.dtype,
            stored_bytes=cone.stored_bytes,
            evaluate=Numbers(self._reader(value)),
        )

    @staticmethod
    def _quantized(value: ir.Value) -> Array:
        found = resolve(value)
        if isinstance(found, NotConstant):
            raise _Refusal(found.reason)
        return found.numpy()

    def _keep(self, value: ir.Value, array: Array) -> None:
        if array.nbytes <= _KEPT_BYTES:
            self._kept[id(value)] = array
        else:
            self._last = (id(value), array)

    def _reader(self, value: ir.Value) -> Callable[[], Array]:
        def read() -> Array:
            if id(value) in self._kept:
                return self._kept[id(value)]
            last, self._last = self._last, None
            if last is not None and last[0] == id(value):
                return last[1]
            try:
                return self._evaluate(value)
            except _Refusal as refusal:
                raise ValueError(str(refusal)) from refusal

        return read

    def _cone(self, values: Iterable[ir.Value], known: Mapping[int, Array]) -> _Cone:
        """What ``values`` are computed from, with the values in ``known`` as constants."""
        nodes: dict[int, ir.Node] = {}
        leaves: dict[int, Constant] = {}
        open_values = list(values)
        while open_values:
            value = open_values[-1]
            producer = value.producer()
            if id(value) in known or (producer is not None and id(producer) in nodes):
                open_values.pop()
                continue
            constant = leaf(value)
            if constant is not None:
                assert isinstance(constant, Constant)  # the status says so
                leaves[id(value)] = constant
                open_values.pop()
                continue
            assert producer is not None
            waiting = [
                v
                for v in producer.inputs
                if v is not None
                and id(v) not in leaves
                and id(v) not in known
                and (v.producer() is None or id(v.producer()) not in nodes)
            ]
            if waiting:
                open_values += waiting
                continue
            nodes[id(producer)] = producer
            open_values.pop()
        return _Cone(tuple(nodes.values()), leaves)

    def _evaluate(self, value: ir.Value) -> Array:
        """Run the cone that ends in ``value``.

        Raises:
            _Refusal: if it is too large, or onnxruntime cannot run it.
        """
        if id(value) in self._kept:
            return self._kept[id(value)]
        whole = self._cone([value], {})
        if whole.stored_bytes > MAX_TENSOR_BYTES:
            raise _Refusal(f"it starts from {whole.stored_bytes} bytes of constants")
        known = {
            id(node.outputs[0]): self._quantized(node.outputs[0])
            for node in whole.nodes
            if (node.domain, node.op_type) in qonnx.STEPS
        }
        while True:
            cone = self._cone([value], known)
            runnable = _Runnable(self._model, self._owners, cone, known, value)
            unsized = runnable.unsized_nodes()
            if not unsized:
                break
            operands = _operands(unsized, known, data=False) or _operands(unsized, known, data=True)
            if not operands:
                unsized = [node for node in unsized if node.op_type != "Reshape"]
                if not unsized:
                    break
                node = unsized[0]
                raise _Refusal(f"the size of what {node.op_type} '{node.name}' makes is unknown")
            for key, operand in operands.items():
                known[key] = self._evaluate(operand)
                if known[key].nbytes <= _KEPT_BYTES:
                    self._kept[key] = known[key]
        try:
            return runnable.run()
        finally:
            cone.release()


def _operands(
    nodes: Iterable[ir.Node], known: Mapping[int, Array], *, data: bool
) -> dict[int, ir.Value]:
    """What decides on the sizes of what ``nodes`` make, if it is computed itself."""
    return {
        id(value): value
        for node in nodes
        for position, value in enumerate(node.inputs)
        if value is not None
        and (data or position > 0 or node.op_type in ("ConstantOfShape", "Range"))
        and id(value) not in known
        and leaf(value) is None
    }


class _Runnable:
    """A cone as a model of its own."""

    def __init__(
        self,
        model: ir.Model,
        owners: Mapping[int, ir.Function],
        cone: _Cone,
        known: Mapping[int, Array],
        value: ir.Value,
    ) -> None:
        self._cone = cone
        # Names of values in different graphs may be equal.
        self._names: dict[int, str] = {}
        self._feeds: dict[str, Array] = {}
        graph = onnx.GraphProto(name="cone")
        constants = [(key, each.numpy(), each.dtype) for key, each in cone.leaves.items()]
        constants += [
            (key, each, ir.DataType.from_numpy(each.dtype)) for key, each in known.items()
        ]
        for key, array, dtype in constants:
            name = self._name(key)
            if array.nbytes > _EMBEDDED_BYTES and dtype in _FED:
                self._feeds[name] = array
                graph.input.append(helper.make_tensor_value_info(name, int(dtype), array.shape))
            else:
                graph.initializer.append(_tensor(name, array, dtype))
        for node in cone.nodes:
            proto = ir.serde.serialize_node(node)
            proto.input[:] = ["" if v is None else self._name(id(v)) for v in node.inputs]
            proto.output[:] = [self._name(id(v)) for v in node.outputs]
            graph.node.append(proto)
        self._output = self._name(id(value))
        graph.output.append(onnx.ValueInfoProto(name=self._output))
        function = owners.get(id(cone.nodes[-1].graph))
        imports = {**model.opset_imports, **(function.opset_imports if function else {})}
        domains = {"", *(node.domain for node in cone.nodes)}
        calls = any(
            (node.domain, node.op_type, node.overload) in model.functions for node in cone.nodes
        )
        self._proto = helper.make_model(
            graph,
            # Others may be unknown to onnxruntime: our own, in a model converted before.
            opset_imports=[
                helper.make_opsetid(domain, version)
                for domain, version in imports.items()
                if calls or domain in domains
            ],
            ir_version=model.ir_version,
            functions=[
                ir.serde.serialize_function(function)
                for function in model.functions.values()
                if calls
            ],
        )

    def _name(self, key: int) -> str:
        return self._names.setdefault(key, f"v{len(self._names)}")

    def unsized_nodes(self) -> list[ir.Node]:
        """Nodes whose results may have any size as far as is known (case 3).

        Raises:
            _Refusal: if a tensor is known to be too large.
        """
        try:
            inferred = onnx.shape_inference.infer_shapes(self._proto, data_prop=True)
        except Exception:  # onnx documents no class; onnxruntime then says what is wrong
            inferred = self._proto
        types = {
            each.name: each.type.tensor_type
            for each in (*inferred.graph.value_info, *inferred.graph.output)
        }
        unsized = []
        for node in self._cone.nodes:
            for output in node.outputs:
                found = types.get(self._name(id(output)))
                if found is not None and _is_static(found):
                    size = math.prod(each.dim_value for each in found.shape.dim)
                    num_bytes = size * _itemsize(found.elem_type)
                    if num_bytes > MAX_TENSOR_BYTES:
                        raise _Refusal(
                            f"{node.op_type} '{node.name}' makes a tensor of {num_bytes} bytes"
                        )
                elif node.domain == "" and node.op_type in _SIZED_BY_ELEMENTS:
                    unsized.append(node)
        return unsized

    def run(self) -> Array:
        """The cone's result, bfloat16 included.

        Raises:
            _Refusal: if onnxruntime cannot run it.
        """
        try:
            session = self._session()
            (output,) = session.get_outputs()
            if output.type == _BFLOAT16:  # numpy gets it as float32
                wide = f"{self._output}_float"
                cast = helper.make_node("Cast", [self._output], [wide], to=TensorProto.FLOAT)
                self._proto.graph.node.append(cast)
                self._proto.graph.output[0].name = wide
                array: Array = self._session().run(None, self._feeds)[0]
                return array.astype(ml_dtypes.bfloat16)
            if output.type not in _NUMPY_DTYPES:
                raise _Refusal(f"its type is {output.type}")
            result: Array = session.run(None, self._feeds)[0]
            return result
        except _Refusal:
            raise
        except Exception as error:  # onnxruntime raises types of its own that share no base
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _Refusal(f"onnxruntime {ort.__version__} says: {first_line}") from error

    def _session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False  # gives the memory back
        options.enable_mem_pattern = False
        return ort.InferenceSession(
            self._proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _is_static(found: TypeProto.Tensor) -> bool:
    return found.HasField("shape") and all(each.HasField("dim_value") for each in found.shape.dim)


def _tensor(name: str, array: Array, dtype: ir.DataType) -> TensorProto:
    data = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype).tobytes()
    return TensorProto(name=name, dims=array.shape, data_type=int(dtype), raw_data=data)


def _itemsize(elem_type: int) -> int:
    # Four-bit types count as a byte; strings and the unknown as a word.
    try:
        return max(1, int(ir.DataType(elem_type).itemsize))
    except (TypeError, ValueError):
        return 8


def _has_graph(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attr.type in graphs for attr in node.attributes.values())
