"""Kernels alone, side by side: no test here depends on how long anything takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench_selection

from onnx_ternary.schema import Activation


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("group", [0, 128])
def test_every_kernel_runs_every_case(activation: Activation, group: int) -> None:
    names = bench_selection.candidates(activation, "*_portable,*_avx2")
    assert {f"packed_gemv_{activation}_portable", f"packed_gemm_{activation}_portable"} <= {*names}
    assert not any("rsr" in name or "scalar" in name for name in names)
    rows = bench_selection.rows_of("256x36", group, activation, names, [1, 5], rounds=1)
    assert [(row["M"], row["kernel"]) for row in rows] == [
        (M, name) for M in (1, 5) for name in names
    ]
    assert all(row["of the first"] == 1 for row in rows if row["kernel"] == names[0])


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_selection.MOST, "int8", 1e-7)
    with pytest.raises(SystemExit, match="packed_gemv_int8_portable, 256x36, M = 2: relative"):
        bench_selection.rows_of("256x36", 0, "int8", ["packed_gemv_int8_portable"], [2], rounds=1)
