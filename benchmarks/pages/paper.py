"""Tables and plots of docs/paper.md, from the results of bench_paper.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pages.parts import conditions_line, fill, plots, save, table

ALPHABETS = ("binary_01", "ternary")
ALGORITHMS = ("rsr", "rsr++")
# The authors' C++, -O3 -march=native, binary, int32 activations, on a machine of this kind: ms.
AUTHORS_MS = {
    "rsr": {2048: 0.99, 4096: 4.16, 8192: 20.8, 16384: 52.2},
    "rsr++": {2048: 1.06, 4096: 4.29, 8192: 27.1, 16384: 37.6},
    "standard": {8192: 762.0, 16384: 3859.0},
}
# The paper's own figures, from its abstract.
PUBLISHED = {"time": 29.0, "memory": 6.0, "layers": 5.24}


def times_faster(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.3g}x"


def ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table_square(result: dict[str, Any], alphabet: str) -> str:
    found = [row for row in result["square"] if row["alphabet"] == alphabet]
    sizes = sorted({row["n"] for row in found})
    names = list(dict.fromkeys(row["name"] for row in found))
    time = {(row["name"], row["n"]): row for row in found}
    rows = []
    for name in names:
        cells = [
            f"{ms(time[name, n]['ms'])} (±{time[name, n]['spread'] * 100:.0f} %)"
            if (name, n) in time
            else ""
            for n in sizes
        ]
        rows.append([name, *cells])
    if alphabet == "binary_01":
        for name, figures in AUTHORS_MS.items():
            label = {"standard": "standard, column order, -O3"}.get(name, name.upper())
            rows.append(
                [
                    f"*authors' C++: {label}*",
                    *[ms(figures[n]) if n in figures else "" for n in sizes],
                ]
            )
    return table(["ms", *[f"n = {n}" for n in sizes]], rows)


def table_speedups(result: dict[str, Any]) -> str:
    found = [row for row in result["square"] if row["alphabet"] == "binary_01"]
    sizes = sorted({row["n"] for row in found})
    time = {(row["name"], row["n"]): row["ms"] for row in found}
    rows = []
    for n in sizes:
        best = min(time["RSR int8", n], time["RSR++ int8", n])
        authors = min(AUTHORS_MS[a][n] for a in ALGORITHMS) if n in AUTHORS_MS["rsr"] else None
        against = [
            "standard, column order, -O0",
            "standard, column order, -O3",
            "standard, row order, -O3",
            "ONNX Runtime float32",
            "numpy float32",
            "packed int8",
        ]
        cells = [
            times_faster(time[name, n] / best) if (name, n) in time else "" for name in against
        ]
        rows.append([str(n), *cells, times_faster(authors / best) if authors else ""])
    return table(
        [
            "n",
            "column order -O0",
            "column order -O3",
            "row order -O3",
            "ONNX Runtime float32",
            "numpy float32",
            "our packed int8",
            "authors' better",
        ],
        rows,
    )


def table_widths(result: dict[str, Any]) -> str:
    rows = []
    for key in dict.fromkeys((r["storage"], r["algorithm"]) for r in result["widths"]):
        found = [r for r in result["widths"] if (r["storage"], r["algorithm"]) == key]
        best = min(found, key=lambda row: row["ms"])
        at = next(r for r in found if r["block_width"] == r["predicted"])
        rows.append(
            [
                key[0],
                key[1].upper(),
                str(at["predicted"]),
                ms(at["ms"]),
                str(best["block_width"]),
                ms(best["ms"]),
                f"{at['ms'] / best['ms']:.2f}",
            ]
        )
    return table(
        ["storage", "algorithm", "predicted", "ms", "fastest", "ms", "predicted / fastest"], rows
    )


def table_memory(result: dict[str, Any]) -> str:
    rows = []
    for row in result["memory"]:
        dense = row["n"] ** 2
        rows.append(
            [
                str(row["n"]),
                row["name"],
                row["algorithm"].upper(),
                f"{row['index_bytes'] / 2**20:.1f}",
                f"{dense / row['index_bytes']:.2f}",
                f"{4 * dense / row['index_bytes']:.1f}",
            ]
        )
    return table(["n", "matrix", "algorithm", "index MiB", "int8 / index", "float32 / index"], rows)


def table_layers(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["name"] for row in result["layers"]))
    rows = []
    for key in dict.fromkeys((r["model"], r["K"], r["N"]) for r in result["layers"]):
        time = {r["name"]: r["ms"] for r in result["layers"] if (r["model"], r["K"], r["N"]) == key}
        rows.append([f"{key[0]} {key[1]}x{key[2]}", *[ms(time[name]) for name in names]])
    return table(["ms", *names], rows)


def table_batches(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["name"] for row in result["batches"]))
    rows = []
    for key in dict.fromkeys((r["kind"], r["M"]) for r in result["batches"]):
        rate = {r["name"]: r for r in result["batches"] if (r["kind"], r["M"]) == key}
        peaks = next(iter(rate.values()))["peaks"].values()
        cells = []
        for name in names:
            gmacs = rate[name]["gmacs"]
            shares = ", ".join(f"{gmacs / peak:.2f}" for peak in peaks)
            cells.append(f"{gmacs:.1f} ({shares})")
        rows.append([key[0], str(key[1]), *cells])
    measured = result["batches"][0]["peaks"]
    found = ", ".join(f"{peak:.1f} in {width}-bit registers" for width, peak in measured.items())
    shown = table(["matrix", "M", *[f"{name}, GMAC/s (of each peak)" for name in names]], rows)
    return f"{shown}\n\nFMA peak of the core in the same run, GMAC/s: {found}."


def table_targets(result: dict[str, Any]) -> str:
    """The targets of this reproduction, binary, int8 activations, and what was measured."""
    time = {(r["name"], r["n"]): r["ms"] for r in result["square"] if r["alphabet"] == "binary_01"}
    rows = []

    def add(target: str, case: str, needed: float, found: float) -> None:
        reached = "reached" if found >= needed else "not reached"
        rows.append([target, case, f"{needed:g}x", times_faster(found), reached])

    for n, authors in sorted(AUTHORS_MS["rsr++"].items()):
        better = min(authors, AUTHORS_MS["rsr"][n])
        for name in ("RSR", "RSR++"):
            if n >= 4096 and (f"{name} int8", n) in time:
                case = f"{name}, n = {n}"
                add("the better of the authors' two", case, 2, better / time[f"{name} int8", n])
    column = "standard, column order, -O3"
    for n in sorted(n for name, n in time if name == column and n >= 8192):
        for name in ("RSR", "RSR++"):
            ratio = time[column, n] / time[f"{name} int8", n]
            add(column, f"{name}, n = {n}", 60, ratio)
    for kind, least in (("binary", 14), ("ternary", 7)):
        worst = min(
            4 * row["n"] ** 2 / row["index_bytes"]
            for row in result["memory"]
            if row["name"] == kind and row["n"] >= 8192
        )
        add("bytes of the float32 matrix", f"{kind} index, n >= 8192, at worst", least, worst)
    return table(["against", "case", "target", "measured", ""], rows)


def table_published(result: dict[str, Any]) -> str:
    """The paper's figures beside the largest of the same kind measured here."""
    binary = [row for row in result["square"] if row["alphabet"] == "binary_01"]
    time = {(row["name"], row["n"]): row["ms"] for row in binary}
    layers: dict[Any, dict[str, float]] = {}
    for row in result["layers"]:
        layers.setdefault((row["model"], row["K"], row["N"]), {})[row["name"]] = row["ms"]

    def square(against: str) -> str:
        ratios = [
            time[name, n] / min(time["RSR int8", n], time["RSR++ int8", n])
            for name, n in time
            if name == against
        ]
        return times_faster(max(ratios))

    def layer(against: str) -> str:
        ours = ("RSR int8", "RSR++ int8")
        return times_faster(
            max(found[against] / min(found[name] for name in ours) for found in layers.values())
        )

    def memory(cell_bytes: float) -> str:
        ratios = [
            cell_bytes * row["n"] ** 2 / row["index_bytes"]
            for row in result["memory"]
            if row["name"] == "binary"
        ]
        return f"{max(ratios):.2g}x"

    column, order, floats = (
        "standard, column order, -O0",
        "standard, row order, -O3",
        "ONNX Runtime float32",
    )
    return table(
        ["experiment", "published, up to", "here, same kind of baseline", "here, honest baselines"],
        [
            [
                "(a) time of a product",
                f"{PUBLISHED['time']:g}x",
                f"{square(column)} (column order, -O0)",
                f"{square(order)} (row order, -O3), {square(floats)} (ONNX Runtime float32)",
            ],
            [
                "(c) memory",
                f"{PUBLISHED['memory']:g}x",
                f"{memory(1)} (int8), {memory(4)} (float32)",
                f"{memory(1 / 8)} (one bit per weight)",
            ],
            [
                "(e) layers of a language model",
                f"{PUBLISHED['layers']:g}x",
                f"{layer(column)} (column order, -O0)",
                f"{layer(order)} (row order, -O3), {layer(floats)} (ONNX Runtime float32)",
            ],
        ],
    )


