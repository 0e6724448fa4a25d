"""Every kernel of the library, forced by name, against float64 within the bound it states."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError, LibraryError
from onnx_ternary.native import kernels
from tests.support.kernel_node import BUILT, BY_NAME, LIST, SUPPORTED, Node, check_int8, make_node

SUPPORTED_ISAS = {kernel["isa"] for kernel in SUPPORTED}
# avx512bw and avx512vbmi have no kernels of their own for few rows or int8, neon_i8mm none for one
# row.
VECTOR_ISAS = ("avx2", "avxvnni", "avx512vnni", "neon", "neon_dotprod")
LEFT_TO_OTHERS = [("avxvnni", 20)]  # batches, to avx2
each_kernel = pytest.mark.parametrize("name", [kernel["name"] for kernel in SUPPORTED])
each_packed_kernel = pytest.mark.parametrize(
    "name", [kernel["name"] for kernel in SUPPORTED if kernel["index_format"] == "packed"]
)
each_float_kernel = pytest.mark.parametrize(
    "name", [kernel["name"] for kernel in SUPPORTED if kernel["activation"] == "float"]
)
each_int8_kernel = pytest.mark.parametrize(
    "name", [kernel["name"] for kernel in SUPPORTED if kernel["activation"] == "int8"]
)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
# Around 1, the lanes, the blocks and the column tiles.
K_VALUES = (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 385, 1000)
N_VALUES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 33, 65)
ROWS = (1, 2, 3, 7, 8, 9, 16, 17, 64, 65)


@st.composite
def nodes(draw: st.DrawFn, index_format: str, activation: str) -> tuple[Node, NDArray[np.float32]]:
    """A node of any shape, storage, alphabet and scale, and activations for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    K = draw(st.sampled_from(K_VALUES))
    N = draw(st.sampled_from(N_VALUES))
    storages = {
        "packed": {
            "ternary": ("2bit", "dense"),
            "binary_pm": ("2bit", "1bit"),
            "binary_01": ("2bit", "1bit"),
        },
        "rsr": {
            "ternary": ("planes", "base3"),
            "binary_pm": ("planes",),
            "binary_01": ("planes",),
        },
    }[index_format]
    alphabet = draw(st.sampled_from(sorted(storages)))
    node = make_node(
        rng,
        index_format,
        activation,
        K,
        N,
        alphabet=alphabet,
        storage=draw(st.sampled_from(storages[alphabet])),
        block_size=draw(st.sampled_from((16, 32, 64, 128, 128, 128))),
        block_width=draw(st.integers(1, 6)),
        algorithm=draw(st.sampled_from(("rsr", "rsr++"))),
        scale_kind=draw(st.sampled_from(("tensor", "column", "group"))),
        num_group_blocks=draw(st.integers(1, 3)),
        with_bias=draw(st.booleans()),
        rule=draw(st.sampled_from(("absmax_division", "absmax_reciprocal"))),
    )
    rows = draw(st.sampled_from(ROWS))
    x = rng.normal(size=(rows, K)).astype(np.float32)
    x *= np.float32(draw(st.sampled_from((1.0, 1e-3, 1e-41, 1e30))))
    return node, x


def check(node: Node, x: NDArray[np.float32], y: NDArray[np.float32], kernel: str) -> None:
    if node.attributes.activation == "int8":
        check_int8(node, x, y)
        return
    exact = x.astype(np.float64) @ (node.levels * node.row_scales()) + node.bias
    assert np.all(np.abs(y - exact) <= node.bound(x, kernel))


def run_or_skip(node: Node, x: NDArray[np.float32], kernel: str, **options: int) -> Any:
    """A kernel that does not take the node refuses by name; anything else fails the test."""
    try:
        y, used = node.run(x, kernel, **options)
    except LibraryError as error:
        assert kernel in str(error)
        assume(False)
        raise
    assert used == kernel
    return y


def test_registry_names_are_unique_and_skipped_kernels_are_listed() -> None:
    assert len(BY_NAME) == len(BUILT)
    skipped = [kernel["name"] for kernel in BUILT if not kernel["supported"]]
    print("built but not supported here:", skipped or "none")
    assert {entry["kernel"] for entry in LIST["selection"]} <= set(BY_NAME)


