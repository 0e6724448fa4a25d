#!/usr/bin/env bash
# Converts the digits model, exports it to operators of ONNX Runtime's own and runs it in Node on the
# 450 test images.
#
#   examples/node/run.sh [PYTHON]
#
# PYTHON has onnx-ternary installed; by default that of the active environment, of .venv in the
# checkout (README's first command makes it) or python3, whichever has it first. node and npm are on
# the PATH.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=../find_python.sh
source "${here}/../find_python.sh"
work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT

"${python}" -m onnx_ternary optimize -q "${here}/../digits_mlp.onnx" "${work}/digits.onnx"
"${python}" -m onnx_ternary export -q "${work}/digits.onnx" "${work}/digits.nbits.onnx" \
  --to matmulnbits --bits 4
"${python}" - "${here}/../digits_mlp.npz" "${work}" <<'PYTHON'
import pathlib
import sys

import numpy as np

data, folder = np.load(sys.argv[1]), pathlib.Path(sys.argv[2])
data["image"].tofile(folder / "images.bin")
data["labels"].tofile(folder / "labels.bin")
PYTHON
cp "${here}/package.json" "${here}/classify_digits.mjs" "${work}"
# The package's installation script fetches GPU libraries, which are not needed here.
(cd "${work}" && npm install --ignore-scripts --no-audit --no-fund >"${work}/log" 2>&1) ||
  { cat "${work}/log" >&2; exit 1; }
(cd "${work}" && node classify_digits.mjs digits.nbits.onnx images.bin labels.bin)
