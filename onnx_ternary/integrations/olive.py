"""`OnnxTernaryPass`: ternary products become `TernaryIndexedMatMul` in a workflow of Olive.

    python -m onnx_ternary.integrations.olive packages.json
    olive run --run-config workflow.json --package-config packages.json

Olive takes a package configuration instead of its own, not besides; the first line writes the
installed Olive's own with this pass added. The module needs ``olive-ai``.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import ParamCategory, PassConfigParam

from onnx_ternary import OptimizeOptions, Requirements, VerificationOptions, convert
from onnx_ternary.errors import OnnxTernaryError

logger = logging.getLogger("olive.onnx_ternary")  # Olive shows its own loggers only

_NAMES = tuple(field.name for field in fields(OptimizeOptions))
_PATTERNS = ("include", "exclude")  # JSON has lists


def package_config() -> dict[str, Any]:
    """The installed Olive's package configuration with `OnnxTernaryPass` in it."""
    path = Path(OlivePackageConfig.get_default_config_path())
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["passes"]["OnnxTernaryPass"] = {
        "module_path": "onnx_ternary.integrations.olive.OnnxTernaryPass",
        "supported_providers": ["CPUExecutionProvider"],
        "supported_accelerators": ["cpu"],
        "supported_precisions": ["*"],
    }
    return config


def optimize_options(values: dict[str, Any]) -> OptimizeOptions:
    """The options of conversion among a pass's parameters.

    Raises:
        ValueError: as `OptimizeOptions`.
    """
    chosen = {name: values[name] for name in _NAMES}
    return OptimizeOptions(**chosen | {name: tuple(chosen[name] or ()) for name in _PATTERNS})


class OnnxTernaryPass(Pass):  # type: ignore[misc] # olive ships no types
    """Convert an ONNX model as `onnx_ternary.convert` does, verified before it is written.

    A model with nothing to rewrite passes unchanged unless ``require_rewrite`` is set.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        types = get_type_hints(OptimizeOptions) | dict.fromkeys(_PATTERNS, list[str])
        defaults = OptimizeOptions().to_dict()
        parameters = {
            name: PassConfigParam(
                type_=types[name],
                default_value=defaults[name],
                description=f"As onnx_ternary.OptimizeOptions.{name}.",
            )
            for name in _NAMES
        }
        return parameters | {
            "verify": PassConfigParam(
                type_=bool | None,
                description="Compare both models before the result is written. Default: as a whole "
                "up to 2 GB, product by product above; true fails where nothing can be compared.",
            ),
            "inputs": PassConfigParam(
                type_=str,
                category=ParamCategory.PATH,
                description="Inputs to verify with, an .npz by input name. Default: generated.",
            ),
            "shapes": PassConfigParam(
                type_=dict[str, int | list[int]],
                default_value={},
                description="As onnx_ternary.VerificationOptions.shapes.",
            ),
            "require_whole": PassConfigParam(
                type_=bool,
                default_value=False,
                description="Fail where the models cannot be compared as a whole.",
            ),
            "require_rewrite": PassConfigParam(
                type_=bool,
                default_value=False,
                description="Fail if no product is rewritten.",
            ),
            "max_size_ratio": PassConfigParam(
                type_=float,
                description="Fail if the result's size divided by the model's is larger.",
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        source = Path(model.model_path)
        target = Path(resolve_onnx_path(output_model_path, source.name))
        try:
            done = convert(
                source,
                target,
                optimize_options(config.model_dump()),
                requirements=Requirements(config.require_rewrite, config.max_size_ratio),
                verify_result=config.verify,
                inputs=config.inputs,
                verification=VerificationOptions(config.shapes or {}, config.require_whole),
                custom_op_libraries=["onnxruntime_extensions"] if model.use_ort_extensions else (),
            )
        except OnnxTernaryError as error:
            # Of errors of other types Olive makes a line in its log and ends with exit code 0.
            raise ValueError(str(error)) from error
        logger.info("%s: %r", source.name, done)
        if done.verification_skipped:
            logger.warning("%s: not verified: %s", source.name, done.verification_skipped)
        in_folder = len(done.files) > 1  # with a file of external data
        return ONNXModelHandler(
            model_path=str(target.parent if in_folder else target),
            onnx_file_name=target.name if in_folder else None,
            inference_settings=model.inference_settings,
            use_ort_extensions=model.use_ort_extensions,
        )


def main(arguments: list[str]) -> None:
    """Write `package_config` to the file named, or print it."""
    text = json.dumps(package_config(), indent=2) + "\n"
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
