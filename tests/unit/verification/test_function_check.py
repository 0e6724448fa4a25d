"""The function body of a converted model, without an original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_ternary.errors import ModelError
from onnx_ternary.verification.function_check import check_function_body
from tests.support.converted_models import (
    UINT8,
    Product,
    converted_model,
    original_model,
    random_weight,
)
from tests.support.products import INT8


@pytest.mark.parametrize("activation", [None, INT8, UINT8], ids=["float", "int8", "uint8"])
@pytest.mark.parametrize("scale_rank", [0, 1])
def test_body_of_the_op_passes(activation: dict[str, Any] | None, scale_rank: int) -> None:
    weight = random_weight(np.random.default_rng(0), 130, 37, scale_rank=scale_rank)
    products = [Product.make(weight, activation=activation)]
    assert check_function_body(converted_model(products)) == 1


@pytest.mark.parametrize("activation", [None, INT8, UINT8], ids=["float", "int8", "uint8"])
def test_changed_body_is_noticed(activation: dict[str, Any] | None) -> None:
    weight = random_weight(np.random.default_rng(0), 130, 37)
    model = converted_model([Product.make(weight, activation=activation)])
    (function,) = model.functions
    last = function.node[-1]
    last.output[0] = "before"
    function.node.append(helper.make_node("Neg", ["before"], ["Y"]))
    with pytest.raises(ModelError, match=r"is not the one the operator defines: for product 'pro"):
        check_function_body(model)


def test_models_without_a_body_are_left_alone() -> None:
    product = Product.make(random_weight(np.random.default_rng(0), 64, 16))
    assert check_function_body(original_model([product])) == 0
    assert check_function_body(converted_model([product], with_body=False)) == 0
