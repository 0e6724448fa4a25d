"""Small models, one per form users' models come in, and near misses with their reasons.

`HITS` and `NEAR_MISSES` are the catalogue: a new rule adds its forms here, and the tests of
tests/graph_passes run them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

K, N = 48, 20
ATTRIBUTES = {"doc_string": "a model", "producer_name": "tests"}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and what conversion makes of it.

    Attributes:
        model: the model.
        patterns: `Rewrite.pattern` of every rewritten product, in graph order.
        weights: float64 (K, N) per rewritten product: the matrix the new node multiplies by,
            exactly; None where absorbed factors round.
        keeps_weight: the original weight stays in the model.
        grows: stored in few bits before, the model gets no smaller.
        runnable: the same model for onnxruntime, where it has no kernels for `model`.
        options: of the conversion, besides min_elements = 0.
        activation: the new nodes' activation attributes.
    """

    model: onnx.ModelProto
    patterns: tuple[str, ...]
    weights: tuple[Array | None, ...]
    keeps_weight: bool = False
    grows: bool = False
    runnable: onnx.ModelProto | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=lambda: {"activation": "float"})


@dataclass(frozen=True, slots=True)
class Miss:
    """A model in which one product stays, and why."""

    model: onnx.ModelProto
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)


def ternary(
    rows: int = K,
    columns: int = N,
    *,
    scale: float | Array = 0.25,
    group_size: int = 0,
    levels: Sequence[int] = (-1, 0, 1),
    dtype: Any = np.float32,
    seed: int = 0,
) -> Array:
    """A (rows, columns) matrix of levels times scale; every level occurs in every column."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(levels, size=(rows, columns)).astype(np.float32)
    drawn[: len(levels)] = np.array(levels, np.float32)[:, None]
    scale = np.asarray(scale, np.float32)
    if group_size:
        scale = np.repeat(scale, group_size, axis=0)[:rows]
    return (drawn * scale).astype(dtype)


def column_scales(columns: int = N) -> Array:
    """(columns,) float32, all different, with full mantissas."""
    return (np.arange(columns, dtype=np.float32) + 1) * np.float32(0.013)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, Array],
    *,
    x_shape: Sequence[int | str] | None = ("batch", K),
    x_dtype: int = TensorProto.FLOAT,
    y_dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
) -> onnx.ModelProto:
    """A model with input ``x``, only the shapes it needs, and metadata that has to survive."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", x_dtype, x_shape), *inputs],
        [helper.make_tensor_value_info(name, y_dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        doc_string="a graph",
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *opsets],
        ir_version=ir_version,
        functions=list(functions),
        **ATTRIBUTES,
    )
    helper.set_model_props(made, {"author": "somebody"})
    inferred = onnx.shape_inference.infer_shapes(made)
    for value, known in zip(made.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(known)
    return made


def matmul(x: str = "x", w: str = "w", y: str = "y", name: str = "product") -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, w], [y], name=name, doc_string="a product")


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"{op_type}_{output}", **attributes)


def simple(weight: Array, **kwargs: Any) -> onnx.ModelProto:
    """``y = x @ w``."""
    return model([matmul()], {"w": weight}, **kwargs)


def _exact(weight: Array) -> Array:
    return weight.astype(np.float64)


def _matmul(**kwargs: Any) -> Case:
    weight = ternary()
    return Case(simple(weight, **kwargs), ("MatMul",), (_exact(weight),))


def _of(weight: Array) -> Case:
    return Case(simple(weight), ("MatMul",), (_exact(weight),))


def float16() -> Case:
    weight = ternary(scale=0.3, dtype=np.float16)
    made = simple(weight, x_dtype=TensorProto.FLOAT16, y_dtype=TensorProto.FLOAT16)
    return Case(made, ("MatMul",), (_exact(weight),))


def gemm_float16() -> Case:
    weight = ternary(scale=0.3, dtype=np.float16)
    product = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="product")
    made = model(
        [product],
        {"w": weight, "c": column_scales().astype(np.float16)},
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )
    return Case(made, ("Gemm",), (_exact(weight),))


