"""What a checkpoint of a text embedding model says beside config.json.

1. modules.json and the pooling's config.json, as sentence-transformers writes them: mean or last
   token, and whether the vector is normalized.
2. BitNet-embedding: every linear layer has an RMSNorm of its own in front, NAME.norm.weight beside
   NAME.weight, and holds float masters that are rounded as AutoBitLinear rounds them online. No
   entry of config.json says so, so the norms do. Source: the converter of microsoft/BitNet
   (utils/convert-bitnet-embedding-to-gguf.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from onnx_ternary.building.config import DecoderConfig, Pooling, Quantization
from onnx_ternary.building.options import PoolingChoice
from onnx_ternary.building.source import Source, read_json, read_json_list
from onnx_ternary.building.weights import input_norm, layer_products
from onnx_ternary.errors import ModelError

MODULES = "modules.json"
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "lasttoken": "last",
}


def embedding_config(source: Source, choice: PoolingChoice) -> DecoderConfig:
    """The configuration of a checkpoint that embeds texts.

    Raises:
        ModelError: naming what is missing or not implemented.
    """
    config = DecoderConfig.read(source.json("config.json"), embeds=True)
    config = dataclasses.replace(config, pooling=read_pooling(source.folder, choice))
    names = [name for layer in range(config.layers) for name in layer_products(config, layer)]
    normed = [name for name in names if input_norm(name) in source]
    if not normed:
        return config
    if len(normed) < len(names):
        missing = next(name for name in names if name not in normed)
        raise ModelError(
            f"'{source.folder}' has an RMSNorm in front of '{normed[0]}', but none in front of "
            f"'{missing}'; expected one in front of every matrix, or none."
        )
    quantization = config.quantization or Quantization("autobitlinear", "online", ())
    return dataclasses.replace(config, input_norms=True, quantization=quantization)


def read_pooling(folder: Path, choice: PoolingChoice) -> Pooling:
    """The pooling that a checkpoint names, or the one that is chosen.

    Raises:
        ModelError: if none is named and none chosen, or one that is not implemented.
    """
    modules = read_json_list(folder / MODULES, required=False)
    kinds = [_kind(each, folder) for each in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(f"'{folder / MODULES}': the module {kind!r} is not implemented.")
    normalize = "Normalize" in kinds
    if choice != "auto":
        return Pooling(choice, normalize)
    if "Pooling" not in kinds:
        raise ModelError(
            f"'{folder}' does not say how texts are pooled: there is no {MODULES} with a Pooling; "
            "give --pooling mean or --pooling last."
        )
    path = str(modules[kinds.index("Pooling")].get("path"))
    if Path(path).name != path:  # a name must not lead out of the folder
        raise ModelError(f"'{folder / MODULES}': the path {path!r} is no folder's name.")
    return Pooling(_mode(read_json(folder / path / "config.json"), folder / path), normalize)


def _kind(module: Any, folder: Path) -> str:
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise ModelError(f"'{folder / MODULES}' has an entry without a type.")
    return str(module["type"]).rpartition(".")[2]


def _mode(values: dict[str, Any], folder: Path) -> Any:
    named = values.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else []
    chosen += [name for name in values if name.startswith("pooling_mode_") and values[name] is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise ModelError(
            f"'{folder}': pooling by {', '.join(map(str, chosen)) or 'nothing'} is not "
            "implemented; expected mean tokens or the last token."
        )
    if values.get("include_prompt") is False:
        raise ModelError(f"'{folder}': include_prompt = False is not implemented.")
    return _MODES[str(chosen[0])]
