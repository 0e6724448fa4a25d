#include "check_node.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "pack.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr int64_t kMaxK = (int64_t{1} << 24) - 1;  // int8 sums stay exact in int32
constexpr int64_t kMaxUint8K = int64_t{1} << 17;   // and sums of q - 128 in float32
constexpr int64_t kMaxN = std::numeric_limits<int32_t>::max();

std::string ShapeText(const int64_t* shape, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; ++i) {
    text += std::to_string(shape[i]);
    text += i + 1 < rank ? ", " : (rank == 1 ? "," : "");
  }
  return text + ")";
}

std::string FloatText(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(value));
  return text;
}

std::string Position(std::initializer_list<int64_t> indices) {
  std::string text;
  for (const int64_t index : indices) text += (text.empty() ? "" : ", ") + std::to_string(index);
  return "[" + text + "]";
}

const char* DtypeText(size_t element_bytes) {
  return element_bytes == 1 ? "uint8" : element_bytes == 2 ? "uint16" : "uint32";
}

}  // namespace

std::string IndexErrorText(const char* op_type, const std::string& node_name,
                           const std::string& what, const std::string& found,
                           const std::string& expected) {
  return op_type + (node_name.empty() ? "" : " '" + node_name + "'") + ": " + what + " = " + found +
         ", expected " + expected + "; convert the model again with 'onnx-ternary optimize'.";
}

void NodeChecker::Fail(const std::string& what, const std::string& found,
                       const std::string& expected) const {
  throw IndexError(IndexErrorText(op_type_, name_, what, found, expected));
}

void NodeChecker::RequireInt(const char* name, int64_t value, bool holds,
                             const std::string& expected) const {
  if (!holds) Fail(std::string("attribute ") + name, std::to_string(value), expected);
}

void NodeChecker::RequireFloat(const char* name, float value, bool holds,
                               const std::string& expected) const {
  if (!holds) Fail(std::string("attribute ") + name, FloatText(value), expected);
}

template <typename T>
T NodeChecker::Choose(const char* name, const char* value,
                      std::initializer_list<std::pair<const char*, T>> choices,
                      const char* suffix) const {
  std::string expected;
  for (const auto& choice : choices) {
    if (value != nullptr && std::strcmp(value, choice.first) == 0) return choice.second;
    expected += (expected.empty() ? "" : " or ") + std::string(choice.first);
  }
  Fail(std::string("attribute ") + name, "'" + std::string(value ? value : "") + "'",
       expected + suffix);
}

void NodeChecker::RequireShape(const char* name, const int64_t* shape, size_t rank,
                               std::initializer_list<int64_t> expected) const {
  const bool same = rank == expected.size() && std::equal(expected.begin(), expected.end(), shape);
  if (!same) {
    Fail(std::string(name) + " shape", ShapeText(shape, rank),
         ShapeText(expected.begin(), expected.size()));
  }
}

void NodeChecker::CheckPackedShapes(const Layer& layer) const {
  if (node_.codes_element_bytes != 1) {
    Fail("codes dtype", DtypeText(node_.codes_element_bytes), "uint8");
  }
  RequireShape("codes", node_.codes_shape, node_.codes_rank,
               {layer.num_column_tiles, layer.num_k_blocks, 4, layer.block_bytes});
  RequireShape("aux", node_.aux_shape, node_.aux_rank, {1});
}

void NodeChecker::CheckRsrShapes(const Layer& layer) const {
  if (node_.codes_element_bytes == 1 || (node_.codes_element_bytes == 2 && layer.K > 65536)) {
    Fail("codes dtype", DtypeText(node_.codes_element_bytes),
         layer.K > 65536 ? "uint32" : "uint16 or uint32");
  }
  RequireShape("codes", node_.codes_shape, node_.codes_rank,
               {layer.num_planes, layer.num_blocks, layer.K});
  RequireShape("aux", node_.aux_shape, node_.aux_rank,
               {layer.num_planes, layer.num_blocks, layer.num_groups, layer.num_patterns + 1});
}

Layer NodeChecker::Attributes() const {
  Layer layer{};
  RequireInt("format_version", node_.format_version, node_.format_version == kFormatVersion,
             std::to_string(kFormatVersion));
  RequireInt("K", node_.K, 1 <= node_.K && node_.K <= kMaxK, "from 1 to " + std::to_string(kMaxK));
  RequireInt("N", node_.N, 1 <= node_.N && node_.N <= kMaxN, "from 1 to " + std::to_string(kMaxN));
  layer.K = node_.K;
  layer.N = node_.N;
  RequireInt("group_size", node_.group_size, 0 <= node_.group_size && node_.group_size <= kMaxK,
             "from 0 to " + std::to_string(kMaxK));
  layer.group_size = node_.group_size ? node_.group_size : node_.K;
  layer.num_groups = CeilDiv(layer.K, layer.group_size);
  FormatAttributes(&layer);
  ActivationAttributes(&layer);
  return layer;
}

