// C functions beside RegisterCustomOps, reached by onnx_ternary/native/binding.py through ctypes:
// packers, kernel lists, and one kernel run without a session. Functions that can fail return 0 on
// success; otherwise they write a message of at most error_bytes (terminated) to error and return 2
// where a kernel is missing or cannot run, 1 for anything else.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "node.h"

#if defined(_WIN32)
#define OTN_EXPORT __declspec(dllexport)
#else
#define OTN_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised when a function here changes; onnx_ternary/native/binding.py refuses another number.
#define OTN_ABI_VERSION 2
OTN_EXPORT int32_t otn_abi_version(void);

// Valid until the next call on the same thread.
OTN_EXPORT const char* otn_kernels_json(void);
OTN_EXPORT int32_t otn_force_isa(const char* isa, char* error, size_t error_bytes);
OTN_EXPORT int32_t otn_force_kernel(const char* kernel, char* error, size_t error_bytes);
// Makes the selection that of another core (tests): its MIDR_EL1 or, on macOS, its hw.cpufamily.
// Zeros lift it.
OTN_EXPORT void otn_force_core(uint32_t midr, uint32_t apple_family);
// Makes `answer` what the system says when it is asked for the tiles of AMX (tests): 0, or an
// errno. -1 lifts it.
OTN_EXPORT void otn_force_tile_permission(int32_t answer);

// Validates a node exactly as kernel creation does in a session.
OTN_EXPORT int32_t otn_validate(const OtnNode* node, char* error, size_t error_bytes);

// Y (rows, N) = X (rows, K) @ W + bias, float32, through the named kernel, or through the one the
// selection table gives and with the op's own guards for non-finite and extreme rows where kernel
// is null. Columns are split in num_parts parts, which run one after another (the result must not
// depend on it). used (used_bytes) receives the kernel's name, or the names of all that ran with
// commas between, in the order they were first needed.
OTN_EXPORT int32_t otn_run(const OtnNode* node, const char* kernel, const float* x, int64_t rows,
                           int64_t num_parts, float* y, char* used, size_t used_bytes, char* error,
                           size_t error_bytes);

// T of docs/op_spec.md that the named kernel promises for the node.
OTN_EXPORT int32_t otn_addition_depth(const OtnNode* node, const char* kernel, int64_t* depth,
                                      char* error, size_t error_bytes);

// A node that is validated once and then run many times, as in a session. Its tensors must outlive
// it. otn_run_layer takes what otn_run takes; calls may be concurrent. otn_destroy takes null.
typedef struct OtnLayer OtnLayer;
OTN_EXPORT int32_t otn_create(const OtnNode* node, OtnLayer** layer, char* error,
                              size_t error_bytes);
OTN_EXPORT int32_t otn_run_layer(const OtnLayer* layer, const char* kernel, const float* x,
                                 int64_t rows, int64_t num_parts, float* y, char* used,
                                 size_t used_bytes, char* error, size_t error_bytes);
OTN_EXPORT void otn_destroy(OtnLayer* layer);

// Packs levels (K, N) int8 in {-1, 0, 1}, row-major, as docs/index_format.md section 2 says into
// codes (codes_bytes, the full size of the tensor).
OTN_EXPORT int32_t otn_pack(const int8_t* levels, int64_t K, int64_t N, const char* storage,
                            const char* alphabet, int64_t block_size, uint8_t* codes,
                            size_t codes_bytes, char* error, size_t error_bytes);
OTN_EXPORT int32_t otn_unpack(const uint8_t* codes, size_t codes_bytes, int64_t K, int64_t N,
                              const char* storage, const char* alphabet, int64_t block_size,
                              int8_t* levels, char* error, size_t error_bytes);

// Section 3. permutation has element_bytes 2 or 4; sizes are checked against the attributes.
OTN_EXPORT int32_t otn_pack_rsr(const int8_t* levels, int64_t K, int64_t N, const char* storage,
                                const char* alphabet, int64_t block_width, int64_t group_size,
                                void* permutation, size_t element_bytes, size_t permutation_bytes,
                                uint32_t* segment_offsets, size_t segment_offsets_bytes,
                                char* error, size_t error_bytes);

#ifdef __cplusplus
}
#endif
