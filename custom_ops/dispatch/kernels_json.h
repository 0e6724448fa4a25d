#pragma once

#include <string>

namespace onnx_ternary {

// JSON for `onnx-ternary info`: {"cpu": [...], "core": {"id", "name", "passed_over": [...]},
// "kernels": [{"name", "index_format", "activation", "isa", "supported", "max_rows",
// "fixed_point"}], "selection": [{"index_format", "activation", "rows_min", "rows_max", "storage",
// "kernel"}]}; storage is null where it does not matter. core is there on ARM only, its name only
// where instruction sets the processor has are passed over.
std::string KernelsJson();

}  // namespace onnx_ternary
