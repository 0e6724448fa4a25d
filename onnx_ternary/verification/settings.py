"""What `verify` is asked for, in one value that is handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

from onnx_ternary.options import VerificationOptions
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.products import Progress

DEFAULT_MAX_ROWS = 256
DEFAULT_MAX_EXPOSED_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """How two models are compared; `verify` describes every attribute under its name.

    Attributes:
        options: what a user can choose for conversions, too.
        inputs: arrays by name or an .npz file; None for generated ones.
        seed: of generated inputs.
        tolerance: of outputs; None for the default.
        weight_tolerance: what conversion was allowed to change a weight by; None for what the
            converted model says.
        max_rows: rows a product is compared on at most.
        max_exposed_bytes: intermediate values held at once, roughly.
        products_only: run each product alone, and no whole model.
        custom_op_libraries: other libraries whose operators the models use.
        progress: called for each product.
    """

    options: VerificationOptions = field(default_factory=VerificationOptions)
    inputs: Inputs | None = None
    seed: int = 0
    tolerance: float | None = None
    weight_tolerance: float | None = None
    max_rows: int = DEFAULT_MAX_ROWS
    max_exposed_bytes: int = DEFAULT_MAX_EXPOSED_BYTES
    products_only: bool = False
    custom_op_libraries: Sequence[str | PathLike[str]] = ()
    progress: Progress | None = None
