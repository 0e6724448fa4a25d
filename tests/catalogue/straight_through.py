"""Straight-through estimators: ``w + (quantize(w) - w)`` of weights and of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.activations import UINT8 as UINT8_RULE
from tests.catalogue.activations import Constants, Nodes, absmax, dynamic, quantizing_case
from tests.catalogue.case import F32, Array, Case, K, Miss, N, matmul, model, node, ternary

ORDERS = ("w + (q - w)", "(q - w) + w", "w - (w - q)", "(w + q) - w", "(q + w) - w")


def estimator(order: str, q: str, w: str, output: str) -> Nodes:
    """The two nodes of an estimator, in one of its orders."""
    inner = f"{output}_inner"
    first, second = {
        "w + (q - w)": (("Sub", q, w), ("Add", w, inner)),
        "(q - w) + w": (("Sub", q, w), ("Add", inner, w)),
        "w - (w - q)": (("Sub", w, q), ("Sub", w, inner)),
        "(w + q) - w": (("Add", w, q), ("Sub", inner, w)),
        "(q + w) - w": (("Add", q, w), ("Sub", inner, w)),
    }[order]
    return [node(first[0], first[1:], inner), node(second[0], second[1:], output)]


def absmean(v: str = "v", q: str = "q") -> Nodes:
    """BitNet b1.58's rule, one mean magnitude for the matrix."""
    return [
        node("Abs", [v], f"{q}_magnitudes"),
        node("ReduceMean", [f"{q}_magnitudes"], f"{q}_mean", keepdims=0),
        node("Div", [v, f"{q}_mean"], f"{q}_ratio"),
        node("Round", [f"{q}_ratio"], f"{q}_rounded"),
        node("Clip", [f"{q}_rounded", "minus_one", "one"], f"{q}_levels"),
        node("Mul", [f"{q}_levels", f"{q}_mean"], q),
    ]


def master(*shape: int, dtype: Any = F32, seed: int = 4) -> Array:
    """Weights as training leaves them."""
    drawn = np.random.default_rng(seed).standard_normal(shape or (K, N)) * 0.02
    return drawn.astype(dtype)


def bounds(dtype: Any = F32) -> Constants:
    return {"minus_one": np.array(-1, dtype), "one": np.array(1, dtype)}


def weight(
    order: str = ORDERS[0],
    v: Array | None = None,
    *,
    behind: Nodes = (),
    subtracted: str = "v",
    outputs: Sequence[str] = ("y",),
    noted: bool = True,
    **kwargs: Any,
) -> Case:
    """A product whose weight is an estimator's value; ``behind`` makes w of e."""
    v = master() if v is None else v
    made = model(
        [
            *absmean(),
            *estimator(order, "q", subtracted, "e" if behind else "w"),
            *behind,
            matmul(),
        ],
        {"v": v, **bounds(v.dtype)},
        outputs=outputs,
        **kwargs,
    )
    return Case(made, ("MatMul",), (None,), noted=noted)


def half_weight() -> Case:
    """onnxruntime rounds to float16 but once, and the sum is exact."""
    v = master(dtype=np.float16)
    return weight(v=v, x_dtype=TensorProto.FLOAT16, y_dtype=TensorProto.FLOAT16, noted=False)


def bfloat16_weight(order: str = ORDERS[0]) -> Case:
    """BitNet's training code: the rule in float32, the estimator in bfloat16."""
    made = model(
        [
            node("Cast", ["v"], "wide", to=TensorProto.FLOAT),
            *absmean("wide", "q"),
            node("Cast", ["q"], "narrow", to=TensorProto.BFLOAT16),
            *estimator(order, "narrow", "v", "w"),
            node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
            matmul("xb", "w", "yb"),
            node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
        ],
        {"v": master(dtype=ml_dtypes.bfloat16), **bounds()},
    )
    # The sum first loses digits, the difference first none.
    return Case(made, ("MatMul",), (None,), noted=order != ORDERS[0])


def turned() -> Case:
    """Stored as torch does, through Identity and Transpose."""
    nodes = [
        node("Identity", ["v"], "detached"),
        *absmean(),
        *estimator(ORDERS[0], "q", "detached", "e"),
        node("Transpose", ["e"], "w", perm=[1, 0]),
        matmul(),
    ]
    return Case(model(nodes, {"v": master(N, K), **bounds()}), ("MatMul",), (None,), noted=True)


def codes_estimated() -> Case:
    """The estimator is around whole numbers, where it is exact."""
    nodes = absmean()
    nodes[3:5] = [
        node("Round", ["q_ratio"], "near"),
        *estimator(ORDERS[0], "near", "q_ratio", "q_rounded"),
        node("Clip", ["q_rounded", "minus_one", "one"], "q_levels"),
    ]
    nodes[-1] = node("Mul", ["q_levels", "q_mean"], "w")
    return Case(model([*nodes, matmul()], {"v": master(), **bounds()}), ("MatMul",), (None,))


def with_value(value: float) -> onnx.ModelProto:
    v = master()
    v[3, 2] = value
    return weight(v=v).model


def activations(order: str = ORDERS[0], *, x: str = "x", **kwargs: Any) -> Case:
    """``x + (q / s - x)`` in front of a product with a ternary weight."""
    matrix = ternary(scale=0.3)
    nodes = [
        node("Div", ["q", "s"], "dequantized"),
        *estimator(order, "dequantized", x, "e"),
        matmul("e"),
    ]
    case = quantizing_case(
        absmax(), nodes, {"w": matrix}, "MatMul", weight=matrix, x_shape=("batch", 3, K), **kwargs
    )
    return Case(case.model, case.patterns, case.weights, activation=case.activation, noted=True)


