"""Write golden tables: what ``optimize`` made of a tied embedding and head in format version 1.

``python -m tests.golden.write_tables`` from the repository's root. Like the models of write_models,
they are never rewritten: a file once converted has to load for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.golden.write_golden import FOLDER, Case, K, N, cases

TABLES = FOLDER / "tables"


@dataclass(frozen=True, slots=True)
class TableCase:
    """One golden table."""

    index: Case

    @property
    def path(self) -> Path:
        return TABLES / f"{self.index.path.stem}.onnx"

    def table(self) -> NDArray[np.float32]:
        """(N, K) float32."""
        return np.ascontiguousarray(self.index.weight().dense().T)

    def original(self) -> onnx.ModelProto:
        """``rows = T[ids]`` and ``Y = X @ T^T`` with T in float32."""
        graph = helper.make_graph(
            [
                helper.make_node("Gather", ["T", "ids"], ["rows"], "embedding"),
                helper.make_node("Transpose", ["T"], ["W"], perm=[1, 0]),
                helper.make_node("MatMul", ["X", "W"], ["Y"], "head"),
            ],
            "golden",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, ["length"]),
                helper.make_tensor_value_info("X", TensorProto.FLOAT, ["length", K]),
            ],
            [
                helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["length", K]),
                helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["length", N]),
            ],
            [numpy_helper.from_array(self.table(), "T")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def convert(self) -> onnx.ModelProto:
        options = OptimizeOptions(storage=self.index.storage, min_elements=0)
        return optimize(self.original(), options).to_proto()


def table_cases() -> list[TableCase]:
    """Every packed index."""
    return [TableCase(case) for case in cases() if case.index_format == "packed"]


def main() -> None:
    TABLES.mkdir(exist_ok=True)
    for case in table_cases():
        if not case.path.exists():
            case.path.write_bytes(case.convert().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
