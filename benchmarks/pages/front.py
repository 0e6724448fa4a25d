"""What README.md and the documentation's home page show first, and README.md's two tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pages.machines import Machine, ends
from pages.model import BASELINE, FLOAT, INT8, NBITS, by_case, faster, rows_of, tokens_a_second
from pages.parts import ratio, table

Row = dict[str, Any]

CASE = ("decode 128", 2)
LAYER, LAYER_ROWS, LAYER_THREADS = "4096x14336", 1, 1
CANDIDATES = (BASELINE, NBITS, FLOAT)
# What people would use instead: the benchmark's name, how it is got, bits per weight by its format
# (None: of the file that was measured), where it runs, a source.
RIVALS = (
    (
        "MatMulNBits 2-bit",
        "ONNX Runtime's `MatMulNBits`, 2 bits",
        None,
        "ONNX Runtime on CPU and GPU",
        "[operator](https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)",
    ),
    (
        "DynamicQuantizeMatMul int8",
        "`onnxruntime.quantization`, dynamic, 8 bits",
        8.0,
        "ONNX Runtime everywhere",
        "[guide](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)",
    ),
    (
        "onnxsim quantize_ternary",
        "onnxsim's ternary quantization",
        8.0,
        "ONNX Runtime everywhere",
        "[onnxsim](https://github.com/daquexian/onnx-simplifier)",
    ),
    (
        "ggml TQ2_0",
        "llama.cpp, `TQ2_0`",
        66 * 8 / 256,  # a block of 256 weights and its float16 scale
        "GGUF models",
        "[llama.cpp](https://github.com/ggml-org/llama.cpp)",
    ),
)
OURS = (
    ("onnx-ternary float", "**onnx-ternary**"),
    ("onnx-ternary int8", "onnx-ternary, `--activation int8`"),
)


def _models(results: Mapping[str, Any]) -> dict[str, tuple[Row, Row]]:
    """How each candidate loads and how it decodes."""
    loads = {row["candidate"]: row for row in rows_of(dict(results), "load")}
    runs = by_case(rows_of(dict(results), "two threads"))[CASE]
    return {name: (loads[name], runs[name]) for name in (*CANDIDATES, INT8)}


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _seconds(row: Row) -> str:
    seconds = float(np.median(row["loads_s"]))
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def model_table(results: Mapping[str, Any]) -> str:
    """Which models there are, and what was measured of them."""
    loads = {name: load for name, (load, _) in _models(results).items()}
    runs = {name: run for name, (_, run) in _models(results).items()}
    sizes = f"{_size(loads[BASELINE]['file'])} -> {_size(loads[FLOAT]['file'])}"
    speeds = f"{tokens_a_second(runs[BASELINE]):.2g} -> {tokens_a_second(runs[FLOAT]):.2g}"
    int8 = f"{tokens_a_second(runs[BASELINE]):.2g} -> {tokens_a_second(runs[INT8]):.2g}"
    optimize = "`optimize`"
    rows = [
        ["BitNet b1.58, Falcon-E", "rounded, in float32 or float16", optimize, sizes, speeds],
        [
            "the same, activations in 8 bits",
            "the same",
            "`optimize --activation int8`",
            sizes,
            int8,
        ],
        [
            "BitNet, Falcon-E, TriLM, Bonsai",
            "a checkpoint (safetensors or GGUF)",
            "`build`",
            "",
            "",
        ],
        ["BitNet exported by torch", "packed in uint8", optimize, "1/16 of float32", ""],
        ["Ternary-Bonsai, Bonsai", "`MatMulNBits`, 2 bits", optimize, "as before", ""],
        [
            "TWN, TTQ, your own training",
            "float32, quantized in the graph or straight-through",
            optimize,
            "1/16 of float32",
            "",
        ],
        ["Brevitas", "QCDQ", optimize, "1/4 of int8", ""],
        ["Brevitas, FINN", "QONNX", "`optimize`", "1/16 of float32", ""],
        ["larq (Keras)", "float32 {-1, +1}, by tf2onnx", optimize, "1/32 of float32", ""],
    ]
    return table(["model", "weights in the file", "command", "size", "tokens a second"], rows)


def rival_table(machines: Sequence[Machine]) -> str:
    """One layer, one row, one thread: error, bits per weight and speed of each candidate.

    Speeds are of the best and of the worst class of processor that it was measured on, the error is
    the larger of theirs.
    """
    case = {"KxN": LAYER, "M": LAYER_ROWS, "threads": LAYER_THREADS}
    chosen = ends(machines, case)
    found = [
        {row["candidate"]: row for row in each.layers["rows"] if case.items() <= row.items()}
        for each in chosen
    ]
    sizes = next(each.layers for each in machines if each.layers.get("memory"))

    def cells(name: str, bits: float) -> list[str]:
        errors = [rows[name]["error"] for rows in found if name in rows]
        error = f"{max(errors):.0e}" if errors else "not measured"
        return [error, f"{bits:.2g}", *(_times_faster(rows, name) for rows in found)]

    own = _bits_per_weight(sizes, "onnx-ternary 2bit")
    rows = [[text, *cells(name, own), "ONNX Runtime on CPU", ""] for name, text in OURS]
    rows += [
        [text, *cells(name, bits or _bits_per_weight(sizes, name)), where, source]
        for name, text, bits, where, source in RIVALS
    ]
    unmeasured = [*["not measured"] * (2 + len(chosen)), "its own models, GGUF"]
    rows.append(["bitnet.cpp", *unmeasured, "[its figures](docs/models.md#what-others-publish)"])
    speeds = [f"times faster than float32, {each.name}" for each in chosen]
    head = ["one row, one thread", "error", "bits per weight", *speeds]
    return table([*head, "runs", "source"], rows)


def _times_faster(rows: Mapping[str, Row], name: str) -> str:
    """Than float32, in the rounds of one machine."""
    if name not in rows:
        return "not measured"
    return f"{ratio(rows[name]['rounds_us'], rows['MatMul float32']['rounds_us']):.1f}"


def _bits_per_weight(results: Mapping[str, Any], model: str) -> float:
    """Of the file of one layer that `bench_kernel.memory` wrote, its whole graph counted."""
    sizes = {row["model"]: row["file"] for row in results["memory"] if not row["external data"]}
    # The float32 file holds 4 bytes per weight and little else.
    return 32 * float(sizes[model] / sizes["MatMul float32"])


def first(results: Mapping[str, Any], images: str) -> str:
    """The numbers that matter, against float32, and the pictures of them in folder ``images``."""
    models = _models(results)
    (before, slow), (after, fast) = models[BASELINE], models[FLOAT]
    loads = [float(np.median(each["loads_s"])) for each in (before, after)]
    words = (
        f"{_size(before['file'])} become {_size(after['file'])}, {_seconds(before)} to load become "
        f"{_seconds(after)}, {tokens_a_second(slow):.3g} tokens a second become "
        f"{tokens_a_second(fast):.3g}"
    )
    return (
        f"**{before['file'] / after['file']:.0f} times smaller, loaded "
        f"{loads[0] / loads[1]:.0f} times sooner, {faster(fast, slow):.0f} times the tokens a "
        "second, the same answers.**\n\n"
        "<picture>\n"
        f'  <source media="(max-width: 600px)" srcset="{images}/front_narrow.svg">\n'
        f'  <img src="{images}/front.svg" alt="{words}">\n'
        "</picture>"
    )


_WIDTH, _PANEL_WIDTH, _PANEL_HEIGHT, _BAR = 880, 280, 176, 26
_PANEL_GAP, _MARGIN, _ROOM_FOR_NUMBER = 15, 10, 75
_STYLE = """\
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 12px; fill: #59636e } .own { font-weight: 600 }
.bar { fill: #afb8c1 } .bar.ours { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .bar { fill: #59636e } .bar.ours { fill: #3fb950 }
}"""


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    value: Callable[[Row, Row], float]
    text: Callable[[Row, Row], str]


_PANELS = (
    _Panel("size of the file", lambda load, _: load["file"], lambda load, _: _size(load["file"])),
    _Panel(
        "time to load",
        lambda load, _: float(np.median(load["loads_s"])),
        lambda load, _: _seconds(load),
    ),
    _Panel(
        "tokens a second",
        lambda _, run: tokens_a_second(run),
        lambda _, run: f"{tokens_a_second(run):.3g}",
    ),
)


def picture(results: Mapping[str, Any], *, narrow: bool = False) -> str:
    """Bars of file, load time and speed as SVG that follows the reader's light or dark theme.

    Three panels side by side; below each other where ``narrow``, for the width of a phone.
    """
    models = _models(results)
    width = _PANEL_WIDTH + 2 * _MARGIN if narrow else _WIDTH
    height = _PANEL_HEIGHT * (len(_PANELS) if narrow else 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>A decoder of BitNet b1.58 2B's shape before and after conversion</title>",
        f"<style>{_STYLE}</style>",
    ]
    for position, panel in enumerate(_PANELS):
        left = 0 if narrow else position * (_PANEL_WIDTH + _PANEL_GAP)
        top = position * _PANEL_HEIGHT if narrow else 0
        lines += _bars(panel, models, left + _MARGIN, top)
    return "\n".join([*lines, "</svg>", ""])


def _bars(panel: _Panel, models: dict[str, tuple[Row, Row]], left: int, top: int) -> list[str]:
    """One panel: a bar for each candidate, with its name above and its number behind."""
    most = max(panel.value(*models[name]) for name in CANDIDATES)
    lines = [f'<text class="title" x="{left}" y="{top + 18}">{panel.title}</text>']
    for row, (name, label) in enumerate(
        zip(CANDIDATES, ("float32", "MatMulNBits", "onnx-ternary"), strict=True)
    ):
        ours = name == FLOAT
        y = top + 32 + row * 46
        share = panel.value(*models[name]) / most
        length = max(2.0, share * (_PANEL_WIDTH - _ROOM_FOR_NUMBER))
        lines += [
            f'<text class="small" x="{left}" y="{y + 11}">{label}</text>',
            f'<rect class="bar{" ours" if ours else ""}" x="{left}" y="{y + 15}" '
            f'width="{length:.1f}" height="{_BAR}" rx="3"/>',
            f'<text class="{"own" if ours else ""}" x="{left + length + 8:.1f}" '
            f'y="{y + 33}">{panel.text(*models[name])}</text>',
        ]
    return lines
