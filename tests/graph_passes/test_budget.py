"""Small files that ask for much: refused with the node and the option, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.graph_passes.constants import budget, evaluate
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import F32, matmul, model, node, ternary

SIDE = 64
ONE = np.array([1, 1], np.int64)
Array = NDArray[Any]


@pytest.fixture
def made_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the results onnxruntime made."""
    sizes: list[int] = []
    original = evaluate._run

    def run(*args: Any) -> dict[str, Array]:
        found = original(*args)
        sizes.extend(array.nbytes for array in found.values())
        return found

    monkeypatch.setattr(evaluate, "_run", run)
    return sizes


def made(
    nodes: Sequence[onnx.NodeProto],
    weight: str,
    constants: dict[str, Array] | None = None,
    **kwargs: Any,
) -> onnx.ModelProto:
    """``x @ weight``, the weight computed from ``v`` (64, 64)."""
    graph = helper.make_graph(
        [*nodes, matmul("x", weight)],
        "graph",
        [helper.make_tensor_value_info("x", 1, (1, SIDE))],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in {"v": ternary(SIDE, SIDE), **(constants or {})}.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **kwargs)


def reason(proto: onnx.ModelProto, **options: Any) -> str:
    """Why the product of x stays."""
    report = optimize(proto, OptimizeOptions(min_elements=0, **options)).report
    return next(kept.reason for kept in report.rejections if kept.node == "product")


def doubled(times: int) -> onnx.ModelProto:
    """Compress hides the size from shape inference, every Concat doubles it."""
    nodes = [node("Compress", ["v", "mask"], "c0", axis=0)]
    nodes += [node("Concat", [f"c{at}"] * 2, f"c{at + 1}", axis=0) for at in range(times)]
    nodes += [
        node("ReduceMax", [f"c{times}"], "largest", keepdims=1),
        node("Mul", ["v", "largest"], "w"),
    ]
    return made(nodes, "w", {"mask": np.ones(SIDE, bool)})


def test_hidden_size_is_known_before_a_node_runs(made_bytes: list[int]) -> None:
    found = reason(doubled(40))
    assert "with what Concat 'Concat_c14' makes it would hold" in found
    assert "--max-fold-bytes (max_fold_bytes)" in found
    assert max(made_bytes) <= budget.LEAST_BYTES / 2


def test_hidden_size_within_the_limit_is_evaluated() -> None:
    assert len(optimize(doubled(3), OptimizeOptions(min_elements=0)).report.rewrites) == 1


def test_option_sets_the_limit(made_bytes: list[int]) -> None:
    found = reason(doubled(3), max_fold_bytes=1 << 16)
    assert "Concat 'Concat_c2'" in found
    assert f"more than {1 << 16};" in found
    assert sum(made_bytes) <= 1 << 16


def test_results_held_at_once_count_together(made_bytes: list[int]) -> None:
    """None is large; all wait for the sum."""
    size = 16 * SIDE * SIDE * 4
    nodes = [node("Tile", ["v", f"times{at}"], f"t{at}") for at in range(8)]
    nodes += [
        node("Sum", [f"t{at}" for at in range(8)], "sum"),
        node("Slice", ["sum", "start", "end"], "w"),
    ]
    constants = {f"times{at}": np.array([16, 1]) for at in range(8)}
    constants |= {"start": np.array([0]), "end": np.array([SIDE])}
    proto = made(nodes, "w", constants)
    assert "more than" in reason(proto, max_fold_bytes=6 * size)
    assert 4 * size < sum(made_bytes) <= 6 * size
    options = OptimizeOptions(min_elements=0, max_fold_bytes=16 * size)
    assert len(optimize(proto, options).report.rewrites) == 1


@pytest.mark.parametrize(
    ("maker", "constants"),
    [
        (node("Range", ["zero", "count", "one"], "huge"), {"zero": 0, "count": 10**9, "one": 1}),
        (node("Tile", ["v", "counts"], "huge"), {"counts": [10**5, 10**5]}),
        (node("ConstantOfShape", ["counts"], "huge"), {"counts": [10**5, 10**5]}),
        (node("Expand", ["v", "counts"], "huge"), {"counts": [10**5, 1, 1]}),
        (node("Pad", ["v", "counts"], "huge"), {"counts": [0, 0, 10**5, 10**5]}),
    ],
    ids=lambda each: getattr(each, "op_type", ""),
)
@pytest.mark.parametrize("computed", [False, True])
def test_size_from_elements_is_judged_first(
    maker: onnx.NodeProto, constants: dict[str, Any], computed: bool, made_bytes: list[int]
) -> None:
    arrays: dict[str, Array] = {key: np.array(value) for key, value in constants.items()}
    nodes = [
        maker,
        node("ReduceSum", ["huge"], "sum", keepdims=0),
        node("Cast", ["sum"], "f", to=1),
    ]
    nodes.append(node("Mul", ["v", "f"], "w"))
    if computed:  # the sizes themselves are results
        name, array = next((key, each) for key, each in arrays.items() if "count" in key)
        arrays[f"{name}.part"] = array - 1
        arrays["unit"] = np.array(1)
        nodes.insert(0, node("Add", [f"{name}.part", "unit"], name))
        del arrays[name]
    proto = made(nodes, "w", arrays)
    assert f"{maker.op_type} 'op_huge'".replace("op", maker.op_type, 1)[:5] in reason(proto)
    assert "--max-fold-bytes" in reason(proto)
    assert sum(made_bytes) < 1024