@each_kernel
def test_kernel_any_node(name: str) -> None:
    kernel = BY_NAME[name]
    answered = 0

    @quick
    @given(nodes(kernel["index_format"], kernel["activation"]))
    def run(drawn: tuple[Node, NDArray[np.float32]]) -> None:
        nonlocal answered
        node, x = drawn
        check(node, x, run_or_skip(node, x, name), name)
        answered += 1

    run()
    assert answered >= 10


@each_kernel
def test_kernel_any_column_split_same_bits(name: str) -> None:
    kernel = BY_NAME[name]

    @quick
    @given(nodes(kernel["index_format"], kernel["activation"]), st.integers(2, 9))
    def run(drawn: tuple[Node, NDArray[np.float32]], num_parts: int) -> None:
        node, x = drawn
        whole = run_or_skip(node, x, name)
        parts = run_or_skip(node, x, name, num_parts=num_parts)
        np.testing.assert_array_equal(whole.view(np.uint32), parts.view(np.uint32))

    run()


@each_packed_kernel
@pytest.mark.parametrize(("rows", "scale_kind"), [(3, "group"), (65, "column")])
def test_kernel_wide_matrix_in_unequal_parts(name: str, rows: int, scale_kind: str) -> None:
    """The last part is narrower than the one scratch memory was asked for, yet one chunk."""
    rng = np.random.default_rng(rows)
    node = make_node(rng, "packed", BY_NAME[name]["activation"], 128, 8196, scale_kind=scale_kind)
    x = rng.normal(size=(rows, 128)).astype(np.float32)
    y, _ = node.run(x, name, num_parts=2)
    check(node, x, y, name)
    np.testing.assert_array_equal(y, node.run(x, name)[0])


@each_packed_kernel
@pytest.mark.parametrize(
    ("storage", "alphabet", "block_size"), [("2bit", "ternary", 128), ("1bit", "binary_pm", 32)]
)
def test_kernel_every_number_of_rows(
    name: str, storage: str, alphabet: str, block_size: int
) -> None:
    """Kernels have loops of their own for few rows, and share what is left over."""
    rng = np.random.default_rng(21)
    stored = {"storage": storage, "alphabet": alphabet, "block_size": block_size}
    node = make_node(rng, "packed", BY_NAME[name]["activation"], 655, 21, **stored)
    for rows in (*range(1, 13), 17, 33, 43, 64):
        x = rng.normal(size=(rows, 655)).astype(np.float32)
        check(node, x, node.run(x, name)[0], name)


@each_packed_kernel
@pytest.mark.parametrize("offset", [1, 3, 31])
def test_kernel_misaligned_codes(name: str, offset: int) -> None:
    rng = np.random.default_rng(offset)
    node = make_node(rng, "packed", BY_NAME[name]["activation"], 300, 21)
    memory = np.full(node.codes.nbytes + 64, 0xA5, np.uint8)
    memory[offset : offset + node.codes.nbytes] = node.codes.reshape(-1)
    moved = memory[offset : offset + node.codes.nbytes].reshape(node.codes.shape)
    shifted = Node(node.attributes, node.levels, moved, node.aux, node.scale, node.bias)
    x = rng.normal(size=(9, 300)).astype(np.float32)
    np.testing.assert_array_equal(shifted.run(x, name)[0], node.run(x, name)[0])


@each_packed_kernel
@pytest.mark.parametrize("scale_kind", ["column", "group"])
def test_kernel_code_three_is_memory_safe(name: str, scale_kind: str) -> None:
    """Any byte gives some number; columns without the bad code keep theirs."""
    rng = np.random.default_rng(3)
    node = make_node(rng, "packed", BY_NAME[name]["activation"], 257, 12, scale_kind=scale_kind)
    x = rng.normal(size=(9, 257)).astype(np.float32)
    expected, _ = node.run(x, name)
    codes = node.codes.copy()
    codes[1] = rng.integers(0, 256, codes[1].shape, np.uint8)
    codes[1, 0, 0] = 0xFF
    damaged = Node(node.attributes, node.levels, codes, node.aux, node.scale, node.bias)
    y, used = damaged.run(x, name)
    assert used == name
    np.testing.assert_array_equal(y[:, :4], expected[:, :4])
    np.testing.assert_array_equal(y[:, 8:], expected[:, 8:])


