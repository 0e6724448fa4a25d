"""Files a conversion tells about itself in."""

from __future__ import annotations

from pathlib import Path

from onnx_ternary.conversion.report_files import ReportFiles


def test_only_texts_of_files_are_made(tmp_path: Path) -> None:
    made: list[str] = []

    def text(name: str) -> str:
        made.append(name)
        return f"{name}\n"

    files = ReportFiles.of(None, tmp_path / "summary.md", None)
    with files.staged() as write:
        write(lambda: text("report"), lambda: text("summary"), lambda: text("annotations"))
    assert made == ["summary"]
    assert (tmp_path / "summary.md").read_text() == "summary\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "summary.md"]


def test_nothing_stays_behind_where_nothing_is_written(tmp_path: Path) -> None:
    with ReportFiles.of(tmp_path / "report.json", None, None).staged():
        pass
    assert list(tmp_path.iterdir()) == []
