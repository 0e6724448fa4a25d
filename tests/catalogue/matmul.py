"""MatMul and FusedMatMul: weights on either side, what stands around them, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    MICROSOFT,
    OVERRIDABLE,
    ROW,
    TWO,
    WEIGHT,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    column_scales,
    half_case,
    in_float64,
    matmul,
    model,
    node,
    product_case,
    simple,
    ternary,
)


def _matmul(**kwargs: Any) -> Case:
    weight = ternary()
    return Case(simple(weight, **kwargs), ("MatMul",), (in_float64(weight),))


def _of(weight: Array) -> Case:
    return Case(simple(weight), ("MatMul",), (in_float64(weight),))


def float16() -> Case:
    weight = ternary(scale=0.3, dtype=np.float16)
    made = simple(weight, x_dtype=TensorProto.FLOAT16, y_dtype=TensorProto.FLOAT16)
    return Case(made, ("MatMul",), (in_float64(weight),))


def bfloat16() -> Case:
    weight = ternary(scale=0.3, dtype=ml_dtypes.bfloat16)
    made = model(
        [
            node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
            matmul("xb", "w", "yb"),
            node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
        ],
        {"w": weight},
    )
    return Case(made, ("MatMul",), (in_float64(weight),))


def group_scales() -> Case:
    scale = np.linspace(0.1, 1, 3 * N, dtype=np.float32).reshape(3, N)
    weight = ternary(96, scale=scale, group_size=32)
    return Case(simple(weight, x_shape=("batch", 96)), ("MatMul",), (in_float64(weight),))


def constant_node() -> Case:
    weight = ternary()
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    return Case(model([constant, matmul()], {}), ("MatMul",), (in_float64(weight),))


def chain() -> Case:
    """Int8 levels -> Cast -> Transpose -> Identity."""
    weight = ternary(scale=1.0)
    made = model(
        [
            node("Cast", ["codes"], "cast", to=TensorProto.FLOAT),
            node("Transpose", ["cast"], "turned"),
            node("Identity", ["turned"], "w"),
            matmul(),
        ],
        {"codes": weight.T.astype(np.int8)},
    )
    return Case(made, ("MatMul",), (in_float64(weight),))


def shared() -> Case:
    """Two users of one weight, one of them behind a scale."""
    weight = ternary(K, K)
    made = model(
        [
            matmul("x", "w", "h", "first"),
            node("Mul", ["h", "two"], "h2"),
            matmul("h2", "w", "y", "second"),
        ],
        {"w": weight, "two": np.array(2, np.float32)},
    )
    return Case(made, ("MatMul -> Mul", "MatMul"), (in_float64(weight) * 2, in_float64(weight)))


def shared_through_transpose() -> Case:
    """One tensor read as it is by a Gemm with transB and by a MatMul behind a Transpose."""
    weight = ternary(K, K)
    made = model(
        [
            helper.make_node("Gemm", ["x", "w"], ["h"], name="first", transB=1),
            node("Transpose", ["w"], "turned"),
            matmul("h", "turned", "y", "second"),
        ],
        {"w": np.ascontiguousarray(weight.T)},
    )
    return Case(made, ("Gemm", "MatMul"), (in_float64(weight), in_float64(weight)))


def surrounded(
    before: tuple[str, Array] | None = None,
    after: Sequence[tuple[str, Array]] = (),
    *,
    pattern: str,
    weight: Array | None = None,
    x_shape: Sequence[int | str] | None = ("batch", K),
    effective: Array | None = None,
) -> Case:
    """A MatMul with constant Mul, Div and Add nodes around it."""
    initializers: dict[str, Array] = {"w": ternary() if weight is None else weight}
    nodes, x = [], "x"
    if before:
        initializers["before"] = before[1]
        nodes.append(node(before[0], ["x", "before"], "scaled"))
        x = "scaled"
    last = "y" if not after else "p"
    nodes.append(matmul(x, "w", last))
    for position, (op_type, constant) in enumerate(after):
        initializers[f"after{position}"] = constant
        output = "y" if position == len(after) - 1 else f"p{position}"
        nodes.append(node(op_type, [last, f"after{position}"], output))
        last = output
    return Case(model(nodes, initializers, x_shape=x_shape), (pattern,), (effective,))


def both_ways() -> Case:
    """One square tensor, multiplied by as it is and transposed."""
    weight = ternary(K, K)
    made = model(
        [
            matmul("x", "w", "h", "first"),
            helper.make_node("Gemm", ["h", "w"], ["y"], name="second", transB=1),
        ],
        {"w": weight},
    )
    return Case(made, ("MatMul", "Gemm"), (in_float64(weight), in_float64(weight).T))


def seen_between(
    before: bool, *, used: bool = False, outputs: Sequence[str] = ("y",), **kwargs: Any
) -> Case:
    """A scale that cannot be absorbed, because the value between is used or is an output."""
    nodes = [matmul("x", "w", "between"), node("Mul", ["between", "two"], "y")]
    if before:
        nodes = [node("Mul", ["x", "two"], "between"), matmul("between", "w")]
    if used:
        nodes.append(node("Relu", ["between"], "other"))
    made = model(nodes, {"w": ternary(), "two": TWO}, outputs=outputs)
    return Case(made, ("MatMul",), (in_float64(ternary()),))


def scale_in_body() -> Case:
    """The only user of the product is a Mul in a branch."""
    branches = {}
    for branch in ("then_branch", "else_branch"):
        source = "p" if branch == "then_branch" else "two"
        branches[branch] = helper.make_graph(
            [node("Mul", [source, "two"], f"y_{branch}")],
            branch,
            [],
            [helper.make_tensor_value_info(f"y_{branch}", TensorProto.FLOAT, None)],
        )
    made = model(
        [
            matmul("x", "w", "p"),
            node("ReduceMax", ["x"], "top", keepdims=0),
            node("Greater", ["top", "zero"], "positive"),
            helper.make_node("If", ["positive"], ["y"], name="choice", **branches),
        ],
        {"w": ternary(), "two": TWO, "zero": np.array(0, F32)},
    )
    return Case(made, ("MatMul",), (in_float64(ternary()),))


def graph_output_weight() -> Case:
    weight = ternary()
    return Case(
        model([matmul()], {"w": weight}, outputs=("y", "w")),
        ("MatMul",),
        (in_float64(weight),),
        keeps_weight=True,
    )


def gather_tied_weight() -> Case:
    weight = ternary()
    made = model(
        [matmul(), node("Gather", ["w", "rows"], "z")],
        {"w": weight, "rows": np.array([0, 2])},
        outputs=("y", "z"),
    )
    return Case(made, ("MatMul",), (in_float64(weight),), keeps_weight=True)


def if_bodies(*, captured: bool = True) -> Case:
    """Both branches multiply, by a captured weight or by one of their own."""
    weight = ternary()
    branches = {}
    for branch in ("then_branch", "else_branch"):
        body = helper.make_graph(
            [matmul("x", "w" if captured else f"w_{branch}", f"y_{branch}", f"product_{branch}")],
            branch,
            [],
            [helper.make_tensor_value_info(f"y_{branch}", TensorProto.FLOAT, None)],
            [] if captured else [numpy_helper.from_array(weight, f"w_{branch}")],
        )
        branches[branch] = body
    made = model(
        [
            node("ReduceMax", ["x"], "top", keepdims=0),
            node("Greater", ["top", "zero"], "positive"),
            helper.make_node("If", ["positive"], ["y"], name="choice", **branches),
        ],
        {"zero": np.array(0, np.float32), **({"w": weight} if captured else {})},
    )
    return Case(made, ("MatMul", "MatMul"), (in_float64(weight), in_float64(weight)))


def loop_body() -> Case:
    """Three times ``h = h @ w``."""
    weight = ternary(K, K, scale=1.0)
    body = helper.make_graph(
        [matmul("h_in", "w", "h_out"), node("Identity", ["go_in"], "go_out")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("h_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("h_out", TensorProto.FLOAT, None),
        ],
    )
    made = model(
        [helper.make_node("Loop", ["three", "", "x"], ["y"], name="loop", body=body)],
        {"w": weight, "three": np.array(3, np.int64)},
    )
    return Case(made, ("MatMul",), (in_float64(weight),))


def scan_body() -> Case:
    """Each row of x times a captured weight, on the sum of the products so far."""
    weight = ternary(K, K, scale=1.0)
    body = helper.make_graph(
        [
            node("Add", ["row", "sum_in"], "added"),
            matmul("added", "w", "sum_out"),
            node("Identity", ["sum_out"], "y_row"),
        ],
        "body",
        [
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, (K,)),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, (K,)),
        ],
        [
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, (K,)),
            helper.make_tensor_value_info("y_row", TensorProto.FLOAT, (K,)),
        ],
    )
    scan = helper.make_node(
        "Scan", ["start", "x"], ["last", "y"], name="scan", body=body, num_scan_inputs=1
    )
    made = model([scan], {"w": weight, "start": np.zeros(K, np.float32)})
    return Case(made, ("MatMul",), (in_float64(weight),))


def runtime_weight() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (K, N))]
    return model([matmul()], {}, inputs=inputs)


def overridable_weight() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (K, N))]
    return model([matmul()], {"w": ternary()}, inputs=inputs)


def computed_weight() -> onnx.ModelProto:
    return model([node("Relu", ["x"], "w"), matmul()], {})


def double(op_type: str = "MatMul") -> onnx.ModelProto:
    return model(
        [node(op_type, ["x", "w"], "y")],
        {"w": ternary().astype(np.float64)},
        x_dtype=TensorProto.DOUBLE,
        y_dtype=TensorProto.DOUBLE,
    )


def double_of_codes() -> onnx.ModelProto:
    return model(
        [node("Cast", ["codes"], "w", to=TensorProto.DOUBLE), matmul()],
        {"codes": ternary(scale=1.0).astype(np.int8)},
        x_dtype=TensorProto.DOUBLE,
        y_dtype=TensorProto.DOUBLE,
    )


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
    return model([made], {"w": stored}, x_shape=x_shape, opsets=MICROSOFT)


def _fused(**kwargs: Any) -> Case:
    return product_case(
        fused(**kwargs), kwargs.get("alpha", 1.0), kwargs.get("op_type", "FusedMatMul")
    )


HITS: dict[str, Callable[[], Case]] = {
    "matmul": _matmul,
    "matmul_rank_1": lambda: _matmul(x_shape=(K,)),
    "matmul_rank_3": lambda: _matmul(x_shape=("batch", "sequence", K)),
    "matmul_rank_4": lambda: _matmul(x_shape=(2, 3, "sequence", K)),
    "matmul_unknown_rank": lambda: _matmul(x_shape=None),
    **{f"matmul_opset_{v}": lambda v=v: _matmul(opset=v) for v in (11, 13, 18, 21)},
    "matmul_column_scales": lambda: _of(ternary(scale=ROW)),
    "matmul_group_scales": group_scales,
    "matmul_binary_pm": lambda: _of(ternary(levels=(-1, 1), scale=0.3)),
    "matmul_binary_01": lambda: _of(ternary(levels=(0, 1), scale=0.3)),
    "matmul_zero_matrix": lambda: _of(np.zeros((K, N), F32)),
    "matmul_float16": float16,
    "matmul_bfloat16": bfloat16,
    "constant_node": constant_node,
    "chain": chain,
    "shared": shared,
    "shared_through_transpose": shared_through_transpose,
    "mul_before": lambda: surrounded(
        ("Mul", TWO), pattern="Mul -> MatMul", effective=in_float64(ternary()) * 2
    ),
    "div_before": lambda: surrounded(
        ("Div", np.array([3], F32)), pattern="Div -> MatMul", effective=None
    ),
    "mul_after": lambda: surrounded(
        None, [("Mul", TWO)], pattern="MatMul -> Mul", effective=in_float64(ternary()) * 2
    ),
    "mul_columns_after": lambda: surrounded(
        None,
        [("Mul", ROW)],
        weight=ternary(scale=1.0),
        pattern="MatMul -> Mul",
        effective=in_float64(ternary(scale=1.0) * ROW),
    ),
    "div_columns_after": lambda: surrounded(
        None, [("Div", ROW[None])], pattern="MatMul -> Div", effective=None
    ),
    "add_after": lambda: surrounded(
        None, [("Add", ROW)], pattern="MatMul -> Add", effective=in_float64(ternary())
    ),
    "add_after_rank_3": lambda: surrounded(
        None,
        [("Add", ROW)],
        pattern="MatMul -> Add",
        x_shape=("batch", "sequence", K),
        effective=in_float64(ternary()),
    ),
    "everything_around": lambda: surrounded(
        ("Mul", TWO),
        [("Mul", ROW), ("Add", ROW), ("Div", np.array(7, F32))],
        pattern="Mul -> MatMul -> Mul -> Add -> Div",
    ),
    # Not absorbed, rewritten all the same.
    "negative_scale_after": lambda: surrounded(
        None, [("Mul", -TWO)], pattern="MatMul", effective=in_float64(ternary())
    ),
    "zero_scale_after": lambda: surrounded(
        None, [("Mul", np.array(0, F32))], pattern="MatMul", effective=in_float64(ternary())
    ),
    "tiny_scale_after": lambda: surrounded(
        None, [("Mul", np.array(1e-38, F32))], pattern="MatMul", effective=in_float64(ternary())
    ),
    "column_scale_before": lambda: surrounded(
        ("Mul", column_scales(K)), pattern="MatMul", effective=in_float64(ternary())
    ),
    "full_rank_add_after": lambda: surrounded(
        None,
        [("Add", np.ones((2, N), F32))],
        pattern="MatMul",
        x_shape=(2, K),
        effective=in_float64(ternary()),
    ),
    "rank_raising_add_after": lambda: surrounded(
        None, [("Add", ROW[None])], pattern="MatMul", x_shape=(K,), effective=in_float64(ternary())
    ),
    "both_ways": both_ways,
    "product_used_twice": lambda: seen_between(False, used=True, outputs=("y", "other")),
    "product_is_output": lambda: seen_between(False, outputs=("y", "between")),
    "scaled_input_used_twice": lambda: seen_between(True, used=True, outputs=("y", "other")),
    "scaled_input_is_output": lambda: seen_between(True, outputs=("y", "between")),
    "scale_in_body": scale_in_body,
    "graph_output_weight": graph_output_weight,
    "gather_tied_weight": gather_tied_weight,
    "if_captured_weight": if_bodies,
    "if_own_weights": lambda: if_bodies(captured=False),
    "loop_body": loop_body,
    "scan_body": scan_body,
    "one_matrix_of_rank_3": lambda: product_case(simple(WEIGHT[None], x_shape=(2, "rows", K))),
    "one_matrix_of_rank_4": lambda: product_case(
        simple(WEIGHT[None, None], x_shape=(2, 3, "rows", K))
    ),
    "one_matrix_fewer_axes": lambda: product_case(simple(WEIGHT[None], x_shape=(2, 3, "rows", K))),
    "one_matrix_left": lambda: product_case(
        model(
            [matmul("w", "x")],
            {"w": np.ascontiguousarray(WEIGHT.T)[None]},
            x_shape=(2, K, "columns"),
        )
    ),
    "one_matrix_fused": lambda: product_case(
        model(
            [
                helper.make_node(
                    "FusedMatMul",
                    ["x", "w"],
                    ["y"],
                    "product",
                    domain=MICROSOFT[0].domain,
                    transB=1,
                )
            ],
            {"w": np.ascontiguousarray(WEIGHT.T)[None]},
            x_shape=(2, 3, K),
            opsets=MICROSOFT,
        ),
        pattern="FusedMatMul",
    ),
    "left_operand": lambda: product_case(left_operand()),
    "left_operand_vector": lambda: product_case(left_operand((K,))),
    "left_operand_rank_4": lambda: product_case(left_operand((2, "batch", K, 5))),
    "left_operand_scaled": lambda: product_case(
        left_operand(after=[("Mul", TWO), ("Add", np.array([3], F32))]), 2, "MatMul -> Mul -> Add"
    ),
    # Columns of the result are rows of the op's: not absorbed.
    "left_operand_column_scale": lambda: product_case(
        left_operand((K, N), [("Mul", column_scales())])
    ),
    "left_operand_row_bias": lambda: product_case(
        left_operand(after=[("Add", column_scales()[:, None])])
    ),
    "left_operand_between": left_between,
    "left_operand_float16": lambda: half_case(left_operand()),
    "fused_matmul_float16": lambda: half_case(fused(transB=1), "FusedMatMul"),
    "fused_matmul": _fused,
    "fused_matmul_alpha": lambda: _fused(alpha=0.5, transB=1),
    "fused_matmul_trans_a": lambda: _fused(transA=1, x_shape=("batch", K, 3)),
    "fused_matmul_vector": lambda: _fused(transA=1, x_shape=(K,)),
    "fused_matmul_left": lambda: _fused(left=True, x_shape=(2, K, 3)),
    "fused_matmul_left_trans_a": lambda: _fused(left=True, transA=1, x_shape=(2, K, 3)),
    "fused_matmul_left_trans_b": lambda: _fused(left=True, transB=1, x_shape=(2, 3, K)),
    "fused_matmul_left_both": lambda: _fused(left=True, transA=1, transB=1, x_shape=(3, K)),
    "transpose_matmul": lambda: _fused(op_type="TransposeMatMul", transA=1, x_shape=(K, 3)),
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "one_weight_off": lambda: Miss(
        simple(changed(ternary(), 1, 3, 0.25025)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "four_values": lambda: Miss(
        simple(ternary(levels=(-2, -1, 0, 1))),
        "weight has 2 distinct magnitudes in column 0, expected 1",
    ),
    "denormal_scale": lambda: Miss(
        simple(ternary(scale=1e-40)), "weight scale 9.99995e-41 is a denormal float32"
    ),
    "runtime_weight": lambda: Miss(
        runtime_weight(), "no constant weight: 'w' is given at run time"
    ),
    "computed_weight": lambda: Miss(
        computed_weight(), "no constant weight: 'w' is computed at run time (by Relu 'Relu_w')"
    ),
    "overridable_weight": lambda: Miss(
        overridable_weight(),
        f"weight 'w' {OVERRIDABLE}",
    ),
    "old_opset": lambda: Miss(
        simple(ternary(), opset=6), "the model has opset 6; 7 or later is needed"
    ),
    "both_constant": lambda: Miss(
        model([matmul("v", "w")], {"v": np.ones((2, K), F32), "w": ternary()}),
        "both operands ('v', 'w') are constant",
    ),
    "rank_1": lambda: Miss(simple(ternary()[:, 0]), "weight 'w' has rank 1, expected 2"),
    "rank_3": lambda: Miss(
        simple(np.stack([ternary(), ternary()]), x_shape=(2, 3, K)),
        "weight 'w' has rank 3, expected 2",
    ),
    "one_matrix_adds_an_axis": lambda: Miss(
        simple(ternary()[None]),
        "weight 'w' has shape (1, 48, 20), which may give the result more axes than 'x' has: its "
        "rank is 2",
    ),
    "one_matrix_unknown_rank": lambda: Miss(
        simple(ternary()[None], x_shape=None),
        "weight 'w' has shape (1, 48, 20), which may give the result more axes than 'x' has: its "
        "rank is unknown",
    ),
    "no_rows": lambda: Miss(
        simple(np.zeros((0, N), F32), x_shape=("batch", 0)),
        "weight 'w' has shape (0, 20): no elements",
    ),
    "no_columns": lambda: Miss(
        simple(np.zeros((K, 0), F32)), "weight 'w' has shape (48, 0): no elements"
    ),
    "double": lambda: Miss(double(), "weight 'w' is float64; convert the model to float32 first"),
    "double_of_codes": lambda: Miss(
        double_of_codes(), "weight 'codes' is float64; convert the model to float32 first"
    ),
    "wrong_k": lambda: Miss(
        simple(ternary(), x_shape=("batch", 7)),
        "input 'x' has 7 columns, but weight 'w' has 48 rows",
    ),
    "small": lambda: Miss(
        simple(ternary()),
        "weight 'w' has 960 elements, fewer than min_elements = 1024",
        {"min_elements": 1024},
    ),
    "does_not_pay": lambda: Miss(
        simple(ternary(3, 40, levels=(-1, 0, 1)), x_shape=("batch", 3)),
        "the index of weight 'w' would take 1288 bytes, the weight takes 480",
        {"min_elements": 1},
    ),
    "excluded": lambda: Miss(simple(ternary()), "excluded by 'prod*'", {"exclude": ("prod*",)}),
    "not_included": lambda: Miss(
        simple(ternary()), "not among the nodes to include", {"include": ("other*",)}
    ),
    "storage_cannot": lambda: Miss(
        simple(ternary()),
        "TernaryIndexedMatMul: attribute alphabet = 'ternary', expected binary_pm or binary_01; "
        "convert the model again with 'onnx-ternary optimize'.",
        {"storage": "1bit"},
    ),
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
}

for _name, _value, _reason in (
    ("nan", np.nan, "weight contains NaN"),
    ("infinity", np.inf, "weight contains a weight that is infinite or too large for float32"),
    (
        "asymmetric",
        0.5,
        "weight has asymmetric levels -0.25 and 0.5 in column 0, expected one magnitude",
    ),
):
    NEAR_MISSES[_name] = lambda value=_value, reason=_reason: Miss(
        simple(np.where(ternary() > 0, F32(value), ternary())), reason
    )