@each_int8_kernel
@pytest.mark.parametrize("level", [-1, 1])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("scale_kind", ["tensor", "group"])
def test_int8_kernel_largest_sums_exact(name: str, level: int, sign: int, scale_kind: str) -> None:
    """All weights alike, all activations at the end of the range, more of them than 2^16."""
    K = 65537
    rng = np.random.default_rng(0)
    levels = np.full((K, 5), level, np.int8)
    index_format = BY_NAME[name]["index_format"]
    node = make_node(
        rng, index_format, "int8", K, 5, scale_kind=scale_kind, with_bias=False, levels=levels
    )
    x = np.full((9, K), sign * 3.0, np.float32)
    y, used = node.run(x, name)
    assert used == name
    check_int8(node, x, y)


@each_packed_kernel
def test_kernel_sums_of_more_inputs_than_a_run(name: str) -> None:
    """More than NEON kernels add in one run, 2^20, and in one run an int32 of smmla would wrap."""
    K = 128 * 16600
    levels = np.ones((K, 4), np.int8)
    node = make_node(
        np.random.default_rng(0),
        "packed",
        BY_NAME[name]["activation"],
        K,
        4,
        scale_kind="tensor",
        with_bias=False,
        levels=levels,
    )
    x = np.full((2, K), 3.0, np.float32)
    x[1] = -x[1]
    x[:, -1] = 0
    y, used = node.run(x, name)
    assert used == name
    check(node, x, y, name)


@each_packed_kernel
def test_kernel_lowest_digits_do_not_overflow(name: str) -> None:
    """-128 in every int8 position: sums over eight blocks reach exactly -32768."""
    K = 128 * 19
    rng = np.random.default_rng(0)
    levels = np.ones((K, 4), np.int8)
    node = make_node(
        rng,
        "packed",
        BY_NAME[name]["activation"],
        K,
        4,
        scale_kind="tensor",
        with_bias=False,
        levels=levels,
    )
    # As fixed point with absmax 2^22: low and middle digit -128.
    x = np.full((8, K), -(128.0 + 128.0 * 256.0), np.float32)
    x[:, 0] = 2.0**22
    check(node, x, node.run(x, name)[0], name)


@each_int8_kernel
def test_int8_kernel_large_group_scales_do_not_overflow(name: str) -> None:
    """The integer sum times the scale leaves float32's range, the result does not."""
    rng = np.random.default_rng(9)
    levels = np.ones((256, 4), np.int8)
    node = make_node(
        rng, BY_NAME[name]["index_format"], "int8", 256, 4, scale_kind="group", levels=levels
    )
    node.scale[...] = 1e35
    node = replace(node, attributes=replace(node.attributes, activation_epsilon=1e-30))
    x = rng.uniform(0.5e-28, 1e-28, (2, 256)).astype(np.float32)
    if BY_NAME[name]["isa"] in ("avxvnni", "avx512vnni", "amx_int8"):
        # They add weighted integers in float32 and leave such layers to others.
        with pytest.raises(LibraryError, match=name):
            node.run(x, name)
        y, used = node.run(x, None)
        assert name not in used
        check(node, x, y, used)
        return
    check(node, x, node.run(x, name)[0], name)


def refuses_groups(node: Node, name: str) -> bool:
    """Whether the kernel leaves the node's groups to others.

    avx512vbmi and amx_int8 take those of whole spans of 128 inputs, neon_i8mm blocks of 32 inputs
    or more.
    """
    takes = {
        "avx512vbmi": node.attributes.group_size % 128 == 0,
        "amx_int8": node.attributes.group_size % 128 == 0,
        "neon_i8mm": node.attributes.block_size >= 32,
    }
    if takes.get(BY_NAME[name]["isa"], True):
        return False
    with pytest.raises(LibraryError, match=name):
        node.run(np.zeros((1, node.attributes.K), np.float32), name)
    return True


