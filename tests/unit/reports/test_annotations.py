"""GitHub's workflow commands for models that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.errors import ExitCode, RequirementError
from onnx_ternary.options import OptimizeOptions, Requirements
from onnx_ternary.reports.annotations import annotate
from onnx_ternary.reports.outcome import Outcome
from tests.support.command_line import DIGITS


def test_models_that_did_not_fail_have_none() -> None:
    assert annotate([Outcome(DIGITS, None, None)]) == ""


@pytest.mark.parametrize(
    ("code", "title"),
    [
        (ExitCode.ERROR, "Model not converted"),
        (ExitCode.VERIFICATION_FAILED, "Verification failed"),
        (ExitCode.REQUIREMENT_NOT_MET, "Requirement not met"),
    ],
)
def test_a_model_that_failed_is_named(code: ExitCode, title: str) -> None:
    outcome = Outcome(Path("models/a.onnx"), None, None, code, "why")
    assert annotate([outcome]) == f"::error file=models/a.onnx,title={title}::why\n"


def test_no_text_of_a_model_is_a_command() -> None:
    source = Path("a,b: c\n::error::x%.onnx")
    outcome = Outcome(source, None, None, ExitCode.ERROR, "100 %\r\n::add-mask::y")
    (line,) = annotate([outcome]).splitlines()
    assert line == (
        r"::error file=a%2Cb%3A c\n%3A%3Aerror%3A%3Ax%25.onnx,title=Model not converted::"
        r"100 %25\r\n::add-mask::y"
    )


def test_files_of_the_checkout_are_named_from_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    outcomes = [
        Outcome(path, None, None, ExitCode.ERROR, "")
        for path in (tmp_path / "models/a.onnx", Path("/elsewhere/b.onnx"))
    ]
    first, second = annotate(outcomes).splitlines()
    assert first.startswith("::error file=models/a.onnx,")
    assert second.startswith("::error file=/elsewhere/b.onnx,")


def test_convert_writes_them_where_it_fails(tmp_path: Path) -> None:
    path, options = tmp_path / "annotations", OptimizeOptions(exclude=("*",))
    with pytest.raises(RequirementError):
        onnx_ternary.convert(
            DIGITS, None, options, requirements=Requirements(rewrite=True), annotations_path=path
        )
    text = path.read_text(encoding="utf-8")
    assert text.startswith("::error file=")
    assert "a rewrite is required" in text
    onnx_ternary.convert_many(
        [DIGITS],
        options=options,
        requirements=Requirements(rewrite=True),
        dry_run=True,
        jobs=1,
        annotations_path=path,
    )
    assert path.read_text(encoding="utf-8") == text
