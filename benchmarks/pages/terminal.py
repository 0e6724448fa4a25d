"""Draw the README's picture of the command line: what `onnx-ternary` really prints, as SVG.

Usage: python benchmarks/pages/terminal.py [--check]

``--check`` compares the committed file's text with what is printed now, and writes nothing. The
commands shown print nothing that depends on the processor.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/images/terminal.svg"
COLUMNS = 118
COMMANDS = ("inspect models/digits_mlp.onnx", "optimize models/ converted/ --max-size-ratio 0.1")

# As rich's own, but with fonts of the system instead of downloaded ones.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def output(command: str, folder: Path) -> Text:
    """What a command prints in a terminal."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "COLUMNS": str(COLUMNS),
        "FORCE_COLOR": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "TERM": "xterm-256color",
    }
    done = subprocess.run(
        [sys.executable, "-m", "onnx_ternary", *command.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return Text.from_ansi(done.stdout)


def draw() -> str:
    """The picture as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        shutil.copy(ROOT / "examples/digits_mlp.onnx", folder / "models")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (f"onnx-ternary {command}", "bold")))
            console.print(output(command, folder))
    svg = console.export_svg(title="onnx-ternary", code_format=SVG, unique_id="terminal")
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def words(svg: str) -> str:
    """The text of a picture, without its blanks."""
    return "".join("".join(ElementTree.fromstring(svg).itertext()).split())


def main() -> None:
    """Write the picture, or compare it."""
    svg = draw()
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(svg, encoding="utf-8")
    elif words(PICTURE.read_text(encoding="utf-8")) != words(svg):
        raise SystemExit(f"{PICTURE} is not what the commands print; run {Path(__file__).name}.")


if __name__ == "__main__":
    main()
