"""A result takes its name only if it is accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_ternary.conversion.accepted import Acceptance, Verifying
from onnx_ternary.errors import RequirementError, VerificationError
from onnx_ternary.model_files.load import load
from onnx_ternary.options import VerificationOptions
from onnx_ternary.verification.report import VerificationReport
from onnx_ternary.verification.verify import MAX_VERIFIED_BYTES
from tests.support.converted_models import Product, converted_model, original_model, random_weight
from tests.support.two_products import names_in, two_products

REPORT = VerificationReport((), (), 0, {}, ())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    return path


@pytest.mark.parametrize("copied", [False, True])
def test_accepted(source: Path, copied: bool) -> None:
    file, target, seen = load(source), source.with_name("out.onnx"), []

    def compare(staged: Path) -> VerificationReport:
        assert not target.exists()
        seen.append(onnx.load(staged))
        return REPORT

    found = Acceptance(file)
    found.save(
        None if copied else file.model,
        target,
        external_data="auto",
        check=lambda: seen.append(found.bytes_after),
        compare=compare,
        judge=seen.append,
    )
    assert found.files == (target,)
    assert seen == [target.stat().st_size, onnx.load(target), REPORT]
    assert found.verification is REPORT


@pytest.mark.parametrize("copied", [False, True])
def test_refused_comparison_is_kept_and_nothing_is_written(source: Path, copied: bool) -> None:
    def judge(report: VerificationReport) -> None:
        raise VerificationError("wrong")

    file = load(source)
    found = Acceptance(file)
    with pytest.raises(VerificationError, match="wrong"):
        found.save(
            None if copied else file.model,
            source.with_name("out.onnx"),
            external_data="auto",
            check=lambda: None,
            compare=lambda staged: REPORT,
            judge=judge,
        )
    assert (found.verification, found.files) == (REPORT, ())
    assert names_in(source.parent) == {source.name}


def test_refused_size_is_not_compared(source: Path) -> None:
    def check() -> None:
        raise RequirementError("too large")

    def compare(staged: Path) -> VerificationReport:
        raise AssertionError("compared")

    file = load(source)
    found = Acceptance(file)
    with pytest.raises(RequirementError, match="too large"):
        found.save(
            file.model,
            source.with_name("out.onnx"),
            external_data="always",
            check=check,
            compare=compare,
            judge=lambda report: None,
        )
    assert found.verification is None
    assert names_in(source.parent) == {source.name}


def test_why_not_verified() -> None:
    assert Verifying().why_not("nothing done") == "nothing done"
    assert Verifying().why_not("") == ""
    assert Verifying(asked=True).why_not("") == ""
    assert Verifying(asked=False).why_not("") == "not asked for"
    required = VerificationOptions(require_whole=True)
    with pytest.raises(RequirementError, match="none was asked for"):
        Verifying(asked=False, options=required).why_not("")


@pytest.mark.parametrize(
    ("asked", "required", "scope"),
    [(None, False, "products"), (True, False, "whole"), (None, True, "whole")],
)
def test_large_models_are_compared_product_by_product(
    asked: bool | None, required: bool, scope: str, tmp_path: Path
) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    product = Product.make(random_weight(np.random.default_rng(0), 64, 16))
    onnx.save(original_model([product]), before)
    onnx.save(converted_model([product]), after)
    verifying = Verifying(asked=asked, options=VerificationOptions(require_whole=required))
    report = verifying.compare(before, after, MAX_VERIFIED_BYTES + 1, 0.0)
    assert report.passed
    assert report.scope == scope
    assert ("larger than 2 GB" in report.not_whole) == (scope == "products")
    assert verifying.compare(before, after, MAX_VERIFIED_BYTES, 0.0).scope == "whole"
