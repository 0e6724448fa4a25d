#include "dispatch/kernels_json.h"

#include <cstdio>

#include "dispatch/core_type.h"
#include "dispatch/kernel_registry.h"
#include "dispatch/select.h"
#include "dispatch/tile_permission.h"

namespace onnx_ternary {
namespace {

void Append(std::string* list, const std::string& item) {
  if (!list->empty()) *list += ", ";
  *list += item;
}

std::string Quoted(const std::string& text) { return "\"" + text + "\""; }

std::string Hexadecimal(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", static_cast<unsigned>(value));
  return text;
}

bool CanRun(Isa isa) { return IsaSupported(isa) && IsaPermitted(isa); }

// Of ARM processors; empty elsewhere.
std::string CoreJson() {
  const CoreIds ids = ProcessorCore();
  if (ids.midr == 0 && ids.apple_family == 0) return "";
  const char* slow = CoreWithSlowI8mm(ids);
  return "\"core\": {\"id\": " + Quoted(Hexadecimal(ids.midr != 0 ? ids.midr : ids.apple_family)) +
         ", \"name\": " + (slow ? Quoted(slow) : "null") + ", \"passed_over\": [" +
         (slow ? Quoted(IsaName(Isa::neon_i8mm)) : "") + "]}, ";
}

}  // namespace

std::string KernelsJson() {
  std::string features;
  const std::string cpu = CpuFeatures();
  for (size_t begin = 0; cpu != "none" && begin < cpu.size();) {
    const size_t comma = cpu.find(", ", begin);
    const size_t end = comma == std::string::npos ? cpu.size() : comma;
    Append(&features, Quoted(cpu.substr(begin, end - begin)));
    begin = end + 2;
  }
  std::string kernels;
  for (const Kernel* kernel : BuiltKernels()) {
    Append(&kernels, "{\"name\": " + Quoted(kernel->name) +
                         ", \"index_format\": " + Quoted(FormatName(kernel->index_format)) +
                         ", \"activation\": " + Quoted(ActivationName(kernel->activation)) +
                         ", \"isa\": " + Quoted(IsaName(kernel->isa)) +
                         ", \"supported\": " + (CanRun(kernel->isa) ? "true" : "false") +
                         ", \"max_rows\": " + std::to_string(kernel->max_rows) +
                         ", \"fixed_point\": " + (kernel->fixed_point ? "true" : "false") + "}");
  }
  std::string selection;
  const SelectionTable table = Selection();
  for (size_t i = 0; i < table.count; ++i) {
    const SelectionRow& row = table.rows[i];
    if (row.kernel == nullptr || !CanRun(row.kernel->isa)) continue;
    if (PassedOver(row.kernel->isa)) continue;
    Append(&selection,
           std::string("{\"index_format\": ") + Quoted(FormatName(row.kernel->index_format)) +
               ", \"activation\": " + Quoted(ActivationName(row.kernel->activation)) +
               ", \"rows_min\": " + std::to_string(row.rows_min) + ", \"rows_max\": " +
               (row.rows_max == kAnyRows ? "null" : std::to_string(row.rows_max)) +
               ", \"storage\": " + (row.layers == Layers::bits ? Quoted("1bit") : "null") +
               ", \"scales\": " + (row.layers == Layers::groups ? Quoted("group") : "null") +
               ", \"kernel\": " + Quoted(row.kernel->name) + "}");
  }
  return "{\"cpu\": [" + features + "], " + CoreJson() + "\"kernels\": [" + kernels +
         "], \"selection\": [" + selection + "]}";
}

}  // namespace onnx_ternary
