"""Constants behind DequantizeLinear, kept as codes and scales instead of floats.

    [QuantizeLinear ->] [Clip ->] DequantizeLinear(codes, scale, zero_point) -> ...

1. codes int2 to int32 or uint2 to uint16, constant, or the result of a QuantizeLinear of float32
   constants, also clipped (brevitas writes ``Clip(int8, -1, 1)``).
2. One scale and zero point for the tensor, one per slice of `axis`, or one per block of
   `block_size` along it; results in float32, float16 or bfloat16.
3. Transpose and Cast behind it keep the codes; any other step sees a float tensor.

Called by resolve.py, so that every rule finds such weights, biases and factors alike. Scales and
zero points at run time, float codes and other shapes are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.index.codes import ternarize_codes
from onnx_ternary.index.levels import NotTernary, TernaryWeight

from .constant import Constant, Numbers

STEPS = frozenset(
    {
        ("", "Clip"),
        ("", "DequantizeLinear"),
        ("", "QuantizeLinear"),
        ("com.microsoft", "DequantizeLinear"),
    }
)
"""(domain, op_type) of what `apply` evaluates."""

_CODES: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.INT2: np.dtype(np.int8),
    ir.DataType.INT4: np.dtype(np.int8),
    ir.DataType.INT8: np.dtype(np.int8),
    ir.DataType.INT16: np.dtype(np.int16),
    ir.DataType.INT32: np.dtype(np.int32),
    ir.DataType.UINT2: np.dtype(np.uint8),
    ir.DataType.UINT4: np.dtype(np.uint8),
    ir.DataType.UINT8: np.dtype(np.uint8),
    ir.DataType.UINT16: np.dtype(np.uint16),
}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_RANGES = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.UINT16: (0, 2**16 - 1),
}


@dataclass(frozen=True, slots=True)
class Dequantized:
    """``(codes - zero_point) * scale``, as the `evaluate` of a `Constant`.

    Attributes:
        codes: computes the integers, of the operand's shape.
        scale: computes the scales: float32, of the operand's rank.
        zero_point: computes the zero points: one element, or the shape of the scales.
        blocks: elements along each axis that share a scale.
        dtypes: what the product is rounded to, in turn.
    """

    codes: Callable[[], NDArray[Any]]
    scale: Callable[[], NDArray[np.float32]]
    zero_point: Callable[[], NDArray[np.float64]]
    blocks: tuple[int, ...]
    dtypes: tuple[np.dtype[Any], ...]

    def __call__(self) -> NDArray[Any]:
        """The floats, computed as ONNX Runtime does."""
        codes = self.codes()
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            result = codes.astype(np.float32)
            result -= self._spread(self.zero_point(), codes.shape).astype(np.float32)
            result *= self._spread(self.scale(), codes.shape)
            for dtype in self.dtypes:
                result = result.astype(dtype, copy=False)
        return result

    def transposed(self, perm: tuple[int, ...]) -> Dequantized:
        """The reader of the constant behind a Transpose."""
        return replace(
            self,
            codes=lambda: self.codes().transpose(perm),
            scale=lambda: self.scale().transpose(perm),
            zero_point=lambda: self.zero_point().transpose(perm),
            blocks=tuple(self.blocks[axis] for axis in perm),
        )

    def matrix(self) -> Dequantized:
        """The reader of the first two axes; all other axes have one element each."""

        def flat(array: NDArray[Any]) -> NDArray[Any]:
            return array.reshape(array.shape[:2])

        return replace(
            self,
            codes=lambda: flat(self.codes()),
            scale=lambda: flat(self.scale()),
            zero_point=lambda: flat(self.zero_point()),
            blocks=self.blocks[:2],
        )

    def cast(self, dtype: np.dtype[Any]) -> Dequantized:
        """The reader of the constant behind a Cast to a float type."""
        return replace(self, dtypes=(*self.dtypes, dtype))

    def ternarize(self) -> TernaryWeight | NotTernary:
        """Levels and scales of a matrix (K, N), or why it has none."""
        codes, scale, zero_point = self.codes(), self.scale(), self.zero_point()
        columns = codes.shape[1]
        if scale.shape[1] not in (1, columns):
            scale = np.repeat(scale, self.blocks[1], axis=1)[:, :columns]
            if zero_point.size > 1:
                zero_point = np.repeat(zero_point, self.blocks[1], axis=1)[:, :columns]
        return ternarize_codes(
            codes, scale, zero_point, group_size=self.blocks[0], dtypes=self.dtypes
        )

    def _spread(self, numbers: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """One number per block as one number per element, or as what broadcasts to that."""
        for axis, (block, size) in enumerate(zip(self.blocks, shape, strict=True)):
            if numbers.shape[axis] not in (1, size):
                index = (slice(None),) * axis + (slice(size),)
                numbers = np.repeat(numbers, block, axis=axis)[index]
        return numbers


def apply(node: ir.Node, operands: Sequence[Constant | None]) -> Constant | str:
    """The constant that one of `STEPS` makes of constants, or why it is not evaluated.

    Args:
        node: the step.
        operands: its inputs, None for an input left out; the first is there.
    """
    source, *others = operands
    assert source is not None
    parameters = [*others, None, None]
    if node.op_type == "Clip":
        return _clip(node, source, parameters[0], parameters[1])
    if parameters[0] is None:
        return f"'{source.name}' goes through {node.op_type} '{node.name}' without a scale"
    if node.op_type == "QuantizeLinear":
        return _quantize(node, source, parameters[0], parameters[1])
    return _dequantize(node, source, parameters[0], parameters[1])


def integers(codes: Constant) -> Callable[[], NDArray[Any]]:
    """Compute a constant's codes in a type numpy calculates with."""
    dtype = _CODES[codes.dtype]
    return lambda: codes.numpy().astype(dtype, copy=False)


