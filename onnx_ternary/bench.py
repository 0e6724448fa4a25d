"""How much faster a converted model is than its original, on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_ternary import runtime
from onnx_ternary.conversion.convert import convert
from onnx_ternary.errors import ModelError, OnnxTernaryError, VerificationError
from onnx_ternary.model_files.load import file_bytes
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.verification.inputs import Feeds, Inputs, verification_inputs

# onnxruntime's idle pool threads spin for a while after a run and would slow the other model.
_SPIN_DOWN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Speed:
    """One model.

    Attributes:
        seconds: a run, one entry a round.
        load_seconds: making the session.
        file_bytes: external data included.
    """

    seconds: tuple[float, ...]
    load_seconds: float
    file_bytes: int

    @property
    def median(self) -> float:
        """Seconds a run."""
        return float(np.median(self.seconds))

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
    """

    original: Speed
    converted: Speed
    threads: int
    max_relative_difference: float
    inputs: dict[str, str]

    @property
    def times_faster(self) -> float:
        """The median of the rounds' ratios."""
        return float(np.median(np.divide(self.original.seconds, self.converted.seconds)))

    def verdict(self) -> str:
        """One line for people."""
        ratio, spread = self.times_faster, max(self.original.spread, self.converted.spread)
        if abs(ratio - 1) <= spread:
            speed = "as fast as the original"
        elif ratio > 1:
            speed = f"{ratio:.2f} times faster"
        else:
            speed = f"{1 / ratio:.2f} times slower"
        size = self.original.file_bytes / self.converted.file_bytes
        return (
            f"The converted model is {speed} ({self.original.median * 1e3:.3g} ms -> "
            f"{self.converted.median * 1e3:.3g} ms a run, spread {spread:.0%}) and {size:.1f} "
            f"times smaller; outputs differ by at most {self.max_relative_difference:.1e}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {
            **asdict(self),
            "original_median_seconds": self.original.median,
            "converted_median_seconds": self.converted.median,
            "times_faster": self.times_faster,
        }


def bench(
    original: str | os.PathLike[str],
    converted: str | os.PathLike[str] | None = None,
    *,
    inputs: Inputs | None = None,
    seed: int = 0,
    threads: int = 1,
    rounds: int = 15,
    seconds_a_round: float = 0.05,
    max_difference: float = 0.1,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
) -> Benchmark:
    """Time two models in one process, in rounds that take turns.

    Args:
        original: an ONNX file.
        converted: the same after conversion; None converts it to a temporary file, with the
            default options.
        inputs: arrays by input name, or an .npz file of them; None generates them.
        seed: of generated inputs.
        threads: intra-op threads of either session.
        rounds: how often each model is timed.
        seconds_a_round: a round repeats runs for at least this long.
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
    libraries = tuple(map(runtime.find_library, custom_op_libraries))
    with ExitStack() as stack:
        if converted is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            converted = Path(folder) / Path(original).name
            convert(original, converted, OptimizeOptions(), verify_result=False)
        paths = (Path(original), Path(converted))
        sizes = [file_bytes(path) for path in paths]
        sessions, load_seconds = [], []
        for path in paths:
            start = time.perf_counter()
            sessions.append(_session(path, threads, libraries))
            load_seconds.append(time.perf_counter() - start)
        feeds, used = _feeds(paths[0], sessions[0], inputs, seed)
        names = [value.name for value in sessions[0].get_outputs()]
        outputs = [_run(*each, names, feeds) for each in zip(paths, sessions, strict=True)]
        difference = max(map(_difference, *outputs), default=0.0)
        if not difference <= max_difference:
            raise VerificationError(
                f"The outputs of '{paths[0]}' and '{paths[1]}' differ by {difference:.3g} of their "
                f"largest magnitude, at most {max_difference:g} is allowed; "
                f"'onnx-ternary verify {paths[0]} {paths[1]}' says where."
            )
        seconds = _take_turns(sessions, names, feeds, threads, rounds, seconds_a_round)
        speeds = [Speed(*each) for each in zip(seconds, load_seconds, sizes, strict=True)]
        return Benchmark(speeds[0], speeds[1], threads, difference, used)


def _feeds(
    path: Path, session: ort.InferenceSession, inputs: Inputs | None, seed: int
) -> tuple[Feeds, dict[str, str]]:
    """Inputs the original runs with, and how they were made."""

    def refusals(attempts: Sequence[Feeds]) -> Iterator[ModelError | None]:
        for feeds in attempts:
            yield _why_not(path, session, feeds)

    proto = onnx.load(path, load_external_data=False)
    return verification_inputs(proto, inputs, seed, refusals)


def _run(
    path: Path, session: ort.InferenceSession, names: Sequence[str] | None, feeds: Feeds
) -> list[NDArray[Any]]:
    try:
        outputs: list[NDArray[Any]] = session.run(names, feeds)
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise ModelError(f"'{path}' cannot be run: {error}") from error
    return outputs


def _why_not(path: Path, session: ort.InferenceSession, feeds: Feeds) -> ModelError | None:
    try:
        _run(path, session, None, feeds)
    except ModelError as error:
        return error
    return None


def _session(path: Path, threads: int, libraries: Sequence[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
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


def _take_turns(
    sessions: Sequence[ort.InferenceSession],
    names: Sequence[str],
    feeds: Feeds,
    threads: int,
    rounds: int,
    seconds_a_round: float,
) -> list[tuple[float, ...]]:
    """Seconds a run of each session, one entry a round; who goes first changes."""
    counts = []
    for session in sessions:
        start = time.perf_counter()
        session.run(names, feeds)
        counts.append(max(1, int(seconds_a_round / (time.perf_counter() - start))))
    samples: list[list[float]] = [[] for _ in sessions]
    for number in range(rounds):
        order = range(len(sessions)) if number % 2 == 0 else reversed(range(len(sessions)))
        for each in order:
            if threads > 1:
                time.sleep(_SPIN_DOWN_SECONDS)
            sessions[each].run(names, feeds)
            start = time.perf_counter()
            for _ in range(counts[each]):
                sessions[each].run(names, feeds)
            samples[each].append((time.perf_counter() - start) / counts[each])
    return [tuple(each) for each in samples]