def test_all_results_of_a_conversion_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LEAST_BYTES", 1 << 16)
    monkeypatch.setattr(budget, "EXPANSION", 4)
    nodes = [node("Neg", ["v" if not at else f"n{at - 1}"], f"n{at}") for at in range(200)]
    assert "bytes in all" in reason(made(nodes, "n199"))
    assert len(optimize(made(nodes[:40], "n39")).report.rewrites) == 1


def test_products_of_matrices_cost_more_than_their_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "LEAST_BYTES", 1 << 16)
    monkeypatch.setattr(budget, "EXPANSION", 4)
    nodes = [node("MatMul", ["v", "v" if not at else f"n{at - 1}"], f"n{at}") for at in range(20)]
    assert "bytes in all" in reason(made(nodes, "n19"))


def nested_functions(depth: int) -> onnx.ModelProto:
    """Each function calls the one before twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    bodies = [[node("Identity", ["a"], "b")]] + [
        [
            helper.make_node(f"f{at}", ["a"], ["t"], domain="local"),
            helper.make_node(f"f{at}", ["t"], ["b"], domain="local"),
        ]
        for at in range(depth)
    ]
    functions = [
        helper.make_function("local", f"f{at}", ["a"], ["b"], body, opsets)
        for at, body in enumerate(bodies)
    ]
    call = helper.make_node(f"f{depth}", ["v"], ["w"], domain="local", name="call")
    return made([call], "w", functions=functions)


@pytest.mark.parametrize("fold", [True, False])
def test_functions_that_double_are_counted_not_walked(fold: bool) -> None:
    found = reason(nested_functions(60), fold=fold)
    assert ("--max-fold-steps (max_fold_steps)" in found) == fold


def test_nested_functions_within_the_limit_are_evaluated() -> None:
    report = optimize(nested_functions(6), OptimizeOptions(min_elements=0)).report
    assert len(report.rewrites) == 1
    assert "64 steps after 0" in reason(nested_functions(6), max_fold_steps=63)


def test_steps_whose_sizes_are_computed_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results above what stands in a model, one Tile after the other."""
    created = 0
    original = ort.InferenceSession

    def create(*args: Any, **kwargs: Any) -> Any:
        nonlocal created
        created += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", create)
    length = 30
    nodes = [node("Compress", ["v", "mask"], "t0", axis=0)]
    nodes += [node("Tile", [f"t{at}", "one"], f"t{at + 1}") for at in range(length)]
    proto = made(nodes, f"t{length}", {"mask": np.ones(SIDE, bool), "one": ONE})
    assert len(optimize(proto, OptimizeOptions(min_elements=0)).report.rewrites) == 1
    assert created <= length + 1


def test_same_answer_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.catalogue.cones import HITS

    for name, case in HITS.items():
        whole = optimize(case().model, OptimizeOptions(min_elements=0)).to_proto()
        monkeypatch.setattr(evaluate, "WHOLE_BYTES", 0)
        stepwise = optimize(case().model, OptimizeOptions(min_elements=0)).to_proto()
        monkeypatch.undo()
        assert whole == stepwise, name


@pytest.mark.parametrize(
    "maker",
    [
        node("HannWindow", ["count"], "huge"),
        node("CenterCropPad", ["v", "counts"], "huge"),
        node("NonMaxSuppression", ["boxes", "scores", "count"], "huge"),
        node("Conv", ["boxes", "boxes"], "huge"),
        node("Unique", ["v"], "huge"),
    ],
    ids=lambda each: str(each.op_type),
)
def test_operators_that_make_no_weights_do_not_run(
    maker: onnx.NodeProto, made_bytes: list[int]
) -> None:
    nodes = [
        maker,
        node("ReduceSum", ["huge"], "sum", keepdims=0),
        node("Cast", ["sum"], "f", to=1),
        node("Mul", ["v", "f"], "w"),
    ]
    constants = {
        "boxes": np.zeros((1, 8, 4), F32),
        "scores": np.zeros((1, 1, 8), F32),
        "count": np.array([8], np.int64),
        "counts": np.array([8, 8], np.int64),
    }
    used = {name: array for name, array in constants.items() if name in maker.input}
    found = reason(made(nodes, "w", used))
    assert f"{maker.op_type}_huge', which this version does not evaluate" in found
    assert not made_bytes


def test_catalogue_model_is_not_bounded_by_the_defaults() -> None:
    proto = model([node("Neg", ["v"], "w"), matmul()], {"v": ternary()})
    assert len(optimize(proto, OptimizeOptions(min_elements=0)).report.rewrites) == 1


def test_indices_of_weights_made_of_nothing_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number becomes a weight, which every branch has an index of."""
    monkeypatch.setattr(budget, "LEAST_BYTES", 1 << 17)
    monkeypatch.setattr(budget, "EXPANSION", 4)
    branches = 80
    nodes = [node("Expand", ["one", "sides"], "w")]
    for at in range(branches):
        graphs = {
            name: helper.make_graph(
                [matmul("x", "w", f"{name}{at}", f"{name}{at}")],
                name,
                [],
                [helper.make_tensor_value_info(f"{name}{at}", 1, None)],
            )
            for name in ("then_branch", "else_branch")
        }
        nodes.append(helper.make_node("If", ["yes"], [f"y{at}"], name=f"if{at}", **graphs))
    constants = {
        "one": np.ones((1, 1), F32),
        "sides": np.array([SIDE, SIDE]),
        "yes": np.array(True),
    }
    proto = made(nodes, "w", constants)
    report = optimize(proto, OptimizeOptions(min_elements=0)).report
    assert len(report.rewrites) * SIDE * SIDE * 4 <= budget.TURNOVER * (1 << 17)
    assert len(report.rewrites) > branches
    assert "--max-fold-bytes" in report.rejections[-1].reason
