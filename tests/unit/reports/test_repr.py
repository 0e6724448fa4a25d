"""What an interactive Python shows of a result is one line, however large the model is."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.bench import Benchmark, Speed
from onnx_ternary.errors import ExitCode
from onnx_ternary.reports.outcome import Outcome
from tests.support.command_line import DIGITS


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("repr") / "digits.onnx"
    conversion = onnx_ternary.convert(DIGITS, target)
    batch = onnx_ternary.convert_many([DIGITS], dry_run=True, verify_result=False, jobs=1)
    result = onnx_ternary.optimize(DIGITS)
    speed = Speed((1e-3,), (1e-2,), 10)
    results = [
        conversion,
        conversion.report,
        conversion.verification,
        batch,
        batch.outcomes[0],
        Outcome(Path("a.onnx"), None, None, ExitCode.ERROR, "first line\nsecond line"),
        result,
        onnx_ternary.export(target),
        onnx_ternary.export_file(target, target.with_name("back.onnx")),
        Benchmark(speed, speed, 1, 0.0, {}),
    ]
    names = [
        f"{type(each).__name__}{'' if number != 5 else ' failed'}"
        for number, each in enumerate(results)
    ]
    return dict(zip(names, map(repr, results), strict=True))


def test_every_result_is_shown_in_a_line(shown: dict[str, str]) -> None:
    assert len(shown) == 10
    for name, text in shown.items():
        assert "\n" not in text
        assert len(text) < 400
        assert text.startswith(f"<{name.removesuffix(' failed')}: ")


def test_the_line_says_what_was_done(shown: dict[str, str]) -> None:
    report = "3 of 4 products rewritten"
    assert shown["OptimizeResult"] == f"<OptimizeResult: {report}>"
    assert shown["Conversion"] == (
        f"<Conversion: {report}, 2.26 MB -> 184 kB, verification passed>"
    )
    assert shown["Outcome failed"] == "<Outcome: 'a.onnx' failed, first line>"
    assert shown["VerificationReport"].startswith("<VerificationReport: passed, 3 of 3 products")
    assert shown["ExportResult"] == "<ExportResult: 3 products exported>"
