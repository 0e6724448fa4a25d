"""Conversions as Markdown, for the summary of a CI job or a comment on a pull request.

Names and reasons come from model files. They stand in code spans, where Markdown, HTML, links and
mentions mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx_ternary._version import __version__
from onnx_ternary.errors import MAX_NAME, visible
from onnx_ternary.reports.outcome import Batch, Conversion, Outcome
from onnx_ternary.reports.report import FEW_ALIKE, Row, alike, format_size

# GitHub refuses comments of more than 65536 characters. Tables get most of them; titles, messages
# and the verification the rest.
_MAX_CHARACTERS = 45_000
# Less would not show a product of another model.
_MIN_SECTION = 2_000

_PRODUCTS_HEAD = (
    "| node | pattern | K x N | weights | before | after | result |\n"
    "|---|---|---|---|---:|---:|---|\n"
)
_MODELS_HEAD = (
    "| model | rewritten | before | after | ratio | verification | result |\n"
    "|---|---:|---:|---:|---:|---|---|\n"
)
_MARKS = {"converted": "✅", "unchanged": "⚪", "already converted": "⚪", "failed": "❌"}
_FOOT = f"onnx-ternary {__version__}\n"


def summarize(outcome: Outcome) -> str:
    """One model: a table of its products, the verification, what went wrong.

    Where there are more rows than a comment may hold, the last ones are left out, and it says so.
    """
    title = f"### {_MARKS[outcome.status]} onnx-ternary: {code(str(outcome.source))} "
    title += outcome.status
    if outcome.conversion and outcome.status != "failed":
        title += f", {_sizes(outcome.conversion)}"
    return "\n\n".join((title, _section(outcome, _MAX_CHARACTERS), _FOOT))


def summarize_batch(batch: Batch) -> str:
    """Several models: a table of them, then the products of each, folded.

    What a comment could not hold is left out as in `summarize`.
    """
    lines = [_model_line(outcome) for outcome in batch.outcomes]
    table = _table(_MODELS_HEAD, lines, _MAX_CHARACTERS // 2, "models")
    sections = [f"### onnx-ternary: {batch.total()}", table]
    left = _MAX_CHARACTERS - len(table)
    for position, outcome in enumerate(batch.outcomes):
        if left < _MIN_SECTION:
            more = len(batch.outcomes) - position
            sections.append(f"The products of {more} more models are in the JSON report.")
            break
        summary = f"<summary>{_code_html(str(outcome.source))}: {outcome.status}</summary>"
        section = _section(outcome, left - _MIN_SECTION // 2)
        sections.append(f"<details>{summary}\n\n{section}\n\n</details>")
        left -= len(sections[-1])
    return "\n\n".join((*sections, _FOOT))


def code(text: str) -> str:
    """Text from a model as a code span for a table's cell: what is printable shows as it is.

    Its length is limited.
    """
    text = visible(text, MAX_NAME).strip()
    return _code_html(text) if re.search(r"[`|\\]", text) else f"`{text}`" if text else ""


def _code_html(text: str) -> str:
    """Code where backticks would not do: inside HTML, or with a pipe in the text."""
    plain = re.sub(r"[^A-Za-z0-9 ]", lambda each: f"&#{ord(each[0])};", visible(text, MAX_NAME))
    return f"<code>{plain}</code>"


def verdict(done: Conversion) -> str:
    """The verification in a word or two."""
    if done.verification is None:
        return "not verified"
    return "passed" if done.verification.passed else "failed"


def _sizes(done: Conversion) -> str:
    before, after = format_size(done.bytes_before), format_size(done.bytes_after)
    return f"{before} -> {after} ({done.bytes_after / done.bytes_before:.1%})"


def _model_line(outcome: Outcome) -> str:
    cells = [code(str(outcome.source)), "", "", "", "", ""]
    if done := outcome.conversion:
        products = len(done.report.rewrites) + len(done.report.rejections)
        cells[1:] = [
            f"{len(done.report.rewrites)} of {products}",
            format_size(done.bytes_before),
            format_size(done.bytes_after),
            f"{done.bytes_after / done.bytes_before:.1%}",
            verdict(done),
        ]
    return f"| {' | '.join(cells)} | {_MARKS[outcome.status]} {outcome.status} |\n"


def _section(outcome: Outcome, max_characters: int) -> str:
    parts = []
    if outcome.error:
        parts.append(
            f"**Exit code {int(outcome.exit_code)}, nothing was written**: {code(outcome.error)}"
        )
    if (done := outcome.conversion) is not None:
        report = done.report
        notes = _notes(report.notes, max_characters // 4)
        lines = [line for rows in alike(report.rows()) for line in _product_lines(rows)]
        parts.append(
            _table(_PRODUCTS_HEAD, lines, max_characters - len("\n\n".join(notes)), "products")
            if lines
            else "The model has no matrix products."
        )
        if report.rewrites:
            parts.append(
                f"Rewritten weights: {format_size(report.weight_bytes_before)} -> "
                f"{format_size(report.weight_bytes_after)}. File: {_sizes(done)}."
            )
        if done.verification is not None:
            parts.append(f"Verification {verdict(done)}: {code(done.verification.summary())}")
        else:
            why = done.verification_skipped or "a requirement was not met before"
            parts.append(f"Not verified: {why}.")
        parts += notes
    return "\n\n".join(parts)


def _notes(notes: Sequence[str], max_characters: int) -> list[str]:
    shown: list[str] = []
    for position, note in enumerate(notes):
        line = f"Note: {code(note)}"
        max_characters -= len(line) + 2
        if max_characters < 0:
            return [*shown, f"{len(notes) - position} more notes are in the JSON report."]
        shown.append(line)
    return shown


def _table(head: str, lines: Sequence[str], max_characters: int, what: str) -> str:
    length = len(head)
    for position, line in enumerate(lines):
        length += len(line)
        if length > max_characters:
            shown = "".join(lines[:position])
            return f"{head}{shown}\n{len(lines) - position} more {what} are in the JSON report."
    return (head + "".join(lines)).rstrip()


def _product_lines(rows: Sequence[Row]) -> list[str]:
    """One line per product, or one for all that stay for one reason."""
    if len(rows) <= FEW_ALIKE:
        return [_product_line(row) for row in rows]
    reason, more = f"{rows[0].status}: {code(rows[0].reason)}", len(rows) - 1
    before = sum(row.bytes_before for row in rows)
    cells = (
        f"{code(rows[0].node)} and {more} more",
        code(rows[0].pattern),
        "",
        "",
        format_size(before) if before else "",
        "",
        f"{reason} (and {more} more for such a reason, which the JSON report lists)",
    )
    return [f"| {' | '.join(cells)} |\n"]


def _product_line(row: Row) -> str:
    cells = (
        code(row.node),
        code(row.pattern),
        row.shape,
        row.weights,
        format_size(row.bytes_before) if row.bytes_before else "",
        format_size(row.bytes_after) if row.bytes_after else "",
        f"{row.status}: {code(row.reason)}" if row.reason else row.status,
    )
    return f"| {' | '.join(cells)} |\n"
