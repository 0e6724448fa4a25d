"""The files a conversion tells about itself in: JSON, Markdown, workflow commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from onnx_ternary.conversion.staged_text import Text, staged_text
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where reports go; None for nowhere.

    Attributes:
        report: the JSON file.
        summary: the Markdown file.
        annotations: the file of GitHub's workflow commands.
    """

    report: Path | None = None
    summary: Path | None = None
    annotations: Path | None = None

    @classmethod
    def of(cls, *paths: str | PathLike[str] | None) -> ReportFiles:
        """The files of these names, in the order of the attributes."""
        return cls(*(None if path is None else Path(path) for path in paths))

    def by_name(self) -> dict[str, Path | None]:
        """The files by what messages call them."""
        return {"report": self.report, "summary": self.summary, "annotations": self.annotations}

    @contextmanager
    def staged(self) -> Iterator[Callable[[Text, Text, Text], None]]:
        """Open the files before the work, so that the work is not lost to a bad name.

        Yields:
            A function that writes what three others make, in the order of the attributes, as
            `staged_text` does.

        Raises:
            ModelError: if a file cannot be written.
        """
        with ExitStack() as stack:
            writers = [
                stack.enter_context(staged_text(path, what))
                for what, path in self.by_name().items()
            ]

            def write(*texts: Text) -> None:
                for writer, text in zip(writers, texts, strict=True):
                    writer(text)

            yield write


def check_distinct(texts: Mapping[str, Path | None], models: Iterable[Path | None]) -> None:
    """Refuse a report that would replace a model, its data or a report, and what names no file.

    Raises:
        ModelError: naming the file.
    """
    taken = {}
    for model in filter(None, models):
        check_name(model)
        taken[model.resolve()] = "the model"
        data = model.with_name(f"{model.name}.data")
        taken[data.resolve()] = "the model's external data"
    for what, path in texts.items():
        if path is None:
            continue
        check_name(path)
        if path.resolve() in taken:
            raise ModelError(
                f"The {what} '{path}' would replace {taken[path.resolve()]}; give another name."
            )
        taken[path.resolve()] = f"the {what}"
