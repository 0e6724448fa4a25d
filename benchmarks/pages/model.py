"""Tables and plot of README.md and docs/models.md, from the results of bench_model.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pages.parts import conditions_line, fill, plots, ratio, save, table, verdict

Row = dict[str, Any]

BASELINE, NBITS, FLOAT16 = "float32", "MatMulNBits 2-bit", "float16"
FLOAT, INT8 = "onnx-ternary float", "onnx-ternary int8"
DENSE = "onnx-ternary float, dense"
FUSED = {name: f"{name}, siblings fused" for name in (FLOAT, INT8)}
HEADS = ("onnx-ternary float, head int8", "onnx-ternary float, head int4")
ALONE = ("two threads", "one thread", "one thread, long prefill")
NOT_MEASURED = "Not measured."
_PRODUCTS = ("TernaryIndexedMatMul", "MatMulNBits")


@dataclass(frozen=True, slots=True)
class Target:
    """Ours against another, so many times faster in every case that begins so."""

    ours: str
    against: str
    case: str
    needed: float
    parts: tuple[str, ...] = ALONE


TARGETS = (
    Target(FLOAT, BASELINE, "decode", 4),
    Target(FLOAT, NBITS, "decode", 0.9),
    Target(INT8, NBITS, "decode", 1.6),
    Target(FLOAT, BASELINE, "prefill 128", 2.2),
    Target(INT8, NBITS, "prefill 128", 2.5),
    Target(HEADS[0], BASELINE, "decode", 5, ("whole",)),
    Target(HEADS[1], BASELINE, "decode", 5, ("whole",)),
)


def rows_of(results: dict[str, Any], *parts: str) -> list[Row]:
    """The rows of some parts."""
    return [row for part in parts for row in results.get(part, {}).get("rows", [])]


def by_case(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Rows of time by case and threads, then by candidate."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["threads"]), {})[row["candidate"]] = row
    return cases


def faster(row: Row, other: Row) -> float:
    """How many times faster than another."""
    return ratio(row["rounds_ms"], other["rounds_ms"])


def tokens_a_second(row: Row) -> float:
    """Tokens a second at the median of the rounds."""
    return float(row["tokens"] / np.median(row["rounds_ms"]) * 1e3)


def _speed(row: Row) -> str:
    """Tokens a second, three digits or whole numbers."""
    speed = tokens_a_second(row)
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def spread(row: Row) -> float:
    """Half the distance of the quartiles, relative to the median."""
    low, median, high = np.percentile(row["rounds_ms"], [25, 50, 75])
    return float((high - low) / 2 / median)


def speed_table(results: dict[str, Any], *parts: str) -> str:
    """Tokens a second, and times faster than float32 and MatMulNBits, one column per case."""
    cases = by_case(rows_of(results, *parts))
    if not cases:
        return NOT_MEASURED
    names = list(dict.fromkeys(name for case in cases.values() for name in case))
    rows = []
    for name in names:
        cells = [_speed_cell(case, name) for case in cases.values()]
        spreads = [spread(case[name]) for case in cases.values() if name in case]
        rows.append([name, *cells, f"{max(spreads):.0%}"])
    counts = [len(next(iter(case.values()))["rounds_ms"]) for case in cases.values()]
    rows.append(["rounds", *map(str, counts), ""])
    return table(["candidate", *(case for case, _ in cases), "spread"], rows)


def _speed_cell(case: dict[str, Row], name: str) -> str:
    if name not in case:
        return ""
    ratios = [
        f"{faster(case[name], case[other]):.2f}" for other in (BASELINE, NBITS) if other in case
    ]
    return _speed(case[name]) + (f" ({' / '.join(ratios)})" if ratios else "")


def share_table(results: dict[str, Any]) -> str:
    """Where the time of the nodes goes."""
    rows = []
    for part in (*ALONE, "whole"):
        for row in rows_of(results, part):
            if "shares" not in row:
                continue
            shares = dict(row["shares"])
            found = [sum(shares.pop(kind, 0.0) for kind in _PRODUCTS)]
            found += [shares.pop(kind, 0.0) for kind in ("GroupQueryAttention", "lm_head")]
            cells = [f"{share:.1%}" for share in (*found, max(0.0, 1 - sum(found)))]
            vocabulary = "whole" if part == "whole" else "layers alone"
            rows.append([vocabulary, row["case"], str(row["threads"]), row["candidate"], *cells])
    head = ["model", "case", "threads", "candidate", "products", "attention", "head", "other"]
    return table(head, rows) if rows else NOT_MEASURED


def load_table(results: dict[str, Any]) -> str:
    """File, load time and memory."""
    rows = [
        [
            row["candidate"],
            f"{row['file'] / 1e6:.0f} MB",
            f"{np.median(row['loads_s']):.2f} s",
            f"{row['private_after_loading_MB']:.0f} MB",
            f"{row['peak_MB']:.0f} MB",
            f"{_session_peak(row):.0f} MB",
        ]
        for row in rows_of(results, "load")
    ]
    head = ["model", "file", "load", "private memory after loading", "peak resident"]
    head.append("of it the session")
    return table(head, rows) if rows else NOT_MEASURED


def _session_peak(row: Row) -> float:
    """MB: without what Python and its modules take."""
    return float(row["peak_MB"] - row["process_MB"])


def conversion_table(results: dict[str, Any]) -> str:
    """Time and memory of the command line."""
    rows = [
        [
            f"{results[part]['conditions']['model']}, to {row['candidate']}",
            f"{row['source'] / 1e9:.2f} GB",
            f"{row['result'] / 1e9:.2f} GB",
            f"{row['peak_MB'] / 1e3:.2f} GB",
            f"{row['seconds']:.0f} s",
            f"{row['cpu_seconds']:.0f} s",
        ]
        for part in ("convert", "convert whole")
        for row in rows_of(results, part)
    ]
    head = ["model", "original", "result", "peak resident memory", "time", "of processors"]
    return table(head, rows) if rows else NOT_MEASURED


def sibling_table(results: dict[str, Any]) -> str:
    """How many times faster one call for products of one input is than a call each."""
    rows = []
    for (name, threads), case in by_case(rows_of(results, *ALONE)).items():
        pairs = [(case.get(fused), case.get(apart)) for apart, fused in FUSED.items()]
        if any(fused and apart for fused, apart in pairs):
            cells = [f"{faster(f, a):.2f}" if f and a else "" for f, a in pairs]
            rows.append([name, str(threads), *cells])
    return table(["case", "threads", "float", "int8"], rows) if rows else NOT_MEASURED


def worst(rows: Sequence[Row], target: Target, threads: int) -> tuple[float, str] | None:
    """The smallest ratio of a target's cases, and where it is."""
    found = [
        (faster(case[target.ours], case[target.against]), name)
        for (name, used), case in by_case(rows).items()
        if used == threads
        and name.startswith(target.case)
        and {target.ours, target.against} <= case.keys()
    ]
    return min(found) if found else None


