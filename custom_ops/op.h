// The operators as ONNX Runtime sees them. Specification: docs/op_spec.md.
#pragma once

#include "custom_op.h"

namespace onnx_ternary {

// TernaryIndexedMatMul (op.cc).
TypedOps MakeMatMulOps(const OrtApi* api);

// TernaryIndexedGather, rows of a table whose index a TernaryIndexedMatMul shares (gather.cc).
TypedOps MakeGatherOps(const OrtApi* api);

}  // namespace onnx_ternary
