"""Whole decoders of BitNet's shape: tokens a second, load time, memory and file size.

Each candidate lives in a process of its own, so that its memory can be told apart, and is driven
in interleaved rounds. Decoding is one token behind a cache of some length, prefill a prompt without
one; past and present share a buffer, as onnxruntime-genai binds them. Models are written to the
folder when they are not there yet.

Usage: python benchmarks/bench_model.py FOLDER [--preset bitnet-2b] [--layers 30]
       [--vocabulary 2048] [--cases decode@128,decode@1024,prefill@128] [--threads 1,2]
       [--rounds 5] [--candidates "float32;MatMulNBits 2-bit"] [--json out.json] [--plot out.svg]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from harness import Candidate, Timing, conditions, measure
from make_bitnet import PRESETS, Form, Shape, feeds, write_model
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnx_ternary
from onnx_ternary import OptimizeOptions, model_io

_PRODUCTS = ("TernaryIndexedMatMul", "MatMulNBits", "MatMul", "FusedMatMul", "Gemm")
_PROFILED_RUNS = 3
_HEAD_COLUMNS = 2048


@dataclass(frozen=True, slots=True)
class Contestant:
    """A form of the model; ``options`` are set where it is converted.

    ``min_cosine`` is the least cosine of its logits and float32's that is still right for it:
    every layer of random weights multiplies what rounding activations to int8 changes.
    """

    name: str
    form: Form
    options: OptimizeOptions | None
    min_cosine: float

    def path(self, folder: Path, stem: str) -> Path:
        """Where the model is."""
        suffix = self.form if self.options is None else self.name.replace(" ", "-")
        return folder / f"{stem}-{suffix}.onnx"


CONTESTANTS = (
    Contestant("float32", "float32", None, 1.0 - 1e-6),
    Contestant("MatMulNBits 2-bit", "matmulnbits", None, 0.9),
    Contestant("onnx-ternary float", "float32", OptimizeOptions(), 1.0 - 1e-6),
    Contestant("onnx-ternary int8", "float32", OptimizeOptions(activation="int8"), 0.9),
)
OTHERS = (
    Contestant("float16", "float16", None, 0.99),
    Contestant("float siblings", "float32", OptimizeOptions(fuse_siblings=True), 1.0 - 1e-6),
    Contestant(
        "int8 siblings", "float32", OptimizeOptions(activation="int8", fuse_siblings=True), 0.9
    ),
    Contestant("float head int8", "float32", OptimizeOptions(remaining="int8"), 0.9),
    Contestant("float head int4", "float32", OptimizeOptions(remaining="int4"), 0.9),
)
BASELINE = CONTESTANTS[0].name


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


class Runner:
    """One session and its bound inputs, in a process of its own."""

    def __init__(self, path: Path, shape: Shape, form: Form, threads: int) -> None:
        self._path, self._shape, self._form, self._threads = path, shape, form, threads
        start = time.perf_counter()
        self._session = self._make_session()
        self.load_seconds = time.perf_counter() - start
        self._bindings: dict[Case, ort.IOBinding] = {}

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
        return np.array(logits[0, -1, :_HEAD_COLUMNS], np.float32)

    def memory(self) -> dict[str, float]:
        """MB, peak and by kind; empty where the system has no /proc."""
        status = Path("/proc/self/status")
        if not status.exists():
            return {}
        pairs = dict(line.split(":", 1) for line in status.read_text().splitlines())
        names = {"VmHWM": "peak", "RssAnon": "private", "RssFile": "mapped"}
        return {ours: int(pairs[name].split()[0]) / 1000 for name, ours in names.items()}

    def profile(self, case: Case) -> dict[str, float]:
        """Share of the time of all nodes that each kind of product takes."""
        self._bindings.clear()
        del self._session
        with tempfile.TemporaryDirectory() as folder:
            session = self._make_session(Path(folder) / "profile")
            binding = self._bind(session, case)
            for _ in range(_PROFILED_RUNS):
                session.run_with_iobinding(binding)
            events = json.loads(Path(session.end_profiling()).read_text())
        self._session = session
        spent: dict[str, float] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                kind = event["args"]["op_name"]
                kind = "lm_head" if "lm_head" in event["name"] else kind
                spent[kind] = spent.get(kind, 0.0) + event["dur"]
        total = sum(spent.values())
        return {
            kind: time_spent / total
            for kind, time_spent in spent.items()
            if kind in (*_PRODUCTS, "lm_head", "GroupQueryAttention")
        }


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


class Remote:
    """A `Runner` in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.load_seconds, self.loaded_memory = connection.recv()

    def call(self, *request: Any) -> Any:
        """What the runner's method returns."""
        self._connection.send(request)
        return self._connection.recv()


@contextmanager
def started(path: Path, shape: Shape, form: Form, threads: int) -> Iterator[Remote]:
    """A runner in a new process, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, path, shape, form, threads))
    process.start()
    theirs.close()
    try:
        yield Remote(ours)
    finally:
        ours.close()
        process.join(30)


def prepare(folder: Path, stem: str, shape: Shape, contestants: Sequence[Contestant]) -> None:
    """Write and convert the models that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for contestant in contestants:
        path = contestant.path(folder, stem)
        source = folder / f"{stem}-{contestant.form}.onnx"
        if path.exists():
            continue
        if not source.exists():
            write_model(source, shape, contestant.form)
        if contestant.options is not None:
            onnx_ternary.convert(source, path, contestant.options, verify_result=False)


