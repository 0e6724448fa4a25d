"""Convert the decoder of a folder that onnxruntime-genai's own builder wrote, and all around it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from onnx_ternary.building.build import staged_folder
from onnx_ternary.building.genai_folder import copy_library
from onnx_ternary.building.model_folder import CONFIG
from onnx_ternary.conversion.convert import convert_file
from onnx_ternary.conversion.settings import ConversionSettings
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.load import load
from onnx_ternary.reports.outcome import Conversion

_LENGTH, _PAST_LENGTH = 8, 4


def optimize_folder(
    source: str | PathLike[str],
    target: str | PathLike[str] | None,
    settings: ConversionSettings | None = None,
) -> Conversion:
    """Convert the decoder in a model folder and write a new folder, or write nothing.

    Every other file is copied, the operator library is added, and genai_config.json names it.

    Args:
        source: a folder with genai_config.json.
        target: a folder that does not exist or is empty; None for a dry run.
        settings: how the decoder is converted; None for the defaults. Generated inputs have the
            sizes that genai_config.json tells.

    Raises:
        ModelError: if the folder has no decoder in one file, or names another operator library, and
            as `convert`.
        RequirementError: as `convert`.
        VerificationError: as `convert`.
    """
    folder, out = Path(source), None if target is None else Path(target)
    settings = settings or ConversionSettings()
    config = _read_config(folder)
    decoder = _decoder(config, folder)
    file = load(folder / str(decoder["filename"]))
    verifying = settings.verifying
    if verifying.inputs is None and not verifying.options.shapes:
        verifying = replace(verifying, inputs=decoder_inputs(file.proto, decoder))
        settings = replace(settings, verifying=verifying)
    if out is None:
        return convert_file(file.path, None, settings, file)
    with staged_folder(out) as staged:
        conversion = convert_file(file.path, staged / file.path.name, settings, file)
        _copy_others(folder, staged, {file.path.resolve(), *file.data_files})
        library = copy_library(staged)
        decoder.setdefault("session_options", {})["custom_ops_library"] = library
        (staged / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    return replace(conversion, files=tuple(out / each.name for each in conversion.files))


def decoder_inputs(model: ModelProto, decoder: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """Inputs of one sequence behind a cache, by what genai_config.json calls each input.

    Returns:
        Arrays by name; None where the model has an input whose role is not known.
    """
    names = decoder.get("inputs", {})
    constants = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name == names.get("input_ids", "input_ids"):
            feeds[value.name] = rng.integers(0, 8, (1, _LENGTH)).astype(dtype)
        elif value.name == names.get("attention_mask", "attention_mask"):
            feeds[value.name] = np.ones((1, _PAST_LENGTH + _LENGTH), dtype)
        elif value.name == names.get("position_ids", "position_ids"):
            positions = np.arange(_PAST_LENGTH, _PAST_LENGTH + _LENGTH)[None]
            feeds[value.name] = positions.astype(dtype)
        elif _is_cache(value, names):
            shape = (1, decoder["num_key_value_heads"], _PAST_LENGTH, decoder["head_size"])
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            return None
    return feeds


def _is_cache(value: ValueInfoProto, names: Mapping[str, str]) -> bool:
    patterns = (names.get("past_key_names", ""), names.get("past_value_names", ""))
    for pattern in patterns:
        before, number, after = pattern.partition("%d")
        middle = value.name.removeprefix(before).removesuffix(after)
        if number and value.name == f"{before}{middle}{after}" and middle.isdigit():
            return True
    return False


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"'{path}' is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' holds no JSON object.")
    return config


def _decoder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The part of the configuration that describes the decoder, to be changed in place."""
    decoder: dict[str, Any] = config.get("model", {}).get("decoder", {})
    name = decoder.get("filename")
    if not isinstance(name, str) or Path(name).name != name or decoder.get("pipeline"):
        raise ModelError(
            f"'{folder / CONFIG}' names no decoder in one file of this folder; convert the ONNX "
            "files one by one, with --inputs."
        )
    library = decoder.get("session_options", {}).get("custom_ops_library")
    if library:
        raise ModelError(
            f"'{folder / CONFIG}' names the operator library '{library}' already, and "
            "onnxruntime-genai loads one; convert the folder it was made from."
        )
    return decoder


def _copy_others(folder: Path, staged: Path, models: set[Path]) -> None:
    for each in folder.iterdir():
        target = staged / each.name
        if each.resolve() in models or target.exists():
            continue
        try:
            if each.is_dir():
                shutil.copytree(each, target)
            else:
                shutil.copyfile(each, target)
        except OSError as error:
            raise ModelError(f"'{each}' cannot be copied: {error.strerror or error}.") from error
