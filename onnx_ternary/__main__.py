"""``python -m onnx_ternary`` is the ``onnx-ternary`` command."""

from onnx_ternary.cli import main

if __name__ == "__main__":
    main(prog_name="onnx-ternary")
