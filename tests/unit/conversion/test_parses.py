"""A model of 2 GB takes seconds and 2 GB to parse: each file is parsed once, whoever asks about it.

onnxruntime and onnx.checker read files by themselves and are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from onnx_ternary import OptimizeOptions, convert, convert_many, export_file, optimize
from onnx_ternary.conversion.worker_pool import Task, convert_one, memory_needed
from onnx_ternary.model_files.load import load
from onnx_ternary.reports.outcome import Outcome
from tests.support.parses import count_parses
from tests.support.two_products import two_products, write_two_products

ALWAYS = OptimizeOptions(external_data="always")


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    return count_parses(monkeypatch)


def test_every_way_to_parse_is_counted(tmp_path: Path, parses: Counter[bytes]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    ways: tuple[Callable[[], object], ...] = (
        lambda: onnx.load(path),
        lambda: onnx.load_model_from_string(path.read_bytes()),
        lambda: load(path),
        lambda: optimize(path.read_bytes()),
    )
    for count, way in enumerate(ways, 1):
        way()
        assert parses[path.read_bytes()] == count


@pytest.mark.parametrize("in_place", [False, True], ids=["new file", "in place"])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_a_conversion_parses_the_source_once_and_the_result_once(
    tmp_path: Path, parses: Counter[bytes], external: bool, in_place: bool
) -> None:
    path = tmp_path / "model.onnx"
    if external:
        write_two_products(path, "model.onnx.data")
    else:
        onnx.save(two_products(), path)
    source, target = path.read_bytes(), path if in_place else tmp_path / "out.onnx"
    done = convert(path, target, ALWAYS if external else None)
    assert done.verification is not None
    assert done.report.rewrites
    assert parses[source] == 1
    assert parses[target.read_bytes()] == 1


def test_without_verification_the_result_is_not_parsed(
    tmp_path: Path, parses: Counter[bytes]
) -> None:
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    write_two_products(path, "weights.bin")
    done = convert(path, target, ALWAYS, verify_result=False)
    assert done.bytes_after == sum(each.stat().st_size for each in done.files)
    assert parses[target.read_bytes()] == 0
    assert parses[path.read_bytes()] == 1


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_a_copy_parses_the_source_once(
    tmp_path: Path, parses: Counter[bytes], external: bool
) -> None:
    path = tmp_path / "model.onnx"
    if external:
        write_two_products(path, "weights.bin")
    else:
        onnx.save(two_products(), path)
    convert(path, tmp_path / "out.onnx", OptimizeOptions(exclude=("*",)))
    assert parses[path.read_bytes()] == 1


def test_a_batch_parses_each_source_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parses: Counter[bytes]
) -> None:
    """Told to run two at a time, so that it asks what memory each will take."""

    def convert_here(tasks: Sequence[Task], jobs: int, finish: Callable[[Outcome], None]) -> None:
        assert jobs == 2
        assert all(task.need > memory_needed(Path("missing")) for task in tasks)
        for task in tasks:
            finish(convert_one(task))

    monkeypatch.setattr("onnx_ternary.conversion.batch.convert_all", convert_here)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    onnx.save(two_products(), paths[0])
    write_two_products(paths[1], "weights.bin")
    batch = convert_many(paths, tmp_path / "out", ALWAYS, jobs=2)
    assert batch.exit_code == 0
    assert [parses[path.read_bytes()] for path in paths] == [1, 1]


@pytest.mark.parametrize("in_place", [False, True], ids=["new file", "in place"])
def test_an_export_parses_the_source_once_and_the_result_once(
    tmp_path: Path, parses: Counter[bytes], in_place: bool
) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "model.onnx.data")
    convert(path, path, ALWAYS)
    source, target = path.read_bytes(), path if in_place else tmp_path / "out.onnx"
    parses.clear()
    done = export_file(path, target, external_data="always")
    assert done.verification is not None
    assert parses[source] == 1
    assert parses[target.read_bytes()] == 1


def test_conversion_leaves_the_message_it_read_as_it_is(tmp_path: Path) -> None:
    """Verification takes the original from it."""
    path = tmp_path / "model.onnx"
    onnx.save(two_products(constant_node=True), path)
    file = load(path)
    assert optimize(file.model).report.rewrites  # a clone, whose tensors are those of the message
    assert file.proto == onnx.ModelProto.FromString(path.read_bytes())
