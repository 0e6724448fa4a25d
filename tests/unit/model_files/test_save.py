"""Models are written whole or not at all, with and without external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import external_data_helper, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files import load
from onnx_ternary.model_files.external_data import external_protos, location_of
from onnx_ternary.model_files.save import save
from onnx_ternary.model_files.tensors import constant_tensors
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


def write_constants(folder: Path) -> dict[str, np.ndarray]:
    """A product, and Constant nodes with external data in graph, subgraph and function.

    Returns:
        The constants by the names of their tensors.
    """
    rng = np.random.default_rng(3)
    names = ("main", "inner", "called", "small")
    arrays = {name: rng.standard_normal((40, 16)).astype(np.float32) for name in names[:3]}
    arrays["small"] = np.array([2.0], np.float32)
    places: dict[str, int] = {}
    with (folder / "tables").open("wb") as file:
        for name, array in arrays.items():
            places[name] = file.tell()
            file.write(array.tobytes())

    def constant(name: str) -> onnx.NodeProto:
        tensor = onnx.TensorProto(name=name, data_type=1, dims=arrays[name].shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "tables"), ("offset", str(places[name]))):
            tensor.external_data.add(key=key, value=value)
        return helper.make_node("Constant", [], [name], value=tensor)

    opset = [helper.make_opsetid("", 17)]
    lookup = helper.make_node("Gather", ["called", "at"], ["row"])
    function = helper.make_function(
        "d", "Row", ["at"], ["row"], [constant("called"), lookup], opset
    )
    taken = helper.make_tensor_value_info("taken", 1, None)
    branch = helper.make_graph(
        [constant("inner"), helper.make_node("Gather", ["inner", "ids"], ["taken"])],
        "branch",
        [],
        [taken],
    )
    nodes = [
        constant("main"),
        constant("small"),
        helper.make_node("Gather", ["main", "ids"], ["a"]),
        helper.make_node("If", ["flag"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("Row", ["ids"], ["c"], domain="d"),
        helper.make_node("Sum", ["a", "b", "c"], ["sum"]),
        helper.make_node("Mul", ["sum", "small"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    w = np.sign(rng.standard_normal((16, 8))).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("ids", 7, ("n",)),
            helper.make_tensor_value_info("flag", 9, ()),
        ],
        [helper.make_tensor_value_info("y", 1, ("n", 8))],
        [numpy_helper.from_array(w, "w")],
    )
    made = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[*opset, helper.make_opsetid("d", 1)],
        ir_version=8,
    )
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    return arrays


def check_constants(folder: Path, out: Path, arrays: dict[str, np.ndarray]) -> None:
    """The converted model has every constant, and gives the original's answers."""
    found = {tensor.name: tensor for tensor in constant_tensors(load.load(out).model)}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    feeds = {"ids": np.array([0, 39, 7]), "flag": np.array(True)}
    expected, answers = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (folder / "model.onnx", out)
    )
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "named by digest"])
def test_external_constants_stay_external(tmp_path: Path, blocked: bool) -> None:
    arrays = write_constants(tmp_path)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "out.onnx"
    if blocked:
        out.with_name("out.onnx.data").write_bytes(b"of another model")
    options = OptimizeOptions(external_data="always", min_elements=0)
    result = optimize(tmp_path / "model.onnx", options)
    assert len(result.report.rewrites) == 1
    _, data = result.save(out)
    proto = onnx.load(out, load_external_data=False)
    stored = {tensor.name: location_of(tensor) for tensor in external_protos(proto)}
    large = {name for name in arrays if name != "small"}
    assert {name: stored[name] for name in large} == dict.fromkeys(large, data.name)
    assert "small" not in stored
    names = [*(each.name for each in proto.graph.initializer), *names_in(out.parent)]
    assert not any("attribute" in name for name in names)
    check_constants(tmp_path, out, arrays)
    # Converted again in place: the data is read and replaced at once.
    assert optimize(out, options).save(out)[0] == out
    check_constants(tmp_path, out, arrays)


def test_constants_that_do_not_fit_into_one_file_stay_external(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_constants(tmp_path)
    one = tmp_path / "one.onnx"
    assert optimize(tmp_path / "model.onnx", OptimizeOptions(min_elements=0)).save(one) == (one,)
    check_constants(tmp_path, one, arrays)
    monkeypatch.setattr("onnx_ternary.model_files.save.MAX_EMBEDDED_BYTES", 5_000)
    two = tmp_path / "two.onnx"
    optimize(tmp_path / "model.onnx", OptimizeOptions(min_elements=0)).save(two)
    assert two.stat().st_size < one.stat().st_size - arrays["main"].nbytes
    check_constants(tmp_path, two, arrays)
