"""Where the operator runs in sessions with several execution providers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.numpy_helper import to_array

import onnx_ternary
from onnx_ternary.native import kernels as native_kernels
from onnx_ternary.native import layer
from onnx_ternary.schema import OP_TYPE, OpAttributes

EXAMPLES = Path(__file__).parents[2] / "examples"
CPU = "CPUExecutionProvider"
# By rows, the best first.
BEST_FLOAT_ISAS = {
    1: ("avx512vnni", "avxvnni", "avx2", "neon_dotprod", "neon"),
    8: ("amx_int8", "avx512vbmi", "avx512vnni", "avx2", "neon_i8mm", "neon"),
}
IMAGES = np.load(EXAMPLES / "digits_mlp.npz")["image"][:8]


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


@pytest.mark.parametrize(
    ("library", "body", "environment", "uses_library"),
    [
        ("auto", True, {}, False),
        ("auto", False, {}, True),
        ("always", True, {}, True),
        ("auto", True, {"ONNX_TERNARY_ISA": "portable"}, True),
    ],
    ids=["auto", "no body", "always", "environment"],
)
def test_float_product_is_preferred_to_portable_kernels(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    library: Literal["auto", "always"],
    body: bool,
    environment: dict[str, str],
    uses_library: bool,
) -> None:
    """A processor without hand-written kernels is made by hiding them: this machine has some."""
    kernels = native_kernels.list_kernels()
    plain = [each for each in kernels["kernels"] if each["isa"] in ("scalar", "portable")]
    monkeypatch.setattr(
        "onnx_ternary.native.kernels.list_kernels", lambda: {**kernels, "kernels": plain}
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = onnx_ternary.OptimizeOptions(function_body=body)
    model = onnx_ternary.optimize(EXAMPLES / "digits_mlp.onnx", options).to_proto()
    session_options = ort.SessionOptions()
    session_options.enable_profiling = True
    session_options.profile_file_prefix = str(tmp_path / "profile")
    session = onnx_ternary.InferenceSession(
        model.SerializeToString(), session_options, library=library
    )
    assert (OP_TYPE in placement(session)) is uses_library


def test_hand_written_kernels_are_used(converted: bytes, tmp_path: Path) -> None:
    if all(each["isa"] in ("scalar", "portable") for each in supported_kernels()):
        pytest.skip("this processor has portable kernels only")
    session_options = ort.SessionOptions()
    session_options.enable_profiling = True
    session_options.profile_file_prefix = str(tmp_path / "profile")
    session = onnx_ternary.InferenceSession(converted, session_options)
    assert OP_TYPE in placement(session)


def supported_kernels() -> list[Any]:
    return [each for each in onnx_ternary.list_kernels()["kernels"] if each["supported"]]


@pytest.mark.parametrize("rows", [1, 8])
def test_products_of_digits_run_the_selected_kernels(converted: bytes, rows: int) -> None:
    """Those of the best instruction set that this processor has."""
    isas = {each["isa"] for each in supported_kernels()}
    if (core := native_kernels.list_kernels().get("core")) is not None:
        isas -= set(core["passed_over"])
    best = next((isa for isa in BEST_FLOAT_ISAS[rows] if isa in isas), None)
    if best is None:
        pytest.skip("this processor has none of the instruction sets")
    by_name = {each["name"]: each for each in native_kernels.list_kernels()["kernels"]}
    model = onnx.ModelProto.FromString(converted)
    constants = {each.name: to_array(each) for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == OP_TYPE]
    assert len(products) >= 2
    for node in products:
        values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        texts = {name: value.decode() for name, value in values.items() if type(value) is bytes}
        attributes = OpAttributes.read({**values, **texts}, node.name)
        x = np.random.default_rng(0).normal(size=(rows, attributes.K)).astype(np.float32)
        tensors = [constants[name] for name in node.input[1:]]
        _, used = layer.run(attributes, *tensors, x)
        assert {by_name[name]["isa"] for name in used.split(",")} == {best}
