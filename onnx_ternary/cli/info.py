"""``onnx-ternary info``."""

from __future__ import annotations

import json

import click

import onnx_ternary
from onnx_ternary.cli._output import make_console, print_line, print_table


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--library-path",
    is_flag=True,
    help="Print the operator library's absolute path and nothing else, for build scripts.",
)
def info_command(as_json: bool, library_path: bool) -> None:
    """List the kernels: built, supported by this processor, selected for a number of rows."""
    if library_path:
        click.echo(onnx_ternary.get_library_path())
        return
    kernels = onnx_ternary.list_kernels()
    if as_json:
        click.echo(json.dumps(kernels, indent=2))
        return
    console = make_console()
    print_line(console, f"onnx-ternary {onnx_ternary.__version__}")
    print_line(console, f"library: {onnx_ternary.get_library_path()}")
    cpu = ", ".join(kernels["cpu"]) or "baseline"
    print_line(console, f"processor: {cpu}")
    core = kernels.get("core")
    if core is not None and core["passed_over"]:
        isas = ", ".join(core["passed_over"])
        print_line(
            console,
            f"core: {core['name']} ({core['id']}), where {isas} was measured to be slower: "
            f"not selected, ONNX_TERNARY_ISA={core['passed_over'][0]} selects it",
        )
    elif core is not None:
        print_line(console, f"core: {core['id']}")
    rows = [
        {
            "kernel": kernel["name"],
            "format": kernel["index_format"],
            "activation": kernel["activation"],
            "isa": kernel["isa"],
            "supported": "yes" if kernel["supported"] else "no",
            "selected for rows": ", ".join(
                f"{row['rows_min']}-{row['rows_max'] or ''}"
                + (f" ({row['storage']})" if row["storage"] else "")
                + (f" (scale per {row['scales']})" if row["scales"] else "")
                for row in kernels["selection"]
                if row["kernel"] == kernel["name"]
            ),
        }
        for kernel in kernels["kernels"]
    ]
    headings = ["kernel", "format", "activation", "isa", "supported", "selected for rows"]
    # The name has the rest in it.
    narrow = ["kernel", "supported", "selected for rows"]
    print_table(console, headings, rows, narrow=narrow)
