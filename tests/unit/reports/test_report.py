"""The report as JSON, its documentation, and sizes as people read them."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import Kept, Report, Rewrite, format_size
from tests.support.two_products import two_products


def test_report_is_json_and_complete() -> None:
    report = optimize(two_products()).report
    values = json.loads(json.dumps(report.to_dict()))
    assert values.keys() == {each.name for each in fields(Report)} | {
        "weight_bytes_before",
        "weight_bytes_after",
    }
    (rewrite,), (kept,) = values["rewrites"], values["rejections"]
    assert rewrite.keys() == {each.name for each in fields(Rewrite)}
    assert kept.keys() == {each.name for each in fields(Kept)}
    assert rewrite["bytes_before"] == 64 * 64 * 4
    assert rewrite["bytes_after"] == 64 * 128 // 4 + 4 + 4  # K is padded to 128
    assert (rewrite["K"], rewrite["N"], rewrite["scale"]) == (64, 64, "tensor")
    assert values["bytes_before"] == 2 * 64 * 64 * 4
    assert kept["reason"].startswith("weight has 64 distinct magnitudes in column 0")
    assert values["options"] == OptimizeOptions().to_dict()
    assert values["has_function_body"] is True


def test_documented_fields() -> None:
    for record in (Rewrite, Kept, OptimizeOptions):
        for each in fields(record):
            assert f"{each.name}:" in (record.__doc__ or ""), each.name


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (2_261_528, "2.26 MB"),
        (1_500_000_000_000, "1500 GB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text
