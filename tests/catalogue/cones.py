"""Models whose weight is the end of a constant expression, and some that only look like it."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    OVERRIDABLE,
    Array,
    Case,
    K,
    Miss,
    N,
    column_scales,
    matmul,
    model,
    node,
    ternary,
)

ONE = np.array(1, F32)


def _float_weight(rows: int = K, columns: int = N) -> Array:
    """What training leaves behind, before the graph quantizes it."""
    return np.random.default_rng(3).standard_normal((rows, columns)).astype(F32)


def quantization(source: str = "v", result: str = "w", *, prefix: str = "") -> list[onnx.NodeProto]:
    """BitNet's weight quantization: ``round(clip(w / mean|w|, -1, 1)) * mean|w|``."""

    def p(name: str) -> str:
        return prefix + name

    return [
        node("Abs", [source], p("abs")),
        node("ReduceMean", [p("abs")], p("mean"), keepdims=0),
        node("Clip", [p("mean"), "epsilon"], p("scale")),
        node("Div", [source, p("scale")], p("ratio")),
        node("Round", [p("ratio")], p("rounded")),
        node("Clip", [p("rounded"), "minus_one", "one"], p("levels")),
        node("Mul", [p("levels"), p("scale")], result),
    ]


QUANTIZATION_CONSTANTS: dict[str, Array] = {
    "epsilon": np.array(1e-5, F32),
    "one": ONE,
    "minus_one": -ONE,
}


def quantized(**kwargs: object) -> Case:
    """The weight is quantized in the graph."""
    made = model(
        [*quantization(), matmul()],
        {"v": _float_weight(), **QUANTIZATION_CONSTANTS},
        **kwargs,  # type: ignore[arg-type] # passed on
    )
    return Case(made, ("MatMul",), (None,))


def quantized_scale_behind() -> Case:
    """Levels go into the product, the computed scale behind it: nothing of it may stay."""
    nodes = quantization()[:-1]
    nodes += [matmul("x", "levels", "p"), node("Mul", ["p", "scale"], "y")]
    made = model(nodes, {"v": _float_weight(), **QUANTIZATION_CONSTANTS})
    return Case(made, ("MatMul -> Mul",), (None,))


def quantized_columns() -> Case:
    """One computed scale per column, and the weight transposed as torch stores it."""
    nodes = [
        node("Abs", ["v"], "abs"),
        node("ReduceMax", ["abs"], "scale", axes=[1], keepdims=1),
        node("Div", ["v", "scale"], "ratio"),
        node("Round", ["ratio"], "levels"),
        node("Mul", ["levels", "scale"], "quantized"),
        node("Transpose", ["quantized"], "w", perm=[1, 0]),
        matmul(),
    ]
    return Case(model(nodes, {"v": _float_weight(N, K)}), ("MatMul",), (None,))


def quantized_float16() -> Case:
    nodes = [node("Mul", ["levels", "scale"], "w"), matmul()]
    weight = ternary(scale=1.0, dtype=np.float16)
    scale = np.array(0.3, np.float16)
    made = model(
        nodes,
        {"levels": weight, "scale": scale},
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )
    return Case(made, ("MatMul",), ((weight * scale).astype(np.float64),))


def quantized_bfloat16() -> Case:
    """numpy knows the type only through ml_dtypes, and onnxruntime gives it none."""
    weight = ternary(scale=0.3).astype(ml_dtypes.bfloat16)
    nodes = [
        node("Reshape", ["flat", "shape"], "w"),
        node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
        matmul("xb", "w", "yb"),
        node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
    ]
    made = model(nodes, {"flat": weight.reshape(-1), "shape": np.array([K, N])})
    return Case(made, ("MatMul",), (weight.astype(np.float64),))


