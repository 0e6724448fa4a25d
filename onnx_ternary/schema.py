"""Names, attributes and limits of the operators; docs/op_spec.md in code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from onnx_ternary.errors import IndexFormatError

DOMAIN = "onnx_ternary"
OP_TYPE = "TernaryIndexedMatMul"
DOMAIN_VERSION = 1
FORMAT_VERSION = 1
INPUT_NAMES = ("X", "codes", "aux", "scale", "bias")
GATHER_TYPE = "TernaryIndexedGather"
GATHER_INPUT_NAMES = ("indices", "codes", "scale", "like")
GATHER_ATTRIBUTES = (
    *("K", "N", "storage", "alphabet", "block_size", "group_size", "format_version"),
)
OP_TYPES = (OP_TYPE, GATHER_TYPE)

IndexFormat = Literal["packed", "rsr"]
Storage = Literal["2bit", "dense", "1bit", "planes", "base3"]
Alphabet = Literal["ternary", "binary_pm", "binary_01"]
Algorithm = Literal["auto", "rsr", "rsr++"]
Activation = Literal["float", "int8", "uint8"]
ActivationRule = Literal["none", "absmax_division", "absmax_reciprocal", "dynamic_quantize_linear"]

BLOCK_SIZES = (16, 32, 64, 128)
MAX_BLOCK_WIDTH = {"planes": 16, "base3": 10}
# int8 sums stay exact in int32: (2^24 - 1) * 128 < 2^31.
MAX_K = 2**24 - 1
MAX_N = 2**31 - 1
# Sums of q - 128 stay exact in float32, in which int8 kernels hand them on: 2^17 * 128 = 2^24.
MAX_UINT8_K = 2**17

# Storages of a format, and the alphabets each can hold.
STORAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "packed": {
        "2bit": ("ternary", "binary_pm", "binary_01"),
        "dense": ("ternary", "binary_pm", "binary_01"),
        "1bit": ("binary_pm", "binary_01"),
    },
    "rsr": {"planes": ("ternary", "binary_pm", "binary_01"), "base3": ("ternary",)},
}


@dataclass(frozen=True, slots=True)
class OpAttributes:
    """The attributes of one `TernaryIndexedMatMul` node, in the order of docs/op_spec.md.

    Those of a `TernaryIndexedGather` are the `GATHER_ATTRIBUTES`; the others have their defaults.

    Raises:
        IndexFormatError: on construction, if the combination is not one the format allows.
    """

    K: int
    N: int
    index_format: IndexFormat = "packed"
    storage: Storage = "2bit"
    alphabet: Alphabet = "ternary"
    block_size: int = 128
    block_width: int = 0
    algorithm: Algorithm = "auto"
    group_size: int = 0
    activation: Activation = "float"
    activation_rule: ActivationRule = "none"
    activation_epsilon: float = 0.0
    activation_qmin: int = 0
    activation_qmax: int = 0
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, values: Mapping[str, Any], node: str, op_type: str = OP_TYPE) -> OpAttributes:
        """The attributes found on a node of a model, which may be damaged.

        Args:
            values: int, float or str by name.
            node: the node's name, for messages.
            op_type: `OP_TYPE` or `GATHER_TYPE`.

        Raises:
            IndexFormatError: if one is unknown, missing, of another type or out of range.
        """
        again = "; convert the model again with 'onnx-ternary optimize'."
        types = {field.name: type(field.default) for field in fields(cls)} | {"K": int, "N": int}
        if op_type == GATHER_TYPE:
            types = {name: types[name] for name in GATHER_ATTRIBUTES}
        if wrong := sorted(values.keys() ^ types.keys()):
            raise IndexFormatError(
                f"{op_type} '{node}': unknown or missing attributes ({', '.join(wrong)}){again}"
            )
        for name, expected in types.items():
            if type(values[name]) is not expected:
                raise IndexFormatError(
                    f"{op_type} '{node}': attribute {name} = {values[name]!r}, expected "
                    f"{expected.__name__}{again}"
                )
        try:
            return cls(**values)
        except IndexFormatError as error:
            raise IndexFormatError(str(error).replace(OP_TYPE, f"{op_type} '{node}'", 1)) from error

    def __post_init__(self) -> None:
        self._require("K", 0 < self.K <= MAX_K, f"from 1 to {MAX_K}")
        self._require("N", 0 < self.N <= MAX_N, f"from 1 to {MAX_N}")
        self._require("format_version", self.format_version == FORMAT_VERSION, str(FORMAT_VERSION))
        self._require("index_format", self.index_format in STORAGES, "packed or rsr")
        storages = STORAGES[self.index_format]
        self._require("storage", self.storage in storages, " or ".join(storages))
        alphabets = storages[self.storage]
        self._require("alphabet", self.alphabet in alphabets, " or ".join(alphabets))
        self._require("group_size", 0 <= self.group_size <= MAX_K, f"from 0 to {MAX_K}")
        if self.index_format == "packed":
            self._require("block_size", self.block_size in BLOCK_SIZES, "16, 32, 64 or 128")
            self._require("block_width", self.block_width == 0, "0 for packed")
            self._require("algorithm", self.algorithm == "auto", "auto for packed")
            self._require(
                "group_size",
                self.group_size % self.block_size == 0,
                f"a multiple of block_size {self.block_size}",
            )
        else:
            self._require("block_size", self.block_size == 0, "0 for rsr")
            widest = MAX_BLOCK_WIDTH[self.storage]
            self._require("block_width", 1 <= self.block_width <= widest, f"from 1 to {widest}")
            self._require("algorithm", self.algorithm in ("rsr", "rsr++"), "rsr or rsr++")
        self._check_activation()

    def _check_activation(self) -> None:
        self._require(
            "activation", self.activation in get_args(Activation), " or ".join(get_args(Activation))
        )
        if self.activation == "float":
            self._require("activation_rule", self.activation_rule == "none", "none for float")
            for name in ("activation_epsilon", "activation_qmin", "activation_qmax"):
                self._require(name, getattr(self, name) == 0, "0 for float")
            return
        if self.activation == "uint8":
            rule = "dynamic_quantize_linear"
            self._require("activation_rule", self.activation_rule == rule, f"{rule} for uint8")
            self._require("K", self.K <= MAX_UINT8_K, f"at most {MAX_UINT8_K} for uint8")
            self._require("group_size", self.group_size == 0, "0 for uint8")
            for name, value in (("epsilon", 0), ("qmin", 0), ("qmax", 255)):
                name = f"activation_{name}"
                self._require(name, getattr(self, name) == value, f"{value} for uint8")
            return
        self._require(
            "activation_rule",
            self.activation_rule in ("absmax_division", "absmax_reciprocal"),
            "absmax_division or absmax_reciprocal for int8",
        )
        # qmax / epsilon stays finite, so that a row of zeros gives zeros.
        self._require(
            "activation_epsilon",
            1e-30 <= self.activation_epsilon < 1e30,
            "from 1e-30 to below 1e30",
        )
        self._require("activation_qmax", 0 < self.activation_qmax <= 127, "from 1 to 127")
        self._require("activation_qmin", -128 <= self.activation_qmin < 0, "from -128 to -1")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise IndexFormatError(
                f"{OP_TYPE}: attribute {name} = {getattr(self, name)!r}, expected {expected}; "
                "convert the model again with 'onnx-ternary optimize'."
            )

    def to_dict(self) -> dict[str, int | float | str]:
        """All attributes by name, as they are written on the node."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_gather_dict(self) -> dict[str, int | float | str]:
        """The attributes of a `TernaryIndexedGather` of the same index."""
        return {name: getattr(self, name) for name in GATHER_ATTRIBUTES}

    @property
    def num_groups(self) -> int:
        """Scale groups along K: 1 unless scales are per group."""
        return -(-self.K // self.group_size) if self.group_size else 1

    @property
    def num_planes(self) -> int:
        """Binary planes of an `rsr` index: 2 for ternary split as W = P - Q, else 1."""
        return 2 if self.storage == "planes" and self.alphabet == "ternary" else 1

    @property
    def num_patterns(self) -> int:
        """Patterns of one column block of an `rsr` index."""
        return int((3 if self.storage == "base3" else 2) ** self.block_width)
