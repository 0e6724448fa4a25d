"""The inputs a verification runs on: given ones, checked against the model, or generated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnx_ternary.errors import ModelError, OnnxTernaryError
from onnx_ternary.verification.generated import Candidates, Feeds

Inputs: TypeAlias = "Mapping[str, NDArray[Any]] | str | os.PathLike[str]"
# Why the model does not run on some inputs; None where it does.
Refusal: TypeAlias = Callable[[Feeds], "ModelError | None"]

# Models are run on at most so many generated inputs before the search ends.
MAX_ATTEMPTS = 32


class InputsError(OnnxTernaryError, ValueError):
    """The inputs given for verification do not fit the model."""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What a verification runs on.

    Attributes:
        given: arrays by input name, or an .npz file of them (other arrays in the file are
            ignored); None generates them.
        seed: of generated inputs.
        shapes: sizes that generated inputs have to have: ``{"batch": 4}`` of a symbolic dimension,
            ``{"x:1": 4}`` of an input's axis, ``{"x": (1, 3, 224, 224)}`` of a whole input.
    """

    given: Inputs | None = None
    seed: int = 0
    shapes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChosenInputs:
    """Inputs a model runs on.

    Attributes:
        feeds: arrays by input name.
        described: how each reads in a report, by input name.
        others: the same inputs with another choice of the boolean ones that decide which branch
            of an If runs, one entry a branch that `feeds` leave out.
    """

    feeds: Feeds
    described: Mapping[str, str]
    others: Sequence[Feeds] = ()


def choose_inputs(model: ModelProto, options: InputOptions, refusal: Refusal) -> ChosenInputs:
    """Inputs of the model.

    Generated ones are those of the first sizes with which the model runs: sizes that the graph
    decides are solved for, the others tried, at most `MAX_ATTEMPTS` times.

    Args:
        model: external data is not needed.
        options: given inputs, or how to generate them.
        refusal: runs the model; not called where there is nothing to choose.

    Raises:
        InputsError: if given inputs, or sizes asked for, do not fit.
        ModelError: if inputs cannot be generated, or the model runs with none of the sizes tried.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    wanted = [value for value in model.graph.input if value.name not in constants]
    given = options.given
    if given is not None and options.shapes:
        raise InputsError("Sizes of generated inputs were asked for, but inputs are given.")
    candidates = Candidates(model, wanted, options.seed)
    if given is None:
        problem = candidates.pin(options.shapes)
        if problem:
            raise InputsError(problem)
        feeds, source = _generate(candidates, refusal), f"generated, seed {options.seed}"
    elif isinstance(given, Mapping):
        _require_known(given, wanted)
        feeds, source = _given(given, wanted), "given"
    else:
        feeds, source = _given(_read_npz(given), wanted), f"from {os.fspath(given)}"
    described = {name: f"{source}: {array.dtype} {array.shape}" for name, array in feeds.items()}
    return ChosenInputs(feeds, described, tuple(candidates.other_branches(feeds)))


def _generate(candidates: Candidates, refusal: Refusal) -> Feeds:
    first = candidates.next_feeds()
    if first is not None and not candidates.has_choice:
        return first
    error: ModelError | None = None
    feeds = first
    for _ in range(MAX_ATTEMPTS):
        if feeds is None:
            break
        error = refusal(feeds)
        if error is None:
            return feeds
        candidates.learn(str(error))
        feeds = candidates.next_feeds()
    raise ModelError(
        "Generated inputs do not fit; give sizes (--shape NAME=SIZE) or inputs of your own "
        f"(--inputs). {error}"
    ) from error


def _read_npz(path: str | os.PathLike[str]) -> Feeds:
    try:
        if not Path(path).is_file():  # opening a pipe may never end
            raise InputsError(f"Inputs cannot be read from {os.fspath(path)}: it is no file.")
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
