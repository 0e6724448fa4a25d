"""Verification passes what is right and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import IndexFormatError, ModelError, NotComparedError
from onnx_ternary.schema import DOMAIN
from onnx_ternary.verification.verify import verify
from tests.catalogue.case import column_scales
from tests.catalogue.matmul_nbits import FEW_BITS, nbits
from tests.support.converted_models import Product, converted_model, original_model, random_weight
from tests.support.products import INT8

BIAS = column_scales()


def replace_initializer(model: ModelProto, name: str, change: Any) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array)), name))
            return changed
    raise AssertionError(name)


def test_equal_models_pass(products: list[Product]) -> None:
    report = verify(original_model(products), converted_model(products), seed=3)
    assert report.passed
    assert [check.node for check in report.products] == ["product0", "product1"]
    for check in report.products:
        assert check.status == "passed"
        assert check.compared_with == "original product"
        assert check.worst_error_over_bound <= 1
        assert check.rows == 16
        assert check.probe_rows == -(-check.shape[0] // 64)
    (output,) = report.outputs
    assert output.tolerance == 1e-5
    assert output.max_relative_difference < 1e-6
    assert output.top1_agreement == 1
    assert output.node == "product1"
    assert report.inputs == {"X": "generated, seed 3: float32 (2, 8, 130)"}
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True
    assert "2 of 2 products within their bounds" in report.summary()


def test_models_in_memory(products: list[Product]) -> None:
    original, converted = original_model(products), converted_model(products)
    expected = verify(original, converted)
    assert verify(original.SerializeToString(), converted.SerializeToString()) == expected
    assert verify(ir.from_proto(original), ir.from_proto(converted)) == expected


@pytest.mark.parametrize("options", [{"index_format": "rsr"}, {"storage": "dense"}], ids=str)
def test_other_formats_pass(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    weight = random_weight(rng, 130, 37, scale_rank=2, group_size=32)
    products = [Product.make(weight, **options)]
    assert verify(original_model(products), converted_model(products)).passed


def test_one_flipped_weight_fails_its_product_only(products: list[Product]) -> None:
    def flip(codes: np.ndarray) -> np.ndarray:
        # Byte 5 of block 0 of column 2: input 5's level.
        codes[0, 0, 2, 5] ^= 1 if codes[0, 0, 2, 5] & 3 != 2 else 3
        return codes

    converted = replace_initializer(converted_model(products), "codes0", flip)
    report = verify(original_model(products), converted)
    assert not report.passed
    assert not report.products_passed
    assert [check.status for check in report.products] == ["failed", "passed"]
    worst = report.worst_product
    assert worst is not None
    assert worst.node == "product0"
    assert worst.worst_index is not None
    assert worst.worst_index[1] == 2
    assert worst.worst_error_over_bound > 1
    assert not report.outputs_passed
    assert "product0 at" in report.summary()


def test_one_flipped_weight_in_long_sums_fails() -> None:
    rng = np.random.default_rng(8)
    weight = random_weight(rng, 20000, 8)
    original = original_model([Product.make(weight)])
    weight.levels[12345, 6] = 1 if weight.levels[12345, 6] != 1 else 0
    report = verify(original, converted_model([Product.make(weight)]))
    (check,) = report.products
    assert check.status == "failed"
    assert check.worst_is_probe
    assert check.worst_index is not None
    assert check.worst_index[1] == 6
    assert "at probe (" in report.summary()


def test_infinite_differences_become_json(products: list[Product]) -> None:
    converted = replace_initializer(converted_model(products), "bias0", lambda b: b * np.nan)
    report = verify(original_model(products), converted)
    assert not report.passed
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["products"][0]["worst_error_over_bound"] == "inf"


def test_last_bits_of_scale_fail(products: list[Product]) -> None:
    converted = replace_initializer(converted_model(products), "scale0", lambda s: s * 1.0001)
    report = verify(original_model(products), converted)
    assert report.products[0].status == "failed"
    allowed = verify(original_model(products), converted, weight_tolerance=1.1e-4)
    assert allowed.products_passed


def test_bias_is_compared(products: list[Product]) -> None:
    converted = replace_initializer(converted_model(products), "bias0", lambda b: b + 1e-3)
    assert verify(original_model(products), converted).products[0].status == "failed"


def test_end_to_end_difference_alone_fails(products: list[Product]) -> None:
    original, converted = original_model(products), converted_model(products)
    for model, offset in ((original, 0.0), (converted, 0.01)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(offset), "offset"))
        model.graph.node.append(helper.make_node("Add", ["y1", "offset"], ["z"], name="shift"))
        model.graph.output[0].name = "z"
    report = verify(original, converted)
    assert report.products_passed
    assert not report.passed
    assert report.worst_output is not None
    assert report.worst_output.node == "shift"
    assert verify(original, converted, tolerance=0.1).passed


def test_int8_is_compared_with_its_rule() -> None:
    rng = np.random.default_rng(1)
    products = [
        Product.make(random_weight(rng, 130, 37, scale_rank=r, group_size=32), activation=INT8)
        for r in (1, 2)
    ]
    products[1] = Product.make(
        random_weight(rng, 37, 12, scale_rank=2, group_size=16), activation=INT8
    )
    report = verify(original_model(products), converted_model(products))
    assert report.passed
    for check in report.products:
        assert check.compared_with == "numpy reference of the int8 rule"
        assert 1e-5 < check.max_difference_from_original < 0.05
    assert report.outputs[0].tolerance is None
    assert any("quantized activations" in note for note in report.notes)


def test_weights_count_where_the_user_asks_for_int8() -> None:
    """The original rounds nothing, so its float product tells its weights."""
    weight = random_weight(np.random.default_rng(2), 300, 20)
    original = original_model([Product.make(weight, activation=INT8)])
    weight.levels[7, 11] = 1 if weight.levels[7, 11] != 1 else 0
    (check,) = verify(original, converted_model([Product.make(weight, activation=INT8)])).products
    assert check.status == "failed"
    assert check.worst_is_probe
    assert check.worst_index is not None
    assert check.worst_index[1] == 11


def test_int8_with_another_epsilon_or_scale_fails() -> None:
    rng = np.random.default_rng(1)
    products = [Product.make(random_weight(rng, 130, 37), activation=INT8)]
    x = rng.standard_normal((2, 3, 130)).astype(np.float32)
    converted = converted_model(products)
    assert verify(original_model(products), converted, inputs={"X": x}).passed
    judged = verify(original_model(products), converted, inputs={"X": x}, tolerance=1e-5)
    assert not judged.outputs_passed


def test_rows_with_nan_and_inf_are_compared(products: list[Product]) -> None:
    x = np.random.default_rng(2).standard_normal((1, 4, 130)).astype(np.float32)
    x[0, 1, 3], x[0, 2, 4] = np.nan, np.inf
    report = verify(original_model(products), converted_model(products), inputs={"X": x})
    assert report.products_passed


def test_float16_passes_and_flip_fails() -> None:
    rng = np.random.default_rng(5)
    weight = random_weight(rng, 128, 16, scale_rank=0)
    weight = type(weight)(weight.levels, np.float32(0.5), 0, "ternary", 0.0)
    product = Product.make(weight)
    converted = converted_model([product], x_dtype=TensorProto.FLOAT16)
    original = original_model([product])
    for tensor in original.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*original.graph.input, *original.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert verify(original, converted).passed
    weight.levels[7, 3] = 1 if weight.levels[7, 3] != 1 else 0
    flipped = converted_model([Product.make(weight)], x_dtype=TensorProto.FLOAT16)
    report = verify(original, flipped)
    assert not report.products_passed
    assert report.products[0].worst_index is not None
    assert report.products[0].worst_index[1] == 3


def test_float16_product_behind_an_operator_that_runs_in_float32() -> None:
    """ONNX Runtime drops the rounding of gain * x, so its product has another x than ours."""
    rng = np.random.default_rng(0)
    levels = rng.integers(-1, 2, (256, 64)).astype(np.float16)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "gain"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "w"], ["product"], name="product"),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        ],
        "float16",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])],
        [
            numpy_helper.from_array(levels * np.float16(0.1), "w"),
            numpy_helper.from_array(rng.random(256).astype(np.float16), "gain"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    original = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    converted = optimize(original).to_proto()
    x = {"x": rng.standard_normal((32, 256)).astype(np.float16)}
    report = verify(original, converted, inputs=x)
    assert report.passed, report.summary()
    assert report.outputs[0].tolerance == 1e-2


def test_product_without_counterpart_is_end_to_end_only(products: list[Product]) -> None:
    original = original_model(products)
    for node in original.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "y0" else name for name in names]
    report = verify(original, converted_model(products))
    assert [check.status for check in report.products] == ["end to end only"] * 2
    assert "no tensor 'y0'" in report.products[0].reason
    assert report.passed


def test_shape_of_original_product_is_compared(products: list[Product]) -> None:
    original = original_model(products)
    renamed = original.graph.node[1]  # Add: let y0 be the value before it, with a wrong shape
    assert renamed.output[0] == "y0"
    original.graph.node.insert(2, helper.make_node("Transpose", ["y0_t"], ["y0"], perm=[1, 0, 2]))
    renamed.output[0] = "y0_t"
    report = verify(original, converted_model(products))
    assert report.products[0].status == "failed"
    assert "the original multiplies (2, 8, 130) to (8, 2, 37)" in report.products[0].reason


def test_products_in_branches_run_alone(products: list[Product]) -> None:
    converted, original = (
        in_if(converted_model([products[0]])),
        in_if(original_model([products[0]])),
    )
    report = verify(original, converted)
    assert report.num_nested_products == 0
    (check,) = report.products
    assert check.status == "passed"
    assert check.probe_rows
    assert report.outputs[0].max_relative_difference < 1e-5
    assert report.passed
    assert any("1 products in subgraphs ran alone" in note for note in report.notes)


def in_if(model: ModelProto) -> ModelProto:
    """The model's nodes in the then-branch of an If."""
    branch = helper.make_graph(
        list(model.graph.node), "branch", [], [onnx.ValueInfoProto(name="y0")]
    )
    del model.graph.node[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    )
    del branch.node[:]
    model.graph.output[0].name = "out"
    # Only one branch holds the product.
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "else_branch":
            del attribute.g.node[:]
            attribute.g.node.append(helper.make_node("Constant", [], ["y0"], value_float=0.0))
    return model


