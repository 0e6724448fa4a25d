"""A race on purpose, two calls into one output: shows that the thread sanitizer sees the kernels.

``python -m tests.kernels.racing_output`` must end with the sanitizer's exit code (.ci/run).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from onnx_ternary.native import layer as native_layer
from onnx_ternary.schema import OpAttributes
from tests.support.single_node import make_node

# gcc's sanitizer does not see masked vector stores.
KERNEL = "packed_gemm_float_portable"

# Long enough a call for both to be inside at once.
node = make_node(np.random.default_rng(0), OpAttributes(K=128, N=1000))
layer = native_layer.Layer(node.attributes, *node.tensors)
x = np.ones((64, 128), np.float32)
y = np.empty((64, 1000), np.float32)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda _: [layer.run(x, out=y, kernel=KERNEL) for _ in range(200)], range(2)))
