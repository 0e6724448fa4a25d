"""Converting files: what is written, and what must never be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_ternary import OptimizeOptions, convert, model_io, optimize
from onnx_ternary.errors import ModelError
from tests.models import matmul, model, simple, ternary

ALWAYS = OptimizeOptions(external_data="always")


def two_products(*, constant_node: bool = False) -> onnx.ModelProto:
    other = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [matmul("x", "w", "h", "first"), matmul("h", "v", "y", "second")]
    tensors = {"w": ternary(64, 64), "v": other}
    if constant_node:
        value = numpy_helper.from_array(tensors.pop("v"), "value")
        nodes.insert(0, helper.make_node("Constant", [], ["v"], name="constant", value=value))
    return model(nodes, tensors, x_shape=("batch", 64))


def write(path: Path, data: str, *, constant_node: bool = False) -> None:
    onnx.save(
        two_products(constant_node=constant_node),
        path,
        save_as_external_data=True,
        location=data,
        size_threshold=0,
        convert_attribute=True,
    )


@pytest.mark.parametrize(
    ("data", "target", "options"),
    [
        ("new.onnx.data", "new.onnx", ALWAYS),
        ("new.onnx", "new.onnx", OptimizeOptions()),
        ("new.onnx.data", "new.onnx", OptimizeOptions(exclude=("*",))),
    ],
    ids=["data file", "model file", "copy"],
)
def test_data_of_the_original_is_not_replaced(
    tmp_path: Path, data: str, target: str, options: OptimizeOptions
) -> None:
    path = tmp_path / "model.onnx"
    write(path, data)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(ModelError, match="original model keeps tensors in it"):
        convert(path, tmp_path / target, options, verify_result=False)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("external_data", ["always", "never"])
def test_external_tensors_of_constant_nodes(tmp_path: Path, external_data: str) -> None:
    (tmp_path / "out").mkdir()
    path, out = tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"
    write(path, "weights.bin", constant_node=True)
    options = OptimizeOptions(external_data=external_data)  # type: ignore[arg-type] # parametrized
    converted = convert(path, out, options)
    assert converted.verification is not None
    assert converted.verification.passed
    assert [row.node for row in converted.report.rewrites] == ["first"]


def test_in_place_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, "model.onnx.data")
    files = convert(path, path, ALWAYS).files
    assert files == (path, tmp_path / "model.onnx.ternary.data")
    assert set(tmp_path.iterdir()) == set(files)
    # And back to the first name, since the second is in use now.
    assert convert(path, path, ALWAYS).files == (path,)


def test_interrupted_move_puts_the_old_data_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    write(path, "model.onnx.data")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    replace = Path.replace

    def interrupt(source: Path, target: Path) -> Path:
        if Path(target) == path:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(path, path, ALWAYS, verify_result=False)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_report_directory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(two_products(), path)
    with pytest.raises(ModelError, match=r"report .* cannot be written: Is a directory"):
        convert(path, out, report_path=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_file_bytes_counts_every_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, "weights.bin")
    assert model_io.file_bytes(path) == sum(each.stat().st_size for each in tmp_path.iterdir())


def test_large_external_data_stays_external(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_io, "MAX_JOINED_BYTES", 0)
    path = tmp_path / "model.onnx"
    write(path, "weights.bin")
    files = convert(path, tmp_path / "out.onnx").files
    assert [each.name for each in files] == ["out.onnx", "out.onnx.data"]
    for tensor in model_io.external_tensors(model_io.load(files[0])):
        assert tensor.nbytes <= model_io.ALIGNMENT or tensor.offset % model_io.ALIGNMENT == 0


def test_spooled_conversion_is_the_one_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    spool = tmp_path / "spool"
    spool.mkdir()
    onnx.save(simple(ternary(512, 512), x_shape=("batch", 512)), path)
    kept = optimize(path).to_proto()
    spooled = optimize(path, spool=model_io.Spool(spool))
    assert any(model_io.external_tensors(spooled.model))
    assert spooled.to_proto() == kept


@pytest.mark.parametrize("relu_inputs", [1, 2])
def test_operators_of_onnxruntime_hide_no_other_fault(tmp_path: Path, relu_inputs: int) -> None:
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["h"], axis=-1),
        helper.make_node("Relu", ["h", "w"][:relu_inputs], ["y"], name="relu"),
    ]
    proto = model([matmul()], {"w": np.ones((48,), np.float32)})
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    loaded = model_io.from_proto(proto)
    if relu_inputs == 1:
        model_io.save(loaded, tmp_path / "model.onnx")
        assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
        return
    with pytest.raises(ModelError, match=r"not valid ONNX: .*relu"):
        model_io.save(loaded, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
