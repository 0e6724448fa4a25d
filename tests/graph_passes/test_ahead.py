"""Levels found on other threads: the same model, whatever is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_ternary
from onnx_ternary import OptimizeOptions
from onnx_ternary.graph_passes import pipeline
from onnx_ternary.graph_passes.constants import ahead
from onnx_ternary.graph_passes.constants.ahead import Ahead
from onnx_ternary.graph_passes.constants.constant import Constant
from onnx_ternary.graph_passes.constants.resolve import resolve
from onnx_ternary.graph_passes.match import Context
from tests.catalogue.case import matmul, model, node, ternary

SIZE = 256  # squared, the smallest weight that is read ahead


def chain() -> onnx.ModelProto:
    """Products in a row: plain, shared, transposed, of a tensor twice, float, excluded."""
    tensors = {f"w{i}": ternary(SIZE, SIZE, seed=i) for i in range(7)}
    tensors["w5"] = np.random.default_rng(5).standard_normal((SIZE, SIZE)).astype(np.float32)
    nodes = [
        matmul("x", "w0", "a", "plain"),
        matmul("a", "w1", "b", "first user"),
        matmul("b", "w1", "c", "second user"),
        node("Transpose", ["w2"], "w2t", perm=[1, 0]),
        matmul("c", "w2t", "d", "transposed"),
        node("Gemm", ["d", "w3"], "e", transB=1),
        matmul("e", "w3", "f", "of gemm's tensor, not transposed"),
        matmul("f", "w4", "g", "excluded"),
        matmul("g", "w5", "h", "float"),
        matmul("h", "w6", "y", "last"),
    ]
    return model(nodes, tensors, x_shape=("batch", SIZE))


def test_the_model_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    take = Ahead.take

    def counted(self: Ahead, weight: Constant) -> object:
        found = take(self, weight)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(Ahead, "take", counted)
    options = OptimizeOptions(exclude=("excluded",))
    results = {}
    for threads in (1, 2, 8):
        taken.clear()
        monkeypatch.setattr(ahead, "num_processors", lambda threads=threads: threads)
        done = onnx_ternary.optimize(chain(), options)
        results[threads] = done.to_proto().SerializeToString(deterministic=True)
        assert len(done.report.rewrites) == 7
        # All but the second use of w3 in another orientation, unless it is alone in its window.
        assert sum(taken) >= 6 if threads > 1 else not any(taken)
    assert results[1] == results[2] == results[8]


def test_external_tensors_are_mapped_apart_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(chain(), source, save_as_external_data=True, location="weights", size_threshold=0)
    contents = []
    for threads in (1, 3):
        monkeypatch.setattr(ahead, "num_processors", lambda threads=threads: threads)
        target = tmp_path / "out.onnx"
        onnx_ternary.convert(source, target, verify_result=False)
        contents.append(target.read_bytes())
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert str(tmp_path / "weights") not in maps.read_text()
    assert contents[0] == contents[1]


@pytest.fixture
def products() -> list[ir.Node]:
    nodes = ir.from_proto(chain()).graph
    return [each for each in nodes if each.op_type in ("MatMul", "Gemm")]


def weight(product: ir.Node) -> Constant:
    assert product.inputs[1] is not None
    found = resolve(product.inputs[1])
    assert isinstance(found, Constant)
    return found


def test_a_wrong_guess_is_not_used(products: list[ir.Node]) -> None:
    with Ahead(OptimizeOptions(), 2) as reader:
        reader.start(products[:1])
        assert reader.take(weight(products[0]).transposed()) is None
        reader.start(products[:1])
        reader.drop(products[0])
        assert reader.take(weight(products[0])) is None
        reader.start(products[:1], known=weight(products[0]).key)
        assert reader.take(weight(products[0])) is None
        reader.start(products[:1])
        assert reader.take(weight(products[0])) is not None


def test_memory_is_bounded(products: list[ir.Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MAX_BYTES", 2 * 4 * SIZE * SIZE)
    first, second, third = products[0], products[1], products[3]
    with Ahead(OptimizeOptions(), 8) as reader:
        reader.start([first, second, third])
        assert reader.take(weight(third)) is None
        assert reader.take(weight(second)) is not None


def test_an_interrupt_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "num_processors", lambda: 4)

    def interrupted(self: Context, weight: Constant) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Context, "ternarize", interrupted)
    kept: list[Ahead] = []
    enter = Ahead.__enter__
    monkeypatch.setattr(Ahead, "__enter__", lambda self: kept.append(self) or enter(self))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(ir.from_proto(chain()), OptimizeOptions())
    (reader,) = kept
    with pytest.raises(RuntimeError, match="shutdown"):
        reader.start(list(ir.from_proto(chain()).graph)[:1])
