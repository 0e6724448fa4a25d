"""Many models in one call: which ones, where to, how many at a time, what one failure does."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import onnx_ternary
from onnx_ternary import batch
from onnx_ternary._memory import available_memory
from onnx_ternary.errors import ExitCode, ModelError
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.outcome import Outcome
from tests.catalogue.case import simple, ternary

ALL = OptimizeOptions(min_elements=0)


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(simple(ternary()), path)


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


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


@pytest.mark.parametrize("in_place", [True, False])
def test_in_place(tmp_path: Path, in_place: bool) -> None:
    write(tmp_path / "a.onnx", tmp_path / "b/c.onnx")
    sizes = {name: (tmp_path / name).stat().st_size for name in files(tmp_path)}
    target = None if in_place else tmp_path
    first = onnx_ternary.convert_many([tmp_path], target, ALL, in_place=in_place, jobs=1)
    assert first.counts == {"converted": 2}
    contents = {name: (tmp_path / name).read_bytes() for name in sizes}
    again = onnx_ternary.convert_many([tmp_path], target, ALL, in_place=in_place, jobs=1)
    assert again.counts == {"already converted": 2}
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == contents


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
    with pytest.raises(ModelError, match="would replace the report"):
        onnx_ternary.convert_many(
            [tmp_path],
            None,
            ALL,
            report_path=tmp_path / "report",
            summary_path=tmp_path / "report",
        )
    assert files(tmp_path) == {"a.onnx"}


def task(source: Path, need: int = 0) -> batch._Task:
    requirements = onnx_ternary.Requirements()
    return batch._Task(
        source, source.with_suffix(".out.onnx"), ALL, requirements, None, None, (), need
    )


def die_or_name(task: batch._Task) -> Outcome:
    """Stands for a conversion in a worker; one kind of model kills its process."""
    if "killer" in task.source.name:
        assert task.target is not None
        task.target.with_name(f".{task.target.name}.half").mkdir(exist_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(task.source, task.target, None)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_that_dies_takes_no_other_model_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_convert_one", die_or_name)
    names = ["a", "killer", "b", "c", "d"]
    finished: dict[str, Outcome] = {}
    batch._convert_all(
        [task(tmp_path / f"{name}.onnx") for name in names],
        2,
        lambda outcome: finished.update({outcome.source.stem: outcome}),
    )
    assert set(finished) == set(names)
    assert [name for name in names if finished[name].exit_code] == ["killer"]
    assert "died" in finished["killer"].error
    assert list(tmp_path.iterdir()) == []


def test_staging_folders_of_a_link_are_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.out.onnx").symlink_to(tmp_path / "real.onnx")
    (tmp_path / ".real.onnx.half").mkdir()
    assert batch._staging_folders(task(tmp_path / "links/a.onnx")) == {tmp_path / ".real.onnx.half"}


def die_after_writing(task: batch._Task) -> Outcome:
    """Stands for a dry run whose process is killed."""
    folder = Path(tempfile.mkdtemp())
    task.source.write_text(str(folder))
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(task.source, task.target, None)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_dry_run_that_dies_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_convert_one", die_after_writing)
    tasks = [replace(task(tmp_path / name), target=None) for name in ("a.onnx", "b.onnx")]
    finished: list[Outcome] = []
    batch._convert_all(tasks, 2, finished.append)
    assert [outcome.exit_code for outcome in finished] == [ExitCode.ERROR] * 2
    for each in tasks:
        assert not Path(each.source.read_text()).exists()


def overlap(task: batch._Task) -> Outcome:
    """Says in its error how many others it saw running."""
    marker = task.source.with_suffix(".running")
    marker.touch()
    seen = 1
    for _ in range(100):
        seen = max(seen, len(list(marker.parent.glob("*.running"))))
        if seen > 1:
            break
        signal.sigtimedwait([], 0.01)
    signal.sigtimedwait([], 0.3)
    marker.unlink()
    return Outcome(task.source, task.target, None, error=str(seen))


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs sigtimedwait")
@pytest.mark.parametrize(("need", "expected"), [(10, "2"), (60, "1")])
def test_no_more_models_at_a_time_than_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: int, expected: str
) -> None:
    monkeypatch.setattr(batch, "_convert_one", overlap)
    monkeypatch.setattr(batch, "available_memory", lambda: 100)
    finished: list[Outcome] = []
    tasks = [task(tmp_path / f"{name}.onnx", need) for name in "abc"]
    batch._convert_all(tasks, 2, finished.append)
    assert max(outcome.error for outcome in finished) == expected


def test_need_grows_with_the_model(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size
    assert batch._need(tmp_path / "a.onnx") == 200_000_000 + 8 * size
    assert batch._need(tmp_path / "missing.onnx") == 200_000_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n"}, 1_024_000),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory.max": "500000\n",
                "sys/fs/cgroup/memory.current": "200000\n",
            },
            300_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "200000\n",
            },
            1_024_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
            },
            0,
        ),
    ],
    ids=["no limit", "cgroup v2", "cgroup v2 without a limit", "cgroup v1, used up"],
)
def test_available_memory(tmp_path: Path, content: dict[str, str], expected: int) -> None:
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == expected


def test_available_memory_of_this_machine() -> None:
    memory = available_memory()
    assert memory is None or memory > 1_000_000
