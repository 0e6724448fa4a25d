"""The C++ library through ctypes: its signatures, loading it, and calling it."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from onnx_ternary.errors import LibraryError
from onnx_ternary.native.library_path import get_library_path

_ABI_VERSION = 2
ERROR_BYTES = 4096
_NO_KERNEL = 2  # the status for a kernel that is missing or cannot run


class Node(ctypes.Structure):
    """OtnNode of custom_ops/node.h."""

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
    "otn_validate": (ctypes.POINTER(Node), *_ERROR_ARGUMENTS),
    "otn_run": (
        ctypes.POINTER(Node),
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
        ctypes.POINTER(Node),
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
        ctypes.POINTER(Node),
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


def call(name: str, error_type: type[Exception], *arguments: object) -> None:
    """Call a function of the library that takes a buffer for a message last.

    Raises:
        LibraryError: if there is no kernel for the call.
        Exception: of ``error_type``, if the library refuses the call for another reason.
    """
    error = ctypes.create_string_buffer(ERROR_BYTES)
    status = getattr(library(), name)(*arguments, error, ERROR_BYTES)
    if status != 0:
        message = error.value.decode("utf-8", errors="replace")
        raise (LibraryError if status == _NO_KERNEL else error_type)(message)
