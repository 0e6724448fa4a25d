"""Tables and plot of README.md and docs/performance.md, from the results of bench_kernel.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pages import parts
from pages.parts import conditions_line, plots, save, table, verdict

BASELINE = "MatMul float32"
FLOAT, INT8 = "onnx-ternary float", "onnx-ternary int8"
# The faster of each group counts.
NBITS = ("MatMulNBits 2-bit", "MatMulNBits 2-bit, lut_gemm")
DYNAMIC = ("DynamicQuantizeMatMul int8", "MatMulInteger")
SMALL = ("2560x640", "4096x1024")
README_SHAPES = ("2560x6912", "4096x14336")
README_CANDIDATES = (BASELINE, NBITS[0], DYNAMIC[0], "ggml TQ2_0", FLOAT, INT8)
PLOT_SHAPE = "2560x2560"
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the targets: ours against the fastest of some, at each M of each shape."""

    ours: str
    rows: tuple[int, ...]
    against: tuple[str, ...]
    needed: tuple[float, float]
    shapes: str = "large"

    @property
    def label(self) -> str:
        """How the table shows the case."""
        places = {"large": "", "small": f", {' and '.join(SMALL)}", "beyond L3": ", beyond L3"}
        rows = " and ".join(map(str, self.rows))
        return f"{self.ours.split()[-1]}, M = {rows}{places[self.shapes]}"


TARGETS = (
    Target(FLOAT, (1,), (BASELINE,), (7, 6), "beyond L3"),
    Target(FLOAT, (1,), NBITS, (0.9, 0.9)),
    Target(FLOAT, (8,), (BASELINE,), (4, 3.8)),
    Target(FLOAT, (8,), DYNAMIC, (1.4, 1.3)),
    Target(FLOAT, (64, 256), (BASELINE,), (2.7, 2.5)),
    Target(FLOAT, (64, 256), NBITS, (2.4, 2.3)),
    Target(FLOAT, (64, 256), DYNAMIC, (1.35, 1.3)),
    Target(INT8, (1,), NBITS, (2, 2)),
    Target(INT8, (8,), DYNAMIC, (1.8, 1.7)),
    Target(INT8, (64, 256), NBITS, (4.5, 4)),
    Target(INT8, (64, 256), DYNAMIC, (2.5, 2.2)),
    Target(FLOAT, (1,), (BASELINE,), (4, 3.5), "small"),
    Target(FLOAT, (8,), (BASELINE,), (2.5, 2.2), "small"),
    Target(INT8, (1,), (), (1.8, 1.5), "small"),
)
DRAM_SHARE = (0.7, 0.65)


def by_case(rows: Iterable[dict[str, Any]]) -> dict[Key, dict[str, dict[str, Any]]]:
    """Rows by shape, M and threads, then by candidate."""
    cases: dict[Key, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["KxN"], row["M"], row["threads"]), {})[row["candidate"]] = row
    return cases


def ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    """How many times faster than another: the median of the rounds' ratios."""
    return parts.ratio(row["rounds_us"], other["rounds_us"])


def is_beyond_l3(shape: str, conditions: dict[str, str]) -> bool:
    """Whether a layer's float32 weights exceed the cache."""
    K, N = map(int, shape.split("x"))
    cache = int(conditions["L3 cache"].rstrip("K")) * 1024
    return cache < 4 * K * N


def worst(results: dict[str, Any], target: Target, threads: int) -> tuple[float, str] | None:
    """The smallest ratio of a target's cases, and where it is."""
    found = []
    for (shape, M, used), case in by_case(results["rows"]).items():
        if used != threads or M not in target.rows or target.ours not in case:
            continue
        if (shape in SMALL) != (target.shapes == "small"):
            continue
        if target.shapes == "beyond L3" and not is_beyond_l3(shape, results["conditions"]):
            continue
        rivals = target.against or [name for name in case if name not in (FLOAT, INT8)]
        ratios = [ratio(case[target.ours], case[name]) for name in rivals if name in case]
        if ratios:
            found.append((min(ratios), f"{shape}, M = {M}"))
    return min(found) if found else None


def target_table(results: dict[str, Any]) -> str:
    """Every target of the kernels with the worst of its cases."""
    head = ["case", "against", "threads", "target", "measured, at worst", "where", ""]
    rows = []

    for target in TARGETS:
        for threads, needed in zip((1, 2), target.needed, strict=True):
            found = worst(results, target, threads)
            if found is None:
                continue
            against = " or ".join(target.against) or "the fastest of all rivals"
            rows.append([target.label, against, str(threads), f">= {needed:g}x"])
            rows[-1] += [f"{found[0]:.2f}x", found[1], verdict(found[0] >= needed)]
    for row in results.get("cold", []):
        if row["candidate"] == INT8:
            needed = DRAM_SHARE[row["threads"] - 1]
            rows.append(["int8, M = 1, cold", "DRAM read bandwidth", str(row["threads"])])
            rows[-1] += [f">= {needed:.0%}", f"{row['of DRAM']:.0%}", row["KxN"]]
            rows[-1].append(verdict(row["of DRAM"] >= needed))
    rows += [[*row[:-1], verdict(row[-1] == "yes")] for row in memory_targets(results)]
    return table(head, rows)


