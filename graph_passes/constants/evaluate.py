"""Run the steps of a constant expression in onnxruntime, within the budget.

1. No step runs before the sizes of its results are known: from ONNX's shape inference, without its
   propagation of data, which computes the data; small operands are in the model it sees. Results
   whose size depends on the elements of operands have a bound (Compress, NonZero), or are refused.
2. Small expressions whose sizes are known run in one session. Everything else runs step by step:
   what is held at any time is then known, and sizes that are computed are known in their turn.
3. Optimizations are off, so results are those of the operators as they are written.
4. What would end the process inside onnx or onnxruntime does not run (faults.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_ternary import _onnxruntime as ort
from onnx_ternary._machine import session_threads

from .budget import Budget
from .faults import bad_node, bad_operands, may_divide_badly
from .steps import Step

WHOLE_BYTES = 1 << 26
"""Results of an expression that runs in one session, together."""
# Constants up to this size stand in the model, where shape inference reads them.
_EMBEDDED_BYTES = 1024
# What onnxruntime takes from and gives to numpy.
_FED: Mapping[str, ir.DataType] = {
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
_READABLE = frozenset({*_FED.values(), ir.DataType.BFLOAT16})
_BFLOAT16 = "tensor(bfloat16)"
_SIZED = frozenset(ir.DataType) - {ir.DataType.UNDEFINED, ir.DataType.STRING}
# Results with at most the elements of the first operand.
_NO_LARGER = frozenset(
    {"Cast", "Compress", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_LIKE_THE_FIRST = frozenset({"DequantizeLinear", "QuantizeLinear"})
# What these compute for one element of the result grows with their operands.
_MULTIPLYING = frozenset(
    {"Einsum", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "TransposeMatMul"}
)
# Products an element of time to move eight bytes, roughly.
_PRODUCTS_A_BYTE = 8

Array = NDArray[Any]
Shape = tuple[int, ...]


class Refusal(Exception):  # noqa: N818 # a value with a reason, not an error of the program
    """Why an expression is not evaluated."""


class Operand(Protocol):
    """A constant an expression starts from."""

    @property
    def shape(self) -> Shape:
        """The shape, known without reading the elements."""
        ...

    @property
    def dtype(self) -> ir.DataType:
        """The type of the elements."""
        ...

    def numpy(self) -> Array:
        """The elements."""
        ...


class Made:
    """A result as an operand."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape: Shape = array.shape
        self.dtype = ir.DataType.from_numpy(array.dtype)

    def numpy(self) -> Array:
        """The result."""
        return self._array


