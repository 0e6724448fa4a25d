"""Outputs of whole models, compared: tensors, and what sequences, maps and optionals hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.judge import check_output
from onnx_ternary.verification.report import OutputCheck

# Largest difference of an output relative to its largest magnitude. Models with float16 products
# get that of float16, whatever their outputs are.
DEFAULT_TOLERANCES: Mapping[str, float] = {
    "float64": 1e-5,
    "float32": 1e-5,
    "float16": 1e-2,
}


def flattened(name: str, value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays an output holds, with names: ``y``, ``y[0]`` of a sequence, ``y['a']`` of a map.

    A sequence of maps, as ZipMap gives it, is one array with a column per key, as it was before;
    an empty optional is nothing.
    """
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        keys = dict.fromkeys(key for each in value for key in each)
        rows = [[each.get(key, np.nan) for key in keys] for each in value]
        yield name, np.array(rows, np.float32)
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from flattened(f"{name}[{at}]", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from flattened(f"{name}[{key!r}]", each)
    elif isinstance(value, (int, float, str, bool, np.generic)):
        yield name, np.asarray(value)


def compare_outputs(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    makers: Mapping[str, str],
    tolerance: float | None,
    undecided: Mapping[str, str],
    half: bool,
    suffix: str = "",
) -> list[OutputCheck]:
    """One check an array of the original's outputs.

    Args:
        expected: the original's outputs by name.
        found: the converted model's.
        makers: nodes by the outputs they make.
        tolerance: for all outputs; None takes `DEFAULT_TOLERANCES`.
        undecided: outputs that get no verdict unless a tolerance was given.
        half: whether products are float16.
        suffix: what names of the checks end in.

    Raises:
        ModelError: if the converted model lacks an output.
    """
    checks = []
    for name, value in expected.items():
        if name not in found:
            raise ModelError(
                f"The converted model has no output '{name}', which the original has; convert the "
                "model again with 'onnx-ternary optimize'."
            )
        others = dict(flattened(name, found[name]))
        for part, array in flattened(name, value):
            limit = tolerance
            if limit is None and name not in undecided:
                limit = DEFAULT_TOLERANCES.get("float16" if half else array.dtype.name)
            other = others.get(part, np.empty(0, array.dtype))
            check = check_output(part + suffix, makers.get(name, ""), array, other, limit)
            checks.append(replace(check, why_no_verdict=undecided.get(name, "")))
    return checks
