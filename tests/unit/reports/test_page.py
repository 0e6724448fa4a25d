"""The order of rows on the page of a report."""

from __future__ import annotations

import re

from onnx_ternary.reports.page import render_page
from onnx_ternary.reports.report import Kept, Report
from tests.support.outcomes import REWRITE


def test_rows_of_one_reason_stand_together() -> None:
    reasons = ["weight 'a' has 3 levels", "weight 'b' is float64", "weight 'c' has 7 levels"]
    kept = tuple(
        Kept(f"kept{at}", "MatMul", "main graph", "w", reason) for at, reason in enumerate(reasons)
    )
    page = render_page("m.onnx", Report(rewrites=(REWRITE,), rejections=kept))
    assert re.findall(r'class="name">([^<]*)', page) == [REWRITE.node, "kept0", "kept2", "kept1"]
