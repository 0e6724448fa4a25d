"""A report as one web page that needs no network; what stays for one reason stands together.

Names and reasons come from model files: all of them are escaped, and the page's content security
policy lets no other script or style than its own run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html import escape
from importlib.resources import files
from string import Template

from onnx_ternary._version import __version__
from onnx_ternary.errors import visible
from onnx_ternary.reports.report import Report, Row, alike, format_size

_NUM_COLORS = 10  # style.css has as many
_NUM_BAR_UNITS = 1000


def render_page(name: str, report: Report) -> str:
    """The page.

    Args:
        name: of the model.
        report: what would be rewritten, and what stays.
    """
    rows = [row for rows in alike(report.rows()) for row in rows]
    groups = Counter(_group(row) for row in rows)
    numbers = {group: number for number, (group, _) in enumerate(groups.most_common())}
    largest = max((max(row.bytes_before, row.bytes_after) for row in rows), default=0)
    style, script = _part("style.css"), _part("filter.js")
    return Template(_part("template.html")).substitute(
        title=_text(f"{name} in onnx-ternary"),
        total=_text(_total(report)),
        facts="".join(
            f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
            for name, value in _facts(report).items()
        ),
        legend="".join(
            _button(f"{group} ({count})", numbers[group]) for group, count in groups.most_common()
        ),
        count=f"{len(rows)} products",
        rows="\n".join(_row(row, numbers[_group(row)], largest) for row in rows),
        notes="".join(f"<p>Note: {_text(note)}</p>" for note in report.notes),
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _part(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _text(text: str) -> str:
    return escape(visible(text))


def _color(number: int) -> str:
    return f"c{number % _NUM_COLORS}"


def _button(text: str, group: int) -> str:
    return (
        f'<button type="button" aria-pressed="false" data-group="{group}"><svg aria-hidden="true">'
        f'<rect width="10" height="10" class="{_color(group)}"/></svg>{_text(text)}</button>'
    )


def _group(row: Row) -> str:
    """What rows share a color: a pattern, or a reason without its names and numbers."""
    if row.status in ("stays", "quantized"):
        reason = re.sub(r"'[^']*'", "...", row.reason)
        return f"stays: {re.sub(r'[0-9]+(?:[.][0-9]+)?(?:e[-+]?[0-9]+)?', '...', reason)}"
    return row.status if row.status == "already converted" else row.pattern


def _total(report: Report) -> str:
    products = len(report.rewrites) + len(report.rejections)
    total = f"{len(report.rewrites)} of {products} products can be rewritten"
    if report.already_converted:
        total += f", {len(report.already_converted)} were converted before"
    before, after = report.weight_bytes_before, report.weight_bytes_after
    if before:
        total += f"; their weights go from {format_size(before)} to {format_size(after)}"
    return total


def _facts(report: Report) -> dict[str, str]:
    facts = {
        "constants before": format_size(report.bytes_before),
        "after": format_size(report.bytes_after),
    }
    formats = {f"{row.index_format} {row.storage}" for row in report.rewrites}
    if formats:
        facts["index"] = ", ".join(sorted(formats))
    return facts


def _row(row: Row, group: int, largest: int) -> str:
    before = format_size(row.bytes_before) if row.bytes_before else ""
    after = format_size(row.bytes_after) if row.bytes_before or row.bytes_after else ""
    cells = (
        f'<th scope="row" class="name">{_text(row.node)}</th>',
        f"<td>{_text(row.pattern)}</td>",
        f"<td>{_text(row.shape)}{'<br>' if row.weights else ''}{_text(row.weights)}</td>",
        f'<td class="bar">{_bars(row, group, largest)}</td>',
        f'<td class="number">{before}</td>',
        f'<td class="number">{after}</td>',
        f"<td>{_text(row.result)}</td>",
    )
    return f'<tr data-group="{group}">{"".join(cells)}</tr>'


def _bars(row: Row, group: int, largest: int) -> str:
    """Upper bar: before, not known of what is converted already. Lower bar: after."""
    bars, label = "", []
    for name, size, place in (
        ("before", row.bytes_before, f'class="{_color(group)}"'),
        ("after", row.bytes_after, 'class="after" y="9"'),
    ):
        if size or (name == "after" and row.bytes_before):
            # A layer that is there must be seen.
            width = max(size * _NUM_BAR_UNITS // largest, 2)
            bars += f'<rect {place} width="{width}" height="7"/>'
            label.append(f"{format_size(size)} {name}")
    if not bars:
        return ""
    return (
        f'<svg role="img" aria-label="{", ".join(label)}" '
        f'viewBox="0 0 {_NUM_BAR_UNITS} 16" preserveAspectRatio="none">{bars}</svg>'
    )
