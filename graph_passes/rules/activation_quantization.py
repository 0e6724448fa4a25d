"""Activations that the graph itself rounds to eight bits, read back as the op's activation rule.

    X -> Abs -> ReduceMax -> Clip(eps) -> 127 / . = s;  X * s -> Round -> Clip = q
      1. q / s -> product                       =>   TernaryIndexedMatMul(X, activation = int8)
      2. q -> product -> / (s * constant)       =>   the same
    X -> DynamicQuantizeLinear = q, scale, zero point
      3. DequantizeLinear(q, ..) -> product     =>   TernaryIndexedMatMul(X, activation = uint8)
      4. MatMulInteger(q, W) -> Cast -> * scale * constant   =>   the same (matmul_integer.py)

1. and 2. as transformers' AutoBitLinear and BitLinear (packed weights) write them, through either
   torch exporter: s as ``qmax / absmax`` or ``1 / absmax * qmax``, Clip before or after Round or as
   Max and Min, Casts to int8 and back, float16 around arithmetic in float32. The product's own
   scales, in any order, are the op's.
5. The op repeats q bit for bit, so the integer sums are the same. Nodes that something else uses as
   well stay, the others go.
6. No constant on the way has more axes than X: it would add them to the result.
7. Any other rule (static scales, another rounding, axis or type, no epsilon, a zero point nobody
   subtracts) stays in the graph and only the product is rewritten: it sees whole numbers times a
   scale, as any float.

8. ``X + (q / s - X)``, in any order, as straight-through estimators leave it, is ``q / s`` but for
   the rounding of two operations; the report says so. ``v + (Round(v) - v)`` is Round(v) exactly.

Called by finish.py for every product; `OptimizeOptions.fuse_activation` turns it off. In subgraphs
the same, where all of it is in one graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_UINT8_K

from ..constants.constant import Constant, call_attribute
from ..constants.straight_through import StraightThrough, same, straight_through
from ..match import Context

UINT8_RULE: Mapping[str, Any] = {
    "activation": "uint8",
    "activation_rule": "dynamic_quantize_linear",
    "activation_epsilon": 0.0,
    "activation_qmin": 0,
    "activation_qmax": 255,
}
ESTIMATED = (
    "x + (quantize(x) - x) on the activations is taken for quantize(x), without the rounding of "
    "that sum and difference"
)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ROUNDING = ("Round", "Floor", "Ceil")
_MAX_STEPS = 8
# A scale that comes back as a rounded reciprocal is the same scale.
_SAME_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Term:
    """``factor * d ** power``, d the number that leads from integers back to activations.

    Attributes:
        factor: float64 () or (N,), positive and finite.
        power: exponent of d.
    """

    factor: NDArray[np.float64]
    power: int

    def times(self, other: Term) -> Term:
        """The product of both."""
        return Term(self.factor * other.factor, self.power + other.power)

    def inverse(self) -> Term:
        """1 divided by it."""
        return Term(1.0 / self.factor, -self.power)


ONE = Term(np.ones((), np.float64), 0)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Where a product's activations come from.

    Attributes:
        source: X, before it is quantized.
        attributes: the op's `activation` and its rule.
        known: values of the graph that are a multiple of d or 1 / d.
        term: the product's operand divided by the integers.
        note: what the user should know where the op takes over; or nothing.
    """

    source: ir.Value
    attributes: Mapping[str, Any]
    known: Mapping[ir.Value, Term]
    term: Term = field(default=ONE)
    note: str = ""

    def units(
        self, value: ir.Value | None, num_columns: int, rank: int | None, context: Context
    ) -> Term | None:
        """``value`` as a multiple of a power of d, if it is one (a constant: of power 0)."""
        return _units(value, self.known, num_columns, rank, _MAX_STEPS, context)


@dataclass(frozen=True, slots=True)
class NotFused:
    """Why the quantization stays in the graph."""

    reason: str


def read(x: ir.Value, dtype: ir.DataType, context: Context) -> Quantized | NotFused | None:
    """How the operand ``x`` of a product is quantized; None where it is not rounded at all.

    Args:
        x: float or integer activations.
        dtype: the type the op's X has to have.
        context: finds the constants.
    """
    found = _read(x, dtype, _MAX_STEPS, context)
    if not isinstance(found, Quantized):
        return found
    source = found.source
    cast = source.producer()
    if dtype != ir.DataType.FLOAT:
        # Case 1 in half precision: the rule works on what a Cast made float32.
        if cast is None or _standard(cast) != "Cast" or cast.inputs[0] is None:
            return NotFused(f"'{source.name}' is quantized in float32 and is not a {dtype.name}")
        source = cast.inputs[0]
        if source.dtype != dtype:
            return NotFused(f"'{source.name}' is not known to be {dtype.name}")
    elif source.dtype not in (None, dtype):
        return NotFused(f"'{source.name}' is {source.dtype.name.lower()}, not float32")
    return replace(found, source=source)


