"""Many models in one call: which ones, where to, and what one failure does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.errors import ExitCode, ModelError
from onnx_ternary.options import OptimizeOptions
from tests.support.folders import files, write

ALL = OptimizeOptions(min_elements=0)


def test_folder_keeps_its_structure(tmp_path: Path) -> None:
    source, target = tmp_path / "models", tmp_path / "out"
    write(source / "a.onnx", source / "deep/er/b.onnx", source / ".cache/c.onnx")
    (source / "notes.txt").write_text("no model")
    done = onnx_ternary.convert_many([source], target, ALL, jobs=1)
    assert files(target) == {"a.onnx", "deep/er/b.onnx"}
    assert done.counts == {"converted": 2}
    assert [outcome.source.name for outcome in done.outcomes] == ["a.onnx", "b.onnx"]


def test_pattern_keeps_what_is_below_its_fixed_part(tmp_path: Path) -> None:
    write(tmp_path / "models/x/a.onnx", tmp_path / "models/y/a.onnx", tmp_path / "models/b.onnx")
    pattern = tmp_path / "models/*/*.onnx"
    onnx_ternary.convert_many([pattern], tmp_path / "out", ALL, jobs=1)
    assert files(tmp_path / "out") == {"x/a.onnx", "y/a.onnx"}


def test_default_target_is_beside_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    onnx_ternary.convert_many([tmp_path], None, ALL, jobs=1)
    assert files(tmp_path) == {"a.onnx", "a.ternary.onnx"}
    before = (tmp_path / "a.ternary.onnx").read_bytes()
    again = onnx_ternary.convert_many([tmp_path], None, ALL, jobs=1)
    assert files(tmp_path) == {"a.onnx", "a.ternary.onnx"}
    assert [outcome.source.name for outcome in again.outcomes] == ["a.onnx"]
    assert (tmp_path / "a.ternary.onnx").read_bytes() == before
    (tmp_path / "a.onnx").unlink()
    stamp = (tmp_path / "a.ternary.onnx").stat().st_mtime_ns
    alone = onnx_ternary.convert_many([tmp_path], None, ALL, jobs=1)
    assert alone.counts == {"already converted": 1}
    assert files(tmp_path) == {"a.ternary.onnx"}
    assert (tmp_path / "a.ternary.onnx").stat().st_mtime_ns == stamp


def test_target_inside_the_folder_is_no_source(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", tmp_path / "out/stale.onnx")
    onnx_ternary.convert_many([tmp_path], tmp_path / "out", ALL, jobs=1)
    assert files(tmp_path) == {"a.onnx", "out/a.onnx", "out/stale.onnx"}


def test_in_place(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", tmp_path / "b/c.onnx")
    sizes = {name: (tmp_path / name).stat().st_size for name in files(tmp_path)}
    first = onnx_ternary.convert_many([tmp_path], None, ALL, in_place=True, jobs=1)
    assert first.counts == {"converted": 2}
    contents = {name: (tmp_path / name).read_bytes() for name in sizes}
    again = onnx_ternary.convert_many([tmp_path], None, ALL, in_place=True, jobs=1)
    assert again.counts == {"already converted": 2}
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == contents


def test_a_model_is_replaced_in_place_only(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", tmp_path / "b/c.onnx")
    (tmp_path / "link").symlink_to(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("a.onnx", "b/c.onnx")}
    for target in (tmp_path, tmp_path / "link"):
        with pytest.raises(ValueError, match="is the model itself"):
            onnx_ternary.convert_many([tmp_path / "a.onnx", tmp_path / "b"], target, ALL)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    dry = onnx_ternary.convert_many([tmp_path / "a.onnx"], tmp_path, ALL, dry_run=True, jobs=1)
    assert dry.counts == {"converted": 1}


def test_the_same_model_twice_is_converted_once(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    (tmp_path / "link.onnx").symlink_to("a.onnx")
    sources = [tmp_path / "a.onnx", tmp_path, tmp_path / "link.onnx"]
    done = onnx_ternary.convert_many(sources, None, ALL, in_place=True, jobs=1)
    assert len(done.outcomes) == 1


def test_two_models_for_one_target_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x/a.onnx", tmp_path / "y/a.onnx")
    with pytest.raises(ValueError, match="would both be written to"):
        onnx_ternary.convert_many(
            [tmp_path / "x/a.onnx", tmp_path / "y/a.onnx"], tmp_path / "out", ALL
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_failure_does_not_hide_the_others(tmp_path: Path, jobs: int) -> None:
    write(tmp_path / "in/a.onnx", tmp_path / "in/z.onnx")
    (tmp_path / "in/bad").mkdir()
    (tmp_path / "in/bad/m.onnx").write_bytes(b"no model")
    report, summary = tmp_path / "report.json", tmp_path / "summary.md"
    done = onnx_ternary.convert_many(
        [tmp_path / "in", tmp_path / "missing.onnx"],
        tmp_path / "out",
        ALL,
        jobs=jobs,
        report_path=report,
        summary_path=summary,
    )
    assert done.exit_code == ExitCode.ERROR
    assert files(tmp_path / "out") == {"a.onnx", "z.onnx"}
    assert not (tmp_path / "out/bad").exists()
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(done.to_dict()))
    assert [model["exit_code"] for model in content["models"]] == [0, 1, 0, 1]
    assert "no file" in content["models"][3]["error"]
    assert "1, nothing was written" in summary.read_text(encoding="utf-8")


def test_a_folder_without_models_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = onnx_ternary.convert_many([tmp_path / "empty"], tmp_path / "out", jobs=1)
    assert done.exit_code == ExitCode.ERROR
    assert "no file that ends in .onnx" in done.outcomes[0].error
    assert not (tmp_path / "out").exists()


def test_progress_counts_finished_models(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", tmp_path / "b.onnx")
    seen: list[tuple[str, int, int]] = []
    onnx_ternary.convert_many(
        [tmp_path], None, ALL, jobs=1, progress=lambda *each: seen.append(each)
    )
    assert seen == [("", 0, 2), (str(tmp_path / "a.onnx"), 1, 2), (str(tmp_path / "b.onnx"), 2, 2)]


def test_a_report_that_would_replace_a_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="would replace the model"):
        onnx_ternary.convert_many([tmp_path], None, ALL, report_path=tmp_path / "a.ternary.onnx")
    for name in ("a.onnx.data", "a.ternary.onnx.data"):
        with pytest.raises(ModelError, match="would replace the model's external data"):
            onnx_ternary.convert_many([tmp_path], None, ALL, report_path=tmp_path / name)
    with pytest.raises(ModelError, match="would replace the report"):
        onnx_ternary.convert_many(
            [tmp_path],
            None,
            ALL,
            report_path=tmp_path / "report",
            summary_path=tmp_path / "report",
        )
    assert files(tmp_path) == {"a.onnx"}
