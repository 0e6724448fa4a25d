// TernaryIndexedMatMul as ONNX Runtime sees it. Specification: docs/op_spec.md.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <vector>

namespace onnx_ternary {

// One OrtCustomOp per pair of element types, all under one name: ONNX Runtime picks the one whose
// types fit the node. Immutable; must outlive every session that uses it.
struct CustomOp : OrtCustomOp {
  CustomOp(const OrtApi* ort_api, ONNXTensorElementDataType x, ONNXTensorElementDataType codes);

  const OrtApi* api;
  ONNXTensorElementDataType x_type;
  ONNXTensorElementDataType codes_type;
};

std::vector<std::unique_ptr<CustomOp>> MakeCustomOps(const OrtApi* api);

}  // namespace onnx_ternary
