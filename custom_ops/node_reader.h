// A node's attributes and constant inputs, read through ONNX Runtime's C API.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "index_view.h"
#include "rows.h"

namespace onnx_ternary {

constexpr size_t kNumInputs = 5;  // X, codes, aux, scale, bias

// Shape and type of a tensor, released with it.
struct TensorInfo {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
};

TensorInfo ReadTensorInfo(const OrtApi& api, const OrtValue* value);

// float32 for every type that is not bfloat16; float16 has no kernel.
ElementType ElementTypeOf(ONNXTensorElementDataType type);

// Read only.
const void* TensorData(const OrtApi& api, const OrtValue* value);

// Throws IndexError where the node has not what is asked for.
class NodeReader {
 public:
  // op_type and the names of its inputs, for messages.
  NodeReader(const OrtApi& api, const OrtKernelInfo* info, const char* op_type,
             std::vector<const char*> input_names);

  // The node's name, or its output's where it has none.
  const std::string& name() const { return name_; }

  int64_t Int(const char* attribute) const;
  float Float(const char* attribute) const;
  std::string String(const char* attribute) const;
  const OrtValue* Constant(size_t input) const;

 private:
  std::string ReadName() const;
  void Require(OrtStatus* status, const char* attribute, const char* expected) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
  const char* op_type_;
  std::vector<const char*> input_names_;
  std::string name_;
};

// The validated index of the node; its constant inputs must outlive it.
std::unique_ptr<const IndexView> ReadIndex(const OrtApi& api, const NodeReader& reader);

}  // namespace onnx_ternary
