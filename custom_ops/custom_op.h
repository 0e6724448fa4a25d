// What the operators of this library share as ONNX Runtime's custom operators.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>
#include <vector>

namespace onnx_ternary {

// Everything of an operator that its own file does not set: required inputs and outputs on the CPU,
// version 1 of the domain.
void SetDefaults(OrtCustomOp* op);

// Where nodes of a float type run; float16 nodes have no kernel anywhere.
const char* ProviderFor(ONNXTensorElementDataType type);

// Gives output 0 a shape and an element type. On the raw C API: SetOutputShape of the 1.17 C++
// wrapper writes 1 for every known dimension. An unknown dimension without a name gets one of its
// own, because it would come out as -1.
// op_type: for such names; shape and symbols: of equal length, symbols may hold null.
void SetOutputShape(const OrtApi& api, OrtShapeInferContext* context, const char* op_type,
                    const std::vector<int64_t>& shape, std::vector<const char*> symbols,
                    ONNXTensorElementDataType type);

// The node's integer attribute; false where it is missing or of another type, which kernel creation
// says.
bool ReadInteger(const OrtApi& api, OrtShapeInferContext* context, const char* name,
                 int64_t* value);

}  // namespace onnx_ternary
