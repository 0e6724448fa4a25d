"""Train the ternary example model and write digits_mlp.onnx and digits_mlp.npz.

A multilayer perceptron 64 -> 512 -> 512 -> 512 -> 10 on scikit-learn's handwritten digits. The
three hidden layers are trained the BitNet b1.58 way: weights are rounded to {-s, 0, +s} with s the
mean magnitude of the layer, and gradients pass straight through the rounding. The output layer
stays float, as it does in BitNet models. Export bakes the ternary weights in as plain float
initializers: nothing in the ONNX file says that they are ternary.

    pip install ".[examples]"
    python examples/make_digits_mlp.py [--output-dir examples]

The .npz holds the 450 test images (450, 64) float32 in [0, 1], their labels (450,) int64, and the
logits (450, 10) float32 of the float model in ONNX Runtime.

Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository; shipped with scikit-learn (BSD-3-Clause).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

NUM_TEST_IMAGES = 450
HIDDEN = 512
EPOCHS = 40
BATCH_SIZE = 64
LEARNING_RATE = 2e-3


def ternary(weight: Tensor) -> Tensor:
    """Round a weight (N, K) to {-s, 0, +s}, s its mean magnitude (arXiv 2402.17764, eq. 1-3)."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1) * scale


class TernaryLinear(nn.Linear):
    """A linear layer that is ternary in the forward pass and float in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_features) to (batch, out_features), float32."""
        straight_through = self.weight + (ternary(self.weight) - self.weight).detach()
        return functional.linear(x, straight_through, self.bias)

    def as_linear(self) -> nn.Linear:
        """The same layer with the ternary weights as its stored ones."""
        layer = nn.Linear(self.in_features, self.out_features)
        layer.load_state_dict({"weight": ternary(self.weight.detach()), "bias": self.bias})
        return layer


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    """Train on images (num_images, 64) float32 and labels (num_images,) int64."""
    model = nn.Sequential(
        TernaryLinear(64, HIDDEN),
        nn.ReLU(),
        TernaryLinear(HIDDEN, HIDDEN),
        nn.ReLU(),
        TernaryLinear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1:2d}/{EPOCHS}, loss of the last batch {loss.item():.4f}")
    return model


def tidy(path: Path) -> None:
    """Take out the exporter's stack traces, which name folders of the machine it ran on.

    The IR version becomes the last one that onnxruntime 1.17 reads; the model needs none newer.
    """
    model = onnx.load(path)
    model.ir_version = 9
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def main() -> None:
    """Train, export and record the reference logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent)
    output_dir: Path = parser.parse_args().output_dir
    torch.manual_seed(0)
    torch.set_num_threads(1)

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=NUM_TEST_IMAGES, random_state=0, stratify=labels
    )
    trained = train(torch.from_numpy(x_train), torch.from_numpy(y_train))
    model = nn.Sequential(
        *(layer.as_linear() if isinstance(layer, TernaryLinear) else layer for layer in trained)
    ).eval()

    path = output_dir / "digits_mlp.onnx"
    torch.onnx.export(
        model,
        (torch.from_numpy(x_test[:2]),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    tidy(path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": x_test})
    np.savez_compressed(
        path.with_suffix(".npz"), image=x_test, labels=y_test.astype(np.int64), logits=logits
    )
    num_right = int((logits.argmax(axis=1) == y_test).sum())
    print(f"{num_right} of {len(y_test)} test images right; wrote {path}")


if __name__ == "__main__":
    main()
