"""Rows a second and memory of a large model on workers of Ray Data, beside float32.

    pip install ".[ray]"
    python benchmarks/bench_ray.py [--workers 2] [--rows 4096] [--rounds 3] [--json FILE]

Four products of 4096 x 4096, as float32 and converted, score the same rows in turns by
examples/ray/score.py. Speed is taken from the first row to the last, without starting workers.
Memory is what the workers hold together: the sum of their proportional set sizes (PSS), in which
pages that processes share are counted once. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import ray
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary

ROOT = Path(__file__).resolve().parents[1]
RAY_EXAMPLE = ROOT / "examples/ray"
sys.path.insert(0, str(RAY_EXAMPLE))

import score  # noqa: E402
from measure.harness import conditions  # noqa: E402

SIZE, LAYERS = 4096, 4
FLOAT, OURS = "float32", "onnx-ternary"


class Measures(score.Scorer):  # type: ignore[misc, name-defined]
    """A worker that tells when each batch was computed, and the memory of its process."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run a batch; images are repeated to the width of the model."""
        images = np.tile(np.stack(batch["image"]), SIZE // 64)
        start = time.time()
        self.session.run(None, {self.name: images})
        end = time.time()
        length = len(images)
        columns = {"process": os.getpid(), "start": start, "end": end, "pss": proportional_bytes()}
        filled = {name: np.full(length, value) for name, value in columns.items()}
        return {"row": batch["row"], **filled}


def proportional_bytes() -> int:
    """PSS of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/smaps_rollup has no Pss")


def write_models(folder: Path) -> dict[str, Path]:
    """The float32 model and the converted one, both with external data."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{layer}" for layer in range(1, LAYERS)), "y"]
    nodes, weights = [], []
    for layer in range(LAYERS):
        levels = rng.integers(-1, 2, (SIZE, SIZE)).astype(np.float32) * np.float32(SIZE**-0.5)
        weights.append(numpy_helper.from_array(levels, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", SIZE]) for name in "xy")
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17)]
    paths = {FLOAT: folder / "float32.onnx", OURS: folder / "ternary.onnx"}
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=8),
        paths[FLOAT],
        save_as_external_data=True,
    )
    options = onnx_ternary.OptimizeOptions(external_data="always")
    onnx_ternary.optimize(paths[FLOAT], options).save(paths[OURS])
    return paths


def score_once(model: Path, images: Path, out: Path, workers: int) -> dict[str, float]:
    """Rows a second, and MB of all workers together, of one run over all rows."""
    score.score(model, images, out, workers, Measures)
    table = pq.read_table(out).to_pandas()
    last = table.sort_values("end").groupby("process").last()
    if len(last) != workers:
        raise SystemExit(f"{len(last)} of {workers} workers got rows; take more rows")
    seconds = table["end"].max() - table["start"].min()
    return {"rows_per_second": len(table) / seconds, "pss_mb": float(last["pss"].sum()) / 1e6}


def main() -> None:
    """Write models and rows, score in turns, print and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8 * score.ROWS_IN_BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    paths = os.pathsep.join([str(ROOT), str(RAY_EXAMPLE), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=arguments.workers + 2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rounds: dict[str, list[dict[str, float]]] = {FLOAT: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        models, images = write_models(Path(folder)), Path(folder, "images")
        score.write_images(images, arguments.rows)
        for number in range(arguments.rounds):
            for name, model in models.items():
                out = Path(folder, f"{name}-{number}")
                rounds[name].append(score_once(model, images, out, arguments.workers))
    ray.shutdown()
    for name, each in rounds.items():
        speed, memory = (np.median([one[key] for one in each]) for key in each[0])
        print(f"{name}: {speed:.0f} rows a second, {memory:.0f} MB on {arguments.workers} workers")
    if arguments.json:
        found = {
            "conditions": {**conditions(), "ray": ray.__version__},
            "workers": arguments.workers,
            "rows": arguments.rows,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
