"""What happens where whole models cannot be compared, or only in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_ternary.conversion.convert import convert
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import NotComparedError, RequirementError
from onnx_ternary.options import OptimizeOptions, VerificationOptions
from onnx_ternary.verification.verify import verify
from tests.support import decoders
from tests.support.converted_models import (
    UINT8,
    Product,
    converted_model,
    original_model,
    random_weight,
)
from tests.support.decoders import Graph, ternary

ATTENTION_IN_PROVIDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 20)
WHOLE = VerificationOptions(require_whole=True)


def converted(model: ModelProto, **options: Any) -> ModelProto:
    return optimize(model, OptimizeOptions(min_elements=0, **options)).to_proto()


def with_unknown_operator() -> ModelProto:
    graph = Graph()
    graph.input("x", TensorProto.FLOAT, ["batch", 64])
    product = graph("MatMul", "x", graph.constant(ternary(64, 48, 0)))
    model = graph.model(graph("Mystery", product, domain="elsewhere"))
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    return model


def scaled(model: ModelProto, start: str, factor: float) -> ModelProto:
    """A copy whose first scale with such a name, in the graph or a branch, is wrong."""
    changed = ModelProto()
    changed.CopyFrom(model)
    graphs = [changed.graph]
    graphs += [
        each.g for node in changed.graph.node for each in node.attribute if each.HasField("g")
    ]
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.name.startswith(start) and tensor.name.endswith("scale"):
                wrong = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(wrong), tensor.name))
                return changed
    raise AssertionError(start)


@pytest.mark.parametrize(
    "model",
    [
        decoders.cached_decoder(),
        decoders.merged_decoder(),
        decoders.static_cache_decoder(),
        pytest.param(
            decoders.grouped_query_decoder(),
            marks=pytest.mark.skipif(not ATTENTION_IN_PROVIDER, reason="needs onnxruntime 1.20"),
        ),
    ],
    ids=["cached", "merged", "static", "grouped"],
)
def test_decoders_are_compared_as_a_whole(model: ModelProto) -> None:
    report = verify(model, converted(model), WHOLE)
    assert report.passed, report.summary()
    assert report.scope == "whole"
    assert report.num_unjudged == 0
    assert {check.status for check in report.products} == {"passed"}


def test_products_alone_where_the_original_does_not_run() -> None:
    model = with_unknown_operator()
    other = converted(model)
    report = verify(model, other)
    assert report.passed
    assert (report.scope, report.outputs) == ("products", ())
    assert [check.status for check in report.products] == ["passed"]
    assert "Mystery" in report.not_whole
    assert any("--library" in note and "Mystery" in note for note in report.notes)
    assert report.to_dict()["scope"] == "products"
    assert not verify(model, scaled(other, "constant_0", 1.01)).passed
    with pytest.raises(RequirementError, match=r"that is required: .*Mystery"):
        verify(model, other, WHOLE)


def test_conversion_needs_no_comparison_unless_it_is_asked_for(tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(with_unknown_operator(), source)
    options = OptimizeOptions(min_elements=0)
    done = convert(source, target, options)
    assert done.verification is not None
    assert done.verification.scope == "products"
    target.unlink()
    with pytest.raises(RequirementError, match="Mystery"):
        convert(source, target, options, verification=WHOLE)
    assert not target.exists()


def test_nothing_that_runs_is_an_error_of_verify() -> None:
    product = Product.make(random_weight(np.random.default_rng(0), 64, 16))
    unknown = original_model([product])
    unknown.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(NotComparedError, match="cannot load the original model"):
        verify(unknown, converted_model([product]))


def test_every_branch_runs() -> None:
    model = decoders.merged_decoder()
    other = converted(model)
    report = verify(model, other)
    names = [output.name for output in report.outputs]
    assert names.count("logits") == 1
    assert names.count("logits with use_cache_branch = False") == 1
    for branch in ("then_branch", "else_branch"):
        wrong = verify(model, scaled(other, f"{branch}/", 10))
        assert not wrong.products_passed
        assert not all(output.passed for output in wrong.outputs)


def test_tolerance_of_the_conversion_is_read_from_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = Graph()
    graph.input("x", TensorProto.FLOAT, ["batch", 64])
    weight = ternary(64, 48, 0)
    noisy = weight * (1 + rng.uniform(-1e-3, 1e-3, weight.shape)).astype(np.float32)
    model = graph.model(graph("MatMul", "x", graph.constant(noisy)))
    other = converted(model, tolerance=0.01)
    report = verify(model, other)
    assert report.passed
    assert any("changed by up to 0.01" in note for note in report.notes)
    assert not verify(model, other, weight_tolerance=0.0).passed


def test_sequences_and_maps_are_compared_element_by_element(tmp_path: Path) -> None:
    graph = Graph()
    graph.input("x", TensorProto.FLOAT, ["batch", 64])
    hidden = graph("MatMul", "x", graph.constant(ternary(64, 48, 0)))
    scores = graph("Softmax", graph("MatMul", hidden, graph.constant(ternary(48, 3, 1))))
    graph.nodes += [
        helper.make_node(
            "ZipMap", [scores], ["maps"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]
        ),
        helper.make_node("SequenceConstruct", [hidden, scores], ["sequence"]),
    ]
    model = graph.model()
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    model.graph.output.extend(
        [
            helper.make_value_info("maps", helper.make_sequence_type_proto(kind)),
            helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None),
        ]
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    done = convert(source, target, OptimizeOptions(min_elements=0))
    assert done.verification is not None
    assert done.verification.scope == "whole"
    names = [output.name for output in done.verification.outputs]
    assert names == ["maps", "sequence[0]", "sequence[1]"]
    assert [output.shape for output in done.verification.outputs] == [(2, 3), (2, 48), (2, 3)]
    after = onnx.load(target)
    assert list(after.graph.output) == list(model.graph.output)
    assert not verify(source, scaled(after, "constant_0", 10)).outputs_passed


@pytest.mark.parametrize("activation", [None, UINT8], ids=["float", "uint8"])
def test_changed_function_body_is_noticed(activation: dict[str, Any] | None) -> None:
    product = Product.make(random_weight(np.random.default_rng(0), 64, 16), activation=activation)
    original, other = original_model([product]), converted_model([product])
    report = verify(original, other)
    assert report.passed
    assert report.products[0].ran_without_library
    assert [output.name for output in report.without_library] == ["y0"]
    (function,) = other.functions
    last = function.node[-1]
    inner = last.output[0]
    last.output[0] = "before"
    function.node.append(helper.make_node("Add", ["before", "before"], [inner]))
    report = verify(original, other)
    assert [check.status for check in report.products] == ["failed"]
    assert report.products[0].worst_is_without_library
    assert "without the library" in report.summary()


def test_axes_lost_without_the_library_are_noticed() -> None:
    product = Product.make(random_weight(np.random.default_rng(0), 64, 16))
    models = [original_model([product]), converted_model([product])]
    (function,) = models[1].functions
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [-1])
    function.node[-1].output[0] = "before"
    function.node.append(helper.make_node("Constant", [], ["flat"], value=shape))
    function.node.append(helper.make_node("Reshape", ["before", "flat"], ["Y"]))
    report = verify(*models)
    assert all(output.passed for output in report.outputs)
    assert not report.outputs_passed
    assert "without the library output y0 differs" in report.summary()