class Evaluation:
    """One expression.

    Args:
        steps: in topological order.
        operands: what they start from, by name: constants, and results of other expressions.
        wanted: results that are of use, the last step's among them.
        keep: is given every wanted result numpy has a type for, as soon as it is there.
        budget: of the conversion.
        stored_bytes: of the constants the expression starts from.
        ir_version: of the model.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        operands: Mapping[str, Operand],
        wanted: Collection[str],
        keep: Callable[[str, Array], None],
        budget: Budget,
        stored_bytes: int,
        ir_version: int,
    ) -> None:
        self._steps = steps
        self._operands = dict(operands)
        self._wanted = frozenset(wanted)
        self._budget = budget
        self._limit = budget.at_once(stored_bytes)
        self._ir_version = ir_version
        self._keep = keep
        self._held: dict[str, int] = {}

    def run(self) -> None:
        """Hand every wanted result to `keep`.

        Raises:
            Refusal: if the size of a result is unknown, or onnxruntime cannot run a step or must
                not.
            OverBudget: if a limit is met.
        """
        if reason := next(filter(None, map(bad_node, self._steps)), ""):
            raise Refusal(reason)
        uses = Counter(name for step in self._steps for name in set(step.proto.input))
        # Tried again when as many steps have run as had before: linear in the number of steps.
        next_try = 0
        for at, step in enumerate(self._steps):
            if at == next_try:
                if self._run_whole(self._steps[at:]):
                    return
                next_try = max(1, 2 * at)
            self._run_step(step)
            uses.subtract(set(step.proto.input))
            for name in (*step.proto.input, *step.proto.output):
                if not uses[name] and self._held.pop(name, 0):
                    del self._operands[name]

    def _run_whole(self, steps: Sequence[Step]) -> bool:
        """Run all in one session, if what they make is known to be small (case 2)."""
        if len(steps) == 1 or any(step.imports != steps[0].imports for step in steps[1:]):
            return False
        names = {name for step in steps for name in step.proto.input if name in self._operands}
        if sum(_num_bytes(self._operands[name]) for name in names) > WHOLE_BYTES:
            return False
        model, feeds = self._model(steps, names)
        known = _known_sizes(model)
        shapes = {name: self._operands[name].shape for name in names}
        num_bytes, work = sum(self._held.values()), 0
        for step in steps:
            sizes = [known.get(name) for name in step.proto.output if name]
            if any(size is None for size in sizes):
                return False
            for name, size in zip(filter(None, step.proto.output), sizes, strict=True):
                assert size is not None
                shapes[name] = size[0]
                if may_divide_badly(step, self._operands, size[2]):
                    return False
            made = sum(size[1] for size in sizes if size is not None)
            num_bytes += made
            work += _work(step, [shapes.get(name, ()) for name in step.proto.input], made)
            if num_bytes > min(WHOLE_BYTES, self._limit):
                return False
        self._budget.make(num_bytes + work, steps[-1].label)
        dtypes = {name: size[2] for name, size in known.items()}
        outputs = [
            name
            for step in steps
            for name in step.proto.output
            if name in self._wanted and (dtypes[name] in _READABLE or step is steps[-1])
        ]
        for name, array in _run(model, outputs, feeds).items():
            self._keep(name, array)
        return True

    def _run_step(self, step: Step) -> None:
        names = [name for name in step.proto.input if name]
        if reason := bad_operands(step, self._operands):
            raise Refusal(reason)
        model, feeds = self._model([step], set(names))
        shapes = [self._operands[name].shape if name else () for name in step.proto.input]
        known = _known_sizes(model)
        num_bytes = 0
        for name in filter(None, step.proto.output):
            size = known.get(name)
            made = _bound(step, shapes) if size is None else size[1]
            if made is None:
                raise Refusal(f"the size of what {step.label} makes is unknown")
            num_bytes += made
        total = sum(self._held.values()) + num_bytes
        self._budget.hold(total, self._limit, step.label)
        self._budget.make(num_bytes + _work(step, shapes, num_bytes), step.label)
        outputs = [name for name in step.proto.output if name]
        for name, array in _run(model, outputs, feeds).items():
            self._operands[name] = Made(array)
            self._held[name] = max(array.nbytes, 1)
            if name in self._wanted:
                self._keep(name, array)

    def _model(
        self, steps: Sequence[Step], names: Collection[str]
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """Steps as a model, without outputs, and what it is fed."""
        graph, feeds = onnx.GraphProto(name="cone"), {}
        for name in names:
            operand = self._operands[name]
            dtype = operand.dtype
            if _num_bytes(operand) > _EMBEDDED_BYTES and dtype in _FED.values():
                feeds[name] = operand.numpy()
                made = helper.make_tensor_value_info(name, int(dtype), operand.shape)
                graph.input.append(made)
            else:
                graph.initializer.append(_tensor(name, operand.numpy(), dtype))
        graph.node.extend(step.proto for step in steps)
        domains = {"", *(step.proto.domain for step in steps)}
        model = helper.make_model(
            graph,
            opset_imports=[
                # Others may be unknown to onnxruntime: our own, in a model converted before.
                helper.make_opsetid(domain, version)
                for domain, version in steps[0].imports.items()
                if domain in domains
            ],
            ir_version=self._ir_version,
        )
        return model, feeds


def _known_sizes(model: onnx.ModelProto) -> dict[str, tuple[Shape, int, ir.DataType]]:
    """Shapes, bytes and types of the tensors whose sizes shape inference finds."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # onnx documents no class; onnxruntime then says what is wrong
        return {}
    sizes = {}
    for value in inferred.graph.value_info:
        tensor = value.type.tensor_type
        known = value.type.HasField("tensor_type") and tensor.HasField("shape")
        if not known or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            continue
        # An attribute may ask for a type there is not.
        if tensor.elem_type not in _SIZED:
            continue
        dtype = ir.DataType(tensor.elem_type)
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        sizes[value.name] = (shape, math.prod(shape) * _itemsize(dtype), dtype)
    return sizes


