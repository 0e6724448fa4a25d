"""Convert many models in one call: folders, patterns, several at a time, one report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path

from onnx_ternary._machine import num_processors
from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.conversion.report_files import ReportFiles, check_distinct
from onnx_ternary.conversion.settings import BatchSettings, ConversionSettings
from onnx_ternary.conversion.worker_pool import Task, convert_all, memory_needed
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name
from onnx_ternary.options import OptimizeOptions, Requirements, VerificationOptions
from onnx_ternary.reports.annotations import annotate
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.markdown import summarize_batch
from onnx_ternary.reports.outcome import Batch, Outcome
from onnx_ternary.verification.inputs import Inputs

_MAGIC = frozenset("*?[")


def default_target(source: Path) -> Path:
    """Where a model goes without a word: ``m.ternary.onnx`` beside ``m.onnx``, or itself."""
    if source.name.endswith(".ternary.onnx"):
        return source
    return source.with_suffix(".ternary.onnx")


def check_not_itself(source: Path, target: Path) -> None:
    """Refuse a target that is the model itself.

    Raises:
        ValueError: naming the model.
    """
    if source.resolve() == target.resolve():
        raise ValueError(
            f"'{target}' is the model itself; replace it with --in-place (in_place=True), or give "
            "another output"
        )


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
    verification: VerificationOptions | None = None,
    custom_op_libraries: Sequence[str | PathLike[str]] = (),
    jobs: int | None = None,
    report_path: str | PathLike[str] | None = None,
    summary_path: str | PathLike[str] | None = None,
    annotations_path: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Batch:
    """Convert models, each as `convert` does; a model that fails does not stop the others.

    Models run in processes of their own (started, not forked: a script that calls this needs the
    ``if __name__ == "__main__"`` guard), as many at a time as ``jobs`` allows and as fit into 80 %
    of the available memory, 200 MB and eight times the model's size each. With one job everything
    runs in this process.

    A model that was converted before is copied as it is, or left alone where its target is itself.

    Args:
        sources: models, folders and patterns (``**`` for any folders). Of the latter two, files
            that end in .onnx are taken, except in hidden folders, in ``target``, and where they are
            the target of another.
        target: a folder, made where it is missing; models of a folder or pattern keep their place
            below it. None: beside the models, as NAME.ternary.onnx.
        options: None for the defaults.
        in_place: replace each model by the converted one.
        dry_run: write no model.
        requirements: as in `convert`, for each model.
        verify_result: as in `convert`.
        inputs: as in `convert`, the same for all.
        verification: as in `convert`.
        custom_op_libraries: as in `convert`.
        jobs: models at a time, at most; None for the number of processors.
        report_path: where `Batch.to_dict` goes as JSON.
        summary_path: where the report goes as Markdown.
        annotations_path: where what went wrong goes as GitHub's workflow commands.
        progress: called with the model that was finished, the number of finished ones and of all;
            before the first, with an empty name.

    Raises:
        ValueError: if two models would have the same target, if ``target`` is given in place, or if
            a model would replace itself by way of it.
        ModelError: if a folder, the report or the summary cannot be written.
    """
    each = ConversionSettings.of(
        options,
        requirements,
        Verifying.of(verify_result, inputs, verification, custom_op_libraries, progress),
        ReportFiles.of(report_path, summary_path, annotations_path),
    )
    return convert_models(sources, target, BatchSettings(each, in_place, dry_run, jobs))


def convert_models(
    sources: Sequence[str | PathLike[str]],
    target: str | PathLike[str] | None,
    settings: BatchSettings,
) -> Batch:
    """Convert models as `convert_many` does.

    Args:
        sources: models, folders and patterns.
        target: a folder; None: beside the models.
        settings: how.

    Raises:
        ValueError: as `convert_many`.
        ModelError: as `convert_many`.
    """
    if settings.in_place and target is not None:
        raise ValueError("in_place = True and a target exclude each other")
    folder = None if target is None else Path(target)
    found = _find(sources, folder, settings.in_place, settings.dry_run)
    files, progress = settings.each.files, settings.each.verifying.progress
    check_distinct(files.by_name(), [path for pair in found.items() for path in pair])
    # Reports and progress are the batch's own, and a process of the pool has neither.
    alone = replace(
        settings.each,
        files=ReportFiles(),
        verifying=replace(settings.each.verifying, progress=None),
    )
    jobs = min(settings.jobs or num_processors(), len(found))
    tasks = [
        Task(
            source,
            None if settings.dry_run else goal,
            alone,
            memory_needed(source) if jobs > 1 else 0,
        )
        for source, goal in found.items()
    ]
    outcomes: dict[Path, Outcome] = {}

    def finish(outcome: Outcome) -> None:
        outcomes[outcome.source] = outcome
        if progress is not None:
            progress(str(outcome.source), len(outcomes), len(tasks))

    with (
        files.staged() as write,
        _folders([task.target.parent for task in tasks if task.target is not None]),
    ):
        if progress is not None:
            progress("", 0, len(tasks))
        convert_all(tasks, jobs, finish)
        batch = Batch(tuple(outcomes[task.source] for task in tasks))
        write(
            lambda: json_text(batch.to_dict()) + "\n",
            lambda: summarize_batch(batch),
            lambda: annotate(batch.outcomes),
        )
    return batch


def _find(
    sources: Sequence[str | PathLike[str]], target: Path | None, in_place: bool, dry_run: bool
) -> dict[Path, Path]:
    """Each model's target. What names no model is kept: converting it says what is wrong."""
    pairs: dict[Path, Path] = {}
    for source in sources:
        check_name(Path(source))
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
            check_name(goal)
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
            if target is not None and not dry_run:
                check_not_itself(model, goal)
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


@contextmanager
def _folders(needed: Iterable[Path]) -> Iterator[None]:
    """Make folders; a folder that stays empty is removed again."""
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
