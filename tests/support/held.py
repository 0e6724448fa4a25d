"""Commands that stop in the middle: verification waits where it would read its inputs."""

from __future__ import annotations

import os
from pathlib import Path

# Python runs a module of this name at its start, in worker processes too.
_MODULE = "sitecustomize.py"
_CODE = """\
import pathlib
import time

from onnx_ternary.verification import inputs


def hold(path):
    pathlib.Path({marker!r}).touch()
    time.sleep(600)


assert callable(inputs._read_npz)
inputs._read_npz = hold
"""


def held_environment(folder: Path) -> tuple[dict[str, str], Path]:
    """An environment for such commands, and the file that appears once one of them waits."""
    folder.mkdir()
    marker = folder / "waits"
    (folder / _MODULE).write_text(_CODE.format(marker=str(marker)))
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}, marker
