#include "custom_op.h"

#include <atomic>
#include <cstdint>
#include <memory>

namespace onnx_ternary {
namespace {

// No session has this provider, so float16 nodes find no kernel, just as float16 MatMul finds none
// in the CPU provider. ONNX Runtime then runs the float32 kernel between Casts of its own, drops
// the Casts between neighbors, and runs in float32 what lies between two such nodes. A float16
// kernel would round every value around the product to float16, which overflows where the original
// does not: Mul(r, r) in front of a product. (A session that finds the op does not look for its
// function body.) bfloat16 has float32's range and a kernel.
constexpr const char* kNoProvider = "onnx_ternary.float32_between_casts";

}  // namespace

TypedOp::TypedOp(const OrtApi* ort_api, ONNXTensorElementDataType floats,
                 ONNXTensorElementDataType integers)
    : OrtCustomOp{}, api(ort_api), float_type(floats), integer_type(integers) {
  version = ORT_API_VERSION;
  GetExecutionProviderType = [](const OrtCustomOp* op) {
    const bool is_half = Of(op).float_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    return is_half ? kNoProvider : "CPUExecutionProvider";
  };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return Of(op).float_type; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
}

bool ReadInput(const OrtApi& api, OrtShapeInferContext* context, size_t index,
               InferredTensor* input) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  if (OrtStatus* unknown = api.ShapeInferContext_GetInputTypeShape(context, index, &info)) {
    api.ReleaseStatus(unknown);
    return false;
  }
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  input->shape.resize(rank);
  input->symbols.assign(rank, "");
  Check(api, api.GetDimensions(info, input->shape.data(), rank));
  Check(api, api.GetSymbolicDimensions(info, input->symbols.data(), rank));
  Check(api, api.GetTensorElementType(info, &input->type));
  return true;
}

void SetOutput(const OrtApi& api, OrtShapeInferContext* context, const char* op_type,
               const InferredTensor& output) {
  static std::atomic<uint64_t> num_unknown{0};
  const std::vector<int64_t>& shape = output.shape;
  std::vector<const char*> symbols = output.symbols;
  std::vector<std::string> names(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    if (symbols[i] == nullptr) symbols[i] = "";
    if (shape[i] >= 0 || *symbols[i] != '\0') continue;
    names[i] = std::string(op_type) + "_dim_" + std::to_string(num_unknown++);
    symbols[i] = names[i].c_str();
  }
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(api, api.CreateTensorTypeAndShapeInfo(&raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> y(
      raw, api.ReleaseTensorTypeAndShapeInfo);
  Check(api, api.SetTensorElementType(raw, output.type));
  Check(api, api.SetDimensions(raw, shape.data(), shape.size()));
  Check(api, api.SetSymbolicDimensions(raw, symbols.data(), symbols.size()));
  Check(api, api.ShapeInferContext_SetOutputTypeShape(context, 0, raw));
}

bool ReadInteger(const OrtApi& api, OrtShapeInferContext* context, const char* name,
                 int64_t* value) {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* missing = api.ShapeInferContext_GetAttribute(context, name, &attribute)) {
    api.ReleaseStatus(missing);
    return false;
  }
  size_t bytes = 0;
  if (OrtStatus* other_type =
          api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, value, sizeof *value, &bytes)) {
    api.ReleaseStatus(other_type);
    return false;
  }
  return true;
}

}  // namespace onnx_ternary
