"""Text embedding models of BitNet-embedding's layout; tests/genai compares them with torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnx_ternary import BuildOptions, build, register
from onnx_ternary.building import verification
from onnx_ternary.building.checkpoint import Checkpoint
from onnx_ternary.building.config import Pooling
from onnx_ternary.building.embedding import embedding_config
from onnx_ternary.building.reference import Reference, Rounding, pooled
from onnx_ternary.errors import ModelError, VerificationError
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import run

EMBEDDING = BuildOptions(task="embedding")
NUM_LAYERS = 3


def as_embedding(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
    """Bodies without a head: other names, a norm in front of every matrix, float masters."""
    config |= {"model_type": "qwen3", "architectures": ["Qwen3Model"]}
    rng = np.random.default_rng(7)
    for name, array in list(tensors.items()):
        del tensors[name]
        bare = name.removeprefix("model.")
        if name.endswith("_proj.weight"):
            gain = rng.uniform(0.5, 1.5, array.shape[1]).astype(np.float32)
            tensors[f"{bare.removesuffix('.weight')}.norm.weight"] = gain
            array = rng.standard_normal(array.shape).astype(np.float32) * 0.06
        tensors[bare] = array


def write_modules(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    """What sentence-transformers writes."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", "qwen-groups", change=as_embedding)


def embed(folder: Path, *texts: list[int]) -> NDArray[np.float32]:
    """Embeddings of texts in one batch, padded behind their ends."""
    session = ort.InferenceSession(
        folder / "model.onnx", register(ort.SessionOptions()), providers=["CPUExecutionProvider"]
    )
    length = max(map(len, texts))
    tokens = np.full((len(texts), length), 9, np.int64)
    mask = np.zeros_like(tokens)
    for number, text in enumerate(texts):
        tokens[number, : len(text)] = text
        mask[number, : len(text)] = 1
    (found,) = session.run(None, {"input_ids": tokens, "attention_mask": mask})
    return np.asarray(found)


def expected(checkpoint: Path, pooling: Pooling, text: list[int], rounding: Rounding) -> Any:
    source = Checkpoint(checkpoint)
    config = embedding_config(source, "mean")

    def of_product(name: str) -> Rounding:
        return rounding

    return pooled(Reference(source, config, NUM_LAYERS, of_product).hidden(np.array(text)), pooling)


@pytest.mark.parametrize(
    ("named", "more", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Normalize",), Pooling("mean", True)),
        ({"pooling_mode_lasttoken": True}, (), Pooling("last", False)),
        ({"pooling_mode": "lasttoken"}, ("Normalize",), Pooling("last", True)),
        ({"pooling_mode": "mean"}, (), Pooling("mean", False)),
    ],
)
def test_embeddings_are_the_checkpoints(
    tmp_path: Path,
    checkpoint: Path,
    named: dict[str, Any],
    more: tuple[str, ...],
    pooling: Pooling,
) -> None:
    write_modules(checkpoint, {"pooling_mode_cls_token": False, **named}, *more)
    result = build(checkpoint, tmp_path / "built", EMBEDDING)
    assert result.activation == "int8"
    assert result.verification is not None
    assert result.verification.to_dict()["embeddings"]["found"] >= 0
    assert len(result.products) == 7 * NUM_LAYERS
    assert {each["kind"] for each in result.products} == {"ternary"}
    names = {path.name for path in (tmp_path / "built").iterdir()}
    assert "genai_config.json" not in names
    texts = [[5, 6, 7, 8, 9, 10, 11], [300, 2, 17], [44]]
    found = embed(tmp_path / "built", *texts)
    for row, text in zip(found, texts, strict=True):
        exact = expected(checkpoint, pooling, text, "int8")
        other = expected(checkpoint, pooling, text, "none")
        assert np.linalg.norm(row - exact) < np.linalg.norm(other - exact) / 4
        assert (abs(np.linalg.norm(row) - 1) < 1e-5) == pooling.normalize