def _read(
    value: ir.Value, dtype: ir.DataType, steps: int, context: Context
) -> Quantized | NotFused | None:
    node = value.producer()
    if node is None or node.domain != "" or steps == 0 or call_attribute(node):
        return None
    if node.op_type == "DequantizeLinear":
        return _dynamic(node)  # case 3
    core = _rounded(value, context)
    if isinstance(core, NotFused):
        return core
    if core is not None:
        return _absmax_rule(core, context)
    if (ends := straight_through(value)) is not None:
        return _estimated(ends, dtype, steps, context)  # case 8
    if node.op_type in ("Cast", "Identity"):
        target = node.attributes.get_int("to", 0)
        operand = node.inputs[0]
        # A Cast to any other type would round what the op does not.
        if operand is None or target not in (0, int(ir.DataType.FLOAT), int(dtype)):
            return None
        return _read(operand, dtype, steps - 1, context)
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    pairs = [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]
    for inner, other in pairs[:1] if node.op_type == "Div" else pairs:
        if inner is None or isinstance(context.resolve(inner), Constant):
            continue
        found = _read(inner, dtype, steps - 1, context)
        if not isinstance(found, Quantized):
            if found is not None:
                return found
            continue
        term = found.units(other, 1, _least_rank(found), context)
        if term is None:
            name = "" if other is None else other.name
            return NotFused(
                f"{node.op_type} '{node.name}' combines the integers with '{name}', which is not "
                "their scale"
            )
        term = term.inverse() if node.op_type == "Div" else term
        return replace(found, term=found.term.times(term))
    return None


def _estimated(
    ends: StraightThrough, dtype: ir.DataType, steps: int, context: Context
) -> Quantized | NotFused | None:
    """What is behind a straight-through estimator of the activations themselves."""
    found = _read(ends.quantized, dtype, steps - 1, context)
    if not isinstance(found, Quantized):
        return found
    cast = found.source.producer()
    known = [found.source]
    if cast is not None and _standard(cast) == "Cast" and cast.inputs[0] is not None:
        known.append(cast.inputs[0])
    if not any(same(ends.master, each) for each in known):
        return NotFused(
            f"'{ends.master.name}', which is added and subtracted, is not '{found.source.name}', "
            "which is quantized"
        )
    if found.term.power != 1 or abs(float(found.term.factor) - 1) > _SAME_SCALE:
        return NotFused(f"'{ends.quantized.name}' is not on the scale of '{ends.master.name}'")
    return replace(found, note=ESTIMATED)


def _standard(node: ir.Node | None) -> str:
    """The name of an operator of the default domain; empty for everything else."""
    return "" if node is None or node.domain else node.op_type


def _least_rank(quantized: Quantized) -> int:
    """The rank of X, or the lowest it can have where it is unknown."""
    shape = quantized.source.shape
    if shape is not None:
        return len(shape)
    return 1 if quantized.attributes["activation"] == "int8" else 0  # absmax takes an axis of X


def _units(
    value: ir.Value | None,
    known: Mapping[ir.Value, Term],
    num_columns: int,
    rank: int | None,
    steps: int,
    context: Context,
) -> Term | None:
    if value is None or steps == 0:
        return None
    if value in known:
        return known[value]
    constant = context.resolve(value)
    if isinstance(constant, Constant):
        numbers = positive(constant, num_columns, rank)
        return None if numbers is None else Term(numbers, 0)
    node = value.producer()
    if node is None or node.domain != "" or call_attribute(node):
        return None
    operands = [_units(each, known, num_columns, rank, steps - 1, context) for each in node.inputs]
    if any(each is None for each in operands):
        return None
    terms = [each for each in operands if each is not None]
    if node.op_type == "Identity":
        return terms[0]
    if node.op_type == "Cast" and _is_float_cast(node):
        return terms[0]
    if node.op_type == "Reciprocal":
        return terms[0].inverse()
    if node.op_type == "Mul":
        return terms[0].times(terms[1])
    if node.op_type == "Div":
        return terms[0].times(terms[1].inverse())
    return None


