// From a node's attributes and constant tensors to a validated Layer and the memory it owns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check_node.h"
#include "layer.h"
#include "node.h"

namespace onnx_ternary {

// A Layer with the memory it owns. The node's tensors must outlive it: 2-bit and 1-bit codes,
// indices and scales are used where they lie when they are aligned.
class IndexView {
 public:
  // node_name may be empty. The rules are those of check_node.h. Throws IndexError, std::bad_alloc.
  IndexView(const OtnNode& node, const std::string& node_name);
  IndexView(const IndexView&) = delete;
  IndexView& operator=(const IndexView&) = delete;

  const Layer& layer() const { return layer_; }

 private:
  void TakePackedCodes(const NodeChecker& checker, const OtnNode& node);
  void TakeRsrCodes(const NodeChecker& checker, const OtnNode& node);

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

}  // namespace onnx_ternary
