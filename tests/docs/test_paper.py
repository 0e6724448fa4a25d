"""What arXiv 2411.06360 claims, shown on the reference implementation and the kernels.

Operations are counted, not derived: the numbers that go through the reference count their own
additions and multiplications.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.conversion.convert import convert
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import LibraryError
from onnx_ternary.index import Index, build_index, rsr
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import kernels as native_kernels
from onnx_ternary.native import layer as native_layer
from onnx_ternary.op import reference
from onnx_ternary.op.nodes import op_nodes, read_attributes
from onnx_ternary.options import INT8_RULE, ActivationChoice, OptimizeOptions
from onnx_ternary.schema import MAX_BLOCK_WIDTH, Algorithm, Alphabet, OpAttributes, Storage
from tests.catalogue import HITS
from tests.catalogue.case import matmul, model, simple, ternary
from tests.catalogue.case import node as make_node
from tests.support.checks import dense, run
from tests.support.strategies import ALPHABETS, LEVELS, random_generators, random_levels

ALGORITHMS: tuple[Algorithm, ...] = ("rsr", "rsr++")
ONE = np.ones((), np.float32)
NO_BIAS = np.zeros((), np.float32)
SIZES = tuple(2**e for e in range(6, 11))


class Counted:
    """A number that counts the operations on its kind."""

    operations = 0
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    @staticmethod
    def of(operand: Counted | int) -> int:
        return operand.value if isinstance(operand, Counted) else int(operand)

    def __add__(self, other: Counted | int) -> Counted:
        Counted.operations += 1
        return Counted(self.value + Counted.of(other))

    def __sub__(self, other: Counted | int) -> Counted:
        Counted.operations += 1
        return Counted(self.value - Counted.of(other))

    def __mul__(self, other: Counted | int) -> Counted:
        Counted.operations += 1
        return Counted(self.value * Counted.of(other))

    def __rsub__(self, other: Counted | int) -> Counted:
        Counted.operations += 1
        return Counted(Counted.of(other) - self.value)

    __radd__ = __add__
    __rmul__ = __mul__


def rsr_index(
    levels: NDArray[np.int8],
    alphabet: Alphabet,
    storage: Storage,
    algorithm: Algorithm,
    block_width: int | None = None,
) -> Index:
    return build_index(
        TernaryWeight(levels, ONE, 0, alphabet, 0.0),
        index_format="rsr",
        storage=storage,
        algorithm=algorithm,
        block_width=block_width,
    )


def count_operations(x: NDArray[np.int64], index: Index, levels: NDArray[np.int8]) -> int:
    """Operations of the reference on one row, whose answer is checked."""
    counted = np.array([[Counted(int(value)) for value in x]], object)
    Counted.operations = 0
    sums = reference._level_sums(counted, index.codes, index.aux, index.attributes)
    operations = Counted.operations
    assert [Counted.of(value) for value in sums[0, 0]] == (x @ levels.astype(np.int64)).tolist()
    return operations


def count_standard(x: NDArray[np.int64], levels: NDArray[np.int8]) -> int:
    counted = np.array([Counted(int(value)) for value in x], object)
    Counted.operations = 0
    y = counted @ levels.astype(object)
    operations = Counted.operations
    assert [value.value for value in y] == (x @ levels.astype(np.int64)).tolist()
    return operations


def modeled_operations(n: int, width: int, algorithm: Algorithm, base: int = 2) -> int:
    """The paper's count for a square matrix and one plane: sections 4.2 and 4.3."""
    product = base**width * (width if algorithm == "rsr" else 1)
    return math.ceil(n / width) * (n + product)


