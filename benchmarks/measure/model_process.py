"""A session of a model in a process of its own, so that its memory can be told apart."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from make_bitnet import Form, Shape, feeds
from numpy.typing import NDArray

import onnx_ternary
from measure import harness

HEAD_COLUMNS = 2048
_PROFILED_RUNS = 3
_ENDING_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Case:
    """``decode@128``: one token behind 128; ``prefill@128``: 128 tokens behind none."""

    kind: str
    length: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case a user named."""
        kind, _, length = text.partition("@")
        if kind not in ("decode", "prefill") or not length.isdigit():
            raise SystemExit(f"case {text!r}, expected decode@LENGTH or prefill@LENGTH")
        return cls(kind, int(length))

    @property
    def tokens(self) -> int:
        """Computed a run."""
        return 1 if self.kind == "decode" else self.length

    def __str__(self) -> str:
        return f"{self.kind} {self.length}"


class MeasurementError(Exception):
    """A candidate that cannot be measured, or answers wrongly."""


def process_memory() -> dict[str, float]:
    """MB of this process, at its peak and by kind; empty without /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    pairs = dict(line.split(":", 1) for line in status.read_text().splitlines())
    names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "private", "RssFile": "mapped"}
    return {ours: int(pairs[name].split()[0]) / 1000 for name, ours in names.items()}


class Runner:
    """One session and its bound inputs; past and present share a buffer."""

    def __init__(self, path: Path, shape: Shape, form: Form, threads: int) -> None:
        self._path, self._shape, self._form, self._threads = path, shape, form, threads
        self._process_mb = process_memory().get("resident", 0.0)
        start = time.perf_counter()
        self._session = self._make_session()
        self.load_seconds = time.perf_counter() - start
        self._bindings: dict[Case, ort.IOBinding] = {}
        self._one_token = self._bind(self._session, Case("decode", 1))

    def _make_session(self, profile: Path | None = None) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # a shared buffer is longer than the declared output
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        return onnx_ternary.InferenceSession(self._path, options)

    def _bind(self, session: ort.InferenceSession, case: Case) -> ort.IOBinding:
        past = case.length if case.kind == "decode" else 0
        total = past + case.tokens
        values = feeds(self._shape, case.tokens, total, self._form)
        values["attention_mask"] = values["attention_mask"][:, :total]
        binding = session.io_binding()
        binding.bind_output("logits")  # first, where `run` finds it
        for name, array in values.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            if name.startswith("past_key_values"):
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        return binding

    def run(self, case: Case) -> NDArray[np.float32]:
        """The first logits of the last token."""
        if case not in self._bindings:
            self._bindings = {case: self._bind(self._session, case)}
        binding = self._bindings[case]
        self._session.run_with_iobinding(binding)
        logits = binding.get_outputs()[0].numpy()
        return np.array(logits[0, -1, :HEAD_COLUMNS], np.float32)

    def ready(self) -> None:
        """Compute one token: brings back mapped weights that the system has dropped meanwhile."""
        self._session.run_with_iobinding(self._one_token)

    def settle(self) -> None:
        """Wait until the session's threads have stopped spinning."""
        harness.settle()

    def memory(self) -> dict[str, float]:
        """The numbers of `process_memory`, and the memory before the session."""
        return process_memory() | {"process": self._process_mb}

    def profile(self, case: Case) -> dict[str, float]:
        """Share of the time of all nodes that each kind of node takes, 0.5 % or more."""
        self._bindings.clear()
        del self._one_token, self._session
        with tempfile.TemporaryDirectory() as folder:
            session = self._make_session(Path(folder) / "profile")
            binding = self._bind(session, case)
            for _ in range(_PROFILED_RUNS):
                session.run_with_iobinding(binding)
            events = json.loads(Path(session.end_profiling()).read_text())
        self._session = session
        self._one_token = self._bind(session, Case("decode", 1))
        spent: dict[str, float] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                kind = "lm_head" if "lm_head" in event["name"] else event["args"]["op_name"]
                spent[kind] = spent.get(kind, 0.0) + event["dur"]
        total = sum(spent.values())
        shares = {kind: round(each / total, 3) for kind, each in spent.items()}
        return {kind: share for kind, share in shares.items() if share >= 0.005}


def _serve(connection: Connection, *arguments: Any) -> None:
    """Answer (method, arguments) until the other side hangs up."""
    runner = Runner(*arguments)
    connection.send((runner.load_seconds, runner.memory()))
    while True:
        try:
            method, *values = connection.recv()
        except EOFError:
            return
        connection.send(getattr(runner, method)(*values))


def answer(connection: Connection, path: Path) -> Any:
    """What the process of a model sends.

    Raises:
        MeasurementError: if it has ended.
    """
    try:
        return connection.recv()
    except EOFError:
        raise MeasurementError(
            f"the process of {path.name} ended; it says above why, or ran out of memory"
        ) from None


class Remote:
    """A `Runner` in another process."""

    def __init__(self, connection: Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self.load_seconds, self.loaded_memory = answer(connection, path)

    def call(self, *request: Any) -> Any:
        """What the runner's method returns."""
        self._connection.send(request)
        return answer(self._connection, self._path)


@contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A new process, which ends with the block, and the connection it was given first."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(_ENDING_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def started(path: Path, shape: Shape, form: Form, threads: int) -> Iterator[Remote]:
    """A runner in a new process, which ends with the block."""
    with _process(_serve, path, shape, form, threads) as connection:
        yield Remote(connection, path)


def _convert(
    connection: Connection, source: Path, target: Path, options: onnx_ternary.OptimizeOptions
) -> None:
    start = time.perf_counter()
    onnx_ternary.convert(source, target, options, verify_result=False)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "cpu_seconds": time.process_time()}
    connection.send(found | {"peak_MB": process_memory().get("peak", 0.0)})


def conversion(
    source: Path, target: Path, options: onnx_ternary.OptimizeOptions
) -> dict[str, float]:
    """Seconds, seconds of processors and peak MB that converting takes in a process of its own."""
    with _process(_convert, source, target, options) as connection:
        found: dict[str, float] = answer(connection, source)
        return {name: round(value, 1) for name, value in found.items()}
