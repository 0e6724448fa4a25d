"""The program `genai_bench` runs a model folder in, started by its path.

It imports nothing of this package, so that what it takes of memory is onnxruntime-genai's and the
model's. Every line of standard input is a request as JSON, every line of standard output an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Folder:
    """A model folder, loaded and run as often as it is asked for."""

    def __init__(self, folder: str, threads: int) -> None:
        self._genai: Any = importlib.import_module("onnxruntime_genai")
        self._folder = folder
        self._threads = threads
        self._model: Any = None

    def load(self) -> dict[str, Any]:
        """Make the model anew; seconds."""
        self._model = None
        start = time.perf_counter()
        config = self._genai.Config(self._folder)
        options = {"intra_op_num_threads": self._threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        return {"seconds": time.perf_counter() - start}

    def run(self, prompt: list[int], num_new: int) -> dict[str, Any]:
        """Read a prompt and write ``num_new`` tokens, the first of them with the prompt."""
        import numpy as np

        parameters = self._genai.GeneratorParams(self._model)
        length = len(prompt) + num_new
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        tokens = np.array(prompt, np.int32)
        times = [(time.perf_counter(), time.process_time())]
        generator.append_tokens(tokens)
        generator.generate_next_token()
        times.append((time.perf_counter(), time.process_time()))
        for _ in range(num_new - 1):
            generator.generate_next_token()
        times.append((time.perf_counter(), time.process_time()))
        begun, first, last = times
        prefill, decode = _between(begun, first), _between(first, last)
        found = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
        return {"prefill": prefill, "decode": decode, "tokens": found, **memory()}


def _between(early: tuple[float, float], late: tuple[float, float]) -> list[float]:
    return [end - start for start, end in zip(early, late, strict=True)]


def memory() -> dict[str, int | None]:
    """Resident and peak bytes of this process; None where the system does not say."""
    found: dict[str, int | None] = {"resident": None, "peak": None}
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return found
    for name, field in (("resident", "VmRSS:"), ("peak", "VmHWM:")):
        for line in lines:
            if line.startswith(field):
                found[name] = int(line.split()[1]) * 1024
    return found


def main() -> None:
    """Answer requests until standard input ends."""
    # The folder of this file has modules named as if they were anybody's.
    sys.path.pop(0)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    folder = Folder(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                answer = folder.load()
            else:
                answer = folder.run(request["prompt"], request["num_new"])
        except Exception as error:  # whatever it is, the process that asked has to say it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
