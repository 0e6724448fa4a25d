"""A checkout and an installation have the same import names."""

from __future__ import annotations

import pytest


def test_passes_have_one_name() -> None:
    with pytest.raises(ImportError, match=r"onnx_ternary\.graph_passes"):
        __import__("graph_passes")
