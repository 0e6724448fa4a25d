"""Products this version leaves alone, so that the report names every one of them."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ..match import Context, Rejection, TernaryMatMul

_MICROSOFT = "com.microsoft"
# One node of these stands for several products, with other steps between them.
_COMPOSED = frozenset(
    {("", name) for name in ("GRU", "LSTM", "RNN")}
    | {
        (_MICROSOFT, name)
        for name in ("Attention", "DynamicQuantizeLSTM", "MoE", "QAttention", "QMoE")
    }
)


class Unhandled:
    """Every other product ONNX and ONNX Runtime know."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {("", name) for name in ("ConvInteger", "ConvTranspose", "QLinearConv", "QLinearMatMul")}
        | {
            (_MICROSOFT, name)
            for name in (
                "FusedConv",
                "FusedMatMulActivation",
                "GemmFastGelu",
                "GemmFloat8",
                "MatMulBnb4",
                "MatMulFpQ4",
                "MatMulInteger16",
                "NhwcConv",
                "NhwcFusedConv",
                "QGemm",
                "QLinearConv",
                "SparseToDenseMatMul",
            )
        }
        | _COMPOSED
    )

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """Always a refusal."""
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if (node.domain, node.op_type) in _COMPOSED:
            return Rejection(
                node, f"{name} multiplies inside; this version rewrites separate products only"
            )
        return Rejection(node, f"{name} is not handled by this version")


RULES = (Unhandled(),)
