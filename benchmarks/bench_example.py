"""The digits example, float MatMul against the converted model, through onnxruntime sessions.

python benchmarks/bench_example.py --threads 1 --json benchmarks/results/example_zen5_1.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from measure.harness import Candidate, conditions, measure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnx_ternary

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCH_SIZES = (1, 2, 8, 64, 450)


def _run(
    session: ort.InferenceSession, batch: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    (logits,) = session.run(None, batch)
    return np.asarray(logits)


def main() -> None:
    """Convert, check, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of the calling thread: for a busy machine, one thread only",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="", help="what pages call this machine")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time sees one thread only")

    model = EXAMPLES / "digits_mlp.onnx"
    with np.load(EXAMPLES / "digits_mlp.npz") as data:
        images = data["image"]
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = arguments.threads
    providers = ["CPUExecutionProvider"]
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "converted.onnx"
        onnx_ternary.optimize(model).save(converted)
        sessions = {
            "float MatMul": ort.InferenceSession(model, session_options, providers=providers),
            "onnx-ternary": onnx_ternary.InferenceSession(converted, session_options),
        }

    rows = []
    for batch_size in BATCH_SIZES:
        batch = {"image": images[:batch_size]}
        outputs = [session.run(None, batch)[0] for session in sessions.values()]
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-4)
        timings = measure(
            [Candidate(name, partial(_run, session, batch)) for name, session in sessions.items()],
            rounds=arguments.rounds,
            threads=arguments.threads,
            clock=time.thread_time if arguments.cpu_time else time.perf_counter,
        )
        ours, theirs = timings["onnx-ternary"], timings["float MatMul"]
        rows.append(
            {
                "batch": batch_size,
                "float MatMul us": theirs.median * 1e6,
                "onnx-ternary us": ours.median * 1e6,
                "spread": max(ours.spread, theirs.spread),
                "times faster": ours.ratio_to(theirs),
            }
        )

    console = Console()
    facts = conditions() | {"threads": str(arguments.threads)}
    if arguments.cpu_time:
        facts["clock"] = "processor time"
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    console.print(table)
    if arguments.json:
        for row in rows:
            row.update({name: float(f"{value:.3g}") for name, value in row.items()})
        result = {"machine": arguments.machine, "conditions": facts, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
