"""Whole decoders of BitNet's shape: tokens a second, load time, memory, file size, conversion.

Each candidate lives in a process of its own and is driven in interleaved rounds. Decoding is one
token behind a cache of some length, prefill a prompt without one; past and present share a buffer,
as onnxruntime-genai binds them. Models are written to FOLDER when they are not there yet: 35 GB for
all parts. Results are written after every case, and replace those of the same part only, so a run
may be ended at any time and resumed with --parts.

Usage: python benchmarks/bench_model.py FOLDER [--parts "two threads; load"] [--json out.json]
       [--preset bitnet-2b] [--layers 30] [--cases decode@128] [--candidates "float32;float16"]
       [--rounds 11] [--generate-only]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from make_bitnet import PRESETS, Form, Shape, write_model
from measure.harness import Candidate, Timing, conditions, measure
from measure.model_process import Case, MeasurementError, Remote, conversion, started
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.model_files.load import data_files, file_bytes, load
from onnx_ternary.op.nodes import index_tensors, op_nodes, read_attributes

LAYERS_ALONE = 2048
"""A vocabulary so small that the float head hides nothing."""


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
        suffix = self.form if self.options is None else "-".join(re.findall(r"[\w-]+", self.name))
        return folder / f"{stem}-{suffix}.onnx"

    @property
    def is_dense(self) -> bool:
        """Whether a session of it holds float32 weights: loading it takes long, and memory."""
        return self.options is None and self.form != "matmulnbits"


EXACT = 1.0 - 1e-6
FLOAT32 = Contestant("float32", "float32", None, EXACT)
FLOAT16 = Contestant("float16", "float16", None, 0.99)
NBITS = Contestant("MatMulNBits 2-bit", "matmulnbits", None, 0.9)
FLOAT = Contestant("onnx-ternary float", "float32", OptimizeOptions(), EXACT)
INT8 = Contestant("onnx-ternary int8", "float32", OptimizeOptions(activation="int8"), 0.9)
FLOAT_FUSED = Contestant(
    "onnx-ternary float, siblings fused", "float32", OptimizeOptions(fuse_siblings=True), EXACT
)
INT8_FUSED = Contestant(
    "onnx-ternary int8, siblings fused",
    "float32",
    OptimizeOptions(activation="int8", fuse_siblings=True),
    0.9,
)
DENSE = Contestant("onnx-ternary float, dense", "float32", OptimizeOptions(storage="dense"), EXACT)
HEAD_INT8 = Contestant(
    "onnx-ternary float, head int8", "float32", OptimizeOptions(remaining="int8"), 0.9
)
HEAD_INT4 = Contestant(
    "onnx-ternary float, head int4", "float32", OptimizeOptions(remaining="int4"), 0.9
)


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure of one model: speeds, or what loading or converting it takes."""

    name: str
    contestants: tuple[Contestant, ...]
    cases: tuple[Case, ...] = ()
    threads: int = 2
    whole: bool = False
    profiled: tuple[Case, ...] = ()
    kind: Literal["speed", "load", "conversion"] = "speed"


DECODES = tuple(Case("decode", length) for length in (128, 512, 1024, 2048))
PREFILLS = tuple(Case("prefill", length) for length in (128, 512))
MAIN = (FLOAT32, NBITS, FLOAT, INT8, FLOAT_FUSED, INT8_FUSED)
PROFILED = (DECODES[0], DECODES[2], PREFILLS[0])
PARTS = (
    Part("two threads", MAIN, DECODES + PREFILLS, profiled=PROFILED),
    Part("load", (FLOAT32, NBITS, FLOAT, INT8, DENSE, FLOAT16), (DECODES[2],), kind="load"),
    Part(
        "whole",
        (FLOAT32, NBITS, FLOAT, HEAD_INT8, HEAD_INT4),
        (DECODES[0], DECODES[2]),
        whole=True,
        profiled=(DECODES[0],),
    ),
    Part("one thread", MAIN, DECODES[::2] + PREFILLS[:1], threads=1, profiled=PROFILED[:1]),
    Part("convert", (FLOAT,), kind="conversion"),
    Part("convert whole", (FLOAT, HEAD_INT8), whole=True, kind="conversion"),
    Part("float16", (FLOAT16, FLOAT), (DECODES[0], PREFILLS[0])),
    Part("one thread, long prefill", MAIN[:4], PREFILLS[1:], threads=1),
)
ROUNDS = {"decode": 11, "prefill": 5}
LOADS = 3
# Of one case, the runs before apart; at least so many rounds all the same.
BUDGET_SECONDS = {"decode": 20.0, "prefill": 80.0}
MIN_ROUNDS = 3
SECONDS_A_ROUND = 0.1


