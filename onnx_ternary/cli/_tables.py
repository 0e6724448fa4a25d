"""Reports as tables: what was rewritten, what stays and why, what was verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx_ternary.cli._output import Output, print_table
from onnx_ternary.reports.markdown import verdict
from onnx_ternary.reports.outcome import Outcome
from onnx_ternary.reports.report import FEW_ALIKE, Report, Row, alike, format_size
from onnx_ternary.verification.report import VerificationReport


def print_rewrites(out: Output, report: Report) -> None:
    headings = ["node", "operator", "K x N", "weights", "before", "after"]
    headings += ["graph", "index", "changed by"] if out.verbose else []
    headings += ["result"]
    products = report.rows()
    rows: list[dict[str, str]] = [
        {
            "node": row.node,
            "operator": row.pattern,
            "K x N": row.shape,
            "weights": row.weights,
            "before": format_size(row.bytes_before) if row.bytes_before else "",
            "after": format_size(row.bytes_after) if row.bytes_after else "",
            "result": row.result,
        }
        for row in products
    ]
    for shown, rewrite in zip(rows, report.rewrites, strict=False):
        shown["graph"] = rewrite.graph
        shown["index"] = f"{rewrite.index_format} {rewrite.storage}, {rewrite.activation}"
        shown["changed by"] = f"{rewrite.max_relative_change:.3g}"
    for shown, kept in zip(rows[len(report.rewrites) :], report.rejections, strict=False):
        shown["graph"] = kept.graph
    if not rows:
        out.line("The model has no matrix products.")
        return
    if sentence := report.nothing_ternary():
        out.console.print(sentence, markup=False, highlight=False)
    if not out.verbose:
        rows = _grouped(products, rows)
    # A narrow terminal gets what matters most; the report has the rest.
    print_table(out.console, headings, rows, narrow=["node", "K x N", "before", "after", "result"])


def _grouped(products: Sequence[Row], rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows that stay for one reason as one row."""
    shown = {id(product): row for product, row in zip(products, rows, strict=True)}
    grouped: list[dict[str, str]] = []
    for group in alike(products):
        first, *others = group
        if len(group) <= FEW_ALIKE:
            grouped += [shown[id(each)] for each in group]
            continue
        more = f"{len(others)} more for such a reason; --verbose lists them"
        row = {"node": first.node, "operator": first.pattern}
        grouped.append({**row, "result": f"{first.result} (and {more})"})
    return grouped


def unmatched(*reports: Report) -> Iterator[str]:
    """Patterns that chose nothing in any model, for warnings."""
    for pattern in reports[0].unmatched if reports else ():
        if all(pattern in report.unmatched for report in reports):
            option = "--exclude" if pattern in reports[0].options["exclude"] else "--include"
            yield f"no product or weight has a name that matches {option} '{pattern}'"


def print_outcomes(out: Output, outcomes: Sequence[Outcome]) -> None:
    """One line per model."""
    rows: list[dict[str, str]] = []
    for outcome in outcomes:
        row = {"model": str(outcome.source), "result": outcome.status}
        if done := outcome.conversion:
            products = len(done.report.rewrites) + len(done.report.rejections)
            row |= {
                "rewritten": f"{len(done.report.rewrites)} of {products}",
                "before": format_size(done.bytes_before),
                "after": format_size(done.bytes_after),
                "ratio": f"{done.bytes_after / done.bytes_before:.1%}",
                "verification": verdict(done),
            }
        rows.append(row)
    headings = ["model", "rewritten", "before", "after", "ratio", "verification", "result"]
    print_table(out.console, headings, rows, narrow=["model", "before", "after", "result"])


def print_notes(out: Output, report: Report) -> None:
    for note in report.notes:
        out.line(f"Note: {note}")


def incomplete(report: VerificationReport) -> Iterator[str]:
    """What a verification that passed did not look at, for warnings."""
    if report.scope == "products" and report.not_whole:
        yield report.notes[-1].rstrip(".")
    unjudged = report.num_unjudged
    if report.scope == "products" and unjudged:
        yield f"products without a verdict, as they do not run alone: {unjudged}"


def print_verification(out: Output, report: VerificationReport) -> None:
    if out.verbose:
        rows = [
            {
                "product": product.node,
                "rows": str(product.rows),
                "largest error / bound": f"{product.worst_error_over_bound:.3g}",
                "compared with": product.compared_with or product.reason,
                "result": product.status,
            }
            for product in report.products
        ]
        headings = ["product", "rows", "largest error / bound", "compared with", "result"]
        print_table(out.console, headings, rows, narrow=[headings[0], *headings[2:3], "result"])
        for note in report.notes:
            out.line(f"Note: {note}")
    out.line(report.summary())
