"""Write golden models: what ``optimize`` made of a product in format version 1, as users keep it.

``python -m tests.golden.write_models`` from the repository's root. Like the indices of
write_golden, they are never rewritten: a file once converted has to load for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import ActivationChoice, OptimizeOptions
from tests.golden.write_golden import BLOCK_WIDTH, FOLDER, Case, K, N, cases

MODELS = FOLDER / "models"
ROWS = 5


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One golden model."""

    index: Case
    activation: ActivationChoice

    @property
    def path(self) -> Path:
        arithmetic = "int8" if self.activation == "int8" else "float"
        return MODELS / f"{self.index.path.stem}_{arithmetic}.onnx"

    def original(self) -> onnx.ModelProto:
        """``Y = X @ W`` with W in float32."""
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["X", "W"], ["Y"], "product")],
            "golden",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", K])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", N])],
            [numpy_helper.from_array(self.index.weight().dense(), "W")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def convert(self) -> onnx.ModelProto:
        packed = self.index.index_format == "packed"
        options = OptimizeOptions(
            index_format=self.index.index_format,
            storage=self.index.storage,
            block_width=None if packed else BLOCK_WIDTH,
            activation=self.activation,
            min_elements=0,
        )
        return optimize(self.original(), options).to_proto()


def model_cases() -> list[ModelCase]:
    """Every index with float arithmetic, and one of every storage and alphabet with int8."""
    floats = [ModelCase(case, "keep") for case in cases()]
    return floats + [ModelCase(case, "int8") for case in cases() if case.scale_kind == "column"]


def activations() -> NDArray[np.float32]:
    """(ROWS, K) float32 from a multiplicative sequence, the same on every numpy version."""
    numbers = np.array([pow(16807, i + 1, 2**31 - 1) for i in range(ROWS * K)])
    return (numbers / 2**30 - 1).astype(np.float32).reshape(ROWS, K)


def main() -> None:
    MODELS.mkdir(exist_ok=True)
    for case in model_cases():
        if not case.path.exists():
            case.path.write_bytes(case.convert().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
