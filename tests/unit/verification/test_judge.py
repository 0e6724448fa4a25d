"""A comparison that cannot fail would judge nothing."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_ternary.verification.judge import _compare


@pytest.mark.parametrize(
    ("found", "expected", "bound", "ratio"),
    [
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.5, 0.25, 2.0),
        (1.0, 1.5, 0.0, np.inf),
        (np.nan, np.nan, np.nan, 0.0),
        (np.nan, 1.0, 0.5, np.inf),
        (1.0, np.nan, np.nan, np.inf),
        (np.inf, np.inf, np.nan, 0.0),
        (-np.inf, np.inf, np.nan, np.inf),
        (7.0, np.inf, np.inf, 0.0),
    ],
)
def test_comparison_can_fail(found: float, expected: float, bound: float, ratio: float) -> None:
    _, ratios = _compare(np.array([found]), np.array([expected]), np.array([bound]))
    assert ratios[0] == ratio
