"""What a user can choose when a model is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from onnx_ternary.schema import MAX_BLOCK_WIDTH, STORAGES, Algorithm, IndexFormat, Storage

ActivationChoice = Literal["keep", "int8"]
RemainingChoice = Literal["keep", "int8", "int4"]
ExternalData = Literal["auto", "always", "never"]

# BitNet b1.58's rule: per-token absmax, the whole int8 range, absmax clamped from below.
INT8_RULE: Mapping[str, Any] = {
    "activation": "int8",
    "activation_rule": "absmax_division",
    "activation_epsilon": 1e-5,
    "activation_qmin": -128,
    "activation_qmax": 127,
}

DEFAULT_MIN_ELEMENTS = 1024
"""4 KiB of float32: below it the node's own attributes eat most of what the index saves."""

DEFAULT_MAX_FOLD_STEPS = 100_000
"""A node of a constant expression takes about a millisecond to run alone."""


@dataclass(frozen=True, slots=True)
class OptimizeOptions:
    """How `optimize` converts a model.

    Attributes:
        include: names or globs (`fnmatch`); only products are considered whose name, as the report
            has it, or whose weight's name is one or matches one. Empty: all.
        exclude: the same of products to leave alone; wins over ``include``.
        index_format: ``packed`` (default) or ``rsr`` (docs/index_format.md).
        storage: how codes are stored; None: the format's default for the weight's alphabet.
        block_width: columns in a block of an ``rsr`` index; None: the paper's optimum.
        algorithm: block product of an ``rsr`` index, ``rsr`` or ``rsr++``; None: ``rsr++``.
        activation: ``keep`` quantizes no activations the model does not; ``int8`` quantizes each
            row as BitNet b1.58 does, which changes the model's numbers.
        remaining: ``int8`` and ``int4`` hand the float products that are left to onnxruntime's own
            MatMulNBits quantizer, which changes the model's numbers; ``keep`` leaves them alone.
        tolerance: largest relative distance of a weight from its level; 0.0: bitwise exact.
        external_data: where tensors go on saving: ``auto`` (beside the model above 2 GB, and above
            10 MB if the original has them there), ``always`` or ``never``.
        function_body: carry a body of standard operators, so that the model also runs without the
            library.
        constant_initializers: take initializers that are graph inputs too for constants, and remove
            them from the inputs if anything is rewritten; callers can then no longer override them.
            Below IR version 4 nobody can, and that is done without being asked for.
        fold: evaluate weights that are the end of a constant expression (quantized or unpacked in
            the graph); False leaves such products alone.
        max_fold_bytes: what one constant expression may hold while it is evaluated; None: 128 times
            its constants, at least 256 MiB and at most 16 GiB.
        max_fold_steps: nodes that may run to evaluate constant expressions, in all.
        convolutions: rewrite Conv with a 1 x 1 kernel as well: the file gets smaller, the model
            slower (docs/adr/0005-leave-convolutions-float.md).
        fuse_activation: where the model quantizes activations itself by a rule the op has, the op
            does it, with the same integers; False keeps the model's nodes for it.
        fuse_siblings: compute products that share an input (query, key and value; gate and up) in
            one call of the op, and split the result; the numbers are the same.
        min_elements: smaller weights stay as they are, and so does a weight whose ``packed`` index
            would not be smaller than its floats. 0: convert whatever can be converted.

    Raises:
        ValueError: on construction, for an unknown choice or a number out of range.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    index_format: IndexFormat = "packed"
    storage: Storage | None = None
    block_width: int | None = None
    algorithm: Algorithm | None = None
    activation: ActivationChoice = "keep"
    remaining: RemainingChoice = "keep"
    tolerance: float = 0.0
    external_data: ExternalData = "auto"
    function_body: bool = True
    constant_initializers: bool = False
    fold: bool = True
    max_fold_bytes: int | None = None
    max_fold_steps: int = DEFAULT_MAX_FOLD_STEPS
    convolutions: bool = False
    fuse_activation: bool = True
    fuse_siblings: bool = False
    min_elements: int = DEFAULT_MIN_ELEMENTS

    def __post_init__(self) -> None:
        for name, choices in (
            ("index_format", get_args(IndexFormat)),
            ("storage", (None, *get_args(Storage))),
            ("algorithm", (None, *get_args(Algorithm))),
            ("activation", get_args(ActivationChoice)),
            ("remaining", get_args(RemainingChoice)),
            ("external_data", get_args(ExternalData)),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(str(choice) for choice in choices)
                raise ValueError(f"{name} = {getattr(self, name)!r}, expected one of: {expected}")
        self._check_format()
        # A larger one could not tell a level of 0 from the scale.
        if not 0.0 <= self.tolerance < 1 / 3:
            raise ValueError(f"tolerance = {self.tolerance}, expected from 0 to below 1/3")
        if self.min_elements < 0:
            raise ValueError(f"min_elements = {self.min_elements}, expected 0 or more")
        if self.max_fold_bytes is not None and self.max_fold_bytes < 0:
            raise ValueError(f"max_fold_bytes = {self.max_fold_bytes}, expected 0 or more, or None")
        if self.max_fold_steps < 0:
            raise ValueError(f"max_fold_steps = {self.max_fold_steps}, expected 0 or more")
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a tuple of globs, not one string")

    def _check_format(self) -> None:
        storages = STORAGES[self.index_format]
        if self.storage is not None and self.storage not in storages:
            raise ValueError(
                f"storage = {self.storage!r}, expected {' or '.join(storages)} for "
                f"{self.index_format}"
            )
        if self.index_format == "packed":
            if self.block_width is not None or self.algorithm not in (None, "auto"):
                raise ValueError("block_width and algorithm are for index_format = 'rsr'")
            return
        widest = MAX_BLOCK_WIDTH[self.storage or "planes"]
        if self.block_width is not None and not 1 <= self.block_width <= widest:
            raise ValueError(f"block_width = {self.block_width}, expected from 1 to {widest}")
        if self.algorithm == "auto":
            raise ValueError("algorithm = 'auto', expected rsr or rsr++ for rsr")

    def to_dict(self) -> dict[str, Any]:
        """The options by name, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must hold for a conversion to count.

    Attributes:
        rewrite: at least one product is rewritten.
        max_size_ratio: the output's size divided by the input's, at most; None for no limit.
        complete: no product is left that could be rewritten.

    A model that was converted before and has nothing left to rewrite meets all of them.
    """

    rewrite: bool = False
    max_size_ratio: float | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class VerificationOptions:
    """How a converted model is compared with its original.

    Attributes:
        shapes: sizes of generated inputs: ``{"batch": 4}`` of a symbolic dimension, ``{"x:1": 4}``
            of an input's axis, ``{"x": (1, 3, 224, 224)}`` of a whole input. Others are solved from
            the graph, or tried.
        require_whole: fail with `RequirementError` where models cannot be compared as a whole but
            only product by product.
    """

    shapes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    require_whole: bool = False