def float_to_integer_and_back() -> Case:
    nodes = [
        node("Cast", ["v"], "i", to=TensorProto.INT8),
        node("Cast", ["i"], "w", to=TensorProto.FLOAT),
        matmul(),
    ]
    weight = ternary(scale=1.0)
    return Case(model(nodes, {"v": weight}), ("MatMul",), (weight.astype(np.float64),))


def long_chain() -> Case:
    """Flat int8 levels -> Cast -> Reshape -> Transpose -> Mul -> Div."""
    levels = ternary(scale=1.0)
    nodes = [
        node("Cast", ["codes"], "floats", to=TensorProto.FLOAT),
        node("Reshape", ["floats", "shape"], "shaped"),
        node("Transpose", ["shaped"], "turned", perm=[1, 0]),
        node("Mul", ["turned", "scale"], "scaled"),
        node("Div", ["scaled", "two"], "w"),
        matmul(),
    ]
    constants: dict[str, Array] = {
        "codes": np.ascontiguousarray(levels.T).astype(np.int8).reshape(-1),
        "shape": np.array([N, -1]),
        "scale": column_scales(),
        "two": np.array(2, F32),
    }
    weight = (levels * column_scales() / F32(2)).astype(np.float64)
    return Case(model(nodes, constants), ("MatMul",), (weight,))


