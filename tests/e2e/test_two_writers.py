"""Two conversions to one target at once: one of them wins, whole."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_ternary
from onnx_ternary.conversion.convert import convert
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model, ternary

SIDE = 64
ROUNDS = 20
ALWAYS = OptimizeOptions(min_elements=0, external_data="always")


def slow_renames() -> None:
    """A disk on which renames take up to ten milliseconds."""
    replace = Path.replace

    def slow(self: Path, target: Path) -> Path:
        time.sleep(random.random() * 0.01)  # no secret
        return replace(self, target)

    Path.replace = slow  # type: ignore[method-assign,assignment]


def write(source: Path, target: Path, barrier: Barrier) -> None:
    slow_renames()
    for _ in range(ROUNDS):
        barrier.wait(60)
        convert(source, target, ALWAYS, verify_result=False)
        barrier.wait(60)
        barrier.wait(60)


def test_one_of_two_writers_wins_whole(tmp_path: Path) -> None:
    x = {"x": np.ones((1, SIDE), np.float32)}
    answers, sources, target = [], [], tmp_path / "out.onnx"
    for scale in (1.0, 2.0):
        made = model([matmul()], {"w": ternary(SIDE, SIDE, scale=scale)}, x_shape=("b", SIDE))
        sources.append(tmp_path / f"{scale}.onnx")
        onnx.save(made, sources[-1])
        answers.append(onnx_ternary.InferenceSession(sources[-1]).run(None, x)[0])
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [
        context.Process(target=write, args=(source, target, barrier), daemon=True)
        for source in sources
    ]
    for writer in writers:
        writer.start()
    try:
        for _ in range(ROUNDS):
            barrier.wait(120)
            barrier.wait(120)
            found = onnx_ternary.InferenceSession(target).run(None, x)[0]
            assert any(np.allclose(found, answer) for answer in answers)
            names = {each.name for each in tmp_path.iterdir()} - {each.name for each in sources}
            assert len(names) == 2, names  # the model and its data, no lock and nothing staged
            barrier.wait(60)
    finally:
        barrier.abort()
        for writer in writers:
            writer.join(60)
            writer.kill()


def test_waiting_writer_is_let_in_when_the_other_is_killed(tmp_path: Path) -> None:
    from onnx_ternary.model_files.targets import locked

    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "out.onnx", held), daemon=True)
    holder.start()
    assert held.wait(60)
    holder.kill()
    holder.join(60)
    assert (tmp_path / ".out.onnx.lock").exists()
    with locked(tmp_path / "out.onnx"):
        pass
    assert not list(tmp_path.iterdir())


def _hold(target: Path, held: object) -> None:
    from onnx_ternary.model_files.targets import locked

    with locked(target):
        held.set()  # type: ignore[attr-defined] # an Event of multiprocessing
        time.sleep(600)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed()
