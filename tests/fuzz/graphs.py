"""Random models, converted, against what any evaluation of the original may give.

The original is run without optimizations; the conversion with and without the library, with
onnxruntime's default optimizations and without. Shapes, types and numbers have to be those of
tests/fuzz/intervals.py. An original that ONNX Runtime does not run, or that is not within the
interval itself, says nothing: those are counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.runtime import register
from tests.fuzz.interval_kernels import KERNELS
from tests.fuzz.intervals import Array, Interpreter, Interval, Values
from tests.fuzz.random_graphs import draw_model, one

Rng = np.random.Generator
# onnxruntime's, which take the rank of MatMulInteger for that of its product with scales that have
# more axes. An original may get over it, as Gemm takes vectors, where the conversion does not.
DROP_AXES = ("MatMulIntegerToFloatFusion", "DynamicQuantizeMatMulFusion")
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)

# An error is an answer: exit code 0. A sanitizer turns a signal into an exit code of its own.
_OPEN = """
import contextlib, sys
import onnxruntime as ort
with contextlib.suppress(Exception):
    ort.InferenceSession(sys.stdin.buffer.read(), providers=["CPUExecutionProvider"])
"""


def draw_options(rng: Rng) -> OptimizeOptions:
    return OptimizeOptions(
        index_format=one(["packed", "packed", "packed", "rsr"], rng),
        fold=bool(rng.random() < 0.85),
        function_body=bool(rng.random() < 0.85),
        fuse_activation=bool(rng.random() < 0.85),
        fuse_siblings=bool(rng.random() < 0.3),
        min_elements=0,
    )


def try_graph(rng: Rng) -> str:
    """Draw a model, convert it and compare: ``converted``, ``unchanged``, or why it says nothing.

    Raises:
        AssertionError: if the converted model gives another answer than the original may.
    """
    model, feeds = draw_model(rng)
    options = draw_options(rng)
    return check(model, feeds, options)


def original_ends_the_process(rng: Rng) -> bool:
    """Whether onnxruntime ends the process that opens the original `try_graph` draws."""
    model, _ = draw_model(rng)
    command = [sys.executable, "-c", _OPEN]
    done = subprocess.run(
        command, input=model.SerializeToString(), capture_output=True, check=False
    )
    return done.returncode != 0


def check(model: onnx.ModelProto, feeds: dict[str, Array], options: OptimizeOptions) -> str:
    """Convert a model and compare; see `try_graph`."""
    values = Interpreter(KERNELS, model.functions).run(model, feeds)
    if said := _wrong(model, feeds, LEVELS[0], False, values):
        return f"original {said.split(':')[0]}"
    result = optimize(model, options)
    if not result.report.rewrites:
        return "unchanged"
    proto = result.to_proto()
    if _is_valid(model):
        onnx.checker.check_model(proto)
    for level in LEVELS:
        for library in (True, False):
            if not library and not result.report.has_function_body:
                continue
            found = _wrong(proto, feeds, level, library, values)
            if found and (said := _wrong(model, feeds, level, False, values)):
                return f"original {said.split(':')[0]} when optimized"
            if found and not _wrong(proto, feeds, level, library, values, DROP_AXES):
                return "onnxruntime drops axes"
            where = f"{level}, {'with' if library else 'without'} the library, {options}"
            assert not found, f"{found}\n{where}\n{result.report}"
    return "converted"


def _wrong(
    model: onnx.ModelProto,
    feeds: dict[str, Array],
    level: Any,
    library: bool,
    values: Values,
    left_out: Sequence[str] = (),
) -> str:
    """What a model does that no evaluation of the original may do, or nothing."""
    try:
        found = run(model, feeds, level, library, left_out)
    except Exception as error:  # onnxruntime raises types that share no base
        return f"does not run: {error}"
    told = differences(found, values)
    return f"is elsewhere: {told}" if told else ""


def _is_valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def run(
    model: onnx.ModelProto,
    feeds: dict[str, Array],
    level: Any,
    library: bool,
    left_out: Sequence[str] = (),
) -> dict[str, Array]:
    """Every output of a model, by name; ``left_out`` names optimizers not to use."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        register(options)
    session = ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(left_out),
    )
    wanted = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    given = {name: array for name, array in feeds.items() if name in wanted}
    return dict(zip(names, session.run(names, given), strict=True))


def differences(found: dict[str, Array], values: Values) -> str:
    """What no evaluation may give, or nothing."""
    return "; ".join(filter(None, (_difference(found[name], values[name], name) for name in found)))


def _difference(found: Array, expected: Interval, name: str) -> str:
    if found.shape != expected.shape:
        return f"{name}: shape {found.shape}, expected {expected.shape}"
    if found.dtype != expected.dtype:
        return f"{name}: type {found.dtype}, expected {expected.dtype}"
    known = np.isfinite(expected.radius)
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(found.astype(np.float64) - expected.value)
    wrong = known & ~(off <= expected.radius)
    if not wrong.any():
        return ""
    at = tuple(np.argwhere(wrong)[0])
    return (
        f"{name}{list(map(int, at))}: {found[at]!r}, expected {expected.value[at]!r} within "
        f"{expected.radius[at]:.3g}; {np.count_nonzero(wrong)} of {wrong.size} are off"
    )
