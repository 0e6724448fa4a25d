"""Names that cannot be taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import locked, remove_left_lock
from tests.support.two_products import two_products


def test_save_refuses_bad_targets(tmp_path: Path) -> None:
    result = optimize(two_products())
    with pytest.raises(ModelError, match="no folder"):
        result.save(tmp_path / "absent" / "out.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        result.save(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on Windows")
def test_a_lock_that_was_left_is_removed_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    target, lock = tmp_path / "out.onnx", tmp_path / ".out.onnx.lock"
    remove_left_lock(target)
    lock.touch()
    remove_left_lock(target)
    assert not lock.exists()
    with locked(target):
        remove_left_lock(target)
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []
