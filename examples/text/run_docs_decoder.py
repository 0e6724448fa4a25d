"""Convert a decoder that takes strings, and run two operator libraries in one session.

    pip install . onnxruntime-extensions
    python examples/text/run_docs_decoder.py

examples/text/docs_decoder.onnx (see make_docs_decoder.py) begins with a tokenizer operator of
onnxruntime-extensions. The converted model is run with both libraries, registered in either order,
on documentation it was not trained on; loss and answers are compared with the original's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_extensions
from docs_text import split
from numpy.typing import NDArray

import onnx_ternary

MODEL = Path(__file__).resolve().with_name("docs_decoder.onnx")
PIECE = 256  # characters
BATCH_SIZE = 16
PROMPT = "A class definition is"
NEW_TOKENS = 40


def pieces(text: str) -> Iterator[str]:
    """A text cut at line ends into pieces of about PIECE characters."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            yield piece
            piece = ""


def evaluate(session: ort.InferenceSession, texts: list[str]) -> tuple[float, float]:
    """Mean loss a token in nats, and the share of tokens that came out on top."""
    losses: list[NDArray[np.float64]] = []
    right: list[NDArray[np.bool_]] = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = np.array(texts[start : start + BATCH_SIZE])
        logits, token_ids, mask = session.run(
            ["logits", "token_ids", "attention_mask"], {"text": batch}
        )
        logits, targets, real = logits[:, :-1].astype(np.float64), token_ids[:, 1:], mask[:, 1:] > 0
        largest = logits.max(axis=-1, keepdims=True)
        log_sums = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]
        found = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses.append((log_sums - found)[real])
        right.append((logits.argmax(axis=-1) == targets)[real])
    return float(np.concatenate(losses).mean()), float(np.concatenate(right).mean())


def vocabulary(model: Path) -> dict[int, bytes]:
    """What each token id stands for, from the tokenizer's attributes."""
    (tokenizer,) = [n for n in onnx.load(model).graph.node if n.op_type == "GPT2Tokenizer"]
    (vocab,) = [json.loads(each.s) for each in tokenizer.attribute if each.name == "vocab"]
    # GPT-2 writes bytes without a printable character of their own as characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    return {number: bytes(byte_of[char] for char in token) for token, number in vocab.items()}


def continuation(session: ort.InferenceSession, tokens: dict[int, bytes]) -> str:
    """PROMPT and the NEW_TOKENS likeliest tokens after it, one at a time."""
    text = PROMPT.encode()
    for _ in range(NEW_TOKENS):
        (logits,) = session.run(["logits"], {"text": np.array([text.decode(errors="ignore")])})
        text += tokens[int(logits[0, -1].argmax())]
    return text.decode(errors="replace")


def main() -> None:
    """Convert, run every kind of session, compare."""
    extensions = onnxruntime_extensions.get_library_path()
    texts = [piece for text in split()[1] for piece in pieces(text)]

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "docs_decoder.ternary.onnx"
        # The verification runs the tokenizer, too.
        conversion = onnx_ternary.convert(
            MODEL, converted, custom_op_libraries=["onnxruntime_extensions"]
        )
        for rewrite in conversion.report.rewrites:
            print(f"  {rewrite.node}: {rewrite.K} x {rewrite.N}, {rewrite.pattern}")
        for rejection in conversion.report.rejections:
            print(f"  {rejection.node} stays as it is: {rejection.reason}")
        print(
            f"file: {conversion.bytes_before / 1e3:.0f} kB -> {conversion.bytes_after / 1e3:.0f} kB"
        )
        assert conversion.verification is not None
        print(conversion.verification.summary())

        extensions_only = ort.SessionOptions()
        extensions_only.register_custom_ops_library(extensions)
        extensions_first = ort.SessionOptions()
        extensions_first.register_custom_ops_library(extensions)
        onnx_ternary.register(extensions_first)
        ternary_first = onnx_ternary.register(ort.SessionOptions())
        ternary_first.register_custom_ops_library(extensions)

        cpu = ["CPUExecutionProvider"]
        sessions = {
            "original": ort.InferenceSession(MODEL, extensions_only, cpu),
            "extensions, then onnx-ternary": onnx_ternary.InferenceSession(
                converted, extensions_first
            ),
            "onnx-ternary, then extensions": onnx_ternary.InferenceSession(
                converted, ternary_first
            ),
            "extensions only (function body)": ort.InferenceSession(
                converted, extensions_only, cpu
            ),
        }
        reference = evaluate(sessions["original"], texts)
        for name, session in sessions.items():
            loss, accuracy = evaluate(session, texts)
            print(
                f"{name:>31}: loss {loss:.4f} nats a token, perplexity {np.exp(loss):.2f}, "
                f"{accuracy:.1%} of next tokens right"
            )
            if abs(loss - reference[0]) > 1e-5:
                raise SystemExit(f"{name}: the loss differs by more than 1e-5")
        tokens = vocabulary(MODEL)
        written = {continuation(session, tokens) for session in sessions.values()}
        print("\n".join(sorted(written)))


if __name__ == "__main__":
    main()
