"""Weights that are the end of a constant expression.

    w -> Abs -> ReduceMean -> Clip -> Div -> Round -> Mul -> MatMul(X, .)   (quantized in the graph)
    packed uint8 -> BitwiseAnd -> BitShift -> ScatterND -> Sub -> Cast -> MatMul(X, .)   (unpacked)

A *cone* is everything a value is computed from, if that is constants only. It is run by
onnxruntime with optimizations off (evaluate.py), one cone at a time, within limits (budget.py); the
user's graph stays as it is, and rewrite/ removes what nobody uses any more.

1. In the main graph, in local functions, and in subgraphs, whose cones may reach into the graphs
   around them.
2. Of the nodes steps.py lists, and of QONNX's quantizers, which qonnx.py computes. Nodes with
   subgraphs (If, Loop, Scan) end a cone: what they make counts as made at run time.
3. Every node runs once, as long as its result is kept: the last result, and as many results that
   have several users as `KEPT_BYTES` hold. A cone starts from what is kept.
4. The result is compared exactly like a stored weight: a magnitude that rounding has split in two
   is two magnitudes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ..local_calls import real_domain
from ..site import Site
from . import qonnx
from .budget import Budget, OverBudget
from .constant import Constant, NotConstant, Numbers, call_attribute
from .evaluate import Evaluation, Made, Operand, Refusal
from .resolve import leaf, resolve
from .steps import Nodes, Step, has_graph

KEPT_BYTES = 1 << 26
"""Of results that are kept for their other users."""
# Leaves by which a cone is named and measured; the rest of them counts for its size alone.
_MAX_LEAVES = 256

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Result:
    """What a cone turned out to be, without its elements; ``root`` gives it its name."""

    shape: tuple[int, ...]
    dtype: ir.DataType
    root: ir.Value


@dataclass(frozen=True, slots=True)
class _Origin:
    """The constants a value is computed from: ids of the largest, bytes of the smaller ones."""

    leaves: frozenset[int]
    other_bytes: int = 0


class _Kept:
    """The last result, and smaller ones as far as `KEPT_BYTES` go, the latest used first."""

    def __init__(self) -> None:
        self._last: tuple[ir.Value, Array] | None = None
        self._arrays: OrderedDict[int, tuple[ir.Value, Array]] = OrderedDict()
        self._num_bytes = 0

    def add(self, value: ir.Value, array: Array) -> None:
        if array.nbytes > KEPT_BYTES:
            self._last = (value, array)
            return
        if id(value) not in self._arrays:
            self._num_bytes += array.nbytes
        self._arrays[id(value)] = (value, array)
        while self._num_bytes > KEPT_BYTES:
            _, (_, dropped) = self._arrays.popitem(last=False)
            self._num_bytes -= dropped.nbytes

    def get(self, value: ir.Value) -> Array | None:
        if self._last is not None and self._last[0] is value:
            return self._last[1]
        if id(value) not in self._arrays:
            return None
        self._arrays.move_to_end(id(value))
        return self._arrays[id(value)][1]

    def release(self, value: ir.Value) -> None:
        """Let go of a large result; its reader holds it now."""
        if self._last is not None and self._last[0] is value:
            self._last = None


class Cones:
    """The constant expressions of one model: where they are, and what they evaluate to.

    Args:
        site: of the model the values that are resolved belong to.
        budget: of the conversion.
        fold: False names constant expressions without evaluating them.
    """

    def __init__(self, site: Site, budget: Budget, *, fold: bool) -> None:
        self._model = site.model
        self._budget = budget
        self._fold = fold
        self._nodes = Nodes(site.model, site.owners)
        self.resolved: dict[int, tuple[ir.Value, Constant | NotConstant]] = {}
        # By id; the values are held so that no id comes back.
        self._statuses: dict[int, tuple[ir.Value, NotConstant | None]] = {}
        self._origins: dict[int, _Origin] = {}
        self._leaves: dict[int, Constant] = {}
        self._uniform: dict[int, bool] = {}
        self._results: dict[int, _Result | NotConstant] = {}
        self._kept = _Kept()

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
        """The status of a value, once every input of its node has a status."""
        if (constant := leaf(value)) is not None:
            return None if isinstance(constant, Constant) else constant
        assert producer is not None  # everything else is a leaf
        found = [status for v in inputs if (status := self._statuses[id(v)][1]) is not None]
        at_run_time = NotConstant(
            f"'{value.name}' is computed at run time (by {producer.op_type} "
            f"'{producer.name or producer.op_type}')",
            True,
        )
        if any(status.at_run_time for status in found) or has_graph(producer):
            return at_run_time
        if found:
            return NotConstant(
                f"'{value.name}' is computed from another value: {found[0].reason}", False
            )
        if why := call_attribute(producer) or self._nodes.refusal(producer):
            return NotConstant(f"'{value.name}' is computed by {why}", False)
        return None

    def resolve(self, value: ir.Value) -> Constant | NotConstant:
        """The cone that ends in ``value`` as a constant, or why it is none."""
        if (status := self.status(value)) is not None:
            return status
        origin = self._origin(value)
        if not origin.leaves:
            return NotConstant(f"'{value.name}' is computed from nothing", False)
        if not self._fold:
            return NotConstant(
                f"'{value.name}' is the end of a constant expression, which is left alone because "
                "folding is switched off",
                False,
            )
        if id(value) not in self._results:
            self._results[id(value)] = self._result(value, origin)
        result = self._results[id(value)]
        if isinstance(result, NotConstant):
            return result
        producer = value.producer()
        assert producer is not None  # else it is a leaf
        return Constant(
            root=result.root,
            nodes=(producer,),
            key=(("cone", id(value)),),
            shape=result.shape,
            dtype=result.dtype,
            stored_bytes=self._stored_bytes(origin),
            evaluate=Numbers(self._reader(value)),
        )

    def _result(self, value: ir.Value, origin: _Origin) -> _Result | NotConstant:
        try:
            array = self._evaluate(value)
        except (Refusal, OverBudget) as refusal:
            return NotConstant(
                f"'{value.name}' is the end of a constant expression that is not evaluated: "
                f"{refusal}",
                False,
            )
        return _Result(array.shape, ir.DataType.from_numpy(array.dtype), self._root(origin))

    def _reader(self, value: ir.Value) -> Callable[[], Array]:
        def read() -> Array:
            try:
                array = self._evaluate(value)
            except (Refusal, OverBudget) as refusal:
                raise ValueError(str(refusal)) from refusal
            if len(value.uses()) < 2:
                self._kept.release(value)
            return array

        return read

    def _origin(self, value: ir.Value) -> _Origin:
        """The constants ``value`` is computed from; every value's are found once."""
        waiting = [value]
        while waiting:
            each = waiting[-1]
            if id(each) in self._origins:
                waiting.pop()
                continue
            if (constant := leaf(each)) is not None:
                assert isinstance(constant, Constant)  # the status says so
                self._leaves[id(each)] = constant
                self._origins[id(each)] = _Origin(frozenset([id(each)]))
                continue
            producer = each.producer()
            inputs = [] if producer is None else [v for v in producer.inputs if v is not None]
            unknown = [v for v in inputs if id(v) not in self._origins]
            if unknown:
                waiting += unknown
                continue
            self._origins[id(each)] = self._united([self._origins[id(v)] for v in inputs])
        return self._origins[id(value)]

    def _united(self, origins: list[_Origin]) -> _Origin:
        if not origins:
            return _Origin(frozenset())
        largest = max(origins, key=lambda each: len(each.leaves))
        leaves = largest.leaves.union(
            *(each.leaves for each in origins if not each.leaves <= largest.leaves)
        )
        other_bytes = max(each.other_bytes for each in origins)
        if len(leaves) == len(largest.leaves) and other_bytes == largest.other_bytes:
            return largest
        if len(leaves) > _MAX_LEAVES:
            by_size = sorted(leaves, key=lambda key: self._leaves[key].stored_bytes)
            other_bytes += sum(self._leaves[key].stored_bytes for key in by_size[:-_MAX_LEAVES])
            leaves = frozenset(by_size[-_MAX_LEAVES:])
        return _Origin(leaves, other_bytes)

    def _stored_bytes(self, origin: _Origin) -> int:
        leaves = (self._leaves[key] for key in origin.leaves)
        return sum(each.stored_bytes for each in leaves) + origin.other_bytes

    def _root(self, origin: _Origin) -> ir.Value:
        """The largest constant, initializers first, that is not one number all over.

        Unpacking starts from zeros, which are larger than the packed weight.
        """
        leaves = sorted(
            (self._leaves[key] for key in origin.leaves),
            key=lambda each: (each.root.is_initializer(), each.stored_bytes, each.name),
            reverse=True,
        )
        return next((each.root for each in leaves if not self._is_uniform(each)), leaves[0].root)

    def _is_uniform(self, constant: Constant) -> bool:
        key = id(constant.root)
        if key not in self._uniform:
            elements = constant.numpy().reshape(-1)
            self._uniform[key] = not elements.size or bool((elements == elements[0]).all())
            constant.release()
        return self._uniform[key]

    def _evaluate(self, value: ir.Value) -> Array:
        """Run the cone that ends in ``value``, from what is kept.

        Raises:
            Refusal: if onnxruntime cannot run it, or a size is unknown.
            OverBudget: if it is too large.
        """
        if (array := self._kept.get(value)) is not None:
            return array
        known: dict[int, Array] = {}
        for node in self._cone(value, known):
            if (node.domain, node.op_type) in qonnx.STEPS:
                known[id(node.outputs[0])] = self._quantized(node.outputs[0])
                self._kept.add(node.outputs[0], known[id(node.outputs[0])])
        if id(value) in known:
            return known[id(value)]
        cone = self._cone(value, known)
        count = sum(map(self._nodes.count, cone))
        self._budget.step(count, f"the expression that ends in '{value.name}'")
        self._run(value, cone, known)
        array = self._kept.get(value)
        assert array is not None  # the last one is
        return array

    def _run(self, value: ir.Value, cone: list[ir.Node], known: Mapping[int, Array]) -> None:
        names = _Names()
        operands: dict[str, Operand] = {}
        wanted = {names(value): value}
        steps: list[Step] = []
        leaves: list[Constant] = []
        for node in cone:
            for each in filter(None, node.inputs):
                if id(each) in self._leaves:
                    operands[names(each)] = self._leaves[id(each)]
                    leaves.append(self._leaves[id(each)])
                elif (array := known.get(id(each))) is not None:
                    operands[names(each)] = Made(array)
            for each in node.outputs:
                if len(each.uses()) > 1:
                    wanted[names(each)] = each
            proto = ir.serde.serialize_node(node)
            proto.domain = real_domain(node)
            proto.input[:] = ["" if each is None else names(each) for each in node.inputs]
            proto.output[:] = [names(each) if each.name else "" for each in node.outputs]
            steps += self._nodes.steps(node, proto)

        def keep(name: str, array: Array) -> None:
            self._kept.add(wanted[name], array)

        stored_bytes = self._stored_bytes(self._origin(value))
        ir_version = self._model.ir_version
        try:
            Evaluation(steps, operands, wanted, keep, self._budget, stored_bytes, ir_version).run()
        finally:
            for constant in leaves:
                constant.release()

    def _quantized(self, value: ir.Value) -> Array:
        found = resolve(value, self)
        if isinstance(found, NotConstant):
            raise Refusal(found.reason)
        return found.numpy()

    def _cone(self, value: ir.Value, known: dict[int, Array]) -> list[ir.Node]:
        """The nodes that make ``value`` of constants and of what is kept, in topological order.

        What is kept is noted in ``known``, so that it stays until the cone has run.
        """
        nodes: dict[int, ir.Node] = {}
        waiting = [value]
        while waiting:
            each = waiting[-1]
            producer = each.producer()
            if self._is_there(each, known) or (producer is not None and id(producer) in nodes):
                waiting.pop()
                continue
            assert producer is not None  # else it is a leaf
            unknown = [
                v
                for v in producer.inputs
                if v is not None
                and not self._is_there(v, known)
                and (v.producer() is None or id(v.producer()) not in nodes)
            ]
            if unknown:
                waiting += unknown
                continue
            nodes[id(producer)] = producer
            waiting.pop()
        return list(nodes.values())

    def _is_there(self, value: ir.Value, known: dict[int, Array]) -> bool:
        if id(value) in known or id(value) in self._leaves:
            return True
        if (array := self._kept.get(value)) is not None:
            known[id(value)] = array
            return True
        return False


class _Names:
    """Names for values, different in all graphs."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def __call__(self, value: ir.Value) -> str:
        return self._names.setdefault(id(value), f"v{len(self._names)}")
