"""Every converted gather of table rows against the original's: the same numbers, bit for bit.

Rows of a table are decoded, not summed, so the bound on a row's error is zero; where weights were
changed by a tolerance, it is that change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.schema import DOMAIN, GATHER_INPUT_NAMES, GATHER_TYPE, OpAttributes
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.original import original_functions, product_piece
from onnx_ternary.verification.pieces import Piece, run_pieces
from onnx_ternary.verification.places import Place, Scope, node_attributes, node_name
from onnx_ternary.verification.report import ProductCheck, Reference

# All rows of tables up to this size, and as many elements of larger ones.
_MAX_ELEMENTS = 1 << 24
_MAX_BODY_ELEMENTS = 1 << 20


def check_gathers(
    before: LoadedModel, after: LoadedModel, scopes: Sequence[Scope], weight_tolerance: float
) -> list[ProductCheck]:
    """Rows of every `TernaryIndexedGather`, evenly taken, against the original's nodes.

    Args:
        before: the original.
        after: the converted model.
        scopes: where gathers stand.
        weight_tolerance: what conversion was allowed to change a weight by, relative to the scale.

    Raises:
        ModelError: if onnxruntime cannot run a converted node.
        IndexFormatError: if a node's attributes break their rules.
    """
    body = gather_function(after.proto)
    return [
        _check(before, after, scope, node, body, weight_tolerance)
        for scope in scopes
        for node in scope.gathers
    ]


def gather_function(model: ModelProto) -> FunctionProto | None:
    """The definition a converted model has of `TernaryIndexedGather`."""
    kind = (DOMAIN, GATHER_TYPE)
    return next((each for each in model.functions if (each.domain, each.name) == kind), None)


def _check(
    before: LoadedModel,
    after: LoadedModel,
    scope: Scope,
    node: NodeProto,
    body: FunctionProto | None,
    weight_tolerance: float,
) -> ProductCheck:
    attributes = node_attributes(node)
    K, N = attributes.K, attributes.N
    named = (node_name(node), node.output[0], (K, N))
    place = Place(node.input[0], node.output[0])
    indices = spread_rows(N, _MAX_ELEMENTS // K)
    original = product_piece(scope, place, indices) if place.target in scope.known else None
    if original is None:
        reason = f"the original has no nodes from '{place.source}' to '{place.target}' alone"
        return ProductCheck(*named, "end to end only", reason=reason)
    functions = original_functions(before, [original])
    original = _in_float32(original)
    (answer,) = run_pieces(before, [original], optimized=False, functions=functions)
    if isinstance(answer, ModelError):
        return ProductCheck(*named, "end to end only", reason=f"the original's rows: {answer}")
    tensors = after.constants(scope.constants, node.input[1:], named[0])
    expected = answer[0]
    bound = _bound(attributes, tensors[1], indices, weight_tolerance)
    functions = [] if body is None else [body]
    found = run_rows(after, node, tensors, indices, functions, with_op=True)
    worst = _Worst(expected, found, bound, indices)
    of_body = None
    if body is not None:
        chosen = spread_rows(len(indices), _MAX_BODY_ELEMENTS // K)
        few = indices[chosen]
        by_body = run_rows(after, node, tensors, few, functions, with_op=False)
        of_body = _Worst(expected[chosen], by_body, bound[chosen], few)
    shown = of_body if of_body is not None and of_body.ratio > worst.ratio else worst
    return ProductCheck(
        *named,
        "passed" if shown.ratio <= 1 else "failed",
        dtype=helper.tensor_dtype_to_np_dtype(numpy_helper.from_array(tensors[2]).data_type).name,
        compared_with=Reference.ORIGINAL,
        rows=len(indices),
        ran_without_library=of_body is not None,
        worst_is_without_library=shown is of_body,
        max_abs_error=shown.error,
        worst_error_over_bound=shown.ratio,
        worst_index=shown.index,
        worst_expected=shown.expected,
        worst_found=shown.found,
    )


def spread_rows(num_rows: int, most: int) -> NDArray[np.int64]:
    """Rows evenly taken, the first and the last among them, ascending."""
    count = min(num_rows, max(most, 2))
    return np.unique(np.linspace(0, num_rows - 1, count).round().astype(np.int64))


def _in_float32(piece: Piece) -> Piece:
    """The same with its output cast: numpy has no type for bfloat16 outputs of a session."""
    (output,) = piece.outputs
    cast = helper.make_node("Cast", [output], [f"{output}/float32"], to=TensorProto.FLOAT)
    return Piece([*piece.nodes, cast], piece.constants, piece.feeds, [cast.output[0]])


def run_rows(
    after: LoadedModel,
    node: NodeProto,
    tensors: Sequence[NDArray[Any]],
    indices: NDArray[np.int64],
    functions: Sequence[FunctionProto],
    *,
    with_op: bool,
) -> NDArray[np.float32]:
    """Rows of a converted node alone, in float32.

    Args:
        after: the converted model.
        node: a `TernaryIndexedGather` of it.
        tensors: its codes, scale and like.
        indices: rows.
        functions: the operator's definition; it computes where the library does not.
        with_op: whether the library is there.

    Raises:
        ModelError: if onnxruntime cannot run it.
    """
    alone = NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = GATHER_INPUT_NAMES
    alone.output[:] = ["Y"]
    constants = [
        numpy_helper.from_array(np.asarray(tensor), name)
        for name, tensor in zip(GATHER_INPUT_NAMES[1:], tensors, strict=True)
    ]
    piece = _in_float32(Piece([alone], constants, {GATHER_INPUT_NAMES[0]: indices}, ["Y"]))
    (answer,) = run_pieces(after, [piece], optimized=False, with_op=with_op, functions=functions)
    if isinstance(answer, ModelError):
        raise answer
    return answer[0]


def _bound(
    attributes: OpAttributes,
    scale: NDArray[np.float32],
    indices: NDArray[np.int64],
    weight_tolerance: float,
) -> NDArray[np.float64]:
    """What each element may be off, (rows, K) or what broadcasts to that."""
    if not weight_tolerance:
        return np.zeros((len(indices), 1))
    if scale.ndim == 0:
        return np.full((len(indices), 1), weight_tolerance * float(scale))
    scales = scale[..., indices].astype(np.float64)
    if attributes.group_size:
        scales = np.repeat(scales, attributes.group_size, axis=0)[: attributes.K]
    bound: NDArray[np.float64] = weight_tolerance * np.atleast_2d(scales).T
    return bound


class _Worst:
    """The element farthest beyond its bound."""

    def __init__(
        self,
        expected: NDArray[np.float32],
        found: NDArray[np.float32],
        bound: NDArray[np.float64],
        indices: NDArray[np.int64],
    ) -> None:
        error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error == 0, 0.0, error / bound)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        row, column = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        self.error = float(error.max())
        self.ratio = float(ratio[row, column])
        self.index = (int(indices[row]), int(column))
        self.expected = float(expected[row, column])
        self.found = float(found[row, column])
