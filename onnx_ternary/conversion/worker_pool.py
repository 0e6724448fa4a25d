"""Converting many models at a time: processes, and the memory they may take."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

from onnx_ternary._logs import show_names_in_logs
from onnx_ternary._machine import available_memory, share_processors
from onnx_ternary.conversion.convert import convert_file
from onnx_ternary.conversion.settings import ConversionSettings
from onnx_ternary.errors import ExitCode, ModelError, OnnxTernaryError
from onnx_ternary.model_files.sizes import stored_bytes
from onnx_ternary.model_files.targets import remove_left_lock
from onnx_ternary.reports.outcome import Outcome

# Peak of a process that converts and verifies: 7.0 times the file for one weight of 196 MB inside
# the model, 5.8 for twelve of 17 MB, half of that with external data; 0.14 GB for a small model
# (onnxruntime 1.31, Linux).
_BYTES_PER_MODEL_BYTE = 8
_BYTES_PER_PROCESS = 200_000_000
# The rest of the memory is left to others.
_SHARE_OF_MEMORY = 0.8
# For processes that are told to stop; shorter than what systemd and Docker give to us.
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """One model of a call.

    Attributes:
        source: the model.
        target: where the result goes; None for a dry run.
        settings: how it is converted.
        need: bytes of memory that may take; counts where several models run at a time.
    """

    source: Path
    target: Path | None
    settings: ConversionSettings
    need: int = 0


def memory_needed(source: Path) -> int:
    """Bytes of memory that converting a model may take."""
    return _BYTES_PER_PROCESS + _BYTES_PER_MODEL_BYTE * stored_bytes(source)


def convert_one(task: Task) -> Outcome:
    """What became of a model; nothing the model holds may stop other conversions."""
    if task.source.is_dir():
        return _error(task, f"'{task.source}' has no file that ends in .onnx.")
    try:
        conversion = convert_file(task.source, task.target, task.settings)
    except OnnxTernaryError as error:
        return Outcome.of_error(task.source, task.target, error)
    except Exception as error:  # a defect of ours, met by one model, costs that model alone
        return _error(
            task,
            f"'{task.source}' could not be converted: {type(error).__name__}: {error}; convert it "
            "alone to see where.",
        )
    return Outcome(task.source, task.target, conversion)


def _error(task: Task, message: str) -> Outcome:
    return Outcome(task.source, task.target, None, ExitCode.ERROR, message)


def convert_all(tasks: Sequence[Task], jobs: int, finish: Callable[[Outcome], None]) -> None:
    """Convert models in this process or, with more than one job, in others.

    Args:
        tasks: the models.
        jobs: models at a time, at most.
        finish: called with what became of each, in the order in which they end.
    """
    if jobs <= 1:
        for task in tasks:
            finish(convert_one(task))
        return
    # The largest first: small ones fill what memory it leaves.
    waiting = sorted(tasks, key=lambda task: task.need, reverse=True)
    memory = available_memory()
    limit = None if memory is None else int(memory * _SHARE_OF_MEMORY)
    before = {task.source: _staging_folders(task) for task in tasks}

    def clean(task: Task) -> None:
        for folder in _staging_folders(task) - before[task.source]:
            shutil.rmtree(folder, ignore_errors=True)
        if task.target is not None:
            remove_left_lock(task.target.resolve())

    try:
        while waiting:
            # A process that dies takes the pool with it; which model was the cause shows when each
            # model that was running runs alone.
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
    waiting: list[Task], jobs: int, limit: int | None, finish: Callable[[Outcome], None]
) -> list[Task]:
    """Convert models in processes, taking them off ``waiting``.

    Returns:
        Tasks that were running when a process died; empty if no process did.
    """
    running: dict[Future[Outcome], Task] = {}
    lost: list[Task] = []
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
                    running[pool.submit(_run_in_child, convert_one, task)] = task
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
def _scratch_folder(tasks: Iterable[Task]) -> Iterator[str | None]:
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
    with ProcessPoolExecutor(jobs, context, _prepare_child, (scratch, jobs)) as pool:
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


def _staging_folders(task: Task) -> set[Path]:
    if task.target is None:
        return set()  # those of dry runs are in a scratch folder
    target = task.target.resolve()
    return {each for each in target.parent.glob(f".{glob.escape(target.name)}.*") if each.is_dir()}


def _prepare_child(scratch: str | None, jobs: int) -> None:
    """Let Ctrl-C and SIGTERM end a process without a trace, after it removed what it had begun.

    Each of ``jobs`` processes takes its part of the processors, not all of them.
    """
    share_processors(jobs)

    def stop(number: int, frame: FrameType | None) -> None:
        # A second signal, of the parent after the group's, must not cut the removal short. Not
        # SIG_IGN: Python complains where the second one is pending already.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: None)
        sys.exit(1)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    show_names_in_logs()
    if scratch is not None:
        tempfile.tempdir = scratch


def _run_in_child(work: Callable[[Task], Outcome], task: Task) -> Outcome:
    try:
        return work(task)
    except SystemExit:
        os._exit(1)  # the pool would take it for a result, and go on
