"""The inputs a verification runs on: given ones, checked against the model, or generated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_ternary.errors import ModelError, OnnxTernaryError

Inputs: TypeAlias = "Mapping[str, NDArray[Any]] | str | os.PathLike[str]"
Feeds: TypeAlias = dict[str, NDArray[Any]]
# Why the model does not run on each of some inputs, None where it does.
Refusals: TypeAlias = Callable[[Sequence[Feeds]], Iterable["ModelError | None"]]

# Sizes for symbolic dimensions: (batch, anything else), tried in order.
_SIZES = ((2, 8), (1, 8), (1, 1))
_PAST_SIZE = 4
_IMAGE_SIZE = 32
_NUM_INTEGERS = 8
_WORDS = ("the", "a", "model", "answers", "reads", "text", "small", "and", "Zürich", "42", ".", "?")
_NUM_WORDS = 8


class InputsError(OnnxTernaryError, ValueError):
    """The inputs given for verification do not fit the model."""


def verification_inputs(
    model: ModelProto, inputs: Inputs | None, seed: int, refusals: Refusals
) -> tuple[Feeds, dict[str, str]]:
    """Inputs by name, and how they read in a report.

    Raises:
        InputsError: if given inputs do not fit.
        ModelError: if inputs cannot be generated.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    wanted = [value for value in model.graph.input if value.name not in constants]
    if inputs is None:
        feeds, source = _generate(wanted, seed, refusals), f"generated, seed {seed}"
    elif isinstance(inputs, Mapping):
        _require_known(inputs, wanted)
        feeds, source = _given(inputs, wanted), "given"
    else:
        feeds, source = _given(_read_npz(inputs), wanted), f"from {os.fspath(inputs)}"
    return feeds, {name: f"{source}: {array.dtype} {array.shape}" for name, array in feeds.items()}


def _read_npz(path: str | os.PathLike[str]) -> Feeds:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise InputsError(f"{os.fspath(path)} holds one unnamed array; expected an .npz.")
            return {name: archive[name] for name in archive.files}
    except InputsError:
        raise
    except Exception as error:  # zipfile, numpy and the file system raise what they like
        raise InputsError(f"Inputs cannot be read from {os.fspath(path)}: {error}.") from error


def _require_known(inputs: Mapping[str, Any], wanted: Sequence[ValueInfoProto]) -> None:
    names = [value.name for value in wanted]
    for name in inputs:
        if name not in names:
            raise InputsError(f"The model has no input '{name}'; it has: {', '.join(names)}.")


def _given(inputs: Mapping[str, Any], wanted: Sequence[ValueInfoProto]) -> Feeds:
    feeds = {}
    for value in wanted:
        if value.name not in inputs:
            raise InputsError(
                f"Input '{value.name}' is missing; given: {', '.join(inputs) or 'nothing'}."
            )
        array = np.asarray(inputs[value.name])
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype != array.dtype and tensor.elem_type != TensorProto.STRING:
            raise InputsError(f"Input '{value.name}' is {array.dtype}, expected {dtype}.")
        if tensor.HasField("shape"):
            dims = [
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            ]
            fits = len(dims) == array.ndim and all(
                dim in (None, size) for dim, size in zip(dims, array.shape, strict=True)
            )
            if not fits:
                expected = ", ".join(
                    dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim
                )
                raise InputsError(
                    f"Input '{value.name}' has shape {array.shape}, expected ({expected})."
                )
        feeds[value.name] = array
    return feeds


def _generate(wanted: Sequence[ValueInfoProto], seed: int, refusals: Refusals) -> Feeds:
    """Random inputs of the first sizes with which the model runs.

    Raises:
        ModelError: if an input is not a numeric tensor, or the model runs with none of the sizes.
    """
    attempts: list[Feeds] = []
    for batch, other in _SIZES:
        rng = np.random.default_rng(seed)
        feeds = {value.name: _random(value, rng, batch, other) for value in wanted}
        if not any(_same_shapes(feeds, tried) for tried in attempts):
            attempts.append(feeds)
    if len(attempts) == 1:
        return attempts[0]
    error: ModelError | None = None
    for feeds, error in zip(attempts, refusals(attempts), strict=False):
        if error is None:
            return feeds
    raise ModelError(f"Generated inputs do not fit; give inputs of your own. {error}") from error


def _same_shapes(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    return all(one[name].shape == other[name].shape for name in one)


def _random(
    value: ValueInfoProto, rng: np.random.Generator, batch: int, other: int
) -> NDArray[Any]:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"Input '{value.name}' is not a tensor; give inputs of your own.")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(f"Input '{value.name}' has no shape; give inputs of your own.")
    shape = [
        dim.dim_value
        if dim.HasField("dim_value")
        else _symbolic_size(dim.dim_param, axis, batch, other)
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    name = value.name.lower()
    if dtype.kind == "b" or (dtype.kind in "iu" and "mask" in name):
        return np.ones(shape, dtype)
    if tensor.elem_type == TensorProto.STRING:
        texts = [" ".join(rng.choice(_WORDS, _NUM_WORDS)) for _ in range(math.prod(shape))]
        return np.array(texts, dtype=object).reshape(shape)
    if dtype.kind not in "iu":
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(
            f"Input '{value.name}' is {kind}, which cannot be generated; give inputs of your own."
        )
    if "position" in name and shape:
        return np.array(np.broadcast_to(np.arange(shape[-1]), shape), dtype)
    if "token_type" in name:
        return np.zeros(shape, dtype)
    return np.asarray(rng.integers(0, _NUM_INTEGERS, shape), dtype)


def _symbolic_size(name: str, axis: int, batch: int, other: int) -> int:
    """A size for a dimension known by name, equal for equal names; sums of names are understood."""
    if "+" in name:
        terms = [part.strip() for part in name.split("+")]
        return sum(
            int(term) if term.isdigit() else _symbolic_size(term, 1, batch, other) for term in terms
        )
    lower = name.lower()
    if "total" in lower:
        return _PAST_SIZE + other
    if "past" in lower:
        return _PAST_SIZE
    if "height" in lower or "width" in lower:
        return _IMAGE_SIZE
    if "batch" in lower or (axis == 0 and "seq" not in lower):
        return batch
    return other
