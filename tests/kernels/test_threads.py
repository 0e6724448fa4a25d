"""One layer, many threads, without ONNX Runtime: under the thread sanitizer a race is a finding.

ctypes lets go of the interpreter's lock during a call, so the calls do run at the same time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnx_ternary.native import kernels
from onnx_ternary.native import layer as native_layer
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import attribute_variants, int8, label, make_node

NUM_THREADS = 8
CALLS_A_THREAD = 20
VARIANTS = [*attribute_variants(256, 40), *map(int8, attribute_variants(256, 40))]


@pytest.mark.parametrize("attributes", VARIANTS, ids=label)
def test_concurrent_calls_give_the_same_bits(attributes: OpAttributes) -> None:
    node = make_node(np.random.default_rng(0), attributes)
    layer = native_layer.Layer(attributes, *node.tensors)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((rows, 256)).astype(np.float32) for rows in (1, 3, 9, 40)]
    inputs[2][4, 7] = np.nan
    expected = [layer.run(x)[0] for x in inputs]

    def work(seed: int) -> None:
        order = np.random.default_rng(seed)
        for _ in range(CALLS_A_THREAD):
            at = int(order.integers(len(inputs)))
            y, _kernel = layer.run(inputs[at], num_parts=int(order.integers(1, 4)))
            np.testing.assert_array_equal(y, expected[at])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, range(NUM_THREADS)))


def test_layers_come_and_go_while_others_run() -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(CALLS_A_THREAD):
            attributes = VARIANTS[rng.integers(len(VARIANTS))]
            node = make_node(np.random.default_rng(0), attributes)
            x = rng.standard_normal((2, 256)).astype(np.float32)
            y, _kernel = native_layer.Layer(attributes, *node.tensors).run(x)
            assert np.isfinite(y).all()
            assert kernels.list_kernels()["kernels"]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, range(NUM_THREADS)))
