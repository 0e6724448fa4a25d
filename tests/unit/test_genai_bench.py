"""What is said about timed folders, and what is refused before any is; tests/genai runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnx_ternary import genai_bench
from onnx_ternary.errors import ModelError
from onnx_ternary.genai_bench import (
    FolderSpeed,
    GenaiBenchmark,
    GenaiBenchSettings,
    bench_folders,
)
from tests.support.command_line import run


@pytest.fixture
def with_genai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_bench, "find_spec", lambda name: name)


def speed(prefill: float, decode: float, resident: int | None) -> FolderSpeed:
    times = ((prefill,) * 15, (decode,) * 15)
    return FolderSpeed(*times, *times, (1.0,), resident, resident, 10**9)


def test_the_verdict_says_how_much_faster_the_first_folder_is() -> None:
    one, other = speed(1.0, 1.5, 10**9), speed(4.0, 1.5, 3 * 10**9)
    result = GenaiBenchmark(one, other, GenaiBenchSettings(), 7)
    assert result.verdict().splitlines() == [
        "Prefill: 4.00 times faster (4.00 to 4.00).",
        "Decode: no difference measured (1.00 to 1.00 times).",
        "Load: too few rounds for an answer, at least 15 are needed.",
        "Memory: 3 GB -> 1 GB.",
        "Folder: 1 GB -> 1 GB.",
        "Tokens: the first 7 of 16 are the same.",
    ]
    assert result.rates(one)["prefill"] == 64
    assert result.rates(one)["decode"] == 10
    assert json.loads(json.dumps(result.to_dict()))["comparisons"]["prefill"]["answer"] == "faster"


def test_unknown_memory_is_not_compared() -> None:
    one = speed(1.0, 1.0, None)
    assert "Memory" not in GenaiBenchmark(one, one, GenaiBenchSettings(), 16).verdict()


@pytest.mark.usefixtures("with_genai")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "vocab_size is None, expected a positive integer"),
        ({"model": {"vocab_size": -1, "context_length": 99}}, "vocab_size is -1"),
        ({"model": {"vocab_size": 9, "context_length": True}}, "context_length is True"),
        ({"model": {"vocab_size": 9, "context_length": 79}}, "takes 79 tokens at most"),
    ],
)
def test_a_configuration_without_sizes_is_refused(
    tmp_path: Path, content: Any, reason: str
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(ModelError, match=reason):
        bench_folders(tmp_path)


@pytest.mark.usefixtures("with_genai")
def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no genai_config\.json; expected a folder"):
        bench_folders(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_bench, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install onnx-ternary\[genai\]"):
        bench_folders(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "MODEL is missing; name an ONNX file, or give --genai FOLDER"),
        (("model.onnx", "--against", "folder"), "'--against' does not go with a MODEL"),
        (("model.onnx", "--new-tokens", "4"), "'--new-tokens' does not go with a MODEL"),
        (("model.onnx", "--genai", "folder"), "'[MODEL]' does not go with --genai"),
        (("--genai", "folder", "--max-difference", "1"), "does not go with --genai"),
    ],
)
def test_options_of_the_other_kind_are_refused(arguments: tuple[str, ...], reason: str) -> None:
    done = run("bench", *arguments, check=2)
    assert reason in " ".join(done.stderr.replace("|", " ").replace("│", " ").split())