def positive(constant: Constant, num_columns: int, rank: int | None) -> NDArray[np.float64] | None:
    """Positive finite floats, () or (N,), that multiply columns; None for everything else.

    Not integers: a Div by those truncates.
    """
    shape = constant.shape
    if constant.dtype not in _FLOATS:
        return None
    if constant.size not in (1, num_columns) or any(dim != 1 for dim in shape[:-1]):
        return None
    if len(shape) > (1 if rank is None else rank):  # it would add axes
        return None
    numbers = constant.numpy().astype(np.float64).reshape(-1)
    if not bool(((numbers > 0) & np.isfinite(numbers)).all()):
        return None
    return numbers.reshape(()) if numbers.size == 1 else numbers


def _is_float_cast(node: ir.Node) -> bool:
    return node.attributes.get_int("to", 0) == int(ir.DataType.FLOAT)


# Cases 3 and 4


def dynamic_quantizer(value: ir.Value | None) -> ir.Node | None:
    """The DynamicQuantizeLinear whose integers ``value`` is.

    They are not the op's before their zero point is subtracted, which the caller has to look for.
    """
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type) != ("", "DynamicQuantizeLinear"):
        return None
    return node if value is node.outputs[0] and node.inputs[0] is not None else None


def dynamic_quantization(source: ir.Value, scale: ir.Value | None = None) -> Quantized:
    """DynamicQuantizeLinear's integers of ``source``; ``scale`` is its second output."""
    return Quantized(source, UINT8_RULE, {} if scale is None else {scale: replace(ONE, power=1)})


def _dynamic(node: ir.Node) -> Quantized | NotFused | None:
    operands = [*node.inputs, None, None][:3]
    maker = dynamic_quantizer(operands[0])
    if maker is None:
        return None  # static scales: they stay
    if operands != list(maker.outputs):
        return NotFused(
            f"DequantizeLinear '{node.name}' does not use the scale and zero point of "
            f"DynamicQuantizeLinear '{maker.name}'"
        )
    assert maker.inputs[0] is not None
    found = dynamic_quantization(maker.inputs[0], maker.outputs[1])
    return replace(found, term=replace(ONE, power=1))


# Cases 1 and 2


@dataclass(frozen=True, slots=True)
class _Rounded:
    """``clip(round(scaled))``; ``rank`` is the highest of the constants it is clipped with."""

    scaled: ir.Value
    round_name: str
    lowest: float
    highest: float
    rank: int


def _rounded(value: ir.Value, context: Context) -> _Rounded | NotFused | None:
    """The rounding a value comes from; None where there is none next to it."""
    lowest, highest, rank = -math.inf, math.inf, 0
    rounding: ir.Node | None = None
    masters: list[ir.Value] = []
    for _ in range(_MAX_STEPS):
        if (ends := straight_through(value)) is not None:
            masters.append(ends.master)
            value = ends.quantized
        node = value.producer()
        if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
            break
        if call_attribute(node):
            break
        operand = node.inputs[0]
        if node.op_type in _ROUNDING and rounding is None:
            rounding = node
        elif node.op_type in ("Clip", "Max", "Min"):
            bounded = _bounded(node, context)
            if bounded is None:
                break
            operand = bounded.operand
            lowest, highest = max(lowest, bounded.lowest), min(highest, bounded.highest)
            rank = max(rank, bounded.rank)
        elif node.op_type == "Cast" and rounding is None:
            if ir.DataType(node.attributes["to"].as_int()) not in (ir.DataType.INT8, *_FLOATS):
                break
        else:
            break
        value = operand
    if rounding is None:
        return None
    name = rounding.name or ""
    if rounding.op_type != "Round":
        return NotFused(
            f"{rounding.op_type} '{name}' rounds other than to the nearest even integer"
        )
    for master in masters:  # v + (round(v) - v) is exact, v + (round(v) - x) is something else
        if not same(master, value):
            return NotFused(
                f"'{master.name}', which is added and subtracted, is not '{value.name}', which "
                f"Round '{name}' rounds"
            )
    return _Rounded(value, name, lowest, highest, rank)


@dataclass(frozen=True, slots=True)
class _Bounded:
    """An operand between two numbers; ``rank`` is the highest of the constants that broadcast."""

    operand: ir.Value
    lowest: float
    highest: float
    rank: int


