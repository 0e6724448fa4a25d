"""Score a dataset with a converted model on several workers of Ray Data.

    pip install ".[ray]"
    python examples/ray/score.py [--workers 2] [--rows 100000] [--out FOLDER]

Converts examples/digits_mlp.onnx, writes the 450 test images over and over as Parquet files, and
scores every row. Each worker is a process with a session of its own. A worker that dies is started
again and its rows are scored again: no row is lost, none comes twice.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Ray sends usage statistics unless told not to before it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

import onnx_ternary

EXAMPLES = Path(__file__).resolve().parents[1]
ROWS_IN_FILE = 5000
ROWS_IN_BATCH = 512
Batch = dict[str, NDArray[Any]]


class Scorer:
    """A session with the model, in a worker of its own.

    Workers of one machine that open one model with external data share its pages: ONNX Runtime maps
    the file. One thread each, because the workers use the processors.

    Args:
        model: path of the converted model; on a cluster, one every node reads.
        keep: columns that are passed on beside the answer.
    """

    def __init__(self, model: str, keep: tuple[str, ...] = ("row",)) -> None:
        """Open the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnx_ternary.InferenceSession(model, options)
        (self.name,) = (each.name for each in self.session.get_inputs())
        self.keep = keep

    def __call__(self, batch: Batch) -> Batch:
        """The class of each image (B, 64) of a batch, as int64 (B,)."""
        (logits,) = self.session.run(None, {self.name: np.stack(batch["image"])})
        return {name: batch[name] for name in self.keep} | {"digit": logits.argmax(axis=1)}


def score(
    model: Path, images: Path, out: Path, workers: int = 2, scorer: type[Scorer] = Scorer
) -> None:
    """Score the Parquet files of folder ``images`` (columns row, image) into files of ``out``."""
    data = ray.data.read_parquet(str(images))
    # Small blocks: every worker has work to the end.
    data = data.repartition(target_num_rows_per_block=4 * ROWS_IN_BATCH).map_batches(
        scorer,
        fn_constructor_args=(str(model),),
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=ROWS_IN_BATCH,
    )
    data.write_parquet(str(out))


def write_images(folder: Path, num_rows: int) -> NDArray[np.int64]:
    """Write the test images over and over; return their labels, by the column row."""
    with np.load(EXAMPLES / "digits_mlp.npz") as data:
        images, labels = data["image"], data["labels"]
    rows = np.arange(num_rows)
    folder.mkdir()
    for start in range(0, num_rows, ROWS_IN_FILE):
        part = rows[start : start + ROWS_IN_FILE]
        pixels = pa.FixedSizeListArray.from_arrays(images[part % len(images)].ravel(), 64)
        table = pa.table({"row": part, "image": pixels})
        pq.write_table(table, folder / f"{start:09}.parquet")
    return np.asarray(labels[rows % len(labels)])


def main() -> None:
    """Convert, write the images, score, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="folder of the answers (default: a temporary one)")
    arguments = parser.parse_args()
    ray.init(num_cpus=arguments.workers + 2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder, "digits.onnx"), Path(folder, "images")
        out = arguments.out or Path(folder, "scored")
        onnx_ternary.optimize(EXAMPLES / "digits_mlp.onnx").save(model)
        labels = write_images(images, arguments.rows)
        started = time.perf_counter()
        score(model, images, out, arguments.workers)
        seconds = time.perf_counter() - started
        scored = pq.read_table(out).to_pydict()
    right = int((np.asarray(scored["digit"]) == labels[scored["row"]]).sum())
    print(f"{right} of {len(labels)} images right")
    print(
        f"{len(labels) / seconds:,.0f} rows a second on {arguments.workers} workers, "
        "starting them included"
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
