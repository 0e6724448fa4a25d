"""Where the operator runs in sessions with several execution providers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import onnx_ternary
from onnx_ternary.schema import OP_TYPE

EXAMPLES = Path(__file__).parents[2] / "examples"
CPU = "CPUExecutionProvider"
IMAGES = np.load(EXAMPLES / "digits_mlp.npz")["images"][:8]


@pytest.fixture(scope="module")
def converted() -> bytes:
    result = onnx_ternary.optimize(EXAMPLES / "digits_mlp.onnx")
    return result.to_proto().SerializeToString()


def placement(session: ort.InferenceSession) -> dict[str, set[str]]:
    """Providers by operator, from the profile of a run."""
    session.run(None, {"image": IMAGES})
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text())
    profile.unlink()
    found: dict[str, set[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            found.setdefault(event["args"]["op_name"], set()).add(event["args"]["provider"])
    return found


@pytest.mark.parametrize(
    "providers", [None, [CPU], ort.get_available_providers(), ["CUDAExecutionProvider", CPU]]
)
def test_op_runs_on_the_cpu_provider(
    converted: bytes, providers: list[str] | None, tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    with warnings.catch_warnings():
        # onnxruntime says which of the providers are not there.
        warnings.filterwarnings("ignore", message="Specified provider")
        session = onnx_ternary.InferenceSession(converted, options, providers)
    assert placement(session)[OP_TYPE] == {CPU}


def test_missing_provider_changes_no_bit(converted: bytes) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        session = onnx_ternary.InferenceSession(converted, providers=["CUDAExecutionProvider", CPU])
    assert session.get_providers() == [CPU]
    (y,) = session.run(None, {"image": IMAGES})
    (expected,) = onnx_ternary.InferenceSession(converted).run(None, {"image": IMAGES})
    np.testing.assert_array_equal(y, expected)
