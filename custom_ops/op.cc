#include "op.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <thread>

#include "dispatch/kernel_registry.h"
#include "index_view.h"
#include "run.h"

namespace onnx_ternary {
namespace {

constexpr size_t kNumInputs = 5;
constexpr const char* kInputNames[kNumInputs] = {"X", "codes", "aux", "scale", "bias"};

// Carries an OrtStatus through C++ code of ours; never crosses the C boundary.
class StatusError : public std::exception {
 public:
  StatusError(const OrtApi& api, OrtStatus* status) : code_(api.GetErrorCode(status)) {
    try {
      message_ = api.GetErrorMessage(status);
    } catch (const std::exception&) {
    }
    api.ReleaseStatus(status);
  }
  const char* what() const noexcept override { return message_.c_str(); }
  OrtErrorCode code() const { return code_; }

 private:
  OrtErrorCode code_;
  std::string message_;
};

void Check(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) throw StatusError(api, status);
}

// The status of the exception being handled.
OrtStatus* CurrentStatus(const OrtApi& api) noexcept {
  try {
    throw;
  } catch (const StatusError& error) {
    return api.CreateStatus(error.code(), error.what());
  } catch (const IndexError& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const RunError& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "TernaryIndexedMatMul: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "TernaryIndexedMatMul: unknown C++ exception");
  }
}

// Shape and type of a tensor, released with it.
struct TensorInfo {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
};

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

const void* TensorData(const OrtApi& api, const OrtValue* value) {
  void* data = nullptr;
  // Reads only; the C API has no const accessor.
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

// Reads one node's attributes and constant inputs.
class NodeReader {
 public:
  NodeReader(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {
    name_ = ReadName();
  }

  const std::string& name() const { return name_; }

  int64_t Int(const char* attribute) const {
    int64_t value = 0;
    Require(api_.KernelInfoGetAttribute_int64(info_, attribute, &value), attribute, "an integer");
    return value;
  }

  float Float(const char* attribute) const {
    float value = 0.0f;
    Require(api_.KernelInfoGetAttribute_float(info_, attribute, &value), attribute, "a float");
    return value;
  }

  std::string String(const char* attribute) const {
    size_t size = 0;
    Require(api_.KernelInfoGetAttribute_string(info_, attribute, nullptr, &size), attribute,
            "a string");
    std::string value(size, '\0');
    Require(api_.KernelInfoGetAttribute_string(info_, attribute, &value[0], &size), attribute,
            "a string");
    while (!value.empty() && value.back() == '\0') value.pop_back();
    return value;
  }

  const OrtValue* Constant(size_t input) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(api_, api_.KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value));
    if (!is_constant || value == nullptr) {
      throw IndexError(
          IndexErrorText(name_, "input " + std::to_string(input) + " (" + kInputNames[input] + ")",
                         "not constant", "an initializer that is not also a graph input"));
    }
    return value;
  }

 private:
  // The node's name, or its output's where it has none.
  std::string ReadName() const {
    const auto read = [&](auto get) {
      size_t size = 0;
      Check(api_, get(nullptr, &size));
      std::string name(size, '\0');
      Check(api_, get(&name[0], &size));
      while (!name.empty() && name.back() == '\0') name.pop_back();
      return name;
    };
    std::string name = read(
        [&](char* out, size_t* size) { return api_.KernelInfo_GetNodeName(info_, out, size); });
    if (!name.empty()) return name;
    return read([&](char* out, size_t* size) {
      return api_.KernelInfo_GetOutputName(info_, 0, out, size);
    });
  }

  void Require(OrtStatus* status, const char* attribute, const char* expected) const {
    if (status == nullptr) return;
    api_.ReleaseStatus(status);
    throw IndexError(IndexErrorText(name_, std::string("attribute ") + attribute,
                                    "missing or of another type", expected));
  }

  const OrtApi& api_;
  const OrtKernelInfo* info_;
  std::string name_;
};

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

// The number of threads of a session's pool, which the C API does not tell: how many bodies have
// been seen to run at the same time. Threads sleep, wake late or are busy elsewhere, so work is cut
// for all processors at first and now and then; cut too fine it costs little, too coarse it would
// leave threads idle for ever.
class ThreadCount {
 public:
  int64_t Plan() {
    const int64_t call = calls_.fetch_add(1, std::memory_order_relaxed);
    const int64_t seen = seen_.load(std::memory_order_relaxed);
    return call < kTrials || call % kRetry == 0 ? std::max(Processors(), seen) : seen;
  }

