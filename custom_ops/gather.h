// TernaryIndexedGather as ONNX Runtime sees it: rows of a table whose index a TernaryIndexedMatMul
// shares. Specification: docs/op_spec.md.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <vector>

namespace onnx_ternary {

// One OrtCustomOp per pair of element types, all under one name, as in op.h.
struct GatherOp : OrtCustomOp {
  GatherOp(const OrtApi* ort_api, ONNXTensorElementDataType indices, ONNXTensorElementDataType y);

  const OrtApi* api;
  ONNXTensorElementDataType indices_type;
  ONNXTensorElementDataType y_type;
};

std::vector<std::unique_ptr<GatherOp>> MakeGatherOps(const OrtApi* api);

}  // namespace onnx_ternary