def check(outputs: dict[str, NDArray[np.float32]], contestants: Sequence[Contestant]) -> None:
    """Refuse to time a wrong answer."""
    expected = outputs.get(BASELINE)
    if expected is None:
        return
    for contestant in contestants:
        found = outputs[contestant.name]
        cosine = float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
        if not cosine >= contestant.min_cosine:
            raise SystemExit(
                f"{contestant.name}: cosine {cosine:.7f} of its logits and {BASELINE}'s, expected "
                f"at least {contestant.min_cosine:.7f}"
            )


def compare(
    folder: Path,
    stem: str,
    shape: Shape,
    contestants: Sequence[Contestant],
    cases: Sequence[Case],
    threads: int,
    rounds: int,
    profiled: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of speed, one a case and contestant, and rows of size, one a contestant."""
    speeds: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    with ExitStack() as stack:
        remotes = {}
        for each in contestants:
            path = each.path(folder, stem)
            remote = stack.enter_context(started(path, shape, each.form, threads))
            remotes[each.name] = remote
            sizes.append(
                {
                    "threads": threads,
                    "candidate": each.name,
                    "file MB": round(model_io.file_bytes(path) / 1e6, 1),
                    "load s": round(remote.load_seconds, 3),
                    "private MB after loading": round(remote.loaded_memory.get("private", 0), 1),
                }
            )
        for case in cases:
            outputs = {name: remote.call("run", case) for name, remote in remotes.items()}
            check(outputs, contestants)
            candidates = [
                Candidate(name, partial(remote.call, "run", case))
                for name, remote in remotes.items()
            ]
            timings = measure(candidates, rounds=rounds, threads=threads)
            for name, timing in timings.items():
                speeds.append(_speed_row(case, threads, name, timing, timings))
                print(*speeds[-1].values(), sep=", ", file=sys.stderr, flush=True)
        for row in sizes:
            memory = remotes[row["candidate"]].call("memory")
            row |= {f"{kind} MB": round(size, 1) for kind, size in memory.items()}
            print(*row.values(), sep=", ", file=sys.stderr, flush=True)
        for row in speeds if profiled else ():
            case = next(each for each in cases if str(each) == row["case"])
            shares = remotes[row["candidate"]].call("profile", case)
            row["share of node time"] = {kind: round(each, 3) for kind, each in shares.items()}
    return speeds, sizes


def _speed_row(
    case: Case, threads: int, name: str, timing: Timing, timings: dict[str, Timing]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": str(case),
        "threads": threads,
        "candidate": name,
        "tokens/s": round(case.tokens / timing.median, 2),
        "ms": round(timing.median * 1e3, 2),
        "spread": round(timing.spread, 3),
    }
    for other in CONTESTANTS[:2]:
        if other.name in timings:
            row[f"x {other.name}"] = round(timing.ratio_to(timings[other.name]), 2)
    return row


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rows as a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)


def plot(speeds: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of tokens a second, a panel a case and number of threads."""
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["case"], row["threads"]) for row in speeds))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3), squeeze=False)
    for (case, threads), axis in zip(panels, axes[0], strict=True):
        rows = [row for row in speeds if (row["case"], row["threads"]) == (case, threads)]
        axis.barh([row["candidate"] for row in rows], [row["tokens/s"] for row in rows])
        axis.invert_yaxis()
        axis.set_title(f"{case}, {threads} thread{'s' * (threads > 1)}", fontsize=9)
        axis.set_xlabel("tokens/s")
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Check every candidate's logits, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="bitnet-2b")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--cases", default="decode@128,decode@1024,prefill@128,prefill@512")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--candidates", help="names, semicolons between (default: those of CONTESTANTS)"
    )
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()

    shape = replace(
        PRESETS[arguments.preset], layers=arguments.layers, vocabulary=arguments.vocabulary
    )
    stem = f"{arguments.preset}-{shape.layers}x{shape.vocabulary}"
    contestants = CONTESTANTS
    if arguments.candidates:
        names = arguments.candidates.split(";")
        contestants = tuple(each for each in (*CONTESTANTS, *OTHERS) if each.name in names)
    cases = [Case.parse(text) for text in arguments.cases.split(",") if text]
    prepare(arguments.folder, stem, shape, contestants)
    speeds: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    for threads in map(int, arguments.threads.split(",")):
        rows = compare(
            arguments.folder,
            stem,
            shape,
            contestants,
            cases,
            threads,
            arguments.rounds,
            arguments.profile,
        )
        speeds += rows[0]
        sizes += rows[1]
    facts = conditions() | {
        "model": f"{arguments.preset}, {shape.layers} layers, vocabulary {shape.vocabulary}",
        "rounds": f"{arguments.rounds} interleaved, medians, a process a candidate",
    }
    console = Console(width=170)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for each in (speeds, sizes):
        if each:
            show(each, console)
    if arguments.json:
        content = {"conditions": facts, "rows": speeds, "sizes": sizes}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    if arguments.plot:
        plot(speeds, arguments.plot)


if __name__ == "__main__":
    main()
