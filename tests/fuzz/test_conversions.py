"""A short run of the fuzzer of conversions, and the models it found something with."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.errors import ModelError
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model, node, ternary
from tests.catalogue.einsum import HITS as EINSUMS
from tests.fuzz import conversions

# What was a finding once, as the fuzzer wrote it, beside the models written out below: a seed would
# damage another model as soon as the catalogue has one more.
CORPUS = Path(__file__).with_name("corpus")
REFUSED = {
    "name_not_utf8": "is not UTF-8",
    "attribute_of_another_type": "attribute 'transB' of type FLOAT, expected INT",
    "equation_not_utf8": "has attribute 'equation' = b'bsk,kn->bs\\xb1n', which is not UTF-8",
    "no_result": "MatMulNBits 'product' has no result",
}
KEPT = {
    "attribute_of_no_function": "its attribute equation is one of a function, and it is in none",
    "few_operands": "an operand is missing",
    "few_operands_of_matmul_nbits": "an operand is missing",
    "weight_from_nowhere": "no constant weight: 'w' is given at run time",
}
ALL = OptimizeOptions(min_elements=0)

contents = functools.cache(conversions.base_models)


def attempt(seed: int, number: int) -> str:
    rng = np.random.default_rng((seed, number))
    models = contents()
    return conversions.try_model(models[rng.integers(len(models))], rng)


@pytest.mark.parametrize("seed", range(10, 14))
def test_damaged_model_is_converted_or_refused(seed: int) -> None:
    assert {attempt(seed, number) for number in range(60)} == {"converted", "refused"}


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.onnx")), ids=lambda path: path.stem)
@pytest.mark.parametrize("fold", [True, False])
def test_what_was_a_finding(path: Path, fold: bool) -> None:
    options = OptimizeOptions(min_elements=0, fold=fold)
    if path.stem in REFUSED:
        with pytest.raises(ModelError, match=re.escape(REFUSED[path.stem])):
            optimize(path, options)
        return
    (kept,) = optimize(path, options).report.rejections
    assert kept.reason == KEPT[path.stem]


def test_name_that_is_no_text() -> None:
    content = model([node("Neg", ["v"], "w"), matmul()], {"v": ternary()}).SerializeToString()
    assert content.count(b"Neg_w") == 1
    with pytest.raises(ModelError, match="is not UTF-8"):
        optimize(content.replace(b"Neg_w", b"Neg\xff\xfe"), ALL)


def test_attribute_of_a_function_outside_of_one() -> None:
    made = next(iter(EINSUMS.values()))().model
    for each in made.graph.node:
        for attribute in each.attribute:
            if attribute.name == "equation":
                attribute.ref_attr_name = "nosuch"
    (kept,) = optimize(made, ALL).report.rejections
    assert kept.reason == "its attribute equation is one of a function, and it is in none"


CYCLES = {
    "adds in the weight": [
        node("Add", ["v", "b"], "a"),
        node("Add", ["v", "a"], "b"),
        matmul("x", "b"),
    ],
    "adds in the activations": [
        node("Add", ["x", "b"], "a"),
        node("Add", ["x", "a"], "b"),
        matmul("b", "v"),
    ],
    "identities": [node("Identity", ["b"], "a"), node("Identity", ["a"], "b"), matmul("x", "b")],
    "itself": [node("Add", ["v", "a"], "a"), matmul("x", "a")],
    "product": [matmul("x", "y")],
    "rounded": [node("Round", ["b"], "a"), node("Clip", ["a"], "b"), matmul("b", "v")],
}


def looping(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, (48, 48))],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(ternary(48, 48), "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("fold", [True, False])
def test_cycle_is_named(name: str, fold: bool, tmp_path: Path) -> None:
    made = looping(CYCLES[name])
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"not a valid ONNX model: its nodes form a cycle: .* -> "):
        optimize(path, OptimizeOptions(min_elements=0, fold=fold))


def test_cycle_through_a_subgraph_is_named() -> None:
    inner = [node("Add", ["v", "y0"], "t")]
    branch = helper.make_graph(inner, "b", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph(
        [node("Identity", ["v"], "e")], "e", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    choice = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=other)
    made = looping([choice, matmul("x", "w", "y0"), node("Identity", ["y0"], "y")])
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    with pytest.raises(ModelError, match="its nodes form a cycle"):
        optimize(made, ALL)


def test_functions_that_call_each_other_are_named() -> None:
    made = looping([helper.make_node("f", ["v"], ["w"], domain="local"), matmul("x", "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made.opset_import.append(opsets[1])
    for name, other in ("fg", "gf"):
        body = [helper.make_node(other, ["a"], ["b"], domain="local")]
        made.functions.append(helper.make_function("local", name, ["a"], ["b"], body, opsets))
    with pytest.raises(ModelError, match=r"call themselves: local::[fg] -> local::[fg]"):
        optimize(made, ALL)
