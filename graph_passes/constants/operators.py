"""The operators that weights are computed with, and no others.

ONNX Runtime runs them at conversion, on files from strangers, and many of its kernels end the
process on operands nobody gives them in good faith: of layers, windows, spectra, texts and images
(``python -m tests.fuzz operators``, onnx 1.23, ONNX Runtime 1.32: ConvTranspose, EyeLike, GRU,
LayerNormalization, LSTM, RegexFullMatch, STFT, TfIdfVectorizer, Unique). No weight is made by
these, so they are left out. What the operators below have of that kind is in faults.py.
"""

from __future__ import annotations

from collections.abc import Mapping

_ELEMENTS = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu
    Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish
    Tan Tanh ThresholdedRelu Where Xor
"""
_SUMS = """
    ArgMax ArgMin CumProd CumSum Einsum Gemm Hardmax LogSoftmax LpNormalization MatMul MatMulInteger
    QLinearMatMul ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Softmax
"""
_PLACES = """
    Compress Concat ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND
    Identity NonZero OneHot Pad Range Reshape Scatter ScatterElements ScatterND Shape Size Slice
    SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze
"""
_TYPES = """
    BitCast Cast CastLike Constant DequantizeLinear DynamicQuantizeLinear QuantizeLinear
"""

EVALUATED: Mapping[str, frozenset[str]] = {
    "": frozenset(f"{_ELEMENTS} {_SUMS} {_PLACES} {_TYPES}".split()),
    "com.microsoft": frozenset(
        {"DequantizeLinear", "FusedMatMul", "QuantizeLinear", "TransposeMatMul"}
    ),
}
"""Names by domain."""
