"""Names of a model that would steer a terminal, a log, a page or a CI service: nothing obeys them.

What libraries print by themselves is looked at too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.cli import main
from onnx_ternary.conversion.convert import convert
from onnx_ternary.errors import visible
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import ternary

WIDTH = 64
# Each is a name of something in the model.
NAMES = (
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b2J\x85\x7f",
    "\u202eturned\u2066\u200b",
    "x\n::error::from a name",
    "::error::at the start",
    "\r\n##[error]x ##vso[task.complete]",
    "[bold red]markup[/] :smile:",
    "a|b `c` \\| <!--",
    "<script>alert(1)</script>",
    "![x](https://example.com/x.png) @somebody",
    "it's 'quoted'",
)
# What may not arrive anywhere as it is.
RAW = (
    "\x07",
    "\x1b[2J",
    "\x9b",
    "\x85",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200b",
    "\r",
    "##[",
    "##vso[",
)


def hostile_model(names: Sequence[str]) -> onnx.ModelProto:
    """Ternary products, dense ones and subgraphs, one chain, named by all of ``names`` in turn."""
    x, y, size = (f"{kind}{names[at]}" for kind, at in (("x", 0), ("y", 3), ("n", 2)))
    nodes, initializers, value = [], [], x
    dense = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH
    for at, name in enumerate(names):
        weight = ternary(WIDTH, WIDTH, seed=at, scale=0.1)
        initializers += [
            numpy_helper.from_array(weight, f"{name}w"),
            numpy_helper.from_array(dense, f"{name}d"),
        ]
        nodes += [
            helper.make_node("MatMul", [value, f"{name}w"], [f"{name}t"], name=name),
            helper.make_node("MatMul", [f"{name}t", f"{name}d"], [f"{name}o"], name=f"{name}2"),
        ]
        value = f"{name}o"
    inner = helper.make_graph(
        [helper.make_node("MatMul", [value, f"{names[0]}w"], ["inner"], name=f"{names[3]}3")],
        f"{names[1]}graph",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    initializers.append(numpy_helper.from_array(np.array(True), "yes"))
    initializers.append(numpy_helper.from_array(np.ones(3, np.float32), f"{names[0]}unused"))
    nodes.append(
        helper.make_node(
            "If", ["yes"], [y], name=f"{names[5]}4", then_branch=inner, else_branch=inner
        )
    )
    graph = helper.make_graph(
        nodes,
        f"{names[4]}graph",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, (size, WIDTH))],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, (size, WIDTH))],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What a command prints on both streams, libraries included."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: object, codes: Sequence[int] = (0,)) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        printed = "".join(capfd.readouterr())
        assert ended.value.code in codes, printed[-2000:]
        return printed

    return run


def run_process(*arguments: object, **environment: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "onnx_ternary", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "COLUMNS": "400", **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_printed(printed: str) -> None:
    for line in printed.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.lstrip().startswith("::"), line
        assert re.search(r"##\w*\[", line) is None, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    onnx.save(hostile_model(NAMES), folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    target = folder / "converted.onnx"
    convert(folder / "model.onnx", target, OptimizeOptions(min_elements=0), verify_result=False)
    return target


def test_optimize_and_its_files(folder: Path, run: Run) -> None:
    files = [f"--{kind}={folder / kind}" for kind in ("report", "summary", "annotations")]
    target = folder / "optimized.onnx"
    printed = run("optimize", "-v", folder / "model.onnx", target, "--min-elements=0", *files)
    check_printed(printed)
    for name in NAMES:
        assert visible(name).strip() in printed
    report = (folder / "report").read_text(encoding="utf-8")
    check_printed(report)
    found = json.loads(report)
    assert {row["node"] for row in found["rewrites"]} >= set(NAMES)
    assert [row["node"] for row in found["rejections"]] == [f"{name}2" for name in NAMES]
    summary = (folder / "summary").read_text(encoding="utf-8")
    check_printed(summary)
    assert "<script" not in re.sub("`[^`]*`", "", summary)
    assert (folder / "annotations").read_text(encoding="utf-8") == ""


def test_inspect(folder: Path, converted: Path, run: Run) -> None:
    page = folder / "page.html"
    printed = run("inspect", "-v", folder / "model.onnx", "--html", page, "--min-elements=0")
    check_printed(printed)
    for name in NAMES:
        assert visible(name).strip() in printed
    html = page.read_text(encoding="utf-8")
    check_printed(html)
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(html)
    assert tags.count("script") == 1
    assert "img" not in tags
    printed = run("inspect", folder / "model.onnx", "--json")
    check_printed(printed)
    assert f"{NAMES[0]}2" in {row["node"] for row in json.loads(printed)["rejections"]}
    check_printed(run("inspect", "--deep", converted))


def test_verify(folder: Path, converted: Path, run: Run) -> None:
    check_printed(run("verify", "-v", folder / "model.onnx", converted))
    check_printed(run("verify", "--products", "-v", folder / "model.onnx", converted))
    check_printed(run("verify", "--json", folder / "model.onnx", converted))
    wrong = onnx.load(converted)
    scale = next(
        each
        for each in wrong.graph.initializer
        if each.name in wrong.graph.node[0].input[-3:] and each.data_type == TensorProto.FLOAT
    )
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(wrong, folder / "wrong.onnx")
    printed = run("verify", "-v", folder / "model.onnx", folder / "wrong.onnx", codes=(3,))
    check_printed(printed)
    assert visible(NAMES[0]) in printed


def test_failures(folder: Path, converted: Path, run: Run) -> None:
    """Conditions, inputs and files that are not as they should be, with names in every message."""
    model, inputs = folder / "model.onnx", folder / "inputs.npz"
    np.savez(inputs, **{"a\nb": np.zeros(1)})
    annotations = folder / "annotations 2"
    check = ("--check", f"--annotations={annotations}", f"--summary={folder / 'summary 2'}")
    check_printed(run("optimize", model, *check, "--min-elements=0", codes=(4,)))
    (line,) = annotations.read_text(encoding="utf-8").splitlines()
    assert line.startswith("::error file=")
    for raw in RAW:
        assert raw not in line
    check_printed((folder / "summary 2").read_text(encoding="utf-8"))
    check_printed(run("verify", model, converted, "--inputs", inputs, codes=(1,)))
    check_printed(run("verify", model, converted, "--shape", "no\n::error::x=3", codes=(1, 2)))
    missing = onnx.load(model)
    missing.graph.node[0].input[1] = NAMES[3] + "missing"
    onnx.save(missing, folder / "missing.onnx")
    printed = run("optimize", folder / "missing.onnx", folder / "out.onnx", codes=(0, 1))
    check_printed(printed)
    damaged = onnx.load(converted)
    damaged.graph.node[0].attribute[0].s = NAMES[3].encode()
    damaged.graph.node[0].attribute[0].type = onnx.AttributeProto.STRING
    onnx.save(damaged, folder / "damaged.onnx")
    check_printed(run("inspect", "--deep", folder / "damaged.onnx", codes=(1,)))
    check_printed(run("bench", folder / "damaged.onnx", codes=(1,)))


def test_export_and_bench(folder: Path, converted: Path, run: Run) -> None:
    check_printed(run("export", "-v", converted, folder / "float.onnx", "--to", "float"))
    check_printed(run("bench", folder / "model.onnx", converted, "--rounds=1"))
    check_printed(run("bench", folder / "model.onnx", converted, "--rounds=1", "--json"))


def test_a_terminal_with_colors_and_a_bar(folder: Path) -> None:
    arguments = ("optimize", folder / "model.onnx", "-v", "--dry-run", "--min-elements=0")
    printed = run_process(*arguments, FORCE_COLOR="1", PYTHONIOENCODING="utf-8").decode()
    assert "\x1b[?25l" in printed
    own = r"\x1b\[(?:[0-9;]*m|2K|1A|\?25[lh])|\r(?=\x1b)"
    check_printed(re.sub(own, "", printed))


def test_what_other_libraries_log(folder: Path, run: Run) -> None:
    arguments = (folder / "model.onnx", "--dry-run", "--remaining", "int8", "--min-elements=0")
    check_printed(run("optimize", *arguments))


def test_names_of_files(folder: Path, run: Run) -> None:
    """Of pull requests, say: a pattern of the shell hands them to the command."""
    place = folder / "files\n::error::x"
    place.mkdir()
    content = (folder / "model.onnx").read_bytes()
    names = [
        os.fsencode(f"{number}{name}.onnx".replace("/", "")) for number, name in enumerate(NAMES)
    ]
    names.append(b"\x9b2J\xff.onnx")
    for number, name in enumerate(names):
        (place / os.fsdecode(name)).write_bytes(content if number < 2 else b"no model")
    files = [f"--{kind}={folder / kind} 3" for kind in ("report", "summary", "annotations")]
    printed = run("optimize", place, "-v", "--dry-run", "--jobs=1", *files, codes=(1,))
    check_printed(printed)
    report = (folder / "report 3").read_text(encoding="utf-8")
    check_printed(report)
    assert len(json.loads(report)["models"]) == len(names)
    check_printed((folder / "summary 3").read_text(encoding="utf-8"))
    lines = (folder / "annotations 3").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(names) - 2
    for line in lines:
        assert line.isprintable()
        assert line.startswith("::error file=")
    for arguments in (
        ("inspect", place / "1\n::error::none"),
        ("optimize", "a", "b", place / os.fsdecode(names[0])),
        ("optimize", place / os.fsdecode(names[3]), "--report", place),
        ("inspect", f"--{NAMES[3]}", "model"),
        (NAMES[3],),
        (f"--{NAMES[3]}",),
    ):
        check_printed(run(*arguments, codes=(1, 2)))
    library = ("--library", NAMES[3])
    check_printed(run("verify", folder / "model.onnx", folder / "model.onnx", *library, codes=(1,)))


@pytest.mark.parametrize("locale", ["ascii", "latin-1"])
def test_a_terminal_that_has_not_every_character(folder: Path, locale: str) -> None:
    made = hostile_model([f"größe 日本 {name}" for name in NAMES])
    onnx.save(made, folder / "model_2.onnx")
    printed = run_process("inspect", folder / "model_2.onnx", PYTHONIOENCODING=locale)
    assert rb"\u65e5\u672c" in printed


def test_names_of_megabytes(tmp_path: Path, run: Run) -> None:
    model = tmp_path / "model.onnx"
    names = [*NAMES[:6]]
    names[4] += "x" * 10_000_000
    onnx.save(hostile_model(names), model)
    files = [f"--{kind}={tmp_path / kind}" for kind in ("report", "summary")]
    printed = run("inspect", "-v", model, "--html", tmp_path / "page")
    assert len(printed) < 100_000
    check_printed(printed)
    printed = run("optimize", model, "--dry-run", "--no-verify", *files)
    assert len(printed) < 100_000
    check_printed(printed)
    for name in ("report", "summary", "page"):
        assert (tmp_path / name).stat().st_size < 1_000_000
    content = onnx.load(model)
    content.graph.node[0].input[0] = "elsewhere"
    onnx.save(content, model)
    printed = run("optimize", model, tmp_path / "out.onnx", codes=(0, 1))
    assert len(printed) < 100_000
    check_printed(printed)


def test_names_that_are_no_text(tmp_path: Path, run: Run) -> None:
    made = hostile_model(["PLACE", *NAMES[1:]]).SerializeToString()
    for position, end in enumerate((b"w", b"2", b"o", b"unused")):
        model = tmp_path / f"{position}.onnx"
        model.write_bytes(made.replace(b"PLACE" + end, b"\x1b\x9b2\xff\xfe" + end))
        printed = run("inspect", model, codes=(1,))
        check_printed(printed)
        assert "is not a valid ONNX model: " in printed
    for proto in (b"nPLACE",):
        model.write_bytes(
            hostile_model([NAMES[0], NAMES[1], "PLACE", *NAMES[3:]])
            .SerializeToString()
            .replace(proto, b"n\x1b\x9b2\xff\xfe")
        )
        check_printed(run("inspect", model, codes=(0, 1)))
