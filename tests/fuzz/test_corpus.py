"""Hostile models of every kind, each with what the user is told; they are opened by ONNX Runtime.

A finding of a fuzz target becomes a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import onnx_ternary
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import Node, make_model, make_node

K, N = 100, 13
PACKED = OpAttributes(K=K, N=N)
RSR = OpAttributes(
    K=K, N=N, index_format="rsr", storage="planes", block_size=0, block_width=3, algorithm="rsr++"
)

Change = Callable[[Any], Any]


def good(attributes: OpAttributes = PACKED, *, per_column: bool = True) -> Node:
    return make_node(np.random.default_rng(0), attributes, per_column=per_column)


def model_with(attributes: OpAttributes, **changes: Change) -> onnx.ModelProto:
    """The model of a good node with some tensors changed."""
    node = good(attributes)
    return make_model(
        replace(node, **{name: change(getattr(node, name)) for name, change in changes.items()})
    )


def put(place: Any, value: float) -> Change:
    """The same tensor with one entry changed."""

    def change(tensor: Any) -> Any:
        changed = tensor.copy()
        changed[place] = value
        return changed

    return change


def lying(**attributes: Any) -> onnx.ModelProto:
    return make_model(good(), attributes=attributes)


def untrue_shape(name: str, dims: list[int]) -> onnx.ModelProto:
    """The tensor's shape says something else than its bytes."""
    model = make_model(good())
    tensor = next(each for each in model.graph.initializer if each.name == name)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    return model


