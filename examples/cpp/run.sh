#!/usr/bin/env bash
# Converts the digits model, builds classify_digits and runs it on the 450 test images.
#
#   examples/cpp/run.sh [PYTHON]
#
# PYTHON has onnx-ternary installed; by default that of the active environment, of .venv in the
# checkout (README's first command makes it) or python3, whichever has it first. cmake, ninja or
# make, and a C++ compiler are on the PATH.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=../find_python.sh
source "${here}/../find_python.sh"
work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT

"${python}" -m onnx_ternary optimize -q "${here}/../digits_mlp.onnx" "${work}/digits.onnx"
"${python}" - "${here}/../digits_mlp.npz" "${work}" <<'PYTHON'
import pathlib
import sys

import numpy as np

data, folder = np.load(sys.argv[1]), pathlib.Path(sys.argv[2])
data["image"].tofile(folder / "images.bin")
data["labels"].tofile(folder / "labels.bin")
PYTHON
library="$("${python}" -m onnx_ternary info --library-path)"
if [[ -z "${CMAKE_GENERATOR:-}" ]] && command -v ninja >/dev/null; then
  export CMAKE_GENERATOR=Ninja
fi
cmake -S "${here}" -B "${work}/build" -DPython_EXECUTABLE="$(command -v "${python}")" >"${work}/log" ||
  { cat "${work}/log" >&2; exit 1; }
cmake --build "${work}/build" >"${work}/log" || { cat "${work}/log" >&2; exit 1; }
"${work}/build/classify_digits" "${library}" "${work}/digits.onnx" "${work}/images.bin" "${work}/labels.bin"