def gemm_bfloat16() -> Case:
    weight = ternary(scale=0.3, dtype=ml_dtypes.bfloat16)
    made = model(
        [
            node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
            helper.make_node("Gemm", ["xb", "w"], ["yb"], name="product"),
            node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
        ],
        {"w": weight},
    )
    return Case(made, ("Gemm",), (_exact(weight),))


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
    return Case(made, ("MatMul",), (_exact(weight),))


def group_scales() -> Case:
    scale = np.linspace(0.1, 1, 3 * N, dtype=np.float32).reshape(3, N)
    weight = ternary(96, scale=scale, group_size=32)
    return Case(simple(weight, x_shape=("batch", 96)), ("MatMul",), (_exact(weight),))


def gemm(
    weight: Array | None = None,
    c: Array | None = None,
    *,
    runtime_c: Sequence[int | str] | None = None,
    exact: bool = True,
    x_shape: Sequence[int | str] = ("batch", K),
    **attributes: Any,
) -> Case:
    """A Gemm; the weight is given as (K, N) and stored transposed where transB says so."""
    weight = ternary() if weight is None else weight
    stored = np.ascontiguousarray(weight.T) if attributes.get("transB") else weight
    initializers = {"w": stored}
    names, inputs = ["x", "w"], []
    if c is not None:
        initializers["c"] = c
        names.append("c")
    if runtime_c is not None:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, runtime_c))
        names.append("c")
    product = helper.make_node("Gemm", names, ["y"], name="product", **attributes)
    made = model([product], initializers, inputs=inputs, x_shape=x_shape)
    return Case(made, ("Gemm",), (_exact(weight) if exact else None,))


def constant_node() -> Case:
    weight = ternary()
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    return Case(model([constant, matmul()], {}), ("MatMul",), (_exact(weight),))


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
    return Case(made, ("MatMul",), (_exact(weight),))


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
    return Case(made, ("MatMul -> Mul", "MatMul"), (_exact(weight) * 2, _exact(weight)))


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
    return Case(made, ("Gemm", "MatMul"), (_exact(weight), _exact(weight)))


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
    return Case(made, ("MatMul", "Gemm"), (_exact(weight), _exact(weight).T))


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
    return Case(made, ("MatMul",), (_exact(ternary()),))


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
    return Case(made, ("MatMul",), (_exact(ternary()),))


def graph_output_weight() -> Case:
    weight = ternary()
    return Case(
        model([matmul()], {"w": weight}, outputs=("y", "w")),
        ("MatMul",),
        (_exact(weight),),
        keeps_weight=True,
    )


def gather_tied_weight() -> Case:
    weight = ternary()
    made = model(
        [matmul(), node("Gather", ["w", "rows"], "z")],
        {"w": weight, "rows": np.array([0, 2])},
        outputs=("y", "z"),
    )
    return Case(made, ("MatMul",), (_exact(weight),), keeps_weight=True)


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
    return Case(made, ("MatMul", "MatMul"), (_exact(weight), _exact(weight)))


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
    return Case(made, ("MatMul",), (_exact(weight),))


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
    return Case(made, ("MatMul",), (_exact(weight),))


def overridable_c() -> Case:
    """The bias is an initializer a caller may override: it is added behind the op."""
    made = gemm(runtime_c=(N,))
    made.model.graph.initializer.append(numpy_helper.from_array(column_scales(), "c"))
    return made


