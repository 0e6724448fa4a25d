"""Conversions in processes of their own: how many at a time, and what the death of one does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from onnx_ternary import _machine
from onnx_ternary.conversion import worker_pool
from onnx_ternary.conversion.settings import ConversionSettings
from onnx_ternary.errors import ExitCode
from onnx_ternary.model_files.targets import locked
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.outcome import Outcome
from tests.support.folders import write

ALL = OptimizeOptions(min_elements=0)


@pytest.fixture(autouse=True)
def processes_that_start_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked from one that has imported everything; tests/e2e/test_cli.py takes the real ones."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        monkeypatch.setattr(worker_pool, "get_context", lambda method: context)


def task(source: Path, need: int = 0) -> worker_pool.Task:
    return worker_pool.Task(source, source.with_suffix(".out.onnx"), ConversionSettings(ALL), need)


def die_or_name(task: worker_pool.Task) -> Outcome:
    """Stand for a conversion in a worker; one kind of model kills its process."""
    if "killer" in task.source.name:
        assert task.target is not None
        with locked(task.target):
            task.target.with_name(f".{task.target.name}.half").mkdir(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(task.source, task.target, None)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_that_dies_takes_no_other_model_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_ternary.conversion.worker_pool.convert_one", die_or_name)
    names = ["a", "killer", "b", "c", "d"]
    finished: dict[str, Outcome] = {}
    worker_pool.convert_all(
        [task(tmp_path / f"{name}.onnx") for name in names],
        2,
        lambda outcome: finished.update({outcome.source.stem: outcome}),
    )
    assert set(finished) == set(names)
    assert [name for name in names if finished[name].exit_code] == ["killer"]
    assert "died" in finished["killer"].error
    assert list(tmp_path.iterdir()) == []


def say_processors(task: worker_pool.Task) -> Outcome:
    """Stand for a conversion in a worker: says how many processors it would use."""
    said = f"{_machine.num_processors()} {_machine.session_threads()}"
    return Outcome(task.source, task.target, None, error=said)


def test_processes_share_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_ternary.conversion.worker_pool.convert_one", say_processors)
    said: list[str] = []
    worker_pool.convert_all(
        [task(tmp_path / f"{number}.onnx") for number in range(2)],
        2,
        lambda outcome: said.append(outcome.error),
    )
    part = max(_machine.num_processors() // 2, 1)
    assert said == [f"{part} {part}"] * 2
    assert _machine.session_threads() == 0


def test_staging_folders_of_a_link_are_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.out.onnx").symlink_to(tmp_path / "real.onnx")
    (tmp_path / ".real.onnx.half").mkdir()
    assert worker_pool._staging_folders(task(tmp_path / "links/a.onnx")) == {
        tmp_path / ".real.onnx.half"
    }


def die_after_writing(task: worker_pool.Task) -> Outcome:
    """Stand for a dry run whose process is killed."""
    folder = Path(tempfile.mkdtemp())
    task.source.write_text(str(folder))
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(task.source, task.target, None)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_dry_run_that_dies_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_ternary.conversion.worker_pool.convert_one", die_after_writing)
    tasks = [replace(task(tmp_path / name), target=None) for name in ("a.onnx", "b.onnx")]
    finished: list[Outcome] = []
    worker_pool.convert_all(tasks, 2, finished.append)
    assert [outcome.exit_code for outcome in finished] == [ExitCode.ERROR] * 2
    for each in tasks:
        assert not Path(each.source.read_text()).exists()


def overlap(task: worker_pool.Task) -> Outcome:
    """Say in its error how many others it saw running."""
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
    monkeypatch.setattr("onnx_ternary.conversion.worker_pool.convert_one", overlap)
    monkeypatch.setattr("onnx_ternary.conversion.worker_pool.available_memory", lambda: 100)
    finished: list[Outcome] = []
    tasks = [task(tmp_path / f"{name}.onnx", need) for name in "abc"]
    worker_pool.convert_all(tasks, 2, finished.append)
    assert max(outcome.error for outcome in finished) == expected


def test_need_grows_with_the_model(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size
    assert worker_pool.memory_needed(tmp_path / "a.onnx") == 200_000_000 + 8 * size
    assert worker_pool.memory_needed(tmp_path / "missing.onnx") == 200_000_000