def memory_targets(results: dict[str, Any]) -> list[list[str]]:
    """Peak and file of ours against MatMulNBits, both embedded or both external."""
    rows = []
    found = {(row["model"], row["external data"]): row for row in results.get("memory", [])}
    for storage, what, most in (
        ("2bit", "peak", 0.6),
        ("2bit", "file", 0.9),
        ("dense", "file", 0.75),
    ):
        for external in (False, True):
            ours = found.get((f"onnx-ternary {storage}", external))
            rival = found.get((NBITS[0], external))
            if ours is None or rival is None:
                continue
            share = ours[what] / rival[what]
            where = "external data" if external else "one file"
            reached = "yes" if share <= most else "no"
            case = f"memory, {storage}, {what}"
            rows.append([case, NBITS[0], "1", f"<= {most:g}x", f"{share:.2f}x", where, reached])
    return rows


def full_table(results: dict[str, Any], threads: int) -> str:
    """Times faster than float32 MatMul of every candidate, shape and M."""
    cases = {key: case for key, case in by_case(results["rows"]).items() if key[2] == threads}
    if not cases:
        return "Not measured."
    names = list(dict.fromkeys(row["candidate"] for row in results["rows"]))
    rows = []
    for (shape, M, _), case in cases.items():
        base = case[BASELINE]
        cells = [f"{ratio(case[name], base):.2f}" if name in case else "" for name in names[1:]]
        rows.append([shape, str(M), f"{base['us']:.0f} us", *cells])
    return table(["K x N", "M", BASELINE, *names[1:]], rows)


def error_table(all_results: Iterable[dict[str, Any]]) -> str:
    """The largest error of each candidate over all cases of all machines."""
    largest: dict[str, float] = {}
    spread: dict[str, list[float]] = {}
    rows = [row for each in all_results for part in ("rows", "cold") for row in each.get(part, [])]
    for row in rows:
        name = row["candidate"]
        largest[name] = max(largest.get(name, 0.0), row["error"])
        spread.setdefault(name, []).append(row["spread"])
    return table(
        ["candidate", "largest error", "spread, median of cases"],
        [[name, f"{largest[name]:.1e}", f"{np.median(spread[name]):.0%}"] for name in largest],
    )


def cold_table(results: dict[str, Any]) -> str:
    """M = 1 with weights from DRAM."""
    rows = [
        [
            row["candidate"],
            str(row["threads"]),
            str(row["copies"]),
            f"{row['us']:.0f} us",
            f"{row['GB/s']:.1f}",
            f"{row['DRAM GB/s']:.1f}",
            f"{row['of DRAM']:.0%}",
        ]
        for row in results["cold"]
    ]
    head = ["candidate", "threads", "copies", "time", "GB/s of weights", "DRAM GB/s", "share"]
    return table(head, rows)


def memory_table(results: dict[str, Any]) -> str:
    """Peak and final resident memory of a session, and files."""
    mib = 2**20
    rows = [
        [
            row["model"],
            "external data" if row["external data"] else "one file",
            f"{row['file'] / mib:.1f}",
            f"{row['peak'] / mib:.1f}",
            f"{row['after'] / mib:.1f}",
        ]
        for row in results["memory"]
    ]
    return table(["model", "stored as", "file, MiB", "peak, MiB", "after one run, MiB"], rows)


def conditions_text(results: dict[str, Any]) -> str:
    """Conditions, and what was skipped."""
    skipped = [f"{name} was skipped: {why}." for name, why in results["skipped"].items()]
    return " ".join([conditions_line(results["conditions"]) + ".", *skipped])


def draw(results: dict[str, Any], path: Path) -> None:
    """Time of a product against M, one panel a number of threads."""
    plt = plots()
    rows = [row for row in results["rows"] if row["KxN"] == PLOT_SHAPE]
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(1, len(threads), figsize=(13, 5), sharey=True, squeeze=False)
    colors = plt.get_cmap("tab20").colors
    for axis, count in zip(axes[0], threads, strict=True):
        for number, name in enumerate(names):
            points = sorted(
                (row["M"], row["us"] / 1e3)
                for row in rows
                if row["candidate"] == name and row["threads"] == count
            )
            ours = name in (FLOAT, INT8)
            style: dict[str, Any] = {"color": colors[number % 20], "linewidth": 1}
            if ours:
                style = {"color": "k" if name == FLOAT else "r", "linewidth": 2.5, "zorder": 3}
            exact = name in (FLOAT, BASELINE, "numpy float32", "torch float32")
            axis.plot(
                *_columns(points), "o-" if exact else "o--", markersize=3, label=name, **style
            )
        title = f"{PLOT_SHAPE}, {count} thread{'s' if count > 1 else ''}, in cache"
        axis.set(title=title, xlabel="rows M", xscale="log", yscale="log")
        axis.set_xticks(sorted({row["M"] for row in rows}))
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.minorticks_off()
    axes[0][0].set_ylabel("ms a product (dashed: activations rounded to 8 bits)")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
