#include "custom_op.h"

#include <atomic>
#include <cstdint>
#include <memory>

#include "ort_status.h"

namespace onnx_ternary {

void SetDefaults(OrtCustomOp* op) {
  op->version = ORT_API_VERSION;
  op->GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op->GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op->GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op->GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op->GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op->GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op->GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op->GetEndVersion = [](const OrtCustomOp*) { return 1; };
}

void SetOutputShape(const OrtApi& api, OrtShapeInferContext* context, const char* op_type,
                    const std::vector<int64_t>& shape, std::vector<const char*> symbols,
                    ONNXTensorElementDataType type) {
  static std::atomic<uint64_t> num_unknown{0};
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
  Check(api, api.SetTensorElementType(raw, type));
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
