// Everything that is refused: a node's attributes and constant tensors are untrusted input, checked
// once, before a kernel relies on them. Rules: docs/index_format.md sections 2 to 4,
// docs/op_spec.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "layer.h"
#include "node.h"

namespace onnx_ternary {

// what() is the whole message: node, what was found, what was expected, the next step.
class IndexError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The operators of this library.
constexpr const char* kMatMulType = "TernaryIndexedMatMul";
constexpr const char* kGatherType = "TernaryIndexedGather";

// "<op_type> '<node>': <what> = <found>, expected <expected>; convert the model again with
// 'onnx-ternary optimize'."
std::string IndexErrorText(const char* op_type, const std::string& node_name,
                           const std::string& what, const std::string& found,
                           const std::string& expected);

// Members throw IndexError. The node and its name must outlive the checker.
class NodeChecker {
 public:
  // op_type: of the node, for messages.
  NodeChecker(const OtnNode& node, const std::string& node_name, const char* op_type = kMatMulType)
      : node_(node), name_(node_name), op_type_(op_type) {}

  // A layer of what the attributes say, without tensors.
  Layer Attributes() const;
  // Element types and shapes of codes and aux, for a layer of Attributes().
  void CheckPackedShapes(const Layer& layer) const;
  void CheckRsrShapes(const Layer& layer) const;
  // Values, of a layer that has its tensors.
  void CheckPermutation(const Layer& layer) const;
  void CheckSegmentOffsets(const Layer& layer) const;
  // Scale and bias are checked, then set in the layer.
  void CheckScale(Layer* layer) const;
  void CheckBias(Layer* layer) const;

 private:
  [[noreturn]] void Fail(const std::string& what, const std::string& found,
                         const std::string& expected) const;
  void RequireInt(const char* name, int64_t value, bool holds, const std::string& expected) const;
  void RequireFloat(const char* name, float value, bool holds, const std::string& expected) const;
  void RequireShape(const char* name, const int64_t* shape, size_t rank,
                    std::initializer_list<int64_t> expected) const;
  // The value whose name the attribute gives.
  template <typename T>
  T Choose(const char* name, const char* value,
           std::initializer_list<std::pair<const char*, T>> choices, const char* suffix = "") const;
  void FormatAttributes(Layer* layer) const;
  void ActivationAttributes(Layer* layer) const;

  const OtnNode& node_;
  const std::string& name_;
  const char* op_type_;
};

}  // namespace onnx_ternary
