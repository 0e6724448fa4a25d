"""One node without a session: what tests and benchmarks call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.native.binding import ERROR_BYTES, Node, call, library
from onnx_ternary.schema import OpAttributes


def _checked(name: str, tensor: NDArray[Any], dtypes: tuple[str, ...]) -> NDArray[Any]:
    """The tensor, contiguous. Values are the library's to check; it cannot see other dtypes."""
    if tensor.dtype.name not in dtypes:
        raise IndexFormatError(
            f"TernaryIndexedMatMul: {name} dtype = {tensor.dtype}, expected {' or '.join(dtypes)}; "
            "convert the model again with 'onnx-ternary optimize'."
        )
    # np.ascontiguousarray makes scalars one-dimensional.
    return np.require(tensor, requirements="C")


def _shape(tensor: NDArray[Any]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * max(tensor.ndim, 1))(*tensor.shape)


@contextmanager
def _node(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[Any],
    scale: NDArray[Any],
    bias: NDArray[Any],
) -> Iterator[Node]:
    codes_dtypes: tuple[str, ...] = ("uint8",)
    if attributes.index_format == "rsr":
        codes_dtypes = ("uint16", "uint32") if attributes.K <= 65536 else ("uint32",)
    aux = _checked("aux", aux, ("uint32",))
    codes = _checked("codes", codes, codes_dtypes)
    scale = _checked("scale", scale, ("float32",))
    bias = _checked("bias", bias, ("float32",))
    values = attributes.to_dict()
    node = Node(
        **{
            name: value.encode() if isinstance(value, str) else value
            for name, value in values.items()
        }
    )
    for name, tensor in (("codes", codes), ("aux", aux), ("scale", scale), ("bias", bias)):
        setattr(node, name, tensor.ctypes.data)
        setattr(node, f"{name}_shape", _shape(tensor))
        setattr(node, f"{name}_rank", tensor.ndim)
    node.codes_element_bytes = codes.itemsize
    # The tensors live until the block ends; the structure holds their addresses only.
    yield node


def _activations(attributes: OpAttributes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != attributes.K:
        raise IndexFormatError(
            f"x has shape {x.shape} and dtype {x.dtype}, expected (M, {attributes.K}) float32."
        )
    return np.ascontiguousarray(x)


def validate(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> None:
    """Check a node exactly as kernel creation does in a session.

    Raises:
        IndexFormatError: with the library's message.
    """
    with _node(attributes, codes, aux, scale, bias) as node:
        call("otn_validate", IndexFormatError, ctypes.byref(node))


def addition_depth(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    kernel: str,
) -> int:
    """T of docs/op_spec.md: the longest chain of float32 additions a kernel promises for a node.

    Raises:
        IndexFormatError: for a node that is not valid.
        LibraryError: for a kernel that does not exist or cannot run here or serve the node.
    """
    depth = ctypes.c_int64()
    with _node(attributes, codes, aux, scale, bias) as node:
        call(
            "otn_addition_depth",
            IndexFormatError,
            ctypes.byref(node),
            kernel.encode(),
            ctypes.byref(depth),
        )
    return depth.value


def run(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    x: NDArray[np.float32],
    *,
    kernel: str | None = None,
    num_parts: int = 1,
) -> tuple[NDArray[np.float32], str]:
    """Run the op without a session, in this thread.

    Args:
        attributes: the node's attributes.
        codes: docs/index_format.md section 1.
        aux: the same.
        scale: the same.
        bias: the same.
        x: (M, K) float32.
        kernel: a kernel's name; None for the selection table and the op's guards for rows that
            are not ordinary.
        num_parts: how many parts the columns are cut in; the result must not depend on it.

    Returns:
        Y (M, N) float32, and the names of the kernels that ran with commas between.

    Raises:
        IndexFormatError: for a node that is not valid, or x of another shape or dtype.
        LibraryError: for a kernel that does not exist or cannot run here or serve the node.
    """
    layer = Layer(attributes, codes, aux, scale, bias)
    return layer.run(x, kernel=kernel, num_parts=num_parts)


class Layer:
    """A node validated once and run many times without a session, in the calling thread.

    Args:
        attributes: the node's attributes.
        codes: docs/index_format.md section 1.
        aux: the same.
        scale: the same.
        bias: the same.

    Raises:
        IndexFormatError: for a node that is not valid.
    """

    def __init__(
        self,
        attributes: OpAttributes,
        codes: NDArray[Any],
        aux: NDArray[np.uint32],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        self.attributes = attributes
        self._handle = ctypes.c_void_p()
        # The library reads the tensors where they lie.
        self._tensors = tuple(
            np.require(tensor, requirements="C") for tensor in (codes, aux, scale, bias)
        )
        with _node(attributes, *self._tensors) as node:
            call("otn_create", IndexFormatError, ctypes.byref(node), ctypes.byref(self._handle))

    def run(
        self,
        x: NDArray[np.float32],
        *,
        kernel: str | None = None,
        num_parts: int = 1,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], str]:
        """As `run`, but into ``out`` (M, N) float32, contiguous, where that is given.

        Raises:
            IndexFormatError: for x or out of another shape or dtype.
            LibraryError: for a kernel that does not exist or cannot run here or serve the node.
        """
        source = _activations(self.attributes, x)
        shape = (x.shape[0], self.attributes.N)
        y = np.empty(shape, np.float32) if out is None else out
        if y.shape != shape or y.dtype != np.float32 or not y.flags.carray:
            raise IndexFormatError(
                f"out has shape {y.shape} and dtype {y.dtype}, expected {shape} float32, "
                "contiguous and writable."
            )
        used = ctypes.create_string_buffer(ERROR_BYTES)
        call(
            "otn_run_layer",
            IndexFormatError,
            self._handle,
            kernel.encode() if kernel is not None else None,
            source.ctypes.data,
            source.shape[0],
            num_parts,
            y.ctypes.data,
            used,
            ERROR_BYTES,
        )
        return y, used.value.decode()

    def __del__(self) -> None:
        if self._handle:
            library().otn_destroy(self._handle)