void NodeChecker::FormatAttributes(Layer* layer) const {
  layer->index_format =
      Choose<IndexFormat>("index_format", node_.index_format,
                          {{"packed", IndexFormat::packed}, {"rsr", IndexFormat::rsr}});
  if (layer->index_format == IndexFormat::packed) {
    layer->storage = Choose<Storage>(
        "storage", node_.storage,
        {{"2bit", Storage::two_bit}, {"dense", Storage::dense}, {"1bit", Storage::one_bit}});
  } else {
    layer->storage = Choose<Storage>("storage", node_.storage,
                                     {{"planes", Storage::planes}, {"base3", Storage::base3}});
  }
  if (layer->storage == Storage::one_bit) {
    layer->alphabet =
        Choose<Alphabet>("alphabet", node_.alphabet,
                         {{"binary_pm", Alphabet::binary_pm}, {"binary_01", Alphabet::binary_01}});
  } else if (layer->storage == Storage::base3) {
    layer->alphabet =
        Choose<Alphabet>("alphabet", node_.alphabet, {{"ternary", Alphabet::ternary}});
  } else {
    layer->alphabet = Choose<Alphabet>("alphabet", node_.alphabet,
                                       {{"ternary", Alphabet::ternary},
                                        {"binary_pm", Alphabet::binary_pm},
                                        {"binary_01", Alphabet::binary_01}});
  }
  const int64_t block_size = node_.block_size;
  const int64_t block_width = node_.block_width;
  if (layer->index_format == IndexFormat::packed) {
    RequireInt("block_size", block_size,
               block_size == 16 || block_size == 32 || block_size == 64 || block_size == 128,
               "16, 32, 64 or 128");
    RequireInt("block_width", block_width, block_width == 0, "0 for packed");
    layer->algorithm = Choose<Algorithm>("algorithm", node_.algorithm,
                                         {{"auto", Algorithm::automatic}}, " for packed");
    RequireInt("group_size", node_.group_size, node_.group_size % block_size == 0,
               "a multiple of block_size " + std::to_string(block_size));
    layer->block_size = block_size;
    layer->block_bytes = PackedBlockBytes(layer->storage, block_size);
    layer->num_k_blocks = CeilDiv(layer->K, block_size);
    layer->num_column_tiles = CeilDiv(layer->N, 4);
    return;
  }
  RequireInt("block_size", block_size, block_size == 0, "0 for rsr");
  const int64_t widest = layer->storage == Storage::base3 ? 10 : 16;
  RequireInt("block_width", block_width, 1 <= block_width && block_width <= widest,
             "from 1 to " + std::to_string(widest));
  layer->algorithm = Choose<Algorithm>(
      "algorithm", node_.algorithm, {{"rsr", Algorithm::rsr}, {"rsr++", Algorithm::rsr_plus_plus}});
  layer->block_width = block_width;
  layer->num_blocks = CeilDiv(layer->N, block_width);
  layer->num_planes =
      layer->storage == Storage::planes && layer->alphabet == Alphabet::ternary ? 2 : 1;
  layer->num_patterns = 1;
  for (int64_t c = 0; c < block_width; ++c) {
    layer->num_patterns *= layer->storage == Storage::base3 ? 3 : 2;
  }
}

void NodeChecker::ActivationAttributes(Layer* layer) const {
  layer->activation = Choose<Activation>(
      "activation", node_.activation,
      // Kernels get q - 128.
      {{"float", Activation::float32}, {"int8", Activation::int8}, {"uint8", Activation::int8}});
  const float epsilon = node_.activation_epsilon;
  const int64_t qmin = node_.activation_qmin;
  const int64_t qmax = node_.activation_qmax;
  if (layer->activation == Activation::float32) {
    layer->activation_rule = Choose<ActivationRule>("activation_rule", node_.activation_rule,
                                                    {{"none", ActivationRule::none}}, " for float");
    RequireFloat("activation_epsilon", epsilon, epsilon == 0.0f, "0 for float");
    RequireInt("activation_qmin", qmin, qmin == 0, "0 for float");
    RequireInt("activation_qmax", qmax, qmax == 0, "0 for float");
    return;
  }
  if (std::strcmp(node_.activation, "uint8") == 0) {
    layer->activation_rule = Choose<ActivationRule>(
        "activation_rule", node_.activation_rule,
        {{"dynamic_quantize_linear", ActivationRule::dynamic_quantize_linear}}, " for uint8");
    RequireInt("K", layer->K, layer->K <= kMaxUint8K,
               "at most " + std::to_string(kMaxUint8K) + " for uint8");
    RequireInt("group_size", node_.group_size, node_.group_size == 0, "0 for uint8");
    RequireFloat("activation_epsilon", epsilon, epsilon == 0.0f, "0 for uint8");
    RequireInt("activation_qmin", qmin, qmin == 0, "0 for uint8");
    RequireInt("activation_qmax", qmax, qmax == 255, "255 for uint8");
    return;
  }
  layer->activation_rule =
      Choose<ActivationRule>("activation_rule", node_.activation_rule,
                             {{"absmax_division", ActivationRule::absmax_division},
                              {"absmax_reciprocal", ActivationRule::absmax_reciprocal}},
                             " for int8");
  RequireFloat("activation_epsilon", epsilon, epsilon >= 1e-30f && epsilon < 1e30f,
               "from 1e-30 to below 1e30");
  RequireInt("activation_qmax", qmax, 0 < qmax && qmax <= 127, "from 1 to 127");
  RequireInt("activation_qmin", qmin, -128 <= qmin && qmin < 0, "from -128 to -1");
  layer->activation_epsilon = epsilon;
  layer->activation_qmin = static_cast<int32_t>(qmin);
  layer->activation_qmax = static_cast<int32_t>(qmax);
}