def test_padding_changes_nothing(tmp_path: Path, checkpoint: Path) -> None:
    for pooling in ("mean", "last"):
        options = dataclasses.replace(EMBEDDING, pooling=pooling)
        build(checkpoint, tmp_path / pooling, options, verify_result=False)
        text = [17, 200, 31, 8]
        alone = embed(tmp_path / pooling, text)
        padded = embed(tmp_path / pooling, [3] * 25, text)
        # Sums of floats in another order: 256 terms of every norm and product.
        assert np.abs(padded[1] - alone[0]).max() <= 256 * 2.0**-23 * np.abs(alone).max()


def test_a_body_without_norms_keeps_what_its_config_says(tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        config["model_type"] = "qwen3"

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-groups", change=change)
    options = dataclasses.replace(EMBEDDING, pooling="last")
    result = build(checkpoint, tmp_path / "built", options)
    assert result.activation == "float"
    assert result.verification is not None
    assert result.verification.passed


def test_verification_rejects_another_pooling(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(hidden: Any, pooling: Pooling) -> Any:
        return pooled(hidden, Pooling("mean", pooling.normalize))

    monkeypatch.setattr(verification, "pooled", other)
    options = dataclasses.replace(EMBEDDING, pooling="last")
    with pytest.raises(VerificationError, match=r"failed: embeddings;.*Nothing was written"):
        build(checkpoint, tmp_path / "built", options)
    assert not (tmp_path / "built").exists()


def test_a_missing_norm_is_named(tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        as_embedding(config, tensors)
        del tensors["layers.1.mlp.up_proj.norm.weight"]

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-groups", change=change)
    options = dataclasses.replace(EMBEDDING, pooling="mean")
    with pytest.raises(ModelError, match=r"none in front of 'model\.layers\.1\.mlp\.up_proj\.we"):
        build(checkpoint, None, options)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not implemented for text"),
        ({"is_causal": False}, "is_causal = False is not implemented"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not"),
    ],
)
def test_bodies_that_are_not_implemented_are_refused_by_name(
    checkpoint: Path, config: dict[str, Any], reason: str
) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ModelError, match=reason):
        build(checkpoint, None, dataclasses.replace(EMBEDDING, pooling="mean"))


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ("[]", "does not say how texts are pooled: .*give --pooling mean or --pooling last"),
        ("{}", "holds no JSON list"),
        ("[1]", "has an entry without a type"),
        ('[{"type": "a.Dense"}]', "the module 'Dense' is not implemented"),
        ('[{"type": "a.Pooling", "path": "../1_Pooling"}]', "is no folder's name"),
    ],
)
def test_modules_that_are_not_implemented_are_refused(
    checkpoint: Path, modules: str, reason: str
) -> None:
    (checkpoint / "modules.json").write_text(modules)
    with pytest.raises(ModelError, match=reason):
        build(checkpoint, None, EMBEDDING)


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ({"pooling_mode_cls_token": True}, "pooling by pooling_mode_cls_token is not implemented"),
        ({}, "pooling by nothing is not implemented"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "pooling by pooling_mode_mean_tokens, pooling_mode_max_tokens",
        ),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt = False"),
    ],
)
def test_poolings_that_are_not_implemented_are_refused(
    checkpoint: Path, pooling: dict[str, Any], reason: str
) -> None:
    write_modules(checkpoint, pooling)
    with pytest.raises(ModelError, match=reason):
        build(checkpoint, None, EMBEDDING)


def test_the_command_builds_an_embedding(tmp_path: Path, checkpoint: Path) -> None:
    done = run("build", checkpoint, tmp_path / "no", "--pooling", "mean", check=1)
    assert "give --task embedding with --pooling" in done.stderr
    done = run("build", checkpoint, tmp_path / "a", "--task", "embedding", "--pooling", "mean")
    assert "embeddings behind the first 2 layers" in " ".join(done.stdout.split())
