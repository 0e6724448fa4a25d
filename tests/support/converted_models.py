"""Small models as the pass writes them, made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, TensorProto, helper, numpy_helper

from onnx_ternary.index import Index, build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.bounds import int8_error_bound
from onnx_ternary.op.function_body import BodyVariant, make_function_body
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import DOMAIN, OP_TYPE, Alphabet, OpAttributes

UINT8 = {
    "activation": "uint8",
    "activation_rule": "dynamic_quantize_linear",
    "activation_qmax": 255,
}


def random_weight(
    rng: np.random.Generator,
    K: int,
    N: int,
    *,
    alphabet: Alphabet = "ternary",
    scale_rank: int = 1,
    group_size: int = 0,
) -> TernaryWeight:
    """Every level of the alphabet with its own share, scales in [0.5, 1.5)."""
    choices = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}[alphabet]
    levels = rng.choice(np.array(choices, np.int8), (K, N))
    group_size = group_size if scale_rank == 2 else 0
    shape = ((), (N,), (-(-K // group_size) if group_size else 1, N))[scale_rank]
    scale = np.asarray(rng.random(shape) + 0.5, np.float32)
    return TernaryWeight(levels, scale, group_size, alphabet, 0.0)


@dataclasses.dataclass(frozen=True)
class Product:
    """A weight, its index and bias (N,), or a scalar zero."""

    weight: TernaryWeight
    index: Index
    bias: NDArray[np.float32]

    @classmethod
    def make(
        cls,
        weight: TernaryWeight,
        *,
        bias: NDArray[np.float32] | None = None,
        activation: dict[str, Any] | None = None,
        **index_options: Any,
    ) -> Product:
        index = build_index(weight, native=False, **index_options)
        attributes = dataclasses.replace(index.attributes, **(activation or {}))
        index = dataclasses.replace(index, attributes=attributes)
        return cls(weight, index, np.asarray(0 if bias is None else bias, np.float32))

    @property
    def attributes(self) -> OpAttributes:
        return self.index.attributes

    def by_the_int8_rule(self, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the op answers, and how far sums in another order may be off.

        Args:
            x: (..., K), rows of zeros and rows below epsilon included.
        """
        weight = self.weight
        constants = (self.index.codes, self.index.aux, self.index.scale, self.bias)
        expected = ternary_indexed_matmul(x, *constants, self.attributes)
        bound = int8_error_bound(
            x,
            weight.levels,
            weight.scale,
            weight.group_size,
            self.bias,
            self.attributes,
            np.float32,
        )
        if self.index.scale.ndim == 2:  # scales inside the sums make them inexact
            bound += 1e-6 * np.abs(expected).max()
        return expected, bound

    def variant(self, opset: int, x_dtype: int = TensorProto.FLOAT) -> BodyVariant:
        return BodyVariant.of(
            self.attributes,
            x_dtype=x_dtype,
            scale_rank=self.index.scale.ndim,
            bias_rank=self.bias.ndim,
            opset=opset,
        )


def rows_for_the_int8_rule(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random rows (2, M, K) for M above 2, one of zeros and one below epsilon among them."""
    x = rng.standard_normal(shape).astype(np.float32)
    x[1, 1] = 0
    x[1, 2] *= 1e-7
    return x


def ir_version(opset: int) -> int:
    return max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def converted_model(
    products: Sequence[Product],
    *,
    opset: int = 17,
    x_dtype: int = TensorProto.FLOAT,
    x_shape: Sequence[int | str] = ("batch", "tokens", None),
    with_body: bool = True,
) -> ModelProto:
    """A chain X -> product 0 -> product 1 ...; the last dimension of X is the first K."""
    nodes, initializers = [], []
    for i, product in enumerate(products):
        tensors = {
            "codes": product.index.codes,
            "aux": product.index.aux,
            "scale": product.index.scale,
            "bias": product.bias,
        }
        initializers += [numpy_helper.from_array(v, f"{k}{i}") for k, v in tensors.items()]
        nodes.append(
            helper.make_node(
                OP_TYPE,
                [f"y{i - 1}" if i else "X", *(f"{k}{i}" for k in tensors)],
                [f"y{i}"],
                name=f"product{i}",
                domain=DOMAIN,
                **product.attributes.to_dict(),
            )
        )
    return _chain(
        nodes,
        initializers,
        products,
        opset,
        x_dtype,
        x_shape,
        [body(products, opset, x_dtype)] if with_body else [],
    )


def original_model(
    products: Sequence[Product],
    *,
    opset: int = 17,
    x_shape: Sequence[int | str] = ("batch", "tokens", None),
) -> ModelProto:
    """The same chain with MatMul and Add on dense weights."""
    nodes, initializers = [], []
    for i, product in enumerate(products):
        initializers.append(numpy_helper.from_array(product.weight.dense(), f"w{i}"))
        has_bias = product.bias.ndim > 0
        name = f"m{i}" if has_bias else f"y{i}"
        x = f"y{i - 1}" if i else "X"
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [name], name=f"matmul{i}"))
        if has_bias:
            initializers.append(numpy_helper.from_array(product.bias, f"b{i}"))
            nodes.append(helper.make_node("Add", [name, f"b{i}"], [f"y{i}"], name=f"add{i}"))
    return _chain(nodes, initializers, products, opset, TensorProto.FLOAT, x_shape, [])


def _chain(
    nodes: list[onnx.NodeProto],
    initializers: list[TensorProto],
    products: Sequence[Product],
    opset: int,
    x_dtype: int,
    x_shape: Sequence[int | str | None],
    functions: list[FunctionProto],
) -> ModelProto:
    lead = list(x_shape[:-1])
    last = products[-1].attributes.N
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("X", x_dtype, [*lead, products[0].attributes.K])],
        [helper.make_tensor_value_info(f"y{len(products) - 1}", x_dtype, [*lead, last])],
        initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=functions,
        ir_version=ir_version(opset),
    )


def body(
    products: Sequence[Product], opset: int, x_dtype: int = TensorProto.FLOAT
) -> FunctionProto:
    function = make_function_body(
        [product.variant(opset, x_dtype) for product in products], opset, ir_version(opset)
    )
    assert isinstance(function, FunctionProto), function
    return function


def plain_session(
    model: ModelProto, level: str = "ENABLE_ALL", optimized_path: str = ""
) -> ort.InferenceSession:
    """A session without the library."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    if optimized_path:
        options.optimized_model_filepath = optimized_path
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def supported_opsets() -> list[int]:
    """The ai.onnx opsets from 11 on that both onnx and the installed onnxruntime know."""

    def loads(opset: int) -> bool:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version(opset),
        )
        try:
            plain_session(model)
        except Exception:  # onnxruntime raises types of its own that share no base
            return False
        return True

    return [opset for opset in range(11, onnx.defs.onnx_opset_version() + 1) if loads(opset)]


def make_product(
    *,
    K: int = 130,
    N: int = 40,
    scale_rank: int = 1,
    group_size: int = 32,
    activation: dict[str, Any] | None = None,
    **options: Any,
) -> Product:
    rng = np.random.default_rng(0)
    weight = random_weight(rng, K, N, scale_rank=scale_rank, group_size=group_size)
    bias = rng.standard_normal(N).astype(np.float32)
    return Product.make(weight, bias=bias, activation=activation, **options)