def test_products_in_small_batches_and_progress(products: list[Product]) -> None:
    calls: list[tuple[str, int, int]] = []
    report = verify(
        original_model(products),
        converted_model(products),
        max_exposed_bytes=1,
        max_rows=5,
        progress=lambda *arguments: calls.append(arguments),
    )
    assert report.passed
    assert [check.rows for check in report.products] == [5, 5]
    assert calls == [("product0", 1, 2), ("product1", 2, 2)]


def test_files_with_external_data_and_npz(products: list[Product], tmp_path: Path) -> None:
    paths = []
    for name, model in (
        ("original", original_model(products)),
        ("converted", converted_model(products)),
    ):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(
            model,
            paths[-1],
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, X=np.ones((3, 2, 130), np.float32), labels=np.zeros(3))
    report = verify(*paths, inputs=inputs)
    assert report.passed
    assert [check.rows for check in report.products] == [6, 6]
    assert report.inputs["X"].endswith("float32 (3, 2, 130)")
    (tmp_path / "converted.data").unlink()
    with pytest.raises(ModelError, match="converted model"):
        verify(*paths, inputs=inputs)


def test_unreadable_models(products: list[Product], tmp_path: Path) -> None:
    model = converted_model(products)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"garbage\.onnx is not a readable ONNX model"):
        verify(garbage, model)
    with pytest.raises(ModelError, match=r"missing\.onnx cannot be read"):
        verify(tmp_path / "missing.onnx", model)


