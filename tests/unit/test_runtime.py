from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnx_ternary import get_library_path, runtime
from onnx_ternary.errors import LibraryError
from tests.support.converted_models import Product, converted_model, random_weight


@pytest.fixture
def product() -> Product:
    return Product.make(random_weight(np.random.default_rng(0), 130, 37))


def run(session: ort.InferenceSession) -> np.ndarray:
    (y,) = session.run(None, {"X": np.eye(130, dtype=np.float32)[None]})
    return y[0]


def test_session_from_path_and_bytes_and_options(product: Product, tmp_path: Path) -> None:
    model = converted_model([product], with_body=False)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = ort.SessionOptions()
    for source in (path, str(path), model.SerializeToString()):
        for _ in range(2):
            session = runtime.InferenceSession(source, options, ["CPUExecutionProvider"])
            np.testing.assert_array_equal(run(session), product.weight.dense())
    np.testing.assert_array_equal(
        run(runtime.InferenceSession(path, disabled_optimizers=["MatMulAddFusion"])),
        product.weight.dense(),
    )


def test_register_twice_returns_same_options(product: Product) -> None:
    options = ort.SessionOptions()
    assert runtime.register(options) is options
    assert runtime.register(options) is options
    model = converted_model([product], with_body=False).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(run(session), product.weight.dense())


def test_each_options_object_is_registered(product: Product) -> None:
    model = converted_model([product], with_body=False).SerializeToString()
    for _ in range(20):  # a new object may take the address of one that is gone
        options = runtime.register(ort.SessionOptions())
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        del options


def test_registration_by_hand_too_says_so(product: Product) -> None:
    model = converted_model([product], with_body=False).SerializeToString()
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    with pytest.raises(LibraryError, match="registered twice"):
        runtime.InferenceSession(model, options)


def test_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.16.3")
    with pytest.raises(LibraryError, match=r"onnxruntime is 1\.16\.3, expected 1\.17 or later"):
        runtime.register(ort.SessionOptions())


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.so"
    monkeypatch.setenv("ONNX_TERNARY_LIBRARY", str(missing))
    with pytest.raises(LibraryError, match=r"nothing\.so"):
        runtime.register(ort.SessionOptions())


def test_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("ONNX_TERNARY_LIBRARY", str(broken))
    options = ort.SessionOptions()
    with pytest.raises(LibraryError, match=r"cannot load the onnx-ternary library .*broken\.so"):
        runtime.register(options)
    monkeypatch.undo()
    runtime.register(options)
    assert options in runtime._registered


def test_model_errors_pass_through() -> None:
    with pytest.raises(Exception, match=r"(?i)protobuf|parsing|invalid"):
        runtime.InferenceSession(b"not a model")
