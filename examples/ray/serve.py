"""Serve a converted model over HTTP with Ray Serve, which gathers requests into batches.

    pip install ".[ray]"
    python examples/ray/serve.py [--replicas 2] [--port 8000]

Converts examples/digits_mlp.onnx, serves it, and sends each of the 450 test images as a request.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Ray sends usage statistics unless told not to before it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import onnxruntime as ort
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request

import onnx_ternary

EXAMPLES = Path(__file__).resolve().parents[1]


@serve.deployment
class Digits:
    """A session with the model behind HTTP: a list of 64 pixels in, the digit out."""

    def __init__(self, model: str) -> None:
        """Open the model; one thread, because the replicas use the processors."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnx_ternary.InferenceSession(model, options)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def classify(self, images: list[NDArray[np.float32]]) -> list[dict[str, int]]:
        """The digit of each image, and with how many others it was computed."""
        (logits,) = self.session.run(None, {"image": np.stack(images)})
        return [{"digit": int(digit), "batch": len(images)} for digit in logits.argmax(axis=1)]

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        return await self.classify(np.asarray(await request.json(), np.float32))


def ask(address: str, image: NDArray[np.float32]) -> dict[str, int]:
    """The answer to one image (64,)."""
    body = json.dumps(image.tolist()).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


def start(model: Path, replicas: int, port: int) -> str:
    """Serve the model on this machine; return its address."""
    ray.init(num_cpus=replicas + 2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = Digits.options(num_replicas=replicas, ray_actor_options={"num_cpus": 1})
    serve.run(deployment.bind(str(model)), name="digits", route_prefix="/")
    return f"http://127.0.0.1:{port}/"


def main() -> None:
    """Convert, serve, ask for every test image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with np.load(EXAMPLES / "digits_mlp.npz") as data:
        images, labels = data["image"], data["labels"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "digits.onnx")
        onnx_ternary.optimize(EXAMPLES / "digits_mlp.onnx").save(model)
        address = start(model, arguments.replicas, arguments.port)
        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(lambda image: ask(address, image), images))
    right = sum(answer["digit"] == label for answer, label in zip(answers, labels, strict=True))
    largest = max(answer["batch"] for answer in answers)
    print(f"{right} of {len(labels)} images right, up to {largest} requests in one call")
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
