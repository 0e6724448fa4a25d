"""GGUF files are built into what the checkpoints they were written from are built into."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest

from onnx_ternary import BuildOptions, build
from onnx_ternary.building.gguf_file import GgufFile
from onnx_ternary.building.gguf_header import read_header
from onnx_ternary.errors import ModelError
from onnx_ternary.op.nodes import DIGEST_KEY
from tests.support.checkpoints import Layout, write_checkpoint
from tests.support.command_line import run
from tests.support.gguf_files import Q1_0, encode_q1_0, write_gguf

KINDS = gguf.GGMLQuantizationType
TQ2_0 = KINDS.TQ2_0
# Rows of 256 levels fill a ternary block.
SIZES = {"intermediate_size": 512, "num_hidden_layers": 2}


def digests(folder: Path) -> dict[str, str]:
    """What every node of the op multiplies by."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {
        node.name: entry.value
        for node in model.graph.node
        for entry in node.metadata_props
        if entry.key == DIGEST_KEY
    }


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("layout", "kind", "table"),
    [
        ("llama-plain", KINDS.TQ1_0, KINDS.F32),
        ("llama-plain", KINDS.TQ2_0, KINDS.BF16),
        ("bitnet-packed", KINDS.TQ2_0, KINDS.BF16),
        ("qwen-binary", Q1_0, Q1_0),
        ("qwen-groups", KINDS.F16, KINDS.F16),
    ],
)
def test_a_file_is_built_into_the_checkpoints_model(
    tmp_path: Path, tokenizer: Path, layout: Layout, kind: int, table: int
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", layout, **SIZES)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, kind, table=table)
    expected = build(checkpoint, tmp_path / "expected", verify_result=False)
    result = build(path, tmp_path / "built", tokenizer=tokenizer)
    assert result.verification is not None
    assert result.verification.passed
    assert result.activation == expected.activation
    assert result.products == expected.products
    assert digests(tmp_path / "built") == digests(tmp_path / "expected")
    assert len(digests(tmp_path / "built")) >= 14
    one, other = (
        json.loads((tmp_path / name / "genai_config.json").read_text())
        for name in ("built", "expected")
    )
    assert one == other
    assert (tmp_path / "built/tokenizer.json").is_file()


def test_tensors_of_the_library_s_other_types_are_its_numbers(
    tmp_path: Path, tokenizer: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **SIZES)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0, table=KINDS.Q8_0)
    (expected,) = (
        each for each in gguf.GGUFReader(path).tensors if each.name == "token_embd.weight"
    )
    found = GgufFile(path, tokenizer)
    assert found.dtype("model.embed_tokens.weight") == np.float32
    rows = found.read("model.embed_tokens.weight", 3, 9)
    assert np.array_equal(rows, gguf.dequantize(expected.data, KINDS.Q8_0)[3:9])
    build(path, tmp_path / "built", BuildOptions(head="int8"), tokenizer=tokenizer)


