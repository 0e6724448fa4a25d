"""Resident memory that a session of a model takes at its peak, in a process of its own.

Usage: python benchmarks/measure/session_memory.py MODEL, which prints bytes as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

import onnx_ternary


def measured(model: Path) -> dict[str, int]:
    """Peak and final resident bytes of a session of a model file, created and run once.

    Linux only: the kernel's high-water mark is set back in between.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}")


def _session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return onnx_ternary.InferenceSession(model, options)


def _run(session: ort.InferenceSession) -> None:
    (given,) = session.get_inputs()
    session.run(None, {given.name: np.ones((1, given.shape[-1]), np.float32)})


def _small_model() -> bytes:
    info = helper.make_tensor_value_info
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.0] * 16)
    graph = helper.make_graph(
        [node],
        "small",
        [info("x", TensorProto.FLOAT, [1, 4])],
        [info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def main() -> None:
    """Load everything that is not the model's, then measure."""
    onnx.checker.check_model(_small_model())
    _run(_session(_small_model()))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    session = _session(sys.argv[1])
    _run(session)
    after = _status("VmRSS")  # first: the peak may only grow
    print(json.dumps({"peak": _status("VmHWM") - before, "after": after - before}))


if __name__ == "__main__":
    main()