def test_models_onnxruntime_refuses(products: list[Product]) -> None:
    original, converted = original_model(products), converted_model(products)
    unknown = original_model(products)
    for node in unknown.graph.node:
        node.op_type = "NoSuchOperator"
    with pytest.raises(NotComparedError, match="cannot load the original model"):
        verify(unknown, converted)
    damaged = replace_initializer(converted, "codes0", lambda codes: codes[:-1])
    with pytest.raises((ModelError, IndexFormatError), match="codes"):
        verify(original, damaged)


def test_missing_output_is_an_error(products: list[Product]) -> None:
    converted = converted_model(products)
    converted.graph.output[0].name = "y0"
    with pytest.raises(ModelError, match="no output 'y1'"):
        verify(original_model(products), converted)


def test_domain_of_op_is_the_schema_s() -> None:
    model = converted_model([Product.make(random_weight(np.random.default_rng(0), 4, 4))])
    assert model.graph.node[0].domain == DOMAIN


@pytest.mark.skipif(not FEW_BITS, reason="this onnxruntime does not multiply by 2-bit weights")
def test_int8_sums_of_the_original_are_left_out() -> None:
    original = nbits(rows=512, block_size=32, after=("Add", BIAS), accuracy_level=4).model
    untouched = ModelProto()
    untouched.CopyFrom(original)
    converted = optimize(original).to_proto()
    report = verify(original, converted)
    assert original == untouched
    (product,) = report.products
    assert (product.status, product.compared_with) == ("passed", "original product")
    assert product.probe_rows
    assert report.outputs[0].tolerance is None
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 31):  # 1.27 does not round 2 bits
        assert report.outputs[0].max_relative_difference > 1e-4  # what the original rounds away
    assert any("accuracy_level = 4" in note for note in report.notes)

    exact = nbits(rows=512, block_size=32, after=("Add", BIAS)).model
    report = verify(exact, converted)
    assert report.passed
    assert report.outputs[0].tolerance == 1e-5
    other = nbits(rows=512, block_size=32, stored=(2, 1, 0), after=("Add", BIAS), accuracy_level=4)
    assert not verify(other.model, converted).passed