  void Saw(int64_t running) {
    int64_t seen = seen_.load(std::memory_order_relaxed);
    while (running > seen && !seen_.compare_exchange_weak(seen, running)) {
    }
  }

 private:
  static constexpr int64_t kTrials = 32;
  static constexpr int64_t kRetry = 64;

  static int64_t Processors() {
    static const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
    return processors;
  }

  std::atomic<int64_t> calls_{0};
  std::atomic<int64_t> seen_{1};
};

// Scratch from the session's arena, threads from its pool, for the time of one Compute call.
class SessionHost : public Host {
 public:
  SessionHost(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* memory_info,
              ThreadCount* thread_count)
      : api_(api), context_(context), thread_count_(thread_count) {
    Check(api_, api_.KernelContext_GetAllocator(context, memory_info, &allocator_));
  }
  ~SessionHost() override { api_.ReleaseAllocator(allocator_); }
  SessionHost(const SessionHost&) = delete;
  SessionHost& operator=(const SessionHost&) = delete;

  void ParallelFor(size_t count, void (*body)(void*, size_t), void* context) override {
    struct Watched {
      void (*body)(void*, size_t);
      void* context;
      ThreadCount* thread_count;
      std::atomic<int64_t> running{0};
    };
    Watched watched{body, context, thread_count_};
    // One batch an item: threads take the next item when they are free.
    Check(api_, api_.KernelContext_ParallelFor(
                    context_,
                    [](void* raw, size_t item) {
                      Watched& watched = *static_cast<Watched*>(raw);
                      watched.thread_count->Saw(watched.running.fetch_add(1) + 1);
                      watched.body(watched.context, item);
                      watched.running.fetch_sub(1);
                    },
                    count, count, &watched));
  }
  int64_t NumThreads() override {
    if (num_threads_ == 0) num_threads_ = thread_count_->Plan();
    return num_threads_;
  }
  void* Allocate(size_t bytes) override {
    void* memory = allocator_->Alloc(allocator_, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void Free(void* memory) noexcept override { allocator_->Free(allocator_, memory); }

 private:
  const OrtApi& api_;
  const OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  ThreadCount* thread_count_;
  int64_t num_threads_ = 0;
};

// Immutable after creation, but for the count of threads: concurrent Run calls share it.
class OpKernel {
 public:
  OpKernel(const OrtApi& api, const OrtKernelInfo* info, ElementType type)
      : api_(api), type_(type), memory_info_(nullptr, api.ReleaseMemoryInfo) {
    const NodeReader reader(api, info);
    name_ = reader.name();
    index_ = ReadIndex(api, reader);
    // A kernel forced by the environment that cannot run is an error now, not at the first run.
    std::string error;
    if (SelectKernel(index_->layer(), 1, /*ordinary_rows=*/true, &error) == nullptr) {
      throw RunError("TernaryIndexedMatMul '" + name_ + "': " + error);
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
      throw RunError("TernaryIndexedMatMul '" + name_ + "': " + error.what());
    }
  }

 private:
  std::string ShapeError(const std::vector<int64_t>& shape) const {
    const std::string K = std::to_string(index_->layer().K);
    std::string found;
    for (const int64_t dim : shape) found += (found.empty() ? "" : ", ") + std::to_string(dim);
    return "TernaryIndexedMatMul '" + name_ + "': X shape = (" + found + "), expected (..., " + K +
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

ElementType ElementTypeOf(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return ElementType::float16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return ElementType::bfloat16;
    default:
      return ElementType::float32;
  }
}

const CustomOp& Self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

OrtStatusPtr ORT_API_CALL CreateOpKernel(const OrtCustomOp* op, const OrtApi* api,
                                         const OrtKernelInfo* info, void** kernel) {
  *kernel = nullptr;
  try {
    *kernel = new OpKernel(*api, info, ElementTypeOf(Self(op).x_type));
    return nullptr;
  } catch (...) {
    return CurrentStatus(*api);
  }
}

OrtStatusPtr ORT_API_CALL ComputeOpKernel(void* kernel, OrtKernelContext* context) {
  const OpKernel& op_kernel = *static_cast<const OpKernel*>(kernel);
  try {
    op_kernel.Compute(context);
    return nullptr;
  } catch (...) {
    return CurrentStatus(op_kernel.api());
  }
}

// Y has X's type and leading dimensions, and N columns. On the raw C API: SetOutputShape of the
// 1.17 C++ wrapper writes 1 for every known dimension. The first CustomOp of a name serves all
// types, so the type is read from input 0.
void InferShape(const OrtApi& api, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* x = nullptr;  // owned by the context
  if (OrtStatus* unknown = api.ShapeInferContext_GetInputTypeShape(context, 0, &x)) {
    api.ReleaseStatus(unknown);
    return;
  }
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* missing = api.ShapeInferContext_GetAttribute(context, "N", &attribute)) {
    api.ReleaseStatus(missing);  // kernel creation says so
    return;
  }
  int64_t num_columns = 0;
  size_t bytes = 0;
  if (OrtStatus* other_type =
          api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &num_columns, sizeof num_columns, &bytes)) {
    api.ReleaseStatus(other_type);
    return;
  }
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(x, &rank));
  if (rank == 0) return;  // unknown, or a scalar that Compute refuses
  std::vector<int64_t> shape(rank);
  std::vector<const char*> symbols(rank, "");
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Check(api, api.GetDimensions(x, shape.data(), rank));
  Check(api, api.GetSymbolicDimensions(x, symbols.data(), rank));
  Check(api, api.GetTensorElementType(x, &type));
  // A dimension without a name would come out as -1, so an unknown one gets a name of its own.
  static std::atomic<uint64_t> num_unknown{0};
  std::vector<std::string> names(rank);
  for (size_t i = 0; i < rank; ++i) {
    if (symbols[i] == nullptr) symbols[i] = "";
    if (shape[i] >= 0 || *symbols[i] != '\0') continue;
    names[i] = "TernaryIndexedMatMul_dim_" + std::to_string(num_unknown++);
    symbols[i] = names[i].c_str();
  }
  shape.back() = num_columns;
  symbols.back() = "";
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(api, api.CreateTensorTypeAndShapeInfo(&raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> y(
      raw, api.ReleaseTensorTypeAndShapeInfo);
  Check(api, api.SetTensorElementType(raw, type));
  Check(api, api.SetDimensions(raw, shape.data(), rank));
  Check(api, api.SetSymbolicDimensions(raw, symbols.data(), rank));
  Check(api, api.ShapeInferContext_SetOutputTypeShape(context, 0, raw));
}

OrtStatusPtr ORT_API_CALL InferOutputShape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *Self(op).api;
  try {
    InferShape(api, context);
    return nullptr;
  } catch (...) {
    return CurrentStatus(api);
  }
}

ONNXTensorElementDataType ORT_API_CALL InputType(const OrtCustomOp* op, size_t index) {
  switch (index) {
    case 0:
      return Self(op).x_type;
    case 1:
      return Self(op).codes_type;
    case 2:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

}  // namespace

CustomOp::CustomOp(const OrtApi* ort_api, ONNXTensorElementDataType x,
                   ONNXTensorElementDataType codes)
    : OrtCustomOp{}, api(ort_api), x_type(x), codes_type(codes) {
  version = ORT_API_VERSION;
  GetName = [](const OrtCustomOp*) { return "TernaryIndexedMatMul"; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetInputTypeCount = [](const OrtCustomOp*) { return kNumInputs; };
  GetInputType = InputType;
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return Self(op).x_type; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = CreateOpKernel;
  KernelComputeV2 = ComputeOpKernel;
  KernelDestroy = [](void* kernel) { delete static_cast<OpKernel*>(kernel); };
  InferOutputShapeFn = InferOutputShape;
}

std::vector<std::unique_ptr<CustomOp>> MakeCustomOps(const OrtApi* api) {
  std::vector<std::unique_ptr<CustomOp>> ops;
  for (const auto x : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                       ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    for (const auto codes :
         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
          ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32}) {
      ops.push_back(std::make_unique<CustomOp>(api, x, codes));
    }
  }
  return ops;
}

}  // namespace onnx_ternary
