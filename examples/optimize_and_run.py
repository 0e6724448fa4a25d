"""Convert a real ternary model, run both versions on real data and compare.

    python examples/optimize_and_run.py

Converts examples/digits_mlp.onnx (see make_digits_mlp.py), classifies the 450 test images with the
original and with the converted model, and checks every rewritten product against its error bound.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

import onnx_ternary

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits_mlp.onnx"


def main() -> None:
    """Convert, run both models, compare answers, sizes and products."""
    with np.load(HERE / "digits_mlp.npz") as data:
        images, labels = data["image"], data["labels"]

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "digits_mlp.ternary.onnx"
        result = onnx_ternary.optimize(MODEL)
        result.save(converted)

        print(f"{len(result.report.rewrites)} products rewritten:")
        for rewrite in result.report.rewrites:
            print(f"  {rewrite.node}: {rewrite.K} x {rewrite.N}, {rewrite.pattern}")
        for rejection in result.report.rejections:
            print(f"  {rejection.node} stays as it is: {rejection.reason}")
        sizes = [path.stat().st_size / 1e6 for path in (MODEL, converted)]
        print(f"file: {sizes[0]:.3f} MB -> {sizes[1]:.3f} MB ({sizes[0] / sizes[1]:.1f}x smaller)")

        sessions = {
            "float MatMul": ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"]),
            "onnx-ternary": onnx_ternary.InferenceSession(converted),
            # The function body in the file: any onnxruntime, nothing registered.
            "without the library": ort.InferenceSession(
                converted, providers=["CPUExecutionProvider"]
            ),
        }
        logits = {
            name: session.run(["logits"], {"image": images})[0]
            for name, session in sessions.items()
        }
        reference = logits["float MatMul"]
        for name, values in logits.items():
            num_right = int((values.argmax(axis=1) == labels).sum())
            difference = np.abs(values - reference).max() / np.abs(reference).max()
            print(
                f"{name:>20}: {num_right} of {len(labels)} images right, "
                f"logits within {difference:.1e} of the original's"
            )
            if difference > 1e-5:
                raise SystemExit(f"{name}: logits differ by more than 1e-5")

        report = onnx_ternary.verify(MODEL, converted, inputs={"image": images})
        for product in report.products:
            print(f"  {product.node}: error {product.worst_error_over_bound:.1%} of its bound")
        if not report.passed:
            raise SystemExit("verification failed")


if __name__ == "__main__":
    main()
