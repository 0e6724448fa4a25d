"""`onnx-ternary bench --genai` on small models. Nothing depends on how long anything takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnx_ternary import build
from onnx_ternary.errors import ModelError
from onnx_ternary.genai_bench import GenaiBenchSettings, bench_folders
from tests.genai.trained import Trained

QUICK = GenaiBenchSettings(rounds=15, prompt_tokens=8, new_tokens=4)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "built"
    build(trained["bitnet-packed"], folder, verify_result=False)
    return folder


def negated(folder: Path, out: Path, times: int) -> Path:
    """The same model with its logits negated so many times."""
    shutil.copytree(folder, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "again_0"
    for number in range(times):
        output = "logits" if number == times - 1 else f"again_{number + 1}"
        model.graph.node.add(op_type="Neg", input=[f"again_{number}"], output=[output])
    onnx.save(model, out / "model.onnx")
    return out


def test_a_folder_against_itself_is_neither_faster_nor_slower(built: Path) -> None:
    result = bench_folders(built, built, QUICK)
    # Wrong by chance in at most one of 10,000 runs for each of the three.
    for name, found in result.comparisons().items():
        assert found.answer in ("no difference", "too noisy"), (name, found)
    assert result.equal_tokens == QUICK.new_tokens
    assert "Tokens: all 4 are the same." in result.verdict()


def test_a_folder_with_more_work_is_not_faster(built: Path, tmp_path: Path) -> None:
    slow = negated(built, tmp_path / "longer", 2000)
    result = bench_folders(slow, built, QUICK)
    # On a busy machine there may be no answer, but never the wrong one.
    assert result.comparisons()["Decode"].answer in ("slower", "too noisy")
    assert result.equal_tokens == QUICK.new_tokens


def test_the_numbers_are_of_the_folders(built: Path) -> None:
    result = bench_folders(built, None, GenaiBenchSettings(rounds=3, prompt_tokens=8, new_tokens=4))
    speed = result.folder
    for times in (speed.prefill_seconds, speed.decode_seconds, speed.load_seconds):
        assert len(times) == 3
        assert min(times) > 0
    assert result.rates(speed)["prefill"] == 8 / sorted(speed.prefill_seconds)[1]
    assert result.rates(speed)["decode"] == 3 / sorted(speed.decode_seconds)[1]
    assert speed.folder_bytes == sum(path.stat().st_size for path in built.iterdir())
    assert speed.resident_bytes is not None
    assert speed.peak_bytes is not None
    # The weights are in memory, and so is no second copy of this test's imports.
    assert (built / "model.onnx.data").stat().st_size < speed.resident_bytes <= speed.peak_bytes
    assert result.verdict() == ""


def test_other_tokens_are_counted(built: Path, tmp_path: Path) -> None:
    settings = GenaiBenchSettings(rounds=1, prompt_tokens=8, new_tokens=4)
    result = bench_folders(negated(built, tmp_path / "worst", 1), built, settings)
    assert result.equal_tokens == 0
    assert "Tokens: the first 0 of 4 are the same." in result.verdict()
    assert result.comparisons()["Decode"].answer == "too few rounds"


def test_a_model_genai_refuses_is_an_error_with_its_reason(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "broken")
    (tmp_path / "broken/model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"cannot run '.*broken'.*model\.onnx"):
        bench_folders(tmp_path / "broken", built, QUICK)


def test_the_command_prints_both(built: Path) -> None:
    command = [sys.executable, "-m", "onnx_ternary", "bench", "--genai", str(built)]
    command += ["--rounds", "1", "--prompt-tokens", "4", "--new-tokens", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("tokens/s") == 2
    command += ["--against", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("tokens/s") == 4
    assert "Prefill: too few rounds for an answer" in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["comparisons"]["decode"]["answer"] == "too few rounds"