def other_type(name: str, data_type: int) -> onnx.ModelProto:
    model = make_model(good())
    tensor = next(each for each in model.graph.initializer if each.name == name)
    tensor.data_type = data_type
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "codes_truncated": (lambda: model_with(PACKED, codes=lambda c: c[:-1]), "codes shape"),
    "codes_overlong": (
        lambda: model_with(PACKED, codes=lambda c: np.concatenate([c, c])),
        "codes shape",
    ),
    "codes_flat": (lambda: model_with(PACKED, codes=lambda c: c.reshape(-1)), "codes"),
    "codes_empty": (lambda: model_with(PACKED, codes=lambda c: c[:0]), "codes shape"),
    "codes_of_16_bits": (
        lambda: model_with(PACKED, codes=lambda c: c.astype(np.uint16)),
        "codes",
    ),
    "codes_untrue_shape": (lambda: untrue_shape("codes", [4, 1, 4, 33]), ""),
    "codes_overflowing_shape": (lambda: untrue_shape("codes", [2**31, 2**31, 4, 32]), ""),
    "codes_negative_shape": (lambda: untrue_shape("codes", [4, -1, 4, 32]), ""),
    "codes_int8": (lambda: other_type("codes", TensorProto.INT8), ""),
    "codes_float": (lambda: other_type("codes", TensorProto.FLOAT), ""),
    "aux_missing_entry": (lambda: model_with(PACKED, aux=lambda a: a[:0]), "aux"),
    "permutation_out_of_range": (
        lambda: model_with(RSR, codes=put((0, 0, 5), 100)),
        r"permutation\[0, 0, 5\] = 100",
    ),
    "permutation_far_out_of_range": (
        lambda: model_with(RSR, codes=put((1, 4, 99), 65535)),
        r"permutation\[1, 4, 99\] = 65535",
    ),
    "permutation_repeats_a_row": (
        lambda: model_with(RSR, codes=lambda c: np.repeat(c[:, :, :1], K, axis=2)),
        r"permutation\[0, 0, 1\]",
    ),
    "permutation_of_bytes": (lambda: model_with(RSR, codes=lambda c: c.astype(np.uint8)), "codes"),
    "permutation_short": (lambda: model_with(RSR, codes=lambda c: c[:, :, :-1]), "codes shape"),
    "offsets_decrease": (lambda: model_with(RSR, aux=put((0, 0, 0, 4), 0)), "segment_offsets"),
    "offsets_out_of_range": (
        lambda: model_with(RSR, aux=put((0, 1, 0, 8), 101)),
        "segment_offsets",
    ),
    "offsets_huge": (lambda: model_with(RSR, aux=put((0, 1, 0, 3), 2**32 - 1)), "segment_offsets"),
    "offsets_start_late": (lambda: model_with(RSR, aux=put((0, 0, 0, 0), 1)), "segment_offsets"),
    "offsets_end_early": (lambda: model_with(RSR, aux=put((0, 0, 0, 8), 99)), "segment_offsets"),
    "offsets_short": (lambda: model_with(RSR, aux=lambda a: a[..., :-1]), "aux shape"),
    "scale_nan": (lambda: model_with(PACKED, scale=put(3, np.nan)), r"scale\[3\] = nan"),
    "scale_infinite": (lambda: model_with(PACKED, scale=put(0, np.inf)), r"scale\[0\] = inf"),
    "scale_negative": (lambda: model_with(PACKED, scale=put(1, -1.0)), r"scale\[1\] = -1"),
    "scale_short": (lambda: model_with(PACKED, scale=lambda s: s[:-1]), "scale shape"),
    "scale_of_groups_without_groups": (
        lambda: model_with(PACKED, scale=lambda s: s[None]),
        "scale shape",
    ),
    "bias_short": (lambda: model_with(PACKED, bias=lambda b: b[:-1]), "bias shape"),
    "bias_overlong": (
        lambda: model_with(PACKED, bias=lambda b: np.concatenate([b, b])),
        "bias shape",
    ),
    "K_beyond_the_block": (lambda: lying(K=129), "codes shape"),
    "K_zero": (lambda: lying(K=0), "attribute K = 0"),
    "K_negative": (lambda: lying(K=-1), "attribute K = -1"),
    "K_beyond_the_limit": (lambda: lying(K=2**24), "attribute K = 16777216"),
    "K_overflows": (lambda: lying(K=2**63 - 1), "attribute K = 9223372036854775807"),
    "N_too_large": (lambda: lying(N=1000), "shape"),
    "N_overflows": (lambda: lying(N=2**62), "attribute N = 4611686018427387904"),
    "K_times_N_overflows": (lambda: lying(K=2**24 - 1, N=2**31 - 1), "shape"),
    "block_size_unknown": (lambda: lying(block_size=48), "attribute block_size = 48"),
    "group_size_negative": (lambda: lying(group_size=-128), "attribute group_size = -128"),
    "group_size_overflows": (lambda: lying(group_size=2**63 - 128), "attribute group_size"),
    "format_version_unknown": (lambda: lying(format_version=2), "attribute format_version = 2"),
    "storage_unknown": (lambda: lying(storage="3bit"), "attribute storage = '3bit'"),
    "format_of_another_index": (lambda: lying(index_format="rsr"), "attribute storage"),
    "block_width_overflows": (
        lambda: make_model(good(RSR), attributes={"block_width": 63}),
        "attribute block_width = 63",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_model_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(Exception, match=message or None) as caught:
        open_session(make().SerializeToString())
    assert type(caught.value).__module__.startswith("onnxruntime"), caught.value
    if message:
        assert "TernaryIndexedMatMul '/mlp/up_proj': " in str(caught.value)
        assert "expected" in str(caught.value)


def test_unused_code_gives_some_number() -> None:
    model = model_with(PACKED, codes=lambda c: np.full_like(c, 0xFF))
    x = np.ones((9, K), np.float32)
    session = open_session(model.SerializeToString())
    for rows in (1, 9):
        assert session.run(None, {"X": x[:rows]})[0].shape == (rows, N)


def save_external(path: Path) -> onnx.ModelProto:
    onnx.save(
        make_model(good()),
        path,
        save_as_external_data=True,
        location="data",
        size_threshold=0,
    )
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_external_data_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    save_external(path)
    data = tmp_path / "data"
    data.write_bytes(data.read_bytes()[:keep])
    with pytest.raises(Exception, match="out of bounds") as caught:
        open_session(path)
    assert type(caught.value).__module__.startswith("onnxruntime"), caught.value


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_misaligned_external_data_gives_the_same_answer(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "model.onnx"
    model = save_external(path)
    data = tmp_path / "data"
    data.write_bytes(bytes(shift) + data.read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + shift)
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(1).standard_normal((9, K)).astype(np.float32)
    inline = make_model(good())
    expected = open_session(inline.SerializeToString()).run(None, {"X": x})[0]
    np.testing.assert_array_equal(open_session(path).run(None, {"X": x})[0], expected)


def open_session(model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return onnx_ternary.InferenceSession(model, options)
