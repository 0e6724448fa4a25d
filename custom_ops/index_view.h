// From a node's attributes and constant tensors, which are untrusted input, to a validated Layer.
// Rules: docs/index_format.md sections 2 to 4, docs/op_spec.md.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_api.h"
#include "kernel.h"

namespace onnx_ternary {

// what() is the whole message: node, what was found, what was expected, the next step.
class IndexError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A Layer with the memory it owns. The node's tensors must outlive it: 2-bit and 1-bit codes,
// indices and scales are used where they lie when they are aligned.
class IndexView {
 public:
  // node_name may be empty. Throws IndexError, std::bad_alloc.
  IndexView(const OtnNode& node, const std::string& node_name);
  IndexView(const IndexView&) = delete;
  IndexView& operator=(const IndexView&) = delete;

  const Layer& layer() const { return layer_; }

 private:
  Layer layer_;
  std::vector<uint8_t> expanded_codes_;
  std::vector<uint16_t> permutation_u16_;
  std::vector<uint32_t> permutation_u32_;
  std::vector<uint32_t> segment_offsets_;
  std::vector<float> scale_;
  std::vector<float> block_scales_;
  std::vector<float> bias_;
  std::vector<int32_t> column_sums_;
};

// "TernaryIndexedMatMul '<node>': <what> = <found>, expected <expected>; convert the model again
// with 'onnx-ternary optimize'."
std::string IndexErrorText(const std::string& node_name, const std::string& what,
                           const std::string& found, const std::string& expected);

}  // namespace onnx_ternary
