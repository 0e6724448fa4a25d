"""Converting files: what is written, and what must never be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from onnx_ternary import OptimizeOptions, convert
from onnx_ternary.errors import ModelError
from onnx_ternary.exporting.export import export_file
from onnx_ternary.model_files import tensors
from onnx_ternary.model_files.load import data_files, load
from onnx_ternary.model_files.save import ALIGNMENT, save
from onnx_ternary.model_files.targets import old_data
from tests.support.two_products import two_products, write_two_products

ALWAYS = OptimizeOptions(external_data="always")


def test_model_does_not_take_the_name_of_the_originals_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "new.onnx")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(ModelError, match="original model keeps tensors in it"):
        convert(path, tmp_path / "new.onnx", verify_result=False)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def states(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What replacing or writing a file would change, which reading it would not."""
    found = {each: each.lstat() for each in folder.iterdir()}
    return {
        each: (state.st_ino, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for each, state in found.items()
    }


@pytest.mark.parametrize("kind", ["data of the original", "another model's", "no model's", "link"])
def test_no_data_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path, new = tmp_path / "model.onnx", tmp_path / "new.onnx"
    there = tmp_path / "new.onnx.data"
    write_two_products(path, "new.onnx.data" if kind == "data of the original" else "weights")
    if kind == "another model's":
        write_two_products(tmp_path / "other.pb", "new.onnx.data")
    elif kind == "no model's":
        there.write_text("a thesis")
    elif kind == "link":
        there.symlink_to("nowhere")
    before = states(tmp_path)
    files = convert(path, new, ALWAYS, verify_result=False).files
    assert files == (new, tmp_path / "new.onnx.ca905831c966.data")
    after = states(tmp_path)
    assert {each: after[each] for each in before} == before
    load(new)
    # The same once more gives the same files.
    content = [each.read_bytes() for each in files]
    assert convert(path, new, ALWAYS, verify_result=False).files == files
    assert [each.read_bytes() for each in files] == content


@pytest.mark.parametrize("external_data", ["always", "never"])
def test_external_tensors_of_constant_nodes(tmp_path: Path, external_data: str) -> None:
    (tmp_path / "out").mkdir()
    path, out = tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"
    write_two_products(path, "weights.bin", constant_node=True)
    options = OptimizeOptions(external_data=external_data)  # type: ignore[arg-type] # parametrized
    converted = convert(path, out, options)
    assert converted.verification is not None
    assert converted.verification.passed
    assert [row.node for row in converted.report.rewrites] == ["first"]


def test_in_place_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "model.onnx.data")
    files = convert(path, path, ALWAYS).files
    assert files == (path, tmp_path / "model.onnx.ca905831c966.data")
    assert set(tmp_path.iterdir()) == set(files)
    # And back to the first name, since the second is in use now.
    assert convert(path, path, ALWAYS).files == (path,)


def test_interrupted_move_puts_the_old_data_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "model.onnx.data")
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


def test_interrupt_after_the_model_has_its_name_keeps_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, "model.onnx.data")
    replace = Path.replace

    def interrupt(source: Path, target: Path) -> Path:
        moved = replace(source, target)
        if Path(target) == path:
            raise SystemExit(143)
        return moved

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(SystemExit):
        convert(path, path, ALWAYS, verify_result=False)
    assert data_files(path) == {tmp_path / "model.onnx.ca905831c966.data"}
    assert not [each for each in tmp_path.iterdir() if each.is_dir()]


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("step", ["before", "after"])
def test_interrupted_first_move_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    replace = Path.replace

    def interrupt(source: Path, target: Path) -> Path:
        meant = Path(source).name == name and Path(target).name == name
        if meant and step == "before":
            raise SystemExit(143)
        moved = replace(source, target)
        if meant:
            raise SystemExit(143)
        return moved

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(SystemExit):
        convert(path, path, ALWAYS, verify_result=False)
    if (name, step) == ("model.onnx", "after"):
        assert data_files(path) == {tmp_path / "model.onnx.data"}
    else:
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("options", [OptimizeOptions(), OptimizeOptions(exclude=("*",)), ALWAYS])
def test_data_of_the_original_is_not_removed(tmp_path: Path, options: OptimizeOptions) -> None:
    target, source = tmp_path / "m.onnx", tmp_path / "src.onnx"
    write_two_products(target, "m.onnx.data")
    shutil.copyfile(target, source)
    before = (tmp_path / "m.onnx.data").read_bytes()
    convert(source, target, options)
    assert (tmp_path / "m.onnx.data").read_bytes() == before
    assert data_files(source) == {tmp_path / "m.onnx.data"}
    load(target)


def test_data_of_an_exported_model_is_not_removed(tmp_path: Path) -> None:
    original, target, source = (tmp_path / name for name in ("a.onnx", "m.onnx", "src.onnx"))
    onnx.save(two_products(), original)
    convert(original, target, ALWAYS, verify_result=False)
    shutil.copyfile(target, source)
    export_file(source, target, verify_result=False)
    assert data_files(source) == {tmp_path / "m.onnx.data"}
    assert not data_files(target)


