// A node as it is given to the library, in C: by the op from a session, by callers of c_api.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

// One TernaryIndexedMatMul node: attributes by the names and values of docs/op_spec.md, tensors as
// in docs/index_format.md. codes_element_bytes is 1, 2 or 4.
typedef struct OtnNode {
  int64_t K;
  int64_t N;
  const char* index_format;
  const char* storage;
  const char* alphabet;
  int64_t block_size;
  int64_t block_width;
  const char* algorithm;
  int64_t group_size;
  const char* activation;
  const char* activation_rule;
  float activation_epsilon;
  int64_t activation_qmin;
  int64_t activation_qmax;
  int64_t format_version;
  const void* codes;
  const int64_t* codes_shape;
  size_t codes_rank;
  size_t codes_element_bytes;
  const uint32_t* aux;
  const int64_t* aux_shape;
  size_t aux_rank;
  const float* scale;
  const int64_t* scale_shape;
  size_t scale_rank;
  const float* bias;
  const int64_t* bias_shape;
  size_t bias_rank;
} OtnNode;