def _num_bytes(operand: Operand) -> int:
    return math.prod(operand.shape) * _itemsize(operand.dtype)


def _itemsize(dtype: ir.DataType) -> int:
    return max(1, int(dtype.itemsize))  # four-bit types take a byte


def _bound(step: Step, shapes: Sequence[Shape]) -> int | None:
    """The most bytes a result can have whose size depends on elements, or unknown to ONNX."""
    op_type, domain = step.proto.op_type, step.proto.domain
    if not shapes:
        return None
    elements = math.prod(shapes[0])
    if domain == "" and op_type in _NO_LARGER:
        return elements * 8
    if domain == "" and op_type == "NonZero":
        return elements * len(shapes[0]) * 8
    if domain == "com.microsoft" and op_type in _LIKE_THE_FIRST:
        return elements * 4
    if domain == "com.microsoft" and len(shapes) > 1:  # products of matrices
        batch = math.prod(_broadcast(shapes[0][:-2], shapes[1][:-2]))
        return batch * max(shapes[0][-2:], default=1) * max(shapes[1][-2:], default=1) * 8
    return None


def _broadcast(one: Shape, other: Shape) -> Shape:
    try:
        return np.broadcast_shapes(one, other)
    except ValueError:
        return (*one, *other)  # onnxruntime says what is wrong


def _work(step: Step, shapes: Sequence[Shape], num_bytes: int) -> int:
    """What a step is charged beside its results, in bytes moved."""
    if step.proto.op_type not in _MULTIPLYING:
        return 0
    longest = max((size for shape in shapes for size in shape), default=1)
    return num_bytes * longest // _PRODUCTS_A_BYTE


def _tensor(name: str, array: Array, dtype: ir.DataType) -> TensorProto:
    data = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype).tobytes()
    return TensorProto(name=name, dims=array.shape, data_type=int(dtype), raw_data=data)


def _run(
    model: onnx.ModelProto, outputs: Sequence[str], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Results by name, bfloat16 included.

    Raises:
        Refusal: if onnxruntime cannot run the model, or a result has no type of numpy's.
    """
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    try:
        session = _session(model)
        types = [each.type for each in session.get_outputs()]
        if _BFLOAT16 in types:  # numpy gets it as float32
            session = _session(_widened(model, types))
        for found in types:
            if found not in _FED and found != _BFLOAT16:
                raise Refusal(f"its type is {found}")
        arrays = session.run(None, dict(feeds))
    except Refusal:
        raise
    except Exception as error:  # onnxruntime raises types of its own that share no base
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(f"onnxruntime {ort.__version__} says: {first_line}") from error
    return dict(zip(outputs, _narrowed(arrays, types), strict=True))


def _widened(model: onnx.ModelProto, types: Sequence[str]) -> onnx.ModelProto:
    for output, found in zip(model.graph.output, types, strict=True):
        if found == _BFLOAT16:
            wide = f"{output.name}.float"
            node = helper.make_node("Cast", [output.name], [wide], to=TensorProto.FLOAT)
            model.graph.node.append(node)
            output.name = wide
    return model


def _narrowed(arrays: Sequence[Array], types: Sequence[str]) -> Iterator[Array]:
    for array, found in zip(arrays, types, strict=True):
        yield array.astype(ml_dtypes.bfloat16) if found == _BFLOAT16 else array


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = session_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # gives the memory back
    options.enable_mem_pattern = False
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