def _bounded(node: ir.Node, context: Context) -> _Bounded | None:
    """The operand of a Clip, or of a Max or Min with a constant, and its bounds."""
    if call_attribute(node):
        return None
    if node.op_type == "Clip":
        bounds = [-math.inf, math.inf]
        for at, name in enumerate(("min", "max")):
            given = node.inputs[at + 1] if len(node.inputs) > at + 1 else None
            attribute = node.attributes.get_float(name, None)  # opset below 11
            number = None if given is None else _number(given, context)
            if given is not None and number is None:
                return None
            bound = attribute if number is None else number.value
            bounds[at] = bounds[at] if bound is None else bound
        if node.inputs[0] is None:
            return None
        return _Bounded(node.inputs[0], bounds[0], bounds[1], 0)
    if len(node.inputs) != 2:
        return None
    for operand, other in (node.inputs, node.inputs[::-1]):
        number = _number(other, context)
        if number is not None and operand is not None:
            if node.op_type == "Max":
                return _Bounded(operand, number.value, math.inf, number.rank)
            return _Bounded(operand, -math.inf, number.value, number.rank)
    return None


@dataclass(frozen=True, slots=True)
class _Number:
    """A constant of one element, and its number of axes, which its result may take on."""

    value: float
    rank: int


def _number(value: ir.Value | None, context: Context) -> _Number | None:
    constant = None if value is None else context.resolve(value)
    if not isinstance(constant, Constant) or constant.size != 1:
        return None
    return _Number(float(constant.numpy().astype(np.float64).reshape(())), len(constant.shape))


@dataclass(frozen=True, slots=True)
class _Absmax:
    """``max(|source|, epsilon)`` of each row; ``rank`` is that of the constant epsilon."""

    source: ir.Value
    epsilon: float
    rank: int


def _absmax_rule(core: _Rounded, context: Context) -> Quantized | NotFused:
    where = f"Round '{core.round_name}'"
    node = core.scaled.producer()
    if node is None or node.op_type != "Mul" or len(node.inputs) != 2:
        return NotFused(f"{where} does not round activations multiplied by a scale")
    refused: NotFused | None = None
    for source, s in (node.inputs, node.inputs[::-1]):
        if source is None or s is None:
            continue
        for scale in _scales(s, context):
            found = _absmax(scale.absmax, context)
            if isinstance(found, NotFused):
                refused = refused or found
            elif found.source is not source:
                refused = NotFused(
                    f"{where} scales '{source.name}' by the largest magnitude of "
                    f"'{found.source.name}'"
                )
            else:
                return _with_range(core, scale, found)
    return refused or NotFused(f"{where} does not scale by the largest magnitude of each row")


@dataclass(frozen=True, slots=True)
class _Scale:
    """``qmax / absmax``, computed by `rule`; `known` as in `Quantized`, `rank` of its constants."""

    rule: str
    qmax: float
    absmax: ir.Value
    known: Mapping[ir.Value, Term]
    rank: int


def _scales(s: ir.Value, context: Context) -> Iterator[_Scale]:
    """What ``s`` may be made of."""
    node = s.producer()
    if node is None or node.domain != "" or len(node.inputs) != 2:
        return
    first, second = node.inputs
    by_s = {s: Term(np.ones((), np.float64), -1)}
    if (
        node.op_type == "Div"
        and (qmax := _factor(first, context)) is not None
        and second is not None
    ):
        known = {**by_s, second: _absmax_term(qmax.value)}
        yield _Scale("absmax_division", qmax.value, second, known, qmax.rank)
    if node.op_type != "Mul":
        return
    for inverse, other in ((first, second), (second, first)):
        qmax = _factor(other, context)
        maker = None if inverse is None else inverse.producer()
        if qmax is None or maker is None or inverse is None or not maker.inputs:
            continue
        absmax, rank = maker.inputs[-1], qmax.rank
        divides = False
        if _standard(maker) == "Div" and (one := _number(maker.inputs[0], context)) is not None:
            divides, rank = one.value == 1.0, max(rank, one.rank)
        if absmax is not None and (_standard(maker) == "Reciprocal" or divides):
            term = _absmax_term(qmax.value)
            known = {**by_s, inverse: term.inverse(), absmax: term}
            yield _Scale("absmax_reciprocal", qmax.value, absmax, known, rank)


def _factor(value: ir.Value | None, context: Context) -> _Number | None:
    """A constant of one element that is not zero."""
    number = _number(value, context)
    return number if number is not None and number.value else None


