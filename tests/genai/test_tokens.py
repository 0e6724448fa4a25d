"""The same greedy tokens from transformers, from onnxruntime-genai and from onnxruntime alone.

Where a sequence differs for the first time, both tokens must be as good as each other: the two best
logits of transformers lie closer than what the arithmetic may change. For products that round
nothing that is float32's rounding; where activations are rounded to int8, a value on the border
between two integers may fall to either side, so it is one of the 127 steps, of a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import LAYOUTS, TEXT

from onnx_ternary import BuildOptions, BuildResult, build
from tests.genai.decoding import Genai, Onnxruntime, Transformers, tokenizer
from tests.genai.trained import Trained

NUM_TOKENS = 48
PROMPTS = (TEXT[:24], TEXT[300:330], TEXT[900:925], "If the loop", "a break in an else")
# Relative to the root mean square of the logits.
ALLOWED = {"float": 2.0**-12, "int8": 1 / 127}


def check_equal(
    reference: Transformers,
    prompt: Sequence[int],
    expected: Sequence[int],
    found: Sequence[int],
    activation: str,
) -> int:
    """How many tokens are equal; all of them, or up to where two are as good as each other."""
    for at, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            margin, size = reference.margin([*prompt, *expected[:at]])
            assert margin <= ALLOWED[activation] * size, (
                f"token {at} is {other}, expected {one}, better by {margin:g} (logits {size:g})"
            )
            return at
    # onnxruntime-genai leaves out the token that ends a text.
    assert abs(len(expected) - len(found)) <= 1
    return min(len(expected), len(found))


@pytest.mark.parametrize("layout", [layout for each in LAYOUTS.values() for layout in each])
def test_tokens_are_those_of_transformers(tmp_path: Path, trained: Trained, layout: str) -> None:
    checkpoint = trained[layout]
    result = build(checkpoint, tmp_path / "built")
    assert result.activation == ("float" if "plain" in layout or "qwen" in layout else "int8")
    assert result.notes == ()
    reference = Transformers(checkpoint)
    genai, plain = Genai(tmp_path / "built"), Onnxruntime(tmp_path / "built")
    encode = tokenizer(checkpoint)
    equal, different = 0, set[int]()
    for text in PROMPTS:
        prompt = encode(text).input_ids
        assert list(genai.tokenizer.encode(text)) == prompt
        expected = reference.tokens(prompt, NUM_TOKENS)
        different |= set(expected)
        for found in (genai.tokens(prompt, NUM_TOKENS), plain.tokens(prompt, NUM_TOKENS)):
            equal += check_equal(reference, prompt, expected, found, result.activation)
        assert genai.tokenizer.decode(expected) == encode.decode(expected)
    # A model that repeats one token would agree with anything.
    assert len(different) > NUM_TOKENS / 2
    assert equal > NUM_TOKENS * len(PROMPTS)


def test_only_rounded_activations_give_the_logits_of_transformers(
    tmp_path: Path, trained: Trained
) -> None:
    """Why int8 is the default of checkpoints that were trained with it."""
    checkpoint = trained["bitnet-packed"]
    prompt = tokenizer(checkpoint)(TEXT[:200]).input_ids
    expected = Transformers(checkpoint).logits(prompt)
    distances = {}
    for activation in ("int8", "keep"):
        options = BuildOptions(activation="int8" if activation == "int8" else "keep")
        build(checkpoint, tmp_path / activation, options, verify_result=False)
        found = Onnxruntime(tmp_path / activation).logits(prompt)
        distances[activation] = np.sqrt(np.mean((found - expected) ** 2))
    assert distances["int8"] < distances["keep"] / 4


@pytest.mark.parametrize("head", ["int8", "int4"])
def test_a_quantized_head_runs(tmp_path: Path, trained: Trained, head: str) -> None:
    checkpoint = trained["bitnet-packed"]
    options = BuildOptions(head="int8" if head == "int8" else "int4")
    result: BuildResult = build(checkpoint, tmp_path / "built", options)
    assert result.products[-1]["kind"] == "MatMulNBits"
    genai, plain = Genai(tmp_path / "built"), Onnxruntime(tmp_path / "built")
    prompt = tokenizer(checkpoint)(PROMPTS[0]).input_ids
    tokens = genai.tokens(prompt, NUM_TOKENS)
    assert tokens == plain.tokens(prompt, NUM_TOKENS)[: len(tokens)]


def test_more_threads_give_the_same_tokens(tmp_path: Path, trained: Trained) -> None:
    checkpoint = trained["bitnet-packed"]
    build(checkpoint, tmp_path / "built", verify_result=False)
    prompt = tokenizer(checkpoint)(PROMPTS[1]).input_ids
    one, two = (Genai(tmp_path / "built", threads).tokens(prompt, NUM_TOKENS) for threads in (1, 2))
    assert one == two
