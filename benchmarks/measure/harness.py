"""What every benchmark here shares: interleaved rounds, medians with spread, printed conditions.

Candidates run in one process, one after the other in every round, in an order that rotates, so that
a machine that slows down slows all of them. A ratio is the median of the rounds' ratios. Outputs
are checked before anything is timed.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

import onnx_ternary

GIB = 2**30
CPUINFO = Path("/proc/cpuinfo")
# Idle pool threads spin after a run (OpenMP of LLVM for 0.2 s) and would slow the next candidate.
SPIN_DOWN_SECONDS = 1.0
SPIN_CHECK_SECONDS = 0.005
# Threads that slept may wake on the processor of the caller; it takes the system some milliseconds
# to move them apart, in which two threads are slower than one.
WAKE_SECONDS = 0.03
# How a processor is told from others of its maker, by the names of /proc/cpuinfo.
_CPU_NUMBERS = {
    "family": "cpu family",
    "model": "model",
    "stepping": "stepping",
    "implementer": "CPU implementer",
    "part": "CPU part",
}
# A call this long needs no second one to be timed by.
LONG_CALL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One competitor: ``run`` does the timed work, ``ready`` goes before a round, untimed."""

    name: str
    run: Callable[[], object]
    ready: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call, one entry per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, seconds per call."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float((high - low) / 2 / self.median)

    def ratio_to(self, other: Timing) -> float:
        """How many times faster than ``other``: the median of the rounds' ratios."""
        return float(np.median(np.divide(other.seconds, self.seconds)))


def settle() -> None:
    """Wait until no thread of this process is busy."""
    deadline = time.perf_counter() + SPIN_DOWN_SECONDS
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(SPIN_CHECK_SECONDS)
        if time.process_time() - before < SPIN_CHECK_SECONDS / 10:
            return


def measure(
    candidates: Sequence[Candidate],
    *,
    rounds: int = 15,
    seconds_a_round: float = 0.02,
    threads: int = 1,
    budget_seconds: float | None = None,
    min_rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] = settle,
) -> dict[str, Timing]:
    """Time all candidates side by side.

    Args:
        candidates: the competitors, at least one.
        rounds: how often each is timed.
        seconds_a_round: at least this long is each timed in a round.
        threads: threads each uses; above 1 their pools are left to stop spinning in between.
        budget_seconds: fewer rounds where they would take longer, but ``min_rounds``.
        min_rounds: see ``budget_seconds``.
        clock: seconds; ``time.thread_time`` leaves out what other processes take of a busy machine,
            for candidates that stay in the calling thread.
        settle: waits until no candidate is busy, where they run in other processes.

    Returns:
        The timing of each candidate by name.
    """
    calls, a_round = {}, 0.0
    for candidate in candidates:
        start = clock()
        candidate.run()
        once = clock() - start
        if once < LONG_CALL_SECONDS:
            start = clock()
            candidate.run()
            once = clock() - start
        calls[candidate.name] = max(1, int(seconds_a_round / once))
        count = calls[candidate.name]
        a_round += once * (count + (count > 1 or threads > 1))
    if budget_seconds is not None:
        rounds = min(rounds, max(min_rounds, int(budget_seconds / a_round)))
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for number in range(rounds):
        shift = number % len(candidates)
        for candidate in [*candidates[shift:], *candidates[:shift]]:
            candidate.ready()
            if threads > 1:
                settle()
            count = calls[candidate.name]
            awake = clock() + WAKE_SECONDS
            # One thread: a call that fills a round warms itself up.
            if count > 1 or threads > 1:
                candidate.run()
                while threads > 1 and clock() < awake:
                    candidate.run()
            start = clock()
            for _ in range(count):
                candidate.run()
            samples[candidate.name].append((clock() - start) / count)
    return {name: Timing(tuple(seconds)) for name, seconds in samples.items()}


def conditions() -> dict[str, str]:
    """The processor and the versions a result was measured with."""
    packages = ("onnxruntime", "onnx", "numpy")
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    forced = os.environ.get("ONNX_TERNARY_ISA", "")
    facts = _cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{each} {facts[key]}" for each, key in _CPU_NUMBERS.items() if key in facts]
    return {
        "cpu": name,
        **({"processor": " ".join(numbers)} if numbers else {}),
        **({"L3 cache": cache.read_text(encoding="utf-8").strip()} if cache.exists() else {}),
        "isa": ", ".join(onnx_ternary.list_kernels()["cpu"]),
        **({"forced isa": forced} if forced else {}),
        "python": platform.python_version(),
        "onnx-ternary": onnx_ternary.__version__,
        **{name: version(name) for name in packages},
    }


def available_bytes() -> int:
    """Memory that can be taken without swapping; 4 GiB where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * GIB


def cpu_flags() -> str:
    """What the system says this processor can do; empty where it does not tell."""
    facts = _cpu_facts()
    return facts.get("flags") or facts.get("Features", "")


def _cpu_facts() -> dict[str, str]:
    """What the system says of the first processor, in its words."""
    if not CPUINFO.exists():
        return {}
    first, *_ = CPUINFO.read_text(encoding="utf-8").split("\n\n")
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
