"""The package has no circle of imports, and its rooms stand in one order.

Read from the source: imports inside functions and under ``TYPE_CHECKING`` count like all others.
What Python imports by itself, the packages a module lies in, does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import onnx_ternary

PACKAGE = Path(onnx_ternary.__file__).parent
PASSES = "onnx_ternary.graph_passes"

# Lowest first. A room imports from itself and from lower layers; rooms of one layer are apart.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(rooms.split())
    for rooms in (
        "errors _version _machine _source_tree _onnxruntime _paired _genai_process _walk",
        "schema _logs",
        "options native",
        "index",
        "op model_files runtime",
        "verification",
        "reports",
        "graph_passes.attributes graph_passes.local_calls graph_passes.site",
        "graph_passes.constants",
        "graph_passes.match",
        "graph_passes.rules graph_passes.rewrite graph_passes.functions graph_passes.choice "
        "graph_passes.converted_before",
        "graph_passes.parameters",
        "graph_passes graph_passes.pipeline",
        "conversion",
        "exporting",
        "building",
        "bench",
        "genai_bench",
        "onnx_ternary",
        "cli integrations",
        "__main__",
    )
)

# How onnx_ir changes a graph.
EDITS = frozenset(
    {"insert_after", "insert_before", "register_initializer", "replace_all_uses_with"}
    | {"replace_input_with", "resize_inputs", "resize_outputs"}
)
EDITORS = (f"{PASSES}.rewrite.", "onnx_ternary.exporting.exporter")


def source_files(package: Path) -> dict[str, Path]:
    """Files by module name; graph_passes lies beside the package or, installed, inside it."""
    roots = {"onnx_ternary": package}
    if not (package / "graph_passes").is_dir():
        roots[PASSES] = package.parent / "graph_passes"
    found = {}
    for name, root in roots.items():
        for path in root.rglob("*.py"):
            parts = [name, *path.relative_to(root).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Every (module, name) a file imports from; the name is empty for ``import module``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*around, *filter(None, [node.module])])
            elif base.split(".")[0] == "graph_passes":  # its name in a source tree
                base = f"onnx_ternary.{base}"
            yield from ((base, alias.name) for alias in node.names)


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of these modules each of them imports."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for base, name in imported(tree, module, path):
            found = f"{base}.{name}" if f"{base}.{name}" in files else base
            if found in files:
                graph[module].add(found)
    return graph


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room(module: str) -> str:
    """The room a module is in; the package's own ``__init__`` is a room as well."""
    parts = module.split(".")[1:]
    if not parts:
        return "onnx_ternary"
    return ".".join(parts[:2]) if parts[0] == "graph_passes" else parts[0]


def misplaced(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports against the order of `LAYERS`."""
    height = {name: layer for layer, rooms in enumerate(LAYERS) for name in rooms}
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if room(module) != room(other) and height[room(other)] >= height[room(module)]
    ]


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    return source_files(PACKAGE)


def test_every_import_is_read(files: dict[str, Path]) -> None:
    graph = import_graph(files)
    assert f"{PASSES}.rewrite.replace" in graph[f"{PASSES}.pipeline"]  # relative
    assert f"{PASSES}.pipeline" in graph["onnx_ternary.conversion.optimize"]  # TYPE_CHECKING
    assert "onnx_ternary.verification.verify" in graph["onnx_ternary"]
    assert all(others for module, others in graph.items() if module.endswith(("convert", "cli")))


def test_no_circle(files: dict[str, Path]) -> None:
    assert cycle(import_graph(files)) == []


def test_rooms_stand_in_order(files: dict[str, Path]) -> None:
    assert misplaced(import_graph(files)) == []


def test_errors_import_nothing_of_the_package(files: dict[str, Path]) -> None:
    assert import_graph(files)["onnx_ternary.errors"] == set()


def test_only_native_reaches_ctypes(files: dict[str, Path]) -> None:
    users = {
        module
        for module, path in files.items()
        for base, _ in imported(ast.parse(path.read_text(encoding="utf-8")), module, path)
        if base.split(".")[0] in ("ctypes", "cffi")
    }
    assert users
    assert {room(module) for module in users} == {"native"}


def test_nothing_is_handed_on_behind_the_arguments(files: dict[str, Path]) -> None:
    """A context variable is an argument nobody sees, and threads do not get it."""
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "contextvars" not in {base for base, _ in imported(tree, module, path)}, module


def test_only_rewrite_and_the_exporter_edit_graphs(files: dict[str, Path]) -> None:
    editors = {
        module
        for module, path in files.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in EDITS
    }
    assert f"{PASSES}.rewrite.insert" in editors
    assert [module for module in sorted(editors) if not module.startswith(EDITORS)] == []


def write_tree(root: Path, files: Mapping[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return source_files(root / "onnx_ternary")


TYPE_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from onnx_ternary.index.b import B", "from onnx_ternary.index import a"),
        ("from onnx_ternary.index.b import B", f"{TYPE_ONLY}from onnx_ternary.index.a import A"),
        ("from . import b", "def f():\n    from .a import A\n    return A"),
        ("import onnx_ternary.index.b", "import onnx_ternary.index.a"),
    ],
    ids=["plain", "type", "relative", "import"],
)
def test_a_circle_on_purpose_is_found(first: str, second: str, tmp_path: Path) -> None:
    tree = {"__init__.py": "", "index/__init__.py": "", "index/a.py": first, "index/b.py": second}
    files = write_tree(tmp_path, {f"onnx_ternary/{name}": text for name, text in tree.items()})
    found = cycle(import_graph(files))
    assert set(found) == {"onnx_ternary.index.a", "onnx_ternary.index.b"}
    (tmp_path / "onnx_ternary/index/b.py").write_text("", encoding="utf-8")
    assert cycle(import_graph(files)) == []


def test_an_import_against_the_order_is_found(tmp_path: Path) -> None:
    files = write_tree(
        tmp_path,
        {
            "onnx_ternary/__init__.py": "",
            "onnx_ternary/conversion/convert.py": "",
            "graph_passes/__init__.py": "",
            "graph_passes/rewrite/replace.py": "",
            "graph_passes/rules/matmul.py": (
                "from onnx_ternary.conversion import convert\nfrom ..rewrite import replace\n"
            ),
        },
    )
    assert misplaced(import_graph(files)) == [
        f"{PASSES}.rules.matmul imports onnx_ternary.conversion.convert",
        f"{PASSES}.rules.matmul imports {PASSES}.rewrite.replace",
    ]