@pytest.fixture(scope="module")
def counts() -> dict[str, list[int]]:
    """Operations for a binary matrix of each size, at the optimal block width."""
    rng = np.random.default_rng(0)
    found: dict[str, list[int]] = {"standard": [], "rsr": [], "rsr++": []}
    for n in SIZES:
        levels = random_levels(rng, n, n, "binary_01")
        x = rng.integers(-100, 101, n)
        if n <= 256:
            found["standard"].append(count_standard(x, levels))
        for algorithm in ALGORITHMS:
            index = rsr_index(levels, "binary_01", "planes", algorithm)
            found[algorithm].append(count_operations(x, index, levels))
    return found


def relative_misfit(n: NDArray[np.float64], counted: NDArray[np.float64], law: Any) -> float:
    """How far counted is from the best multiple of a law, at worst."""
    ratio = counted / law(n)
    return float(ratio.max() / ratio.min() - 1)


def n_squared(size: NDArray[np.float64]) -> NDArray[np.float64]:
    return size**2


def n_squared_over_log(size: NDArray[np.float64]) -> NDArray[np.float64]:
    return size**2 / np.log2(size)


def fit(counted: list[int]) -> tuple[float, float]:
    """c and a of c * n^a / log2(n), by least squares of the logarithms."""
    n = np.array(SIZES, np.float64)
    exponent, offset = np.polyfit(np.log(n), np.log(np.array(counted) * np.log2(n)), 1)
    return float(np.exp(offset)), float(exponent)


def test_operations_grow_as_n_squared_over_log_n(counts: dict[str, list[int]]) -> None:
    n = np.array(SIZES, np.float64)
    for size, counted in zip(SIZES, counts["standard"], strict=False):
        assert counted == 2 * size**2 - size
    for algorithm in ALGORITHMS:
        operations = np.array(counts[algorithm], np.float64)
        over_log = relative_misfit(n, operations, n_squared_over_log)
        squared = relative_misfit(n, operations, n_squared)
        assert over_log < 0.2
        assert squared > 0.5
        assert over_log < squared / 2
        _, exponent = fit(counts[algorithm])
        assert 1.9 < exponent <= 2.0
    assert all(np.array(counts["rsr++"]) < np.array(counts["rsr"]))


def test_table_of_operations_in_the_docs(counts: dict[str, list[int]]) -> None:
    """Within what other random matrices would make of the counts."""
    text = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    section = text.split("## Operations")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (.+?) \| (.+?) \|$", section, re.M)
    assert [int(row[0]) for row in rows] == list(SIZES)
    for i, row in enumerate(rows):
        size = SIZES[i]
        assert int(row[1]) == 2 * size**2 - size
        for algorithm, shown, ratio in zip(ALGORITHMS, row[2:4], row[4:], strict=True):
            counted = counts[algorithm][i]
            assert abs(int(shown) / counted - 1) < 0.01
            assert abs(float(ratio) - counted * math.log2(size) / size**2) < 0.05
    fits = re.findall(r"([\d.]+) n\^([\d.]+) / log2\(n\)", section)
    for algorithm, (factor, exponent) in zip(ALGORITHMS, fits, strict=True):
        found_factor, found_exponent = fit(counts[algorithm])
        assert abs(float(factor) / found_factor - 1) < 0.05
        assert abs(float(exponent) - found_exponent) < 0.01


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_model_of_operations_grows_as_n_squared_over_log_n(algorithm: Algorithm) -> None:
    """Where counting takes too long: n = 2^11 to 2^16."""
    ratios = []
    for exponent in range(11, 17):
        n = 2**exponent
        width = rsr.optimal_block_width(n, n, "planes", algorithm)
        ratios.append(modeled_operations(n, width, algorithm) * exponent / n**2)
    assert max(ratios) / min(ratios) < 1.25
    assert max(ratios) < 2.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("storage", "alphabet"), [("planes", "binary_01"), ("base3", "ternary")])
