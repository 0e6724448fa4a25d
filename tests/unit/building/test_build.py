"""`build` as a whole: every layout runs, is verified, and leaves nothing behind where it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import onnx_ternary
from onnx_ternary import BuildOptions, BuildResult, build, register
from onnx_ternary.building import verification
from onnx_ternary.building.checkpoint import Checkpoint
from onnx_ternary.building.config import DecoderConfig
from onnx_ternary.building.reference import Reference, Rounding, round_rows
from onnx_ternary.building.tensor_file import TensorFile
from onnx_ternary.building.weights import TABLE
from onnx_ternary.errors import ModelError, VerificationError
from onnx_ternary.model_files.load import load
from onnx_ternary.op.nodes import check_indices
from tests.support.checkpoints import SIZES, Layout, write_checkpoint

LAYOUTS = get_args(Layout)
NUM_PRODUCTS = 7 * int(SIZES["num_hidden_layers"]) + 1


def run(
    folder: Path, tokens: NDArray[np.int64], past: dict[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """All outputs of a built model for one sequence, by name."""
    session = ort.InferenceSession(
        folder / "model.onnx", register(ort.SessionOptions()), providers=["CPUExecutionProvider"]
    )
    caches = [each for each in session.get_inputs() if each.name.startswith("past")]
    length = 0 if past is None else next(iter(past.values())).shape[2]
    feeds: dict[str, NDArray[Any]] = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        if past is None
        else past[each.name.replace("past_key_values", "present")]
        for each in caches
    }
    feeds["input_ids"] = tokens[None]
    feeds["attention_mask"] = np.ones((1, length + len(tokens)), np.int64)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def expected_logits(checkpoint: Path, tokens: NDArray[np.int64], rounding: Rounding) -> Any:
    source = Checkpoint(checkpoint)
    config = DecoderConfig.read(source.json("config.json"))

    def of_product(name: str) -> Rounding:
        return rounding

    reference = Reference(source, config, config.layers, of_product)
    return np.concatenate(list(reference.logits(reference.hidden(tokens))), axis=-1)


def distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layers_give_the_checkpoints_logits(tmp_path: Path, layout: Layout) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    result = build(checkpoint, tmp_path / "out", verify_result=False)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], 20)
    logits = run(tmp_path / "out", tokens)["logits"][0]
    int8 = result.activation == "int8"
    expected = expected_logits(checkpoint, tokens, "int8" if int8 else "none")
    # The rounding of activations is what int8 may differ by, and float16's what float32 may.
    other = expected_logits(checkpoint, tokens, "none" if int8 else "float16")
    assert distance(logits, expected) < distance(other, expected)
    assert distance(logits, expected) < distance(other, np.roll(expected, 1, axis=0)) / 100


@pytest.mark.parametrize("layout", ["bitnet-packed", "qwen-groups"])
def test_the_cache_continues_a_sequence(tmp_path: Path, layout: Layout) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    build(checkpoint, tmp_path / "out", BuildOptions(activation="keep"), verify_result=False)
    tokens = np.random.default_rng(2).integers(0, SIZES["vocab_size"], 12)
    whole = run(tmp_path / "out", tokens)["logits"][0]
    first = run(tmp_path / "out", tokens[:7])
    rest = run(tmp_path / "out", tokens[7:], {k: v for k, v in first.items() if "present" in k})
    other = expected_logits(checkpoint, tokens, "float16")
    allowed = distance(other, expected_logits(checkpoint, tokens, "none"))
    assert distance(rest["logits"][0], whole[7:]) < allowed


@pytest.mark.parametrize(
    ("layout", "head"),
    [
        *((layout, "keep") for layout in LAYOUTS),
        ("bitnet-packed", "int8"),
        ("llama-plain", "int4"),
        ("qwen-groups", "int8"),
    ],
)
def test_verification_accepts_every_layout_and_head(
    tmp_path: Path, layout: Layout, head: Any
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    result = build(checkpoint, tmp_path / "out", BuildOptions(head=head))
    assert result.verification is not None
    assert result.verification.passed
    kinds = [row["kind"] for row in result.products]
    assert len(kinds) == NUM_PRODUCTS
    ternary = "binary" if layout == "qwen-binary" else "ternary"
    last = {"keep": "float"}.get(head, "MatMulNBits")
    assert kinds == [ternary] * (NUM_PRODUCTS - 1) + [
        ternary if layout.startswith("qwen") else last
    ]
    is_shared = layout.startswith("qwen")
    assert len(result.verification.products) == kinds.count(ternary) + is_shared
    assert (TABLE in result.verification.products) == is_shared


def test_a_larger_head_of_eight_bits_is_nearer_than_one_of_four(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-packed")
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], 20)
    logits = {}
    sizes = {}
    for head in ("keep", "int8", "int4"):
        done = build(checkpoint, tmp_path / head, BuildOptions(head=head), verify_result=False)  # type: ignore[arg-type]
        logits[head] = run(tmp_path / head, tokens)["logits"][0]
        sizes[head] = done.products[-1]["bytes"]
    assert 0 < distance(logits["int8"], logits["keep"]) < distance(logits["int4"], logits["keep"])
    assert sizes["int4"] < sizes["int8"] < sizes["keep"]


@pytest.mark.parametrize(
    ("layout", "activation", "expected"),
    [
        ("bitnet-packed", "auto", "int8"),
        ("bitnet-online", "auto", "int8"),
        ("llama-packed", "auto", "int8"),
        ("llama-plain", "auto", "float"),
        ("qwen-groups", "auto", "float"),
        ("bitnet-packed", "keep", "float"),
        ("llama-plain", "int8", "int8"),
    ],
)
def test_activations_follow_how_the_checkpoint_was_trained(
    tmp_path: Path, layout: Layout, activation: Any, expected: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    result = build(checkpoint, None, BuildOptions(activation=activation))
    assert result.activation == expected


def test_the_folder_has_what_genai_asks_for(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-packed", eos_token_id=[1, 2])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (checkpoint / name).write_text("{}")
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 7}')
    result = build(checkpoint, tmp_path / "out", verify_result=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    library = Path(onnx_ternary.get_library_path())
    assert names == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        library.name,
    }
    assert {path.name for path in result.files} == names
    assert not (tmp_path / "out" / library.name).is_symlink()
    assert (tmp_path / "out" / library.name).read_bytes() == library.read_bytes()
    config = json.loads((tmp_path / "out/genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert decoder["session_options"]["custom_ops_library"] == library.name
    assert config["model"]["eos_token_id"] == [1, 2]
    assert config["model"]["pad_token_id"] == 1
    assert (config["search"]["temperature"], config["search"]["top_k"]) == (0.5, 7)
    session = ort.InferenceSession(
        tmp_path / "out/model.onnx",
        register(ort.SessionOptions()),
        providers=["CPUExecutionProvider"],
    )
    inputs = {each.name for each in session.get_inputs()}
    for part, names_of in (
        ("inputs", inputs),
        ("outputs", {o.name for o in session.get_outputs()}),
    ):
        for name in decoder[part].values():
            layers = range(decoder["num_hidden_layers"]) if "%d" in name else range(1)
            assert {name.replace("%d", str(layer)) for layer in layers} <= names_of
    assert result.notes == ()


def test_the_folder_can_be_read_by_whom_a_new_folder_can(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    build(checkpoint, tmp_path / "out", verify_result=False)
    (tmp_path / "plain").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "plain")]
    assert modes[0] == modes[1]


def test_tensors_are_page_aligned(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-packed")
    build(checkpoint, tmp_path / "out", verify_result=False)
    model = onnx.load(tmp_path / "out/model.onnx", load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    assert len(places) > NUM_PRODUCTS
    assert all(int(place["offset"]) % 4096 == 0 for place in places)


def test_every_index_has_the_digest_it_is_checked_by(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-groups")
    build(checkpoint, tmp_path / "out", verify_result=False)
    checked = check_indices(load(tmp_path / "out/model.onnx").model)
    assert len(checked) == NUM_PRODUCTS + 1  # the embedding reads the head's


@pytest.mark.parametrize("layout", ["qwen-groups", "qwen-binary"])
def test_a_tied_ternary_table_is_stored_once(tmp_path: Path, layout: Layout) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    result = build(checkpoint, tmp_path / "out")
    assert any("embedding reads rows of the head's index" in note for note in result.notes)
    graph = onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph
    names = {each.name for each in graph.initializer}
    assert TABLE not in names
    (gather,) = (each for each in graph.node if each.op_type == "TernaryIndexedGather")
    (head,) = (each for each in graph.node if "logits" in each.output)
    assert (gather.input[1], gather.input[2]) == (head.input[1], head.input[3])
    # Rows that the model reads are the checkpoint's, in the library and without it.
    tokens = np.random.default_rng(4).integers(0, SIZES["vocab_size"], 20)
    rows = Checkpoint(checkpoint).read(TABLE)[tokens].astype(np.float32)
    model = onnx.load(tmp_path / "out/model.onnx")
    shape = ["batch", "length", rows.shape[1]]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(gather.output[0], onnx.TensorProto.FLOAT, shape)
    )
    for options in (register(ort.SessionOptions()), ort.SessionOptions()):
        session = ort.InferenceSession(model.SerializeToString(), options)
        feeds = {
            each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
            for each in session.get_inputs()
            if each.name.startswith("past")
        }
        feeds |= {"input_ids": tokens[None], "attention_mask": np.ones((1, 20), np.int64)}
        np.testing.assert_array_equal(session.run([gather.output[0]], feeds)[0][0], rows)


def test_rows_of_a_shared_table_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-groups")
    real = verification.rows_model

    def with_another_row(head: Any, tensors: Any) -> onnx.ModelProto:
        model = real(head, tensors)
        model.graph.node[0].input[0] = "wrong"
        one = onnx.numpy_helper.from_array(np.array(1), "one")
        model.graph.initializer.append(one)
        first = onnx.helper.make_node("BitwiseXor", ["input_ids", "one"], ["wrong"])
        model.opset_import[0].version = 18
        model.graph.node.insert(0, first)
        return model

    monkeypatch.setattr(verification, "rows_model", with_another_row)
    with pytest.raises(VerificationError, match=f"{TABLE}; hidden"):
        build(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_apart_from_a_ternary_head_stays(tmp_path: Path) -> None:
    def untie(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = False
        tensors["lm_head.weight"] = tensors[TABLE]
        tensors[TABLE] = tensors[TABLE] * np.float16(0.5)

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-groups", change=untie)
    build(checkpoint, tmp_path / "out")
    graph = onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph
    assert TABLE in {each.name for each in graph.initializer}
    assert "TernaryIndexedGather" not in {each.op_type for each in graph.node}


def test_shards_give_the_same_model(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", "bitnet-packed")
    many = write_checkpoint(tmp_path / "many", "bitnet-packed", shards=3)
    digests = []
    for checkpoint in (one, many):
        out = tmp_path / f"{checkpoint.name}-out"
        build(checkpoint, out, verify_result=False)
        digests.append(hashlib.sha256((out / "model.onnx.data").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_without_the_library_the_body_gives_the_same_logits(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    build(checkpoint, tmp_path / "out", verify_result=False)
    tokens = np.arange(9)
    with_library = run(tmp_path / "out", tokens)["logits"][0]
    session = ort.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    feeds = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past")
    }
    feeds["input_ids"], feeds["attention_mask"] = tokens[None], np.ones((1, 9), np.int64)
    without = session.run(["logits"], feeds)[0][0]
    exact, other = (expected_logits(checkpoint, tokens, each) for each in ("none", "float16"))
    assert distance(without, with_library) < distance(other, exact)


def test_a_dry_run_writes_nothing_and_says_the_size(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-packed")
    before = sorted(tmp_path.rglob("*"))
    dry = build(checkpoint, None)
    assert sorted(tmp_path.rglob("*")) == before
    wet = build(checkpoint, tmp_path / "out", verify_result=False)
    # The model's own bytes hold the data file's name.
    assert abs(dry.num_bytes - wet.num_bytes) < 10_000
    assert dry.products == wet.products
    assert dry.files == ()


def test_the_report_says_what_became_of_every_product(tmp_path: Path) -> None:
    def damage(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 0.123

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", change=damage)
    result = build(checkpoint, tmp_path / "out", report_path=tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    rows = {row["name"]: row for row in written["products"]}
    assert rows["model.layers.1.mlp.up_proj.weight"]["kind"] == "float"
    assert "distinct magnitudes" in rows["model.layers.1.mlp.up_proj.weight"]["reason"]
    assert any("model.layers.1.mlp.up_proj.weight" in note for note in written["notes"])
    assert written["verification"]["passed"]


def test_a_large_float_head_is_named_with_what_int8_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-packed")
    assert not any("--head int8" in note for note in build(checkpoint, None).notes)
    head = SIZES["hidden_size"] * SIZES["vocab_size"] * 4
    monkeypatch.setattr(sys.modules[BuildResult.__module__], "_LARGE_HEAD_BYTES", head - 1)
    assert any("--head int8 saves" in note for note in build(checkpoint, None).notes)


# What is refused, and that nothing stays behind.


def refused(tmp_path: Path, checkpoint: Path, *, error: type[Exception] = ModelError) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        build(checkpoint, tmp_path / "out", report_path=tmp_path / "report.json")
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


def test_a_checkpoint_without_ternary_matrices_is_refused(tmp_path: Path) -> None:
    def forget(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        del config["quantization_config"]

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-online", change=forget)
    message = refused(tmp_path, checkpoint)
    assert "No matrix" in message
    assert "distinct magnitudes" in message


@pytest.mark.parametrize(
    ("name", "array", "named"),
    [
        ("model.layers.0.self_attn.q_proj.bias", np.zeros(256, np.float32), "q_proj.bias"),
        ("model.layers.9.mlp.up_proj.weight", np.zeros((384, 256), np.float32), "layers.9"),
        ("model.norm.weight", np.zeros(255, np.float32), "(255,), expected (256,)"),
        ("lm_head.weight", np.zeros((320, 128), np.float32), "(320, 128), expected (320, 256)"),
        ("model.layers.2.mlp.up_proj.weight", np.ones((384, 128), np.float32), "(384, 128)"),
        ("model.norm.weight", np.zeros(256, np.int32), "I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, array: NDArray[Any], named: str
) -> None:
    def add(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        tensors[name] = array

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", change=add)
    assert named in refused(tmp_path, checkpoint)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    def remove(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        del tensors["model.layers.1.input_layernorm.weight"]

    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", change=remove)
    assert "model.layers.1.input_layernorm.weight" in refused(tmp_path, checkpoint)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut short" in refused(tmp_path, checkpoint)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", shards=2)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../checkpoint/model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "There is no file" in refused(tmp_path, checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    (checkpoint / "config.json").write_text(content)
    assert "config.json" in refused(tmp_path, checkpoint)


def test_a_folder_with_files_is_not_touched(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "not an empty folder" in refused(tmp_path, checkpoint)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    (tmp_path / "out").mkdir()
    assert build(checkpoint, tmp_path / "out", verify_result=False).files
    assert (tmp_path / "out/model.onnx").is_file()


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    before = sorted(tmp_path.rglob("*"))

    def stop(name: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, tmp_path / "out", progress=stop)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain")
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused(tmp_path, checkpoint)
    finally:
        tmp_path.chmod(0o700)


# What verification refuses.


def test_a_wrong_byte_of_an_index_fails_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "bitnet-packed")
    add = TensorFile.add

    def damaged(self: TensorFile, name: str, array: NDArray[Any]) -> str:
        if name == "model.layers.2.mlp.down_proj.codes":
            array = array.copy()
            array.flat[17] ^= 0b11
        return add(self, name, array)

    monkeypatch.setattr(TensorFile, "add", damaged)
    message = refused(tmp_path, checkpoint, error=VerificationError)
    assert "model.layers.2.mlp.down_proj.weight" in message


@pytest.mark.parametrize("layout", ["bitnet-packed", "qwen-groups"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.5},
        {"rope": "other"},
        {"gate": "other"},
        {"norms": "other"},
    ],
    ids=lambda each: next(iter(each)),
)
def test_wrong_wiring_fails_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, wrong: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout)
    made = verification.decoder_model

    def miswired(config: DecoderConfig, stored: Any, tensors: Any, **options: Any) -> Any:
        if "epsilon" in wrong:
            config = dataclasses.replace(config, epsilon=wrong["epsilon"])
        if "gate" in wrong:
            config = dataclasses.replace(config, gate="silu" if config.gate == "relu2" else "relu2")
        if "norms" in wrong:
            config = dataclasses.replace(config, sub_norms=False, head_norms=False)
        if "rope" in wrong:
            swapped = {"cos_cache": "sin_cache", "sin_cache": "cos_cache"}
            model = made(config, stored, tensors, **options)
            for node in model.graph.node:
                node.input[:] = [swapped.get(each, each) for each in node.input]
            return model
        return made(config, stored, tensors, **options)

    monkeypatch.setattr(verification, "decoder_model", miswired)
    message = refused(tmp_path, checkpoint, error=VerificationError)
    assert "hidden states" in message


def test_rounding_to_float16_keeps_eleven_bits() -> None:
    x = np.random.default_rng(3).standard_normal((4, 64))
    half = x.astype(np.float16).astype(np.float64)
    normal = np.abs(x) > 2.0**-14
    np.testing.assert_array_equal(round_rows(x, "float16")[normal], half[normal])


def test_results_are_read_by_machines(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-binary")
    result = build(checkpoint, None)
    assert isinstance(result, BuildResult)
    json.dumps(result.to_dict())
