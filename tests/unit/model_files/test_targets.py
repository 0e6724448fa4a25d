"""Names that cannot be taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from tests.support.two_products import two_products


def test_save_refuses_bad_targets(tmp_path: Path) -> None:
    result = optimize(two_products())
    with pytest.raises(ModelError, match="no folder"):
        result.save(tmp_path / "absent" / "out.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        result.save(tmp_path)
