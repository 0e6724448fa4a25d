"""How names and messages are shown."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnx_ternary.errors import MAX_NAME, IndexFormatError, LibraryError, ModelError, visible
from onnx_ternary.reports.json_text import json_text

COMMAND = re.compile(r"^\s*::|##\w*\[")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/model/layers.0/MatMul", "/model/layers.0/MatMul"),
        ("größe_日本", "größe_日本"),
        ("a::b [bold] :smile: \\x1b", "a::b [bold] :smile: \\x1b"),
        ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),
        ("\u202eabc\u2066\u200b\ufeff", r"\u202eabc\u2066\u200b\ufeff"),
        ("a\r\n::error::b\u2028", r"a\r\n::error::b\u2028"),
        ("::error::b", r"\x3a:error::b"),
        ("  ::error::b", r"  \x3a:error::b"),
        ("x ##[add-mask]y ##vso[task.x]", r"x \x23#[add-mask]y \x23#vso[task.x]"),
        ("a\udc9b\ud800", r"a\udc9b\ud800"),
        ("", ""),
    ],
)
def test_visible_text(text: str, shown: str) -> None:
    assert visible(text) == shown


CHARACTERS = st.one_of(
    st.characters(),
    st.sampled_from(["\x1b", "\x9b", "\u202e", "\n", "\r", ":", "#", "[", "'", " ", "\ud800"]),
)


@given(st.text(CHARACTERS))
@example("'" + "\n" * 400 + "'")
@example("##[" * 2000)
@example("\n" * 5000)
def test_text_of_any_kind_is_one_line_and_no_command(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert COMMAND.search(shown) is None
    shown.encode()
    assert len(shown) <= 10 * 4000
    if len(shown) <= MAX_NAME:
        assert visible(shown) == shown
    parsed = json_text({"name": text})
    assert parsed.isascii()
    assert not set(parsed) - {"\n"} - set(map(chr, range(32, 127)))
    assert COMMAND.search(parsed) is None
    if len(text) <= 4000 and not re.search("[\ud800-\udfff]", text):
        assert json.loads(parsed)["name"] == text


def test_long_names_lose_their_middle_and_messages_keep_their_words() -> None:
    name = "first" + "x" * 10_000_000 + "last"
    message = f"MatMul '{name}' has no weight; expected 'w'."
    shown = visible(message)
    assert shown.startswith("MatMul 'firstxxx")
    assert shown.endswith("xxxlast' has no weight; expected 'w'.")
    assert len(shown) < MAX_NAME + 50
    assert len(visible(name)) == 4000
    assert len(visible(name, MAX_NAME)) == MAX_NAME
    assert len(visible("'".join(["a", *[name] * 3, "b"]))) < 4000
    assert len(visible("'".join([name[:4000]] * 99))) == 4000
    quoted = "the model's " + "word " * 100 + "its weight's end"
    assert visible(quoted) == quoted
    assert len(visible("'" * 10_000_000)) == 4000


@pytest.mark.parametrize("kind", [ModelError, IndexFormatError, LibraryError])
def test_messages_of_errors_are_visible(kind: type[Exception]) -> None:
    error = kind("node 'a\n::error::b\x1b[2J' is damaged")
    assert str(error) == r"node 'a\n::error::b\x1b[2J' is damaged"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_reports_hold_exact_names_but_for_absurd_ones() -> None:
    name = "w\n\x1b\u202e" * 500
    report = {"a": [name], "b": {name: (name, 1, None, 2.5, True)}, "long": "y" * 10_000_000}
    found = json.loads(json_text(report))
    assert found["a"] == [name]
    assert found["b"] == {name: [name, 1, None, 2.5, True]}
    assert len(found["long"]) == 4000
    assert json.loads(json_text({"path": "a\udc9b"})) == {"path": r"a\udc9b"}