// A permutation of each group's rows.
void NodeChecker::CheckPermutation(const Layer& layer) const {
  std::vector<uint8_t> seen(static_cast<size_t>(layer.K));
  int64_t base = 0;
  for (int64_t plane = 0; plane < layer.num_planes; ++plane) {
    for (int64_t block = 0; block < layer.num_blocks; ++block, base += layer.K) {
      std::fill(seen.begin(), seen.end(), uint8_t{0});
      for (int64_t begin = 0; begin < layer.K; begin += layer.group_size) {
        const int64_t end = std::min(layer.K, begin + layer.group_size);
        for (int64_t k = begin; k < end; ++k) {
          const int64_t row = layer.permutation_u16
                                  ? layer.permutation_u16[base + k]
                                  : static_cast<int64_t>(layer.permutation_u32[base + k]);
          if (row < begin || row >= end || seen[static_cast<size_t>(row)]) {
            Fail("permutation" + Position({plane, block, k}), std::to_string(row),
                 "each row from " + std::to_string(begin) + " to " + std::to_string(end - 1) +
                     " once");
          }
          seen[static_cast<size_t>(row)] = 1;
        }
      }
    }
  }
}

// Offsets cut each group's rows in num_patterns segments.
void NodeChecker::CheckSegmentOffsets(const Layer& layer) const {
  const uint32_t* offsets = layer.segment_offsets;
  for (int64_t plane = 0; plane < layer.num_planes; ++plane) {
    for (int64_t block = 0; block < layer.num_blocks; ++block) {
      for (int64_t group = 0; group < layer.num_groups; ++group) {
        const int64_t begin = group * layer.group_size;
        const int64_t end = std::min(layer.K, begin + layer.group_size);
        int64_t smallest = begin;
        for (int64_t p = 0; p <= layer.num_patterns; ++p, ++offsets) {
          const int64_t offset = *offsets;
          if (p == layer.num_patterns) smallest = end;
          const int64_t largest = p == 0 ? begin : end;
          if (offset < smallest || offset > largest) {
            Fail("segment_offsets" + Position({plane, block, group, p}), std::to_string(offset),
                 smallest == largest
                     ? std::to_string(smallest)
                     : "from " + std::to_string(smallest) + " to " + std::to_string(largest));
          }
          smallest = offset;
        }
      }
    }
  }
}

void NodeChecker::CheckScale(Layer* layer) const {
  int64_t count = 1;
  if (node_.group_size > 0) {
    RequireShape("scale", node_.scale_shape, node_.scale_rank, {layer->num_groups, layer->N});
    layer->scale_kind = ScaleKind::per_group;
    count = layer->num_groups * layer->N;
  } else if (node_.scale_rank == 0) {
    layer->scale_kind = ScaleKind::per_tensor;
  } else {
    if (node_.scale_rank != 1 || node_.scale_shape[0] != layer->N) {
      Fail("scale shape", ShapeText(node_.scale_shape, node_.scale_rank),
           "() or (" + std::to_string(layer->N) + ",)");
    }
    layer->scale_kind = ScaleKind::per_column;
    count = layer->N;
  }
  for (int64_t i = 0; i < count; ++i) {
    float value;
    std::memcpy(&value, node_.scale + i, sizeof value);
    if (!(value >= 0.0f && value <= std::numeric_limits<float>::max())) {
      std::string what = "scale";
      if (layer->scale_kind == ScaleKind::per_column) what += Position({i});
      if (layer->scale_kind == ScaleKind::per_group) what += Position({i / layer->N, i % layer->N});
      Fail(what, FloatText(value), "a finite number of at least 0");
    }
  }
  layer->scale = node_.scale;
}

void NodeChecker::CheckBias(Layer* layer) const {
  layer->bias = nullptr;
  if (node_.bias_rank == 0) {
    float value;
    std::memcpy(&value, node_.bias, sizeof value);
    if (value != 0.0f) Fail("bias", FloatText(value), "0, or one value per column");
    return;
  }
  if (node_.bias_rank != 1 || node_.bias_shape[0] != layer->N) {
    Fail("bias shape", ShapeText(node_.bias_shape, node_.bias_rank),
         "() or (" + std::to_string(layer->N) + ",)");
  }
  layer->bias = node_.bias;
}

}  // namespace onnx_ternary
