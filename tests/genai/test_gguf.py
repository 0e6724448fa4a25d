"""Tokens of models built from GGUF files are those transformers writes with the checkpoint."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from make_checkpoint import TEXT

from onnx_ternary import build
from tests.genai.decoding import Genai, Transformers, tokenizer
from tests.genai.trained import Trained
from tests.support.gguf_files import Q1_0, write_gguf

PROMPTS = (TEXT[:24], TEXT[300:330], "If the loop")
NUM_TOKENS = 32
# As in test_tokens.py, relative to the root mean square of the logits.
ALLOWED = 2.0**-12


@pytest.mark.parametrize(
    ("layout", "kind", "table"),
    [
        ("llama-plain", gguf.GGMLQuantizationType.TQ1_0, gguf.GGMLQuantizationType.F32),
        ("llama-plain", gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.BF16),
        ("qwen-binary", Q1_0, gguf.GGMLQuantizationType.F16),
    ],
)
def test_tokens_are_those_of_transformers(
    tmp_path: Path, trained: Trained, layout: str, kind: int, table: int
) -> None:
    checkpoint = trained[layout]
    path = write_gguf(tmp_path / "model.gguf", checkpoint, kind, table=table)
    result = build(path, tmp_path / "built", tokenizer=checkpoint)
    assert result.verification is not None
    assert result.verification.passed
    reference, built = Transformers(checkpoint), Genai(tmp_path / "built")
    encode = tokenizer(checkpoint)
    equal, different = 0, set[int]()
    for text in PROMPTS:
        prompt = encode(text).input_ids
        assert list(built.tokenizer.encode(text)) == prompt
        expected = reference.tokens(prompt, NUM_TOKENS)
        different |= set(expected)
        for at, (one, other) in enumerate(
            zip(expected, built.tokens(prompt, NUM_TOKENS), strict=False)
        ):
            if one != other:
                margin, size = reference.margin([*prompt, *expected[:at]])
                assert margin <= ALLOWED * size
                break
            equal += 1
    assert len(different) > NUM_TOKENS / 2
    assert equal > NUM_TOKENS * len(PROMPTS) / 2
