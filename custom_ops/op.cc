#include "op.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "dispatch/select.h"
#include "index_view.h"
#include "node_reader.h"
#include "run.h"
#include "session_host.h"

namespace onnx_ternary {
namespace {

// Immutable after creation, but for the count of threads: concurrent Run calls share it.
class MatMulKernel {
 public:
  static constexpr const char* kType = kMatMulType;
  static constexpr size_t kInputs = kNumInputs;

  static ONNXTensorElementDataType InputType(const TypedOp& op, size_t index) {
    switch (index) {
      case 0:
        return op.float_type;
      case 1:
        return op.integer_type;
      case 2:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32;
      default:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
  }

  // Y has X's type and leading dimensions, and N columns.
  static void InferShape(const OrtApi& api, OrtShapeInferContext* context) {
    InferredTensor x;
    int64_t num_columns = 0;
    if (!ReadInput(api, context, 0, &x) || !ReadInteger(api, context, "N", &num_columns)) return;
    if (x.shape.empty()) return;  // unknown, or a scalar that Compute refuses
    x.shape.back() = num_columns;
    x.symbols.back() = "";
    SetOutput(api, context, kType, x);
  }

  MatMulKernel(const OrtApi& api, const OrtKernelInfo* info, const TypedOp& op)
      : api_(api),
        type_(ElementTypeOf(op.float_type)),
        memory_info_(nullptr, api.ReleaseMemoryInfo) {
    const NodeReader reader(api, info, kType, {"X", "codes", "aux", "scale", "bias"});
    name_ = reader.name();
    index_ = ReadIndex(api, reader);
    // A kernel forced by the environment that cannot run is an error now, not at the first run.
    std::string error;
    if (SelectKernel(index_->layer(), 1, /*ordinary_rows=*/true, &error) == nullptr) {
      throw RunError(std::string(kType) + " '" + name_ + "': " + error);
    }
    OrtMemoryInfo* memory_info = nullptr;
    Check(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_info));
    memory_info_.reset(memory_info);
  }

  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    const Layer& layer = index_->layer();
    const OrtValue* x = nullptr;
    Check(api_, api_.KernelContext_GetInput(context, 0, &x));
    std::vector<int64_t> shape = ReadTensorInfo(api_, x).shape;
    if (shape.empty() || shape.back() != layer.K) throw RunError(ShapeError(shape));
    int64_t rows = 1;
    const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    for (size_t i = 0; i + 1 < shape.size() && !empty; ++i) rows *= shape[i];
    shape.back() = layer.N;
    OrtValue* y = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (empty) return;

    RunRequest request{};
    request.type = type_;
    request.rows = rows;
    request.x = TensorData(api_, x);
    // A constant X of an external data file lies where the file has it.
    std::vector<float> aligned_x;
    if (reinterpret_cast<uintptr_t>(request.x) % ElementBytes(type_) != 0) {
      const size_t bytes = static_cast<size_t>(rows * layer.K) * ElementBytes(type_);
      aligned_x.resize((bytes + sizeof(float) - 1) / sizeof(float));
      std::memcpy(aligned_x.data(), request.x, bytes);
      request.x = aligned_x.data();
    }
    Check(api_, api_.GetTensorMutableData(y, &request.y));
    SessionHost host(api_, context, memory_info_.get(), &thread_count_);
    try {
      Run(layer, request, &host, nullptr);
    } catch (const RunError& error) {
      throw RunError(std::string(kType) + " '" + name_ + "': " + error.what());
    }
  }

 private:
  std::string ShapeError(const std::vector<int64_t>& shape) const {
    const std::string K = std::to_string(index_->layer().K);
    std::string found;
    for (const int64_t dim : shape) found += (found.empty() ? "" : ", ") + std::to_string(dim);
    return std::string(kType) + " '" + name_ + "': X shape = (" + found + "), expected (..., " + K +
           "); the last dimension of X must be K = " + K +
           ", check what the model is fed and the nodes before this one.";
  }

  const OrtApi& api_;
  const ElementType type_;
  std::string name_;
  std::unique_ptr<const IndexView> index_;
  std::unique_ptr<OrtMemoryInfo, decltype(OrtApi::ReleaseMemoryInfo)> memory_info_;
  mutable ThreadCount thread_count_;
};

}  // namespace

TypedOps MakeMatMulOps(const OrtApi* api) {
  TypedOps ops;
  for (const auto x : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                       ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    for (const auto codes :
         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
          ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32}) {
      ops.push_back(MakeTypedOp<MatMulKernel>(api, x, codes));
    }
  }
  return ops;
}

}  // namespace onnx_ternary
