"""The converted model without the library, where its function body computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto

from onnx_ternary.errors import ModelError
from onnx_ternary.schema import DOMAIN, OP_TYPE, OpAttributes
from onnx_ternary.verification.loaded_model import LoadedModel
from onnx_ternary.verification.places import is_product, nested_nodes, node_attributes

MAX_BODY_ELEMENTS = 1 << 26
"""Weights of all products: without the library they are float32, and decoding takes copies."""

MAX_BODY_PRODUCTS = 256
"""The function is expanded in each, and onnxruntime folds its fifty nodes one by one."""


@dataclass(slots=True)
class Bodies:
    """Which products also run without the library: the first of each kind.

    The function is one for the whole model, so products that differ in their numbers alone show
    nothing new.

    Attributes:
        function: the op's definition in the converted model; None where it has none.
    """

    function: FunctionProto | None
    _seen: set[tuple[Any, ...]] = field(default_factory=set)

    @classmethod
    def of(cls, model: ModelProto) -> Bodies:
        """The function of a converted model."""
        return cls(
            next((f for f in model.functions if (f.domain, f.name) == (DOMAIN, OP_TYPE)), None)
        )

    def take(
        self, attributes: OpAttributes, tensors: Sequence[NDArray[Any]], dtype: np.dtype[Any]
    ) -> FunctionProto | None:
        """The function, if a product of this kind has not run it yet and it fits."""
        kind = {k: v for k, v in attributes.to_dict().items() if k not in ("K", "N")}
        key = (*sorted(kind.items()), tensors[2].ndim, tensors[3].ndim, dtype)
        if key in self._seen or attributes.K * attributes.N > MAX_BODY_ELEMENTS:
            return None
        self._seen.add(key)
        return self.function


def run_without_library(
    after: LoadedModel, feeds: Mapping[str, NDArray[Any]], names: Sequence[str], *, optimized: bool
) -> tuple[dict[str, Any] | None, str]:
    """Outputs of the whole converted model where its function computes, and what to say about it.

    The outputs are None where that cannot be: without a function, for large weights, or where
    onnxruntime cannot run it.
    """
    if Bodies.of(after.proto).function is None:
        return None, ""
    nodes = (*after.proto.graph.node, *nested_nodes(after.proto))
    products = [node_attributes(node) for node in nodes if is_product(node)]
    num_elements = sum(attributes.K * attributes.N for attributes in products)
    if num_elements > MAX_BODY_ELEMENTS or len(products) > MAX_BODY_PRODUCTS:
        return None, (
            f"the whole model did not run without the library: its {len(products)} products have "
            f"{num_elements} weights, and verification decodes at most {MAX_BODY_PRODUCTS} and "
            f"{MAX_BODY_ELEMENTS}"
        )
    try:
        session = after.session(None, optimized=optimized, with_op=False)
        return after.run_values(session, feeds, names), ""
    except ModelError as error:
        return None, f"the model does not run without the library: {error}"
