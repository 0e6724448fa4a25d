"""Greedy decoding three ways: transformers, onnxruntime-genai, and onnxruntime alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from onnx_ternary import register

END = 1


class Transformers:
    """The checkpoint in float32 arithmetic, as docs/llm.md says it has to be loaded."""

    def __init__(self, checkpoint: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        # Quantized models refuse float(), and BitLinear keeps the dtype it was made with.
        torch.nn.Module.float(model)
        for module in model.modules():
            if type(module).__name__ == "BitLinear":
                module.dtype = torch.float32
        self._model = model

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """Up to ``count`` tokens behind a prompt, the one that ends the text among them."""
        out = self._model.generate(
            torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False, pad_token_id=END
        )
        return [int(token) for token in out[0]][len(prompt) :]

    def logits(self, prompt: Sequence[int]) -> NDArray[np.float64]:
        """Logits (length, vocabulary) of a prompt."""
        with torch.no_grad():
            return self._model(torch.tensor([list(prompt)])).logits[0].double().numpy()

    def margin(self, prompt: Sequence[int]) -> tuple[float, float]:
        """How far the two best logits behind a prompt are apart, and their root mean square."""
        logits = self.logits(prompt)[-1]
        second, best = np.sort(logits)[-2:]
        return float(best - second), float(np.sqrt(np.mean(logits**2)))


class Genai:
    """A built folder in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self.tokenizer = og.Tokenizer(self._model)

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """As `Transformers.tokens`."""
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
        generator = og.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


class Onnxruntime:
    """A built folder's model in a plain session, its cache bound to its outputs."""

    def __init__(self, folder: Path) -> None:
        options = register(ort.SessionOptions())
        options.intra_op_num_threads = 1
        model = str(folder / "model.onnx")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._caches = [each for each in self._session.get_inputs() if "past" in each.name]

    def _empty(self) -> list[NDArray[np.float32]]:
        return [np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in self._caches]

    def logits(self, prompt: Sequence[int]) -> NDArray[np.float64]:
        """As `Transformers.logits`."""
        feeds = {each.name: cache for each, cache in zip(self._caches, self._empty(), strict=True)}
        feeds["input_ids"] = np.array([prompt], np.int64)
        feeds["attention_mask"] = np.ones((1, len(prompt)), np.int64)
        return self._session.run(["logits"], feeds)[0][0].astype(np.float64)

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """As `Transformers.tokens`."""
        caches = [ort.OrtValue.ortvalue_from_numpy(each) for each in self._empty()]
        new, found = np.array([prompt], np.int64), list[int]()
        while len(found) < count and found[-1:] != [END]:
            binding = self._session.io_binding()
            binding.bind_cpu_input("input_ids", new)
            mask = np.ones((1, len(prompt) + len(found)), np.int64)
            binding.bind_cpu_input("attention_mask", mask)
            for each, cache in zip(self._caches, caches, strict=True):
                binding.bind_ortvalue_input(each.name, cache)
            for output in self._session.get_outputs():
                binding.bind_output(output.name)
            self._session.run_with_iobinding(binding)
            logits, *caches = binding.get_outputs()
            found.append(int(np.argmax(logits.numpy()[0, -1])))
            new = np.array([found[-1:]], np.int64)
        return found


def tokenizer(checkpoint: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it."""
    return PreTrainedTokenizerFast.from_pretrained(checkpoint)
