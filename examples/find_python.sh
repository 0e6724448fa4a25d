# Sourced by the run.sh beside the examples: sets `python` to one that has onnx-ternary, which is the
# script's argument if there is one, else that of the active environment, of .venv in the checkout
# (README's first command makes it) or python3, whichever has it first.
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
candidates=("${VIRTUAL_ENV:-/nonexistent}/bin/python" "${checkout}/.venv/bin/python" python3)
if (($#)); then candidates=("$1"); fi
python=""
for candidate in "${candidates[@]}"; do
  if "${candidate}" -c "import onnx_ternary" 2>/dev/null; then python="${candidate}"; break; fi
done
if [[ -z "${python}" ]]; then
  echo "run.sh: onnx-ternary is not installed for ${candidates[*]}; give the Python that has it:" \
    "$0 PYTHON" >&2
  exit 1
fi
