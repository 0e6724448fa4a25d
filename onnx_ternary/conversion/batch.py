"""Convert many models in one call: folders, patterns, several at a time, one report."""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

from onnx_ternary._machine import available_memory, num_processors
from onnx_ternary.conversion.convert import Conversion, Requirements, check_distinct, convert
from onnx_ternary.conversion.staged_text import staged_text
from onnx_ternary.errors import ExitCode, ModelError, OnnxTernaryError
from onnx_ternary.model_files import save
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.markdown import summarize_batch
from onnx_ternary.reports.outcome import Outcome
from onnx_ternary.reports.report import format_size
from onnx_ternary.verification.inputs import Inputs

# Peak of a process that converts and verifies: 7.0 times the file for one weight of 196 MB inside
# the model, 5.8 for twelve of 17 MB, half of that with external data; 0.14 GB for a small model
# (onnxruntime 1.31, Linux).
_BYTES_PER_MODEL_BYTE = 8
_BYTES_PER_PROCESS = 200_000_000
# The rest of the memory is left to others.
_SHARE_OF_MEMORY = 0.8

# For processes that are told to stop; shorter than what systemd and Docker give to us.
_STOP_SECONDS = 5.0

_MAGIC = frozenset("*?[")

# Wrong answers before models nobody could look at, and these before wishes.
_SEVERITY = (
    ExitCode.VERIFICATION_FAILED,
    ExitCode.ERROR,
    ExitCode.REQUIREMENT_NOT_MET,
    ExitCode.DONE,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of every model of a call.

    Attributes:
        outcomes: one a model, in the order of the sources, those of a folder by name.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The most serious exit code of a model: 3 before 1, before 4, before 0."""
        found = {outcome.exit_code for outcome in self.outcomes}
        return next((code for code in _SEVERITY if code in found), ExitCode.DONE)

    @property
    def counts(self) -> dict[str, int]:
        """Number of models by `Outcome.status`."""
        return dict(Counter(outcome.status for outcome in self.outcomes))

    @property
    def bytes_before(self) -> int:
        """Bytes of the models that did not fail, before."""
        return sum(done.bytes_before for done in self._done)

    @property
    def bytes_after(self) -> int:
        """Bytes of the models that did not fail, after."""
        return sum(done.bytes_after for done in self._done)

    @property
    def _done(self) -> list[Conversion]:
        done = (each.conversion for each in self.outcomes if each.exit_code == ExitCode.DONE)
        return [conversion for conversion in done if conversion is not None]

    def total(self) -> str:
        """All of it in a line."""
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        models = "model" if len(self.outcomes) == 1 else "models"
        total = f"{len(self.outcomes)} {models}: {counts}"
        if self.bytes_before:
            total += (
                f"; {format_size(self.bytes_before)} -> {format_size(self.bytes_after)} "
                f"({self.bytes_after / self.bytes_before:.1%})"
            )
        return total

    def to_dict(self) -> dict[str, Any]:
        """The batch as JSON types; ``models`` holds `Outcome.to_dict` of each."""
        return {
            "exit_code": int(self.exit_code),
            "counts": self.counts,
            "file_bytes_before": self.bytes_before,
            "file_bytes_after": self.bytes_after,
            "models": [outcome.to_dict() for outcome in self.outcomes],
        }


@dataclass(frozen=True, slots=True)
class _Task:
    source: Path
    target: Path | None
    options: OptimizeOptions | None
    requirements: Requirements
    verify_result: bool | None
    inputs: Inputs | None
    custom_op_libraries: tuple[str | PathLike[str], ...]
    need: int


def default_target(source: Path) -> Path:
    """Where a model goes without a word: ``m.ternary.onnx`` beside ``m.onnx``, or itself."""
    if source.name.endswith(".ternary.onnx"):
        return source
    return source.with_suffix(".ternary.onnx")


def is_pattern(source: str) -> bool:
    """Whether it names models by a pattern rather than one file or folder."""
    return bool(_MAGIC & set(source)) and not Path(source).exists()


def convert_many(
    sources: Sequence[str | PathLike[str]],
    target: str | PathLike[str] | None = None,
    options: OptimizeOptions | None = None,
    *,
    in_place: bool = False,
    dry_run: bool = False,
    requirements: Requirements | None = None,
    verify_result: bool | None = None,
    inputs: Inputs | None = None,
    custom_op_libraries: Sequence[str | PathLike[str]] = (),
    jobs: int | None = None,
    report_path: str | PathLike[str] | None = None,
    summary_path: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Batch:
    """Convert models, each as `convert` does; one that fails does not keep the others from it.

    Models run in processes of their own (started, not forked: a script that calls this needs the
    ``if __name__ == "__main__"`` guard), as many at a time as ``jobs`` allows and as fit into 80 %
    of the available memory, 200 MB and eight times the model's size each. With one job everything
    runs in this process.

    A model that was converted before is copied as it is, or left alone where its target is itself.

    Args:
        sources: Models, folders and patterns (``**`` for any folders). Of the latter two, files
            that end in .onnx are taken, except in hidden folders, in ``target``, and where they are
            the target of another.
        target: A folder, made where it is missing; models of a folder or pattern keep their place
            below it. None: beside the models, as NAME.ternary.onnx.
        options: None for the defaults.
        in_place: Replace each model by the converted one.
        dry_run: Write no model.
        requirements: As in `convert`, for each model.
        verify_result: As in `convert`.
        inputs: As in `convert`, the same for all.
        custom_op_libraries: As in `convert`.
        jobs: Models at a time, at most; None for the number of processors.
        report_path: Where `Batch.to_dict` goes as JSON.
        summary_path: Where the same goes as Markdown.
        progress: Called with the model that was finished, the number of finished ones and of all;
            before the first, with an empty name.

    Raises:
        ValueError: If two models would have the same target, or ``target`` is given in place.
        ModelError: If a folder, the report or the summary cannot be written.
    """
    if in_place and target is not None:
        raise ValueError("in_place = True and a target exclude each other")
    found = _find(sources, None if target is None else Path(target), in_place)
    report = None if report_path is None else Path(report_path)
    summary = None if summary_path is None else Path(summary_path)
    check_distinct(
        {"report": report, "summary": summary}, [path for pair in found.items() for path in pair]
    )
    tasks = [
        _Task(
            source,
            None if dry_run else goal,
            options,
            requirements or Requirements(),
            verify_result,
            inputs,
            tuple(custom_op_libraries),
            _need(source),
        )
        for source, goal in found.items()
    ]
    outcomes: dict[Path, Outcome] = {}

    def finish(outcome: Outcome) -> None:
        outcomes[outcome.source] = outcome
        if progress is not None:
            progress(str(outcome.source), len(outcomes), len(tasks))

    with (
        staged_text(report, "report") as write_report,
        staged_text(summary, "summary") as write_summary,
        _folders([task.target.parent for task in tasks if task.target is not None]),
    ):
        if progress is not None:
            progress("", 0, len(tasks))
        _convert_all(tasks, min(jobs or num_processors(), len(tasks)), finish)
        batch = Batch(tuple(outcomes[task.source] for task in tasks))
        write_report(json.dumps(batch.to_dict(), indent=2) + "\n")
        write_summary(summarize_batch(batch))
    return batch


def _find(
    sources: Sequence[str | PathLike[str]], target: Path | None, in_place: bool
) -> dict[Path, Path]:
    """Each model's target. What names no model is kept: converting it says what is wrong."""
    pairs: dict[Path, Path] = {}
    for source in sources:
        base, models = _expand(os.fspath(source))
        exclude = None
        if target is not None and base.resolve() in target.resolve().parents:
            exclude = target.resolve()  # results of an earlier call
        for model in models:
            if exclude is not None and exclude in model.resolve().parents:
                continue
            if in_place:
                goal = model
            else:
                goal = default_target(model) if target is None else target / _place(model, base)
            pairs.setdefault(model, goal)
    made = {goal.resolve() for model, goal in pairs.items() if goal.resolve() != model.resolve()}
    found: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for model, goal in pairs.items():
        if model.resolve() in made:
            continue
        other = taken.setdefault(goal.resolve(), model)
        if other == model:
            found[model] = goal
        elif other.resolve() != model.resolve():
            raise ValueError(f"'{other}' and '{model}' would both be written to '{goal}'")
    return found


def _expand(source: str) -> tuple[Path, list[Path]]:
    """The models a source names, and the folder their places are counted from."""
    path = Path(source)
    if path.is_dir():
        base, pattern = path, "**/*"
    elif is_pattern(source):
        first = next(position for position, part in enumerate(path.parts) if _MAGIC & set(part))
        base, pattern = Path(*path.parts[:first]), "/".join(path.parts[first:])
    else:
        return path.parent, [path]
    models = [
        each
        for each in sorted(base.glob(pattern))
        if each.name.endswith(".onnx")
        and each.is_file()
        and not any(part.startswith(".") for part in each.relative_to(base).parts)
    ]
    return base, models or [path]


def _place(model: Path, base: Path) -> Path:
    return Path(model.name) if model == base else model.relative_to(base)


def _need(source: Path) -> int:
    """Bytes of memory that converting a model may take."""
    try:
        size = save.file_bytes(source)
    except (OnnxTernaryError, OSError):  # it will fail, and say why, when its turn comes
        size = source.stat().st_size if source.is_file() else 0
    return _BYTES_PER_PROCESS + _BYTES_PER_MODEL_BYTE * size


@contextmanager
def _folders(needed: Iterable[Path]) -> Iterator[None]:
    """Makes folders; those nothing was written to are removed again."""
    made: list[Path] = []
    try:
        for folder in needed:
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            for each in reversed(missing):
                try:
                    each.mkdir()
                except OSError as error:
                    raise ModelError(
                        f"The folder '{each}' cannot be made: {error.strerror}."
                    ) from error
                made.append(each)
        yield
    finally:
        for each in reversed(made):
            with suppress(OSError):  # not empty
                each.rmdir()


def _convert_one(task: _Task) -> Outcome:
    """What became of a model; nothing it holds may stop the others."""
    if task.source.is_dir():
        return _error(task, f"'{task.source}' has no file that ends in .onnx.")
    try:
        conversion = convert(
            task.source,
            task.target,
            task.options,
            requirements=task.requirements,
            verify_result=task.verify_result,
            inputs=task.inputs,
            custom_op_libraries=task.custom_op_libraries,
        )
    except OnnxTernaryError as error:
        return Outcome.of_error(task.source, task.target, error)
    except Exception as error:
        return _error(
            task,
            f"'{task.source}' could not be converted: {type(error).__name__}: {error}; convert it "
            "alone to see where.",
        )
    return Outcome(task.source, task.target, conversion)


def _error(task: _Task, message: str) -> Outcome:
    return Outcome(task.source, task.target, None, ExitCode.ERROR, message)


def _convert_all(tasks: Sequence[_Task], jobs: int, finish: Callable[[Outcome], None]) -> None:
    if jobs <= 1:
        for task in tasks:
            finish(_convert_one(task))
        return
    # The largest first: small ones fill what memory it leaves.
    waiting = sorted(tasks, key=lambda task: task.need, reverse=True)
    memory = available_memory()
    limit = None if memory is None else int(memory * _SHARE_OF_MEMORY)
    before = {task.source: _staging_folders(task) for task in tasks}

    def clean(task: _Task) -> None:
        for folder in _staging_folders(task) - before[task.source]:
            shutil.rmtree(folder, ignore_errors=True)

    try:
        while waiting:
            # A process that dies takes the pool with it; whose fault it was shows when each of
            # those that were running runs alone.
            for task in _run_pool(waiting, jobs, limit, finish):
                died = _run_pool([task], 1, None, finish)
                clean(task)
                if died:
                    finish(
                        _error(
                            task,
                            f"The process that converted '{task.source}' died; it may have run out "
                            "of memory. Try --no-verify.",
                        )
                    )
    except BaseException:  # an interrupt too
        for task in tasks:
            clean(task)
        raise


def _run_pool(
    waiting: list[_Task], jobs: int, limit: int | None, finish: Callable[[Outcome], None]
) -> list[_Task]:
    """Converts models in processes, taking them off ``waiting``.

    Returns:
        Those that were running when a process died; empty if none did.
    """
    running: dict[Future[Outcome], _Task] = {}
    lost: list[_Task] = []
    with _scratch_folder(waiting) as scratch, _pool(jobs, scratch) as pool:
        while (waiting and not lost) or running:
            while waiting and not lost and len(running) < jobs:
                used = sum(task.need for task in running.values())
                fits = [task for task in waiting if limit is None or used + task.need <= limit]
                if not fits and running:
                    break
                task = fits[0] if fits else waiting[0]
                waiting.remove(task)
                try:
                    running[pool.submit(_run_in_child, _convert_one, task)] = task
                except BrokenProcessPool:
                    lost.append(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    lost.append(task)
                else:
                    finish(outcome)
    return lost


@contextmanager
def _scratch_folder(tasks: Iterable[_Task]) -> Iterator[str | None]:
    """Where the processes of dry runs keep files; gone afterwards, however they end."""
    if all(task.target is not None for task in tasks):
        yield None
        return
    try:
        made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise ModelError(f"No temporary folder can be made: {error.strerror}.") from error
    with made as folder:
        yield folder


@contextmanager
def _pool(jobs: int, scratch: str | None) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end with the block: what is still running is stopped."""
    context = get_context("spawn")  # a fork would copy onnxruntime's threads half
    with ProcessPoolExecutor(jobs, context, _prepare_child, (scratch,)) as pool:
        try:
            yield pool
        except BaseException:  # an interrupt too
            children = list(pool._processes.values())  # public only in Python 3.14
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            deadline = time.monotonic() + _STOP_SECONDS
            for child in children:
                child.join(max(0.0, deadline - time.monotonic()))
            for child in children:
                child.kill()
                child.join()
            raise


def _staging_folders(task: _Task) -> set[Path]:
    if task.target is None:
        return set()  # those of dry runs are in a scratch folder
    target = task.target.resolve()
    return set(target.parent.glob(f".{glob.escape(target.name)}.*"))


def _prepare_child(scratch: str | None) -> None:
    """Lets Ctrl-C and SIGTERM end a process without a trace, after it removed what it had begun."""

    def stop(number: int, frame: FrameType | None) -> None:
        # A second signal, of the parent after the group's, must not cut the removal short. Not
        # SIG_IGN: Python complains where the second one is pending already.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: None)
        sys.exit(1)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    if scratch is not None:
        tempfile.tempdir = scratch


def _run_in_child(work: Callable[[_Task], Outcome], task: _Task) -> Outcome:
    try:
        return work(task)
    except SystemExit:
        os._exit(1)  # the pool would take it for a result, and go on
