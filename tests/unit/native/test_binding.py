"""The library that is loaded is the one this package was written for."""

from __future__ import annotations

import pytest

from onnx_ternary.errors import LibraryError
from onnx_ternary.native import binding


def test_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_ternary.native.binding._ABI_VERSION", 999)
    binding.library.cache_clear()
    try:
        with pytest.raises(LibraryError, match="expected 999"):
            binding.library()
    finally:
        binding.library.cache_clear()