F32 = np.float32
TWO = np.array(2, F32)
ROW = column_scales()

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
    "gemm_float16": gemm_float16,
    "gemm_bfloat16": gemm_bfloat16,
    "gemm": gemm,
    "gemm_trans_b": lambda: gemm(transB=1, c=ROW),
    "gemm_trans_a": lambda: gemm(transA=1, x_shape=(K, "batch")),
    "gemm_alpha_beta": lambda: gemm(ternary(), ROW, alpha=0.3, beta=0.7, exact=False),
    "gemm_beta_zero": lambda: gemm(c=ROW, beta=0.0),
    "gemm_scalar_c": lambda: gemm(c=np.array(3, F32), beta=0.7),
    "gemm_row_c": lambda: gemm(c=ROW[None], beta=0.7),
    "gemm_column_c": lambda: gemm(c=np.arange(5, dtype=F32)[:, None], beta=0.7, x_shape=(5, K)),
    "gemm_runtime_c": lambda: gemm(runtime_c=(N,)),
    "gemm_runtime_c_beta": lambda: gemm(runtime_c=("batch", N), beta=0.7, transB=1),
    "gemm_overridable_c": overridable_c,
    "constant_node": constant_node,
    "chain": chain,
    "shared": shared,
    "shared_through_transpose": shared_through_transpose,
    "mul_before": lambda: surrounded(
        ("Mul", TWO), pattern="Mul -> MatMul", effective=_exact(ternary()) * 2
    ),
    "div_before": lambda: surrounded(
        ("Div", np.array([3], F32)), pattern="Div -> MatMul", effective=None
    ),
    "mul_after": lambda: surrounded(
        None, [("Mul", TWO)], pattern="MatMul -> Mul", effective=_exact(ternary()) * 2
    ),
    "mul_columns_after": lambda: surrounded(
        None,
        [("Mul", ROW)],
        weight=ternary(scale=1.0),
        pattern="MatMul -> Mul",
        effective=_exact(ternary(scale=1.0) * ROW),
    ),
    "div_columns_after": lambda: surrounded(
        None, [("Div", ROW[None])], pattern="MatMul -> Div", effective=None
    ),
    "add_after": lambda: surrounded(
        None, [("Add", ROW)], pattern="MatMul -> Add", effective=_exact(ternary())
    ),
    "add_after_rank_3": lambda: surrounded(
        None,
        [("Add", ROW)],
        pattern="MatMul -> Add",
        x_shape=("batch", "sequence", K),
        effective=_exact(ternary()),
    ),
    "everything_around": lambda: surrounded(
        ("Mul", TWO),
        [("Mul", ROW), ("Add", ROW), ("Div", np.array(7, F32))],
        pattern="Mul -> MatMul -> Mul -> Add -> Div",
    ),
    # Not absorbed, rewritten all the same.
    "negative_scale_after": lambda: surrounded(
        None, [("Mul", -TWO)], pattern="MatMul", effective=_exact(ternary())
    ),
    "zero_scale_after": lambda: surrounded(
        None, [("Mul", np.array(0, F32))], pattern="MatMul", effective=_exact(ternary())
    ),
    "tiny_scale_after": lambda: surrounded(
        None, [("Mul", np.array(1e-38, F32))], pattern="MatMul", effective=_exact(ternary())
    ),
    "column_scale_before": lambda: surrounded(
        ("Mul", column_scales(K)), pattern="MatMul", effective=_exact(ternary())
    ),
    "full_rank_add_after": lambda: surrounded(
        None,
        [("Add", np.ones((2, N), F32))],
        pattern="MatMul",
        x_shape=(2, K),
        effective=_exact(ternary()),
    ),
    "rank_raising_add_after": lambda: surrounded(
        None, [("Add", ROW[None])], pattern="MatMul", x_shape=(K,), effective=_exact(ternary())
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
}


def changed(weight: Array, row: int, column: int, value: float) -> Array:
    weight[row, column] = value
    return weight


def runtime_weight() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (K, N))]
    return model([matmul()], {}, inputs=inputs)


def overridable_weight() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (K, N))]
    return model([matmul()], {"w": ternary()}, inputs=inputs)


def computed_weight() -> onnx.ModelProto:
    return model([node("Relu", ["x"], "w"), matmul()], {})


def old_ir() -> onnx.ModelProto:
    made = overridable_weight()
    made.ir_version = 3
    return made


def integer_gemm() -> onnx.ModelProto:
    weight = ternary(scale=1.0).astype(np.int32)
    return model(
        [node("Gemm", ["x", "w"], "y")],
        {"w": weight},
        x_dtype=TensorProto.INT32,
        y_dtype=TensorProto.INT32,
    )


def matmul_integer() -> onnx.ModelProto:
    weight = ternary(scale=1.0).astype(np.int8)
    return model(
        [node("MatMulInteger", ["x", "w"], "y")],
        {"w": weight},
        x_dtype=TensorProto.INT8,
        y_dtype=TensorProto.INT32,
    )


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


