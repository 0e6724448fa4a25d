"""The models of benchmarks/make_bitnet.py: every form of one seed is the same decoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary.model_files import tensors
from onnx_ternary.model_files.load import load
from onnx_ternary.op.nodes import index_tensors, op_nodes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import make_bitnet

# Grouped-query attention with rotary embedding came to the CPU provider later than the op needs.
pytestmark = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 20), reason="needs onnxruntime 1.20"
)

SHAPE = make_bitnet.PRESETS["tiny"]
FORMS: tuple[make_bitnet.Form, ...] = ("float32", "float16", "matmulnbits", "bitlinear")
PROMPT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitnet")
    for form in FORMS:
        make_bitnet.write_model(folder / f"{form}.onnx", SHAPE, form)
        onnx_ternary.optimize(folder / f"{form}.onnx").save(folder / f"{form}.ternary.onnx")
    return folder


def logits(path: Path, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    (output,) = onnx_ternary.InferenceSession(path).run(["logits"], feeds)
    return np.asarray(output, np.float32)


def relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_levels(folder: Path, form: str) -> None:
    expected = list(op_nodes(load(folder / "float32.ternary.onnx").model))
    found = list(op_nodes(load(folder / f"{form}.ternary.onnx").model))
    assert len(found) == len(expected) == 7 * SHAPE.layers
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.name == theirs.name
        np.testing.assert_array_equal(index_tensors(ours)[0], index_tensors(theirs)[0])


# Within float32 rounding where nothing else is rounded.
@pytest.mark.parametrize(
    ("form", "limit"),
    [("float32", 1e-5), ("matmulnbits", 1e-5), ("float16", 1e-2), ("bitlinear", 5e-2)],
)
def test_converted_forms_answer_alike(folder: Path, form: make_bitnet.Form, limit: float) -> None:
    expected = logits(folder / "float32.onnx", make_bitnet.feeds(SHAPE, PROMPT, 3))
    found = logits(folder / f"{form}.ternary.onnx", make_bitnet.feeds(SHAPE, PROMPT, 3, form))
    assert relative_difference(found, expected) <= limit


def test_bitlinear_form_rounds_activations(folder: Path) -> None:
    feeds = make_bitnet.feeds(SHAPE, PROMPT, 3)
    plain = logits(folder / "float32.onnx", feeds)
    rounded = logits(folder / "bitlinear.onnx", feeds)
    assert relative_difference(rounded, plain) > 1e-4


def test_decoding_with_the_cache_is_the_prompt_at_once(folder: Path) -> None:
    session = onnx_ternary.InferenceSession(folder / "float32.ternary.onnx")
    feeds = make_bitnet.feeds(SHAPE, PROMPT, 0)
    expected = session.run(["logits"], feeds)[0][:, -1]
    head = {**feeds, "input_ids": feeds["input_ids"][:, :-1]}
    head["attention_mask"] = feeds["attention_mask"][:, :-1]
    cache = session.run(None, head)[1:]
    tail = {**feeds, "input_ids": feeds["input_ids"][:, -1:]}
    names = [name for name in feeds if name.startswith("past")]
    tail |= dict(zip(names, cache, strict=True))
    found = session.run(["logits"], tail)[0][:, -1]
    assert relative_difference(found, expected) <= 1e-5


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc")
def test_a_session_maps_the_codes(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = onnx_ternary.OptimizeOptions(external_data="always")
    onnx_ternary.optimize(folder / "float32.onnx", options).save(path)
    session = onnx_ternary.InferenceSession(path)
    session.run(["logits"], make_bitnet.feeds(SHAPE, 1, 3))
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {int(line.split()[2], 16) for line in maps if line.endswith("model.onnx.data")}
    codes = [
        each
        for each in tensors.external_tensors(load(path).model)
        if str(each.name).endswith(".codes")
    ]
    assert len(codes) == 7 * SHAPE.layers
    assert {each.offset for each in codes} <= mapped
