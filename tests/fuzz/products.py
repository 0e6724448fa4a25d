"""Products of every kind against the rule of docs/op_spec.md, as tests/fuzz/rule.py has it.

Kernels forced by name, instruction sets as the selection uses them, and sessions of ONNX Runtime in
every dtype; storages, alphabets, scales, activation rules, and M, K and N around every tile.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels, layer, packers
from onnx_ternary.runtime import register
from onnx_ternary.schema import MAX_BLOCK_WIDTH, STORAGES, OpAttributes
from tests.fuzz import rule
from tests.support.single_node import Node, make_model, pack, pack_rsr

Rng = np.random.Generator
Floats = NDArray[np.float32]
SUPPORTED = [each for each in kernels.list_kernels()["kernels"] if each["supported"]]
BY_NAME = {each["name"]: each for each in SUPPORTED}
ISAS = sorted({each["isa"] for each in SUPPORTED})
LEVELS = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
PACKED_BY_HAND = 1500
"""Weights up to here are packed by plain numpy, written from docs/index_format.md."""


def one(choices: Any, rng: Rng) -> Any:
    return choices[rng.integers(len(choices))]


def size(rng: Rng, largest: int) -> int:
    """Around a power of two, or anything."""
    if rng.random() < 0.7:
        return min(int(one(SIZES, rng)), largest)
    return int(rng.integers(1, largest + 1))


def draw_attributes(rng: Rng, activation: str) -> OpAttributes:
    K, N = size(rng, 1500), size(rng, 90)
    if rng.random() < 0.02:
        K, N = int(rng.integers(65500, 70000)), int(rng.integers(1, 9))
    index_format = one(("packed", "packed", "rsr"), rng)
    storage = one(list(STORAGES[index_format]), rng)
    values: dict[str, Any] = {"index_format": index_format, "storage": storage}
    values["alphabet"] = one(STORAGES[index_format][storage], rng)
    step = 1
    if index_format == "packed":
        step = values["block_size"] = int(one((16, 32, 64, 128, 128), rng))
    else:
        widest = min(MAX_BLOCK_WIDTH[storage], 8 if K < 5000 else 3)
        values["block_size"] = 0
        values["block_width"] = int(rng.integers(1, widest + 1))
        values["algorithm"] = one(("rsr", "rsr++"), rng)
    if activation != "uint8" and rng.random() < 0.5:
        most = min(-(-K // step) + 1, 40)
        least = -(-K // 300) if index_format == "rsr" else 1
        values["group_size"] = step * int(rng.integers(least, max(most, least) + 1))
    if activation == "int8":
        values["activation_rule"] = one(("absmax_division", "absmax_reciprocal"), rng)
        values["activation_epsilon"] = float(np.float32(one((1e-5, 1e-30, 1.0, 9e29), rng)))
        values["activation_qmin"] = int(one((-128, -128, -127, -7, -1), rng))
        values["activation_qmax"] = int(one((127, 127, 7, 1, 100), rng))
    elif activation == "uint8":
        values |= {"activation_rule": "dynamic_quantize_linear", "activation_qmax": 255}
    return OpAttributes(K=K, N=N, activation=activation, **values)  # type: ignore[arg-type]


def draw_scale(rng: Rng, attributes: OpAttributes) -> Floats:
    shape: tuple[int, ...] = one(((), (attributes.N,)), rng)
    if attributes.group_size:
        shape = (attributes.num_groups, attributes.N)
    kind = rng.integers(6)
    scale = np.asarray(rng.uniform(0.01, 2, shape), np.float32)
    if kind == 1:
        scale = np.asarray(2.0 ** rng.integers(-20, 21, shape), np.float32)
    elif kind == 2:
        scale = np.asarray(10.0 ** rng.uniform(-37, 37, shape), np.float32)
    elif kind == 3:
        scale = np.asarray(scale * (rng.random(shape) < 0.7), np.float32)
    elif kind == 4:
        scale = np.asarray(scale * np.float32(one((1e-38, 1e-44, 1e37, 1e25), rng)), np.float32)
    return scale


def draw_node(rng: Rng, activation: str) -> Node:
    attributes = draw_attributes(rng, activation)
    shape = (attributes.K, attributes.N)
    levels = rng.choice(np.array(LEVELS[attributes.alphabet], np.int8), shape)
    if rng.random() < 0.2:
        levels[:, rng.random(attributes.N) < 0.5] = one(LEVELS[attributes.alphabet], rng)
    by_hand = levels.size <= PACKED_BY_HAND and attributes.block_width <= 4
    aux = np.zeros(1, np.uint32)
    codes: NDArray[Any]
    if attributes.index_format == "packed":
        codes = pack(levels, attributes) if by_hand else _packed(levels, attributes)
    else:
        codes, aux = pack_rsr(levels, attributes) if by_hand else _packed_rsr(levels, attributes)
        if rng.random() < 0.3:
            codes = codes.astype(np.uint32)
    bias = np.zeros((), np.float32)
    if rng.random() < 0.5:
        bias = rng.normal(size=attributes.N).astype(np.float32)
        bias *= np.float32(one((1, 1e-3, 1e6, 1e-40, 1e37), rng))
    return Node(attributes, levels, codes, aux, draw_scale(rng, attributes), bias)


def _packed(levels: NDArray[np.int8], attributes: OpAttributes) -> NDArray[Any]:
    return packers.pack(
        levels,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        block_size=attributes.block_size,
    )


def _packed_rsr(
    levels: NDArray[np.int8], attributes: OpAttributes
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    return packers.pack_rsr(
        levels,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        block_width=attributes.block_width,
        group_size=attributes.group_size,
    )


def draw_rows(rng: Rng, rows: int, K: int) -> Floats:
    """Activations (rows, K), every row of a kind of its own."""
    x = np.empty((rows, K), np.float32)
    for row in x:
        row[:] = rng.normal(size=K)
        kind = rng.integers(9)
        if kind == 1:
            row[:] = rng.integers(-127, 128, K)
        elif kind == 2:
            row[rng.random(K) < rng.random()] = 0
        elif kind == 3:
            row[rng.integers(K, size=rng.integers(1, 4))] *= np.float32(10 ** rng.uniform(0, 12))
        elif kind == 4:
            row[:] = np.float32(2.0) ** rng.integers(-60, 60, K) * rng.choice([-1, 1], K)
        elif kind == 5:
            row[:] = rng.integers(-254, 255, K) / np.float32(2)  # ties of Round at scale 1
            row[rng.integers(K)] = 127
        elif kind == 6:
            row[:] = np.abs(row) ** 4
        elif kind == 7:
            row[:] = one((0.0, -0.0, 1.0, -3.25, 1e-45), rng)
        row *= np.float32(one((1, 1, 1, 1, 1e-3, 1e-38, 1e-42, 1e10, 1e17), rng))
    return x


def make_extreme(rng: Rng, x: Floats) -> None:
    """Rows at the edge of float32, with NaN and with infinities."""
    if not x.size:
        return
    row = x[rng.integers(len(x))]
    kind = rng.integers(3)
    if kind == 0:
        row[rng.integers(row.size, size=2)] = one((np.nan, np.inf, -np.inf), rng)
    else:
        row[:] = rng.uniform(-1, 1, row.size) * one((1e30, 1.1e31, 1e34, 1e36, 3.4e38), rng)
        if kind == 2:
            row[:] = np.abs(row)


def meaning(node: Node) -> rule.Product:
    """What the rule sees of a node."""
    attributes = node.attributes
    return rule.Product(
        node.levels,
        node.scale,
        node.bias,
        attributes.group_size,
        attributes.activation,
        attributes.activation_rule,
        attributes.activation_epsilon,
        attributes.activation_qmin,
        attributes.activation_qmax,
    )


def try_product(rng: Rng) -> str:
    """Draw a node and activations, run them one way, and judge: ``kernel``, ``isa``, ``session``.

    ``refused`` is a forced kernel that does not take the node.

    Raises:
        AssertionError: if the answer is not what docs/op_spec.md promises.
    """
    node = draw_node(rng, one(("float", "float", "int8", "uint8"), rng))
    K = node.attributes.K
    rows = int(one((0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65), rng))
    x = draw_rows(rng, rows if K < 5000 else min(rows, 9), K)
    how = one((_by_kernel, _by_kernel, _by_isa, _by_isa, _in_session), rng)
    try:
        outcome: str = how(node, x, rng)
    except AssertionError as error:
        values = asdict(node.attributes)
        raise AssertionError(f"{how.__name__}, x {x.shape}, {values}: {error}") from error
    return outcome


def _layer(node: Node) -> layer.Layer:
    return layer.Layer(node.attributes, *node.tensors)


def _by_kernel(node: Node, x: Floats, rng: Rng) -> str:
    activation = "float" if node.attributes.activation == "float" else "int8"
    names = [
        name
        for name, each in BY_NAME.items()
        if each["index_format"] == node.attributes.index_format and each["activation"] == activation
    ]
    name = one(names, rng)
    try:
        y, _ = _layer(node).run(x, kernel=name, num_parts=int(rng.integers(1, 6)))
    except LibraryError as error:
        assert name in str(error), error
        return "refused"
    depth = layer.addition_depth(node.attributes, *node.tensors, kernel=name)
    promise = rule.Promise(depth, BY_NAME[name]["fixed_point"], guarded=False)
    rule.judge(meaning(node), x, y, promise)
    return "kernel"


def _by_isa(node: Node, x: Floats, rng: Rng) -> str:
    if rng.random() < 0.3:
        make_extreme(rng, x)
    with kernels.forced(isa=one(("", *ISAS), rng)):
        y, used = _layer(node).run(x, num_parts=int(rng.integers(1, 6)))
    fixed_point = any(BY_NAME[name]["fixed_point"] for name in used.split(",") if name)
    rule.judge(meaning(node), x, y, rule.Promise(node.attributes.K, fixed_point))
    return "isa"


@functools.cache
def _options(threads: int) -> ort.SessionOptions:
    options = register(ort.SessionOptions())
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return options


def _in_session(node: Node, x: Floats, rng: Rng) -> str:
    dtype = one(("float32", "float32", "bfloat16"), rng)
    if rng.random() < 0.3:
        make_extreme(rng, x)
    x = rule.rounded(x, dtype)
    session = ort.InferenceSession(
        make_model(node, dtype=dtype).SerializeToString(),
        _options(int(rng.integers(1, 3))),
        providers=["CPUExecutionProvider"],
    )
    y = session.run(None, {"X": x})[0]
    rule.judge(meaning(node), x, y, rule.Promise(node.attributes.K, True, dtype=dtype))
    return "session"