@dataclass(frozen=True)
class Plan:
    """Which model, where its forms are, and rounds at most."""

    folder: Path
    preset: str
    layers: int
    rounds: int

    def shape(self, part: Part) -> Shape:
        """The shape of the part's model."""
        preset = PRESETS[self.preset]
        vocabulary = preset.vocabulary if part.whole else min(LAYERS_ALONE, preset.vocabulary)
        return replace(preset, layers=self.layers, vocabulary=vocabulary)

    def stem(self, part: Part) -> str:
        """What the files of the part's model begin with."""
        return f"{self.preset}-{self.layers}x{self.shape(part).vocabulary}"

    def path(self, part: Part, contestant: Contestant) -> Path:
        """Where a form of the part's model is."""
        return contestant.path(self.folder, self.stem(part))

    def fitted(self, part: Part) -> Part:
        """The part with no case longer than the model's rotary tables."""
        most = self.shape(part).max_length - 1
        cases = dict.fromkeys(Case(each.kind, min(each.length, most)) for each in part.cases)
        return replace(part, cases=tuple(cases))

    def prepare(self, part: Part) -> None:
        """Write and convert the models that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for contestant in part.contestants:
            path = self.path(part, contestant)
            source = replace(contestant, options=None).path(self.folder, self.stem(part))
            if path.exists():
                continue
            if not source.exists():
                say(f"writing {source.name}")
                write_model(source, self.shape(part), contestant.form)
            if contestant.options is not None:
                say(f"converting {path.name}")
                onnx_ternary.convert(source, path, contestant.options, verify_result=False)


def say(text: str) -> None:
    """Tell a person who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass
class Results:
    """What was measured, in a file that holds every finished case."""

    path: Path | None
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Results:
        """The results that a file holds already."""
        there = path is not None and path.exists()
        return cls(path, json.loads(path.read_text(encoding="utf-8")) if path and there else {})

    @cached_property
    def _conditions(self) -> dict[str, str]:
        return conditions()

    def save(self, part: str, model: str, rows: list[dict[str, Any]]) -> None:
        """Write all that was measured, these rows in place of an earlier run's of the part."""
        facts = {"model": model, **self._conditions, "date": time.strftime("%Y-%m-%d")}
        self.found[part] = {"conditions": facts, "rows": rows}
        if self.path is not None:
            staged = self.path.with_suffix(".new")
            staged.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            staged.replace(self.path)


def check(outputs: dict[str, NDArray[np.float32]], contestants: Sequence[Contestant]) -> None:
    """Refuse to keep times of a wrong answer; without float32, ours float is the standard."""
    standard = next((name for name in (FLOAT32.name, FLOAT.name) if name in outputs), None)
    if standard is None:
        return
    expected = outputs[standard]
    for contestant in contestants:
        found = outputs[contestant.name]
        cosine = float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
        if not cosine >= contestant.min_cosine:
            raise MeasurementError(
                f"{contestant.name}: cosine {cosine:.7f} of its logits and {standard}'s, expected "
                f"at least {contestant.min_cosine:.7f}"
            )


