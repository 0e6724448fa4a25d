"""Conv is rewritten on request, for the size of the file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from onnx_ternary.cli import main
from tests.catalogue.case import ternary
from tests.catalogue.conv import conv


@pytest.mark.parametrize("asked", [False, True])
def test_option_of_the_command_line(asked: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv(channels=256, given=ternary(256, 256)), path)
    arguments = ["inspect", str(path), "--json", *(["--conv"] if asked else [])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert len(report["rewrites"]) == asked
    if asked:
        (row,) = report["rewrites"]
        assert row["bytes_before"] == 256 * 256 * 4
        assert row["bytes_after"] == 256 * 256 // 4 + 4 + 4
    else:
        assert "--conv" in report["rejections"][0]["reason"]