def _dequantize(
    node: ir.Node, codes: Constant, scale: Constant, zero_point: Constant | None
) -> Constant | str:
    what = f"'{codes.name}' is dequantized by '{node.name}'"
    if codes.dtype not in _CODES:
        return f"{what} from {codes.dtype.name}, which this version does not evaluate"
    output_dtype = node.attributes.get_int("output_dtype", 0) or int(scale.dtype)
    dtype = ir.DataType(output_dtype)
    if scale.dtype not in _FLOATS or dtype not in _FLOATS:
        name = scale.dtype.name if dtype in _FLOATS else dtype.name
        return f"{what} with scales or results of type {name}, which this version does not evaluate"
    blocks = _blocks(node, codes.shape, scale.shape)
    if blocks is None:
        return f"{what} with scales of shape {scale.shape}, which do not fit shape {codes.shape}"
    if zero_point is not None and zero_point.shape != scale.shape:
        return f"{what} with zero points of shape {zero_point.shape}, but scales {scale.shape}"
    return replace(
        codes,
        nodes=(*codes.nodes, node),
        key=(step_key(node, codes, scale, zero_point),),
        dtype=dtype,
        stored_bytes=sum(each.stored_bytes for each in (codes, scale, zero_point) if each),
        evaluate=Dequantized(
            codes=integers(codes),
            scale=lambda: _shaped(scale.numpy(), codes.shape, blocks).astype(np.float32),
            zero_point=lambda: _zero_points(zero_point, codes.shape, blocks),
            blocks=blocks,
            dtypes=(dtype.numpy(),),
        ),
    )


