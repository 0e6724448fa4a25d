"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from onnx_ternary.options import OptimizeOptions, VerificationOptions


def _block_width(context: click.Context, option: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    width: int = click.IntRange(1, 16)(value, option, context)
    return width


def quiet_and_verbose(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("-v", "--verbose", is_flag=True, help="More detail.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Errors and warnings only.")(command)


def library_option(command: Callable[..., None]) -> Callable[..., None]:
    """Other custom operator libraries; the command gets them as ``libraries``."""
    return click.option(
        "--library",
        "libraries",
        multiple=True,
        metavar="LIBRARY",
        help="Also load these custom operators to run the models: a library's path, or the name "
        "of a Python module with get_library_path, as onnxruntime_extensions (may be given more "
        "than once).",
    )(command)


def comparison_options(command: Callable[..., None]) -> Callable[..., None]:
    """How models are compared; the command gets ``verification``."""

    @wraps(command)
    def with_options(shapes: tuple[str, ...], required: str | None, **arguments: Any) -> None:
        arguments["verification"] = VerificationOptions(
            dict(map(_shape, shapes)), require_whole=required == "whole"
        )
        command(**arguments)

    result = click.option(
        "--require-verification",
        "required",
        type=click.Choice(["whole"]),
        help="Exit 4 if the models were not compared as a whole, but only product by product, "
        "because the original does not run.",
    )(with_options)
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=SIZE",
        help="A size of generated inputs (may be given more than once): 'batch=4' of a symbolic "
        "dimension, 'x:1=4' of an input's axis, 'x=1,3,224,224' of a whole input. Sizes that are "
        "not given are found.",
    )(result)


def _shape(text: str) -> tuple[str, int | tuple[int, ...]]:
    """What ``--shape NAME=SIZE`` says."""
    name, _, sizes = text.rpartition("=")
    try:
        numbers = tuple(map(int, sizes.split(",")))
    except ValueError:
        numbers = ()
    if not name or not numbers or min(numbers) < 0:
        raise click.UsageError(
            f"--shape {text}: expected NAME=SIZE or INPUT=SIZE,SIZE,..., as 'batch=4' or "
            "'x=1,3,224,224'."
        )
    return name, numbers if "," in sizes else numbers[0]


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """What two models are run with; the command gets ``inputs``, ``libraries`` and ``seed``."""
    command = click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of generated inputs.",
    )(command)
    return click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="Inputs, an .npz by input name (default: generated from --seed).",
    )(library_option(command))


def verification_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of verifying before writing, `comparison_options` included.

    The command gets ``run_verify``, ``inputs``, ``libraries`` and what `comparison_options` gives.
    """
    command = comparison_options(command)
    command = click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="Inputs for the verification, an .npz by input name (default: generated).",
    )(library_option(command))
    return click.option(
        "--verify/--no-verify",
        "run_verify",
        default=None,
        help="Compare both models in onnxruntime before the output is written. Default: as a whole "
        "up to 2 GB, product by product above and where the original does not run; --verify fails "
        "where not even that can be done.",
    )(command)


def rewrite_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that decide what is rewritten and how; the command gets `OptimizeOptions`."""
    options = [
        click.option(
            "--include",
            multiple=True,
            metavar="GLOB",
            help="Only products of this name in the table, or with a weight of it: letter by "
            "letter, or as a glob (may be given more than once).",
        ),
        click.option(
            "--exclude",
            multiple=True,
            metavar="GLOB",
            help="Not products of this name in the table, or with a weight of it.",
        ),
        click.option(
            "--format",
            "index_format",
            type=click.Choice(["packed", "rsr"]),
            default="packed",
            show_default=True,
            help="Index format: packed (fast, small) or rsr (the layout of arXiv 2411.06360).",
        ),
        click.option(
            "--storage",
            type=click.Choice(["2bit", "dense", "1bit", "planes", "base3"]),
            help="Storage of the index; the default is 2bit (1bit for binary weights) or planes.",
        ),
        click.option(
            "--block-width",
            callback=_block_width,
            default="auto",
            show_default=True,
            metavar="auto|K",
            help="rsr: columns per block; auto takes the optimum of the paper's cost model.",
        ),
        click.option("--algorithm", type=click.Choice(["rsr", "rsr++"]), help="rsr: which one."),
        click.option(
            "--activation",
            type=click.Choice(["keep", "int8"]),
            default="keep",
            show_default=True,
            help="int8 quantizes each activation row (BitNet W1.58A8): faster, answers change.",
        ),
        click.option(
            "--remaining",
            type=click.Choice(["keep", "int8", "int4"]),
            default="keep",
            show_default=True,
            help="Hand the float MatMul and Gemm nodes that are left to onnxruntime's MatMulNBits "
            "quantizer: smaller and faster, answers change.",
        ),
        click.option(
            "--tolerance",
            type=click.FloatRange(0.0),
            default=0.0,
            show_default=True,
            help="Admit weights this far from ternary, relative to the scale; 0 means exact.",
        ),
        click.option(
            "--constant-initializers",
            is_flag=True,
            help="Take initializers that are graph inputs too for constants: callers can no longer "
            "override them.",
        ),
        click.option(
            "--fold/--no-fold",
            default=True,
            show_default=True,
            help="Evaluate weights that are the end of a constant expression.",
        ),
        click.option(
            "--max-fold-bytes",
            type=click.IntRange(0),
            metavar="BYTES",
            help="Memory a constant expression may hold (default: 128 times its constants, from "
            "256 MiB to 16 GiB).",
        ),
        click.option(
            "--max-fold-steps",
            type=click.IntRange(0),
            default=OptimizeOptions().max_fold_steps,
            show_default=True,
            metavar="N",
            help="Nodes that may run to evaluate constant expressions.",
        ),
        click.option(
            "--conv/--no-conv",
            "convolutions",
            default=False,
            show_default=True,
            help="Rewrite Conv with a 1 x 1 kernel too: smaller, but slower.",
        ),
        click.option(
            "--fuse-activation/--no-fuse-activation",
            default=True,
            show_default=True,
            help="Let the op quantize activations where the model does it by a rule the op has.",
        ),
        click.option(
            "--fuse-siblings",
            is_flag=True,
            help="Compute products that share an input in one call; the same numbers.",
        ),
        click.option(
            "--min-elements",
            type=click.IntRange(0),
            default=OptimizeOptions().min_elements,
            show_default=True,
            help="Leave products with fewer weights alone.",
        ),
    ]

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        names = arguments.keys() & {field.name for field in fields(OptimizeOptions)}
        chosen = {name: arguments.pop(name) for name in names}
        try:
            arguments["options"] = OptimizeOptions(**chosen)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        command(**arguments)

    result: Callable[..., None] = with_options
    for option in reversed(options):
        result = option(result)
    return result
