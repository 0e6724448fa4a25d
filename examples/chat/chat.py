"""Write text with a model folder, token by token, and say how fast.

    pip install ".[genai]"
    onnx-ternary build CHECKPOINT FOLDER
    python examples/chat/chat.py FOLDER [--prompt TEXT]

Without --prompt every line of standard input is a turn, until it ends. A model with a chat template
gets its turns in it; any other one continues the text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime_genai as og


class Chat:
    """One conversation with one model."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        start = time.perf_counter()
        config = og.Config(str(folder))
        if threads is not None:
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self._tokenizer = og.Tokenizer(self._model)
        template = folder / "tokenizer_config.json"
        self._templated = (folder / "chat_template.jinja").is_file() or (
            template.is_file() and "chat_template" in json.loads(template.read_text("utf-8"))
        )
        self._messages: list[dict[str, str]] = []
        self.load_seconds = time.perf_counter() - start
        self.first_seconds = 0.0
        self.tokens_per_second = 0.0

    def answer(self, text: str, max_tokens: int) -> Iterator[str]:
        """The pieces of an answer as they are made; afterwards the speed is known."""
        if self._templated:
            self._messages.append({"role": "user", "content": text})
            text = self._tokenizer.apply_chat_template(
                messages=json.dumps(self._messages), add_generation_prompt=True
            )
        prompt = self._tokenizer.encode(text)
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt) + max_tokens)
        generator = og.Generator(self._model, parameters)
        stream = self._tokenizer.create_stream()
        pieces = []
        start = time.perf_counter()
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
            if not pieces:
                self.first_seconds = time.perf_counter() - start
            pieces.append(stream.decode(generator.get_next_tokens()[0]))
            yield pieces[-1]
        seconds = time.perf_counter() - start - self.first_seconds
        self.tokens_per_second = (len(pieces) - 1) / seconds if seconds else 0.0
        if self._templated:
            self._messages.append({"role": "assistant", "content": "".join(pieces)})


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def main() -> None:
    """Answer one prompt, or one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", help="answer this and end")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, help="default: onnxruntime's")
    arguments = parser.parse_args()
    chat = Chat(arguments.folder, arguments.threads)
    interactive = arguments.prompt is None and sys.stdin.isatty()
    for text in [arguments.prompt] if arguments.prompt is not None else sys.stdin:
        if not text.strip():
            continue
        for piece in chat.answer(text.rstrip("\n"), arguments.max_tokens):
            print(piece, end="", flush=True)
        print(
            f"\n[loaded in {chat.load_seconds:.1f} s, first token after "
            f"{chat.first_seconds * 1e3:.0f} ms, {chat.tokens_per_second:.1f} tokens/s, "
            f"{resident_bytes() / 1e6:.0f} MB]",
            file=sys.stderr,
        )
        if interactive:
            print("> ", end="", flush=True)


if __name__ == "__main__":
    main()
