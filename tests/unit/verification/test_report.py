"""What a report says of a check, to programs and to readers."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from onnx_ternary.schema import Activation
from onnx_ternary.verification.report import ProductCheck, Reference, VerificationReport


@pytest.mark.parametrize("original_rounds", [False, True])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_has_its_reference(activation: str, original_rounds: bool) -> None:
    reference = Reference.of(activation, original_rounds=original_rounds)
    assert reference.is_rule is (activation != "float")
    assert (f"the {activation} rule" in reference.value) is reference.is_rule
    assert ("original product" in reference.value) is (original_rounds or not reference.is_rule)


def test_nothing_is_no_rule() -> None:
    assert not Reference.NOTHING.is_rule
    assert not Reference.NOTHING


def test_json_and_text_say_the_same() -> None:
    reference = Reference.INT8_RULE_AND_ORIGINAL
    check = ProductCheck("node", "y", (4, 3), "passed", compared_with=reference)
    report = VerificationReport((check,), (), 0, {}, ())
    (found,) = report.to_dict()["products"]
    assert type(found["compared_with"]) is str
    assert str(reference) == f"{reference}" == reference.value
    said = "numpy reference of the int8 rule and original product"
    assert json.loads(json.dumps(found))["compared_with"] == said
