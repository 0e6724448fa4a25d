"""Where the build takes ONNX Runtime's headers from, and what it says where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FINDER = Path(__file__).parents[2] / "cmake" / "OrtHeaders.cmake"
# Nothing listens there, so connections are refused at once.
NO_NETWORK = {
    "PIP_NO_INDEX": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}
PROJECT = f"""
cmake_minimum_required(VERSION 3.20)
project(headers LANGUAGES NONE)
set(Python_EXECUTABLE "{Path(sys.executable).as_posix()}")
include("{FINDER.as_posix()}")
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(not FINDER.exists(), reason="needs the sources"),
]


def configure(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "CMakeLists.txt").write_text(PROJECT)
    environment = {**os.environ, **NO_NETWORK, **variables}
    command = ["cmake", "-S", str(folder), "-B", str(folder / "build")]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.strip() for line in done.stderr.splitlines()]


def test_without_network_one_line_says_what_to_set(tmp_path: Path) -> None:
    done = configure(tmp_path, ONNXRUNTIME_INCLUDE_DIR="")
    assert done.returncode
    assert (
        "The ONNX Runtime headers could not be downloaded; set ONNXRUNTIME_INCLUDE_DIR, as a CMake "
        "define or in the environment, to the folder that holds onnxruntime_cxx_api.h."
    ) in lines(done)


def test_a_folder_without_headers_is_named(tmp_path: Path) -> None:
    done = configure(tmp_path, ONNXRUNTIME_INCLUDE_DIR=str(tmp_path))
    assert done.returncode
    assert (
        f"There is no onnxruntime_cxx_api.h in ONNXRUNTIME_INCLUDE_DIR={tmp_path}; set "
        "ONNXRUNTIME_INCLUDE_DIR to the folder that holds it."
    ) in lines(done)


def test_a_folder_with_headers_is_taken(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_cxx_api.h").touch()
    done = configure(tmp_path, ONNXRUNTIME_INCLUDE_DIR=str(tmp_path))
    assert not done.returncode, done.stderr
    assert f"ONNX Runtime headers: {tmp_path}" in done.stdout


def test_other_headers_than_expected_are_refused(tmp_path: Path) -> None:
    """As from an archive that somebody changed."""
    include = tmp_path / "build" / "ort-headers" / "onnxruntime-linux-x64-1.17.0" / "include"
    include.mkdir(parents=True)
    for name in ("onnxruntime_c_api.h", "onnxruntime_cxx_api.h"):
        (include / name).write_text("#define EVIL")
    done = configure(tmp_path, ONNXRUNTIME_INCLUDE_DIR="")
    assert done.returncode
    assert "sha256 of onnxruntime_c_api.h is" in done.stderr
    assert not include.exists()
