"""Paths that lead to no model: every command ends at once, in one clear line."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from onnx_ternary.cli import main
from tests.support.command_line import DIGITS

ODD = (
    "loop.onnx",
    "circle.onnx",
    "pipe.onnx",
    "/dev/zero",
    "/proc/self/mem",
    "folder.onnx",
    "dangling.onnx",
    f"{'x' * 300}.onnx",
    f"{'x/' * 3000}a.onnx",
    "m.onnx/x.onnx",
)
NOT_UTF8 = os.fsdecode(b"\xff\xfe.onnx")
COMMANDS = (
    ("inspect", "ODD"),
    ("inspect", "--deep", "ODD"),
    ("optimize", "ODD", "out.onnx", "--no-verify"),
    ("optimize", "ODD", "--check", "--jobs=1"),
    ("optimize", "m.onnx", "ODD", "--no-verify", "--jobs=1"),
    ("optimize", "m.onnx", "out.onnx", "--inputs", "ODD"),
    ("verify", "m.onnx", "ODD"),
    ("verify", "ODD", "m.onnx"),
    ("verify", "m.onnx", "m.onnx", "--inputs", "ODD"),
    ("verify", "m.onnx", "m.onnx", "--library", "ODD"),
    ("export", "ODD", "out.onnx", "--to=float"),
    ("export", "m.onnx", "ODD", "--to=float"),
    ("bench", "ODD"),
    ("bench", "m.onnx", "ODD"),
    ("build", "ODD", "out"),
)
WRITTEN_TO = ("dangling.onnx", "folder.onnx")


class Hangs(BaseException):
    """Nothing that looks for errors catches it."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(DIGITS, "m.onnx")
    Path("loop.onnx").symlink_to("loop.onnx")
    Path("circle.onnx").symlink_to("circle_2.onnx")
    Path("circle_2.onnx").symlink_to("circle.onnx")
    Path("dangling.onnx").symlink_to("nowhere/x.onnx")
    Path("folder.onnx").mkdir()
    os.mkfifo("pipe.onnx")

    def hangs(number: int, frame: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("path", ODD, ids=lambda path: path[:20])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:40])
def test_every_command_ends_in_one_line(
    path: str, command: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {each.name for each in folder.iterdir()}
    code = run(*(path if each == "ODD" else each for each in command))
    errors = capfd.readouterr().err.splitlines()
    if path == "folder.onnx" and command[:2] == ("optimize", "m.onnx") and "ODD" in command[2]:
        assert code == 0  # a folder takes the results
        return
    assert code in (1, 2)
    assert errors[-1].startswith("Error: ")
    assert len(errors) <= (4 if code == 2 else 1), errors  # usage has its lines
    assert {each.name for each in folder.iterdir()} == before
    assert Path("m.onnx").read_bytes() == DIGITS.read_bytes()


def test_name_that_is_not_utf8_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile("m.onnx", NOT_UTF8)
    assert run("inspect", NOT_UTF8) == 0
    assert run("optimize", NOT_UTF8, "out.onnx", "--no-verify") == 0
    assert Path("out.onnx").is_file()
    capfd.readouterr()
    assert run("optimize", "m.onnx", NOT_UTF8, "--no-verify") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "whose name is not UTF-8; give another name" in line


@pytest.mark.parametrize("option", ["--report", "--summary", "--annotations"])
@pytest.mark.parametrize(
    "path", ["loop.onnx", "folder.onnx", f"{'x' * 300}"], ids=lambda path: path[:9]
)
def test_report_that_cannot_be_written(
    path: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("optimize", "m.onnx", "out.onnx", "--no-verify", option, path) in (1, 2)
    assert capfd.readouterr().err.splitlines()[-1].startswith("Error: ")
    assert not Path("out.onnx").exists()
