"""Options that do not fit are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_ternary.options import OptimizeOptions


@pytest.mark.parametrize(
    "values",
    [
        {"index_format": "csr"},
        {"storage": "3bit"},
        {"algorithm": "fast"},
        {"activation": "int4"},
        {"external_data": "maybe"},
        {"tolerance": -0.1},
        {"tolerance": 0.5},
        {"min_elements": -1},
        {"include": "one"},
        {"storage": "planes"},
        {"block_width": 4},
        {"algorithm": "rsr"},
        {"algorithm": "auto", "index_format": "rsr"},
        {"block_width": 17, "index_format": "rsr"},
    ],
    ids=str,
)
def test_options_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimizeOptions(**values)
