"""A short run of both fuzz targets with fixed seeds."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

from tests.fuzz import nodes, sessions
from tests.support.single_node import label

ATTEMPTS_A_VARIANT = 150


@functools.cache
def base_models() -> list[onnx.ModelProto]:
    return sessions.base_models()


@pytest.mark.parametrize("attributes", nodes.VARIANTS, ids=label)
def test_damaged_node_is_refused_or_harmless(attributes: nodes.OpAttributes) -> None:
    rng = np.random.default_rng(0)
    hostile = nodes.hostile_nodes(attributes, rng)
    outcomes = [nodes.try_node(*next(hostile), rng) for _ in range(ATTEMPTS_A_VARIANT)]
    assert ATTEMPTS_A_VARIANT // 3 < outcomes.count("refused") < ATTEMPTS_A_VARIANT


@pytest.mark.parametrize("seed", range(8))
def test_damaged_model_is_refused_or_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = base_models()
    outcomes = {sessions.try_model(models[rng.integers(len(models))], rng) for _ in range(60)}
    assert outcomes == {"ran", "refused"}
