"""Outcomes of conversions that never took place."""

from __future__ import annotations

from pathlib import Path

from onnx_ternary.reports.outcome import Conversion, Outcome
from onnx_ternary.reports.report import Kept, Report, Rewrite

REWRITE = Rewrite(
    node="up",
    op_type="MatMul",
    pattern="Mul -> MatMul",
    graph="main graph",
    input="x",
    output="y",
    weight="w",
    K=64,
    N=512,
    dtype="float",
    index_format="packed",
    storage="2bit",
    alphabet="ternary",
    scale="tensor",
    activation="float",
    bytes_before=131072,
    bytes_after=16388,
    shares_index_with=None,
    max_relative_change=0.0,
)


def outcome(*rewrites: Rewrite, kept: tuple[Kept, ...] = (), source: str = "m.onnx") -> Outcome:
    report = Report(rewrites, kept, bytes_before=1000, bytes_after=100)
    conversion = Conversion(report, (), 200_000, 20_000, None, "not asked for")
    return Outcome(Path(source), Path("out.onnx"), conversion)
