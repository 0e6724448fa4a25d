// What the operators of this library share as ONNX Runtime's custom operators.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "ort_status.h"

namespace onnx_ternary {

// An operator for one pair of element types; all pairs have one name, and ONNX Runtime picks the
// one whose types fit the node. Immutable; must outlive every session that uses it.
struct TypedOp : OrtCustomOp {
  // Required inputs and one output on the CPU, version 1 of the domain; MakeTypedOp sets the rest.
  TypedOp(const OrtApi* ort_api, ONNXTensorElementDataType floats,
          ONNXTensorElementDataType integers);

  static const TypedOp& Of(const OrtCustomOp* op) { return *static_cast<const TypedOp*>(op); }

  const OrtApi* api;
  ONNXTensorElementDataType float_type;    // of Y, and of X or like
  ONNXTensorElementDataType integer_type;  // of the codes or the indices
};

using TypedOps = std::vector<std::unique_ptr<TypedOp>>;

// An operator whose kernel class has, besides a constructor (const OrtApi&, const OrtKernelInfo*,
// const TypedOp&):
//   static constexpr const char* kType
//   static constexpr size_t kInputs
//   static ONNXTensorElementDataType InputType(const TypedOp&, size_t index)
//   static void InferShape(const OrtApi&, OrtShapeInferContext*), whichever op of the name it is
//   const OrtApi& api() const
//   void Compute(OrtKernelContext*) const
// What these throw becomes a status.
template <class Kernel>
std::unique_ptr<TypedOp> MakeTypedOp(const OrtApi* api, ONNXTensorElementDataType floats,
                                     ONNXTensorElementDataType integers) {
  auto made = std::make_unique<TypedOp>(api, floats, integers);
  made->GetName = [](const OrtCustomOp*) { return Kernel::kType; };
  made->GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs; };
  made->GetInputType = [](const OrtCustomOp* op, size_t index) {
    return Kernel::InputType(TypedOp::Of(op), index);
  };
  made->CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* kernel_api,
                            const OrtKernelInfo* info, void** kernel) -> OrtStatusPtr {
    *kernel = nullptr;
    return StatusOf(*kernel_api, [&] { *kernel = new Kernel(*kernel_api, info, TypedOp::Of(op)); });
  };
  made->KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const Kernel& self = *static_cast<const Kernel*>(kernel);
    return StatusOf(self.api(), [&] { self.Compute(context); });
  };
  made->KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  made->InferOutputShapeFn = [](const OrtCustomOp* op,
                                OrtShapeInferContext* context) -> OrtStatusPtr {
    const OrtApi& of_op = *TypedOp::Of(op).api;
    return StatusOf(of_op, [&] { Kernel::InferShape(of_op, context); });
  };
  return made;
}

// What shape inference knows of an input, or is told of an output.
struct InferredTensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;        // empty for a scalar and where the rank is unknown
  std::vector<const char*> symbols;  // a name per dimension or null, owned by the context
};

// False where nothing is known.
bool ReadInput(const OrtApi& api, OrtShapeInferContext* context, size_t index,
               InferredTensor* input);

// Gives output 0 a shape and an element type. On the raw C API: SetOutputShape of the 1.17 C++
// wrapper writes 1 for every known dimension. An unknown dimension without a name gets one of its
// own, because it would come out as -1.
// op_type: for such names.
void SetOutput(const OrtApi& api, OrtShapeInferContext* context, const char* op_type,
               const InferredTensor& output);

// The node's integer attribute; false where it is missing or of another type, which kernel creation
// says.
bool ReadInteger(const OrtApi& api, OrtShapeInferContext* context, const char* name,
                 int64_t* value);

}  // namespace onnx_ternary
