#include "c_api.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dispatch/core_type.h"
#include "dispatch/kernel_registry.h"
#include "dispatch/kernels_json.h"
#include "dispatch/select.h"
#include "dispatch/tile_permission.h"
#include "index_view.h"
#include "pack.h"
#include "run.h"

namespace onnx_ternary {
namespace {

void CopyText(const char* text, char* out, size_t out_bytes) {
  if (out == nullptr || out_bytes == 0) return;
  const size_t count = std::min(std::strlen(text), out_bytes - 1);
  std::memcpy(out, text, count);
  out[count] = '\0';
}

// Runs body and turns what it throws into a message and a code.
template <typename Body>
int32_t Guard(char* error, size_t error_bytes, const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const RunError& exception) {
    CopyText(exception.what(), error, error_bytes);
    return 2;
  } catch (const std::bad_alloc&) {
    CopyText("out of memory", error, error_bytes);
  } catch (const std::exception& exception) {
    CopyText(exception.what(), error, error_bytes);
  } catch (...) {
    CopyText("unknown C++ exception", error, error_bytes);
  }
  return 1;
}

template <typename T>
T Choose(const char* what, const char* value,
         std::initializer_list<std::pair<const char*, T>> choices) {
  std::string expected;
  for (const auto& choice : choices) {
    if (value != nullptr && std::strcmp(value, choice.first) == 0) return choice.second;
    expected += (expected.empty() ? "" : " or ") + std::string(choice.first);
  }
  throw std::invalid_argument(std::string(what) + " = '" + (value ? value : "") + "', expected " +
                              expected);
}

Storage StorageOf(const char* name) {
  return Choose<Storage>("storage", name,
                         {{"2bit", Storage::two_bit},
                          {"dense", Storage::dense},
                          {"1bit", Storage::one_bit},
                          {"planes", Storage::planes},
                          {"base3", Storage::base3}});
}

Alphabet AlphabetOf(const char* name) {
  return Choose<Alphabet>("alphabet", name,
                          {{"ternary", Alphabet::ternary},
                           {"binary_pm", Alphabet::binary_pm},
                           {"binary_01", Alphabet::binary_01}});
}

const Kernel* NamedKernel(const std::string& name, const Layer& layer) {
  const Kernel* kernel = FindKernel(name);
  if (kernel == nullptr) {
    std::string available;
    for (const Kernel* built : BuiltKernels()) {
      available += (available.empty() ? "" : ", ") + std::string(built->name);
    }
    throw RunError("kernel '" + name + "' does not exist. Available: " + available + ".");
  }
  if (!IsaSupported(kernel->isa)) {
    throw RunError("kernel '" + name + "' needs " + IsaName(kernel->isa) +
                   "; this CPU has: " + CpuFeatures() + ".");
  }
  if (!IsaPermitted(kernel->isa)) {
    throw RunError("kernel '" + name +
                   "' needs the tiles of AMX, which the operating system does " +
                   "not let this process use.");
  }
  if (!Accepts(*kernel, layer)) {
    throw RunError("kernel '" + name + "' cannot serve this node's format.");
  }
  return kernel;
}

void RunLayer(const Layer& layer, const char* kernel, const float* x, int64_t rows,
              int64_t num_parts, float* y, char* used, size_t used_bytes) {
  if (rows < 0) throw std::invalid_argument("rows = " + std::to_string(rows));
  RunRequest request{};
  request.type = ElementType::float32;
  request.x = x;
  request.y = y;
  request.rows = rows;
  request.kernel = kernel ? NamedKernel(kernel, layer) : nullptr;
  request.num_parts = std::max<int64_t>(1, std::min(num_parts, layer.N));
  HeapHost host;
  std::vector<const Kernel*> kernels;
  Run(layer, request, &host, &kernels);
  std::string names;
  for (const Kernel* ran : kernels) names += (names.empty() ? "" : ",") + std::string(ran->name);
  CopyText(names.c_str(), used, used_bytes);
}

}  // namespace
}  // namespace onnx_ternary