def measure_speeds(plan: Plan, part: Part, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Rows of time, one per case and contestant; yields when some are complete."""
    shape = plan.shape(part)
    with ExitStack() as stack:
        remotes: dict[str, Remote] = {}
        for each in part.contestants:  # float32 first, while memory is free
            path = plan.path(part, each)
            remote = stack.enter_context(started(path, shape, each.form, part.threads))
            remotes[each.name] = remote
            say(f"{each.name} loaded in {remote.load_seconds:.1f} s")

        def settle() -> None:
            for remote in remotes.values():
                remote.call("settle")

        for case in part.cases:
            outputs: dict[str, NDArray[np.float32]] = {}
            timings = measure(
                [_candidate(name, remote, case, outputs) for name, remote in remotes.items()],
                rounds=min(plan.rounds, ROUNDS[case.kind]),
                seconds_a_round=SECONDS_A_ROUND,
                threads=part.threads,
                budget_seconds=BUDGET_SECONDS[case.kind],
                min_rounds=MIN_ROUNDS,
                settle=settle,
            )
            check(outputs, part.contestants)
            rows += [_speed_row(case, part.threads, *timing) for timing in timings.items()]
            for name, timing in timings.items():
                say(
                    f"{part.name}, {case}, {name}: {case.tokens / timing.median:.2f} tokens/s, "
                    f"spread {timing.spread:.0%} of {len(timing.seconds)}"
                )
            yield
        for row in rows:
            contestant = next(each for each in part.contestants if each.name == row["candidate"])
            for case in part.profiled:
                if str(case) == row["case"] and not contestant.is_dense:
                    row["shares"] = remotes[contestant.name].call("profile", case)
    yield


def _candidate(
    name: str, remote: Remote, case: Case, outputs: dict[str, NDArray[np.float32]]
) -> Candidate:
    def run() -> None:
        outputs[name] = remote.call("run", case)

    def ready() -> None:
        # Rounds of prefill take so long that mapped weights may be dropped in between.
        if case.kind == "prefill":
            remote.call("ready")

    return Candidate(name, run, ready)


def _speed_row(case: Case, threads: int, name: str, timing: Timing) -> dict[str, Any]:
    return {
        "case": str(case),
        "tokens": case.tokens,
        "threads": threads,
        "candidate": name,
        "rounds_ms": [round(seconds * 1e3, 2) for seconds in timing.seconds],
    }


def measure_loads(plan: Plan, part: Part, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Rows of load time and memory, each session alone and used once."""
    (case,) = part.cases
    for number in range(min(plan.rounds, LOADS)):
        for contestant in part.contestants:
            if contestant.is_dense and number:
                continue
            path = plan.path(part, contestant)
            if not contestant.is_dense:
                read(path)
            with started(path, plan.shape(part), contestant.form, part.threads) as remote:
                remote.call("run", case)
                memory = remote.call("memory")
                say(f"{contestant.name}: loaded in {remote.load_seconds:.2f} s, {memory}")
                row = next((row for row in rows if row["candidate"] == contestant.name), None)
                if row is None:
                    row = {
                        "candidate": contestant.name,
                        "case": str(case),
                        "file": file_bytes(path),
                        **_linear_bytes(path, contestant),
                        "loads_s": [],
                        "private_after_loading_MB": remote.loaded_memory.get("private"),
                    }
                    rows.append(row)
                row["loads_s"].append(round(remote.load_seconds, 3))
                for kind, size in memory.items():
                    row[f"{kind}_MB"] = max(row.get(f"{kind}_MB", 0.0), size)
        yield


def read(path: Path) -> None:
    """Bring a model's files into the page cache."""
    for each in (path, *data_files(path)):
        with each.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _linear_bytes(path: Path, contestant: Contestant) -> dict[str, int]:
    """Bytes of the ternary weights, as float32 and as they are stored; for a model of ours."""
    if contestant.options is None:
        return {}
    nodes = list(op_nodes(load(path).model))
    shapes = [(each.K, each.N) for each in map(read_attributes, nodes)]
    stored = sum(array.nbytes for node in nodes for array in index_tensors(node)[:3])
    return {"linear": stored, "linear_float32": sum(4 * K * N for K, N in shapes)}


def measure_conversions(plan: Plan, part: Part, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Rows of time and memory of a process that converts."""
    for contestant in part.contestants:
        assert contestant.options is not None
        source = replace(contestant, options=None).path(plan.folder, plan.stem(part))
        with TemporaryDirectory(dir=plan.folder) as folder:
            target = Path(folder) / "model.onnx"
            row = {
                "candidate": contestant.name,
                "source": file_bytes(source),
                **conversion(source, target, contestant.options),
                "result": file_bytes(target),
            }
        rows.append(row)
        say(f"{part.name}: {row}")
        yield


def _size(shape: Shape) -> str:
    return f"{shape.layers} layers, vocabulary {shape.vocabulary}"


def run_part(plan: Plan, part: Part, results: Results) -> None:
    """Measure and write."""
    kinds = {"speed": measure_speeds, "load": measure_loads, "conversion": measure_conversions}
    rows: list[dict[str, Any]] = []
    for _ in kinds[part.kind](plan, part, rows):
        results.save(part.name, f"{plan.preset}, {_size(plan.shape(part))}", rows)


def chosen(parts: str | None, cases: str | None, candidates: str | None) -> list[Part]:
    """Parts with what the user restricts them to."""
    by_name = {each.name: each for each in PARTS}
    names = [each.strip() for each in parts.split(";")] if parts else list(by_name)
    for name in names:
        if name not in by_name:
            raise SystemExit(f"no part {name!r}, expected one of: {'; '.join(by_name)}")
    found = [by_name[name] for name in names]
    if candidates:
        kept = candidates.split(";")
        found = [
            replace(each, contestants=tuple(c for c in each.contestants if c.name in kept))
            for each in found
        ]
    if cases:
        wanted = [Case.parse(each) for each in cases.split(",")]
        found = [
            replace(each, cases=tuple(case for case in each.cases if case in wanted) or each.cases)
            for each in found
        ]
    return [each for each in found if each.contestants]


def main() -> None:
    """Write what is missing, then measure part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="bitnet-2b")
    parser.add_argument("--layers", type=int, help="default: the preset's")
    parser.add_argument(
        "--parts", help=f"semicolons between (default: {'; '.join(each.name for each in PARTS)})"
    )
    parser.add_argument(
        "--cases", help="of those of a part, commas between; a part with none of them has all"
    )
    parser.add_argument("--candidates", help="of those of a part, semicolons between")
    parser.add_argument("--rounds", type=int, default=max(ROUNDS.values()), help="at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--generate-only", action="store_true", help="write models, measure none")
    arguments = parser.parse_args()

    layers = arguments.layers or PRESETS[arguments.preset].layers
    plan = Plan(arguments.folder, arguments.preset, layers, arguments.rounds)
    results = Results.read(arguments.json)
    parts = [
        plan.fitted(each) for each in chosen(arguments.parts, arguments.cases, arguments.candidates)
    ]
    for part in parts:
        plan.prepare(part)
    failed = []
    for part in () if arguments.generate_only else parts:
        start = time.perf_counter()
        try:
            run_part(plan, part, results)
        except MeasurementError as error:  # the other parts are worth having
            say(f"part '{part.name}' failed: {error}")
            failed.append(part.name)
        say(f"part '{part.name}' took {time.perf_counter() - start:.0f} s")
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
