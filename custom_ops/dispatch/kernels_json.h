#pragma once

#include <string>

namespace onnx_ternary {

// JSON for `onnx-ternary info`: {"cpu": [...], "kernels": [{"name", "index_format", "activation",
// "isa", "supported", "max_rows", "fixed_point"}], "selection": [{"index_format", "activation",
// "rows_min", "rows_max", "storage", "kernel"}]}; storage is null where it does not matter.
std::string KernelsJson();

}  // namespace onnx_ternary
