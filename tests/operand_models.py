"""Products that are not written as MatMul(X, W): weight on the left, FusedMatMul, Einsum, Conv.

Part of the catalogue of tests/models.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.models import (
    F32,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    column_scales,
    matmul,
    model,
    node,
    ternary,
)

MICROSOFT = helper.make_opsetid("com.microsoft", 1)
WEIGHT = ternary(scale=column_scales())
EXACT = WEIGHT.astype(np.float64)


def left_operand(
    x_shape: Sequence[int | str] | None = (K, "batch"),
    after: Sequence[tuple[str, Array]] = (),
    weight: Array | None = None,
) -> onnx.ModelProto:
    """``y = w @ x``, w (N, K)."""
    nodes, last = [matmul("w", "x", "p" if after else "y")], "p"
    initializers = {"w": np.ascontiguousarray((WEIGHT if weight is None else weight).T)}
    for position, (op_type, constant) in enumerate(after):
        output = "y" if position == len(after) - 1 else f"p{position}"
        initializers[f"c{position}"] = constant
        nodes.append(node(op_type, [last, f"c{position}"], output))
        last = output
    return model(nodes, initializers, x_shape=x_shape)


def left_between() -> Case:
    """A product with the weight on the left feeds one with it on the right."""
    weight = ternary(K, K)
    made = model(
        [matmul("w", "x", "h", "first"), matmul("h", "w", "y", "second")],
        {"w": weight},
        x_shape=(K, K),
    )
    exact = weight.astype(np.float64)
    return Case(made, ("MatMul", "MatMul"), (exact.T, exact))


def fused(
    *,
    left: bool = False,
    x_shape: Sequence[int | str] | None = ("batch", K),
    op_type: str = "FusedMatMul",
    weight: Array = WEIGHT,
    **attributes: Any,
) -> onnx.ModelProto:
    """Stored so that the product multiplies by `weight`, or its transpose on the left."""
    turned = left != bool(attributes.get("transA" if left else "transB"))
    stored = np.ascontiguousarray(weight.T) if turned else weight
    made = helper.make_node(
        op_type,
        ["w", "x"] if left else ["x", "w"],
        ["y"],
        name="product",
        domain="com.microsoft",
        **attributes,
    )
    return model([made], {"w": stored}, x_shape=x_shape, opsets=[MICROSOFT])


def einsum(
    equation: str,
    weight: Array = WEIGHT,
    *,
    x_shape: Sequence[int | str] | None = (2, 3, K),
    left: bool = False,
) -> onnx.ModelProto:
    made = node("Einsum", ["w", "x"] if left else ["x", "w"], "y", equation=equation)
    return model([made], {"w": np.ascontiguousarray(weight)}, x_shape=x_shape)


CONV_OPTIONS = {"convolutions": True}


def conv(
    kernel: int = 1,
    group: int = 1,
    *,
    channels: int = 8,
    given: Array | None = None,
    bias: Array | None = None,
    runtime_bias: bool = False,
    after: Array | None = None,
    spatial: Sequence[int] = (5, 5),
    **attributes: Any,
) -> onnx.ModelProto:
    """``given`` is (N, K), 8 x 8 if None."""
    matrix = ternary(8, 8) if given is None else given
    ones = (1,) * len(spatial)
    weight = matrix.reshape(*matrix.shape, *ones)
    weight = np.ascontiguousarray(np.broadcast_to(weight, (*matrix.shape, *(kernel,) * len(ones))))
    constants = {"w": np.ascontiguousarray(weight[:, : matrix.shape[1] // group])}
    inputs = []
    if bias is not None:
        constants["bias"] = bias
    if runtime_bias:
        inputs.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, matrix.shape[:1]))
    operands = ["x", "w", *(["bias"] if bias is not None or runtime_bias else [])]
    last = "y" if after is None else "p"
    nodes = [helper.make_node("Conv", operands, [last], name="product", group=group, **attributes)]
    if after is not None:
        constants["after"] = after
        nodes.append(node("Mul", ["p", "after"], "y"))
    return model(nodes, constants, x_shape=("batch", channels, *spatial), inputs=inputs)


CONV_WEIGHT = ternary(24, 32, scale=0.5)
"""(N, K), as Conv has it."""


def conv_hit(pattern: str = "Conv", scale: float = 1.0, **kwargs: Any) -> Case:
    kwargs = {"channels": 32, "given": CONV_WEIGHT, **kwargs}
    weight = kwargs["given"].T.astype(np.float64) * scale
    return Case(conv(**kwargs), (pattern,), (weight,), options=CONV_OPTIONS)


def dequantized_conv() -> Case:
    """quantize_static(per_channel=True): int8 codes with one scale an output channel."""
    codes = np.sign(CONV_WEIGHT).astype(np.int8)
    scale = column_scales(24)
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w", axis=0),
            helper.make_node("Conv", ["x", "w"], ["y"], name="product"),
        ],
        {"codes": codes[..., None, None], "scale": scale},
        x_shape=("batch", 32, 5, 5),
    )
    weight = (codes.T * scale).astype(np.float64)
    return Case(made, ("Conv",), (weight,), grows=True, options=CONV_OPTIONS)


def runtime_conv() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 8, 1, 1))]
    made = helper.make_node("Conv", ["x", "w"], ["y"], name="product")
    return model([made], {}, x_shape=("batch", 8, 5, 5), inputs=inputs)


def _matmul(made: onnx.ModelProto, scale: float = 1.0, pattern: str = "MatMul") -> Case:
    return Case(made, (pattern,), (EXACT * scale,))


def _fused(**kwargs: Any) -> Case:
    return _matmul(fused(**kwargs), kwargs.get("alpha", 1.0), kwargs.get("op_type", "FusedMatMul"))


def _einsum(equation: str, **kwargs: Any) -> Case:
    return _matmul(einsum(equation, **kwargs), pattern="Einsum")


def _to_half(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float16."""
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made