def qlinear_matmul() -> onnx.ModelProto:
    numbers = {"s": np.array(0.1, F32), "z": np.array(0, np.uint8)}
    weight = ternary(scale=1.0, levels=(0, 1, 2)).astype(np.uint8)
    inputs = ["x", "s", "z", "w", "s", "z", "s", "z"]
    return model(
        [node("QLinearMatMul", inputs, "y")],
        {"w": weight, **numbers},
        x_dtype=TensorProto.UINT8,
        y_dtype=TensorProto.UINT8,
    )


def recurrent() -> onnx.ModelProto:
    weight = np.broadcast_to(ternary(K, K), (1, K, K))
    made = helper.make_node("RNN", ["x", "w", "r"], ["", "y"], name="rnn", hidden_size=K)
    return model(
        [made],
        {"w": np.ascontiguousarray(weight), "r": np.ascontiguousarray(weight)},
        x_shape=(3, "batch", K),
    )


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "one_weight_off": lambda: Miss(
        simple(changed(ternary(), 1, 3, 0.25025)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "one_weight_off_gemm": lambda: Miss(
        gemm(changed(ternary(), 1, 3, 0.25025)).model,
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
        "weight 'w' is also a graph input, so a caller may override it; "
        "remove it from the graph's inputs to make it a constant",
    ),
    "old_ir": lambda: Miss(
        old_ir(),
        "the model has IR version 3, in which every initializer may be overridden by the caller; "
        "4 or later is needed",
    ),
    "old_opset": lambda: Miss(
        simple(ternary(), opset=6), "the model has opset 6; 7 or later is needed"
    ),
    "both_constant": lambda: Miss(
        model([matmul("v", "w")], {"v": np.ones((2, K), F32), "w": ternary()}),
        "both operands ('v', 'w') are constant",
    ),
    "rank_1": lambda: Miss(simple(ternary()[:, 0]), "weight 'w' has rank 1, expected 2"),
    "rank_3": lambda: Miss(simple(ternary()[None]), "weight 'w' has rank 3, expected 2"),
    "no_rows": lambda: Miss(
        simple(np.zeros((0, N), F32), x_shape=("batch", 0)),
        "weight 'w' has shape (0, 20): no elements",
    ),
    "no_columns": lambda: Miss(
        simple(np.zeros((K, 0), F32)), "weight 'w' has shape (48, 0): no elements"
    ),
    "no_rows_gemm": lambda: Miss(
        gemm(np.zeros((0, N), F32), x_shape=("batch", 0)).model,
        "weight 'w' has shape (0, 20): no elements",
    ),
    "double": lambda: Miss(double(), "weight 'w' is float64; convert the model to float32 first"),
    "double_gemm": lambda: Miss(
        double("Gemm"), "weight 'w' is float64; convert the model to float32 first"
    ),
    "double_of_codes": lambda: Miss(
        double_of_codes(), "weight 'codes' is float64; convert the model to float32 first"
    ),
    "recurrent": lambda: Miss(
        recurrent(), "RNN multiplies inside; this version rewrites separate products only"
    ),
    "integer_gemm": lambda: Miss(integer_gemm(), "weight 'w' is int32: an integer product"),
    "matmul_integer": lambda: Miss(
        matmul_integer(),
        "its activations are integers, and 'x' are given; DynamicQuantizeLinear or absmax would be "
        "handled",
    ),
    "qlinear_matmul": lambda: Miss(
        qlinear_matmul(), "QLinearMatMul is not handled by this version"
    ),
    "alpha_zero": lambda: Miss(
        gemm(alpha=0.0).model, "alpha = 0; only positive finite ones are handled"
    ),
    "alpha_negative": lambda: Miss(
        gemm(alpha=-1.0).model, "alpha = -1; only positive finite ones are handled"
    ),
    "alpha_too_small": lambda: Miss(
        gemm(alpha=1e-38).model, "alpha takes the scale of weight 'w' out of float32"
    ),
    "wrong_k": lambda: Miss(
        simple(ternary(), x_shape=("batch", 7)),
        "input 'x' has 7 columns, but weight 'w' has 48 rows",
    ),
    "wrong_k_gemm": lambda: Miss(
        gemm(x_shape=("batch", 7)).model, "input 'x' has 7 columns, but weight 'w' has 48 rows"
    ),
    "wrong_k_trans_a": lambda: Miss(
        gemm(x_shape=(7, "batch"), transA=1).model,
        "input 'x' has 7 rows, but weight 'w' has 48 rows",
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