def _quantize(
    node: ir.Node, source: Constant, scale: Constant, zero_point: Constant | None
) -> Constant | str:
    what = f"'{source.name}' is quantized by '{node.name}'"
    given = node.attributes.get_int("output_dtype", 0)
    dtype = ir.DataType(given) if given else ir.DataType.UINT8
    if zero_point is not None:
        dtype = zero_point.dtype
    for each in (source.dtype, scale.dtype):
        # In other types runtimes differ in what they round.
        if each != ir.DataType.FLOAT:
            return f"{what} in type {each.name}, which this version does not evaluate"
    if dtype not in _RANGES:
        return f"{what} to {dtype.name}, which this version does not evaluate"
    blocks = _blocks(node, source.shape, scale.shape)
    if blocks is None:
        return f"{what} with scales of shape {scale.shape}, which do not fit shape {source.shape}"
    lowest, highest = _RANGES[dtype]

    def evaluate() -> NDArray[Any]:
        numbers = source.numpy()
        spread = Dequantized(
            codes=lambda: numbers,
            scale=lambda: _shaped(scale.numpy(), source.shape, blocks),
            zero_point=lambda: _zero_points(zero_point, source.shape, blocks),
            blocks=blocks,
            dtypes=(),
        )
        rounded: NDArray[Any] = _quantized(spread, lowest, highest).astype(_CODES[dtype])
        return rounded

    return replace(
        source,
        nodes=(*source.nodes, node),
        key=(step_key(node, source, scale, zero_point),),
        dtype=dtype,
        evaluate=Numbers(evaluate),
    )


def _quantized(source: Dequantized, lowest: int, highest: int) -> NDArray[Any]:
    numbers = source.codes()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rounded = np.rint(numbers / source._spread(source.scale(), numbers.shape))
        rounded = rounded + source._spread(source.zero_point(), numbers.shape)
    if np.isnan(rounded).any():
        raise ValueError("QuantizeLinear makes NaN of it")
    result: NDArray[Any] = np.clip(rounded, lowest, highest)
    return result


def _clip(
    node: ir.Node, source: Constant, lowest: Constant | None, highest: Constant | None
) -> Constant | str:
    if node.attributes:
        return f"'{source.name}' is clipped by '{node.name}' of an opset below 11"
    if any(each is not None and each.size != 1 for each in (lowest, highest)):
        return f"'{source.name}' is clipped by '{node.name}', whose bounds are no scalars"
    source_integers = integers(source) if source.dtype in _CODES else source.numpy

    def evaluate() -> NDArray[Any]:
        numbers = source_integers()
        for bound, limit in ((lowest, np.maximum), (highest, np.minimum)):
            if bound is not None:
                numbers = limit(numbers, bound.numpy().reshape(()).astype(numbers.dtype))
        return numbers

    return replace(
        source,
        nodes=(*source.nodes, node),
        key=(step_key(node, source, lowest, highest),),
        evaluate=Numbers(evaluate),
    )


def step_key(node: ir.Node, *operands: Constant | None) -> Hashable:
    """Equal for equal steps of equal operands."""
    attributes = sorted((name, repr(attr.value)) for name, attr in node.attributes.items())
    return (
        node.op_type,
        tuple(None if each is None else each.key for each in operands),
        tuple(attributes),
    )


def _blocks(
    node: ir.Node, shape: tuple[int, ...], scale_shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Elements along each axis that share a scale; None where the shapes do not fit."""
    if scale_shape in ((), (1,)):
        return shape
    axis = node.attributes.get_int("axis", 1)
    block_size = node.attributes.get_int("block_size", 0)
    assert axis is not None and block_size is not None
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if block_size == 0:
        fits = scale_shape == (shape[axis],)
        return tuple(1 if at == axis else size for at, size in enumerate(shape)) if fits else None
    expected = (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])
    if scale_shape != expected:
        return None
    return tuple(block_size if at == axis else 1 for at in range(len(shape)))


def _shaped(numbers: NDArray[Any], shape: tuple[int, ...], blocks: tuple[int, ...]) -> NDArray[Any]:
    """Scales or zero points with the rank of what they belong to."""
    if numbers.size == 1:
        return numbers.reshape((1,) * len(shape))
    return numbers.reshape(
        [-(-size // block) if size else 0 for size, block in zip(shape, blocks, strict=True)]
    )


def _zero_points(
    zero_point: Constant | None, shape: tuple[int, ...], blocks: tuple[int, ...]
) -> NDArray[np.float64]:
    if zero_point is None:
        return np.zeros((1,) * len(shape), np.float64)
    return _shaped(zero_point.numpy().astype(np.float64), shape, blocks)