struct OtnLayer {
  explicit OtnLayer(const OtnNode& node) : view(node, "") {}
  onnx_ternary::IndexView view;
};

using namespace onnx_ternary;

int32_t otn_abi_version(void) { return OTN_ABI_VERSION; }

const char* otn_kernels_json(void) {
  static thread_local std::string json;
  try {
    json = KernelsJson();
    return json.c_str();
  } catch (const std::exception&) {
    return "{}";
  }
}

int32_t otn_force_isa(const char* isa, char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    std::string message;
    if (!ForceIsa(isa ? isa : "", &message)) throw RunError(message);
  });
}

int32_t otn_force_kernel(const char* kernel, char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    std::string message;
    if (!ForceKernel(kernel ? kernel : "", &message)) throw RunError(message);
  });
}

void otn_force_core(uint32_t midr, uint32_t apple_family) {
  CoreIds ids;
  ids.midr = midr;
  ids.apple_family = apple_family;
  ForceCore(ids);
}

void otn_force_tile_permission(int32_t answer) { ForceTilePermission(answer); }

int32_t otn_validate(const OtnNode* node, char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] { const IndexView view(*node, ""); });
}

int32_t otn_run(const OtnNode* node, const char* kernel, const float* x, int64_t rows,
                int64_t num_parts, float* y, char* used, size_t used_bytes, char* error,
                size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    const IndexView view(*node, "");
    RunLayer(view.layer(), kernel, x, rows, num_parts, y, used, used_bytes);
  });
}

int32_t otn_addition_depth(const OtnNode* node, const char* kernel, int64_t* depth, char* error,
                           size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    const IndexView view(*node, "");
    const Layer& layer = view.layer();
    *depth = NamedKernel(kernel ? kernel : "", layer)->addition_depth(&layer);
  });
}

int32_t otn_create(const OtnNode* node, OtnLayer** layer, char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] { *layer = new OtnLayer(*node); });
}

int32_t otn_run_layer(const OtnLayer* layer, const char* kernel, const float* x, int64_t rows,
                      int64_t num_parts, float* y, char* used, size_t used_bytes, char* error,
                      size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    RunLayer(layer->view.layer(), kernel, x, rows, num_parts, y, used, used_bytes);
  });
}

void otn_destroy(OtnLayer* layer) { delete layer; }

int32_t otn_pack(const int8_t* levels, int64_t K, int64_t N, const char* storage,
                 const char* alphabet, int64_t block_size, uint8_t* codes, size_t codes_bytes,
                 char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    Pack(levels, K, N, StorageOf(storage), AlphabetOf(alphabet), block_size, codes, codes_bytes);
  });
}

int32_t otn_unpack(const uint8_t* codes, size_t codes_bytes, int64_t K, int64_t N,
                   const char* storage, const char* alphabet, int64_t block_size, int8_t* levels,
                   char* error, size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    Unpack(codes, codes_bytes, K, N, StorageOf(storage), AlphabetOf(alphabet), block_size, levels);
  });
}

int32_t otn_pack_rsr(const int8_t* levels, int64_t K, int64_t N, const char* storage,
                     const char* alphabet, int64_t block_width, int64_t group_size,
                     void* permutation, size_t element_bytes, size_t permutation_bytes,
                     uint32_t* segment_offsets, size_t segment_offsets_bytes, char* error,
                     size_t error_bytes) {
  return Guard(error, error_bytes, [&] {
    if (element_bytes == 2) {
      PackRsr(levels, K, N, StorageOf(storage), AlphabetOf(alphabet), block_width, group_size,
              static_cast<uint16_t*>(permutation), permutation_bytes, segment_offsets,
              segment_offsets_bytes);
    } else if (element_bytes == 4) {
      PackRsr(levels, K, N, StorageOf(storage), AlphabetOf(alphabet), block_width, group_size,
              static_cast<uint32_t*>(permutation), permutation_bytes, segment_offsets,
              segment_offsets_bytes);
    } else {
      throw std::invalid_argument("element_bytes = " + std::to_string(element_bytes) +
                                  ", expected 2 or 4");
    }
  });
}