def _half(made: onnx.ModelProto, pattern: str = "MatMul") -> Case:
    weight = WEIGHT.astype(np.float16).astype(np.float64)
    return Case(_to_half(made), (pattern,), (weight,))


def _half_conv() -> Case:
    case = conv_hit()
    return dataclasses.replace(case, model=_to_half(case.model))


TURNED = np.ascontiguousarray(WEIGHT.T)
TWO = np.array(2, F32)
HITS: dict[str, Callable[[], Case]] = {
    "left_operand": lambda: _matmul(left_operand()),
    "left_operand_vector": lambda: _matmul(left_operand((K,))),
    "left_operand_rank_4": lambda: _matmul(left_operand((2, "batch", K, 5))),
    "left_operand_scaled": lambda: _matmul(
        left_operand(after=[("Mul", TWO), ("Add", np.array([3], F32))]), 2, "MatMul -> Mul -> Add"
    ),
    # Columns of the result are rows of the op's: not absorbed.
    "left_operand_column_scale": lambda: _matmul(left_operand((K, N), [("Mul", column_scales())])),
    "left_operand_row_bias": lambda: _matmul(
        left_operand(after=[("Add", column_scales()[:, None])])
    ),
    "left_operand_between": left_between,
    "left_operand_float16": lambda: _half(left_operand()),
    "fused_matmul_float16": lambda: _half(fused(transB=1), "FusedMatMul"),
    "einsum_float16": lambda: _half(einsum("bsk,kn->bsn"), "Einsum"),
    "conv_float16": lambda: _half_conv(),
    "fused_matmul": _fused,
    "fused_matmul_alpha": lambda: _fused(alpha=0.5, transB=1),
    "fused_matmul_trans_a": lambda: _fused(transA=1, x_shape=("batch", K, 3)),
    "fused_matmul_vector": lambda: _fused(transA=1, x_shape=(K,)),
    "fused_matmul_left": lambda: _fused(left=True, x_shape=(2, K, 3)),
    "fused_matmul_left_trans_a": lambda: _fused(left=True, transA=1, x_shape=(2, K, 3)),
    "fused_matmul_left_trans_b": lambda: _fused(left=True, transB=1, x_shape=(2, 3, K)),
    "fused_matmul_left_both": lambda: _fused(left=True, transA=1, transB=1, x_shape=(3, K)),
    "transpose_matmul": lambda: _fused(op_type="TransposeMatMul", transA=1, x_shape=(K, 3)),
    "einsum": lambda: _einsum("bsk,kn->bsn"),
    "einsum_turned": lambda: _einsum("bij,kj->bik", weight=TURNED),
    "einsum_ellipsis": lambda: _einsum("...k,nk->...n", weight=TURNED, x_shape=None),
    "einsum_ellipsis_moved": lambda: _einsum("a...k,kn->n...a"),
    "einsum_implicit": lambda: _einsum("ij, jk", x_shape=("batch", K)),
    "einsum_left": lambda: _einsum("nk,bks->bns", weight=TURNED, left=True, x_shape=(2, K, 3)),
    "einsum_permuted": lambda: _einsum("kbs,kn->snb", x_shape=(K, 2, 3)),
    "einsum_vector": lambda: _einsum("k,kn->n", x_shape=(K,)),
    "conv": conv_hit,
    "conv_rank_3": lambda: conv_hit(spatial=(7,)),
    "conv_rank_5": lambda: conv_hit(spatial=(2, 3, 4)),
    "conv_bias": lambda: conv_hit(bias=column_scales(24)),
    "conv_channel_scales": lambda: conv_hit(
        given=ternary(24, 32, scale=1.0) * column_scales(24)[:, None]
    ),
    "conv_scale_after": lambda: conv_hit("Conv -> Mul", 2.0, after=TWO),
    "conv_auto_pad": lambda: conv_hit(auto_pad="SAME_UPPER"),
    "conv_dequantized": dequantized_conv,
}


