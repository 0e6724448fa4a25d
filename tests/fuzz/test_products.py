"""A short run of the fuzzer of products, and that its oracle rejects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_ternary.native import layer
from tests.fuzz import products, rule

# What the first runs found: promises of docs/op_spec.md that were too wide, all where the terms of
# a column leave float32.
WERE_FINDINGS = {
    "groups that meet as infinities": (1, 33),
    "a sum that is infinite before the bias": (12, 3417),
    "a sum of groups that is infinite before the scale": (11, 3012),
    "a sum whose error alone is infinite": (13, 42),
}


@pytest.mark.parametrize("seed", range(20, 24))
def test_every_way_gives_what_is_promised(seed: int) -> None:
    ways = {products.try_product(np.random.default_rng((seed, each))) for each in range(40)}
    assert ways >= {"kernel", "isa", "session"}


@pytest.mark.parametrize("at", WERE_FINDINGS.values(), ids=WERE_FINDINGS)
def test_what_was_a_finding(at: tuple[int, int]) -> None:
    products.try_product(np.random.default_rng(at))


@pytest.mark.parametrize("activation", ["float", "int8", "uint8"])
def test_rule_rejects_a_number_that_is_off(activation: str) -> None:
    rng = np.random.default_rng(5)
    rejected = 0
    for _ in range(30):
        node = products.draw_node(rng, activation)
        node = replace(node, scale=np.ones_like(node.scale), bias=np.zeros((), np.float32))
        x = rng.normal(size=(2, node.attributes.K)).astype(np.float32)
        x[1] = x[0]
        x[1, 0] = np.nan
        # A uint8 tensor with one NaN is NaN everywhere.
        x = x[:1] if activation == "uint8" else x
        y = layer.run(node.attributes, *node.tensors, x)[0].copy()
        promise = rule.Promise(node.attributes.K, fixed_point=True)
        rule.judge(products.meaning(node), x, y, promise)
        y[0, -1] += np.float32(0.01) * max(np.abs(x[0]).sum(), np.float32(1))
        with pytest.raises(AssertionError):
            rule.judge(products.meaning(node), x, y, promise)
        rejected += 1
    assert rejected == 30


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_rule_rejects_what_is_not_finite(number: float) -> None:
    node = products.draw_node(np.random.default_rng(3), "float")
    node = replace(node, scale=np.ones_like(node.scale), bias=np.zeros((), np.float32))
    x = np.ones((3, node.attributes.K), np.float32)
    y = layer.run(node.attributes, *node.tensors, x)[0].copy()
    y[1, 0] = number
    promise = rule.Promise(node.attributes.K, fixed_point=False)
    with pytest.raises(AssertionError):
        rule.judge(products.meaning(node), x, y, promise)


def test_rule_keeps_fixed_point_to_ordinary_rows() -> None:
    """A row with one huge input has no share of the fixed-point term."""
    x = np.ones((2, 4096), np.float32)
    x[1, 0] = 1e9
    assert rule.ordinary(x).tolist() == [True, False]
