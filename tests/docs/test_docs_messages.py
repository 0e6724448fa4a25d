"""Every message docs/troubleshooting.md explains is one the code gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

import onnx_ternary

ROOT = Path(__file__).parents[2]
GAP = "…"
# ONNX Runtime's own; a test below provokes it.
OF_ONNXRUNTIME = "Fatal error: onnx_ternary:TernaryIndexedMatMul"


def messages() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### `(.*)`$", text, re.MULTILINE)


def python_texts(path: Path) -> Iterator[str]:
    """Strings and f-strings of a file, with GAP for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def cpp_texts(path: Path) -> Iterator[str]:
    """The string literals of each statement, with GAP where something stands between them."""
    for statement in path.read_text(encoding="utf-8").split(";\n"):
        pieces = re.split(r'"((?:[^"\\]|\\.)*)"', statement)
        text = ""
        for position, piece in enumerate(pieces):
            text += piece if position % 2 else GAP if piece.strip() else ""
        yield text


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found: list[str] = []
    for folder in ("onnx_ternary", "graph_passes"):
        for path in (ROOT / folder).rglob("*.py"):
            found += python_texts(path)
    for path in (ROOT / "custom_ops").rglob("*.cc"):
        found += cpp_texts(path)
    return found


def occurs(message: str, texts: list[str]) -> bool:
    return any(message.rstrip(GAP) in text for text in texts)


@pytest.mark.parametrize("message", [each for each in messages() if each != OF_ONNXRUNTIME])
def test_message_is_in_the_code(message: str, texts: list[str]) -> None:
    assert occurs(message, texts)


def test_other_messages_are_not_found(texts: list[str]) -> None:
    assert len(messages()) > 20
    assert not occurs("weight has … distinct colors in column …", texts)
    assert not occurs("kernel '…' wants …", texts)


def test_message_of_onnxruntime() -> None:
    options = onnx_ternary.OptimizeOptions(function_body=False)
    model = onnx_ternary.optimize(ROOT / "examples/digits_mlp.onnx", options).to_proto()
    with pytest.raises(Exception, match=re.escape(OF_ONNXRUNTIME)):
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