@each_packed_kernel
@pytest.mark.parametrize("block_size", [16, 128])
def test_kernel_largest_weighted_integers_do_not_overflow(name: str, block_size: int) -> None:
    """The largest scales that no kernel refuses, and the largest sums of the most inputs."""
    K = 65537
    levels = np.ones((K, 5), np.int8)
    node = make_node(
        np.random.default_rng(0),
        "packed",
        BY_NAME[name]["activation"],
        K,
        5,
        block_size=block_size,
        scale_kind="group",
        with_bias=False,
        levels=levels,
    )
    if refuses_groups(node, name):
        return
    node.scale[...] = 1.2e24
    x = np.full((2, K), 3.0, np.float32)
    x[1] = -x[1]
    y, used = node.run(x, name)
    assert used == name
    assert np.isfinite(y).all()
    check(node, x, y, name)


@each_packed_kernel
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("storage", "alphabet"), [("2bit", "ternary"), ("1bit", "binary_pm"), ("1bit", "binary_01")]
)
@pytest.mark.parametrize("num_group_blocks", [1, 2, 3])
def test_kernel_groups_of_any_size_and_magnitude(
    name: str, block_size: int, storage: str, alphabet: str, num_group_blocks: int
) -> None:
    rng = np.random.default_rng(block_size + num_group_blocks)
    node = make_node(
        rng,
        "packed",
        BY_NAME[name]["activation"],
        655,
        21,
        storage=storage,
        alphabet=alphabet,
        block_size=block_size,
        scale_kind="group",
        num_group_blocks=num_group_blocks,
    )
    if refuses_groups(node, name):
        return
    node.scale[...] = 10.0 ** rng.uniform(-9, 9, node.scale.shape)
    node.scale[rng.uniform(size=node.scale.shape) < 0.1] = 0
    for rows in (1, 2, 3, 4, 5, 8, 11):
        x = rng.normal(size=(rows, 655)).astype(np.float32)
        x[0, 100:400] = 0
        y, _ = node.run(x, name)
        check(node, x, y, name)
        np.testing.assert_array_equal(y, node.run(x, name, num_parts=5)[0])


@each_packed_kernel
@pytest.mark.parametrize("alphabet", ["binary_pm", "binary_01"])
@pytest.mark.parametrize("scale_kind", ["tensor", "group"])
def test_kernel_largest_sums_of_bits(name: str, alphabet: str, scale_kind: str) -> None:
    """Largest magnitudes everywhere, weights that agree with their signs, and that do not."""
    K = 128 * 3
    rng = np.random.default_rng(15)
    sign = np.resize([[1, 1, -1, 1, -1, -1, -1], [1] * 7, [-1] * 7], (3, K)).astype(np.int8)
    agreeing = sign[:, :, np.newaxis] * np.array([1, -1], np.int8)
    levels = np.concatenate([*agreeing, rng.choice([-1, 1], (K, 11)).astype(np.int8)], axis=1)
    if alphabet == "binary_01":
        levels = np.maximum(levels, np.int8(0))
    node = make_node(
        rng,
        "packed",
        BY_NAME[name]["activation"],
        K,
        17,
        storage="1bit",
        alphabet=alphabet,
        scale_kind=scale_kind,
        with_bias=False,
        levels=levels,
    )
    x = sign * np.float32(8355711.0)  # 127 in each digit of fixed point
    y, used = node.run(x, name)
    assert used == name
    check(node, x, y, name)


@each_float_kernel
def test_float_kernel_integers_are_exact(name: str) -> None:
    rng = np.random.default_rng(5)
    node = make_node(
        rng, BY_NAME[name]["index_format"], "float", 1000, 33, scale_kind="tensor", with_bias=False
    )
    node.scale[...] = 0.5
    x = rng.integers(-2000, 2001, (9, 1000)).astype(np.float32)
    y, _ = node.run(x, name)
    np.testing.assert_array_equal(y, (x @ node.levels.astype(np.float32)) * np.float32(0.5))


@pytest.mark.parametrize(
    "name",
    [
        kernel["name"]
        for kernel in SUPPORTED
        if kernel["index_format"] == "packed" and kernel["activation"] == "float"
    ],
)
@pytest.mark.parametrize(
    ("storage", "alphabet"), [("2bit", "ternary"), ("1bit", "binary_pm"), ("1bit", "binary_01")]
)
@pytest.mark.parametrize("block_size", [32, 128])
def test_every_input_meets_its_own_weight(
    name: str, storage: str, alphabet: str, block_size: int
) -> None:
    rng = np.random.default_rng(14)
    node = make_node(
        rng,
        "packed",
        "float",
        300,
        87,
        storage=storage,
        alphabet=alphabet,
        block_size=block_size,
        scale_kind="tensor",
        with_bias=False,
    )
    node.scale[...] = 0.5
    # Ones and powers of two: a sum over the wrong inputs differs.
    x = np.eye(300, dtype=np.float32)
    x += np.roll(4 * x, 1, axis=1) + np.roll(16 * x, 130, axis=1)
    y, _ = node.run(x, name)
    np.testing.assert_array_equal(y, (x @ node.levels.astype(np.float32)) * np.float32(0.5))


