"""What ONNX Runtime opens is read, through whatever links; what it refuses is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary import OptimizeOptions, convert, verify
from onnx_ternary.errors import ModelError
from onnx_ternary.exporting.export import export_file
from onnx_ternary.model_files.load import any_model, load, why_invalid
from onnx_ternary.model_files.tensors import constant_tensors

W = np.sign(np.random.default_rng(0).standard_normal((64, 32))).astype(np.float32)
HAS_THE_RULE = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)


def message(location: str, **place: str) -> bytes:
    """A model that keeps its weight at a location."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [helper.make_tensor_value_info("x", 1, ("m", 64))],
        [helper.make_tensor_value_info("y", 1, ("m", 32))],
        [tensor],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


# Name, whether it is opened, the model's path, and what lies where: "model:LOCATION", "data",
# "-> target" for a link, "= file" for a hard link; no entry is a folder.
LAYOUTS: tuple[tuple[str, bool, str, dict[str, str]], ...] = (
    ("plain", True, "m", {"m": "model:d", "d": "data"}),
    ("subfolder", True, "m", {"m": "model:sub/d", "sub/d": "data"}),
    ("link inside", True, "m", {"m": "model:d", "e": "data", "f": "-> e", "d": "-> f"}),
    ("link outside", False, "s/m", {"s/m": "model:d", "o/e": "data", "s/d": "-> ../o/e"}),
    (
        "download cache",
        True,
        "s/0/onnx/m",
        {
            "blobs/a": "model:d",
            "blobs/b": "data",
            "s/0/onnx/m": "-> ../../../blobs/a",
            "s/0/onnx/d": "-> ../../../blobs/b",
        },
    ),
    (
        "below the blobs",
        True,
        "s/m",
        {"b/a": "model:d", "b/x/b": "data", "s/m": "-> ../b/a", "s/d": "-> ../b/x/b"},
    ),
    (
        "chain of links",
        True,
        "s/m",
        {
            "r/a": "model:d",
            "r/d": "data",
            "q/m": "-> ../r/a",
            "s/m": "-> ../q/m",
            "s/d": "-> ../r/d",
        },
    ),
    (
        "beside the middle of a chain",
        False,
        "s/m",
        {
            "r/a": "model:d",
            "q/d": "data",
            "q/m": "-> ../r/a",
            "s/m": "-> ../q/m",
            "s/d": "-> ../q/d",
        },
    ),
    (
        "linked model, data only there",
        False,
        "s/m",
        {"r/m": "model:d", "r/d": "data", "s/m": "-> ../r/m"},
    ),
    (
        "linked model, data here",
        True,
        "s/m",
        {"r/m": "model:d", "s/d": "data", "s/m": "-> ../r/m"},
    ),
    (
        "linked model, data elsewhere",
        False,
        "s/m",
        {"r/m": "model:d", "o/d": "data", "s/m": "-> ../r/m", "s/d": "-> ../o/d"},
    ),
    ("linked folder", True, "s/m", {"r/m": "model:d", "r/d": "data", "s": "-> r"}),
    (
        "linked folder of data",
        False,
        "s/m",
        {"s/m": "model:w/d", "o/d": "data", "s/w": "-> ../o"},
    ),
    ("hard link", True, "s/m", {"s/m": "model:d", "o/e": "data", "s/d": "= o/e"}),
    ("dots inside", True, "m", {"m": "model:sub/../d", "sub/x": "data", "d": "data"}),
    ("dots through nothing", False, "m", {"m": "model:sub/../d", "d": "data"}),
    ("dots out and in", True, "s/m", {"s/m": "model:../s/d", "s/d": "data"}),
    ("dots out", False, "s/m", {"s/m": "model:../d", "d": "data"}),
    (
        "dots to the blobs",
        True,
        "s/m",
        {"b/a": "model:../b/d", "b/d": "data", "s/m": "-> ../b/a"},
    ),
    (
        "like the folder's name",
        False,
        "s/m",
        {"s/m": "model:d", "s2/d": "data", "s/d": "-> ../s2/d"},
    ),
    ("missing", False, "m", {"m": "model:d"}),
    ("link to nothing", False, "m", {"m": "model:d", "d": "-> nowhere"}),
    ("circle", False, "m", {"m": "model:d", "d": "-> d"}),
    ("folder", False, "m", {"m": "model:d", "d/x": "data"}),
    ("device", False, "m", {"m": "model:d", "d": "-> /dev/zero"}),
)