def skipped_text(result: dict[str, Any]) -> str:
    """What was not measured, and why, a line a size."""
    lines = []
    for n in dict.fromkeys(row["n"] for row in result["skipped"]):
        reasons = {}
        for row in result["skipped"]:
            if row["n"] == n:
                memory = f"needs {row.get('needed_gib')} GiB, {row.get('left_gib')} left"
                reasons[row["name"]] = row.get("reason", memory)
        found = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
        lines.append(f"- n = {n}: {found}.")
    return "\n".join(["Skipped:", "", *lines]) if lines else "Nothing was skipped."


def conditions_text(result: dict[str, Any]) -> str:
    how = f"one thread, its CPU time; medians of {result['rounds']} interleaved rounds."
    return f"{conditions_line(result['conditions'])}; {how} {result['note']}".rstrip()


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Every table whose measurements are there, by the name of its place in docs/paper.md."""
    makers: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "binary": ("square", partial(table_square, alphabet="binary_01")),
        "ternary": ("square", partial(table_square, alphabet="ternary")),
        "speedups": ("square", table_speedups),
        "targets": ("square", table_targets),
        "skipped": ("square", skipped_text),
        "widths": ("widths", table_widths),
        "memory": ("memory", table_memory),
        "layers": ("layers", table_layers),
        "batches": ("batches", table_batches),
    }
    made = {name: make(result) for name, (part, make) in makers.items() if result.get(part)}
    if result.get("square") and result.get("layers"):
        made["published"] = table_published(result)
    return {"conditions": conditions_text(result), **made}


def write(result: dict[str, Any], docs: Path) -> None:
    """Fill the places of paper.md and draw its plots."""
    page = docs / "paper.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    draw(result, docs)


def draw(result: dict[str, Any], docs: Path) -> None:
    """A plot for each experiment."""
    plt = plots()
    for name, figure in {
        "time": draw_time(plt, result),
        "width": draw_widths(plt, result),
        "memory": draw_memory(plt, result),
        "numpy": draw_numpy(plt, result),
        "layers": draw_layers(plt, result),
        "batches": draw_batches(plt, result),
    }.items():
        save(figure, docs / f"images/paper_{name}.svg")


def log_axes(axis: Any, sizes: Sequence[int], label: str) -> None:
    """Both axes logarithmic, with the sizes as they are on the first."""
    axis.set(xlabel=label, xscale="log", yscale="log")
    axis.set_xticks(sizes)
    axis.get_xaxis().set_major_formatter("{x:.0f}")
    axis.minorticks_off()


def points(result: dict[str, Any], alphabet: str, name: str) -> tuple[list[int], list[float]]:
    """Times of a candidate of (a), by n."""
    found = [r for r in result["square"] if (r["alphabet"], r["name"]) == (alphabet, name)]
    return [row["n"] for row in found], [row["ms"] for row in found]


def draw_time(plt: Any, result: dict[str, Any]) -> Any:
    shown = {
        "standard, column order, -O0": "standard, columns, -O0",
        "standard, column order, -O3": "standard, columns, -O3",
        "standard, row order, -O3": "standard, rows, -O3",
        "ONNX Runtime float32": "ONNX Runtime float32",
        "RSR int8": "RSR",
        "RSR++ int8": "RSR++",
        "RSR++ base 3 int8": "RSR++ base 3",
        "packed int8": "packed",
    }
    sizes = sorted({row["n"] for row in result["square"]})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, alphabet, title in zip(axes, ALPHABETS, ("binary", "ternary"), strict=True):
        for color, (name, label) in enumerate(shown.items()):
            n, ms_of_n = points(result, alphabet, name)
            if n:
                axis.plot(n, ms_of_n, "o-", color=f"C{color}", label=label)
        if alphabet == "binary_01":
            authors = AUTHORS_MS["rsr++"]
            axis.plot(list(authors), list(authors.values()), "k:", label="authors' RSR++")
        axis.set(title=f"{title}, int8 activations")
        log_axes(axis, sizes, "n")
        axis.legend(fontsize=7, loc="upper left")
    axes[0].set_ylabel("ms a product")
    return figure


def draw_widths(plt: Any, result: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, storage in zip(axes, ("planes", "base3"), strict=True):
        for algorithm in ALGORITHMS:
            found = [
                r
                for r in result["widths"]
                if (r["storage"], r["algorithm"]) == (storage, algorithm)
            ]
            widths = [r["block_width"] for r in found]
            axis.plot(widths, [r["ms"] for r in found], "o-", label=algorithm.upper())
            at = next(r for r in found if r["block_width"] == r["predicted"])
            axis.plot(at["block_width"], at["ms"], "k*", markersize=14)
        axis.set(title=f"{storage}, n = {result['widths'][0]['n']}", xlabel="block width")
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[0].set_ylabel("ms a product (star: predicted optimum)")
    return figure


def draw_memory(plt: Any, result: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(6, 4))
    sizes = sorted({row["n"] for row in result["memory"]})
    for name in dict.fromkeys(row["name"] for row in result["memory"]):
        found = [r for r in result["memory"] if (r["name"], r["algorithm"]) == (name, "rsr++")]
        axis.plot(sizes, [r["index_bytes"] for r in found], "o-", label=f"index, {name}")
    axis.plot(sizes, [n**2 for n in sizes], "k--", label="int8")
    axis.plot(sizes, [4 * n**2 for n in sizes], "k-", label="float32")
    axis.set(ylabel="bytes")
    log_axes(axis, sizes, "n")
    axis.legend(fontsize=8)
    return figure


def draw_numpy(plt: Any, result: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(6, 4))
    for name in ("numpy float32", "numpy RSR", "numpy RSR++"):
        n, ms_of_n = points(result, "binary_01", name)
        axis.plot(n, ms_of_n, "o-", label=name)
    log_axes(axis, n, "n")
    axis.set(ylabel="ms a product", title="binary")
    axis.legend(fontsize=8)
    return figure


def draw_layers(plt: Any, result: dict[str, Any]) -> Any:
    shown = (
        "standard, row order, -O3",
        "ONNX Runtime float32",
        "RSR int8",
        "RSR++ int8",
        "RSR++ base 3 int8",
        "packed int8",
    )
    layers = list(dict.fromkeys((r["model"], r["K"], r["N"]) for r in result["layers"]))
    figure, axis = plt.subplots(figsize=(11, 4.5))
    width = 0.8 / len(shown)
    for number, name in enumerate(shown):
        time = {
            (r["model"], r["K"], r["N"]): r["ms"] for r in result["layers"] if r["name"] == name
        }
        places = [place + number * width for place in range(len(layers))]
        axis.bar(places, [time[layer] for layer in layers], width, label=name)
    middles = [place + 0.4 - width / 2 for place in range(len(layers))]
    axis.set_xticks(middles, [f"{model}\n{K}x{N}" for model, K, N in layers], fontsize=7)
    axis.set(ylabel="ms a product", yscale="log")
    axis.legend(fontsize=7)
    return figure


def draw_batches(plt: Any, result: dict[str, Any]) -> Any:
    kinds = list(dict.fromkeys(row["kind"] for row in result["batches"]))
    rows = sorted({row["M"] for row in result["batches"]})
    figure, axes = plt.subplots(1, len(kinds), figsize=(12, 4), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        for name in dict.fromkeys(row["name"] for row in result["batches"]):
            found = [r for r in result["batches"] if (r["kind"], r["name"]) == (kind, name)]
            axis.plot([r["M"] for r in found], [r["gmacs"] for r in found], "o-", label=name)
        for width, peak in result["batches"][0]["peaks"].items():
            style = "k--" if width == "256" else "k:"
            axis.plot(rows, [peak] * len(rows), style, label=f"FMA peak, {width} bits")
        axis.set(title=kind)
        log_axes(axis, rows, "rows M")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("GMAC/s")
    return figure
