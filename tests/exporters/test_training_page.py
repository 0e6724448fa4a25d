"""The programs of docs/training.md run, and what they write converts.

Each needs packages of its own and is left out where one is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnx_ternary

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, str] = dict(
    re.findall(r"<!-- program: ([\w-]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
)
# What each program needs, and how many products of how many are rewritten.
NEEDS = {
    "pytorch": (("torch", "onnxscript"), (2, 3)),
    "brevitas": (("torch", "brevitas", "onnxoptimizer"), (2, 3)),
    "larq": (("larq", "tf2onnx", "tensorflow", "tf_keras"), (2, 3)),
    "scikit-learn": (("sklearn", "skl2onnx"), (1, 1)),
}


def test_every_program_of_the_page_is_tried() -> None:
    assert set(PROGRAMS) == set(NEEDS)
    assert PAGE.count("```python") == len(PROGRAMS)


@pytest.mark.parametrize("name", NEEDS)
def test_program_writes_a_model_that_converts(name: str, tmp_path: Path) -> None:
    packages, (rewritten, products) = NEEDS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[name]],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    conversion = onnx_ternary.convert(
        tmp_path / "model.onnx", tmp_path / "small.onnx", verify_result=True
    )
    report, verification = conversion.report, conversion.verification
    found = (len(report.rewrites), len(report.rewrites) + len(report.rejections))
    assert found == (rewritten, products), report.rejections
    assert verification is not None
    assert verification.passed, verification.summary()
    assert verification.num_unjudged == 0