NOT_ONE_MATRIX = "is not a product with one matrix"
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "left_operand_unknown_rank": lambda: Miss(
        left_operand(None), "weight 'w': it is the left operand and the rank of 'x' is unknown"
    ),
    "left_operand_one_weight_off": lambda: Miss(
        left_operand(weight=changed(WEIGHT.copy(), 1, 3, 0.0521)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "fused_matmul_one_weight_off": lambda: Miss(
        fused(weight=changed(WEIGHT.copy(), 1, 3, 0.0521)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "einsum_one_weight_off": lambda: Miss(
        einsum("bsk,kn->bsn", changed(WEIGHT.copy(), 1, 3, 0.0521)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "left_operand_wrong_k": lambda: Miss(
        left_operand((7, "batch")), "input 'x' has 7 rows, but weight 'w' has 48 columns"
    ),
    "fused_matmul_trans_batch": lambda: Miss(
        fused(transBatchA=1, x_shape=(2, 3, K)),
        "transBatchA moves the batch between rows and columns",
    ),
    "fused_matmul_alpha_negative": lambda: Miss(
        fused(alpha=-1.0), "alpha = -1; only positive finite ones are handled"
    ),
    "fused_matmul_unknown_rank": lambda: Miss(
        fused(transA=1, x_shape=None), "weight 'w': transA is set and the rank of 'x' is unknown"
    ),
    "einsum_batch_of_matrices": lambda: Miss(
        einsum("bsk,bkn->bsn", WEIGHT[None]), "weight 'w' has rank 3, expected 2"
    ),
    "einsum_column_products": lambda: Miss(
        einsum("bsk,sk->bsk", ternary(3, K)), f"Einsum 'bsk,sk->bsk' {NOT_ONE_MATRIX}"
    ),
    "einsum_sums_more": lambda: Miss(einsum("bsk,kn->bn"), f"Einsum 'bsk,kn->bn' {NOT_ONE_MATRIX}"),
    "einsum_sums_weight": lambda: Miss(
        einsum("bsk,kn->bsk"), f"Einsum 'bsk,kn->bsk' {NOT_ONE_MATRIX}"
    ),
    "einsum_trace": lambda: Miss(
        einsum("bkk,kn->bn", x_shape=(2, K, K)), f"Einsum 'bkk,kn->bn' {NOT_ONE_MATRIX}"
    ),
    "einsum_unknown_rank": lambda: Miss(
        einsum("a...k,kn->n...a", x_shape=None),
        "Einsum 'a...k,kn->n...a' moves the axes of '...', and the rank of 'x' is unknown",
    ),
    "conv_1x1": lambda: Miss(
        conv(),
        "Conv with a 1 x 1 kernel: the op with Transposes around it runs at 0.1 to 1.0 times the "
        "speed of Conv; --conv (convolutions=True) rewrites it to make the file smaller",
    ),
    "conv_3x3": lambda: Miss(
        conv(3), "Conv with a 3 x 3 kernel: im2col would copy its input 9 times", CONV_OPTIONS
    ),
    "conv_strides": lambda: Miss(
        conv(strides=[2, 2]), "Conv with strides [2, 2]: only 1 is handled", CONV_OPTIONS
    ),
    "conv_pads": lambda: Miss(
        conv(pads=[1, 1, 1, 1]), "Conv with pads [1, 1, 1, 1]: only 0 is handled", CONV_OPTIONS
    ),
    "conv_runtime_bias": lambda: Miss(
        conv(runtime_bias=True), "bias 'bias' is no finite constant", CONV_OPTIONS
    ),
    "conv_one_weight_off": lambda: Miss(
        conv(given=changed(ternary(8, 8), 2, 3, 0.25025)),
        "weight has 2 distinct magnitudes in column 2, expected 1",
        CONV_OPTIONS,
    ),
    "conv_channels": lambda: Miss(
        conv(channels=7), "input 'x' has 7 channels, but weight 'w' has 8", CONV_OPTIONS
    ),
    "conv_grouped": lambda: Miss(
        conv(group=2), "Conv with 2 groups: not one product", CONV_OPTIONS
    ),
    "conv_runtime": lambda: Miss(runtime_conv(), "no constant weight: 'w' is given at run time"),
}