@pytest.mark.parametrize("damaged", [False, True])
def test_data_another_model_reads_is_neither_removed_nor_replaced(
    tmp_path: Path, damaged: bool
) -> None:
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    write_two_products(path, "m.onnx.data")
    content = path.read_bytes()
    other.write_bytes(content[:-20] if damaged else content)
    before = (tmp_path / "m.onnx.data").read_bytes()
    convert(path, path, ALWAYS, verify_result=False)
    assert (tmp_path / "m.onnx.data").read_bytes() == before
    # Now the model reads another file, and the first name would be free but for the other model.
    save(load(path).model, path, external_data="always")
    assert (tmp_path / "m.onnx.data").read_bytes() == before


@pytest.mark.parametrize("name", ["copy.pb", "copy", "copy.json", "notes.txt"])
def test_data_read_under_any_name_is_not_removed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.onnx"
    write_two_products(path, "m.onnx.data")
    shutil.copyfile(path, tmp_path / name)
    before = (tmp_path / "m.onnx.data").read_bytes()
    convert(path, path, ALWAYS, verify_result=False)
    assert (tmp_path / "m.onnx.data").read_bytes() == before


def test_data_a_model_in_a_folder_above_reads_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "m.onnx"
    path.parent.mkdir(parents=True)
    write_two_products(path, "m.onnx.data")
    reader = onnx.load(path, load_external_data=False)
    for tensor in reader.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "a/b/m.onnx.data"
    onnx.save(reader, tmp_path / "above.onnx")
    before = (path.parent / "m.onnx.data").read_bytes()
    convert(path, path, ALWAYS, verify_result=False)
    assert (path.parent / "m.onnx.data").read_bytes() == before
    load(tmp_path / "above.onnx")


def test_data_with_a_second_name_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_two_products(path, "m.onnx.data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").hardlink_to(tmp_path / "m.onnx.data")
    onnx.save(two_products(), tmp_path / "source.onnx")
    convert(tmp_path / "source.onnx", path, verify_result=False)
    assert (tmp_path / "m.onnx.data").exists()


def test_data_of_a_folder_that_cannot_be_listed_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "m.onnx"
    path.parent.mkdir()
    write_two_products(path, "m.onnx.data")
    iterdir = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder == unlisted:
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    unlisted = path.parent
    assert old_data(path, None) == frozenset()
    unlisted = tmp_path
    assert old_data(path, None) == {path.parent / "m.onnx.data"}


def test_reports_that_name_a_data_file_do_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_two_products(path, "m.onnx.data")
    (tmp_path / "report.json").write_text("m.onnx.data")
    convert(path, path, verify_result=False)
    assert not (tmp_path / "m.onnx.data").exists()


def test_data_that_a_model_of_a_longer_name_reads_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_two_products(path, "m.onnx.data")
    write_two_products(tmp_path / "big_m.onnx", "big_m.onnx.data")
    convert(path, path, verify_result=False)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"m.onnx", "big_m.onnx", "big_m.onnx.data"}


def test_old_data_that_cannot_be_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    write_two_products(path, "m.onnx.data")
    unlink = Path.unlink

    def refuse(each: Path, missing_ok: bool = False) -> None:
        if each.name == "m.onnx.data":
            raise PermissionError(1, "Operation not permitted")
        unlink(each, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert convert(path, path, verify_result=False).files == (path,)
    assert not data_files(path)


def test_link_to_another_folder_takes_no_external_data(tmp_path: Path) -> None:
    source, folder = tmp_path / "source.onnx", tmp_path / "folder"
    folder.mkdir()
    onnx.save(two_products(), source)
    (tmp_path / "link.onnx").symlink_to(folder / "real.onnx")
    with pytest.raises(ModelError, match=r"is a link to .*real\.onnx"):
        convert(source, tmp_path / "link.onnx", ALWAYS, verify_result=False)
    assert list(folder.iterdir()) == []
    convert(source, tmp_path / "link.onnx")
    assert [each.name for each in folder.iterdir()] == ["real.onnx"]


def test_link_within_a_folder_takes_external_data(tmp_path: Path) -> None:
    source, link = tmp_path / "source.onnx", tmp_path / "link.onnx"
    onnx.save(two_products(), source)
    link.symlink_to("real.onnx")
    files = convert(source, link, ALWAYS).files
    assert files == (link, tmp_path / "real.onnx.data")
    assert data_files(link) == {tmp_path / "real.onnx.data"}


def test_report_directory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(two_products(), path)
    with pytest.raises(ModelError, match=r"report .* cannot be written: Is a directory"):
        convert(path, out, report_path=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["report_path", "summary_path", "annotations_path"])
def test_a_missing_folder_of_a_report_is_named_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    path, out, absent = tmp_path / "model.onnx", tmp_path / "out.onnx", tmp_path / "absent"
    onnx.save(two_products(), path)
    expected = f"cannot be written: there is no folder '{re.escape(str(absent))}'"
    with pytest.raises(ModelError, match=expected):
        convert(path, out, **{name: absent / "file"})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [path]


def test_large_external_data_stays_external(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_ternary.conversion.optimize.MAX_JOINED_BYTES", 0)
    path = tmp_path / "model.onnx"
    write_two_products(path, "weights.bin")
    files = convert(path, tmp_path / "out.onnx").files
    assert [each.name for each in files] == ["out.onnx", "out.onnx.data"]
    for tensor in tensors.external_tensors(load(files[0]).model):
        assert tensor.nbytes <= ALIGNMENT or tensor.offset % ALIGNMENT == 0
