"""Products that are not written as MatMul(X, W): weight on the left, FusedMatMul, Einsum, Conv.

Part of the catalogue of tests/models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.models import F32, Array, Case, K, Miss, N, column_scales, matmul, model, node, ternary

MICROSOFT = helper.make_opsetid("com.microsoft", 1)
WEIGHT = ternary(scale=column_scales())
EXACT = WEIGHT.astype(np.float64)


def left_operand(
    x_shape: Sequence[int | str] | None = (K, "batch"), after: Sequence[tuple[str, Array]] = ()
) -> onnx.ModelProto:
    """``y = w @ x``, w (N, K)."""
    nodes, last = [matmul("w", "x", "p" if after else "y")], "p"
    initializers = {"w": np.ascontiguousarray(WEIGHT.T)}
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
    **attributes: Any,
) -> onnx.ModelProto:
    """Stored so that the product multiplies by WEIGHT, or its transpose on the left."""
    turned = left != bool(attributes.get("transA" if left else "transB"))
    stored = np.ascontiguousarray(WEIGHT.T) if turned else WEIGHT
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


def conv(kernel: int = 1, group: int = 1) -> onnx.ModelProto:
    weight = np.broadcast_to(ternary(8, 8)[..., None, None], (8, 8, kernel, kernel))
    made = helper.make_node("Conv", ["x", "w"], ["y"], name="product", group=group)
    weight = np.ascontiguousarray(weight[:, : 8 // group])
    return model([made], {"w": weight}, x_shape=("batch", 8, 5, 5))


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
}


NOT_ONE_MATRIX = "is not a product with one matrix"
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "left_operand_unknown_rank": lambda: Miss(
        left_operand(None), "weight 'w': it is the left operand and the rank of 'x' is unknown"
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
        "Conv with a 1 x 1 kernel: the op with Transposes around it would be slower (with 256 "
        "channels and 28 x 28 pixels it ran at half the speed of Conv)",
    ),
    "conv_3x3": lambda: Miss(
        conv(3), "Conv with a 3 x 3 kernel: im2col would copy its input 9 times"
    ),
    "conv_grouped": lambda: Miss(conv(group=2), "Conv with 2 groups: not one product"),
    "conv_runtime": lambda: Miss(runtime_conv(), "no constant weight: 'w' is given at run time"),
}
