"""The run.sh of an example finds a Python that has the package, or says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*/run.sh"))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for bash")


def start(script: Path, folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run a script where no tool it needs after the search for a Python is on the PATH."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        ["/usr/bin/bash", str(script), *arguments],
        cwd=folder,
        env={"PATH": str(tools), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def environment(folder: Path) -> Path:
    """A virtual environment whose Python says that it has the package."""
    program = folder / "environment/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/usr/bin/bash\n")
    program.chmod(0o755)
    return program


def test_there_are_scripts() -> None:
    assert {script.parent.name for script in SCRIPTS} == {"cpp", "node"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.parent.name))
def test_a_python_without_the_package_is_named(script: Path, tmp_path: Path) -> None:
    code, message = start(script, tmp_path, "/nonexistent/python")
    assert code == 1
    assert message == (
        "run.sh: onnx-ternary is not installed for /nonexistent/python; give the Python that has "
        f"it: {script} PYTHON\n"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.parent.name))
def test_the_active_environment_is_taken_without_an_argument(script: Path, tmp_path: Path) -> None:
    program = environment(tmp_path)
    code, message = start(script, tmp_path, VIRTUAL_ENV=str(program.parents[1]))
    assert code == 127  # the search is over: mktemp is not on this PATH
    assert "mktemp" in message
    assert "not installed" not in message
