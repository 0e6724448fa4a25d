"""What the command leaves alone: onnxruntime where it is not needed, its telemetry, the home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_ternary._onnxruntime import without_telemetry
from tests.support.command_line import DIGITS

_SAYS_WHETHER_ONNXRUNTIME_RAN = """
import sys
from onnx_ternary.cli import main
try:
    main(sys.argv[1:])
finally:
    print("started" if "onnxruntime" in sys.modules else "not started", file=sys.stderr)
"""


def _python(
    *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--help",),
        ("optimize", "--help"),
        ("info",),
        ("inspect", "--no-fold", DIGITS),
        ("optimize", "--no-fold", "--dry-run", "--no-verify", DIGITS),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_onnxruntime_is_not_started_where_nothing_runs(arguments: tuple[str | Path, ...]) -> None:
    done = _python("-c", _SAYS_WHETHER_ONNXRUNTIME_RAN, *arguments)
    assert done.stderr.splitlines()[-1] == "not started"


def test_onnxruntime_is_started_where_a_model_runs() -> None:
    done = _python("-c", _SAYS_WHETHER_ONNXRUNTIME_RAN, "optimize", "--dry-run", DIGITS)
    assert done.stderr.splitlines()[-1] == "started"


@pytest.mark.parametrize("place", ["folder", "file", "nowhere"])
def test_the_home_folder_is_left_alone(place: str, tmp_path: Path) -> None:
    """onnxruntime 1.32 keeps an identifier and a database there, and warns where it cannot."""
    home = tmp_path / "home"
    if place == "folder":
        home.mkdir()
    elif place == "file":
        home.touch()
    environment = {**os.environ, "HOME": str(home)}
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    target = tmp_path / "converted.onnx"
    done = _python("-m", "onnx_ternary", "optimize", DIGITS, target, environment=environment)
    assert done.stderr == ""
    assert target.is_file()
    assert home.exists() == (place != "nowhere")
    assert not home.is_dir() or not list(home.iterdir())


@pytest.mark.parametrize("choice", ["0", "1", "", "false"])
def test_a_choice_of_telemetry_is_respected(choice: str) -> None:
    environment = {"ORT_DISABLE_TELEMETRY": choice}
    without_telemetry(environment)
    assert environment == {"ORT_DISABLE_TELEMETRY": choice}


def test_telemetry_is_off_where_nobody_chose() -> None:
    environment: dict[str, str] = {}
    without_telemetry(environment)
    assert environment == {"ORT_DISABLE_TELEMETRY": "1"}