def rounding_estimated() -> Case:
    """``v + (Round(v) - v)`` inside: exact, so nothing is noted."""
    matrix = ternary(scale=0.3)
    quantization, constants = absmax()
    at = next(at for at, each in enumerate(quantization) if each.op_type == "Round")
    quantization[at : at + 1] = [
        node("Round", ["scaled"], "near"),
        *estimator(ORDERS[0], "near", "scaled", "rounded"),
    ]
    nodes = [node("Div", ["q", "s"], "dequantized"), matmul("dequantized")]
    return quantizing_case((quantization, constants), nodes, {"w": matrix}, "MatMul", weight=matrix)


def dynamic_estimated() -> Case:
    matrix = ternary(scale=0.3)
    nodes = [
        node("DequantizeLinear", ["q", "x_scale", "zero"], "dequantized"),
        *estimator(ORDERS[0], "dequantized", "x", "e"),
        matmul("e"),
    ]
    case = quantizing_case(
        (dynamic(), {}), nodes, {"w": matrix}, "MatMul", activation=UINT8_RULE, weight=matrix
    )
    return Case(case.model, case.patterns, case.weights, activation=case.activation, noted=True)


def half_activations() -> Case:
    """The rule in float32, the estimator in float16."""
    matrix = ternary(dtype=np.float16)
    quantization, constants = absmax(x="wide")
    widen = node("Cast", ["x"], "wide", to=TensorProto.FLOAT)
    nodes = [
        node("Div", ["q", "s"], "dequantized"),
        node("Cast", ["dequantized"], "narrow", to=TensorProto.FLOAT16),
        *estimator(ORDERS[0], "narrow", "x", "e"),
        matmul("e"),
    ]
    case = quantizing_case(
        ([widen, *quantization], constants),
        nodes,
        {"w": matrix},
        "MatMul",
        weight=matrix,
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )
    return Case(case.model, case.patterns, case.weights, activation=case.activation, noted=True)


def other_master() -> onnx.ModelProto:
    """Something else than the quantized activations is added and subtracted."""
    made = activations(x="z").model
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch", 3, K)))
    return made


def other_scale() -> onnx.ModelProto:
    """The integers come back on twice their scale."""
    made = activations().model
    (divide,) = (each for each in made.graph.node if each.name == "Div_dequantized")
    at = [*made.graph.node].index(divide)
    divide.output[0] = "half"
    made.graph.node.insert(at + 1, node("Mul", ["half", "two"], "dequantized"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, F32), "two"))
    return made


DISTINCT = "distinct magnitudes in column 0, expected 1"
HITS: dict[str, Callable[[], Case]] = {
    **{
        f"straight_through_{at}": lambda order=order: weight(order)  # type: ignore[misc]
        for at, order in enumerate(ORDERS)
    },
    "straight_through_float16": half_weight,
    "straight_through_bfloat16": bfloat16_weight,
    "straight_through_bfloat16_sum": lambda: bfloat16_weight(ORDERS[3]),
    "straight_through_turned": turned,
    "straight_through_cast": lambda: weight(
        behind=[node("Cast", ["e"], "w", to=TensorProto.FLOAT)]
    ),
    "straight_through_codes": codes_estimated,
    **{
        f"straight_through_activations_{at}": lambda order=order: activations(order)  # type: ignore[misc]
        for at, order in enumerate(ORDERS)
    },
    "straight_through_activations_float16": half_activations,
    "straight_through_rounding": rounding_estimated,
    "straight_through_dynamic": dynamic_estimated,
}
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    # The forms with another operand, or added instead of subtracted, are other numbers.
    "straight_through_other_weight": lambda: Miss(
        model(
            [*absmean(), node("Sub", ["q", "u"], "d"), node("Add", ["v", "d"], "w"), matmul()],
            {"v": master(), "u": master(seed=1), **bounds()},
        ),
        f"weight has 48 {DISTINCT}",
    ),
    "straight_through_turned_round": lambda: Miss(
        model(
            [*absmean(), node("Sub", ["v", "q"], "d"), node("Add", ["v", "d"], "w"), matmul()],
            {"v": master(), **bounds()},
        ),
        f"weight has 48 {DISTINCT}",
    ),
    "straight_through_broadcast": lambda: Miss(
        model(
            [*estimator(ORDERS[0], "row", "v", "w"), matmul()],
            {"v": master(), "row": np.linspace(-3, 3, N, dtype=F32)[None]},
        ),
        "weight has 3 distinct magnitudes in column 8, expected 1; rounding apart it is ternary: "
        "--tolerance 1.2e-07 takes it",
    ),
    "straight_through_infinite": lambda: Miss(with_value(np.inf), "weight contains NaN"),
    "straight_through_nan": lambda: Miss(with_value(np.nan), "weight contains NaN"),
}
KEPT: dict[str, Callable[[], tuple[onnx.ModelProto, str]]] = {
    "estimator_of_another": lambda: (
        other_master(),
        "'z', which is added and subtracted, is not 'x', which is quantized",
    ),
    "estimator_on_another_scale": lambda: (
        other_scale(),
        "'dequantized' is not on the scale of 'x'",
    ),
}
