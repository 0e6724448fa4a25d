"""What many outcomes come to."""

from __future__ import annotations

from dataclasses import replace

from onnx_ternary.errors import ExitCode
from onnx_ternary.reports.outcome import Batch
from tests.support.outcomes import REWRITE, outcome


def test_batch_exit_code_is_the_most_serious() -> None:
    codes = [ExitCode.DONE, ExitCode.REQUIREMENT_NOT_MET, ExitCode.ERROR]
    codes.append(ExitCode.VERIFICATION_FAILED)
    for position, expected in enumerate(codes):
        batch = Batch(tuple(replace(outcome(), exit_code=each) for each in codes[: position + 1]))
        assert batch.exit_code == expected
    assert Batch(()).exit_code == ExitCode.DONE


def test_batch_totals_leave_failures_out() -> None:
    failed = replace(outcome(REWRITE), exit_code=ExitCode.VERIFICATION_FAILED)
    batch = Batch((outcome(REWRITE), failed, outcome()))
    assert (batch.bytes_before, batch.bytes_after) == (400_000, 40_000)
    assert batch.counts == {"converted": 1, "failed": 1, "unchanged": 1}
