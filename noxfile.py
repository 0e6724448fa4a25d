"""Fresh environments for every supported version: ``nox``.

Interpreters this machine does not have are skipped by name. ``nox -- WHEEL`` tests a wheel
that is built already, for `.ci/run`, whose last step runs every rule on the newest onnxruntime.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["versions", "too_old"]
nox.options.error_on_missing_interpreters = False

TESTS = (
    "tests/kernels/test_op_session.py",
    "tests/golden/test_golden_models.py",
    "tests/e2e/test_cli.py",
    "tests/unit/op/test_function_body.py",
    "tests/unit/test_runtime.py",
    "tests/unit/verification/test_inputs.py",
    "tests/unit/verification/test_judge.py",
    "tests/unit/verification/test_verify.py",
)
# All rules on the oldest and the newest; between them what loads, converts and runs.
ALL_RULES = ("tests/graph_passes", "tests/unit/exporting", "tests/e2e/test_export.py")
OLDEST = "1.17.3"


def prepare(session: nox.Session) -> tuple[Path, Path]:
    """A folder of the session's own, and the wheel to test."""
    folder = Path(session.create_tmp())
    if session.posargs:
        return folder, Path(session.posargs[0]).resolve()
    session.run("pip", "wheel", "-q", "--no-deps", "-w", str(folder), ".")
    return folder, next(folder.glob("*.whl"))


@nox.session(python="3.11")
def too_old(session: nox.Session) -> None:
    """An onnxruntime before 1.17, forced in against the wheel's requirement, is refused by name."""
    _, wheel = prepare(session)
    session.install("-q", str(wheel), "numpy<2")
    session.install("-q", "--no-deps", "onnxruntime==1.16.3")
    command = ("onnx-ternary", "optimize", "examples/digits_mlp.onnx", "out.onnx", "--dry-run")
    said = session.run(*command, success_codes=[1], silent=True)
    assert isinstance(said, str)
    assert "onnxruntime is 1.16.3, expected 1.17 or later" in said, said


@nox.session
@nox.parametrize(
    ("python", "onnxruntime", "numpy"),
    [
        ("3.11", OLDEST, "<2"),
        ("3.10", "1.20.1", "<2"),
        ("3.12", "1.23.2", ">=2"),
        ("3.11", "1.27.0", ">=2"),
        ("3.13", "", ">=2"),
    ],
    ids=["oldest", "1.20", "1.23", "1.27", "newest"],
)
def versions(session: nox.Session, onnxruntime: str, numpy: str) -> None:
    """Install the wheel beside one onnxruntime and numpy, away from the checkout, and test it."""
    folder, wheel = prepare(session)
    exact = f"onnxruntime=={onnxruntime}" if onnxruntime else "onnxruntime"
    session.install(
        "-q", str(wheel), "hypothesis", "pytest", "pytest-xdist", exact, f"numpy{numpy}"
    )
    for name in ("tests", "examples", "docs"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    alone = not session.posargs
    every_rule = onnxruntime == OLDEST or (alone and not onnxruntime)
    tests = TESTS + (ALL_RULES if every_rule else ())
    session.chdir(folder)
    session.run("python", "examples/optimize_and_run.py")
    session.run("python", "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", *tests)
