"""Peak memory and seconds of conversions that are large in one way each.

python benchmarks/bench_limits.py [--only weight products nodes folder] [--scale 1.0]
    [--longest SECONDS] [--json FILE]

One 2 GB weight, 10,000 small products, 100,000 nodes of which none is ternary (beside onnxslim on
the same file, where onnxslim is installed), and a folder of 1,000 models. Each command runs in a
process of its own, and is ended after ``--longest``; its peak is that of its largest process, and
processor seconds are those of all its processes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from measure.harness import conditions
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

OPTIMIZE = [sys.executable, "-m", "onnx_ternary", "optimize", "--quiet"]
SLIM = [sys.executable, "-c", "import onnxslim.cli; onnxslim.cli.main()"]
NOTHING_TERNARY = 4
# A process starts with the peak of the one it is forked from: this one is small.
LAUNCHER = """
import os, signal, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
signal.alarm(int(sys.argv[1]))
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


@dataclass(frozen=True)
class Measured:
    """What one command took.

    Attributes:
        case: what was converted.
        command: by what.
        file_bytes: of the input.
        seconds: until the command ended.
        processor_seconds: of all its processes.
        peak_bytes: resident, of its largest process.
        ended: whether the command did by itself.
    """

    case: str
    command: str
    file_bytes: int
    seconds: float
    processor_seconds: float
    peak_bytes: int
    ended: bool


def levels(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """(rows, columns) float32: -0.5, 0 and 0.5."""
    weight = rng.integers(-1, 2, (rows, columns), np.int8).astype(np.float32)
    weight *= np.float32(0.5)
    return weight


def save(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], size: int, path: Path
) -> None:
    """A model from ``x`` (batch, size) to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])
    graph = helper.make_graph(nodes, "large", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def make_weight(folder: Path, scale: float) -> Path:
    """One product with a float32 weight of 2 GB."""
    rng, rows = np.random.default_rng(0), 16384
    columns = max(4, int(32768 * scale))
    path = folder / "weight.onnx"
    data = path.with_suffix(".onnx.data")
    levels(rng, rows, columns).tofile(data)
    # No tensor of protobuf's holds 2 GB, so it is external from the start.
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=data.name)
    save([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor], rows, path)
    return path


def make_products(folder: Path, scale: float) -> Path:
    """A chain of 10,000 products of 32 x 32, each with a weight of its own.

    Its numbers stay near 1: a bias is added, and weights are small.
    """
    rng, count = np.random.default_rng(0), max(1, int(10_000 * scale))
    nodes, tensors, last = [], [numpy_helper.from_array(np.ones(32, np.float32), "b")], "x"
    for at in range(count):
        weight = levels(rng, 32, 32) / np.float32(8)
        tensors.append(numpy_helper.from_array(weight, f"w{at}"))
        made = "y" if at == count - 1 else f"h{at}"
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", "b"], [made], name=f"product{at}"))
        last = made
    path = folder / "products.onnx"
    save(nodes, tensors, 32, path)
    return path


def make_nodes(folder: Path, scale: float) -> Path:
    """100,000 nodes: chains of Add, Mul, Relu and a float product, nothing ternary."""
    rng, count = np.random.default_rng(0), max(4, int(100_000 * scale)) // 4
    nodes, last = [], "x"
    tensors = [
        numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(16).astype(np.float32), "b"),
        numpy_helper.from_array(rng.standard_normal(16).astype(np.float32), "c"),
    ]
    for at in range(count):
        steps = [("MatMul", ["w"]), ("Add", ["b"]), ("Mul", ["c"]), ("Relu", [])]
        for op_type, constants in steps:
            is_last = at == count - 1 and op_type == "Relu"
            made = "y" if is_last else f"{op_type}_{at}"
            nodes.append(helper.make_node(op_type, [last, *constants], [made], name=made))
            last = made
    path = folder / "nodes.onnx"
    save(nodes, tensors, 16, path)
    return path


def make_folder(folder: Path, scale: float) -> Path:
    """1,000 models of two products of 64 x 64."""
    rng, models = np.random.default_rng(0), folder / "models"
    models.mkdir()
    for at in range(max(1, int(1000 * scale))):
        tensors = [numpy_helper.from_array(levels(rng, 64, 64), name) for name in ("v", "w")]
        nodes = [
            helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
        ]
        save(nodes, tensors, 64, models / f"{at:04d}.onnx")
    return models


def run(
    case: str, command: str, arguments: list[str], source: Path, longest: int = 600
) -> Measured:
    """Run a command for so many seconds at most; raise CalledProcessError where it fails."""
    launcher = [sys.executable, "-IS", "-c", LAUNCHER, str(longest), *arguments]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True)
    code, seconds, processor_seconds, peak_kilobytes = done.stdout.splitlines()[-1].split()
    ended = int(code) != -signal.SIGKILL or float(seconds) < longest
    if ended and int(code) not in (0, NOTHING_TERNARY):
        raise subprocess.CalledProcessError(int(code), arguments, stderr=done.stderr)
    files = source.rglob("*") if source.is_dir() else source.parent.glob(f"{source.name}*")
    return Measured(
        case,
        command,
        sum(each.stat().st_size for each in files),
        float(seconds),
        float(processor_seconds),
        int(peak_kilobytes) * 1024,
        ended,
    )


CASES: dict[str, Callable[[Path, float], Path]] = {
    "weight": make_weight,
    "products": make_products,
    "nodes": make_nodes,
    "folder": make_folder,
}


def measure_case(case: str, scale: float, longest: int) -> Iterator[Measured]:
    """Make a case in a folder of its own, and measure every command on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = CASES[case](folder, scale)
        target = folder / ("converted" if source.is_dir() else "converted.onnx")
        for command, extra in (("optimize", []), ("optimize --no-verify", ["--no-verify"])):
            if case == "weight" and not extra:
                continue  # verification holds the original in memory: a model of 2 GB is not
            if source.is_dir():
                target.mkdir(exist_ok=True)
            yield run(case, command, [*OPTIMIZE, *extra, str(source), str(target)], source, longest)
        if case == "nodes" and find_spec("onnxslim") is not None:
            yield run(case, "onnxslim", [*SLIM, str(source), str(target)], source, longest)


def main() -> None:
    """Make, convert, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--scale", type=float, default=1.0, help="of every size: 0.01 to try it")
    parser.add_argument("--longest", type=int, default=600, help="seconds of one command")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    for case in arguments.only:
        for each in measure_case(case, arguments.scale, arguments.longest):
            print(each, file=sys.stderr)
            found.append(each)
    about = {**conditions(), "scale": arguments.scale}
    console = Console()
    console.print(", ".join(f"{name}: {value}" for name, value in about.items()), markup=False)
    table = Table("case", "command", "input", "seconds", "processor", "peak")
    for each in found:
        table.add_row(
            each.case,
            each.command,
            f"{each.file_bytes / 1e6:,.1f} MB",
            f"{each.seconds:.1f}" if each.ended else f"ended after {each.seconds:.0f}",
            f"{each.processor_seconds:.1f}",
            f"{each.peak_bytes / 1e6:,.0f} MB",
        )
    console.print(table)
    if arguments.json:
        rows = [asdict(each) for each in found]
        arguments.json.write_text(json.dumps({"conditions": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
