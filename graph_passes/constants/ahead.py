"""Find the levels of the next weights on other threads, while a product is replaced.

Rules ask for one weight after the other; which one comes next can be told for products whose weight
is a tensor of the model, or its transpose. A wrong guess costs time, never a result. Finding levels
takes most of a conversion's time, reading the weight included, and numpy lets other threads run.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import onnx_ir as ir

from onnx_ternary._machine import num_processors
from onnx_ternary.errors import ModelError
from onnx_ternary.index.levels import NotTernary, TernaryWeight
from onnx_ternary.options import OptimizeOptions

from .constant import Constant
from .resolve import detached

MAX_BYTES = 1 << 29
"""Of weights that are read at once; the one that is asked for next may be larger."""
_MIN_ELEMENTS = 1 << 16
_PRODUCTS = frozenset({("", "MatMul"), ("", "Gemm")})

Found = TernaryWeight | NotTernary


@dataclass(frozen=True, slots=True)
class _Started:
    """A weight whose levels are being found, and the product it is for."""

    product: ir.Node
    weight: Constant
    future: Future[Found]


class Ahead:
    """Weights whose levels are being found; leaving the block waits for its threads."""

    def __init__(self, options: OptimizeOptions, num_threads: int | None = None) -> None:
        self._options = options
        num_threads = num_threads or num_processors()
        # One operand is asked for while others are being read.
        self.num_products = num_threads + 1 if num_threads > 1 else 0
        self._pool = ThreadPoolExecutor(num_threads, "onnx-ternary")
        # By the tensor's value: of two products that share one, the second finds what is known.
        self._started: dict[int, _Started] = {}
        # Products are looked at again and again while they come nearer.
        self._weights: dict[ir.Node, Constant | None] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, products: Sequence[ir.Node], known: Hashable = None) -> None:
        """Start on the next weights, as many as threads and memory allow.

        Args:
            products: in the order in which rules are asked about them.
            known: key of a weight whose levels nobody will ask for.
        """
        num_bytes = 0
        for product in products[: self.num_products]:
            if product not in self._weights:
                self._weights[product] = _weight(product)
            weight = self._weights[product]
            if weight is None or weight.size < max(_MIN_ELEMENTS, self._options.min_elements):
                continue
            num_bytes += weight.stored_bytes
            if num_bytes > MAX_BYTES:
                return
            if weight.key != known and id(weight.root) not in self._started:
                future = self._pool.submit(weight.ternarize, self._options.tolerance)
                self._started[id(weight.root)] = _Started(product, weight, future)

    def take(self, weight: Constant) -> Found | None:
        """What was found, once it is; None for a weight that was not started on or not read."""
        started = self._started.pop(id(weight.root), None)
        if started is None:
            return None
        if started.weight.key == weight.key:
            try:
                return started.future.result()
            except (ModelError, OSError, MemoryError):
                return None  # read again, in turn, it succeeds or says what is wrong
        _end(started)
        return None

    def drop(self, product: ir.Node) -> None:
        """Let go of what was started for a product that is done with."""
        self._weights.pop(product, None)
        for key, started in [*self._started.items()]:
            if started.product is product:
                _end(self._started.pop(key))


def _end(started: _Started) -> None:
    if not started.future.cancel():
        wait([started.future])


def _weight(product: ir.Node) -> Constant | None:
    """The operand a rule will ask for, where it is a tensor or its transpose."""
    if (product.domain, product.op_type) not in _PRODUCTS or len(product.inputs) < 2:
        return None
    operand = product.inputs[1]
    weight = None if operand is None else detached(operand)
    if weight is None or len(weight.shape) != 2:
        return None
    transposed = product.op_type == "Gemm" and bool(product.attributes.get_int("transB", 0))
    return weight.transposed() if transposed else weight
