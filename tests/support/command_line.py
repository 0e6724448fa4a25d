"""The command line as a process, and the models it is tried on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits_mlp.onnx"
IMAGES = EXAMPLES / "digits_mlp.npz"


def run(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run ``onnx-ternary`` with the given arguments and expect an exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "onnx_ternary", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "240"},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done