def target_table(results: dict[str, Any]) -> str:
    """Every target with the worst of its cases."""
    rows = []
    for target in TARGETS:
        for threads in (1, 2):
            found = worst(rows_of(results, *target.parts), target, threads)
            if found is not None:
                ours = target.ours.removeprefix("onnx-ternary ")
                rows.append([f"{ours}, {target.case}", target.against, str(threads)])
                rows[-1] += [f">= {target.needed:g}x", f"{found[0]:.2f}x", found[1]]
                rows[-1].append(verdict(found[0] >= target.needed))
    loads = {row["candidate"]: row for row in rows_of(results, "load")}
    for name, least in ((FLOAT, 14), (DENSE, 18)):
        if name in loads:
            smaller = loads[name]["linear_float32"] / loads[name]["linear"]
            rows.append([f"{name.removeprefix('onnx-ternary ')}, linear weights in the file"])
            rows[-1] += ["their float32", "", f"<= 1/{least}", f"1/{smaller:.1f}", ""]
            rows[-1].append(verdict(smaller >= least))
    rows += _load_targets(loads)
    for part in ("convert", "convert whole"):
        for row in rows_of(results, part):
            for what, most, found_, unit in (
                ("peak", 2.0, row["peak_MB"] / 1e3, "GB"),
                ("time", 180.0, row["seconds"], "s"),
            ):
                rows.append([f"converting, {what}", "", "", f"<= {most:g} {unit}"])
                where = f"{row['source'] / 1e9:.2f} GB to {row['candidate']}"
                rows[-1] += [f"{found_:.3g} {unit}", where]
                rows[-1].append(verdict(found_ <= most))
    head = ["case", "against", "threads", "target", "measured, at worst", "where", ""]
    return table(head, rows) if rows else NOT_MEASURED


