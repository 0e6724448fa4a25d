"""Random damage to nodes, past every Python check: refused with a documented error, or harmless.

Straight into the library, without ONNX Runtime, so every damaged tensor ends where its memory ends:
under -DONNX_TERNARY_SANITIZE=ON a read or write beyond it is a finding.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.native import binding, kernels, layer
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import Node, attribute_variants, int8, make_node, uint8

Outcome = Literal["ran", "refused"]
FLOAT_VARIANTS = attribute_variants(100, 13)
VARIANTS = [
    *FLOAT_VARIANTS,
    *map(int8, FLOAT_VARIANTS),
    *(uint8(each) for each in FLOAT_VARIANTS if not each.group_size),
]
TENSORS = ("codes", "aux", "scale", "bias")
KERNELS = [kernel["name"] for kernel in kernels.list_kernels()["kernels"] if kernel["supported"]]

INTEGERS = (
    0,
    1,
    2,
    3,
    16,
    32,
    99,
    100,
    101,
    127,
    128,
    -1,
    2**16,
    2**24,
    2**31,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1e-45, 1e-31, 1e-30, 1e29, 1e38, -1.0, np.inf, np.nan)
FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("K", "N", "block_size", "block_width", "group_size"), INTEGERS),
    **dict.fromkeys(("activation_qmin", "activation_qmax", "format_version"), INTEGERS),
    "activation_epsilon": FLOATS,
    "index_format": (b"packed", b"rsr", b"", None),
    "storage": (b"2bit", b"dense", b"1bit", b"planes", b"base3", b"x" * 500, None),
    "alphabet": (b"ternary", b"binary_pm", b"binary_01", None),
    "algorithm": (b"auto", b"rsr", b"rsr++", None),
    "activation": (b"float", b"int8", b"uint8", None),
    "activation_rule": (
        b"none",
        b"absmax_division",
        b"absmax_reciprocal",
        b"dynamic_quantize_linear",
        None,
    ),
    "codes_element_bytes": (1, 2, 4),
}


def damaged(tensor: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Other values, another shape, or the same at an odd address; ends where its memory ends."""
    if tensor.size == 0:
        return tensor
    kind = rng.integers(5)
    if kind == 0:
        raw = np.frombuffer(tensor.tobytes(), np.uint8).copy()
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(raw.size)] = rng.integers(256)
        return raw.view(tensor.dtype).reshape(tensor.shape)
    if kind == 1:
        return rng.permutation(tensor.reshape(-1)).reshape(tensor.shape)
    if kind == 2:
        return tensor[None] if rng.integers(2) or tensor.ndim == 0 else np.array(tensor[0])
    if kind == 3 and tensor.ndim > 0:
        axis = int(rng.integers(tensor.ndim))
        kept = tensor.take(range(int(rng.integers(tensor.shape[axis]))), axis)
        return np.ascontiguousarray(kept)
    memory = np.zeros(tensor.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ndarray(tensor.shape, tensor.dtype, memory.data, offset=1)


def call(node: binding.Node, function: str, *arguments: object) -> str:
    """The error's text, or nothing."""
    error = ctypes.create_string_buffer(4096)
    status = getattr(binding.library(), function)(ctypes.byref(node), *arguments, error, len(error))
    text = error.value.decode()
    assert (status == 0) == (text == "")
    if status == 1:
        assert text.startswith("TernaryIndexedMatMul: ")
        assert ", expected " in text
    if status == 2:
        assert "cannot serve this node" in text
    assert status in (0, 1, 2)
    return text


@functools.cache
def good_node(attributes: OpAttributes, per_column: bool) -> Node:
    return make_node(np.random.default_rng(0), attributes, per_column=per_column)


def hostile_nodes(
    attributes: OpAttributes, rng: np.random.Generator
) -> Iterator[tuple[binding.Node, list[NDArray[Any]]]]:
    """Nodes with up to three things wrong, and the tensors they point at."""
    good = good_node(attributes, bool(rng.integers(2)))
    while True:
        tensors = list(good.tensors)
        with layer._node(attributes, *tensors) as node:
            for _ in range(rng.integers(1, 4)):
                if rng.integers(2):
                    name = str(rng.choice(list(FIELDS)))
                    value = FIELDS[name][rng.integers(len(FIELDS[name]))]
                    # A number of bytes the tensor does not have is the caller's error.
                    if name != "codes_element_bytes" or value <= good.codes.itemsize:
                        setattr(node, name, value)
                    continue
                at = int(rng.integers(4))
                tensors[at] = damaged(tensors[at], rng)
                name, tensor = TENSORS[at], tensors[at]
                setattr(node, name, tensor.ctypes.data)
                setattr(node, f"{name}_shape", layer._shape(tensor))
                setattr(node, f"{name}_rank", tensor.ndim)
                if at == 0:
                    node.codes_element_bytes = tensor.itemsize
            yield node, tensors


def try_node(node: binding.Node, _tensors: list[NDArray[Any]], rng: np.random.Generator) -> Outcome:
    """Validate and run one node.

    Args:
        node: possibly damaged.
        _tensors: what it points at, kept alive by being an argument.
        rng: chooses rows, values, kernel and parts.

    Raises:
        AssertionError: for an error that is not documented.
    """
    text = call(node, "otn_validate")
    if text:
        # Nothing is read from X or written to Y.
        assert call(node, "otn_run", None, None, 1, 1, None, None, 0) == text
        return "refused"
    rows = int(rng.choice([0, 1, 3, 9]))
    x = rng.normal(size=(rows, node.K)).astype(np.float32)
    x *= np.float32(rng.choice([1.0, 1e-42, 1e36]))
    if rows and rng.integers(3) == 0:
        x[0, rng.integers(node.K)] = rng.choice([np.nan, np.inf, -np.inf])
    y = np.empty((rows, node.N), np.float32)
    used = ctypes.create_string_buffer(400)
    kernel = str(rng.choice(KERNELS)).encode() if rng.integers(2) else None
    parts = int(rng.choice([1, 2, 7, 2**63 - 1]))
    arguments = (x.ctypes.data, rows, parts, y.ctypes.data, used, len(used))
    text = call(node, "otn_run", kernel, *arguments)
    assert text == "" or kernel is not None
    return "ran"
