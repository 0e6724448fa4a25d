"""The command line as a user runs it: its exit code, its output, its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary
from tests.support.command_line import (
    COMMAND,
    DIGITS,
    IMAGES,
    one_model_at_a_time,
    run,
    run_process,
)
from tests.support.held import held_environment


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "digits.onnx"
    run("optimize", DIGITS, target)
    return target


@pytest.fixture
def float_model(tmp_path: Path) -> Path:
    """A model whose only product has a float weight."""
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    return path


def test_optimize_digits_is_small_and_gives_the_same_answers(converted: Path) -> None:
    assert converted.stat().st_size < 200_000
    onnx.checker.check_model(str(converted), full_check=True)
    with np.load(IMAGES) as data:
        images, labels = data["image"], data["labels"]
    (reference,) = ort.InferenceSession(DIGITS).run(None, {"image": images})
    with_library = onnx_ternary.InferenceSession(converted).run(None, {"image": images})[0]
    without_library = ort.InferenceSession(converted).run(None, {"image": images})[0]
    for logits in (with_library, without_library):
        assert int((logits.argmax(axis=1) == labels).sum()) == 440
        assert np.abs(logits - reference).max() <= 1e-5 * np.abs(reference).max()


def test_optimize_prints_every_product_and_the_verification(tmp_path: Path) -> None:
    done = run("optimize", DIGITS, tmp_path / "out.onnx", "--inputs", IMAGES, "-v")
    for text in ("node_linear_2", "512 x 512", "rewritten", "distinct magnitudes", "bound"):
        assert text in done.stdout


def test_optimize_default_output_is_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(DIGITS.read_bytes())
    run("optimize", model)
    assert (tmp_path / "model.ternary.onnx").exists()


def test_optimize_report_is_json(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run("optimize", DIGITS, tmp_path / "out.onnx", "--report", report)
    content = json.loads(report.read_text())
    assert [row["K"] for row in content["rewrites"]] == [64, 512, 512]
    assert len(content["rejections"]) == 1
    assert content["file_bytes_after"] == (tmp_path / "out.onnx").stat().st_size
    assert content["verification"]["passed"] is True


def test_optimize_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = run("optimize", DIGITS, tmp_path / "out.onnx", "--dry-run")
    assert "would be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_optimize_nothing_to_rewrite_copies_with_a_warning(
    float_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.onnx"
    done = run("optimize", float_model, target)
    assert "no product was rewritten" in done.stderr
    assert target.read_bytes() == float_model.read_bytes()


def test_optimize_require_rewrite_fails_and_writes_nothing(
    float_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.onnx"
    done = run("optimize", float_model, target, "--require-rewrite", check=4)
    assert "inspect" in done.stderr
    assert not target.exists()


def test_optimize_max_size_ratio(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run("optimize", DIGITS, out, "--max-size-ratio", "0.01", check=4)
    assert list(tmp_path.iterdir()) == []
    run("optimize", DIGITS, out, "--max-size-ratio", "0.1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is not a model", "not an ONNX model"),
        (DIGITS.read_bytes()[:100_000], "cut short"),
        (b"", "not an ONNX model"),
        (None, "no file"),
    ],
    ids=["text", "truncated", "empty", "missing"],
)
def test_optimize_bad_input_is_a_clear_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = run("optimize", model, tmp_path / "out.onnx", check=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_optimize_unwritable_targets(tmp_path: Path) -> None:
    missing = run("optimize", DIGITS, tmp_path / "missing" / "out.onnx", check=1)
    assert "no folder" in missing.stderr
    report = tmp_path / "missing" / "report.json"
    done = run("optimize", DIGITS, tmp_path / "out.onnx", "--report", report, check=1)
    assert "report" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_the_place_of_a_command_gets_the_command_to_type() -> None:
    done = run("in\x1b.onnx", "my out.onnx", check=2)
    assert "No such command 'in\\x1b.onnx'. To convert a model: " in done.stderr
    assert "onnx-ternary optimize 'in\\x1b.onnx' 'my out.onnx'\n" in done.stderr
    assert "To convert" not in run("convert", "in.onnx", check=2).stderr


def test_optimize_usage_error_is_2() -> None:
    run("optimize", "--format", "nonsense", DIGITS, check=2)
    run("optimize", check=2)
    done = run("optimize", "--storage", "1bit", "--format", "rsr", DIGITS, check=2)
    assert "planes or base3" in done.stderr
    run("optimize", "--block-width", "4", DIGITS, check=2)


@pytest.mark.parametrize(
    "options",
    [
        ("--tolerance", "0.4"),
        ("--storage", "planes"),
        ("--block-width", "4"),
        ("--algorithm", "rsr"),
        ("--format", "rsr", "--storage", "2bit"),
        ("--format", "rsr", "--storage", "base3", "--block-width", "11"),
    ],
    ids=" ".join,
)
def test_optimize_options_that_do_not_fit_are_a_usage_error(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = run("optimize", DIGITS, tmp_path / "out.onnx", *options, check=2)
    assert "expected" in done.stderr or "for index_format" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_optimize_report_does_not_replace_a_model(tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    model.write_bytes(DIGITS.read_bytes())
    for path in (model, out):
        done = run("optimize", model, out, "--report", path, check=1)
        assert "would replace the model" in done.stderr
    assert model.read_bytes() == DIGITS.read_bytes()
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_optimize_special_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("optimize", DIGITS, pipe, check=1)
    assert "not an ordinary file" in done.stderr
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        run("optimize", DIGITS, "--dry-run", "--no-verify", "--report", pipe)
        content, _ = reader.communicate(timeout=60)
    assert len(json.loads(content)["rewrites"]) == 3
    assert pipe.is_fifo()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_optimize_interrupted_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    environment, waits = held_environment(tmp_path / "held")
    command = [*COMMAND, "optimize", DIGITS, folder / "out.onnx"]
    command += ["--report", folder / "report.json", "--inputs", IMAGES]
    with subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        env=environment,
        # A parent in the background may have passed on that it ignores the signal.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        # Model and report are staged beside their targets when verification reads its inputs.
        until = time.monotonic() + 60
        while not waits.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert waits.exists(), "verification never read its inputs"
        staged = len(list(folder.iterdir()))
        process.send_signal(number)
        process.communicate(timeout=60)
    assert staged == 4  # model, report, the indices' tensors and the lock
    assert process.returncode == code
    assert list(folder.iterdir()) == []


# The first limit is met by the tensors of an index, the second by the model.
@pytest.mark.parametrize("limit", [50_000, 150_000])
def test_optimize_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource")
    command = [*COMMAND, "optimize", DIGITS, tmp_path / "out.onnx"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_that_look_like_markup(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    for node in model.graph.node:
        node.name = f"/layers[bold]/{node.name}[/a]"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    done = run("optimize", path, tmp_path / "out.onnx", "-v")
    assert "/layers[bold]/node_linear[/a]" in done.stdout
    assert "/layers[bold]/node_linear_3[/a]" in done.stdout


def test_optimize_tolerance_is_verified_by_product(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.shape == (512, 512):
            noisy = weight * (1 + generator.uniform(-0.02, 0.02, weight.shape))
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    path, out = tmp_path / "noisy.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    run("optimize", path, out, "--tolerance", "0.05")
    assert "no tolerance" in run("verify", path, out).stdout  # the file says how it was made
    assert "no tolerance" in run("verify", path, out, "--weight-tolerance", "0.05").stdout
    run("verify", path, out, "--weight-tolerance", "0", check=3)


def test_shape_of_generated_inputs(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    (image,) = onnx.load(DIGITS).graph.input
    name, width = image.name, image.type.tensor_type.shape.dim[1].dim_value
    run("optimize", DIGITS, out, "--shape", f"{name}=3,{width}")
    done = run("verify", DIGITS, out, "--json", "--shape", f"{name}=3,{width}")
    assert json.loads(done.stdout)["inputs"][name].endswith(f"float32 (3, {width})")
    done = run("verify", DIGITS, out, "--shape", "nowhere=3", check=1)
    assert "There is no dimension 'nowhere'" in done.stderr
    for wrong in ("batch", "batch=", "=3", "batch=x", "batch=-1"):
        assert "expected NAME=SIZE" in run("verify", DIGITS, out, "--shape", wrong, check=2).stderr


def test_optimize_rsr_and_int8_options(tmp_path: Path) -> None:
    out = tmp_path / "rsr.onnx"
    run("optimize", DIGITS, out, "--format", "rsr", "--algorithm", "rsr", "--block-width", "5")
    node = next(n for n in onnx.load(out).graph.node if n.op_type == "TernaryIndexedMatMul")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["index_format"], attributes["algorithm"]) == (b"rsr", b"rsr")
    assert attributes["block_width"] == 5
    run("optimize", DIGITS, tmp_path / "int8.onnx", "--activation", "int8")


def test_optimize_block_width_auto_is_the_default(tmp_path: Path) -> None:
    named, default = tmp_path / "named.onnx", tmp_path / "default.onnx"
    run("optimize", DIGITS, named, "--format", "rsr", "--block-width", "auto", "--no-verify")
    run("optimize", DIGITS, default, "--format", "rsr", "--no-verify")
    assert named.read_bytes() == default.read_bytes()
    run("optimize", DIGITS, tmp_path / "packed.onnx", "--block-width", "auto", "--dry-run")
    for wrong in ("automatic", "17"):
        done = run("optimize", DIGITS, "--format", "rsr", "--block-width", wrong, check=2)
        assert "--block-width" in done.stderr


@pytest.mark.parametrize("many", [False, True], ids=["one model", "many"])
@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_exit_codes_and_what_each_leaves_behind(tmp_path: Path, code: int, many: bool) -> None:
    folder, out = tmp_path / "models", tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(DIGITS.read_bytes())
    options: tuple[str, ...] = ()
    if code == 1:
        (folder / "model.onnx").write_bytes(DIGITS.read_bytes()[:1000])
    elif code == 2:
        options = ("--max-size-ratio", "-1")
    elif code == 3:
        _save_with_an_output_no_rounding_keeps(folder / "model.onnx")
    elif code == 4:
        options = ("--max-size-ratio", "0.01")
    report, summary = tmp_path / "report.json", tmp_path / "summary.md"
    arguments = (folder, out) if many else (folder / "model.onnx", tmp_path / "out.onnx")
    command = run if many else run_process
    done = command(
        *("optimize", *arguments, *options, "--report", report, "--summary", summary), check=code
    )
    written = {path.name for path in tmp_path.iterdir()} - {"models"}
    texts = set() if code == 2 else {"report.json", "summary.md"}
    models = {"out" if many else "out.onnx"} if code == 0 else set()
    assert written == texts | models
    assert ("Error:" in done.stderr) == (code != 0)
    assert "Traceback" not in done.stderr
    if code == 2:
        return
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["exit_code"] == code
    (model,) = content["models"] if many else [content]
    assert model["exit_code"] == code
    assert (model["status"] == "failed") == bool(model["error"]) == (code != 0)
    assert ("rewrites" in model) == (code != 1)
    if code == 3:
        assert model["verification"]["passed"] is False
    assert (f"Exit code {code}" in summary.read_text(encoding="utf-8")) == (code != 0)


def _save_with_an_output_no_rounding_keeps(path: Path) -> None:
    """The digits with an output that enlarges the last bits of the logits."""
    model = onnx.load(DIGITS)
    (logits,) = model.graph.output
    for name, value in (("large", 1e6), ("tiny", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    model.graph.node.extend(
        [
            helper.make_node("Mul", [logits.name, "large"], ["many"], name="enlarge"),
            helper.make_node("Sin", ["many"], ["last_bits"], name="last_bits"),
        ]
    )
    model.graph.output.append(
        helper.make_tensor_value_info("last_bits", TensorProto.FLOAT, ["batch", 10])
    )
    onnx.save(model, path)


def test_optimize_many_returns_the_most_serious_code(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(DIGITS.read_bytes())
    (folder / "b.onnx").write_bytes(b"no model")
    run("optimize", folder, tmp_path / "1", check=1)
    _save_with_an_output_no_rounding_keeps(folder / "c.onnx")
    done = run("optimize", folder, tmp_path / "3", "--jobs", "1", "-v", check=3)
    assert {path.name for path in (tmp_path / "3").iterdir()} == {"a.onnx"}
    assert done.stderr.count("Error:") == 2
    assert "node_linear_2" in done.stdout
    assert "3 models: 1 converted, 2 failed; 2.26 MB -> 184 kB (8.1%)" in done.stdout


def test_optimize_many_warns_by_model(
    float_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_model_at_a_time(monkeypatch)
    (tmp_path / "digits.onnx").write_bytes(DIGITS.read_bytes())
    done = run("optimize", tmp_path, tmp_path / "out", "--no-verify", "-q")
    assert done.stdout == ""
    assert f"'{float_model}': no product was rewritten" in done.stderr
    assert f"'{tmp_path / 'digits.onnx'}': not verified: not asked for" in done.stderr
    assert (tmp_path / "out/float.onnx").read_bytes() == float_model.read_bytes()


def test_optimize_many_by_pattern_list_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_model_at_a_time(monkeypatch)
    models = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for model in models:
        model.write_bytes(DIGITS.read_bytes())
    options = ("--no-verify", "--quiet")
    run("optimize", tmp_path / "*.onnx", tmp_path / "pattern", *options)
    run("optimize", *models, tmp_path / "list", *options)
    run("optimize", models[0], f"{tmp_path}/one/", *options)
    for name, expected in (("pattern", 2), ("list", 2), ("one", 1)):
        assert len(list((tmp_path / name).iterdir())) == expected
    for wrong in (models[1], tmp_path / "c.onnx"):
        done = run("optimize", tmp_path / "*.onnx", wrong, check=2)
        assert "has to be a folder" in done.stderr
        assert "has to be a folder" in run("optimize", *models, wrong, check=2).stderr
    twice = run("optimize", models[0], tmp_path / "list/a.onnx", tmp_path / "x", check=2)
    assert "would both be written" in twice.stderr
    assert not (tmp_path / "x").exists()


def test_optimize_in_place_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_model_at_a_time(monkeypatch)
    model, plain = tmp_path / "model.onnx", tmp_path / "plain.ternary.onnx"
    for path in (model, plain):
        path.write_bytes(DIGITS.read_bytes())
    done = run("optimize", "--check", model, plain, check=4)
    assert done.stderr.count("3 of its products can be rewritten") == 2
    assert model.read_bytes() == DIGITS.read_bytes()
    run("optimize", "--in-place", model, plain, "--require-rewrite", "--max-size-ratio", "0.1")
    assert {path.name for path in tmp_path.iterdir()} == {model.name, plain.name}
    assert model.stat().st_size < 200_000
    run("optimize", "--check", model, plain)
    stamp = model.stat().st_mtime_ns
    again = ("--require-rewrite", "--max-size-ratio", "0.1")
    assert "2 already converted" in run("optimize", "--in-place", model, plain, *again).stdout
    assert model.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "name", ["ONNX_TERNARY_ISA", "ONNX_TERNARY_KERNEL", "ONNX_TERNARY_LIBRARY"]
)
def test_environment_variables_are_not_the_models_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, "nonsense")
    # A process reads them when it loads the library.
    error = run_process("optimize", DIGITS, tmp_path / "o.onnx", check=1).stderr
    assert name in error
    assert "'nonsense'" in error
    assert "change or unset" in error
    assert "convert it again" not in error


def test_patterns_without_a_match_are_warned_of(tmp_path: Path) -> None:
    model, expected = tmp_path / "model.onnx", "matches --exclude 'lm_head'."
    model.write_bytes(DIGITS.read_bytes())
    options = ("--exclude", "lm_head", "--exclude", "*", "-q")
    assert expected in run("inspect", model, *options).stderr
    single = run("optimize", model, tmp_path / "o.onnx", *options).stderr
    assert expected in single
    assert "'*'" not in single
    many = run("optimize", model, tmp_path / "o.onnx", tmp_path / "out", "--jobs", "1", *options)
    assert many.stderr.count(expected) == 1


def test_optimize_replaces_a_model_in_place_only(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(DIGITS.read_bytes())
    (tmp_path / "link.onnx").symlink_to(model)
    for output in (model, tmp_path / "link.onnx", tmp_path):
        done = run("optimize", model, output, check=2)
        assert "is the model itself; replace it with --in-place" in " ".join(done.stderr.split())
    assert model.read_bytes() == DIGITS.read_bytes()


def test_optimize_default_output_of_a_converted_model_is_itself(
    converted: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.ternary.onnx"
    model.write_bytes(converted.read_bytes())
    run("optimize", model, "--require-rewrite")
    assert list(tmp_path.iterdir()) == [model]
    assert model.read_bytes() == converted.read_bytes()


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, True, 1), (signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143)],
    ids=["terminal", "systemd", "kill"],
)
def test_optimize_many_interrupted_leaves_nothing_half(
    tmp_path: Path, number: signal.Signals, whole_group: bool, code: int
) -> None:
    folder, out = tmp_path / "models", tmp_path / "out"
    folder.mkdir()
    environment, _ = held_environment(tmp_path / "held")
    for name in ("a.onnx", "b.onnx", "c.onnx"):
        (folder / name).write_bytes(DIGITS.read_bytes())
    command = [*COMMAND, "optimize", folder, out, "--jobs", "2"]
    command += ["--report", tmp_path / "report.json", "--inputs", IMAGES]
    with subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        until = time.monotonic() + 60
        while len(list(out.glob(".*"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        staged = len(list(out.glob(".*")))
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert staged >= 2
    assert process.returncode == code
    # What Python says of a child that was still starting is not ours.
    assert "Aborted!" in errors or code == 143
    assert {path.name for path in tmp_path.iterdir()} == {"models", "held"}


def test_optimize_says_what_the_quantizer_alone_changed(float_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    command = ("optimize", float_model, tmp_path / "out.onnx", "--remaining", "int8", "--no-verify")
    done = run(*command)
    assert "unchanged" not in done.stderr
    assert "not verified: not asked for" in done.stderr
    assert "1 converted" in run("optimize", "--in-place", *command[1:2], *command[3:]).stdout


def test_tables_fit_narrow_terminals_and_lose_no_reason(tmp_path: Path) -> None:
    for columns in (40, 80, 120):
        lines = run("inspect", DIGITS, columns=columns).stdout.splitlines()
        assert max(map(len, lines)) <= columns
        words = " ".join(line.strip("│ ").split("│")[-1].strip() for line in lines)
        assert "distinct magnitudes" in words.replace("  ", " ")


@pytest.mark.parametrize(
    ("variable", "colored"), [("FORCE_COLOR", True), ("NO_COLOR", False)], ids=str
)
def test_color(monkeypatch: pytest.MonkeyPatch, variable: str, colored: bool) -> None:
    for each in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(variable, "1")
    done = run("inspect", DIGITS)
    assert ("\x1b[32m" in done.stdout) == colored
    assert ("\x1b[33m" in done.stdout) == colored


def test_inspect_says_why_the_float_layer_stays() -> None:
    done = run("inspect", DIGITS)
    assert "distinct magnitudes" in done.stdout
    content = json.loads(run("inspect", DIGITS, "--json").stdout)
    (kept,) = content["rejections"]
    assert kept["node"] == "node_linear_3"


def test_inspect_deep_finds_a_damaged_index(converted: Path, tmp_path: Path) -> None:
    run("inspect", "--deep", converted)
    model = onnx.load(converted)
    codes = next(t for t in model.graph.initializer if t.name.endswith(".codes"))
    codes.raw_data = bytes([codes.raw_data[0] ^ 1]) + codes.raw_data[1:]
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    done = run("inspect", "--deep", damaged, check=1)
    assert "node_linear" in done.stderr


def test_verify_passes_and_fails_with_exit_code_3(converted: Path, tmp_path: Path) -> None:
    done = run("verify", DIGITS, converted)
    assert "outputs differ" in done.stdout
    alone = run("verify", DIGITS, converted, "--products")
    assert "3 of 3 products within" in alone.stdout
    assert "outputs differ" not in alone.stdout
    model = onnx.load(converted)
    scale = next(t for t in model.graph.initializer if t.name.endswith(".scale"))
    array = numpy_helper.to_array(scale) * np.float32(1.001)
    scale.CopyFrom(numpy_helper.from_array(array.astype(np.float32), scale.name))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    for extra in ([], ["--products"]):
        failed = run("verify", DIGITS, wrong, *extra, check=3)
        assert "node_linear" in failed.stderr


def test_verify_warns_where_nothing_was_converted(converted: Path) -> None:
    assert "swapped" in run("verify", DIGITS, DIGITS).stderr
    assert "swapped" in run("verify", converted, DIGITS).stderr


def test_optimize_a_converted_model_says_so(converted: Path, tmp_path: Path) -> None:
    done = run("optimize", converted, tmp_path / "again.onnx")
    assert done.stdout.count("already converted") == 3
    assert (tmp_path / "again.onnx").read_bytes() == converted.read_bytes()


def test_optimize_warns_where_the_index_is_larger(tmp_path: Path) -> None:
    wide = ("--format", "rsr", "--block-width", "14")
    done = run("optimize", DIGITS, tmp_path / "wide.onnx", *wide, "--no-verify")
    assert "larger than the original" in done.stderr


def test_verify_wrong_inputs_are_named(converted: Path, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, picture=np.zeros((1, 64), np.float32))
    done = run("verify", DIGITS, converted, "--inputs", path, check=1)
    assert "picture" in done.stderr or "image" in done.stderr


def test_info_lists_kernels() -> None:
    content = json.loads(run("info", "--json").stdout)
    names = {kernel["name"] for kernel in content["kernels"]}
    assert {kernel["isa"] for kernel in content["kernels"]} >= {"scalar", "portable"}
    assert all(row["kernel"] in names for row in content["selection"])
    assert "scalar" in run("info").stdout


def test_help_and_version() -> None:
    assert "optimize" in run_process("--help").stdout
    assert "onnx-ternary" in run_process("--version").stdout