def _absmax_term(qmax: float) -> Term:
    return Term(np.array(qmax, np.float64), 1)


def _absmax(value: ir.Value, context: Context) -> _Absmax | NotFused:
    node = value.producer()
    if _standard(node) == "ReduceMax":
        return NotFused(
            f"nothing bounds the largest magnitude '{value.name}' from below, so the graph makes "
            "NaN of a row of zeros"
        )
    if node is None or _standard(node) not in ("Clip", "Max"):
        return NotFused(f"'{value.name}' is not the largest magnitude of a row, bounded from below")
    bounded = _bounded(node, context)
    if bounded is None or bounded.highest != math.inf:
        return NotFused(f"{node.op_type} '{node.name}' bounds the scale otherwise than from below")
    reduced, epsilon = bounded.operand, bounded.lowest
    bound = next((each for each in node.inputs if each is not None and each is not reduced), None)
    constant = None if bound is None else context.resolve(bound)
    if isinstance(constant, Constant) and constant.dtype != ir.DataType.FLOAT:
        return NotFused(
            f"the activations are quantized in {constant.dtype.name.lower()}, the op does it in "
            "float32"
        )
    if not 1e-30 <= epsilon < 1e30:
        return NotFused(f"epsilon is {epsilon:g}, the op takes 1e-30 to below 1e30")
    reduce = reduced.producer()
    if reduce is None or _standard(reduce) != "ReduceMax" or not reduce.inputs:
        return NotFused(f"'{reduced.name}' is not the largest magnitude of a row")
    if refused := call_attribute(reduce):
        return NotFused(f"'{reduced.name}' is computed by {refused}")
    absolute = None if reduce.inputs[0] is None else reduce.inputs[0].producer()
    source = absolute.inputs[0] if absolute is not None and _standard(absolute) == "Abs" else None
    if source is None:
        return NotFused(f"ReduceMax '{reduce.name}' does not reduce magnitudes")
    rank = None if source.shape is None else len(source.shape)
    axes = _axes(reduce, context)
    if axes not in ([-1], [None if rank is None else rank - 1]):
        return NotFused(
            f"ReduceMax '{reduce.name}' takes axes {axes or 'all'}, the op quantizes each row of "
            "the last axis"
        )
    if reduce.attributes.get_int("keepdims", 1) != 1:
        return NotFused(f"ReduceMax '{reduce.name}' drops the axis (keepdims = 0)")
    return _Absmax(source, float(np.float32(epsilon)), bounded.rank)


def _axes(node: ir.Node, context: Context) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    constant = context.resolve(node.inputs[1])
    if not isinstance(constant, Constant):
        return None
    return [int(axis) for axis in constant.numpy().reshape(-1)]


def _with_range(core: _Rounded, scale: _Scale, absmax: _Absmax) -> Quantized | NotFused:
    where, qmax = f"Round '{core.round_name}'", scale.qmax
    if qmax not in range(1, 128):
        return NotFused(f"{where} scales to {qmax:g}, the op to whole numbers from 1 to 127")
    if core.highest < qmax:
        return NotFused(f"{where} scales to {qmax:g} but is clipped to {core.highest:g}")
    # Bounds beyond what the scale reaches do nothing.
    lowest = -128.0 if core.lowest <= -qmax else core.lowest
    if not (lowest.is_integer() and lowest < 0):
        return NotFused(f"{where} is clipped to {lowest:g}, the op to a negative whole number")
    attributes = {
        "activation": "int8",
        "activation_rule": scale.rule,
        "activation_epsilon": absmax.epsilon,
        "activation_qmin": int(lowest),
        "activation_qmax": int(qmax),
    }
    found = Quantized(absmax.source, attributes, scale.known)
    rank = max(core.rank, scale.rank, absmax.rank)
    if rank > _least_rank(found):  # case 6
        return NotFused(
            f"{where} takes a constant of rank {rank}, which may give the result more axes than "
            f"'{absmax.source.name}' has"
        )
    return found


def limits(quantized: Quantized, K: int, group_size: int) -> str | None:
    """Why the op cannot quantize for this weight, if it cannot."""
    if quantized.attributes["activation"] != "uint8":
        return None
    if K > MAX_UINT8_K:
        return f"uint8 activations take at most {MAX_UINT8_K} rows, the weight has {K}"
    if group_size:
        return "uint8 activations take one scale per column, the weight has one per group of rows"
    return None
