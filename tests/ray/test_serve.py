"""The example for Ray Serve answers every request, several of them in one call of the model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="the extra ray is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples/ray/serve.py"


def test_serve_example_answers_every_request() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--replicas", "2", "--port", str(port)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (largest,) = re.findall(r"440 of 450 images right, up to (\d+) requests", done.stdout)
    assert int(largest) > 1
