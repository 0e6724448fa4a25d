// Packers and unpackers of docs/index_format.md. They throw std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layer.h"

namespace onnx_ternary {

// For any a >= 0 and b > 0.
inline int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Bytes of one packed block of one column, 0 for a storage that is not packed.
int64_t PackedBlockBytes(Storage storage, int64_t block_size);

// Levels of one block of one column; 2-bit code 3 gives 2. levels: (block_size,).
void DecodeBlock(const uint8_t* bytes, Storage storage, Alphabet alphabet, int64_t block_size,
                 int64_t block_bytes, int8_t* levels);

// levels: (K, N) int8 in the alphabet. codes: codes_bytes, the whole tensor of section 2.
void Pack(const int8_t* levels, int64_t K, int64_t N, Storage storage, Alphabet alphabet,
          int64_t block_size, uint8_t* codes, size_t codes_bytes);
void Unpack(const uint8_t* codes, size_t codes_bytes, int64_t K, int64_t N, Storage storage,
            Alphabet alphabet, int64_t block_size, int8_t* levels);

// Dense codes of a layer (layer.codes, layer.block_bytes) as 2-bit codes of the same block size.
void ExpandDense(const Layer& layer, std::vector<uint8_t>* codes);

// Section 3. Index is uint16_t or uint32_t. group_size 0 is one group. Sizes are in bytes.
template <typename Index>
void PackRsr(const int8_t* levels, int64_t K, int64_t N, Storage storage, Alphabet alphabet,
             int64_t block_width, int64_t group_size, Index* permutation, size_t permutation_bytes,
             uint32_t* segment_offsets, size_t segment_offsets_bytes);

}  // namespace onnx_ternary
