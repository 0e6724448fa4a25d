"""transformers' BitNet, from both torch exporters, converted: every product, the loss, the cache.

What the criteria can prove: 4032 predicted tokens resolve a top-1 agreement of 0.025 points, and
the network has learned its text, so that columns of any product in the wrong place cost loss
(`test_criterion_finds_columns_in_the_wrong_place`). They cannot see a wrong scale in front of a
norm (v, gate and up projections), nor judge a single logit where activations are quantized: one
value that rounds the other way moves it more than any product's error. `verify` judges each product
by its own bound.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import onnx_ternary
from onnx_ternary.schema import OP_TYPE

for _package in ("torch", "transformers", "onnxscript"):
    pytest.importorskip(
        _package, reason=f"{_package} is not installed; pip install '.[exporters]' does it"
    )

from tests.exporters import bitnet  # noqa: E402

MAX_LOSS_CHANGE = 3e-4
MIN_TOP1_AGREEMENT = 1 - 0.003
MAX_RELATIVE_LOGIT_CHANGE = 1e-4
TOKENS = bitnet.text(64, 64, seed=1)

pytestmark = pytest.mark.filterwarnings("ignore")  # Exporters warn a lot; not ours to answer.


@dataclasses.dataclass(frozen=True)
class Case:
    """One form of the network from one exporter."""

    form: str
    original: Path
    converted: Path
    result: onnx_ternary.OptimizeResult

    @property
    def is_quantized(self) -> bool:
        """Whether activations are."""
        return self.form != "linear"


@pytest.fixture(scope="module")
def trained() -> bitnet.BitNetForCausalLM:
    return bitnet.trained()


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exporter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=bitnet.FORMS)
def case(
    request: pytest.FixtureRequest,
    exporter: str,
    trained: bitnet.BitNetForCausalLM,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    folder = tmp_path_factory.mktemp("bitnet")
    original, converted = folder / "original.onnx", folder / "converted.onnx"
    bitnet.export(bitnet.in_form(trained, request.param), original, dynamo=exporter == "dynamo")
    result = onnx_ternary.optimize(original)
    result.save(converted)
    return Case(request.param, original, converted, result)


def _run(
    session: ort.InferenceSession,
    tokens: NDArray[np.int64],
    past: list[NDArray[np.float32]] | None = None,
) -> list[NDArray[np.float32]]:
    """Logits and the cache behind these tokens."""
    batch, length = tokens.shape
    if past is None:
        shape = (batch, bitnet.CONFIG.num_key_value_heads, 0, bitnet.HEAD_SIZE)
        past = [np.zeros(shape, np.float32)] * len(bitnet.PAST)
    mask = np.ones((batch, past[0].shape[2] + length), np.int64)
    feeds = dict(zip(bitnet.PAST, past, strict=True))
    results: list[NDArray[np.float32]] = session.run(
        None, {"input_ids": tokens, "attention_mask": mask, **feeds}
    )
    return results


def _logits(session: ort.InferenceSession) -> NDArray[np.float32]:
    return _run(session, TOKENS)[0]


def _assert_same_answers(
    found: NDArray[np.float32], expected: NDArray[np.float32], *, quantized: bool
) -> None:
    if not quantized:
        assert np.abs(found - expected).max() <= MAX_RELATIVE_LOGIT_CHANGE * np.abs(expected).max()
    tokens = TOKENS[:, : found.shape[1]]
    ours, theirs = bitnet.quality(found, tokens), bitnet.quality(expected, tokens)
    assert abs(ours.loss - theirs.loss) <= MAX_LOSS_CHANGE
    assert np.mean(ours.top1 == theirs.top1) >= MIN_TOP1_AGREEMENT


def test_every_ternary_product_is_rewritten(case: Case) -> None:
    report = case.result.report
    assert len(report.rewrites) == bitnet.NUM_TERNARY
    hidden, inner = bitnet.CONFIG.hidden_size, bitnet.CONFIG.intermediate_size
    sizes = [(row.K, row.N) for row in report.rewrites]
    assert sizes.count((hidden, inner)) == 2 * bitnet.CONFIG.num_hidden_layers
    assert sizes.count((inner, hidden)) == bitnet.CONFIG.num_hidden_layers
    # The embedding is the only other weight: no dead float copy of a ternary one stays behind.
    assert report.bytes_after < 1.5 * 4 * hidden * bitnet.VOCABULARY + sum(K * N for K, N in sizes)
    activations = {row.activation for row in report.rewrites}
    assert activations in ({"float"}, {"int8"})
    assert case.is_quantized or activations == {"float"}


def test_every_product_is_within_its_bound(case: Case) -> None:
    feeds = dict(
        zip(
            bitnet.PAST,
            np.random.default_rng(0)
            .standard_normal((len(bitnet.PAST), 2, 2, 3, bitnet.HEAD_SIZE))
            .astype(np.float32),
            strict=True,
        ),
        input_ids=TOKENS[:2, :16],
        attention_mask=np.ones((2, 19), np.int64),
    )
    report = onnx_ternary.verify(case.original, case.converted, inputs=feeds)
    assert [check.status for check in report.products] == ["passed"] * bitnet.NUM_TERNARY
    assert report.passed, report.summary()


def test_the_whole_decoder_is_compared_with_no_inputs_given(case: Case) -> None:
    report = onnx_ternary.verify(case.original, case.converted)
    assert report.passed, report.summary()
    assert len(report.outputs) == 1 + len(bitnet.PAST)
    assert {check.status for check in report.products} == {"passed"}


def test_network_has_learnt_its_text(case: Case) -> None:
    result = bitnet.quality(_logits(ort.InferenceSession(case.original)), TOKENS)
    # Guessing costs log(64) = 4.16; nobody can be right about one token of ten.
    assert result.loss < 2
    assert np.mean(result.top1 == TOKENS[:, 1:]) > 0.8


def test_converted_model_gives_the_same_answers(case: Case) -> None:
    expected = _logits(ort.InferenceSession(case.original))
    found = _logits(onnx_ternary.InferenceSession(case.converted))
    _assert_same_answers(found, expected, quantized=case.is_quantized)


def test_decoding_with_the_cache_equals_prefill(case: Case) -> None:
    session = onnx_ternary.InferenceSession(case.converted)
    prefill, *cache = _run(session, TOKENS)
    logits, *past = _run(session, TOKENS[:, :8])
    steps = [logits]
    for position in range(8, TOKENS.shape[1]):
        logits, *past = _run(session, TOKENS[:, position : position + 1], past)
        steps.append(logits)
    assert [each.shape for each in past] == [each.shape for each in cache]
    _assert_same_answers(np.concatenate(steps, axis=1), prefill, quantized=case.is_quantized)


def test_criterion_finds_columns_in_the_wrong_place(case: Case) -> None:
    expected = bitnet.quality(_logits(ort.InferenceSession(case.original)), TOKENS)
    for product in range(bitnet.NUM_TERNARY):
        model = onnx.load(case.converted)
        nodes = [node for node in model.graph.node if node.op_type == OP_TYPE]
        name = nodes[product].input[1]
        (codes,) = (each for each in model.graph.initializer if each.name == name)
        moved = np.roll(numpy_helper.to_array(codes), 1, axis=0)
        codes.CopyFrom(numpy_helper.from_array(moved, name))
        session = onnx_ternary.InferenceSession(model.SerializeToString())
        found = bitnet.quality(_logits(session), TOKENS)
        assert abs(found.loss - expected.loss) > 10 * MAX_LOSS_CHANGE, nodes[product].name
