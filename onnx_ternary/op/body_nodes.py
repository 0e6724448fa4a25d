"""What function bodies are written with: nodes one after the other, named by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

# Constant's value_int and value_float, through which a body reads the node's attributes.
ATTRIBUTE_REFERENCE_OPSET = 12
CAST_LIKE_OPSET = 15
# Model-local functions. Overloads (IR version 10) would allow several bodies in one model, but
# onnxruntime up to 1.26 runs the last one for every node, silently.
MIN_IR_VERSION = 8
# ReduceMax and ReduceMean take their axes as an input.
REDUCE_AXES_INPUT_OPSET = 18
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class NoBody:
    """Why a model gets no function body; it then needs the library to run."""

    reason: str


def early_refusal(
    op_type: str, num_nodes: int, opset: int, ir_version: int, min_opset: int
) -> NoBody | None:
    """Why a model gets no body of an operator, whatever its nodes are; None if it may get one.

    Args:
        op_type: the operator.
        num_nodes: of the operator in the model.
        opset: the ai.onnx opset the model imports.
        ir_version: the model's.
        min_opset: the first one with the operators of the body.
    """
    if not num_nodes:
        return NoBody(f"the model has no {op_type} node")
    if opset < min_opset:
        return NoBody(
            f"the model's opset is {opset}; the body of {op_type} takes operators of opset "
            f"{min_opset}"
        )
    if ir_version < MIN_IR_VERSION:
        return NoBody(
            f"the model's IR version is {ir_version}; functions begin at {MIN_IR_VERSION}"
        )
    return None


class BodyNodes:
    """The nodes of a function body, whose outputs are named as nodes are appended."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.protos: list[NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output; its name."""
        name = output or f"{op_type.lower()}_{len(self.protos)}"
        self.protos.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """A Constant node."""
        return self("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def reference(self, attribute: str, value_name: str) -> str:
        """The scalar the node's own attribute holds, as int64 (value_int) or float32."""
        proto = AttributeProto(name=value_name, ref_attr_name=attribute)
        proto.type = AttributeProto.INT if value_name == "value_int" else AttributeProto.FLOAT
        name = self("Constant")
        self.protos[-1].attribute.append(proto)
        return name

    def integer(self, attribute: str, baked: int) -> str:
        """int64 (1,): the node's attribute, or the variant's number below opset 12."""
        if self.opset < ATTRIBUTE_REFERENCE_OPSET:
            return self.constant([baked], np.int64)
        return self.reshape(self.reference(attribute, "value_int"), [-1])

    def number(self, attribute: str, baked: float, value_name: str) -> str:
        """float32 (): the node's attribute, or the variant's number below opset 12."""
        if self.opset < ATTRIBUTE_REFERENCE_OPSET:
            return self.constant(baked, np.float32)
        value = self.reference(attribute, value_name)
        return self.cast(value, TensorProto.FLOAT) if value_name == "value_int" else value

    def cast(self, value: str, dtype: int) -> str:
        """A Cast to an onnx.TensorProto type."""
        return self("Cast", value, to=dtype)

    def reshape(self, value: str, shape: list[int]) -> str:
        """A Reshape to a known shape, as Reshape reads it."""
        return self("Reshape", value, self.constant(shape, np.int64))

    def first(self, value: str, counts: str, axes: list[int], starts: str = "") -> str:
        """The first counts[i] entries along axes[i]; ``starts`` are zeros by another name."""
        starts = starts or self.constant([0] * len(axes), np.int64)
        return self("Slice", value, starts, counts, self.constant(axes, np.int64))

    def entry(self, value: str, start: int) -> str:
        """(1,): one entry of a vector."""
        bounds = (self.constant([at], np.int64) for at in (start, start + 1))
        return self("Slice", value, *bounds)

    def last_dim(self, value: str) -> str:
        """int64 (1,): the last dimension; empty for a scalar."""
        return self(
            "Slice", self("Shape", value), self.constant([-1], np.int64), *self.to_end_of(0)
        )

    def to_end_of(self, axis: int) -> tuple[str, str]:
        """Slice's ends and axes for the rest of an axis."""
        return self.constant([_INT64_MAX], np.int64), self.constant([axis], np.int64)

    def sort(self, value: str) -> tuple[str, str]:
        """Values ascending along the last axis, and where each stood (int64)."""
        values, places = f"sorted_{len(self.protos)}", f"sorted_at_{len(self.protos)}"
        count = self.last_dim(value)
        self.protos.append(
            helper.make_node("TopK", [value, count], [values, places], axis=-1, largest=0)
        )
        return values, places

    def reduce_last(self, op_type: str, value: str) -> str:
        """A reduction of the last axis, which stays."""
        if self.opset < REDUCE_AXES_INPUT_OPSET:
            reduced = self(op_type, value, axes=[-1], keepdims=1)
        else:
            reduced = self(op_type, value, self.constant([-1], np.int64), keepdims=1)
        # ONNX Runtime leaves an empty tensor's last axis as it is; (0, K) has to become (0, 1).
        return self.first(reduced, self.constant([1], np.int64), [-1])
