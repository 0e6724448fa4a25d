"""Reports as tables: what was rewritten, what stays and why, what was verified."""

from __future__ import annotations

from onnx_ternary.cli._output import Output, add_row, format_size, make_table
from onnx_ternary.report import Report
from onnx_ternary.schema import OP_TYPE
from onnx_ternary.verify import VerificationReport

_NARROW_COLUMNS = 100


def print_rewrites(out: Output, report: Report) -> None:
    headings = ["node", "operator", "K x N", "weights", "before", "after"]
    headings += ["graph", "index", "changed by"] if out.verbose else []
    headings += ["result"]
    rows: list[dict[str, str]] = [
        {
            "node": rewrite.node,
            "operator": rewrite.pattern,
            "K x N": f"{rewrite.K} x {rewrite.N}",
            "weights": f"{rewrite.alphabet}, scale {rewrite.scale}",
            "before": format_size(rewrite.bytes_before),
            "after": format_size(rewrite.bytes_after),
            "graph": rewrite.graph,
            "index": f"{rewrite.index_format} {rewrite.storage}, {rewrite.activation}",
            "changed by": f"{rewrite.max_relative_change:.3g}",
            "result": "rewritten",
        }
        for rewrite in report.rewrites
    ]
    rows += [
        {
            "node": kept.node,
            "operator": kept.op_type,
            "graph": kept.graph,
            "result": f"stays: {kept.reason}",
        }
        for kept in report.rejections
    ]
    rows += [
        {"node": name, "operator": OP_TYPE, "result": "already converted"}
        for name in report.already_converted
    ]
    if not rows:
        out.console.print("The model has no matrix products.")
        return
    # A narrow terminal gets what matters most; the report has the rest.
    if out.console.width < _NARROW_COLUMNS:
        headings = ["node", "K x N", "result"]
    shown = [heading for heading in headings if any(heading in row for row in rows)]
    table = make_table(*shown)
    for row in rows:
        add_row(table, *(row.get(heading, "") for heading in shown))
    out.console.print(table)


def print_notes(out: Output, report: Report) -> None:
    for note in report.notes:
        out.console.print("Note:", note, markup=False, highlight=False, soft_wrap=True)


def print_verification(out: Output, report: VerificationReport) -> None:
    if out.verbose:
        table = make_table("product", "rows", "largest error / bound", "result", "compared with")
        for product in report.products:
            add_row(
                table,
                product.node,
                str(product.rows),
                f"{product.worst_error_over_bound:.3g}",
                product.status,
                product.compared_with or product.reason,
            )
        out.console.print(table)
        for note in report.notes:
            out.console.print("Note:", note, markup=False, highlight=False, soft_wrap=True)
    out.console.print(report.summary(), markup=False, highlight=False, soft_wrap=True)
