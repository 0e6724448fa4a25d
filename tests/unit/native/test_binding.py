"""The library that is loaded is the one this package was written for."""

from __future__ import annotations

import pytest

from onnx_ternary import _native
from onnx_ternary.errors import LibraryError


def test_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_ABI_VERSION", 999)
    _native.library.cache_clear()
    try:
        with pytest.raises(LibraryError, match="expected 999"):
            _native.library()
    finally:
        _native.library.cache_clear()
