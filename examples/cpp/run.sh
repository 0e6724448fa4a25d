#!/usr/bin/env bash
# Converts the digits model, builds classify_digits and runs it on the 450 test images.
#
#   examples/cpp/run.sh [PYTHON]
#
# PYTHON (default python3) has onnx-ternary installed; cmake, ninja or make, and a C++ compiler are
# on the PATH.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${1:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT

"${python}" -m onnx_ternary optimize -q "${here}/../digits_mlp.onnx" "${work}/digits.onnx"
"${python}" - "${here}/../digits_mlp.npz" "${work}" <<'PYTHON'
import pathlib
import sys

import numpy as np

data, folder = np.load(sys.argv[1]), pathlib.Path(sys.argv[2])
data["images"].tofile(folder / "images.bin")
data["labels"].tofile(folder / "labels.bin")
PYTHON
library="$("${python}" -c 'import onnx_ternary; print(onnx_ternary.get_library_path())')"
if [[ -z "${CMAKE_GENERATOR:-}" ]] && command -v ninja >/dev/null; then
  export CMAKE_GENERATOR=Ninja
fi
cmake -S "${here}" -B "${work}/build" -DPython_EXECUTABLE="$(command -v "${python}")" >"${work}/log" ||
  { cat "${work}/log" >&2; exit 1; }
cmake --build "${work}/build" >"${work}/log" || { cat "${work}/log" >&2; exit 1; }
"${work}/build/classify_digits" "${library}" "${work}/digits.onnx" "${work}/images.bin" "${work}/labels.bin"
