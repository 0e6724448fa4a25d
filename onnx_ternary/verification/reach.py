"""How large the inputs of a float16 model may get: as large as those of its original.

ONNX Runtime's CPU provider computes most float16 operators in float32 and rounds to float16 only
where an operator has a kernel of that type. Inputs of ordinary size do not show where a converted
model rounds and the original does not; inputs close to what the original can take do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.judge import check_output
from onnx_ternary.verification.outputs import flattened
from onnx_ternary.verification.report import OutputCheck

Feeds: TypeAlias = "Mapping[str, NDArray[Any]]"
Run: TypeAlias = Callable[[Feeds], "Mapping[str, Any]"]
# Above it float16 is infinite, and float32 inputs of larger numbers would show nothing of float16.
_LARGEST = 65504.0
# From the smallest float16 to the largest.
_MOST_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class Reach:
    """Inputs near the end of what the original can take.

    Attributes:
        factor: what the float inputs were multiplied by, half of the largest power of two for
            which the outputs are finite.
        feeds: the inputs.
        expected: what the original gives for them.
    """

    factor: int
    feeds: Feeds
    expected: Mapping[str, Any]


def find_reach(run: Run, feeds: Feeds) -> Reach | None:
    """The largest inputs, with a margin, whose outputs are finite; None where nothing grows.

    Args:
        run: the original.
        feeds: inputs for which it has finite outputs.

    Returns:
        None too where twice the inputs already overflow, or no input is a float.
    """
    floats = [array[np.isfinite(array)] for array in feeds.values() if array.dtype.kind == "f"]
    largest = max((float(np.abs(each).max(initial=0)) for each in floats), default=0.0)
    if not largest:
        return None
    # Halving the interval takes a handful of runs; a model that is finite again behind an overflow
    # is compared somewhere below it.
    room = np.floor(np.log2(_LARGEST) - np.log2(largest))
    finite, beyond = 0, int(min(room, _MOST_DOUBLINGS)) + 1
    while beyond - finite > 1:
        middle = (finite + beyond) // 2
        outputs = _outputs(run, magnified(feeds, 1 << middle))
        finite, beyond = (middle, beyond) if _is_finite(outputs) else (finite, middle)
    if finite < 2:
        return None
    # At the very end a rounding decides.
    factor = 1 << (finite - 1)
    feeds = magnified(feeds, factor)
    expected = _outputs(run, feeds)
    return Reach(factor, feeds, expected) if expected is not None else None


def magnified(feeds: Feeds, factor: int) -> Feeds:
    """The float inputs multiplied by ``factor``, the others as they are."""
    return {
        name: (array.astype(np.float64) * factor).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def overflowing(
    reach: Reach, found: Mapping[str, Any], makers: Mapping[str, str], ignored: Collection[str]
) -> Sequence[OutputCheck]:
    """A failed check for every output that is not finite where the original's is.

    Args:
        reach: the inputs, and what the original makes of them.
        found: what the converted model makes of them.
        makers: nodes by the outputs they make.
        ignored: outputs that say nothing, because they differ from run to run.
    """
    failed = []
    for name in sorted(reach.expected.keys() - set(ignored)):
        others = dict(flattened(name, found[name]))
        for part, array in flattened(name, reach.expected[name]):
            other = others.get(part)
            if other is None or other.shape != array.shape or array.dtype.kind != "f":
                continue
            if bool((np.isfinite(array) & ~np.isfinite(other)).any()):
                label = f"{part} with inputs {reach.factor} times as large"
                check = check_output(label, makers.get(name, ""), array, other, None)
                failed.append(replace(check, passed=False))
    return failed


def _outputs(run: Run, feeds: Feeds) -> Mapping[str, Any] | None:
    try:
        return run(feeds)
    except ModelError:
        return None


def _is_finite(outputs: Mapping[str, Any] | None) -> bool:
    return outputs is not None and all(
        array.dtype.kind != "f" or bool(np.isfinite(array).all())
        for name, value in outputs.items()
        for _, array in flattened(name, value)
    )