def dequantized() -> Case:
    """QuantizeLinear and DequantizeLinear of a float weight."""
    weight = ternary(scale=0.25)
    nodes = [
        node("QuantizeLinear", ["v", "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], "w"),
        matmul(),
    ]
    made = model(nodes, {"v": weight, "scale": np.array(0.25, F32), "zero": np.array(0, np.int8)})
    return Case(made, ("MatMul",), (weight.astype(np.float64),))


PACKED_K, PACKED_N = 128, 24


def _packed(levels: Array) -> Array:
    """(N, K) levels as transformers stores them: four rows blocks a byte, (N / 4, K) uint8."""
    codes = (levels + 1).astype(np.uint8).reshape(4, -1, levels.shape[1])
    packed = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
    return np.asarray(packed, np.uint8)


def packed_by_concat() -> Case:
    """transformers' packed BitLinear, unpacked by shifts and Concat; scale behind the product."""
    levels = ternary(PACKED_K, PACKED_N, scale=1.0)
    nodes: list[onnx.NodeProto] = []
    for index in range(4):
        nodes += [
            node("BitwiseAnd", ["packed", f"mask{index}"], f"field{index}"),
            node("BitShift", [f"field{index}", f"by{index}"], f"part{index}", direction="RIGHT"),
        ]
    nodes += [
        node("Concat", [f"part{index}" for index in range(4)], "codes", axis=0),
        node("Cast", ["codes"], "wide", to=TensorProto.FLOAT),
        node("Sub", ["wide", "one"], "unpacked"),
        node("Transpose", ["unpacked"], "w", perm=[1, 0]),
        matmul("x", "w", "p"),
        node("Mul", ["p", "scale"], "y"),
    ]
    made = model(
        nodes,
        {
            "packed": _packed(levels.T),
            **{f"mask{i}": np.array(3 << 2 * i, np.uint8) for i in range(4)},
            **{f"by{i}": np.array(2 * i, np.uint8) for i in range(4)},
            "one": ONE,
            "scale": np.array([0.7], F32),
        },
        x_shape=("batch", PACKED_K),
        opset=18,
    )
    return Case(made, ("MatMul -> Mul",), (levels * np.float64(F32(0.7)),), grows=True)


def packed_by_scatter() -> Case:
    """The same as TorchScript writes slice assignments: zeros, index grids and ScatterND.

    Shapes are computed from the packed tensor's own, as dynamic ones would be.
    """
    levels = ternary(PACKED_K, PACKED_N, scale=1.0)
    rows = PACKED_N // 4
    nodes = [
        node("Shape", ["packed"], "shape"),
        node("Gather", ["shape", "zero"], "rows"),
        node("Gather", ["shape", "index_one"], "columns"),
        node("Mul", ["rows", "four"], "all_rows"),
        node("Unsqueeze", ["all_rows", "first"], "all_rows_1"),
        node("Unsqueeze", ["columns", "first"], "columns_1"),
        node("Concat", ["all_rows_1", "columns_1"], "whole", axis=0),
        helper.make_node(
            "ConstantOfShape",
            ["whole"],
            ["state0"],
            name="zeros",
            value=numpy_helper.from_array(np.zeros(1, np.uint8)),
        ),
        node("Range", ["zero", "all_rows", "index_one"], "every_row"),
    ]
    for index in range(4):
        nodes += [
            node("BitwiseAnd", ["packed", f"mask{index}"], f"field{index}"),
            node("BitShift", [f"field{index}", f"by{index}"], f"part{index}", direction="RIGHT"),
            node("Slice", ["every_row", f"start{index}", f"end{index}", "first"], f"taken{index}"),
            node("Reshape", [f"taken{index}", "as_column"], f"index{index}"),
            node(
                "ScatterND", [f"state{index}", f"index{index}", f"part{index}"], f"state{index + 1}"
            ),
        ]
    nodes += [
        node("Cast", ["state4"], "wide", to=TensorProto.FLOAT),
        node("Sub", ["wide", "one"], "unpacked"),
        node("Transpose", ["unpacked"], "w", perm=[1, 0]),
        matmul(),
    ]
    constants: dict[str, Array] = {
        "packed": _packed(levels.T),
        "zero": np.array(0),
        "index_one": np.array(1),
        "four": np.array(4),
        "first": np.array([0]),
        "as_column": np.array([-1, 1]),
        "one": ONE,
    }
    for index in range(4):
        constants[f"mask{index}"] = np.array(3 << 2 * index, np.uint8)
        constants[f"by{index}"] = np.array(2 * index, np.uint8)
        constants[f"start{index}"] = np.array([index * rows])
        constants[f"end{index}"] = np.array([(index + 1) * rows])
    made = model(nodes, constants, x_shape=("batch", PACKED_K), opset=18)
    return Case(made, ("MatMul",), (levels.astype(np.float64),), grows=True)


def qkv_of_one_cone() -> Case:
    """Three weights split from one computed tensor."""
    weight = ternary(K, 3 * N, scale=column_scales(3 * N))
    nodes = [
        node("Mul", ["levels", "scale"], "all"),
        helper.make_node("Split", ["all", "sizes"], ["q", "k", "v"], name="split", axis=1),
        *(matmul("x", name, f"y_{name}", f"product_{name}") for name in "qkv"),
        node("Concat", ["y_q", "y_k", "y_v"], "y", axis=1),
    ]
    made = model(
        nodes,
        {
            "levels": np.sign(weight),
            "scale": column_scales(3 * N),
            "sizes": np.array([N, N, N]),
        },
    )
    parts = np.split(weight.astype(np.float64), 3, axis=1)
    return Case(made, ("MatMul",) * 3, tuple(parts))


def shared_cone() -> Case:
    """Two users of one computed weight, one of them behind a Transpose."""
    made = model(
        [
            *quantization(),
            matmul("x", "w", "h", "first"),
            node("Transpose", ["w"], "turned"),
            helper.make_node("Gemm", ["h", "turned"], ["y"], name="second", transB=1),
        ],
        {"v": _float_weight(K, K), **QUANTIZATION_CONSTANTS},
    )
    return Case(made, ("MatMul", "Gemm"), (None, None))


def cone_used_elsewhere() -> Case:
    """The scale is an output: what leads to it stays, the rest goes."""
    made = model(
        [*quantization(), matmul()],
        {"v": _float_weight(), **QUANTIZATION_CONSTANTS},
        outputs=("y", "scale"),
    )
    return Case(made, ("MatMul",), (None,), keeps_weight=True)


def cone_is_output() -> Case:
    """The quantized weight is an output itself."""
    made = model(
        [*quantization(), matmul()],
        {"v": _float_weight(), **QUANTIZATION_CONSTANTS},
        outputs=("y", "w"),
    )
    return Case(made, ("MatMul",), (None,), keeps_weight=True)


def cone_in_branches() -> Case:
    """Half of each cone lies in the branch, half around it."""
    branches = {}
    for branch in ("then_branch", "else_branch"):
        branches[branch] = helper.make_graph(
            [
                node("Mul", ["levels", "scale"], f"w_{branch}"),
                matmul("x", f"w_{branch}", f"y_{branch}", f"product_{branch}"),
            ],
            branch,
            [],
            [helper.make_tensor_value_info(f"y_{branch}", TensorProto.FLOAT, None)],
        )
    weight = ternary(scale=1.0)
    made = model(
        [
            node("Neg", ["negative"], "levels"),
            node("ReduceMax", ["x"], "top", keepdims=0),
            node("Greater", ["top", "zero"], "positive"),
            helper.make_node("If", ["positive"], ["y"], name="choice", **branches),
        ],
        {"zero": np.array(0, F32), "negative": -weight, "scale": np.array(0.5, F32)},
    )
    exact = weight.astype(np.float64) / 2
    return Case(made, ("MatMul", "MatMul"), (exact, exact))


def _doubling(body: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function(
        "local", "Prepare", ["a"], ["b"], body, [helper.make_opsetid("", 17)]
    )


def cone_through_function() -> Case:
    """A local function is a step of the expression."""
    weight = ternary(scale=0.25)
    call = helper.make_node("Prepare", ["v"], ["w"], domain="local", name="call")
    made = model(
        [call, matmul()],
        {"v": weight},
        functions=[_doubling([node("Add", ["a", "a"], "b")])],
        opsets=[helper.make_opsetid("local", 1)],
    )
    return Case(made, ("MatMul",), (weight.astype(np.float64) * 2,))


HITS: dict[str, Callable[[], Case]] = {
    "cone_quantized": quantized,
    "cone_quantized_opset_13": lambda: quantized(opset=13),
    "cone_quantized_scale_behind": quantized_scale_behind,
    "cone_quantized_columns": quantized_columns,
    "cone_float16": quantized_float16,
    "cone_bfloat16": quantized_bfloat16,
    "cone_float_to_integer_and_back": float_to_integer_and_back,
    "cone_dequantized": dequantized,
    "cone_long_chain": long_chain,
    "cone_packed_by_concat": packed_by_concat,
    "cone_packed_by_scatter": packed_by_scatter,
    "cone_split": qkv_of_one_cone,
    "cone_shared": shared_cone,
    "cone_used_elsewhere": cone_used_elsewhere,
    "cone_is_output": cone_is_output,
    "cone_in_branches": cone_in_branches,
    "cone_through_function": cone_through_function,
}


def off_by_rounding() -> onnx.ModelProto:
    """One row's scale is off by the last bit, as a division a row leaves it."""
    scale = np.full((K, 1), 0.3, F32)
    scale[5] = np.nextafter(F32(0.3), F32(1))
    nodes = [node("Mul", ["levels", "scale"], "w"), matmul()]
    return model(nodes, {"levels": ternary(scale=1.0, levels=(-1, 1)), "scale": scale})


def random_weight() -> onnx.ModelProto:
    return model(
        [
            node("RandomNormalLike", ["v"], "noise"),
            node("Add", ["v", "noise"], "w"),
            matmul(),
        ],
        {"v": ternary()},
    )


def overridable_scale() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("scale", TensorProto.FLOAT, ())]
    return model(
        [node("Mul", ["v", "scale"], "w"), matmul()],
        {"v": ternary(), "scale": np.array(2, F32)},
        inputs=inputs,
    )


def runtime_scale() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("scale", TensorProto.FLOAT, ())]
    return model([node("Mul", ["v", "scale"], "w"), matmul()], {"v": ternary()}, inputs=inputs)


def unknown_operator() -> onnx.ModelProto:
    call = helper.make_node("Decode", ["v"], ["w"], domain="elsewhere", name="decode")
    return model(
        [call, matmul()],
        {"v": ternary()},
        opsets=[helper.make_opsetid("elsewhere", 1)],
    )


def random_function() -> onnx.ModelProto:
    call = helper.make_node("Prepare", ["v"], ["w"], domain="local", name="call")
    return model(
        [call, matmul()],
        {"v": ternary()},
        functions=[_doubling([node("RandomUniformLike", ["a"], "b")])],
        opsets=[helper.make_opsetid("local", 1)],
    )


def huge_cone() -> onnx.ModelProto:
    """Six numbers that would grow to four terabytes; their sum is what the product reads."""
    return model(
        [
            node("Mul", ["half", "half"], "shape"),
            node("Expand", ["v", "shape"], "huge"),
            node("ReduceSum", ["huge", "axes"], "w", keepdims=0),
            matmul(),
        ],
        {
            "v": ternary(),
            "half": np.array([1 << 15, 1, 1]),
            "axes": np.array([0]),
        },
    )


def branch_makes_weight() -> onnx.ModelProto:
    branches = {
        branch: helper.make_graph(
            [node("Neg", ["v"], f"w_{branch}")],
            branch,
            [],
            [helper.make_tensor_value_info(f"w_{branch}", TensorProto.FLOAT, None)],
        )
        for branch in ("then_branch", "else_branch")
    }
    choice = helper.make_node("If", ["yes"], ["w"], name="choice", **branches)
    return model([choice, matmul()], {"v": ternary(), "yes": np.array(True)})


def broken_cone() -> onnx.ModelProto:
    return model(
        [node("Reshape", ["v", "shape"], "flat"), node("Mul", ["flat", "v"], "w"), matmul()],
        {"v": ternary(), "shape": np.array([7, -1])},
    )


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "cone_off_by_rounding": lambda: Miss(
        off_by_rounding(),
        "weight has 2 distinct magnitudes in column 0, expected 1; rounding apart it is "
        "ternary: --tolerance 1e-07 takes it",
    ),
    "cone_not_folded": lambda: Miss(
        quantized().model,
        "weight 'w' is the end of a constant expression, which is left alone because "
        "folding is switched off",
        {"fold": False},
    ),
    "cone_random": lambda: Miss(
        random_weight(),
        "weight 'w' is computed from another value: 'noise' is computed by RandomNormalLike "
        "'RandomNormalLike_noise', which may give other numbers in every run",
    ),
    "cone_overridable": lambda: Miss(
        overridable_scale(),
        f"weight 'w' is computed from another value: 'scale' {OVERRIDABLE}",
    ),
    "cone_runtime": lambda: Miss(
        runtime_scale(), "no constant weight: 'w' is computed at run time (by Mul 'Mul_w')"
    ),
    "cone_unknown_operator": lambda: Miss(
        unknown_operator(),
        "weight 'w' is computed by elsewhere.Decode 'decode', which this version does not evaluate",
    ),
    "cone_random_function": lambda: Miss(
        random_function(),
        "weight 'w' is computed by RandomUniformLike 'RandomUniformLike_b', which may give other "
        "numbers in every run",
    ),
    "cone_huge": lambda: Miss(
        huge_cone(),
        "weight 'w' is the end of a constant expression that is not evaluated: with what Expand "
        f"'Expand_huge' makes it would hold {(1 << 30) * K * N * 4 + 24} bytes at once, more than "
        "268435456; --max-fold-bytes (max_fold_bytes) sets another limit",
    ),
    "cone_of_a_branch": lambda: Miss(
        branch_makes_weight(), "no constant weight: 'w' is computed at run time (by If 'choice')"
    ),
}
