#include "node_reader.h"

#include <utility>

#include "ort_status.h"

namespace onnx_ternary {
TensorInfo ReadTensorInfo(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)>
      info(raw, api.ReleaseTensorTypeAndShapeInfo);
  TensorInfo result;
  size_t rank = 0;
  Check(api, api.GetTensorElementType(raw, &result.type));
  Check(api, api.GetDimensionsCount(raw, &rank));
  result.shape.resize(rank);
  Check(api, api.GetDimensions(raw, result.shape.data(), rank));
  return result;
}

ElementType ElementTypeOf(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 ? ElementType::bfloat16
                                                        : ElementType::float32;
}

const void* TensorData(const OrtApi& api, const OrtValue* value) {
  void* data = nullptr;
  // Reads only; the C API has no const accessor.
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

NodeReader::NodeReader(const OrtApi& api, const OrtKernelInfo* info, const char* op_type,
                       std::vector<const char*> input_names)
    : api_(api), info_(info), op_type_(op_type), input_names_(std::move(input_names)) {
  name_ = ReadName();
}

int64_t NodeReader::Int(const char* attribute) const {
  int64_t value = 0;
  Require(api_.KernelInfoGetAttribute_int64(info_, attribute, &value), attribute, "an integer");
  return value;
}

float NodeReader::Float(const char* attribute) const {
  float value = 0.0f;
  Require(api_.KernelInfoGetAttribute_float(info_, attribute, &value), attribute, "a float");
  return value;
}

std::string NodeReader::String(const char* attribute) const {
  size_t size = 0;
  Require(api_.KernelInfoGetAttribute_string(info_, attribute, nullptr, &size), attribute,
          "a string");
  std::string value(size, '\0');
  Require(api_.KernelInfoGetAttribute_string(info_, attribute, &value[0], &size), attribute,
          "a string");
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

const OrtValue* NodeReader::Constant(size_t input) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api_, api_.KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value));
  if (!is_constant || value == nullptr) {
    throw IndexError(IndexErrorText(
        op_type_, name_, "input " + std::to_string(input) + " (" + input_names_[input] + ")",
        "not constant", "an initializer that is not also a graph input"));
  }
  return value;
}

std::string NodeReader::ReadName() const {
  const auto read = [&](auto get) {
    size_t size = 0;
    Check(api_, get(nullptr, &size));
    std::string name(size, '\0');
    Check(api_, get(&name[0], &size));
    while (!name.empty() && name.back() == '\0') name.pop_back();
    return name;
  };
  std::string name =
      read([&](char* out, size_t* size) { return api_.KernelInfo_GetNodeName(info_, out, size); });
  if (!name.empty()) return name;
  return read(
      [&](char* out, size_t* size) { return api_.KernelInfo_GetOutputName(info_, 0, out, size); });
}

void NodeReader::Require(OrtStatus* status, const char* attribute, const char* expected) const {
  if (status == nullptr) return;
  api_.ReleaseStatus(status);
  throw IndexError(IndexErrorText(op_type_, name_, std::string("attribute ") + attribute,
                                  "missing or of another type", expected));
}

std::unique_ptr<const IndexView> ReadIndex(const OrtApi& api, const NodeReader& reader) {
  const std::string index_format = reader.String("index_format");
  const std::string storage = reader.String("storage");
  const std::string alphabet = reader.String("alphabet");
  const std::string algorithm = reader.String("algorithm");
  const std::string activation = reader.String("activation");
  const std::string activation_rule = reader.String("activation_rule");
  OtnNode node{};
  node.K = reader.Int("K");
  node.N = reader.Int("N");
  node.index_format = index_format.c_str();
  node.storage = storage.c_str();
  node.alphabet = alphabet.c_str();
  node.block_size = reader.Int("block_size");
  node.block_width = reader.Int("block_width");
  node.algorithm = algorithm.c_str();
  node.group_size = reader.Int("group_size");
  node.activation = activation.c_str();
  node.activation_rule = activation_rule.c_str();
  node.activation_epsilon = reader.Float("activation_epsilon");
  node.activation_qmin = reader.Int("activation_qmin");
  node.activation_qmax = reader.Int("activation_qmax");
  node.format_version = reader.Int("format_version");

  TensorInfo infos[kNumInputs];
  const void* data[kNumInputs] = {};
  for (size_t input = 1; input < kNumInputs; ++input) {
    const OrtValue* value = reader.Constant(input);
    infos[input] = ReadTensorInfo(api, value);
    data[input] = TensorData(api, value);
  }
  switch (infos[1].type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      node.codes_element_bytes = 1;
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      node.codes_element_bytes = 2;
      break;
    default:
      node.codes_element_bytes = 4;
      break;
  }
  node.codes = data[1];
  node.codes_shape = infos[1].shape.data();
  node.codes_rank = infos[1].shape.size();
  node.aux = static_cast<const uint32_t*>(data[2]);
  node.aux_shape = infos[2].shape.data();
  node.aux_rank = infos[2].shape.size();
  node.scale = static_cast<const float*>(data[3]);
  node.scale_shape = infos[3].shape.data();
  node.scale_rank = infos[3].shape.size();
  node.bias = static_cast<const float*>(data[4]);
  node.bias_shape = infos[4].shape.data();
  node.bias_rank = infos[4].shape.size();
  return std::make_unique<const IndexView>(node, reader.name());
}

}  // namespace onnx_ternary
