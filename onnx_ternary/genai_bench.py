"""How fast onnxruntime-genai reads and writes text with a model folder, and with what memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from onnx_ternary import _genai_process
from onnx_ternary._paired import Comparison, compare, take_turns
from onnx_ternary.bench import comparison_as_json, format_seconds
from onnx_ternary.building.model_folder import CONFIG
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name
from onnx_ternary.reports.report import format_size

_CLOSING_SECONDS = 10.0
_MAX_CONFIG_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class GenaiBenchSettings:
    """How folders are timed.

    Attributes:
        threads: intra-op threads of either session.
        rounds: how often each folder reads the prompt and writes; fewer than 15 give no answer.
        prompt_tokens: length of the prompt, random tokens.
        new_tokens: tokens to write, the first of which comes with the prompt; at least 2.
        seed: of the prompt, and of the coin that decides who begins.
    """

    threads: int = 1
    rounds: int = 25
    prompt_tokens: int = 64
    new_tokens: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FolderSpeed:
    """One folder, one entry per round.

    Attributes:
        prefill_seconds: from a prompt to its first token.
        decode_seconds: of the tokens behind the first.
        prefill_processor_seconds: of all threads together.
        decode_processor_seconds: of all threads together.
        load_seconds: of a model that was loaded before, one entry per round that did it again.
        resident_bytes: of a process that has loaded the model once and written once; None where
            the system does not say.
        peak_bytes: the most that process had until then, or None.
        folder_bytes: of the folder's files.
    """

    prefill_seconds: tuple[float, ...]
    decode_seconds: tuple[float, ...]
    prefill_processor_seconds: tuple[float, ...]
    decode_processor_seconds: tuple[float, ...]
    load_seconds: tuple[float, ...]
    resident_bytes: int | None
    peak_bytes: int | None
    folder_bytes: int


@dataclass(frozen=True, slots=True)
class GenaiBenchmark:
    """What `bench_folders` measured.

    Attributes:
        folder: the folder of interest.
        against: the folder it is compared with, or None.
        settings: how.
        equal_tokens: how many of the new tokens are the same up to the first that is not; None
            for one folder.
    """

    folder: FolderSpeed
    against: FolderSpeed | None
    settings: GenaiBenchSettings
    equal_tokens: int | None

    def rates(self, speed: FolderSpeed) -> dict[str, float]:
        """Median tokens per second of time, and per second of a processor."""
        read, written = self.settings.prompt_tokens, self.settings.new_tokens - 1
        return {
            "prefill": read / float(np.median(speed.prefill_seconds)),
            "decode": written / float(np.median(speed.decode_seconds)),
            "prefill_per_processor": read / float(np.median(speed.prefill_processor_seconds)),
            "decode_per_processor": written / float(np.median(speed.decode_processor_seconds)),
        }

    def comparisons(self) -> dict[str, Comparison]:
        """How many times faster ``folder`` is than ``against``; empty for one folder."""
        if self.against is None:
            return {}
        return {
            name: compare(getattr(self.against, key), getattr(self.folder, key))
            for name, key in (
                ("Prefill", "prefill_seconds"),
                ("Decode", "decode_seconds"),
                ("Load", "load_seconds"),
            )
        }

    def verdict(self) -> str:
        """Lines for people, each with what can be said; empty for one folder."""
        other = self.against
        if other is None:
            return ""
        lines = [f"{name}: {found.text()}." for name, found in self.comparisons().items()]
        if self.folder.resident_bytes and other.resident_bytes:
            lines.append(
                f"Memory: {format_size(other.resident_bytes)} -> "
                f"{format_size(self.folder.resident_bytes)}."
            )
        lines.append(
            f"Folder: {format_size(other.folder_bytes)} -> {format_size(self.folder.folder_bytes)}."
        )
        total = self.settings.new_tokens
        same = "all" if self.equal_tokens == total else f"the first {self.equal_tokens} of"
        lines.append(f"Tokens: {same} {total} are the same.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""

        def one(speed: FolderSpeed) -> dict[str, Any]:
            return {**asdict(speed), "tokens_per_second": self.rates(speed)}

        return {
            "folder": one(self.folder),
            "against": None if self.against is None else one(self.against),
            "settings": asdict(self.settings),
            "equal_tokens": self.equal_tokens,
            "comparisons": {
                name.lower(): comparison_as_json(found)
                for name, found in self.comparisons().items()
            },
        }


def bench_folders(
    folder: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    settings: GenaiBenchSettings | None = None,
) -> GenaiBenchmark:
    """Time model folders in onnxruntime-genai, each in a process of its own.

    Every round lets each folder read the same prompt and write, in an order a coin decides; how
    rounds become an answer is told in `onnx_ternary._paired`.

    Args:
        folder: has genai_config.json.
        against: another folder, to be compared with.
        settings: None for the defaults.

    Raises:
        ModelError: if a folder has no usable genai_config.json, onnxruntime-genai is missing or
            refuses a model, or prompt and answer are longer than a model's context.
    """
    settings = settings or GenaiBenchSettings()
    if find_spec("onnxruntime_genai") is None:
        raise ModelError(
            "Timing a model folder needs onnxruntime-genai; install it with "
            "'pip install onnx-ternary[genai]'."
        )
    paths = [Path(each) for each in (folder, against) if each is not None]
    vocabulary = min(_vocabulary(path, settings) for path in paths)
    rng = np.random.default_rng(settings.seed)
    prompt = [int(token) for token in rng.integers(0, vocabulary, settings.prompt_tokens)]
    with ExitStack() as stack:
        entries = [_Entry(path, settings.threads) for path in paths]
        for entry in entries:
            stack.callback(entry.close)
        # Not timed: it fills the file cache, and memory is what one load and one answer take.
        loading = sum(entry.load() for entry in entries)
        for entry in entries:
            entry.run(prompt, settings.new_tokens, timed=False)
        take_turns(
            entries,
            settings.rounds,
            settings.seed,
            loading_seconds=loading,
            load=_load_anew,
            run=lambda entry: entry.run(prompt, settings.new_tokens, timed=True),
        )
        speeds = [entry.speed() for entry in entries]
        tokens = [entry.tokens for entry in entries]
    if against is None:
        return GenaiBenchmark(speeds[0], None, settings, None)
    return GenaiBenchmark(speeds[0], speeds[1], settings, _num_equal(*tokens))


def _vocabulary(folder: Path, settings: GenaiBenchSettings) -> int:
    """Words of a folder's model, whose context must be long enough."""
    check_name(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(
            f"'{folder}' has no {CONFIG}; expected a folder that 'onnx-ternary build' or "
            "onnxruntime-genai's builder wrote."
        )
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"'{path}' is larger than {format_size(_MAX_CONFIG_BYTES)}.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{path}' is not JSON ({error}).") from error
    model = content.get("model") if isinstance(content, Mapping) else None
    model = model if isinstance(model, Mapping) else {}
    vocabulary, context = (
        _positive(model, name, path) for name in ("vocab_size", "context_length")
    )
    length = settings.prompt_tokens + settings.new_tokens
    if length > context:
        raise ModelError(
            f"'{folder}' takes {context} tokens at most; prompt and new tokens are {length}."
        )
    return vocabulary


