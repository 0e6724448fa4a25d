"""What a command and ``import onnx_ternary`` import: what they need, and not the whole package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.cli import COMMANDS
from tests.support.command_line import DIGITS

ROOT = Path(__file__).parents[2]
_RUN_A_COMMAND = """
import sys
from onnx_ternary.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""
# Packages that take long to import, and parts of this one that a conversion has no use for.
_HEAVY = {"ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "rich"}
_BUILDING = {"onnx_ternary.building.build", "onnx_ternary.building.optimize_folder", "safetensors"}
_BENCH = {"onnx_ternary.bench", "onnx_ternary.genai_bench"}
_EXPORTING = {"onnx_ternary.exporting.export"}
_PAGE = {"onnx_ternary.reports.page"}
_INLINING = {"onnx_ir.passes.common"}
_CONVERTING = {"onnx_ternary.conversion.convert", "onnx_ternary.graph_passes.pipeline"}


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=True
    )


def cli_modules(*names: str) -> set[str]:
    return {f"onnx_ternary.cli.{name}" for name in names}


@pytest.mark.parametrize(
    ("arguments", "needed", "needless"),
    [
        (("--version",), set(), _HEAVY | {"onnx_ternary.cli._output"} | cli_modules(*COMMANDS)),
        (("info",), {"rich"} | cli_modules("info"), _HEAVY - {"rich"} | cli_modules("optimize")),
        (
            ("inspect", DIGITS),
            {"onnx_ternary.graph_passes.pipeline"} | _PAGE,
            _BUILDING | _BENCH | _EXPORTING | _INLINING,
        ),
        (
            ("optimize", "--dry-run", DIGITS),
            {"onnxruntime"} | _CONVERTING | cli_modules("optimize"),
            _BUILDING | _BENCH | _EXPORTING | _PAGE | _INLINING | cli_modules("build", "bench"),
        ),
        (
            ("verify", DIGITS, DIGITS),
            {"onnxruntime"},
            _BUILDING | _BENCH | _EXPORTING | _CONVERTING,
        ),
        (("bench", "--help"), _BENCH | cli_modules("bench"), _BUILDING | cli_modules("optimize")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_command_imports_what_it_needs(
    arguments: tuple[str | Path, ...], needed: set[str], needless: set[str]
) -> None:
    done = run_python("-c", _RUN_A_COMMAND, *arguments)
    imported = set(done.stderr.splitlines()[-1].split())
    assert needed - imported == set()
    assert needless & imported == set()


def test_every_command_has_a_module_and_its_help_one_line_each() -> None:
    done = run_python("-m", "onnx_ternary", "--help")
    shown = re.findall(r"^  (\w+)  +\w", done.stdout.partition("Commands:")[2], re.MULTILINE)
    files = {
        path.stem
        for path in Path(str(import_module("onnx_ternary.cli").__file__)).parent.glob("*.py")
    }
    assert set(shown) == set(COMMANDS) == {name for name in files if not name.startswith("_")}


def test_importing_the_package_imports_next_to_nothing() -> None:
    code = "import sys, onnx_ternary; dir(onnx_ternary); print(*sys.modules)"
    imported = set(run_python("-c", code).stdout.split())
    assert imported & _HEAVY == set()
    ours = {name for name in imported if name.startswith("onnx_ternary")}
    assert ours == {"onnx_ternary", "onnx_ternary._source_tree", "onnx_ternary._version"}


def test_type_checkers_and_python_read_the_same_exports() -> None:
    tree = ast.parse(Path(onnx_ternary.__file__).read_text(encoding="utf-8"))
    checked = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {
        alias.name: each.module
        for each in checked.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert {*typed, "__version__"} == set(onnx_ternary.__all__)
    for name, module in typed.items():
        assert getattr(onnx_ternary, name) is getattr(import_module(str(module)), name)
        assert onnx_ternary._MODULES[name] == str(module).removeprefix("onnx_ternary.")


def test_dir_and_star_have_every_export() -> None:
    code = (
        "import onnx_ternary; print(*dir(onnx_ternary)); from onnx_ternary import *; print(*dir())"
    )
    first, second = run_python("-c", code).stdout.splitlines()
    assert set(onnx_ternary.__all__) <= set(first.split())
    assert set(onnx_ternary.__all__) <= set(second.split())


def test_a_name_that_is_not_there_is_refused_without_an_import() -> None:
    code = (
        "import sys, onnx_ternary\n"
        "assert not hasattr(onnx_ternary, 'quantise')\n"
        "try: from onnx_ternary import quantise\n"
        "except ImportError as error: print(error)\n"
        "assert 'numpy' not in sys.modules\n"
    )
    assert "quantise" in run_python("-c", code).stdout


def test_each_title_of_the_api_page_is_reached_from_the_package_alone() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    titles = re.findall(r"^::: (onnx_ternary\.\w+\.[\w.]+)$", text, re.MULTILINE)
    assert len(titles) > 10
    code = (
        "import sys\n"
        "for title in sys.argv[1:]:\n"
        "    for name in [each for each in sys.modules if each.startswith('onnx_ternary')]:\n"
        "        del sys.modules[name]\n"
        "    import onnx_ternary\n"
        "    eval(title)\n"
    )
    run_python("-c", code, *titles, "onnx_ternary.errors.ModelError")
