"""If, Loop, Scan and local functions around a few random steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.fuzz import random_graphs
from tests.fuzz.intervals import Interval
from tests.fuzz.random_graphs import DEEPEST, F32, QONNX, Scope, one

MOST_STEPS = 3


def _steps(scope: Scope, x: str) -> str:
    """A few steps behind ``x`` in a body, and the activation they end in."""
    scope.made.append(x)
    for _ in range(scope.rng.integers(1, MOST_STEPS + 1)):
        random_graphs.draw_step(scope)
    last = scope.made[-1]
    return scope.add("Identity", last) if last == x or scope.rng.random() < 0.2 else last


def _graph(scope: Scope, inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> onnx.GraphProto:
    made = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(scope.values[name].dtype), None
        )
        for name in outputs
    ]
    return helper.make_graph(scope.nodes, scope.model.name("body"), inputs, made, scope.tensors)


def _info(scope: Scope, name: str, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, scope.model.element, shape)


def branch(scope: Scope, x: str) -> str | None:
    """If on a constant, or on a value of the graph; what the branches see is around them."""
    if scope.depth >= DEEPEST:
        return None
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = scope.inner([])
        branches[name] = _graph(inner, [], [_steps(inner, x)])
    condition = scope.constant(np.array(bool(scope.rng.integers(2))))
    if scope.rng.random() < 0.5:
        condition = scope.add("Cast", scope.add("Cast", condition, to=6), to=TensorProto.BOOL)
    return scope.add("If", condition, **branches)


def loop(scope: Scope, x: str) -> str | None:
    """Two turns of a body that keeps the shape of what it carries."""
    if scope.depth >= DEEPEST:
        return None
    inside = scope.model.name("carried")
    inner = scope.inner([(inside, scope.values[x])])
    _steps(inner, inside)
    shape = scope.values[x].shape
    fitting = [name for name in inner.made[1:] if inner.values[name].shape == shape]
    end = fitting[-1] if fitting else inner.add("Identity", inside)
    count, going, still = (scope.model.name(kind) for kind in ("count", "going", "still"))
    inner.nodes.append(helper.make_node("Identity", [going], [still]))
    inner.values[still] = Interval.of(np.array(True))
    inputs = [
        helper.make_tensor_value_info(count, TensorProto.INT64, []),
        helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        _info(scope, inside, one([None, list(shape)], scope.rng)),
    ]
    body = _graph(inner, inputs, [still, end])
    turns = scope.constant(np.array(int(scope.rng.integers(1, 3))))
    return scope.add("Loop", turns, scope.constant(np.array(True)), x, body=body)


def scan(scope: Scope, x: str) -> str | None:
    """A body for every part of ``x`` along its first axis."""
    shape = scope.values[x].shape
    if scope.depth >= DEEPEST or len(shape) < 2 or not shape[0]:
        return None
    inside = scope.model.name("part")
    inner = scope.inner([(inside, scope.values[x].moved(lambda each: each[0]))])
    end = _steps(inner, inside)
    inputs = [_info(scope, inside, one([None, list(shape[1:])], scope.rng))]
    return scope.add("Scan", x, body=_graph(inner, inputs, [end]), num_scan_inputs=1)


def function(scope: Scope, x: str) -> str | None:
    """A local function, at times named like an operator, with its own or given weights."""
    if scope.depth >= DEEPEST or scope.is_function:
        return None
    model, rng = scope.model, scope.rng
    inside = model.name("argument")
    inner = scope.inner([(inside, scope.values[x])], is_function=True)
    inputs, given = [inside], [x]
    shape = scope.values[x].shape
    if shape and rng.random() < 0.4:
        weight = random_graphs.draw_weight(scope, shape[-1], int(one((16, 32, 48), rng)))
        name = model.name("weight")
        inner.values[name] = scope.values[weight]
        inputs.append(name)
        given.append(weight)
        first = inner.add("MatMul", inside, name)
    else:
        first = inside
    end = _steps(inner, first)
    domain = one(["local", "local", QONNX, "onnx_brevitas"], rng)
    names = {"Quant": 0, "Linear": 0, "MatMul": 0, "DequantizeLinear": 0}
    taken = {each.name for each in model.functions if each.domain == domain}
    free = [name for name in names if name not in taken] or [model.name("Block")]
    opsets = [helper.make_opsetid("", model.opset)]
    opsets += [helper.make_opsetid(each, 1) for each in sorted(model.domains)]
    made = helper.make_function(domain, one(free, rng), inputs, [end], inner.nodes, opsets)
    model.functions.append(made)
    model.interpreter.functions[made.domain, made.name] = made
    found = scope.add(made.name, *given, domain=domain)
    if rng.random() < 0.3 and scope.values[x].dtype == F32:
        found = scope.add(made.name, *given, domain=domain)
    return found


BODIES = (branch, loop, scan, function)
