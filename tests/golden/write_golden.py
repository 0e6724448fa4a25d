"""Write the golden files of format version 1: one .npz a storage, alphabet and kind of scale, and
one with activations and their exact answers for every activation rule of both formats.

``python -m tests.golden.write_golden`` from the repository's root. The files are never rewritten
for a packer that changed: a new layout is a new format version with new files beside these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_ternary.index import Index, build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import ActivationRule, Alphabet, IndexFormat, Storage
from tests.support.strategies import LEVELS, PACKED_STORAGES, RSR_STORAGES

FOLDER = Path(__file__).parent
K, N, GROUP_SIZE, BLOCK_WIDTH = 133, 6, 32, 3
SCALE_SHAPES: dict[str, tuple[int, ...]] = {
    "tensor": (),
    "column": (N,),
    "group": (-(-K // GROUP_SIZE), N),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One golden file."""

    index_format: IndexFormat
    storage: Storage
    alphabet: Alphabet
    scale_kind: str

    @property
    def path(self) -> Path:
        name = f"v1_{self.index_format}_{self.storage}_{self.alphabet}_{self.scale_kind}.npz"
        return FOLDER / name

    def weight(self) -> TernaryWeight:
        """Levels and scales from a multiplicative sequence, the same on every numpy version."""
        numbers = np.array([pow(48271, i + 1, 2**31 - 1) for i in range(K * N)])
        choices = np.array(LEVELS[self.alphabet], np.int8)
        levels = choices[(numbers >> 8) % choices.size].reshape(K, N)
        shape = SCALE_SHAPES[self.scale_kind]
        count = int(np.prod(shape))
        scale = (1 + numbers[:count] / 2**32).astype(np.float32).reshape(shape)
        group_size = GROUP_SIZE if self.scale_kind == "group" else 0
        return TernaryWeight(levels, scale, group_size, self.alphabet, 0.0)

    def build(self, *, native: bool) -> Index:
        return build_index(
            self.weight(),
            index_format=self.index_format,
            storage=self.storage,
            block_width=BLOCK_WIDTH if self.index_format == "rsr" else None,
            native=native,
        )


def cases() -> Iterator[Case]:
    formats: tuple[tuple[IndexFormat, tuple[tuple[Storage, Alphabet], ...]], ...] = (
        ("packed", PACKED_STORAGES),
        ("rsr", RSR_STORAGES),
    )
    for index_format, storages in formats:
        for storage, alphabet in storages:
            for scale_kind in SCALE_SHAPES:
                yield Case(index_format, storage, alphabet, scale_kind)


_UINT8: dict[str, Any] = {"activation": "uint8", "activation_qmax": 255}
_INT8: dict[str, Any] = {
    "activation": "int8",
    "activation_epsilon": 2.0**-10,
    "activation_qmin": -128,
    "activation_qmax": 127,
}
RULES: dict[ActivationRule, dict[str, Any]] = {
    "absmax_division": _INT8,
    "absmax_reciprocal": _INT8 | {"activation_qmin": -100},
    "dynamic_quantize_linear": _UINT8,
}


@dataclass(frozen=True, slots=True)
class ActivationCase:
    """One golden file of quantized activations: attributes, tensors, X and the bits of Y."""

    weight: Case
    rule: ActivationRule

    @property
    def path(self) -> Path:
        return FOLDER / f"v1_{self.weight.index_format}_{self.rule}.npz"

    def tensors(self) -> dict[str, Any]:
        index = self.weight.build(native=False)
        attributes = replace(index.attributes, activation_rule=self.rule, **RULES[self.rule])
        numbers = np.array([pow(69621, i + 1, 2**31 - 1) for i in range(9 * K)])
        x = ((numbers - 2**30) / 2**29).astype(np.float32).reshape(9, K)
        x[3] *= np.float32(2.0**-12)  # below epsilon
        x[5] = 0
        bias = (numbers[:N] / 2**31).astype(np.float32)
        constants = (index.codes, index.aux, index.scale, bias)
        return {
            "codes": index.codes,
            "aux": index.aux,
            "scale": index.scale,
            "bias": bias,
            "x": x,
            "y": ternary_indexed_matmul(x, *constants, attributes),
            "attributes": np.array(json.dumps(attributes.to_dict())),
        }


def activation_cases() -> Iterator[ActivationCase]:
    for rule in RULES:
        yield ActivationCase(Case("packed", "2bit", "ternary", "column"), rule)
        yield ActivationCase(Case("rsr", "planes", "ternary", "column"), rule)


def main() -> None:
    for quantized in activation_cases():
        if not quantized.path.exists():
            np.savez_compressed(quantized.path, **quantized.tensors())
    for case in cases():
        if case.path.exists():
            continue
        index = case.build(native=False)
        tensors: dict[str, Any] = {
            "levels": case.weight().levels,
            "codes": index.codes,
            "aux": index.aux,
            "scale": index.scale,
            "attributes": np.array(json.dumps(index.attributes.to_dict())),
        }
        np.savez_compressed(case.path, **tensors)


if __name__ == "__main__":
    main()