def _positive(model: Mapping[str, Any], name: str, path: Path) -> int:
    size = model.get(name)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 2**31:
        raise ModelError(f"'{path}': model.{name} is {size!r}, expected a positive integer.")
    return size


@dataclass(slots=True)
class _Entry:
    """A folder that takes part, its process and its times."""

    folder: Path
    threads: int
    prefill: list[list[float]] = field(default_factory=list)
    decode: list[list[float]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    _memory: tuple[int | None, int | None] = (None, None)
    _process: Any = None
    _errors: Any = None

    def __post_init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        command = [sys.executable, _genai_process.__file__, str(self.folder), str(self.threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )

    def load(self) -> float:
        """Make the model anew; seconds."""
        return float(self._ask({"do": "load"})["seconds"])

    def run(self, prompt: Sequence[int], num_new: int, *, timed: bool) -> None:
        """Let the model read and write."""
        found = self._ask({"do": "run", "prompt": list(prompt), "num_new": num_new})
        if timed:
            self.prefill.append(found["prefill"])
            self.decode.append(found["decode"])
        else:
            self.tokens = found["tokens"]
            self._memory = found["resident"], found["peak"]

    def speed(self) -> FolderSpeed:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return FolderSpeed(
            tuple(each[0] for each in self.prefill),
            tuple(each[0] for each in self.decode),
            tuple(each[1] for each in self.prefill),
            tuple(each[1] for each in self.decode),
            tuple(self.loads),
            self._memory[0],
            self._memory[1],
            sum(path.stat().st_size for path in files),
        )

    def close(self) -> None:
        """End the process and wait for it."""
        try:
            self._process.communicate(timeout=_CLOSING_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise ModelError(f"onnxruntime-genai cannot run '{self.folder}': {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended with code {code}; {lines[-1] if lines else 'it said nothing'}"


def _load_anew(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        entry.loads.append(entry.load())


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    for at, (first, second) in enumerate(zip(one, other, strict=True)):
        if first != second:
            return at
    return len(one)


def describe(speed: FolderSpeed, rates: Mapping[str, float]) -> dict[str, str]:
    """A row of a table for people."""
    return {
        "prefill": f"{rates['prefill']:.3g} tokens/s",
        "decode": f"{rates['decode']:.3g} tokens/s",
        "load": format_seconds(float(np.median(speed.load_seconds))),
        "memory": "unknown" if speed.resident_bytes is None else format_size(speed.resident_bytes),
        "size": format_size(speed.folder_bytes),
    }
