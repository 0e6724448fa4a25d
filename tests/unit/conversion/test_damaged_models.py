"""Damaged and unusual models: an error of ours or a right answer, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # ships no types
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import IndexFormatError, ModelError, OnnxTernaryError
from onnx_ternary.index import decode_index
from onnx_ternary.op.nodes import check_indices, op_nodes, read_attributes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import OpAttributes
from tests.catalogue import gemm
from tests.catalogue import matmul as matmuls
from tests.catalogue.case import K, N, matmul, model, node, simple, ternary

HITS = {**matmuls.HITS, **gemm.HITS}
ALL = OptimizeOptions(min_elements=0)


def converted(**options: object) -> onnx.ModelProto:
    return optimize(simple(ternary()), OptimizeOptions(min_elements=0, **options)).to_proto()  # type: ignore[arg-type] # by name


def attribute(proto: onnx.ModelProto, name: str) -> onnx.AttributeProto:
    return next(each for each in proto.graph.node[0].attribute if each.name == name)


def undefined_constant() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3)))
    made = model([constant, matmul()], {"w": ternary()})
    made.graph.node[0].attribute[0].t.data_type = TensorProto.UNDEFINED
    return made


def unknown_dtype() -> onnx.ModelProto:
    made = simple(ternary())
    made.graph.initializer[0].data_type = 68
    return made


def sparse_initializer() -> onnx.ModelProto:
    made = simple(ternary())
    sparse = made.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "s_indices"))
    return made


def training_info() -> onnx.ModelProto:
    made = simple(ternary())
    made.training_info.add().initialization.name = "start"
    return made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (undefined_constant, "not a valid ONNX model"),
        (unknown_dtype, "not a valid ONNX model"),
        (sparse_initializer, "sparse initializers"),
        (training_info, "training information"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_unreadable_models_are_refused(make: Callable[[], onnx.ModelProto], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        optimize(make(), ALL)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_raise_nothing_but_our_errors(seed: int) -> None:
    generator = random.Random(seed)
    models = [HITS[name]().model for name in list(HITS)[seed::4]]
    blobs = [
        each.SerializeToString() for each in [*models, converted(), converted(index_format="rsr")]
    ]
    outcomes = set()
    for _ in range(150):
        content = bytearray(generator.choice(blobs))
        if generator.random() < 0.2:
            del content[generator.randrange(2, len(content)) :]
        for _ in range(2):
            # The structure is at both ends, between lie the weights.
            distance = generator.randrange(1, min(600, len(content)))
            content[generator.choice((distance, -distance))] ^= 1 << generator.randrange(8)
        try:
            proto = onnx.ModelProto.FromString(bytes(content))
        except DecodeError:
            continue
        try:
            result = optimize(proto, ALL)
            result.to_proto()
            check_indices(result.model)
            outcomes.add("converted")
        except OnnxTernaryError:
            outcomes.add("refused")
    assert outcomes == {"converted", "refused"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("K", {"type": onnx.AttributeProto.STRING, "s": b"48"}),
        ("storage", {"type": onnx.AttributeProto.INT, "i": 2}),
        ("activation_epsilon", {"type": onnx.AttributeProto.INT, "i": 0}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_attribute_of_another_type_is_named(name: str, change: dict[str, object]) -> None:
    proto = converted()
    attribute(proto, name).CopyFrom(onnx.AttributeProto(name=name, **change))  # type: ignore[arg-type] # by name
    with pytest.raises(IndexFormatError, match=f"'product': attribute {name} = "):
        check_indices(ir.from_proto(proto))


def test_attribute_out_of_range_names_the_node() -> None:
    proto = converted()
    attribute(proto, "K").i = 0
    with pytest.raises(IndexFormatError, match="'product': attribute K = 0, expected from 1"):
        check_indices(ir.from_proto(proto))


def test_missing_input_is_named() -> None:
    proto = converted()
    del proto.graph.node[0].input[4]
    with pytest.raises(IndexFormatError, match="'product': 4 inputs, expected 5"):
        check_indices(ir.from_proto(proto))


def test_damage_is_still_found_after_another_conversion() -> None:
    two = model(
        [matmul("x", "w", "h", "first"), matmul("h", "v", "y", "second")],
        {"w": ternary(), "v": ternary(N, N)},
    )
    once = optimize(two, OptimizeOptions(min_elements=0, exclude=("second",))).to_proto()
    codes = next(each for each in once.graph.initializer if each.name == "w.codes")
    codes.raw_data = bytes([0x55]) + codes.raw_data[1:]
    twice = optimize(once, ALL)
    assert [row.node for row in twice.report.rewrites] == ["second"]
    with pytest.raises(IndexFormatError, match=r"'first'.*digest differs"):
        check_indices(twice.model)


def test_bias_that_is_an_output_without_shape() -> None:
    bias = np.arange(N, dtype=np.float32)
    made = model(
        [matmul("x", "w", "p"), node("Add", ["p", "b"], "y")],
        {"w": ternary(), "b": bias},
        outputs=("y", "b"),
    )
    result = optimize(made, ALL)
    assert [row.pattern for row in result.report.rewrites] == ["MatMul -> Add"]


def test_node_names_stay_unique() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "c"], ["h"], name="product", transA=1, beta=0.5)
    taken = [f"product.{name}" for name in ("transpose", "scale_addend", "add")]
    nodes, last = [gemm], "h"
    for name in taken:
        nodes.append(helper.make_node("Relu", [last], [f"{name}_out"], name=name))
        last = nodes[-1].output[0]
    nodes.append(node("Relu", [last], "y"))
    made = model(nodes, {"w": ternary(), "c": np.ones((5, 1), np.float32)}, x_shape=(K, 5))
    names = [each.name for each in optimize(made, ALL).to_proto().graph.node]
    assert len(set(names)) == len(names)


def test_unnamed_products_are_called_by_their_output() -> None:
    other = np.random.default_rng(0).standard_normal((N, N)).astype(np.float32)
    made = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"w": ternary(), "v": other},
    )
    result = optimize(made, ALL)
    assert [row.node for row in result.report.rewrites] == ["h"]
    assert [row.node for row in result.report.rejections] == ["y"]
    assert optimize(result.to_proto(), ALL).report.already_converted == ("h",)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_kernels_of_no_rank_are_refused(shape: tuple[int, ...]) -> None:
    made = model([node("Conv", ["x", "w"], "y")], {"w": np.ones(shape, np.float32)})
    (row,) = optimize(made, ALL).report.rejections
    assert row.reason == f"weight 'w' has rank {len(shape)}, expected 3 or more"


@pytest.mark.parametrize("node_domain", ["", "ai.onnx"])
def test_default_domain_by_its_other_name(node_domain: str) -> None:
    made = simple(ternary())
    made.opset_import[0].domain = "ai.onnx"
    made.graph.node[0].domain = node_domain
    result = optimize(made, ALL)
    assert [row.node for row in result.report.rewrites] == ["product"]
    assert result.report.has_function_body
    onnx.checker.check_model(result.to_proto())


def test_wrong_levels_are_found_in_every_alphabet() -> None:
    proto = ir.from_proto(converted())
    (op,) = op_nodes(proto)
    attributes = read_attributes(op)
    for alphabet, level in (
        ("binary_pm", "= 0, expected -1 or 1"),
        ("binary_01", "= -1, expected"),
    ):
        changed = OpAttributes(**{**attributes.to_dict(), "alphabet": alphabet})  # type: ignore[arg-type] # by name
        codes, aux = (op.inputs[at].const_value.numpy() for at in (1, 2))  # type: ignore[union-attr] # written above
        with pytest.raises(IndexFormatError, match=level):
            decode_index(changed, codes, aux)