def test_bits_of_q1_0_are_signs(tmp_path: Path, tokenizer: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen-binary", **SIZES)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, Q1_0, table=Q1_0)
    name = "model.layers.1.mlp.down_proj.weight"
    found = GgufFile(path, tokenizer).read(name)
    assert found.dtype == np.float16
    assert len(np.unique(np.abs(found[:, :128]))) > 1
    assert encode_q1_0(found).tobytes() in path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "name"), [(36, "I2_S of microsoft/BitNet"), (42, "Q2_0"), (99, "number 99")]
)
def test_types_that_are_not_read_are_refused_by_name(
    tmp_path: Path, tokenizer: Path, kind: int, name: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **SIZES)
    extra = {"blk.0.more.weight": kind}
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0, extra=extra)
    with pytest.raises(ModelError, match=rf"'blk.0.more.weight' of .* is of type {name}, which"):
        build(path, tmp_path / "built", tokenizer=tokenizer)
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("values", "extra", "reason"),
    [
        ({"split.count": 3}, {}, "split.count = 3"),
        ({"llama.expert_count": 8}, {}, "llama.expert_count = 8"),
        ({"llama.attention.sliding_window": 64}, {}, "sliding_window = 64"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "rope.scaling.type = 'yarn'"),
        ({"llama.rope.dimension_count": 32}, {}, "rope.dimension_count = 32"),
        ({"llama.block_count": 0}, {}, "llama.block_count is 0, expected a positive integer"),
        ({"general.architecture": "falcon"}, {}, "architecture 'falcon' is not implemented"),
        ({}, {"rope_freqs.weight": 0}, "the RoPE scaling of Llama 3, is not implemented"),
        ({}, {"blk.0.attn_q.bias": 0}, "the first is 'model.layers.0.self_attn.q_proj.bias'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, tokenizer: Path, values: dict[str, Any], extra: dict[str, int], reason: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **SIZES)
    extra = {name: TQ2_0 if kind == 0 else kind for name, kind in extra.items()}
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0, values=values, extra=extra)
    with pytest.raises(ModelError, match=reason):
        build(path, None, tokenizer=tokenizer)


def test_a_tokenizer_is_needed(tmp_path: Path, tokenizer: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **SIZES)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0)
    done = run("build", path, tmp_path / "built", check=1)
    assert "give the folder with tokenizer.json: --tokenizer FOLDER" in done.stderr
    done = run("build", path, tmp_path / "built", "--tokenizer", path, check=1)
    assert "is not a folder; expected a tokenizer's files" in done.stderr
    run("build", path, tmp_path / "built", "--tokenizer", tokenizer, "--no-verify")
    assert (tmp_path / "built/tokenizer.json").read_text() == "{}"


def test_a_missing_library_is_named(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"needs the gguf library; .*onnx-ternary\[genai\]"):
        build(tmp_path / "model.gguf", None, tokenizer=tokenizer)


def header(*values: bytes, version: int = 3, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(values)) + b"".join(values)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGML" + bytes(40), "has no GGUF at its beginning"),
        (header(version=1), "is version 1; expected version 2 or 3"),
        (header(version=3 << 24), "is of the other byte order"),
        (header(tensors=1 << 40), "has 1099511627776 tensors, at most 65536 are read"),
        (header(text(b"a") + struct.pack("<I", 99)), "metadata of the unknown type 99"),
        (header(text(b"\xff") + struct.pack("<I", 4)), "text that is no UTF-8 in metadata"),
        (header(struct.pack("<Q", 1 << 60)), "has a name of 1152921504606846976 bytes"),
        (header(text(b"a") + struct.pack("<IQ", 8, 1 << 60)), "ends within its header"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 60)), "has an array of 1152921504"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "has an array of 1 elements of type 9"),
        (header(*[text(b"a") + struct.pack("<II", 4, 1)] * 2), "has the metadata key 'a' twice"),
        (
            header(text(b"general.alignment") + struct.pack("<II", 4, 48)),
            "general.alignment 48, expected a power of two",
        ),
        (header(tensors=1) + text(b"t") + struct.pack("<I", 5), "gives tensor 't' 5 dimensions"),
        (
            header(tensors=2) + (text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2,
            "has the tensor 't' twice",
        ),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        read_header(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    small = {**SIZES, "num_hidden_layers": 1, "vocab_size": 32}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **small)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0)
    content = path.read_bytes()
    first = min(each.offset for each in read_header(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for size in (*range(4, first, 7), first, len(content) - 100):
        cut.write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"ends within its header|does not lie within"):
            GgufFile(cut, tokenizer)


def test_changed_bytes_are_an_error_or_another_model(tmp_path: Path, tokenizer: Path) -> None:
    """Nothing but ModelError comes out of a damaged header, and nothing takes long."""
    small = {**SIZES, "num_hidden_layers": 1, "vocab_size": 32}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-plain", **small)
    path = write_gguf(tmp_path / "model.gguf", checkpoint, TQ2_0)
    content = path.read_bytes()
    first = min(each.offset for each in read_header(path).tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        for at in rng.integers(0, first, 2):
            changed[at] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        try:
            found = GgufFile(path, tokenizer)
            for name in found:
                found.read(name)
            found.json("config.json")
        except ModelError:
            refused += 1
    assert 50 < refused < 300