def test_counts_stay_within_the_model(
    algorithm: Algorithm, storage: Storage, alphabet: Alphabet
) -> None:
    """At most n additions of segmented sums per block, a small multiple of the product's term."""
    rng = np.random.default_rng(1)
    n = 96
    levels = random_levels(rng, n, n, alphabet)
    x = rng.integers(-100, 101, n)
    base = rsr.base(storage)
    for width in range(1, 6 if base == 2 else 4):
        index = rsr_index(levels, alphabet, storage, algorithm, width)
        counted = count_operations(x, index, levels)
        blocks = math.ceil(n / width)
        product = base**width * (2 * width if algorithm == "rsr" else 2)
        assert counted <= blocks * (n + product)
        # Every row of a non-empty segment but the first is added.
        assert counted >= blocks * (n - base**width)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("storage", ["planes", "base3"])
@settings(deadline=None)
@given(K=st.integers(1, 2**17), N=st.integers(1, 2**17))
def test_optimal_block_width_is_the_cheapest(
    storage: Storage, algorithm: Algorithm, K: int, N: int
) -> None:
    base = 3 if storage == "base3" else 2
    costs = {}
    for width in range(1, MAX_BLOCK_WIDTH[storage] + 1):
        product = base**width * width if algorithm == "rsr" else base**width
        costs[width] = math.ceil(N / width) * (K + product)
    found = rsr.optimal_block_width(K, N, storage, algorithm)
    assert costs[found] == min(costs.values())
    assert all(costs[width] > costs[found] for width in range(1, found))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_optimal_block_width_is_near_the_cheapest_counted(algorithm: Algorithm) -> None:
    """Counted for every width: the model's optimum costs little more than the true one."""
    rng = np.random.default_rng(2)
    n = 256
    levels = random_levels(rng, n, n, "binary_01")
    x = rng.integers(-100, 101, n)
    counted = {
        width: count_operations(
            x, rsr_index(levels, "binary_01", "planes", algorithm, width), levels
        )
        for width in range(1, 11)
    }
    predicted = rsr.optimal_block_width(n, n, "planes", algorithm)
    best = min(counted, key=counted.__getitem__)
    print("\ncounted:", counted, "predicted width:", predicted)
    assert abs(predicted - best) <= 1
    assert counted[predicted] <= 1.15 * counted[best]
    assert counted[10] > 1.3 * counted[predicted]


def index_bytes(attributes: OpAttributes) -> int:
    """docs/index_format.md section 3: permutation and segment offsets."""
    entry = 2 if attributes.K <= 65536 else 4
    blocks = math.ceil(attributes.N / attributes.block_width)
    offsets = 4 * attributes.num_groups * (attributes.num_patterns + 1)
    return attributes.num_planes * blocks * (entry * attributes.K + offsets)


