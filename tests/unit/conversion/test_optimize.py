"""The public entry, its options and report, and reading and writing models."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import external_data_helper, helper

from onnx_ternary import model_io
from onnx_ternary.errors import ModelError
from onnx_ternary.graph_passes import pipeline
from onnx_ternary.optimize import OptimizeOptions, optimize
from onnx_ternary.report import Kept, Report, Rewrite
from onnx_ternary.schema import DOMAIN, OP_TYPE
from tests.catalogue.case import Array, K, N, matmul, model, node, simple, ternary
from tests.catalogue.functions import in_function

ALL = OptimizeOptions(min_elements=0)


def large_model() -> onnx.ModelProto:
    """A ternary product of the default minimum size, and a float one that stays."""
    other = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return model(
        [matmul("x", "w", "h", "first"), matmul("h", "v", "y", "second")],
        {"w": ternary(64, 64), "v": other},
        x_shape=("batch", 64),
    )


def write_external(path: Path) -> None:
    onnx.save(
        large_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )


def outputs(source: onnx.ModelProto | Path) -> list[Array]:
    given = str(source) if isinstance(source, Path) else source.SerializeToString()
    session = ort.InferenceSession(given, providers=["CPUExecutionProvider"])
    shape = [each if isinstance(each, int) else 3 for each in session.get_inputs()[0].shape]
    x = np.random.default_rng(1).integers(-4, 5, shape).astype(np.float32)
    found: list[Array] = session.run(None, {"x": x})
    return found


def assert_same_answers(first: onnx.ModelProto | Path, second: onnx.ModelProto | Path) -> None:
    for a, b in zip(outputs(first), outputs(second), strict=True):
        np.testing.assert_array_equal(a, b)


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_report_is_json_and_complete() -> None:
    report = optimize(large_model()).report
    values = json.loads(json.dumps(report.to_dict()))
    assert values.keys() == {each.name for each in fields(Report)} | {
        "weight_bytes_before",
        "weight_bytes_after",
    }
    (rewrite,), (kept,) = values["rewrites"], values["rejections"]
    assert rewrite.keys() == {each.name for each in fields(Rewrite)}
    assert kept.keys() == {each.name for each in fields(Kept)}
    assert rewrite["bytes_before"] == 64 * 64 * 4
    assert rewrite["bytes_after"] == 64 * 128 // 4 + 4 + 4  # K is padded to 128
    assert (rewrite["K"], rewrite["N"], rewrite["scale"]) == (64, 64, "tensor")
    assert values["bytes_before"] == 2 * 64 * 64 * 4
    assert kept["reason"].startswith("weight has 64 distinct magnitudes in column 0")
    assert values["options"] == OptimizeOptions().to_dict()
    assert values["has_function_body"] is True


def test_documented_fields() -> None:
    for record in (Rewrite, Kept, OptimizeOptions):
        for each in fields(record):
            assert f"{each.name}:" in (record.__doc__ or ""), each.name


def test_model_is_stamped() -> None:
    options = OptimizeOptions(exclude=("nothing",))
    metadata = optimize(large_model(), options).model.metadata_props
    assert json.loads(metadata["onnx_ternary.options"]) == options.to_dict()
    assert metadata["onnx_ternary.version"]


def test_nothing_to_rewrite_changes_nothing() -> None:
    original = simple(np.linspace(0, 1, K * N, dtype=np.float32).reshape(K, N))
    result = optimize(original, ALL)
    assert result.report.rewrites == ()
    assert result.to_proto() == ir.to_proto(ir.from_proto(original))
    assert not result.report.has_function_body


def test_progress_names_every_product() -> None:
    seen: list[tuple[str, int, int]] = []
    optimize(large_model(), progress=lambda *args: seen.append(args))
    assert seen == [("first", 0, 2), ("second", 1, 2)]


@pytest.mark.parametrize("glob", ["fir*", "w"])
def test_globs_name_nodes_and_weights(glob: str) -> None:
    assert optimize(large_model(), OptimizeOptions(exclude=(glob,))).report.rewrites == ()
    included = optimize(large_model(), OptimizeOptions(include=(glob,))).report
    assert [row.node for row in included.rewrites] == ["first"]
    assert [row.reason for row in included.rejections] == ["not among the nodes to include"]


@pytest.mark.parametrize(
    "values",
    [
        {"index_format": "csr"},
        {"storage": "3bit"},
        {"algorithm": "fast"},
        {"activation": "int4"},
        {"external_data": "maybe"},
        {"tolerance": -0.1},
        {"tolerance": 0.5},
        {"min_elements": -1},
        {"include": "one"},
        {"storage": "planes"},
        {"block_width": 4},
        {"algorithm": "rsr"},
        {"algorithm": "auto", "index_format": "rsr"},
        {"block_width": 17, "index_format": "rsr"},
    ],
    ids=str,
)
def test_options_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimizeOptions(**values)


def test_models_in_memory_give_the_same() -> None:
    proto = large_model()
    expected = optimize(proto).to_proto()
    for given in (proto.SerializeToString(), ir.from_proto(proto)):
        assert optimize(given).to_proto() == expected
    with pytest.raises(ModelError, match="not an ONNX model"):
        optimize(b"this is not a model")


def test_tolerance_admits_and_reports_the_change() -> None:
    weight = ternary()
    weight[2, 2] *= 1.001
    assert optimize(simple(weight), ALL).report.rewrites == ()
    report = optimize(simple(weight), OptimizeOptions(min_elements=0, tolerance=0.01)).report
    (row,) = report.rewrites
    assert 0 < row.max_relative_change < 0.01
    change = f"{row.max_relative_change:.3g}"
    assert report.notes == (
        f"the largest change of a weight is {change} of its scale: 'w' of 'product'",
    )


def test_every_kind_of_product_is_reported() -> None:
    """A node a kind, on operands that are given at run time."""
    kinds = sorted(frozenset().union(*(rule.op_types for rule in pipeline.RULES)))
    nodes = [
        helper.make_node(op_type, ["x", "v"], [f"y{at}"], name=f"{domain}.{op_type}", domain=domain)
        for at, (domain, op_type) in enumerate(kinds)
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, 1, (K, K)) for name in ("x", "v")],
        [helper.make_tensor_value_info(f"y{at}", 1, None) for at in range(len(kinds))],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    report = optimize(helper.make_model(made, opset_imports=imports, ir_version=8), ALL).report
    assert [row.node for row in report.rejections] == [node.name for node in nodes]
    assert all(row.reason for row in report.rejections)


def test_one_body_for_binary_and_ternary_weights() -> None:
    mixed = model(
        [matmul("x", "a", "h", "first"), matmul("h", "b", "i", "second"), matmul("i", "c", "y")],
        {
            "a": ternary(K, K, levels=(-1, 1)),
            "b": ternary(K, K, levels=(0, 1)),
            "c": ternary(K, N),
        },
    )
    result = optimize(mixed, ALL)
    assert result.report.has_function_body
    assert [row.storage for row in result.report.rewrites] == ["2bit"] * 3
    assert [row.alphabet for row in result.report.rewrites] == ["binary_pm", "binary_01", "ternary"]
    (note,) = result.report.notes
    assert "'first', 'second'" in note
    assert_same_answers(mixed, result.to_proto())

    rsr = optimize(mixed, OptimizeOptions(min_elements=0, index_format="rsr"))
    assert rsr.report.has_function_body
    assert [row.alphabet for row in rsr.report.rewrites] == ["ternary"] * 3
    assert_same_answers(mixed, rsr.to_proto())

    bare = optimize(mixed, OptimizeOptions(min_elements=0, function_body=False))
    assert [row.storage for row in bare.report.rewrites] == ["1bit", "1bit", "2bit"]


def test_no_function_body_is_noted() -> None:
    report = optimize(large_model(), OptimizeOptions(function_body=False)).report
    assert report.notes == (
        "no function body, so the model needs the library to run: not asked for",
    )
    old = optimize(simple(ternary(), opset=9), ALL)
    assert not old.report.has_function_body
    (note,) = old.report.notes
    assert "the model's opset is 9" in note
    onnx.checker.check_model(old.to_proto())


def test_products_in_and_beside_functions() -> None:
    original = in_function()
    converted = model(
        [*original.graph.node[:], matmul("x", "w", "z", "outer")],
        {"w": ternary()},
        outputs=("y", "z"),
        functions=list(original.functions),
        opsets=[each for each in original.opset_import if each.domain],
    )
    result = optimize(converted, ALL)
    proto = result.to_proto()
    assert [(each.domain, each.name) for each in proto.functions] == [
        ("local", "Linear"),
        (DOMAIN, OP_TYPE),
    ]
    graphs = [row.graph for row in result.report.rewrites]
    assert graphs == ["main graph", "function local::Linear"]
    assert_same_answers(converted, proto)


def test_index_names_are_unique() -> None:
    taken = model(
        [matmul("x", "w", "h"), node("Add", ["h", "w.codes"], "y")],
        {"w": ternary(), "w.codes": np.ones((1, 1, N), np.float32)},
    )
    result = optimize(taken, ALL)
    assert {"w.codes", "w.codes_2"} <= set(result.model.graph.initializers)
    assert_same_answers(taken, result.to_proto())


def test_new_products_next_to_old_ones() -> None:
    first = optimize(large_model(), OptimizeOptions(exclude=("second",))).to_proto()
    for each in first.graph.initializer:
        if each.name == "v":
            each.CopyFrom(onnx.numpy_helper.from_array(ternary(64, 64, seed=2), "v"))
    second = optimize(first, ALL)
    assert second.report.already_converted == ("first",)
    assert [row.node for row in second.report.rewrites] == ["second"]
    assert second.report.has_function_body
    assert_same_answers(first, second.to_proto())


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x08"])
def test_load_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        optimize(path)


def test_load_refuses_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = large_model().SerializeToString()
    for size in (len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="cut short or damaged"):
            optimize(path)


def test_load_refuses_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        optimize(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="directory"):
        optimize(tmp_path)


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_external(path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"weights\.bin.*cut short"):
        optimize(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"tensor 'w' in .*weights\.bin"):
        optimize(path)


def test_message_without_its_external_data(tmp_path: Path) -> None:
    write_external(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="'w' cannot be read"):
        optimize(proto)


def test_damaged_tensor_is_named() -> None:
    damaged = simple(ternary())
    damaged.graph.initializer[0].raw_data = damaged.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match="Tensor 'w' cannot be read"):
        optimize(damaged, ALL)


def test_invalid_model_is_called_invalid(tmp_path: Path) -> None:
    invalid = simple(ternary())
    invalid.graph.node[0].op_type = "Gemm"
    attribute = invalid.graph.node[0].attribute.add(name="alpha", s=b"text")
    attribute.type = onnx.AttributeProto.STRING
    with pytest.raises(ModelError, match="not valid ONNX"):
        optimize(invalid, ALL)
    onnx.save(invalid, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="not valid ONNX"):
        optimize(tmp_path / "model.onnx", ALL)


def test_external_model_becomes_one_file(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    write_external(path)
    assert optimize(path).save(out) == (out,)
    assert names_in(out.parent) == {"small.onnx"}
    assert_same_answers(path, out)


def test_external_data_is_aligned(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(large_model(), OptimizeOptions(external_data="always"))
    assert result.save(out) == (out, tmp_path / "out.onnx.data")
    assert names_in(tmp_path) == {"out.onnx", "out.onnx.data"}
    proto = onnx.load(out, load_external_data=False)
    stored = [
        external_data_helper.ExternalDataInfo(each)
        for each in proto.graph.initializer
        if external_data_helper.uses_external_data(each)
    ]
    assert {each.location for each in stored} == {"out.onnx.data"}
    assert all((each.offset or 0) % 4096 == 0 for each in stored if each.length > 4096)
    assert_same_answers(large_model(), out)


def test_convert_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(large_model(), path)
    path.chmod(0o640)
    optimize(path).save(path)
    assert names_in(tmp_path) == {"model.onnx"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert_same_answers(large_model(), path)


def test_convert_in_place_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        large_model(),
        path,
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    before = outputs(path)
    result = optimize(path, OptimizeOptions(external_data="always"))
    result.save(path)
    assert names_in(tmp_path) == {"model.onnx", "model.onnx.ternary.data"}
    np.testing.assert_array_equal(outputs(path)[0], before[0])
    # The float tensor lay in the file that is gone: an error, not other numbers.
    with pytest.raises(ModelError, match="serialized"):
        result.to_proto()


def test_failed_save_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old model")
    (tmp_path / "model.onnx.data").write_bytes(b"old data")
    result = optimize(large_model(), OptimizeOptions(external_data="always"))
    replace = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if Path(target) == path:
            raise PermissionError(13, "Permission denied")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        result.save(path)
    assert names_in(tmp_path) == {"model.onnx", "model.onnx.data"}
    assert path.read_bytes() == b"old model"
    assert (tmp_path / "model.onnx.data").read_bytes() == b"old data"


def test_invalid_result_is_not_written(tmp_path: Path) -> None:
    result = optimize(large_model())
    node = next(each for each in result.model.graph if each.op_type == "MatMul")
    node.op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="not valid ONNX"):
        result.save(tmp_path / "out.onnx")
    assert names_in(tmp_path) == set()


def test_save_refuses_bad_targets(tmp_path: Path) -> None:
    result = optimize(large_model())
    with pytest.raises(ModelError, match="no folder"):
        result.save(tmp_path / "absent" / "out.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        result.save(tmp_path)


def test_size_limit_decides_on_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_io, "MAX_EMBEDDED_BYTES", 4096)
    out = tmp_path / "out.onnx"
    assert len(optimize(large_model()).save(out)) == 2
    with pytest.raises(ModelError, match="do not fit into one file"):
        optimize(large_model(), OptimizeOptions(external_data="never")).save(out)
    with pytest.raises(ModelError, match="do not fit into one message"):
        optimize(large_model()).to_proto()


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "model.onnx", tmp_path / "link.onnx"
    onnx.save(large_model(), real)
    link.symlink_to(real)
    optimize(link).save(link)
    assert link.is_symlink()
    assert_same_answers(large_model(), real)


def test_passes_have_one_name() -> None:
    with pytest.raises(ImportError, match=r"onnx_ternary\.graph_passes"):
        __import__("graph_passes")
