"""Markdown summaries, read back by a Markdown parser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from onnx_ternary.errors import ExitCode, visible
from onnx_ternary.reports.markdown import code, summarize, summarize_batch
from onnx_ternary.reports.outcome import Batch, Outcome
from onnx_ternary.reports.report import Kept
from tests.support.outcomes import REWRITE, outcome

HOSTILE = (
    "a|b",
    "a\\|b",
    "`code` ``more``",
    "![x](https://example.com/x.png)",
    "[link](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "@somebody #1 www.example.com",
    "two\nlines\r\n| and | a | row |",
    "*bold* __under__ ~~gone~~ &amp; \\",
    "\u202eturned",
)


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def table_cells(text: str) -> list[list[Token]]:
    found = tokens(text)
    return [
        found[position + 1].children or []
        for position, token in enumerate(found)
        if token.type == "td_open"
    ]


def plain(cell: list[Token]) -> str:
    return "".join(token.content for token in cell if token.type in ("text", "code_inline"))


def kept_products(*reasons: str) -> tuple[Kept, ...]:
    return tuple(
        Kept(f"n{at}", "MatMul", "main graph", f"w{at}", reason, (4, 5), 80)
        for at, reason in enumerate(reasons)
    )


def test_equal_reasons_are_told_once() -> None:
    reasons = [f"weight 'w{at}' has {at} levels" for at in range(4)]
    kept = kept_products(*reasons[:2], "no constant weight: 'v' is computed", *reasons[2:])
    cells = [plain(cell) for cell in table_cells(summarize(outcome(REWRITE, kept=kept)))]
    assert cells[7:] == [
        *("n0 and 3 more", "MatMul", "", "", "320 B", ""),
        "stays: weight 'w0' has 0 levels (and 3 more for such a reason, which the JSON report "
        "lists)",
        *("n2", "MatMul", "stored 4 x 5", "", "80 B", "80 B"),
        "stays: no constant weight: 'v' is computed",
    ]
    few = [plain(cell) for cell in table_cells(summarize(outcome(REWRITE, kept=kept[:4])))]
    assert [text for text in few if text.startswith("n")] == ["n0", "n1", "n3", "n2"]


def test_summary_names_every_product() -> None:
    kept = Kept("down", "Gemm", "main graph", "w2", "weight has 3 levels", (4, 5), 80)
    text = summarize(outcome(REWRITE, kept=(kept,)))
    assert [plain(cell) for cell in table_cells(text)] == [
        *("up", "Mul -> MatMul", "64 x 512", "ternary, scale tensor"),
        *("131 kB", "16.4 kB", "rewritten"),
        *("down", "Gemm", "stored 4 x 5", "", "80 B", "80 B", "stays: weight has 3 levels"),
    ]
    assert "200 kB -> 20 kB (10.0%)" in text
    assert "Not verified: not asked for." in text


@pytest.mark.parametrize("name", HOSTILE)
def test_summary_shows_hostile_names_as_they_are(name: str) -> None:
    shown = visible(name)
    kept = Kept(name, "Gemm", "main graph", "w", name)
    text = summarize(outcome(replace(REWRITE, node=name), kept=(kept,), source=name))
    cells = table_cells(text)
    assert len(cells) == 14
    assert plain(cells[0]) == plain(cells[7]) == shown
    assert plain(cells[13]) == f"stays: {shown}"
    allowed = {"text", "code_inline", "html_inline"}
    for token in tokens(text):
        assert token.type != "html_block"
        for child in token.children or ():
            if child.type == "html_inline":
                assert child.content in ("<code>", "</code>")
            if token.map and "stays" in token.content:
                assert child.type in allowed


@pytest.mark.parametrize("name", HOSTILE)
def test_summary_of_a_batch_with_hostile_names(name: str) -> None:
    text = summarize_batch(Batch((outcome(REWRITE, source=name), outcome(REWRITE))))
    blocks = [token.content for token in tokens(text) if token.type == "html_block"]
    assert len(blocks) == 4
    for block in blocks:
        assert block.count("<") == (5 if "summary" in block else 1)
        assert "\n" not in block.strip()


def test_summary_of_a_failure_says_that_nothing_was_written() -> None:
    failed = replace(
        outcome(REWRITE), exit_code=ExitCode.REQUIREMENT_NOT_MET, error="too large a file"
    )
    text = summarize(failed)
    assert "Exit code 4, nothing was written" in text
    assert "too large a file" in text
    error = Outcome(Path("m.onnx"), None, None, ExitCode.ERROR, "no file")
    assert "Exit code 1" in summarize(error)


def test_summary_fits_into_a_comment() -> None:
    many = tuple(replace(REWRITE, node=f"layer_{number}") for number in range(2000))
    text = summarize(outcome(*many))
    shown = len(table_cells(text)) // 7
    assert 300 < shown < 2000
    endless = "|" * 1_000_000
    kept = Kept(endless, "Gemm", "main graph", "w", endless)
    text = summarize(replace(outcome(REWRITE, kept=(kept,) * 50), error=endless))
    assert len(text) < 65_536
    text = summarize(outcome(*many))
    assert f"{2000 - shown} more products are in the JSON report." in text
    assert len(text) < 65_536
    batch = Batch(tuple(outcome(*many[:50], source=f"m{number}.onnx") for number in range(900)))
    text = summarize_batch(batch)
    assert len(text) < 65_536
    assert "more models are in the JSON report." in text


def test_summary_with_many_notes_fits_into_a_comment() -> None:
    many = outcome(*(replace(REWRITE, node=f"layer_{number}") for number in range(2000)))
    assert many.conversion is not None
    report = replace(many.conversion.report, notes=("|" * 290,) * 900)
    noted = replace(many, conversion=replace(many.conversion, report=report))
    for text in (summarize(noted), summarize_batch(Batch((noted,) * 40))):
        assert len(text) < 65_536
        assert "Note: " in text
        assert "more notes are in the JSON report." in text


def test_code_of_nothing_is_nothing() -> None:
    assert code(" ") == ""
