"""Convert a model: the public entry to the rules."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from onnx_ternary import _onnxruntime
from onnx_ternary._machine import cpu_name
from onnx_ternary._version import __version__
from onnx_ternary._walk import graphs_in, nodes_in, owners_in
from onnx_ternary.errors import ModelError, OnnxTernaryError
from onnx_ternary.model_files.load import AnyModel, any_model, why_invalid
from onnx_ternary.model_files.messages import why
from onnx_ternary.model_files.save import save as save_model
from onnx_ternary.model_files.save import to_proto
from onnx_ternary.model_files.tensors import Spool, constant_bytes, external_tensors
from onnx_ternary.native.kernels import list_kernels
from onnx_ternary.op.nodes import constant_tensor
from onnx_ternary.options import ExternalData, OptimizeOptions
from onnx_ternary.reports.report import Kept, Report
from onnx_ternary.schema import FORMAT_VERSION

if TYPE_CHECKING:
    # In the source tree the folder has this name; see onnx_ternary/_source_tree.py.
    from graph_passes import pipeline
else:
    from onnx_ternary.graph_passes import pipeline

__all__ = ["OptimizeOptions", "OptimizeResult", "optimize"]

# Above it, a model whose tensors lie beside it keeps them there, where they can be mapped.
MAX_JOINED_BYTES = 10_000_000


UNEXPECTED = "something in it was not expected"
"""In the message of an error that no check foresaw; its cause is the error itself."""


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """A converted model and what was done to it.

    Attributes:
        model: the converted model; what was not converted may still be in the source's files.
        report: what was rewritten, what was not, and why.
        options: as given to `optimize`.
        external_data: where tensors go on saving: as the options say; ``auto`` has become
            ``always`` for a large model whose original has external data.
    """

    model: ir.Model
    report: Report
    options: OptimizeOptions
    external_data: ExternalData = "auto"

    def __repr__(self) -> str:
        return f"<OptimizeResult: {self.report.total()}>"

    def save(self, path: str | PathLike[str]) -> tuple[Path, ...]:
        """Write the model, all of it or nothing; the source's own path is fine.

        Returns:
            The files written, the model first.

        Raises:
            ModelError: as `onnx_ternary.model_files.save.save`.
        """
        return save_model(self.model, path, external_data=self.external_data)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a message with all tensors in it.

        Raises:
            ModelError: if it is too large for one message.
        """
        return to_proto(self.model)


def optimize(
    model: AnyModel,
    options: OptimizeOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    spool: Spool | None = None,
) -> OptimizeResult:
    """Replace every product with a ternary or binary weight by `TernaryIndexedMatMul`.

    Args:
        model: a path, a serialized model, or a model in memory, which is left as it is.
        options: None for the defaults.
        progress: called before each product with its name, its index and their number.
        spool: where the tensors of indices go until the model is saved; None keeps them in memory.

    Raises:
        ModelError: if the model cannot be read or is not valid.
    """
    return optimize_in_place(any_model(model), model, options, progress=progress, spool=spool)


def optimize_in_place(
    converted: ir.Model,
    source: AnyModel,
    options: OptimizeOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    spool: Spool | None = None,
) -> OptimizeResult:
    """Do what `optimize` does with a model that may be edited, which becomes the result's model.

    Args:
        converted: the model.
        source: what it was read from, which onnx.checker judges if a rule fails.
        options: as in `optimize`.
        progress: as in `optimize`.
        spool: as in `optimize`.

    Raises:
        ModelError: if the model is not valid.
    """
    options = options or OptimizeOptions()
    try:
        bytes_before = constant_bytes(converted)
        had_external_data = any(external_tensors(converted))
        done = pipeline.run(converted, options, progress, spool)
        rejections = _with_weights(converted, done.rejections)
    except OnnxTernaryError:
        raise
    except Exception as error:
        # Broad, because rules take a valid model for granted and stumble over an invalid one in any
        # way; whether the model is valid is looked at only then.
        if reason := why_invalid(source):
            raise ModelError(f"The model is not valid ONNX: {reason}") from error
        raise ModelError(
            f"The model cannot be converted: {UNEXPECTED} ({type(error).__name__}: "
            f"{why(error)}). If onnxruntime runs the model, please report this."
        ) from error
    bytes_after = constant_bytes(converted)
    external_data = options.external_data
    if external_data == "auto" and had_external_data and bytes_after > MAX_JOINED_BYTES:
        external_data = "always"
    report = Report(
        rewrites=done.replaced.rewrites,
        rejections=rejections,
        requantised=done.requantised,
        already_converted=tuple(index.node for index in done.indices),
        indices=done.indices,
        restored=done.restored,
        unmatched=done.unmatched,
        notes=(*done.replaced.notes, *_remaining_note(options, done)),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        has_function_body=done.replaced.has_function_body,
        options=options.to_dict(),
        versions={
            "onnx-ternary": __version__,
            "format": str(FORMAT_VERSION),
            "onnx": onnx.__version__,
            "onnx-ir": ir.__version__,
            "numpy": np.__version__,
            "onnxruntime": _onnxruntime.version(),
            "python": platform.python_version(),
        },
        machine={
            "cpu": cpu_name(),
            "features": ", ".join(list_kernels()["cpu"]),
            "system": f"{platform.system()} {platform.machine()}",
        },
    )
    return OptimizeResult(converted, report, options, external_data)


def _remaining_note(options: OptimizeOptions, done: pipeline.PassResult) -> tuple[str, ...]:
    if options.remaining == "keep":
        return ()
    return (
        f"--remaining {options.remaining}: {len(done.requantised)} of {len(done.rejections)} "
        "products that were not rewritten are quantized by onnxruntime",
    )


def _with_weights(model: ir.Model, rejections: Iterable[Kept]) -> tuple[Kept, ...]:
    """The products that stay with the sizes of their weights, which are still in the model."""
    stored = {
        value.name: value.const_value
        for owner in owners_in(model)
        for graph in graphs_in(owner)
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    for node in nodes_in(model.graph):
        if (tensor := constant_tensor(next(iter(node.outputs), None))) is not None:
            stored[node.outputs[0].name] = tensor
    return tuple(
        replace(kept, weight_shape=tuple(tensor.shape.numpy()), weight_bytes=int(tensor.nbytes))
        if (tensor := stored.get(kept.weight)) is not None
        else kept
        for kept in rejections
    )
