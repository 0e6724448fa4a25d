"""How much faster a converted model is than its original, on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_ternary import _onnxruntime as ort
from onnx_ternary import runtime
from onnx_ternary._paired import Comparison, compare, take_turns
from onnx_ternary.conversion.convert import convert
from onnx_ternary.errors import ModelError, OnnxTernaryError, VerificationError
from onnx_ternary.model_files.load import file_bytes
from onnx_ternary.model_files.targets import check_name
from onnx_ternary.op.nodes import is_own
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import format_size
from onnx_ternary.verification.generated import Feeds
from onnx_ternary.verification.inputs import InputOptions, Inputs, choose_inputs


@dataclass(frozen=True, slots=True)
class Speed:
    """One model.

    Attributes:
        seconds: time of a run, one entry per round.
        load_seconds: making the session from a file that was read before, one entry per round that
            made one.
        file_bytes: external data included.
    """

    seconds: tuple[float, ...]
    load_seconds: tuple[float, ...]
    file_bytes: int

    @property
    def median(self) -> float:
        """Seconds a run."""
        return float(np.median(self.seconds))

    @property
    def load_median(self) -> float:
        """Seconds a session takes to make."""
        return float(np.median(self.load_seconds))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float((high - low) / 2 / self.median)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What `bench` measured.

    Attributes:
        original: the model before conversion.
        converted: the model after it.
        threads: intra-op threads of either session.
        max_relative_difference: of the outputs, to the largest magnitude of each.
        inputs: how each input was made.
        same_operators: whether both models have the same operators, so that nothing was converted.
    """

    original: Speed
    converted: Speed
    threads: int
    max_relative_difference: float
    inputs: dict[str, str]
    same_operators: bool = False

    @property
    def runs(self) -> Comparison:
        """How much faster a run is."""
        return compare(self.original.seconds, self.converted.seconds)

    @property
    def loads(self) -> Comparison:
        """How much faster a session is made."""
        return compare(self.original.load_seconds, self.converted.load_seconds)

    @property
    def times_faster(self) -> float:
        """The median of the rounds' ratios."""
        return self.runs.ratio

    def __repr__(self) -> str:
        return f"<Benchmark: {self.verdict().splitlines()[0]}>"

    def verdict(self) -> str:
        """Lines for people: runs, loads, size and outputs, each with what can be said of it."""
        before, after = self.original, self.converted
        lines = ["Nothing was converted: both models have the same operators."]
        lines = lines if self.same_operators else []
        for name, found, one, other in (
            ("Run", self.runs, before.median, after.median),
            ("Load", self.loads, before.load_median, after.load_median),
        ):
            lines.append(
                f"{name}: {found.text()}, {format_seconds(one)} -> {format_seconds(other)}."
            )
        sizes = f"{format_size(before.file_bytes)} -> {format_size(after.file_bytes)}"
        lines.append(f"File: {_times(before.file_bytes / after.file_bytes)}, {sizes}.")
        lines.append(
            f"Outputs: differ by at most {self.max_relative_difference:.1e} of their largest "
            "magnitude."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {
            **asdict(self),
            "original_median_seconds": self.original.median,
            "converted_median_seconds": self.converted.median,
            "times_faster": self.times_faster,
            "runs": comparison_as_json(self.runs),
            "loads": comparison_as_json(self.loads),
        }


def format_seconds(seconds: float) -> str:
    """A duration in the unit that gives three significant digits."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"


def _times(ratio: float) -> str:
    if f"{ratio:.1f}" == "1.0":
        return "as large"
    return f"{ratio:.1f} times smaller" if ratio > 1 else f"{1 / ratio:.1f} times larger"


def comparison_as_json(found: Comparison) -> dict[str, Any]:
    """A comparison without the infinite ends JSON has no number for."""
    known = found.answer != "too few rounds"
    return {
        "answer": found.answer,
        "ratio": found.ratio,
        "low": found.low if known else None,
        "high": found.high if known else None,
    }


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How `bench` times two models; it describes every attribute under its name."""

    inputs: Inputs | None = None
    seed: int = 0
    threads: int = 1
    rounds: int = 25
    seconds_a_round: float = 0.04
    max_difference: float = 0.1
    custom_op_libraries: Sequence[str | os.PathLike[str]] = ()


def bench(
    original: str | os.PathLike[str],
    converted: str | os.PathLike[str] | None = None,
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    threads: int = 1,
    rounds: int = 25,
    seconds_a_round: float = 0.04,
    max_difference: float = 0.1,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
) -> Benchmark:
    """Time two models in one process, in rounds whose order a coin decides.

    A round makes both sessions anew (as long as that takes little time) and times both models;
    how its rounds become an answer is told in `onnx_ternary._paired`.

    Args:
        original: an ONNX file.
        converted: the same model after conversion; None converts ``original`` to a temporary file,
            with the default options.
        inputs: arrays by input name, or an .npz file of them; None generates them.
        seed: of generated inputs, and of the coin.
        threads: intra-op threads of either session.
        rounds: how often each model is timed; fewer than 15 give no answer.
        seconds_a_round: a round repeats runs of each model for at least this long.
        max_difference: of the outputs, to the largest magnitude of each. It tells wrong answers
            from rounding; `verify` judges.
        custom_op_libraries: other libraries whose operators the models use, as
            `runtime.find_library` takes them.

    Raises:
        ModelError: if a model cannot be read or run.
        InputsError: if `inputs` do not fit the original's inputs.
        LibraryError: if a library is missing or cannot be loaded, or onnxruntime is too old.
        VerificationError: if the outputs differ by more than `max_difference`.
    """
    settings = BenchSettings(
        inputs, seed, threads, rounds, seconds_a_round, max_difference, custom_op_libraries
    )
    return time_models(Path(original), None if converted is None else Path(converted), settings)


def time_models(original: Path, converted: Path | None, settings: BenchSettings) -> Benchmark:
    """Time two models as `bench` does.

    Args:
        original: an ONNX file.
        converted: the same model after conversion; None converts ``original`` to a temporary file.
        settings: how.

    Raises:
        OnnxTernaryError: as `bench`.
    """
    libraries = tuple(map(runtime.find_library, settings.custom_op_libraries))
    for path in (each for each in (original, converted) if each is not None):
        check_name(path)
        if not path.is_file():  # reading a pipe or a device may never end
            raise ModelError(f"'{path}' cannot be loaded: it is no file.")
    with ExitStack() as stack:
        if converted is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            converted = Path(folder) / original.name
            convert(original, converted, OptimizeOptions(), verify_result=False)
        entries = [_Entry(each, settings.threads, libraries) for each in (original, converted)]
        # These loads are not timed: they warm up onnxruntime, the libraries and the file cache.
        loading = sum(entry.load() for entry in entries)
        feeds, used = _feeds(entries[0], settings.inputs, settings.seed)
        difference = _check_outputs(entries, feeds, settings.max_difference)
        operators = [_operators(entry.path) for entry in entries]
        names = [value.name for value in entries[0].session.get_outputs()]
        take_turns(
            entries,
            settings.rounds,
            settings.seed,
            loading_seconds=loading,
            load=_load_anew,
            run=lambda entry: entry.time_runs(names, feeds, settings.seconds_a_round),
        )
        speeds = [entry.speed() for entry in entries]
    same = operators[0] == operators[1]
    return Benchmark(speeds[0], speeds[1], settings.threads, difference, used, same)


@dataclass(slots=True)
class _Entry:
    """A model that takes part, its session and its times."""

    path: Path
    threads: int
    libraries: Sequence[str]
    session: Any = None
    seconds: list[float] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)

    def load(self) -> float:
        """Make a session; return the seconds it took."""
        start = time.perf_counter()
        self.session = _session(self.path, self.threads, self.libraries)
        return time.perf_counter() - start

    def run(self, names: Sequence[str] | None, feeds: Feeds) -> list[NDArray[Any]]:
        try:
            outputs: list[NDArray[Any]] = self.session.run(names, feeds)
        except Exception as error:  # onnxruntime raises types of its own that share no base
            raise ModelError(f"'{self.path}' cannot be run: {error}") from error
        return outputs

    def why_not(self, feeds: Feeds) -> ModelError | None:
        """Why the model does not run on these inputs; None if it does."""
        try:
            self.run(None, feeds)
        except ModelError as error:
            return error
        return None

    def time_runs(self, names: Sequence[str], feeds: Feeds, at_least: float) -> None:
        """Keep the median seconds of runs that together take ``at_least``, after one not counted.

        How many there are must depend on time alone: a mean or median of another number of skewed
        times would be another quantity.
        """
        self.session.run(names, feeds)
        times: list[float] = []
        begin = before = time.perf_counter()
        while not times or before - begin < at_least:
            self.session.run(names, feeds)
            now = time.perf_counter()
            times.append(now - before)
            before = now
        self.seconds.append(float(np.median(times)))

    def speed(self) -> Speed:
        return Speed(tuple(self.seconds), tuple(self.load_seconds), file_bytes(self.path))


