"""The C functions of the library (custom_ops/c_api.h), typed."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from onnx_ternary._library import get_library_path
from onnx_ternary.errors import IndexFormatError, LibraryError
from onnx_ternary.schema import Alphabet, OpAttributes, Storage

_ABI_VERSION = 2
_ERROR_BYTES = 4096
_NO_KERNEL = 2  # the status for a kernel that is missing or cannot run


class KernelEntry(TypedDict):
    """One kernel the library was built with."""

    name: str
    index_format: str
    activation: str
    isa: str
    supported: bool
    max_rows: int
    fixed_point: bool


class SelectionEntry(TypedDict):
    """The kernel used for a range of rows M."""

    index_format: str
    activation: str
    rows_min: int
    rows_max: int | None
    storage: str | None
    kernel: str


class KernelList(TypedDict):
    """What `onnx-ternary info` prints; custom_ops/dispatch/kernel_registry.h."""

    cpu: list[str]
    kernels: list[KernelEntry]
    selection: list[SelectionEntry]


class _Node(ctypes.Structure):
    """OtnNode of custom_ops/c_api.h."""

    _fields_ = (
        ("K", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("index_format", ctypes.c_char_p),
        ("storage", ctypes.c_char_p),
        ("alphabet", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_width", ctypes.c_int64),
        ("algorithm", ctypes.c_char_p),
        ("group_size", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        ("activation_rule", ctypes.c_char_p),
        ("activation_epsilon", ctypes.c_float),
        ("activation_qmin", ctypes.c_int64),
        ("activation_qmax", ctypes.c_int64),
        ("format_version", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("codes_shape", ctypes.POINTER(ctypes.c_int64)),
        ("codes_rank", ctypes.c_size_t),
        ("codes_element_bytes", ctypes.c_size_t),
        ("aux", ctypes.c_void_p),
        ("aux_shape", ctypes.POINTER(ctypes.c_int64)),
        ("aux_rank", ctypes.c_size_t),
        ("scale", ctypes.c_void_p),
        ("scale_shape", ctypes.POINTER(ctypes.c_int64)),
        ("scale_rank", ctypes.c_size_t),
        ("bias", ctypes.c_void_p),
        ("bias_shape", ctypes.POINTER(ctypes.c_int64)),
        ("bias_rank", ctypes.c_size_t),
    )


_ERROR_ARGUMENTS = (ctypes.c_char_p, ctypes.c_size_t)
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "otn_force_isa": (ctypes.c_char_p, *_ERROR_ARGUMENTS),
    "otn_force_kernel": (ctypes.c_char_p, *_ERROR_ARGUMENTS),
    "otn_validate": (ctypes.POINTER(_Node), *_ERROR_ARGUMENTS),
    "otn_run": (
        ctypes.POINTER(_Node),
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        *_ERROR_ARGUMENTS,
    ),
    "otn_create": (
        ctypes.POINTER(_Node),
        ctypes.POINTER(ctypes.c_void_p),
        *_ERROR_ARGUMENTS,
    ),
    "otn_run_layer": (
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        *_ERROR_ARGUMENTS,
    ),
    "otn_addition_depth": (
        ctypes.POINTER(_Node),
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_int64),
        *_ERROR_ARGUMENTS,
    ),
    "otn_pack": (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_size_t,
        *_ERROR_ARGUMENTS,
    ),
    "otn_unpack": (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        *_ERROR_ARGUMENTS,
    ),
    "otn_pack_rsr": (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_size_t,
        *_ERROR_ARGUMENTS,
    ),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        LibraryError: if it is missing, cannot be loaded or is of another version.
    """
    path = get_library_path()
    try:
        loaded = ctypes.CDLL(path)
        loaded.otn_abi_version.restype = ctypes.c_int32
        loaded.otn_abi_version.argtypes = []
        version = loaded.otn_abi_version()
    except (OSError, AttributeError) as error:
        raise LibraryError(
            f"The onnx-ternary library {path} cannot be loaded: {error}. Install the package again "
            "with 'pip install .'."
        ) from error
    if version != _ABI_VERSION:
        raise LibraryError(
            f"The onnx-ternary library {path} has ABI version {version}, expected {_ABI_VERSION}. "
            "Install the package again with 'pip install .'."
        )
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes = list(arguments)
        function.restype = ctypes.c_int32
    loaded.otn_destroy.argtypes = [ctypes.c_void_p]
    loaded.otn_destroy.restype = None
    loaded.otn_kernels_json.argtypes = []
    loaded.otn_kernels_json.restype = ctypes.c_char_p
    return loaded