@settings(max_examples=40, deadline=None)
@given(
    rng=random_generators(),
    K=st.integers(1, 300),
    N=st.integers(1, 60),
    alphabet=st.sampled_from(ALPHABETS),
    direct=st.booleans(),
    width=st.integers(1, 7),
)
def test_index_size_formula(
    rng: np.random.Generator, K: int, N: int, alphabet: Alphabet, direct: bool, width: int
) -> None:
    storage: Storage = "base3" if direct and alphabet == "ternary" else "planes"
    index = rsr_index(random_levels(rng, K, N, alphabet), alphabet, storage, "rsr++", width)
    assert index.codes.nbytes + index.aux.nbytes == index_bytes(index.attributes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("exponent", [13, 14, 15, 16])
def test_index_is_small(exponent: int, algorithm: Algorithm) -> None:
    n = 2**exponent
    share: dict[Alphabet, int] = {"ternary": 7, "binary_01": 14, "binary_pm": 14}
    for alphabet, least in share.items():
        attributes = OpAttributes(
            K=n,
            N=n,
            index_format="rsr",
            storage="planes",
            alphabet=alphabet,
            block_size=0,
            block_width=rsr.optimal_block_width(n, n, "planes", algorithm),
            algorithm=algorithm,
        )
        assert index_bytes(attributes) * least <= 4 * n * n


def all_forms(levels: NDArray[np.int8], alphabet: Alphabet, width: int) -> list[Index]:
    """RSR and RSR++ on every storage of `rsr`, and every storage of `packed`."""
    weight = TernaryWeight(levels, ONE, 0, alphabet, 0.0)
    storages: list[Storage] = ["planes", "base3"] if alphabet == "ternary" else ["planes"]
    forms = [
        rsr_index(levels, alphabet, storage, algorithm, min(width, MAX_BLOCK_WIDTH[storage]))
        for storage in storages
        for algorithm in ALGORITHMS
    ]
    packed: list[Storage] = ["2bit", "dense", *(["1bit"] if alphabet != "ternary" else [])]  # type: ignore[list-item]  # a literal in a conditional list
    return forms + [build_index(weight, storage=storage) for storage in packed]


def assert_all_forms_agree(
    rng: np.random.Generator, levels: NDArray[np.int8], rows: int, alphabet: Alphabet, width: int
) -> None:
    """RSR, RSR++, direct ternary and packed give the dense product, by the reference and by every
    kernel."""
    x = rng.integers(-127, 128, (rows, levels.shape[0])).astype(np.float32)
    x[:, rng.integers(levels.shape[0])] = 127  # the rule then quantizes by 1
    exact = x.astype(np.int64) @ levels.astype(np.int64)
    kernels = [kernel for kernel in native_kernels.list_kernels()["kernels"] if kernel["supported"]]
    for index in all_forms(levels, alphabet, width):
        for activation in ("float", "int8"):
            attributes = index.attributes
            if activation == "int8":
                attributes = replace(attributes, **INT8_RULE)
            y = reference.ternary_indexed_matmul(
                x, index.codes, index.aux, index.scale, NO_BIAS, attributes
            )
            np.testing.assert_array_equal(y, exact)
            layer = native_layer.Layer(attributes, index.codes, index.aux, index.scale, NO_BIAS)
            ran = 0
            for kernel in kernels:
                wanted = (kernel["index_format"], kernel["activation"])
                if wanted != (attributes.index_format, activation):
                    continue
                try:
                    y, used = layer.run(x, kernel=kernel["name"])
                except LibraryError as error:
                    assert "cannot serve this node" in str(error)
                    continue
                assert used == kernel["name"]
                np.testing.assert_array_equal(y, exact)
                ran += 1
            assert ran >= 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rng=random_generators(),
    K=st.sampled_from((1, 2, 7, 63, 64, 65, 257)) | st.integers(1, 600),
    N=st.sampled_from((1, 2, 7, 8, 9, 31)) | st.integers(1, 50),
    rows=st.sampled_from((1, 2, 5, 8, 17, 33)),
    alphabet=st.sampled_from(ALPHABETS),
    width=st.integers(1, 8),
)
def test_every_form_agrees_in_integers(
    rng: np.random.Generator, K: int, N: int, rows: int, alphabet: Alphabet, width: int
) -> None:
    assert_all_forms_agree(rng, random_levels(rng, K, N, alphabet), rows, alphabet, width)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rng=random_generators(),
    K=st.integers(1, 80),
    N=st.integers(1, 18),
    rows=st.sampled_from((1, 5)),
    alphabet=st.sampled_from(ALPHABETS),
    width=st.integers(9, max(MAX_BLOCK_WIDTH.values())),
)
def test_every_form_agrees_with_wide_blocks(
    rng: np.random.Generator, K: int, N: int, rows: int, alphabet: Alphabet, width: int
) -> None:
    """Up to the widest blocks of the format; most of their segments are empty."""
    assert_all_forms_agree(rng, random_levels(rng, K, N, alphabet), rows, alphabet, width)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_form_agrees_where_the_permutation_takes_four_bytes(alphabet: Alphabet) -> None:
    rng = np.random.default_rng(4)
    levels = random_levels(rng, 65537, 5, alphabet)
    assert_all_forms_agree(rng, levels, 3, alphabet, 3)


