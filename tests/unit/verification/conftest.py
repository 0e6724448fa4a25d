"""Two products, one behind the other."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.converted_models import Product, random_weight


@pytest.fixture
def products() -> list[Product]:
    rng = np.random.default_rng(0)
    first = Product.make(
        random_weight(rng, 130, 37), bias=rng.standard_normal(37).astype(np.float32)
    )
    return [first, Product.make(random_weight(rng, 37, 12, scale_rank=0))]