def _call(name: str, error_type: type[Exception], *arguments: object) -> None:
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    status = getattr(library(), name)(*arguments, error, _ERROR_BYTES)
    if status != 0:
        message = error.value.decode("utf-8", errors="replace")
        raise (LibraryError if status == _NO_KERNEL else error_type)(message)


def _levels(levels: NDArray[np.int8]) -> NDArray[np.int8]:
    if levels.ndim != 2 or levels.dtype != np.int8:
        raise IndexFormatError(
            f"levels have shape {levels.shape} and dtype {levels.dtype}, expected (K, N) int8."
        )
    return np.ascontiguousarray(levels)


def _block_bytes(storage: Storage, block_size: int) -> int:
    return {"2bit": block_size // 4, "dense": -(-block_size // 5), "1bit": block_size // 8}.get(
        storage, 0
    )


def _codes_shape(
    num_rows: int, num_columns: int, storage: Storage, block_size: int
) -> tuple[int, int, int, int]:
    num_blocks = -(-num_rows // block_size) if block_size > 0 else 0
    return (-(-num_columns // 4), num_blocks, 4, _block_bytes(storage, block_size))


def pack(
    levels: NDArray[np.int8], *, storage: Storage, alphabet: Alphabet, block_size: int
) -> NDArray[np.uint8]:
    """Packs levels as docs/index_format.md section 2 says.

    Args:
        levels: (K, N) int8 in {-1, 0, 1}.
        storage: 2bit, dense or 1bit.
        alphabet: which levels may occur.
        block_size: 16, 32, 64 or 128.

    Returns:
        codes (ceil(N / 4), ceil(K / block_size), 4, block_bytes) uint8.

    Raises:
        IndexFormatError: for a level outside the alphabet or sizes the format does not allow.
    """
    source = _levels(levels)
    num_rows, num_columns = source.shape
    codes = np.empty(_codes_shape(num_rows, num_columns, storage, block_size), np.uint8)
    _call(
        "otn_pack",
        IndexFormatError,
        source.ctypes.data,
        num_rows,
        num_columns,
        storage.encode(),
        alphabet.encode(),
        block_size,
        codes.ctypes.data,
        codes.nbytes,
    )
    return codes


def unpack(
    codes: NDArray[np.uint8],
    K: int,
    N: int,
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_size: int,
) -> NDArray[np.int8]:
    """The levels (K, N) int8 of packed codes; the unused 2-bit code 3 gives 2.

    Raises:
        IndexFormatError: for sizes that do not fit K and N.
    """
    if codes.dtype != np.uint8:
        raise IndexFormatError(f"codes dtype = {codes.dtype}, expected uint8.")
    if K < 1 or N < 1:
        raise IndexFormatError(f"K = {K} and N = {N}, expected at least 1.")
    shape = _codes_shape(K, N, storage, block_size)
    if codes.shape != shape:
        raise IndexFormatError(f"codes shape = {codes.shape}, expected {shape}.")
    source = np.ascontiguousarray(codes)
    levels = np.empty((K, N), np.int8)
    _call(
        "otn_unpack",
        IndexFormatError,
        source.ctypes.data,
        source.nbytes,
        K,
        N,
        storage.encode(),
        alphabet.encode(),
        block_size,
        levels.ctypes.data,
    )
    return levels


def pack_rsr(
    levels: NDArray[np.int8],
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_width: int,
    group_size: int,
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The `rsr` index of levels, docs/index_format.md section 3.

    Args:
        levels: (K, N) int8 in {-1, 0, 1}.
        storage: planes or base3.
        alphabet: which levels may occur.
        block_width: columns a block, 1..16 for planes and 1..10 for base3.
        group_size: rows a scale group; 0 for one group.

    Returns:
        permutation (num_planes, num_blocks, K) uint16, or uint32 where K > 65536, and
        segment_offsets (num_planes, num_blocks, num_groups, num_patterns + 1) uint32.

    Raises:
        IndexFormatError: for a level outside the alphabet or sizes the format does not allow.
    """
    source = _levels(levels)
    num_rows, num_columns = source.shape
    # Checks the sizes before memory is asked for.
    attributes = OpAttributes(
        K=num_rows,
        N=num_columns,
        index_format="rsr",
        storage=storage,
        alphabet=alphabet,
        block_size=0,
        block_width=block_width,
        algorithm="rsr++",
        group_size=group_size,
    )
    num_blocks = -(-num_columns // block_width)
    permutation = np.empty(
        (attributes.num_planes, num_blocks, num_rows), np.uint16 if num_rows <= 65536 else np.uint32
    )
    segment_offsets = np.empty(
        (attributes.num_planes, num_blocks, attributes.num_groups, attributes.num_patterns + 1),
        np.uint32,
    )
    _call(
        "otn_pack_rsr",
        IndexFormatError,
        source.ctypes.data,
        num_rows,
        num_columns,
        storage.encode(),
        alphabet.encode(),
        block_width,
        group_size,
        permutation.ctypes.data,
        permutation.itemsize,
        permutation.nbytes,
        segment_offsets.ctypes.data,
        segment_offsets.nbytes,
    )
    return permutation, segment_offsets


def kernels() -> KernelList:
    """The kernels this library has, and which one is selected for how many rows."""
    return cast(KernelList, json.loads(library().otn_kernels_json()))


def force_isa(name: str) -> None:
    """Makes the whole process use one instruction set's kernels; "" lifts it.

    Raises:
        LibraryError: if there is no such instruction set or this processor lacks it.
    """
    _call("otn_force_isa", LibraryError, name.encode())


def force_kernel(name: str) -> None:
    """Makes the whole process use one kernel; "" lifts it.

    Raises:
        LibraryError: if there is no such kernel or this processor cannot run it.
    """
    _call("otn_force_kernel", LibraryError, name.encode())


@contextmanager
def forced(isa: str = "", kernel: str = "") -> Iterator[None]:
    """Forces an instruction set or a kernel within the block, for the whole process."""
    try:
        force_isa(isa)
        force_kernel(kernel)
        yield
    finally:
        force_kernel("")
        force_isa("")


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
) -> Iterator[_Node]:
    codes_dtypes: tuple[str, ...] = ("uint8",)
    if attributes.index_format == "rsr":
        codes_dtypes = ("uint16", "uint32") if attributes.K <= 65536 else ("uint32",)
    aux = _checked("aux", aux, ("uint32",))
    codes = _checked("codes", codes, codes_dtypes)
    scale = _checked("scale", scale, ("float32",))
    bias = _checked("bias", bias, ("float32",))
    values = attributes.to_dict()
    node = _Node(
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
    """Checks a node exactly as kernel creation does in a session.

    Raises:
        IndexFormatError: with the library's message.
    """
    with _node(attributes, codes, aux, scale, bias) as node:
        _call("otn_validate", IndexFormatError, ctypes.byref(node))


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
        _call(
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
    """Runs the op without a session, in this thread.

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
            _call("otn_create", IndexFormatError, ctypes.byref(node), ctypes.byref(self._handle))

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
        used = ctypes.create_string_buffer(_ERROR_BYTES)
        _call(
            "otn_run_layer",
            IndexFormatError,
            self._handle,
            kernel.encode() if kernel is not None else None,
            source.ctypes.data,
            source.shape[0],
            num_parts,
            y.ctypes.data,
            used,
            _ERROR_BYTES,
        )
        return y, used.value.decode()

    def __del__(self) -> None:
        if self._handle:
            library().otn_destroy(self._handle)
