"""Ray Data scores with a converted model: every row, through a killed worker, weights mapped once.

Ray starts processes of its own; the tests need the extra ``ray``.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_ternary
from tests.catalogue.case import matmul, model, ternary

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra ray is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "ray"))
score = pytest.importorskip("score", reason="the tests do not lie beside the examples")
WORKERS = 2
ROWS = 20_000
SIZE = 4096


class DiesOnce(score.Scorer):  # type: ignore[misc, name-defined]
    """Kills its process in the middle of the rows, unless one worker did so before."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        died = Path(os.environ["DIED"])
        if batch["row"].max() > ROWS // 2:
            try:
                died.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


class Measures(score.Scorer):  # type: ignore[misc, name-defined]
    """A worker that tells how much of the mapped data file its process holds, how much alone."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = np.zeros((2, SIZE), np.float32)
        self.session.run(None, {self.name: images})
        resident, share = mapped_bytes(".onnx.data")
        length = len(batch["row"])
        return {
            "row": batch["row"],
            "process": np.full(length, os.getpid()),
            "resident": np.full(length, resident),
            "share": np.full(length, share),
        }


def mapped_bytes(ending: str) -> tuple[int, int]:
    """Rss and Pss of the mappings of files with this ending, in bytes."""
    resident = share = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(ending)
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
        elif inside and line.startswith("Pss:"):
            share += int(line.split()[1]) * 1024
    return resident, share


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("died") / "once"


@pytest.fixture(scope="module")
def cluster(died: Path) -> Iterator[None]:
    root = str(EXAMPLES.parent)
    paths = os.pathsep.join([root, str(EXAMPLES / "ray"), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"DIED": str(died), "PYTHONPATH": paths}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    onnx_ternary.optimize(EXAMPLES / "digits_mlp.onnx").save(path)
    return path


def test_every_row_once_though_a_worker_is_killed(
    cluster: None, converted: Path, died: Path, tmp_path: Path
) -> None:
    labels = score.write_images(tmp_path / "images", ROWS)
    score.score(converted, tmp_path / "images", tmp_path / "out", WORKERS, DiesOnce)
    assert died.exists()
    scored = pq.read_table(tmp_path / "out").to_pydict()
    assert sorted(scored["row"]) == list(range(ROWS))
    order = np.argsort(scored["row"])
    right = np.asarray(scored["digit"])[order] == labels
    assert right[:450].sum() == 440


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_in_memory_once(cluster: None, tmp_path: Path) -> None:
    layers = 4
    names = ["x", *(f"h{number}" for number in range(1, layers)), "y"]
    nodes = [
        matmul(names[number], f"w{number}", names[number + 1], f"layer{number}")
        for number in range(layers)
    ]
    weights = {
        f"w{number}": ternary(SIZE, SIZE, scale=np.float32(0.01), seed=number)
        for number in range(layers)
    }
    path = tmp_path / "large.onnx"
    options = onnx_ternary.OptimizeOptions(external_data="always")
    onnx_ternary.optimize(model(nodes, weights, x_shape=("batch", SIZE)), options).save(path)
    size = Path(f"{path}.data").stat().st_size
    assert size >= layers * SIZE * SIZE // 4
    score.write_images(tmp_path / "images", ROWS)
    score.score(path, tmp_path / "images", tmp_path / "out", WORKERS, Measures)
    table = pq.read_table(tmp_path / "out").to_pandas()
    workers = table.groupby("process").max()
    assert len(workers) == WORKERS
    assert (workers["resident"] > 0.9 * size).all()
    # What each process counts as its share, once all of them have read everything.
    assert table.groupby("process")["share"].min().sum() < 1.2 * size