@pytest.mark.parametrize("index_format", ["packed", "rsr"])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_rows_with_nan_and_inf_follow_ieee(index_format: str, rows: int) -> None:
    rng = np.random.default_rng(6)
    node = make_node(rng, index_format, "float", 200, 21)
    x = rng.normal(size=(rows + 3, 200)).astype(np.float32)
    x[0, 5], x[1, 7], x[2, 0] = np.nan, np.inf, -np.inf
    y, used = node.run(x, None)
    assert any("reference" in name for name in used.split(","))
    weights = node.levels * node.row_scales()
    with np.errstate(invalid="ignore"):
        expected = (x.astype(np.float64)[:, :, None] * weights).sum(axis=1) + node.bias
    np.testing.assert_array_equal(np.isnan(y[:3]), np.isnan(expected[:3]))
    finite_or_inf = ~np.isnan(expected[:3])
    np.testing.assert_array_equal(
        y[:3][finite_or_inf], expected[:3][finite_or_inf].astype(np.float32)
    )
    np.testing.assert_allclose(y[3:], expected[3:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("index_format", ["packed", "rsr"])
def test_int8_rows_with_nan_and_inf_are_nan(index_format: str) -> None:
    rng = np.random.default_rng(7)
    node = make_node(rng, index_format, "int8", 200, 21)
    x = rng.normal(size=(5, 200)).astype(np.float32)
    x[0, 5], x[2, 7] = np.nan, -np.inf
    y, _ = node.run(x, None)
    assert np.isnan(y[[0, 2]]).all()
    rest = [1, 3, 4]
    check_int8(node, x[rest], y[rest])


@each_int8_kernel
def test_int8_kernel_nan_rows_are_nan(name: str) -> None:
    rng = np.random.default_rng(8)
    node = make_node(rng, BY_NAME[name]["index_format"], "int8", 150, 9, scale_kind="group")
    x = rng.normal(size=(9, 150)).astype(np.float32)
    x[4, 149] = np.inf
    y, _ = node.run(x, name)
    assert np.isnan(y[4]).all()
    rest = [row for row in range(9) if row != 4]
    check_int8(node, x[rest], y[rest])


def test_extreme_row_does_not_use_fixed_point() -> None:
    rng = np.random.default_rng(9)
    node = make_node(rng, "packed", "float", 1024, 16)
    x = np.zeros((1, 1024), np.float32)
    x[0, 0] = 1e20
    x[0, 1:] = rng.normal(size=1023)
    y, used = node.run(x, None)
    assert not any(BY_NAME[name]["fixed_point"] for name in used.split(","))
    exact = x.astype(np.float64) @ (node.levels * node.row_scales()) + node.bias
    assert np.all(np.abs(y - exact) <= node.bound(x, used))


@pytest.mark.parametrize("entry", LIST["selection"], ids=lambda entry: entry["kernel"])
def test_selection_forced_isa_uses_its_kernels(entry: Any) -> None:
    rng = np.random.default_rng(10)
    binary = entry["storage"] == "1bit"
    node = make_node(
        rng,
        entry["index_format"],
        entry["activation"],
        128,
        8,
        alphabet="binary_pm" if binary else "ternary",
        storage=entry["storage"],
        scale_kind=entry["scales"] or "column",
    )
    rows = entry["rows_min"]
    isa = BY_NAME[entry["kernel"]]["isa"]
    with kernels.forced(isa=isa):
        _, used = node.run(rng.normal(size=(rows, 128)).astype(np.float32), None)
    first = next(
        other["kernel"]
        for other in LIST["selection"]
        if other["index_format"] == entry["index_format"]
        and other["activation"] == entry["activation"]
        and BY_NAME[other["kernel"]]["isa"] == isa
        and other["storage"] in (None, entry["storage"])
        and other["scales"] in (None, entry["scales"])
        and other["rows_min"] <= rows
        and (other["rows_max"] is None or rows <= other["rows_max"])
    )
    assert used == first


@pytest.mark.skipif("avx2" not in SUPPORTED_ISAS, reason="needs AVX2")
@pytest.mark.parametrize(
    ("scale_kind", "rows", "kernel"),
    [
        ("column", 9, "packed_gemm_int8_8x4_avx2"),
        ("column", 10, "packed_gemm_int8_16x8_avx2"),
        ("group", 8, "packed_gemm_int8_8x4_avx2"),
        ("group", 9, "packed_gemm_int8_16x8_avx2"),
    ],
)
def test_scales_per_group_are_looked_up_from_fewer_rows_on(
    scale_kind: str, rows: int, kernel: str
) -> None:
    rng = np.random.default_rng(14)
    node = make_node(rng, "packed", "int8", 256, 8, scale_kind=scale_kind)
    with kernels.forced(isa="avx2"):
        _, used = node.run(rng.normal(size=(rows, 256)).astype(np.float32), None)
    assert used == kernel


@each_kernel
def test_forced_kernel_is_the_one_that_runs(name: str) -> None:
    rng = np.random.default_rng(11)
    kernel = BY_NAME[name]
    node = make_node(rng, kernel["index_format"], kernel["activation"], 128, 8)
    with kernels.forced(kernel=name):
        _, used = node.run(rng.normal(size=(5, 128)).astype(np.float32), None)
    assert used == name


def test_forced_kernel_of_another_format_refuses() -> None:
    rng = np.random.default_rng(12)
    node = make_node(rng, "rsr", "float", 20, 8)
    x = np.ones((1, 20), np.float32)
    with (
        kernels.forced(kernel="packed_gemm_float_portable"),
        pytest.raises((LibraryError, IndexFormatError), match="cannot serve this node"),
    ):
        node.run(x, None)


@pytest.mark.parametrize(
    ("isa", "rows"),
    [
        (isa, rows)
        for isa, rows in product(VECTOR_ISAS, (1, 20))
        if isa in SUPPORTED_ISAS and (isa, rows) not in LEFT_TO_OTHERS
    ],
)
@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize(
    ("storage", "alphabet"), [("2bit", "ternary"), ("1bit", "binary_pm"), ("1bit", "binary_01")]
)
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_vector_kernels_take_every_packed_layer(
    isa: str, activation: str, rows: int, storage: str, alphabet: str, block_size: int
) -> None:
    """No layer of the format falls to the portable kernels; scales a group of every block."""
    rng = np.random.default_rng(13)
    node = make_node(
        rng,
        "packed",
        activation,
        200,
        21,
        storage=storage,
        alphabet=alphabet,
        block_size=block_size,
        scale_kind="group",
    )
    x = rng.normal(size=(rows, 200)).astype(np.float32)
    with kernels.forced(isa="" if isa == "avx512vnni" else isa):
        y, used = node.run(x, None)
    for name in used.split(","):
        assert BY_NAME[name]["isa"] in (isa, "avx512bw", "avx512vbmi")
    check(node, x, y, used.split(",")[0])


@pytest.mark.parametrize(
    ("force", "message"),
    [
        (kernels.force_isa, "unknown instruction set 'nope'. Available: scalar, portable"),
        (kernels.force_kernel, "unknown kernel 'nope'. Available: packed_reference_float_scalar"),
    ],
)
def test_force_unknown_name(force: Any, message: str) -> None:
    with pytest.raises(LibraryError) as error:
        force("nope")
    assert message in str(error.value)


def test_check_rejects_a_wrong_answer() -> None:
    """The comparison itself can fail."""
    rng = np.random.default_rng(14)
    for activation, scale_kind in product(("float", "int8"), ("column", "group")):
        node = make_node(rng, "packed", activation, 129, 9, scale_kind=scale_kind)
        x = rng.normal(size=(3, 129)).astype(np.float32)
        name = f"packed_gemm_{activation}_portable"
        y = node.run(x, name)[0].copy()
        check(node, x, y, name)
        y[2, 8] += np.float32(1e-3)
        with pytest.raises(AssertionError):
            check(node, x, y, name)
