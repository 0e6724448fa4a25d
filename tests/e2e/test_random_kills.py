"""Conversions killed at many random moments, or out of space at any write: old or new, whole.

A child process that is forked from one that has imported everything converts in milliseconds, so
that there can be many. What is there afterwards is compared byte by byte with the old state and
with what a whole conversion leaves: two conversions give the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.catalogue.case import matmul, model, ternary
from tests.support.disks import small_disk

WIDTH = 256
KILLS = 20
LIMITS = 8
CANNOT_BE_WRITTEN = 3 << 8  # as the status of a process
# Prints one line per child: how it ended, and whether old or new state was there, whole.
FORKING = """
import json, os, random, resource, shutil, signal, sys, time
from pathlib import Path
import onnx
from onnx_ternary.conversion.convert import convert
from onnx_ternary.errors import ModelError
from onnx_ternary.options import OptimizeOptions

kind, count, external = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kept, reference, *folders = map(Path, sys.argv[4:])
options = OptimizeOptions(min_elements=0, external_data=external)

def restore(folder):
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    for each in kept.iterdir():
        shutil.copyfile(each, folder / each.name)

def state(folder):
    content = (folder / "model.onnx").read_bytes()
    names = set()
    for tensor in onnx.ModelProto.FromString(content).graph.initializer:
        names |= {each.value for each in tensor.external_data if each.key == "location"}
    return content, tuple((name, (folder / name).read_bytes()) for name in sorted(names))

def names(folder):
    return sorted(each.name for each in folder.iterdir())

def child(folder, limit=None):
    target = folder / "model.onnx"
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        convert(target, target, options, verify_result=False)
        code = 0
    except ModelError as error:
        code = 3 if "cannot be written" in str(error) else 1
    finally:
        os._exit(code)

old = state(kept)
restore(reference)
begin = time.monotonic()
assert os.waitpid(child(reference), 0)[1] == 0
duration = time.monotonic() - begin
new = state(reference)
largest = max(each.stat().st_size for each in reference.iterdir())
for number in range(count):
    folder = folders[number % len(folders)]
    restore(folder)
    limit = int(largest * number / count) if kind == "limit" else None
    pid = child(folder, limit)
    if kind == "kill":
        time.sleep(random.uniform(0, 1.1) * duration)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    found = state(folder)
    clean = names(folder) == names(kept if found == old else reference)
    print(json.dumps({
        "status": status, "old": found == old, "new": found == new, "clean": clean
    }))
"""


@pytest.fixture(params=["always", "never"])
def external(request: pytest.FixtureRequest) -> str:
    result: str = request.param
    return result


@pytest.fixture
def kept(tmp_path: Path, external: str) -> Path:
    """A model whose product becomes large tensors of another size, and one that stays."""
    folder = tmp_path / "kept"
    folder.mkdir()
    dense = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    made = model(
        [matmul("x", "w", "a", "first"), matmul("a", "v", "y", "second")],
        {"w": ternary(WIDTH, WIDTH), "v": dense},
        x_shape=("batch", WIDTH),
    )
    onnx.save(
        made,
        folder / "model.onnx",
        save_as_external_data=external == "always",
        location="model.onnx.data",
        size_threshold=0,
    )
    return folder


@dataclass(frozen=True)
class Outcome:
    status: int
    old: bool
    new: bool
    clean: bool


def outcomes(kind: str, count: int, kept: Path, external: str, *folders: Path) -> list[Outcome]:
    """What became of so many conversions, in these folders in turn."""
    reference = kept.with_name("reference")
    for each in (*folders, reference):
        each.mkdir(exist_ok=True)
    places = map(str, (kept, reference, *folders))
    done = subprocess.run(
        [sys.executable, "-c", FORKING, kind, str(count), external, *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == count
    for each in found:
        assert each.old != each.new, each
    return found


def test_killed_at_random_moments_in_place(tmp_path: Path, kept: Path, external: str) -> None:
    found = outcomes("kill", KILLS, kept, external, tmp_path / "work")
    # The moments cover the conversion: some came before the model had its name.
    assert any(each.old and each.status for each in found)


def test_no_write_above_a_size_in_place(tmp_path: Path, kept: Path, external: str) -> None:
    found = outcomes("limit", LIMITS, kept, external, tmp_path / "work")
    refused = [each for each in found if each.status]
    assert len(refused) > LIMITS // 3
    assert set(refused) == {Outcome(CANNOT_BE_WRITTEN, old=True, new=False, clean=True)}


def test_disks_with_random_space_in_place(tmp_path: Path, kept: Path, external: str) -> None:
    occupied = sum(each.stat().st_size for each in kept.iterdir())
    free = np.random.default_rng().integers(0, occupied, 3)
    disks = [tmp_path / f"disk{number}" for number in range(len(free))]
    with contextlib.ExitStack() as mounted:
        for disk, size in zip(disks, occupied + 20_000 + free, strict=True):
            disk.mkdir()
            mounted.enter_context(small_disk(disk, f"size={size}"))
        for found in outcomes("disk", len(disks), kept, external, *disks):
            assert found.clean
            assert found.status == (0 if found.new else CANNOT_BE_WRITTEN)
