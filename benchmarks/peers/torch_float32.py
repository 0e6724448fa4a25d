"""PyTorch's float32 linear, weight stored as (N, K)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peers import Layer, Peer, Run, UnavailableError, bits_of


def prepare(layer: Layer, threads: int, copies: int) -> list[Run]:
    """torch.nn.functional.linear without gradients."""
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(f"pip install torch ({error})") from error
    torch.set_num_threads(threads)

    def one() -> Run:
        weight = torch.from_numpy(np.ascontiguousarray(layer.dense.T))

        def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return np.asarray(torch.nn.functional.linear(torch.from_numpy(x), weight))

        return run

    return [one() for _ in range(copies)]


PEERS = (Peer("torch float32", 1e-5, False, prepare, bits_of(32)),)
