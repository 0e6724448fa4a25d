"""ONNX Runtime sessions that know `TernaryIndexedMatMul`."""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # ships no types

from onnx_ternary import _onnxruntime as ort
from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels as native_kernels
from onnx_ternary.native.library_path import get_library_path
from onnx_ternary.schema import DOMAIN, OP_TYPE

MIN_ONNXRUNTIME = (1, 17)

Provider: TypeAlias = "str | tuple[str, Mapping[str, Any]]"

_PLAIN_ISAS = ("scalar", "portable")

# ONNX Runtime accepts the library twice and then refuses to make the session.
_registered: weakref.WeakSet[ort.SessionOptions] = weakref.WeakSet()


def onnxruntime_version() -> tuple[int, ...]:
    """Major and minor number of the onnxruntime that is installed."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


def register(session_options: ort.SessionOptions) -> ort.SessionOptions:
    """Make sessions with these options able to run converted models; safe to call again.

    Options on which ``register_custom_ops_library`` was called by hand cannot be told apart: use
    one or the other.

    Args:
        session_options: changed in place.

    Returns:
        The same object.

    Raises:
        LibraryError: if the library is missing or cannot be loaded, or onnxruntime is too old.
    """
    if session_options in _registered:
        return session_options
    if onnxruntime_version() < MIN_ONNXRUNTIME:
        raise LibraryError(
            f"onnxruntime is {ort.__version__}, expected {'.'.join(map(str, MIN_ONNXRUNTIME))} or "
            "later; upgrade it with 'pip install -U onnxruntime'."
        )
    path = get_library_path()
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise LibraryError(
            f"onnxruntime {ort.__version__} cannot load the onnx-ternary library {path}: {error}. "
            "Install the package again for this Python and processor."
        ) from error
    _registered.add(session_options)
    return session_options


def find_library(library: str | os.PathLike[str]) -> str:
    """The path of another custom operator library, for models that use its operators too.

    Args:
        library: a path, or the name of a Python module whose ``get_library_path`` gives one, as
            ``onnxruntime_extensions``.

    Raises:
        LibraryError: if it is neither.
    """
    expected = "expected a library's file or a Python module with a function get_library_path"
    name = os.fspath(library)
    try:
        if Path(library).is_file():
            return str(Path(library).resolve())
    except OSError as error:  # a name too long
        raise LibraryError(
            f"There is no custom operator library '{name}' ({error.strerror}); {expected}."
        ) from error
    if not all(part.isidentifier() for part in name.split(".")):
        raise LibraryError(f"There is no custom operator library '{name}'; {expected}.")
    try:
        return str(importlib.import_module(name).get_library_path())
    except (ImportError, AttributeError, LookupError) as error:  # importlib's for a name like 'a.'
        raise LibraryError(
            f"There is no custom operator library '{name}' ({error}); {expected}."
        ) from error


def register_libraries(session_options: ort.SessionOptions, paths: Iterable[str]) -> None:
    """Register other custom operator libraries.

    Args:
        session_options: changed in place.
        paths: as `find_library` gives them.

    Raises:
        LibraryError: if onnxruntime cannot load one.
    """
    path = ""
    try:
        for path in paths:
            session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises types of its own that share no base
        raise LibraryError(
            f"onnxruntime {ort.__version__} cannot load the custom operator library {path}: "
            f"{error}."
        ) from error


def _float_product_is_faster(model: str | bytes) -> bool:
    """Whether this processor has portable kernels only, and the model can do without them.

    docs/platforms.md has the measurement. Who names kernels in the environment has decided.
    """
    if os.environ.get("ONNX_TERNARY_ISA") or os.environ.get("ONNX_TERNARY_KERNEL"):
        return False
    kernels = native_kernels.list_kernels()["kernels"]
    if any(each["supported"] and each["isa"] not in _PLAIN_ISAS for each in kernels):
        return False
    try:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        functions = onnx.ModelProto.FromString(content).functions
    except (OSError, DecodeError):
        return False  # onnxruntime says what is wrong
    return any((each.domain, each.name) == (DOMAIN, OP_TYPE) for each in functions)


def InferenceSession(  # noqa: N802 - takes the place of onnxruntime's class
    path_or_bytes: str | bytes | os.PathLike[str],
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Provider] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    *,
    disabled_optimizers: Sequence[str] | None = None,
    library: Literal["auto", "always"] = "auto",
) -> ort.InferenceSession:
    """``onnxruntime.InferenceSession`` with the library registered.

    Args:
        path_or_bytes: a model file, or a serialized model.
        sess_options: changed in place by `register`; None takes the defaults.
        providers: None takes the CPU provider, where the op runs. With others ONNX Runtime copies
            the op's inputs and outputs between devices.
        provider_options: as onnxruntime's.
        disabled_optimizers: as onnxruntime's.
        library: ``auto`` leaves the library out where this processor has no hand-written kernel
            and the model carries its definition in standard operators, whose float product is then
            faster; it takes the float weights' memory. ``always`` registers it there too.

    Raises:
        LibraryError: as `register`, and if the library was registered on `sess_options` by hand
            as well.
        Exception: whatever onnxruntime raises for a model it cannot load.
    """
    options = ort.SessionOptions() if sess_options is None else sess_options
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    if library == "always" or not _float_product_is_faster(model):
        register(options)
    try:
        return ort.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"] if providers is None else list(providers),
            provider_options=provider_options,
            disabled_optimizers=disabled_optimizers,
        )
    except Exception as error:  # onnxruntime raises types of its own that share no base
        if "Domain already set" in str(error):
            raise LibraryError(
                "A custom operator library is registered twice on these SessionOptions; if it is "
                "onnx-ternary's, leave out your own call of register_custom_ops_library."
            ) from error
        raise
