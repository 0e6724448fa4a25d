"""examples/chat, as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from make_checkpoint import TEXT

from onnx_ternary import build
from tests.genai.trained import Trained

CHAT = Path(__file__).parents[2] / "examples/chat/chat.py"
SPEED = re.compile(r"\[loaded in [\d.]+ s, first token after \d+ ms, [\d.]+ tokens/s, (\d+) MB\]")


def run(*arguments: str, text: str = "") -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, str(CHAT), *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, SPEED.findall(done.stderr)


def test_it_continues_a_text_and_says_how_fast(tmp_path: Path, trained: Trained) -> None:
    build(trained["bitnet-packed"], tmp_path / "built", verify_result=False)
    start = TEXT.splitlines()[3]
    said, speeds = run(str(tmp_path / "built"), "--prompt", start, "--max-tokens", "20")
    assert len(speeds) == 1
    # It has seen little else than these words.
    assert any(word in TEXT for word in said.split())
    again, speeds = run(str(tmp_path / "built"), "--max-tokens", "20", text=f"{start}\n\n{start}\n")
    assert len(speeds) == 2
    assert again == said + said


def test_a_chat_template_is_used(tmp_path: Path, trained: Trained) -> None:
    checkpoint = trained["bitnet-packed"]
    build(checkpoint, tmp_path / "built", verify_result=False)
    (tmp_path / "built/chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    )
    plain, _ = run(str(tmp_path / "built"), "--prompt", "The\n", "--max-tokens", "8")
    assert plain.strip()