def test_a_form_that_differs_is_found() -> None:
    """The comparison itself can fail: one row moved to another segment."""
    rng = np.random.default_rng(3)
    levels = random_levels(rng, 40, 6, "ternary")
    index = rsr_index(levels, "ternary", "base3", "rsr++", 3)
    offsets = index.aux.copy()
    filled = int(np.flatnonzero(np.diff(offsets[0, 0, 0].astype(np.int64)) > 0)[-1])
    offsets[0, 0, 0, 1 : filled + 1] -= (offsets[0, 0, 0, 1 : filled + 1] > 0).astype(np.uint32)
    x = rng.integers(1, 100, (1, 40)).astype(np.float32)
    layer = native_layer.Layer(index.attributes, index.codes, offsets, index.scale, NO_BIAS)
    y, _ = layer.run(x)
    assert np.any(y != x @ levels.astype(np.float32))


@pytest.mark.parametrize("name", HITS)
def test_every_form_of_model_converts_to_rsr(name: str) -> None:
    """What the default format rewrites, `--format rsr` rewrites too, to the same weights."""
    case = HITS[name]()
    for algorithm in ALGORITHMS:
        options = OptimizeOptions(
            index_format="rsr", algorithm=algorithm, min_elements=0, **case.options
        )
        result = optimize(case.model, options)
        assert tuple(row.pattern for row in result.report.rewrites) == case.patterns
        for node, expected in zip(op_nodes(result.model), case.weights, strict=True):
            attributes = read_attributes(node)
            assert (attributes.index_format, attributes.algorithm) == ("rsr", algorithm)
            if expected is not None:
                np.testing.assert_array_equal(dense(node), expected)


def single_product(alphabet: Alphabet, dtype: str) -> onnx.ModelProto:
    """One MatMul of 48 x 20 in the type; x and y are float32 where that is bfloat16."""
    weight = ternary(scale=0.5, levels=LEVELS[alphabet], dtype=np.dtype(dtype))
    if dtype != "bfloat16":
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return simple(weight, x_dtype=element, y_dtype=element)
    nodes = [
        make_node("Cast", ["x"], "xb", to=onnx.TensorProto.BFLOAT16),
        matmul("xb", "w", "yb"),
        make_node("Cast", ["yb"], "y", to=onnx.TensorProto.FLOAT),
    ]
    return model(nodes, {"w": weight})


@pytest.mark.parametrize("activation", ["keep", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_conversion_to_rsr_is_verified(
    algorithm: Algorithm,
    alphabet: Alphabet,
    dtype: str,
    activation: ActivationChoice,
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "converted.onnx"
    onnx.save(single_product(alphabet, dtype), source)
    options = OptimizeOptions(
        index_format="rsr", algorithm=algorithm, activation=activation, min_elements=0
    )
    runs_in_onnxruntime = dtype != "bfloat16"  # its CPU provider has no such MatMul
    conversion = convert(source, target, options, verify_result=runs_in_onnxruntime)
    if runs_in_onnxruntime:
        assert conversion.verification is not None
        assert [each.status for each in conversion.verification.products] == ["passed"]
    converted = onnx.load(target)
    (node,) = op_nodes(ir.from_proto(converted))
    # Every sum of these fits all three types, and the int8 rule keeps 127 as it is.
    x = np.array([[127, 0] * 24, [1, -127] * 24, [0] * 48], np.float32)
    if activation == "keep":
        x = np.clip(x, -4, 3)
    feeds = {"x": x.astype(np.float32 if dtype == "bfloat16" else dtype)}
    y = run(converted, feeds, library=True)["y"].astype(np.float64)
    exact = (x.astype(np.float64) @ dense(node)).astype(
        ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    )
    np.testing.assert_array_equal(y, exact.astype(np.float64))
