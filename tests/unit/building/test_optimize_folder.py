"""Converting a folder of onnxruntime-genai: the model, and everything around it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_ternary import build, export_file, get_library_path
from onnx_ternary.building.optimize_folder import decoder_inputs, optimize_folder
from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.conversion.settings import ConversionSettings
from onnx_ternary.errors import ModelError
from tests.support.checkpoints import SIZES, write_checkpoint
from tests.support.parses import count_parses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a builder without this package writes: float products, and files beside them."""
    place = tmp_path_factory.mktemp("folder")
    checkpoint = write_checkpoint(place / "checkpoint", "llama-plain")
    built = place / "built"
    build(checkpoint, built, verify_result=False)
    made = place / "made"
    made.mkdir()
    export_file(
        built / "model.onnx", made / "model.onnx", to="float", verify_result=False,
        external_data="always",
    )  # fmt: skip
    config = json.loads((built / "genai_config.json").read_text())
    del config["model"]["decoder"]["session_options"]["custom_ops_library"]
    (made / "genai_config.json").write_text(json.dumps(config))
    (made / "tokenizer.json").write_text("{}")
    (made / "more").mkdir()
    (made / "more/file.txt").write_text("kept")
    return made


def changed(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder whose only content is a changed configuration."""
    config = json.loads((folder / "genai_config.json").read_text())
    change(config)
    out.mkdir()
    (out / "genai_config.json").write_text(json.dumps(config))
    return out


def test_the_command_takes_a_folder(tmp_path: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "onnx_ternary", "optimize", str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "21 of 21 products" in done.stdout
    out = tmp_path / "out"
    library = Path(get_library_path()).name
    assert {each.name for each in out.iterdir()} == {
        "model.onnx",
        "genai_config.json",
        "tokenizer.json",
        "more",
        library,
    }
    assert (out / "more/file.txt").read_text() == "kept"
    config = json.loads((out / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["custom_ops_library"] == library


def test_a_dry_run_writes_nothing(tmp_path: Path, folder: Path) -> None:
    conversion = optimize_folder(folder, None)
    assert len(conversion.report.rewrites) == 21
    assert conversion.verification is not None
    assert conversion.verification.passed
    assert not list(tmp_path.iterdir())


def test_the_decoder_is_parsed_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses = count_parses(monkeypatch)
    optimize_folder(folder, tmp_path / "out")
    assert parses[(folder / "model.onnx").read_bytes()] == 1


def test_inputs_have_the_sizes_of_the_configuration(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    # As onnxruntime-genai's builder leaves them.
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    feeds = decoder_inputs(model, decoder)
    assert feeds is not None
    cache = feeds["past_key_values.2.value"]
    assert (cache.shape, cache.dtype) == ((1, 2, 4, SIZES["head_dim"]), np.float32)
    assert feeds["input_ids"].shape == (1, 8)
    assert feeds["attention_mask"].shape == (1, 12)


def test_an_input_of_unknown_role_is_left_to_the_user(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    model.graph.input[0].name = "pixels"
    assert decoder_inputs(model, decoder) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config["model"].pop("decoder"), "names no decoder in one file"),
        (lambda config: config["model"]["decoder"].update(filename="../a.onnx"), "names no"),
        (lambda config: config["model"]["decoder"].update(pipeline=[{}]), "names no decoder"),
        (
            lambda config: config["model"]["decoder"]["session_options"].update(
                custom_ops_library="other.so"
            ),
            "names the operator library 'other.so' already",
        ),
        (lambda config: config["model"]["decoder"].update(filename="b.onnx"), "b.onnx"),
    ],
)
def test_folders_that_cannot_be_converted_are_refused(
    tmp_path: Path, folder: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    source = changed(folder, tmp_path / "source", change)
    with pytest.raises(ModelError) as error:
        optimize_folder(source, tmp_path / "out")
    assert named in str(error.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


def test_nothing_is_left_where_conversion_fails(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Exception, match="input_ids"):
        optimize_folder(
            folder, tmp_path / "out", ConversionSettings(verifying=Verifying(inputs={}))
        )
    assert not list(tmp_path.iterdir())