def _load_anew(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        entry.session = None
    for entry in entries:
        entry.load_seconds.append(entry.load())


def _check_outputs(entries: Sequence[_Entry], feeds: Feeds, max_difference: float) -> float:
    """The largest difference of the outputs.

    Raises:
        VerificationError: if it is more than ``max_difference``.
    """
    names = [value.name for value in entries[0].session.get_outputs()]
    outputs = [entry.run(names, feeds) for entry in entries]
    difference = max(map(_difference, *outputs), default=0.0)
    if not difference <= max_difference:
        before, after = (entry.path for entry in entries)
        raise VerificationError(
            f"The outputs of '{before}' and '{after}' differ by {difference:.3g} of their "
            f"largest magnitude, at most {max_difference:g} is allowed; "
            f"'onnx-ternary verify {before} {after}' says where."
        )
    return difference


def _operators(path: Path) -> Counter[tuple[str, str]]:
    """How often each operator occurs in a model, the operators' own bodies not counted."""
    model = onnx.load(path, load_external_data=False)
    counts: Counter[tuple[str, str]] = Counter()
    bodies = [each.node for each in model.functions if not is_own(each.domain, each.name)]
    waiting = [model.graph.node, *bodies]
    while waiting:
        for node in waiting.pop():
            counts[node.domain, node.op_type] += 1
            for attribute in node.attribute:
                waiting += [graph.node for graph in (attribute.g, *attribute.graphs)]
    return counts


def _feeds(entry: _Entry, inputs: Inputs | None, seed: int) -> tuple[Feeds, dict[str, str]]:
    """Inputs the original runs with, and how they were made."""
    proto = onnx.load(entry.path, load_external_data=False)
    chosen = choose_inputs(proto, InputOptions(inputs, seed), entry.why_not)
    return chosen.feeds, dict(chosen.described)


def _session(path: Path, threads: int, libraries: Sequence[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # it raises what is wrong, and logs names as they are
    runtime.register_libraries(options, libraries)
    try:
        return runtime.InferenceSession(path, options)
    except OnnxTernaryError:
        raise
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise ModelError(
            f"'{path}' cannot be loaded: {error}; operators of another library need --library "
            "(custom_op_libraries)."
        ) from error


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference relative to ``one``'s largest magnitude; inf if they cannot be alike."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not one.size:
        return 0.0
    if one.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(one, other) else float("inf")
    wide = one.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.abs(wide - other.astype(np.float64))
    alike = (one == other) | ((one != one) & (other != other))
    largest = float(np.where(alike, 0.0, differences).max())
    if not np.isfinite(largest):
        return float("inf")
    magnitude = float(np.abs(wide, where=np.isfinite(wide), out=np.zeros_like(wide)).max())
    return largest / magnitude if magnitude else largest
