"""What pages show of several machines: results are made up here, nothing is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from measure import harness  # noqa: E402
from pages import front, kernel, layers, machines, update_readme  # noqa: E402

AVX2 = "avx2, fma, bmi2, f16c"
AVX512 = f"{AVX2}, avx512f, avx512bw, avx512vl, avx512vbmi, avx512vnni"
AMX = f"{AVX512}, avxvnni, gfni, amx_int8"


def timed(shape: str, M: int, candidate: str, rounds: list[float]) -> dict[str, Any]:
    found = {"KxN": shape, "M": M, "threads": 1, "candidate": candidate, "rounds_us": rounds}
    return found | {"us": rounds[0], "error": 1e-7, "spread": 0.01}


def results(isa: str, times: float, **more: Any) -> dict[str, Any]:
    """Ours is so many times faster in one shape, and one more in the other."""
    rows = [
        timed(shape, M, candidate, rounds)
        for M in (1, 8, 64)
        for shape, faster in zip(
            (*machines.SHAPES, front.LAYER), (times, times + 1, times), strict=True
        )
        for candidate, rounds in (
            *((rival, [faster * 10] * 3) for rival in (kernel.BASELINE, kernel.NBITS[0])),
            (kernel.DYNAMIC[0], [faster * 20] * 3),
            (kernel.FLOAT, [10.0] * 3),
            (kernel.INT8, [5.0] * 3),
        )
    ]
    conditions = {"cpu": "a processor", "L3 cache": "8192K", "isa": isa, **more}
    return {"conditions": conditions, "rows": rows, "skipped": {}}


def written(folder: Path, **files: dict[str, Any]) -> list[machines.Machine]:
    for name, found in files.items():
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return machines.load(folder)


def cells(machines_: list[machines.Machine], case: str, against: str) -> dict[str, str]:
    head, _, *lines = machines.class_table(machines_).splitlines()
    names = head.strip("| ").split(" | ")
    for line in lines:
        row = dict(zip(names, line.strip("| ").split(" | "), strict=True))
        if (row["case"], row["against"]) == (case, against):
            return row
    raise AssertionError(f"no row {case} against {against}")


def test_a_machine_is_a_file_best_class_first(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        kernel_a=results("neon, dotprod", 2),
        kernel_b=results(AVX2, 2) | {"machine": "Old"},
        kernel_c=results(AVX512, 2) | {"machine": "New"},
        kernel_d=results(AMX, 2, **{"forced isa": "avx2"}) | {"machine": "Held back"},
        kernel_e=results(f"{AVX2}, avxvnni", 2),
        kernel_f=results(AMX, 2),
    )
    assert [machine.name for machine in found] == [
        "a processor, AMX",
        "New, AVX-512 VNNI",
        "a processor, AVX-VNNI",
        "Old, AVX2",
        "Held back, AVX2, forced",
        "a processor",
    ]
    with pytest.raises(SystemExit, match=r"no kernel_\*\.json"):
        machines.load(tmp_path / "nothing")


def test_a_class_without_a_machine_is_open_and_one_more_file_fills_it(tmp_path: Path) -> None:
    old = written(tmp_path, kernel_old=results(AVX2, 2.0) | {"machine": "Old"})
    row = cells(old, "float, M = 8", kernel.BASELINE)
    assert row[f"AMX ({machines.OPEN})"] == ">= 12x: open"
    assert row[f"AVX-VNNI ({machines.OPEN})"] == ">= 2.5x: open"
    assert row["Old, AVX2"] == ">= 2.5x: 2.00x, **not reached**"
    # The worst of the two shapes; where a class has no target, what was measured stands alone.
    row = cells(old, "int8, M = 64", kernel.NBITS[0])
    assert row["Old, AVX2"] == "4.00x"
    assert row[f"AVX-VNNI ({machines.OPEN})"] == "-"

    both = written(tmp_path, kernel_amx=results(AMX, 12.5) | {"machine": "Server"})
    row = cells(both, "float, M = 8", kernel.BASELINE)
    assert row["Server, AMX"] == ">= 12x: 12.50x, reached"
    assert not any(name.startswith("AMX") for name in row)


def test_a_shape_that_is_missing_is_not_measured(tmp_path: Path) -> None:
    found = results(AVX2, 2.0)
    found["rows"] = [row for row in found["rows"] if row["KxN"] != machines.SHAPES[1]]
    row = cells(written(tmp_path, kernel_a=found), "float, M = 64", kernel.BASELINE)
    assert row["a processor, AVX2"] == ">= 1.2x: not measured"


def test_models_are_of_the_same_processor(tmp_path: Path) -> None:
    times = {"float32": 8.0, "MatMulNBits 2-bit": 9.0, kernel.FLOAT: 2.0, kernel.INT8: 1.0}
    rows = [
        {"case": "prefill 128", "threads": 1, "candidate": name, "rounds_ms": [time] * 3}
        for name, time in times.items()
    ]
    conditions = {"cpu": "a processor", "L3 cache": "8192K", "isa": AVX512}
    found = written(
        tmp_path,
        model={"one thread": {"conditions": conditions, "rows": rows}},
        kernel_a=results(AVX512, 2),
        kernel_b=results(AVX2, 2),
    )
    row = cells(found, "float, prefill 128, layers of a 2B model", "float32")
    assert row["a processor, AVX-512 VNNI"] == ">= 1.9x: 4.00x, reached"
    assert row["a processor, AVX2"] == "-"
    row = cells(found, "int8, prefill 128, layers of a 2B model", "MatMulNBits 2-bit")
    assert row["a processor, AVX-512 VNNI"] == ">= 2.2x: 9.00x, reached"


def test_the_front_page_shows_the_best_and_the_worst_class(tmp_path: Path) -> None:
    names = ("MatMul float32", front.RIVALS[0][0], "onnx-ternary 2bit")
    memory = [{"model": name, "external data": False, "file": 64} for name in names]
    found = written(
        tmp_path,
        kernel_new=results(AVX512, 3.0) | {"machine": "New", "memory": memory},
        kernel_mid=results(f"{AVX2}, avxvnni", 2.5) | {"machine": "Middle"},
        kernel_old=results(AVX2, 0.5) | {"machine": "Old"},
    )
    head, _, ours, *_ = front.rival_table(found).splitlines()
    assert "float32, New, AVX-512 VNNI | times faster than float32, Old, AVX2 |" in head
    assert "Middle" not in head
    assert ours.startswith("| **onnx-ternary** | 1e-07 | 32 | 3.0 | 0.5 |")
    (alone,) = machines.ends(found[:1], {"M": 1})
    assert alone.name == "New, AVX-512 VNNI"


def test_the_page_has_a_part_for_each_machine(tmp_path: Path) -> None:
    names = ("conditions", "classes", "targets", "one thread", "two threads", "errors", "cold")
    text = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in (*names, "memory"))
    found = written(
        tmp_path,
        kernel_new=results(AVX512, 3.0) | {"machine": "New"},
        kernel_old=results(AVX2, 2.0) | {"machine": "Old"},
    )
    page = layers.filled(text, found)
    assert page.count("New, AVX-512 VNNI:\n") == page.count("Old, AVX2:\n") == 3
    assert "| 2560x6912 | 8 | 30 us |" in page
    assert "| 2560x6912 | 8 | 20 us |" in page


def test_conditions_tell_processors_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"
        "stepping\t: 2\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel\t\t: 7\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(harness, "CPUINFO", cpuinfo)
    monkeypatch.setenv("ONNX_TERNARY_ISA", "portable")
    found = harness.conditions()
    assert found["cpu"] == "AMD EPYC"
    assert found["processor"] == "family 23 model 1 stepping 2"
    assert found["forced isa"] == "portable"
    assert harness.cpu_flags() == "fpu avx2"
    monkeypatch.setattr(harness, "CPUINFO", tmp_path / "none")
    monkeypatch.delenv("ONNX_TERNARY_ISA")
    assert not {"processor", "forced isa"} & harness.conditions().keys()
    assert harness.cpu_flags() == ""


def test_the_example_has_a_row_for_each_machine_and_number_of_threads(tmp_path: Path) -> None:
    for name, machine, threads in (("a_1", "Old", "1"), ("b_2", "New", "2"), ("b_1", "New", "1")):
        times = {"float MatMul us": 30.0, "onnx-ternary us": 10.0, "times faster": 3.0}
        rows = [{"batch": batch, **times} for batch in (1.0, 64.0)]
        conditions = {"cpu": "a processor", "isa": machine.lower(), "threads": threads}
        found = {"machine": machine, "conditions": conditions, "rows": rows}
        (tmp_path / f"example_{name}.json").write_text(json.dumps(found), encoding="utf-8")
    lines = update_readme.example_section(tmp_path).splitlines()
    assert [line.split(" | ")[:3] for line in lines if " us | " in line] == [
        [f"| {machine}", threads, batch]
        for machine, threads in (("New", "1"), ("New", "2"), ("Old", "1"))
        for batch in ("1", "64")
    ]
    assert "- New: cpu a processor, isa new." in lines
    assert "- Old: cpu a processor, isa old." in lines
