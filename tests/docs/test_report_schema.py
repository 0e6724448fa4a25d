"""docs/report.schema.json describes every report the command writes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.command_line import DIGITS, one_model_at_a_time, run

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/report.schema.json").read_text(encoding="utf-8")
)


def closed(schema: Any) -> Any:
    """The schema where no object may have a key that is not described."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found["additionalProperties"] = False
    return found


VALIDATOR = jsonschema.Draft202012Validator(closed(SCHEMA))
CASES: dict[str, tuple[int, Callable[[Path], tuple[object, ...]]]] = {
    "converted": (0, lambda folder: (DIGITS, folder / "out.onnx")),
    "quantized too": (0, lambda folder: (DIGITS, folder / "o.onnx", "--remaining", "int8")),
    "rsr": (0, lambda folder: (DIGITS, folder / "o.onnx", "--format", "rsr")),
    "dry run": (0, lambda _: (DIGITS, "--dry-run", "--no-verify")),
    "nothing to rewrite": (0, lambda folder: (DIGITS, folder / "o.onnx", "--exclude", "*")),
    "requirement not met": (4, lambda folder: (DIGITS, folder / "o", "--max-size-ratio", "0.01")),
    "not a model": (1, lambda folder: (folder / "missing.onnx", folder / "o.onnx")),
    "many": (4, lambda _: (DIGITS, DIGITS.parent / "text", "--check")),
}


@pytest.fixture(scope="module", params=CASES)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("report")
    code, arguments = CASES[request.param]
    path = folder / "report.json"
    with pytest.MonkeyPatch.context() as patch:
        one_model_at_a_time(patch)
        run("optimize", *arguments(folder), "--report", path, check=code)
    return json.loads(path.read_text(encoding="utf-8"))


def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_report_is_what_the_schema_says(report: Any) -> None:
    VALIDATOR.validate(report)


def test_report_without_a_key_is_not(report: Any) -> None:
    for name in report:
        broken = {key: value for key, value in report.items() if key != name}
        assert not VALIDATOR.is_valid(broken), name


def test_report_says_what_it_was_made_with(report: Any) -> None:
    for model in report.get("models", [report]):
        if "versions" in model:
            assert {"onnx-ternary", "onnxruntime", "numpy"} <= model["versions"].keys()
            assert all(model["machine"][name] for name in ("cpu", "system"))
