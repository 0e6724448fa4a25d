"""Parts of a model that run without the rest, many in one session.

A session costs milliseconds whatever it computes; models of thousands of small products would
spend most of a verification on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.loaded_model import LoadedModel

BATCH_BYTES = 1 << 26
"""What sessions of several pieces hold at most: constants and inputs."""
_BATCH_PIECES = 256

Answer: TypeAlias = "tuple[NDArray[Any], ...] | ModelError"
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes that need nothing but their constants and what they are fed.

    Attributes:
        nodes: in an order they can run in.
        constants: initializers they read.
        feeds: arrays by name.
        outputs: values asked for.
    """

    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto]
    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[str]


def batches(items: Sequence[_Item], num_bytes: Sequence[int]) -> Iterator[Sequence[_Item]]:
    """Runs of items that may share a session, one item at least.

    Args:
        items: what to divide.
        num_bytes: what each takes.
    """
    batch: list[_Item] = []
    total = 0
    for item, size in zip(items, num_bytes, strict=True):
        if batch and (total + size > BATCH_BYTES or len(batch) >= _BATCH_PIECES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def run_pieces(
    model: LoadedModel,
    pieces: Sequence[Piece],
    *,
    optimized: bool,
    with_op: bool = True,
    functions: Sequence[FunctionProto] = (),
) -> list[Answer]:
    """What pieces compute, in one session; each alone where that fails.

    Args:
        model: whose versions and data files they use.
        pieces: few enough for a session, as `batches` divides them.
        optimized: whether onnxruntime may optimize them.
        with_op: whether the op's library is there.
        functions: local functions they call.

    Returns:
        The outputs of each piece, or why it does not run.
    """
    if not pieces:
        return []
    try:
        return _run_together(model, pieces, optimized, with_op, functions)
    except ModelError as error:
        if len(pieces) == 1:
            return [error]
    return [
        answer
        for piece in pieces
        for answer in run_pieces(
            model, [piece], optimized=optimized, with_op=with_op, functions=functions
        )
    ]


def _run_together(
    model: LoadedModel,
    pieces: Sequence[Piece],
    optimized: bool,
    with_op: bool,
    functions: Sequence[FunctionProto],
) -> list[Answer]:
    proto = ModelProto(ir_version=model.proto.ir_version)
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(functions)
    proto.graph.name = "pieces"
    feeds: dict[str, NDArray[Any]] = {}
    names = []
    for at, piece in enumerate(pieces):
        prefix = f"{at}/" if len(pieces) > 1 else ""
        _append(proto, piece, prefix)
        feeds.update((prefix + name, array) for name, array in piece.feeds.items())
        names += [prefix + name for name in piece.outputs]
    session = model.session(proto, optimized=optimized, with_op=with_op)
    values = iter(model.run_session(session, feeds, names).values())
    return [tuple(next(values) for _ in piece.outputs) for piece in pieces]


def _append(proto: ModelProto, piece: Piece, prefix: str) -> None:
    graph = proto.graph
    for at, node in enumerate(piece.nodes):
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{prefix}{at}/{node.name}"
        for names in (copy.input, copy.output):
            names[:] = [prefix + name if name else name for name in names]
    for tensor in piece.constants:
        constant = graph.initializer.add()
        constant.CopyFrom(tensor)
        constant.name = prefix + tensor.name
    for name, array in piece.feeds.items():
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(helper.make_tensor_value_info(prefix + name, dtype, array.shape))
    graph.output.extend(onnx.ValueInfoProto(name=prefix + name) for name in piece.outputs)
