"""Conversions that are cut off: afterwards there is the whole new model, or the old state.

The old state is a model that opens and gives its old answers; stray files beside it may be left by
a kill, which no program can clean up after.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary.schema import OP_TYPE
from tests.catalogue.case import matmul, model, ternary
from tests.support.disks import small_disk

WIDTH = 512
COMMAND = (sys.executable, "-m", "onnx_ternary", "optimize", "--no-verify", "-q")
# Runs the command once for each of the renames and removals that a conversion consists of in the
# end, and dies at that one; ends where the command ends by itself. Forked from a process that has
# imported everything, a command takes a tenth of the time. Prints how each ended, and leaves what
# was there then in a folder of its own.
DIE_AT_EVERY_STEP = """
import json, os, pathlib, shutil, sys
from onnx_ternary.cli import main, optimize
work, kept, states = map(pathlib.Path, sys.argv[1:4])
steps, last = [0], [0]
def counted(operation):
    def replacement(*arguments, **options):
        steps[0] += 1
        if steps[0] == last[0]:
            os._exit(9)
        return operation(*arguments, **options)
    return replacement
def child():
    for owner, name in ((pathlib.Path, "replace"), (pathlib.Path, "unlink"), (os, "replace")):
        setattr(owner, name, counted(getattr(owner, name)))
    try:
        main(sys.argv[4:])
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(1)
codes = []
while not codes or codes[-1] == 9 and len(codes) < 40:
    last[0] += 1
    shutil.rmtree(work)
    shutil.copytree(kept, work)
    pid = os.fork()
    if not pid:
        child()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    shutil.copytree(work, states / str(last[0]))
print(json.dumps(codes))
"""


def write_original(folder: Path, *, external: bool) -> Path:
    """Four products after each other, and one that stays."""
    names = ["x", "a", "b", "c", "d", "y"]
    weights = {f"w{at}": ternary(WIDTH, WIDTH, seed=at) for at in range(4)}
    dense = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weights["w4"] = dense / WIDTH
    nodes = [
        matmul(source, f"w{at}", target, f"product{at}")
        for at, (source, target) in enumerate(itertools.pairwise(names))
    ]
    made = model(nodes, weights, x_shape=("batch", WIDTH))
    path = folder / "model.onnx"
    onnx.save(
        made, path, save_as_external_data=external, location="model.onnx.data", size_threshold=0
    )
    return path


def answer(path: Path) -> NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    session = onnx_ternary.InferenceSession(path)
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def is_converted(path: Path) -> bool:
    found = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert found.count(OP_TYPE) in (0, 4)
    return OP_TYPE in found


def check_either(path: Path, before: NDArray[np.float32]) -> bool:
    """The model opens and is the old one or the new one; true if it is the new one."""
    error = np.abs(answer(path) - before).max() / np.abs(before).max()
    if not is_converted(path):
        assert error == 0
        return False
    assert error < 1e-5
    return True


@pytest.fixture(params=[False, True], ids=["one file", "external data"])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_original(tmp_path, external=request.param)


def arguments(path: Path) -> list[str]:
    kind = "always" if path.with_name("model.onnx.data").exists() else "never"
    return [str(path), "--in-place", "--external-data", kind]


def test_killed_at_every_step_in_place(
    original: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = answer(original)
    folder = tmp_path_factory.mktemp("steps")
    kept, states = folder / "kept", folder / "states"
    shutil.copytree(tmp_path, kept)
    words = ["optimize", "--no-verify", "-q", *arguments(original)]
    done = subprocess.run(
        [sys.executable, "-c", DIE_AT_EVERY_STEP, *map(str, (tmp_path, kept, states)), *words],
        stdout=subprocess.PIPE,
        check=True,
    )
    codes = json.loads(done.stdout)
    assert set(codes[:-1]) == {9}
    assert codes[-1] == 0
    outcomes = [
        check_either(states / str(step) / original.name, before)
        for step in range(1, len(codes) + 1)
    ]
    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_killed_at_random_moments(original: Path, tmp_path: Path) -> None:
    before = answer(original)
    rng = np.random.default_rng()
    started = time.monotonic()
    subprocess.run([*COMMAND, str(original), "/dev/null", "--dry-run"], check=True)
    duration = time.monotonic() - started
    for moment in rng.uniform(0.5, 1.2, 3) * duration:
        with subprocess.Popen([*COMMAND, *arguments(original)]) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.kill()
        if check_either(original, before):
            break


@pytest.mark.parametrize("limit", [0, 100_000])
def test_file_size_limit(original: Path, tmp_path: Path, limit: int) -> None:
    before = answer(original)
    files = {each: each.read_bytes() for each in tmp_path.iterdir()}
    done = subprocess.run(
        [*COMMAND, *arguments(original)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert re.search("cannot be written: (File too large|the disk is full)", done.stderr)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == files
    assert check_either(original, before) is False


@pytest.mark.parametrize("kilobytes", [16, 1100])
def test_full_disk(original: Path, tmp_path: Path, kilobytes: int) -> None:
    target = tmp_path / "disk"
    target.mkdir()
    with small_disk(target, f"size={kilobytes}k"):
        (target / "out.onnx").write_bytes(b"what was there")
        done = subprocess.run(
            [*COMMAND, str(original), str(target / "out.onnx"), *arguments(original)[2:]],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert re.search("No space left on device|the disk is full", done.stderr)
        assert [each.name for each in target.iterdir()] == ["out.onnx"]
        assert (target / "out.onnx").read_bytes() == b"what was there"


def test_read_only_target(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk"
    target.mkdir()
    with small_disk(target, "size=100k,ro"):
        done = subprocess.run(
            [*COMMAND, str(original), str(target / "out.onnx")],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("change", ["replace", "truncate"])
def test_source_changed_while_reading(tmp_path: Path, change: str) -> None:
    original = write_original(tmp_path, external=True)
    data = tmp_path / "model.onnx.data"
    out = tmp_path / "out.onnx"
    process = subprocess.Popen(
        [*COMMAND, str(original), str(out)], stderr=subprocess.PIPE, text=True
    )
    time.sleep(float(np.random.default_rng().uniform(0.3, 1.5)))
    if change == "replace":
        other = tmp_path / "other"
        other.write_bytes(bytes(data.stat().st_size))
        other.replace(data)
    else:
        os.truncate(data, 5000)
    process.communicate(timeout=120)
    if process.returncode == 0:
        onnx.checker.check_model(str(out))
    else:
        assert not out.exists()
