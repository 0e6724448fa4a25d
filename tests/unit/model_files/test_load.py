"""Files that are no model, or not all of one, are refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files import load
from tests.catalogue.case import simple, ternary
from tests.support.two_products import ALL, two_products, write_two_products


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x08"])
def test_load_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        optimize(path)


def test_load_refuses_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = two_products().SerializeToString()
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
    write_two_products(path, "weights.bin")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"weights\.bin.*cut short"):
        optimize(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"tensor 'w' in .*weights\.bin"):
        optimize(path)


def test_message_without_its_external_data(tmp_path: Path) -> None:
    write_two_products(tmp_path / "model.onnx", "weights.bin")
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    with pytest.raises(ModelError, match=r"'w' in 'weights\.bin', which cannot be read"):
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


def test_file_bytes_counts_every_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "weights.bin")
    assert load.file_bytes(path) == sum(each.stat().st_size for each in tmp_path.iterdir())


def external(location: str, dims: tuple[int, ...] = (64, 64)) -> onnx.ModelProto:
    """A model whose weight is in another place."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", 1, (1, dims[0]))],
        [helper.make_tensor_value_info("y", 1, (1, dims[1]))],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dims", [(64, 64), (0, 64)], ids=str)
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("pipe", "not an ordinary file"),
        ("folder", "not an ordinary file"),
        ("../outside", "outside the model's folder"),
        ("link", "outside the model's folder"),
        ("/dev/zero", "an absolute path"),
        ("device", "outside the model's folder"),
        ("circle", "circle"),
        ("missing", "cannot be read: No such file"),
        ("a\0b", "no name of a file"),
        ("", "no name of a file"),
    ],
)
def test_data_is_judged_before_it_is_opened(
    tmp_path: Path, location: str, reason: str, dims: tuple[int, ...]
) -> None:
    folder = tmp_path / "models"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(bytes(64 * 64 * 4))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    path = folder / "model.onnx"
    path.write_bytes(external(location, dims).SerializeToString())
    with pytest.raises(ModelError, match=reason):
        load.load(path)


def test_data_beside_what_a_model_links_to(tmp_path: Path) -> None:
    """Download caches keep files under other names and link to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(external("weights").SerializeToString())
    (blobs / "2").write_bytes(bytes(64 * 64 * 4))
    (snapshot / "model.onnx").symlink_to(blobs / "1")
    (snapshot / "weights").symlink_to(blobs / "2")
    found = load.load(snapshot / "model.onnx")
    assert found.data_files == {blobs / "2"}


@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_load_opens_ordinary_files_only(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ModelError, match=kind):
        load.load(tmp_path / kind)


def sparse_constant() -> onnx.NodeProto:
    values = helper.make_tensor("w", 1, (2,), [1.0, -1.0])
    places = helper.make_tensor("places", 7, (2,), [3, 70])
    sparse = helper.make_sparse_tensor(values, places, (64, 64))
    return helper.make_node("Constant", [], ["w"], sparse_value=sparse)


@pytest.mark.parametrize("where", ["graph", "subgraph", "function", "initializer"])
def test_sparse_tensors_are_refused_in_a_line(where: str) -> None:
    model, constant = external("unused"), sparse_constant()
    model.graph.ClearField("initializer")
    if where == "graph":
        model.graph.node.insert(0, constant)
    elif where == "subgraph":
        inner = helper.make_graph([constant], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["x"], [], then_branch=inner))
    elif where == "function":
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("d", "f", [], [], [constant], opset))
    else:
        model.graph.sparse_initializer.append(constant.attribute[0].sparse_tensor)
    with pytest.raises(ModelError, match=r"has sparse .*; store them as dense ones") as caught:
        load.from_proto(model)
    assert len(str(caught.value)) < 120


def test_messages_do_not_quote_tensors() -> None:
    """onnx_ir quotes the node, its tensors as escaped bytes."""
    damaged = simple(ternary())
    constant = helper.make_node("Constant", [], ["c"], value=damaged.graph.initializer[0])
    constant.attribute[0].type = 12  # no type of ONNX's is written so
    damaged.graph.node.append(constant)
    with pytest.raises(ModelError, match="not a valid ONNX model") as caught:
        load.from_bytes(damaged.SerializeToString())
    assert len(str(caught.value)) < 400
    assert "raw_data" not in str(caught.value)
