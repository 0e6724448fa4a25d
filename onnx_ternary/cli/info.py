"""``onnx-ternary info``."""

from __future__ import annotations

import json

import click

import onnx_ternary
from onnx_ternary.cli._output import add_row, make_console, make_table


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info_command(as_json: bool) -> None:
    """List the kernels: built, supported by this processor, selected for a number of rows."""
    kernels = onnx_ternary.list_kernels()
    if as_json:
        click.echo(json.dumps(kernels, indent=2))
        return
    console = make_console()
    console.print(f"onnx-ternary {onnx_ternary.__version__}", highlight=False)
    console.print(f"library: {onnx_ternary.get_library_path()}", highlight=False, soft_wrap=True)
    console.print(f"processor: {', '.join(kernels['cpu']) or 'baseline'}", highlight=False)
    table = make_table("kernel", "format", "activation", "isa", "supported", "selected for rows")
    for kernel in kernels["kernels"]:
        rows = [
            f"{row['rows_min']}-{row['rows_max'] or ''}"
            for row in kernels["selection"]
            if row["kernel"] == kernel["name"]
        ]
        add_row(
            table,
            kernel["name"],
            kernel["index_format"],
            kernel["activation"],
            kernel["isa"],
            "yes" if kernel["supported"] else "no",
            ", ".join(rows),
        )
    console.print(table)
