// A table (N, K) is stored as its transpose, the (K, N) weight of the product that shares it, so
// row n of the table is column n of the index: block_bytes bytes of every K block. They are decoded
// where they lie, and a level picks one of the numbers -scale, 0 and scale: no arithmetic, so
// nothing is rounded but to Y's type, and no mode of the processor matters.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "node_reader.h"
#include "op.h"
#include "pack.h"
#include "rows.h"

namespace onnx_ternary {
namespace {

constexpr size_t kLike = 3;
constexpr int64_t kMaxBlockSize = 128;
// Elements of Y a thread takes at least: a few microseconds of work.
constexpr int64_t kElementsPerPart = int64_t{1} << 15;

// Attributes and tensors a product has and a table has not, as NodeChecker expects them.
constexpr int64_t kAuxShape[] = {1};
constexpr uint32_t kAux[] = {0};

// Immutable after creation: concurrent Run calls share it.
class GatherKernel {
 public:
  static constexpr const char* kType = kGatherType;
  static constexpr size_t kInputs = kLike + 1;

  static ONNXTensorElementDataType InputType(const TypedOp& op, size_t index) {
    switch (index) {
      case 0:
        return op.integer_type;
      case 1:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
      case kLike:
        return op.float_type;
      default:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
  }

  // Y has the type of `like`, and the shape of the indices with K behind it.
  static void InferShape(const OrtApi& api, OrtShapeInferContext* context) {
    InferredTensor indices, like;
    int64_t K = 0;
    if (!ReadInput(api, context, 0, &indices) || !ReadInput(api, context, kLike, &like)) return;
    if (!ReadInteger(api, context, "K", &K)) return;
    if (indices.shape.empty()) return;  // a scalar, or unknown
    indices.type = like.type;
    indices.shape.push_back(K);
    indices.symbols.push_back("");
    SetOutput(api, context, kType, indices);
  }

  GatherKernel(const OrtApi& api, const OrtKernelInfo* info, const TypedOp& op)
      : api_(api),
        wide_indices_(op.integer_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
        type_(ElementTypeOf(op.float_type)) {
    const NodeReader reader(api, info, kType, {"indices", "codes", "scale", "like"});
    name_ = reader.name();
    const std::string storage = reader.String("storage");
    const std::string alphabet = reader.String("alphabet");
    OtnNode node{};
    node.K = reader.Int("K");
    node.N = reader.Int("N");
    node.index_format = "packed";
    node.storage = storage.c_str();
    node.alphabet = alphabet.c_str();
    node.block_size = reader.Int("block_size");
    node.algorithm = "auto";
    node.group_size = reader.Int("group_size");
    node.activation = "float";
    node.activation_rule = "none";
    node.format_version = reader.Int("format_version");
    node.aux = kAux;
    node.aux_shape = kAuxShape;
    node.aux_rank = 1;
    const OrtValue* codes = reader.Constant(1);
    const OrtValue* scale = reader.Constant(2);
    const TensorInfo codes_info = ReadTensorInfo(api, codes);
    const TensorInfo scale_info = ReadTensorInfo(api, scale);
    node.codes = TensorData(api, codes);
    node.codes_shape = codes_info.shape.data();
    node.codes_rank = codes_info.shape.size();
    node.codes_element_bytes = 1;
    node.scale = static_cast<const float*>(TensorData(api, scale));
    node.scale_shape = scale_info.shape.data();
    node.scale_rank = scale_info.shape.size();
    const NodeChecker checker(node, name_, kType);
    layer_ = checker.Attributes();
    checker.CheckPackedShapes(layer_);
    checker.CheckScale(&layer_);
    layer_.codes = static_cast<const uint8_t*>(node.codes);
  }

  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    const OrtValue* indices = nullptr;
    Check(api_, api_.KernelContext_GetInput(context, 0, &indices));
    std::vector<int64_t> shape = ReadTensorInfo(api_, indices).shape;
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    const std::vector<int64_t> rows = Rows(TensorData(api_, indices), count);
    shape.push_back(layer_.K);
    OrtValue* y = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (count == 0) return;
    void* data = nullptr;
    Check(api_, api_.GetTensorMutableData(y, &data));

    const int64_t rows_per_part = std::max<int64_t>(1, kElementsPerPart / layer_.K);
    Parts parts{this, rows.data(), count, rows_per_part, static_cast<uint8_t*>(data)};
    const size_t num_parts = static_cast<size_t>(CeilDiv(count, rows_per_part));
    if (num_parts == 1) {
      RunPart(&parts, 0);
    } else {
      Check(api_, api_.KernelContext_ParallelFor(context, RunPart, num_parts, 0, &parts));
    }
  }

 private:
  struct Parts {
    const GatherKernel* kernel;
    const int64_t* rows;  // (count,)
    int64_t count;
    int64_t rows_per_part;
    uint8_t* y;  // (count, K) of the kernel's type
  };

  // noexcept: ONNX Runtime's threads pass no exception on.
  static void RunPart(void* raw, size_t part) noexcept {
    const Parts& parts = *static_cast<const Parts*>(raw);
    const GatherKernel& kernel = *parts.kernel;
    const int64_t row_bytes = kernel.layer_.K * static_cast<int64_t>(ElementBytes(kernel.type_));
    const int64_t begin = static_cast<int64_t>(part) * parts.rows_per_part;
    const int64_t end = std::min(parts.count, begin + parts.rows_per_part);
    for (int64_t i = begin; i < end; ++i) {
      kernel.DecodeRow(parts.rows[i], parts.y + i * row_bytes);
    }
  }

  // indices: (count,) int32 or int64, of any alignment. Throws RunError where one is out of range.
  std::vector<int64_t> Rows(const void* indices, int64_t count) const {
    std::vector<int64_t> rows(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      int64_t row;
      if (wide_indices_) {
        std::memcpy(&row, static_cast<const uint8_t*>(indices) + i * 8, sizeof row);
      } else {
        int32_t narrow;
        std::memcpy(&narrow, static_cast<const uint8_t*>(indices) + i * 4, sizeof narrow);
        row = narrow;
      }
      if (row < -layer_.N || row >= layer_.N) {
        throw RunError(std::string(kType) + " '" + name_ + "': indices, element " +
                       std::to_string(i) + " = " + std::to_string(row) + ", expected from " +
                       std::to_string(-layer_.N) + " to " + std::to_string(layer_.N - 1) +
                       " for a table of " + std::to_string(layer_.N) +
                       " rows; check what the model is fed.");
      }
      rows[static_cast<size_t>(i)] = row < 0 ? row + layer_.N : row;
    }
    return rows;
  }

  float Scale(int64_t group, int64_t n) const {
    int64_t at = 0;
    if (layer_.scale_kind == ScaleKind::per_column) at = n;
    if (layer_.scale_kind == ScaleKind::per_group) at = group * layer_.N + n;
    float scale;
    std::memcpy(&scale, reinterpret_cast<const uint8_t*>(layer_.scale) + at * 4, sizeof scale);
    return scale;
  }

  // y: (K,) of the kernel's type.
  void DecodeRow(int64_t n, uint8_t* y) const noexcept {
    const int64_t tile_bytes = layer_.num_k_blocks * 4 * layer_.block_bytes;
    const uint8_t* codes = layer_.codes + n / 4 * tile_bytes + n % 4 * layer_.block_bytes;
    for (int64_t block = 0; block < layer_.num_k_blocks; ++block) {
      const int64_t k = block * layer_.block_size;
      const int64_t count = std::min(layer_.block_size, layer_.K - k);
      int8_t levels[kMaxBlockSize];
      DecodeBlock(codes + block * 4 * layer_.block_bytes, layer_.storage, layer_.alphabet,
                  layer_.block_size, layer_.block_bytes, levels);
      const float scale = Scale(k / layer_.group_size, n);
      // 2-bit code 3 gives level 2.
      const float of_level[] = {-scale, 0.0f, scale, scale};
      float values[kMaxBlockSize];
      for (int64_t i = 0; i < count; ++i) values[i] = of_level[levels[i] + 1];
      StoreRow(type_, values, count, y + k * static_cast<int64_t>(ElementBytes(type_)));
    }
  }

  const OrtApi& api_;
  const bool wide_indices_;
  const ElementType type_;
  std::string name_;
  Layer layer_;
};

}  // namespace

TypedOps MakeGatherOps(const OrtApi* api) {
  TypedOps ops;
  for (const auto indices :
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}) {
    for (const auto y : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                         ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
      ops.push_back(MakeTypedOp<GatherKernel>(api, y, indices));
    }
  }
  return ops;
}

}  // namespace onnx_ternary
