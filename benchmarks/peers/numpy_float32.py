"""numpy's float32 product. Its threads are set by OPENBLAS_NUM_THREADS before it is loaded."""

from __future__ import annotations

from peers import Layer, Peer, Run, bits_of


def prepare(layer: Layer, threads: int, copies: int) -> list[Run]:
    """X @ W."""

    def one() -> Run:
        weight = layer.dense
        return lambda x: x @ weight

    return [one() for _ in range(copies)]


PEERS = (Peer("numpy float32", 1e-5, False, prepare, bits_of(32)),)
