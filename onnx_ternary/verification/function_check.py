"""Whether the function body a converted model carries computes what the op defines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_ternary.errors import ModelError
from onnx_ternary.op.gather import ternary_indexed_gather
from onnx_ternary.op.reference import ternary_indexed_matmul
from onnx_ternary.schema import DOMAIN, GATHER_TYPE, OP_TYPE
from onnx_ternary.verification.body import Bodies
from onnx_ternary.verification.gathers import gather_function, run_rows, spread_rows
from onnx_ternary.verification.loaded_model import LoadedModel, Model
from onnx_ternary.verification.original import MIN_ROWS
from onnx_ternary.verification.places import Scope, find_scopes, node_attributes, node_name
from onnx_ternary.verification.trial import Trial, run_body


def check_function_body(model: Model) -> int:
    """Run one product of each kind, and every gather, through the model's own functions.

    They are held against the numpy references of the operators.

    No session has the library, and no original is needed. A model without the function, or whose
    products take more than `MAX_BODY_ELEMENTS`, is left alone.

    Returns:
        How many nodes ran.

    Raises:
        ModelError: if the model cannot be read, or its function gives other answers than the op.
        IndexFormatError: if a node's index breaks its format.
    """
    loaded = LoadedModel.load(model, "converted", ())
    bodies = Bodies.of(loaded.proto)
    if bodies.function is None:
        return 0
    rng = np.random.default_rng(0)
    scopes = find_scopes(loaded.proto, loaded.proto)
    count = _check_gathers(loaded, scopes)
    for scope in scopes:
        for node in scope.products:
            attributes = scope.attributes[id(node)]
            tensors = loaded.constants(scope.constants, node.input[1:], node_name(node))
            function = bodies.take(attributes, tensors, np.dtype(np.float32))
            if function is None:
                continue
            x = rng.standard_normal((MIN_ROWS, attributes.K)).astype(np.float32)
            codes, aux, scale, bias = tensors
            y = ternary_indexed_matmul(x, codes, aux, scale, bias, attributes)
            trial = Trial(scope, node, x, y, attributes, tensors, rounds=False, exact_sums=False)
            trial.found = y
            trial.by_body = run_body(loaded, trial, function)
            check = trial.judged(MIN_ROWS, 0.0)
            count += 1
            if check.status == "failed":
                raise ModelError(
                    f"The function {DOMAIN}::{OP_TYPE} of the {loaded.name} is not the one the "
                    f"operator defines: for product '{check.node}' it gives {check.worst_found:g} "
                    f"instead of {check.worst_expected:g}, so that the model gives other answers "
                    "without the library; convert the model again with 'onnx-ternary optimize'."
                )
    return count


def _check_gathers(loaded: LoadedModel, scopes: Sequence[Scope]) -> int:
    """Run every gather through its function; how many ran.

    Raises:
        ModelError: if a row is not the one the operator defines.
    """
    function = gather_function(loaded.proto)
    if function is None:
        return 0
    count = 0
    for scope in scopes:
        for node in scope.gathers:
            attributes, name = node_attributes(node), node_name(node)
            codes, scale, like = tensors = loaded.constants(scope.constants, node.input[1:], name)
            rows = spread_rows(attributes.N, MIN_ROWS)
            found = run_rows(loaded, node, tensors, rows, [function], with_op=False)
            wanted = ternary_indexed_gather(rows, codes, scale, like.dtype, attributes)
            count += 1
            if not np.array_equal(found, wanted.astype(np.float32)):
                raise ModelError(
                    f"The function {DOMAIN}::{GATHER_TYPE} of the {loaded.name} is not the one the "
                    f"operator defines: rows of '{name}' are others, so that the model gives other "
                    "answers without the library; convert the model again with 'onnx-ternary "
                    "optimize'."
                )
    return count
