"""Models are written whole or not at all, with and without external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files import load
from onnx_ternary.model_files.save import save
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model
from tests.support.two_products import (
    assert_same_answers,
    names_in,
    outputs,
    two_products,
    write_two_products,
)


def test_external_model_becomes_one_file(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    write_two_products(path, "weights.bin")
    assert optimize(path).save(out) == (out,)
    assert names_in(out.parent) == {"small.onnx"}
    assert_same_answers(path, out)


def test_external_data_is_aligned(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = optimize(two_products(), OptimizeOptions(external_data="always"))
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
    assert_same_answers(two_products(), out)


def test_convert_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    path.chmod(0o640)
    optimize(path).save(path)
    assert names_in(tmp_path) == {"model.onnx"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert_same_answers(two_products(), path)


def test_convert_in_place_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        two_products(),
        path,
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    before = outputs(path)
    result = optimize(path, OptimizeOptions(external_data="always"))
    result.save(path)
    assert names_in(tmp_path) == {"model.onnx", "model.onnx.ca905831c966.data"}
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
    result = optimize(two_products(), OptimizeOptions(external_data="always"))
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
    result = optimize(two_products())
    node = next(each for each in result.model.graph if each.op_type == "MatMul")
    node.op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="not valid ONNX"):
        result.save(tmp_path / "out.onnx")
    assert names_in(tmp_path) == set()


def test_size_limit_decides_on_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_ternary.model_files.save.MAX_EMBEDDED_BYTES", 4096)
    out = tmp_path / "out.onnx"
    assert len(optimize(two_products()).save(out)) == 2
    with pytest.raises(ModelError, match="do not fit into one file"):
        optimize(two_products(), OptimizeOptions(external_data="never")).save(out)
    with pytest.raises(ModelError, match="do not fit into one message"):
        optimize(two_products()).to_proto()


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "model.onnx", tmp_path / "link.onnx"
    onnx.save(two_products(), real)
    link.symlink_to(real)
    optimize(link).save(link)
    assert link.is_symlink()
    assert_same_answers(two_products(), real)


@pytest.mark.parametrize("relu_inputs", [1, 2])
def test_operators_of_onnxruntime_hide_no_other_fault(tmp_path: Path, relu_inputs: int) -> None:
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["h"], axis=-1),
        helper.make_node("Relu", ["h", "w"][:relu_inputs], ["y"], name="relu"),
    ]
    proto = model([matmul()], {"w": np.ones((48,), np.float32)})
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    loaded = load.from_proto(proto)
    if relu_inputs == 1:
        save(loaded, tmp_path / "model.onnx")
        assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
        return
    with pytest.raises(ModelError, match=r"not valid ONNX: .*relu"):
        save(loaded, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