def _load_targets(loads: dict[str, Row]) -> list[list[str]]:
    measures: tuple[tuple[str, float, Callable[[Row], float]], ...] = (
        ("load time", 0.5, lambda row: float(np.median(row["loads_s"]))),
        ("peak memory of the session", 0.8, _session_peak),
    )
    rows = []
    for what, most, measured in measures:
        ours = [(measured(loads[name]), name) for name in (FLOAT, INT8) if name in loads]
        if ours and NBITS in loads:
            largest, name = max(ours)
            share = largest / measured(loads[NBITS])
            rows.append([what, NBITS, "2", f"<= {most:g}x", f"{share:.2f}x"])
            rows[-1] += [name.removeprefix("onnx-ternary "), verdict(share <= most)]
    return rows


def conditions_text(results: dict[str, Any]) -> str:
    """The conditions of each part; what all parts have in common stands once."""
    found = {part: content["conditions"] for part, content in results.items()}
    if not found:
        return NOT_MEASURED
    first = next(iter(found.values()))
    common = {
        name: value
        for name, value in first.items()
        if name != "model" and all(each.get(name) == value for each in found.values())
    }
    own = []
    for part, each in found.items():
        others = {k: v for k, v in each.items() if k not in common and k != "model"}
        own.append(f"{part}: {each['model']}" + (f", {conditions_line(others)}" if others else ""))
    return f"{conditions_line(common)}. By part: {'; '.join(own)}."


def filled(text: str, results: dict[str, Any]) -> str:
    """docs/models.md with the tables of these results."""
    return fill(
        text,
        {
            "conversion": conversion_table(results),
            "loading": load_table(results),
            "two threads": speed_table(results, "two threads"),
            "one thread": speed_table(results, "one thread", "one thread, long prefill"),
            "float16": speed_table(results, "float16"),
            "shares": share_table(results),
            "whole": speed_table(results, "whole"),
            "siblings": sibling_table(results),
            "targets": target_table(results),
            "conditions": conditions_text(results),
        },
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of tokens a second, a panel per case, two threads."""
    plt = plots()
    cases = {case: rows for (case, _), rows in by_case(rows_of(results, "two threads")).items()}
    figure, axes = plt.subplots(
        1, max(1, len(cases)), figsize=(2.6 * max(1, len(cases)) + 1.5, 2.4), squeeze=False
    )
    colors = {BASELINE: "tab:gray", NBITS: "tab:blue", FLOAT: "k", INT8: "r"}
    names = list(reversed(colors))
    for axis, (case, rows) in zip(axes[0], cases.items(), strict=False):
        speeds = [tokens_a_second(rows[name]) if name in rows else 0.0 for name in names]
        bars = axis.barh(names, speeds, color=[colors[name] for name in names])
        labels = [_speed(rows[name]) if name in rows else "" for name in names]
        axis.bar_label(bars, labels, padding=2, fontsize=7)
        axis.margins(x=0.25)
        axis.set_title(case, fontsize=9)
        axis.set_xlabel("tokens/s", fontsize=8)
        axis.tick_params(labelsize=8)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    save(figure, path)
    plt.close(figure)