def lay_out(folder: Path, files: dict[str, str]) -> None:
    for name, what in files.items():
        kind, _, argument = what.partition(" ")
        if kind == "->":
            link(folder / name, argument)
        elif kind == "=":
            os.link(folder / argument, folder / name)
        elif what == "data":
            put(folder / name, W.tobytes())
        else:
            put(folder / name, message(what.removeprefix("model:")))


def opens(open_model: Callable[[], object]) -> bool:
    try:
        open_model()
    except Exception:  # onnxruntime's errors share no base
        return False
    return True


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("opened", "model", "files"), [pytest.param(*each[1:], id=each[0]) for each in LAYOUTS]
)
def test_rule_is_the_one_of_onnxruntime(
    tmp_path: Path, opened: bool, model: str, files: dict[str, str]
) -> None:
    lay_out(tmp_path, files)
    if HAS_THE_RULE:
        assert opens(lambda: session(tmp_path / model)) == opened
    if not opened:
        with pytest.raises(ModelError, match="tensor 'w' in"):
            load(tmp_path / model)
        return
    (tensor,) = constant_tensors(load(tmp_path / model).model)
    np.testing.assert_array_equal(tensor.numpy(), W)


@pytest.mark.parametrize(
    ("place", "opened"),
    [
        ({}, True),
        ({"length": "0"}, True),
        ({"offset": "1"}, True),
        ({"length": str(W.nbytes + 1)}, False),
        ({"length": str(W.nbytes - 1)}, False),
        ({"offset": "2"}, False),
        ({"offset": "-1"}, False),
    ],
    ids=str,
)
def test_place_in_the_file(tmp_path: Path, place: dict[str, str], opened: bool) -> None:
    put(tmp_path / "m", message("d", **place))
    put(tmp_path / "d", W.tobytes() + b"\0")
    if HAS_THE_RULE:
        assert opens(lambda: session(tmp_path / "m")) == opened
    assert opens(lambda: load(tmp_path / "m")) == opened


def test_message_in_memory_has_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "here" / "d", W.tobytes())
    put(tmp_path / "outside", W.tobytes())
    link(tmp_path / "here" / "link", "../outside")
    monkeypatch.chdir(tmp_path / "here")
    (tensor,) = constant_tensors(any_model(message("d")))
    np.testing.assert_array_equal(tensor.numpy(), W)
    for location in ("link", "../outside", str(tmp_path / "here" / "d")):
        with pytest.raises(ModelError, match="tensor 'w' in"):
            any_model(message(location))
        with pytest.raises(ModelError, match="tensor 'w' in"):
            any_model(onnx.ModelProto.FromString(message(location)))


@pytest.mark.parametrize("name", ["download cache", "hard link", "linked folder"])
def test_every_command_follows_the_links(tmp_path: Path, name: str) -> None:
    ((model, files),) = [each[2:] for each in LAYOUTS if each[0] == name]
    lay_out(tmp_path, files)
    options = OptimizeOptions(external_data="always", min_elements=0)
    converted = tmp_path / "converted.onnx"
    done = convert(tmp_path / model, converted, options)
    assert done.verification is not None
    assert done.verification.passed
    # Read through the same links.
    data = converted.with_name("converted.onnx.data")
    linked = tmp_path / "linked"
    link(linked / "blobs" / "m", str(converted))
    link(linked / "m", "blobs/m")
    link(linked / data.name, str(data))
    assert verify(tmp_path / model, linked / "m").passed
    back = export_file(linked / "m", tmp_path / "back.onnx", to="float")
    assert back.verification is not None
    (tensor,) = onnx.load(tmp_path / "back.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), W)


def test_data_behind_links_is_not_why_a_model_is_invalid(tmp_path: Path) -> None:
    ((model, files),) = [each[2:] for each in LAYOUTS if each[0] == "download cache"]
    lay_out(tmp_path, files)
    assert why_invalid(tmp_path / model) == ""
