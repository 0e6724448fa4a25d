"""action.yml, the pre-commit hooks and the snippets of docs/ci.md, run as a CI service would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_ternary
from tests.support.command_line import COMMAND, DIGITS, one_model_at_a_time, run

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[2]
EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
# The checkout this file is in, or where the package is installed if it was copied out of one.
needs_checkout = pytest.mark.skipif(
    not (ROOT / "action.yml").exists(), reason="the tests do not lie in a checkout"
)
pytestmark = [
    needs_checkout,
    pytest.mark.skipif(shutil.which("bash") is None, reason="this system has no bash"),
]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@dataclass
class Run:
    """What a run of the action left."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str
    temporary: Path
    values: dict[str, str]


def environment() -> dict[str, str]:
    """This process's, with the package under test on the path of modules."""
    package = Path(onnx_ternary.__file__).parents[1]
    paths = [str(package), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_action(folder: Path, *, last: str = "", **inputs: str) -> Run:
    """Run the steps in ``folder`` as the runner does: one bash script each, up to ``last``."""
    action = load("action.yml")
    values = {f"inputs.{name}": each.get("default", "") for name, each in action["inputs"].items()}
    given = {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
    assert given.keys() <= values.keys()
    required = {f"inputs.{k}" for k, each in action["inputs"].items() if each.get("required")}
    assert required <= given.keys()
    values |= given | {"github.action_path": str(ROOT)}
    temporary = folder.parent / "runner"
    temporary.mkdir(exist_ok=True)  # kept between runs, it is what the cache would bring back
    summary = temporary / "summary"
    log = ""
    for step in action["runs"]["steps"]:
        if step["id"] == "cache":
            continue
        assert step["shell"] == "bash"
        output, script = temporary / f"{step['id']}.output", temporary / f"{step['id']}.sh"
        output.touch()
        script.write_text(substitute(step["run"], values), encoding="utf-8")
        variables = {name: substitute(text, values) for name, text in step["env"].items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=folder,
            env={
                **environment(),
                **variables,
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                "RUNNER_TEMP": str(temporary),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        log += done.stdout + done.stderr
        for line in output.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            values[f"steps.{step['id']}.outputs.{name}"] = value
        if done.returncode or step["id"] == last:
            break
    outputs = {
        name: EXPRESSION.sub(lambda found: values.get(found[1], ""), each["value"])
        for name, each in action["outputs"].items()
    }
    text = summary.read_text(encoding="utf-8") if summary.exists() else ""
    return Run(done.returncode, log, outputs, text, temporary, values)


def substitute(text: str, values: dict[str, str]) -> str:
    return EXPRESSION.sub(lambda found: values[found[1]], text)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    (folder / "models").mkdir(parents=True)
    (folder / "models/digits.onnx").write_bytes(DIGITS.read_bytes())
    return folder


INSTALLED = {"install": "false", "python": sys.executable}


def test_action_converts_a_folder(workspace: Path) -> None:
    done = run_action(workspace, model="models", output="out", max_size_ratio="0.1", **INSTALLED)
    assert done.code == 0, done.log
    result = workspace / "out/digits.onnx"
    assert result.stat().st_size < 200_000
    assert done.outputs["exit-code"] == "0"
    assert done.outputs["bytes-before"] == str(DIGITS.stat().st_size)
    assert done.outputs["bytes-after"] == str(result.stat().st_size)
    (model,) = json.loads(Path(done.outputs["report"]).read_text(encoding="utf-8"))["models"]
    assert model["verification"]["passed"] is True
    assert Path(done.outputs["summary"]).read_text(encoding="utf-8") == done.summary
    assert "| `node_linear_1` | `Gemm` | 512 x 512 |" in done.summary


def test_action_default_output_is_beside_the_model(workspace: Path) -> None:
    done = run_action(workspace, model="models/digits.onnx", verify="auto", **INSTALLED)
    assert done.code == 0, done.log
    assert (workspace / "models/digits.ternary.onnx").exists()
    assert int(done.outputs["bytes-after"]) < 200_000


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({"max_size_ratio": "0.01"}, 4, "at most 0.01 is required"),
        ({"options": "--exclude '*'"}, 4, "a rewrite is required"),
        ({"model": "missing.onnx"}, 1, "no file"),
        ({"options": "--nonsense"}, 2, "No such option"),
        ({"max_size_ratio": "-1"}, 2, "max-size-ratio"),
        ({"verify": "maybe"}, 2, "neither true, false nor auto"),
        ({"require_rewrite": "yes"}, 2, "neither true nor false"),
    ],
    ids=str,
)
def test_action_fails_with_the_command(
    workspace: Path, inputs: dict[str, str], code: int, message: str
) -> None:
    inputs = {"model": "models/digits.onnx", "output": "out.onnx", **inputs}
    done = run_action(workspace, **inputs, **INSTALLED)
    assert done.code == code, done.log
    assert message in done.log
    assert not (workspace / "out.onnx").exists()
    assert (message in done.summary) == (code in (1, 4))
    if "neither" not in message:
        assert done.outputs["exit-code"] == str(code)


def test_action_passes_inputs_as_they_are(workspace: Path) -> None:
    """Blanks, quotes and what a shell would run stay text."""
    name = "a $(touch ran) `touch ran`; touch ran 'b'.onnx"
    (workspace / name).write_bytes(DIGITS.read_bytes())
    done = run_action(
        workspace,
        model=name,
        output='out "1".onnx',
        verify="false",
        options="--exclude 'node linear' --exclude \"$(touch ran)\" --exclude node_linear_2",
        **INSTALLED,
    )
    assert done.code == 0, done.log
    assert {path.name for path in workspace.iterdir()} == {"models", name, 'out "1".onnx'}
    content = json.loads(Path(done.outputs["report"]).read_text(encoding="utf-8"))
    assert content["options"]["exclude"] == ["node linear", "$(touch ran)", "node_linear_2"]
    assert len(content["rewrites"]) == 2
    assert content["verification"] is None


def test_action_takes_a_model_that_looks_like_an_option(workspace: Path) -> None:
    done = run_action(workspace, model="--help", **INSTALLED)
    assert done.code == 1
    assert "There is no file '--help'" in done.log


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
def test_action_runs_no_module_of_the_workspace(workspace: Path) -> None:
    for name in ("click.py", "json.py", "onnx_ternary.py"):
        (workspace / name).write_text("open('ran', 'w')\n", encoding="utf-8")
    done = run_action(workspace, model="models", output="out", **INSTALLED)
    assert done.code == 0, done.log
    assert not (workspace / "ran").exists()


def obeyed(log: str) -> list[str]:
    """The workflow commands in a log that the runner obeys."""
    commands, token = [], ""
    for line in map(str.strip, log.splitlines()):
        if token:
            token = "" if line == f"::{token}::" else token
        elif line.startswith("::"):
            commands.append(line)
            stops = line.startswith("::stop-commands::")
            token = line.removeprefix("::stop-commands::") if stops else ""
    assert not token, "commands were not resumed"
    return commands


def test_action_obeys_no_command_of_a_model(workspace: Path) -> None:
    """An error names a node, and a node may be called anything."""
    model = onnx.load(DIGITS)
    for node in model.graph.node:
        node.name = "x\n::stop-commands::t\n::t::\n::error::injected"
    onnx.save(model, workspace / "named.onnx")
    commands = []
    for _ in range(2):
        done = run_action(workspace, model="named.onnx", options="--check", **INSTALLED)
        assert done.code == 4, done.log
        assert done.outputs["exit-code"] == "4"
        assert "\n::error::injected" not in done.log
        assert r"\n::error::injected" in done.log
        stop, annotation = obeyed(done.log)
        commands.append(stop)
        assert annotation.startswith("::error file=named.onnx,title=Requirement not met::")
        assert r"\n::error::injected" in annotation
        shutil.rmtree(done.temporary)
    assert len(set(commands)) == 2, commands
    assert all(re.fullmatch("::stop-commands::[0-9a-f]{32}", line) for line in commands)


def test_action_keeps_inputs_out_of_its_scripts() -> None:
    for step in load("action.yml")["runs"]["steps"]:
        if step["id"] == "cache":
            assert step["uses"] == "actions/cache@v4"
            assert step["with"].keys() == {"path", "key"}
            continue
        assert not EXPRESSION.search(step["run"])
        assert "${{" not in step["run"]
        assert "uses" not in step


def test_action_names_its_installation_by_what_it_depends_on(workspace: Path) -> None:
    def key(python: str = sys.executable, version: str = "") -> str:
        inputs = {"install": "false", "python": python, "version": version}
        done = run_action(workspace, last="name", model="models", output="out", **inputs)
        return done.values["steps.name.outputs.key"]

    first = key()
    assert re.fullmatch(r"onnx-ternary-\d+-\d+-?", first)
    assert key() == first
    assert key(version="0.1.0") != first


@pytest.mark.skipif(
    "ONNX_TERNARY_TEST_INSTALL" not in os.environ,
    reason="downloads and compiles; set ONNX_TERNARY_TEST_INSTALL=1 to run it, as .ci/run does",
)
def test_action_installs_itself(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNX_TERNARY_LIBRARY", raising=False)
    monkeypatch.setitem(globals(), "environment", lambda: dict(os.environ))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = run_action(workspace, model="models", output="out", python=sys.executable)
    assert done.code == 0, done.log
    assert (workspace / "out/digits.onnx").stat().st_size < 200_000
    # What the cache brings back is used as it is: without pip nothing could be installed.
    (installed,) = done.temporary.glob("onnx-ternary-*/installed")
    before = installed.stat().st_mtime_ns
    done = run_action(workspace, model="models", output="again", python=sys.executable)
    assert done.code == 0, done.log
    assert installed.stat().st_mtime_ns == before


def words(line: str) -> list[str]:
    """What a line of a snippet hands to the command."""
    program, *arguments = shlex.split(line)
    assert program.endswith("onnx-ternary")
    return arguments


def snippet(name: str) -> str:
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"<!-- ci: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def ci_commands() -> dict[str, str]:
    (gitlab,) = yaml.safe_load(snippet("gitlab"))["convert"]["script"]
    jenkins = re.findall(r"sh '(.*)'", snippet("jenkins"))[-1]
    return {"gitlab": gitlab, "jenkins": jenkins}


@pytest.mark.parametrize("name", ["gitlab", "jenkins"])
def test_snippets_run(workspace: Path, name: str) -> None:
    line = ci_commands()[name]
    done = subprocess.run(
        [*COMMAND, *words(line)],
        cwd=workspace,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(path.relative_to(workspace)) for path in workspace.rglob("*") if path.is_file()}
    wanted = {"models/digits.onnx", "converted/digits.onnx", "report.json", "summary.md"}
    assert made == wanted
    for artifact in ("converted/", "report.json", "summary.md"):
        assert artifact in snippet(name).replace("/**", "/")


def test_github_snippet_fits_the_action() -> None:
    steps = yaml.safe_load(snippet("github"))["jobs"]["convert"]["steps"]
    (used,) = [step for step in steps if "onnx-ternary" in step.get("uses", "")]
    action = load("action.yml")
    assert used["with"].keys() <= action["inputs"].keys()
    for found in re.findall(r"steps\.ternary\.outputs\.([\w-]+)", snippet("github")):
        assert found in action["outputs"]


@pytest.mark.parametrize(
    ("hook", "first", "second"), [("onnx-ternary-check", 4, 0), ("onnx-ternary-convert", 0, 0)]
)
def test_hook_entries_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, hook: str, first: int, second: int
) -> None:
    """pre-commit appends the names of the files to the entry."""
    monkeypatch.chdir(workspace)
    one_model_at_a_time(monkeypatch)
    hooks = {each["id"]: each for each in load(".pre-commit-hooks.yaml")}
    assert re.search(hooks[hook]["files"], "models/digits.onnx")
    assert not re.search(hooks[hook]["files"], "models/digits.onnx.data")
    model = workspace / "models/digits.onnx"
    other = workspace / "other.onnx"
    other.write_bytes(DIGITS.read_bytes())
    for expected in (first, second):
        run(*words(hooks[hook]["entry"]), "models/digits.onnx", "other.onnx", check=expected)
        if hook == "onnx-ternary-check":
            assert model.read_bytes() == other.read_bytes()
            converted = onnx_ternary.optimize(DIGITS)
            if expected:
                assert model.read_bytes() == DIGITS.read_bytes()
                for path in (model, other):
                    converted.save(path)
        else:
            assert model.stat().st_size < 200_000


def test_documented_hooks_exist() -> None:
    ids = {each["id"] for each in load(".pre-commit-hooks.yaml")}
    (repository,) = yaml.safe_load(snippet("pre-commit"))["repos"]
    assert {hook["id"] for hook in repository["hooks"]} <= ids
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    assert ids == set(re.findall(r"`(onnx-ternary-(?:check|convert))`", text))
