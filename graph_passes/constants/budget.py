"""What evaluating constant expressions may take: bytes at once, bytes in all, and steps.

A model is a file somebody else wrote: a few kilobytes of it can ask for terabytes. Every result has
a known size before the node that makes it runs, and is charged here first. The limits follow from
the model and the options alone, so the same model gives the same answer on every machine.

1. At once: what one expression holds between two of its nodes, `EXPANSION` times its constants,
   at least `LEAST_BYTES` and at most `MOST_BYTES`; or `OptimizeOptions.max_fold_bytes`.
2. In all: `TURNOVER` times that, of all constants of the model. A node that multiplies matrices is
   charged for its products as well, and an index of a weight that is much larger than its constants
   for the weight.
3. Nodes that run, those of called functions included: `OptimizeOptions.max_fold_steps`.
"""

from __future__ import annotations

from onnx_ternary.options import OptimizeOptions

EXPANSION = 128
"""Packed ternary weights take 2 bits; three results in int64 at once are 96 times that."""
LEAST_EXPANSION = 32
"""Float32 of one bit per weight, which a file may well hold; a larger weight is made of nothing."""
LEAST_BYTES = 1 << 28
MOST_BYTES = 1 << 34
TURNOVER = 16


class OverBudget(Exception):  # noqa: N818 # a refusal with its reason, not an error of the program
    """A limit is met; the text names the node and the option."""


class Budget:
    """Limits of one conversion, and what of them is left.

    Args:
        options: `max_fold_bytes` and `max_fold_steps`.
        constant_bytes: of all constants of the model.
    """

    def __init__(self, options: OptimizeOptions, constant_bytes: int) -> None:
        self._max_bytes = options.max_fold_bytes
        self._max_steps = options.max_fold_steps
        self._max_made = TURNOVER * max(
            self._max_bytes or 0, LEAST_BYTES, EXPANSION * constant_bytes
        )
        self._made = 0
        self._steps = 0

    def at_once(self, stored_bytes: int) -> int:
        """Bytes an expression that starts from so many bytes of constants may hold."""
        if self._max_bytes is not None:
            return self._max_bytes
        return min(max(LEAST_BYTES, EXPANSION * stored_bytes), MOST_BYTES)

    def hold(self, num_bytes: int, limit: int, what: str) -> None:
        """Look whether ``what`` may make results with which ``num_bytes`` are held.

        Raises:
            OverBudget: if that is more than ``limit``, which `at_once` gave.
        """
        if num_bytes > limit:
            raise OverBudget(
                f"with what {what} makes it would hold {num_bytes} bytes at once, more than "
                f"{limit}; --max-fold-bytes (max_fold_bytes) sets another limit"
            )

    def make(self, num_bytes: int, what: str) -> None:
        """Charge for what is about to be made.

        Raises:
            OverBudget: if all results of the conversion together are too large.
        """
        self._made += num_bytes
        if self._made > self._max_made:
            raise OverBudget(
                f"with what {what} makes, constant expressions would make more than "
                f"{self._max_made} bytes in all; --max-fold-bytes (max_fold_bytes) sets another "
                "limit"
            )

    def step(self, count: int, what: str) -> None:
        """Charge for ``count`` nodes that are about to run.

        Raises:
            OverBudget: if the conversion would run too many.
        """
        if self._steps + count > self._max_steps:
            raise OverBudget(
                f"{what} would take {count} steps after {self._steps}, more than "
                f"{self._max_steps}; --max-fold-steps (max_fold_steps) sets another limit"
            )
        self._steps += count
