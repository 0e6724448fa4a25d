"""Initializers that are graph inputs too, taken for constants while a model is converted.

1. Below IR version 4 every initializer has to be a graph input, and no caller of ONNX Runtime can
   give another value: they are constants.
2. From IR version 4 on a caller may override them; `OptimizeOptions.constant_initializers` gives
   that up.
Where nothing is rewritten the inputs come back. Else they are gone for good, and the IR version is
4 or later: the new tensors are initializers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx_ir as ir

from onnx_ternary.options import OptimizeOptions

from .finish import first_three

FIRST_WITHOUT_INPUTS = 4
"""The first IR version in which initializers need not be graph inputs."""


@dataclass(slots=True)
class ConstantInputs:
    """The initializers that are no graph inputs for a while.

    Attributes:
        names: of them.
        keep: whether they stay constants: something was rewritten.
    """

    names: list[str] = field(default_factory=list)
    keep: bool = False

    def note(self, old_ir_version: int, ir_version: int) -> str:
        """What the user should know, once they stay constants; or nothing."""
        names = first_three([f"'{name}'" for name in self.names])
        if old_ir_version < FIRST_WITHOUT_INPUTS:
            return (
                f"IR version {old_ir_version} has every initializer among the graph's inputs, "
                f"where no caller can override it; in IR version {ir_version} they are none"
                f"{f': {names}' if names else ''}"
            )
        return f"no longer graph inputs that a caller may override: {names}" if names else ""


@contextmanager
def held_constant(model: ir.Model, options: OptimizeOptions) -> Iterator[ConstantInputs]:
    """While open, the model's overridable initializers are none, if cases 1 or 2 hold."""
    held = ConstantInputs()
    graph, old = model.graph, [*model.graph.inputs]
    if options.constant_initializers or model.ir_version < FIRST_WITHOUT_INPUTS:
        held.names = [value.name or "" for value in old if value.is_initializer()]
    if held.names:
        graph.inputs[:] = [value for value in old if not value.is_initializer()]
    try:
        yield held
    finally:
        if held.names and not held.keep:
            graph.inputs[:] = old
